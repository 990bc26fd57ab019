"""Define the command `train`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import FORCE, GPU_ID, RESUME, exits_on_error
from .pretrain import CODE


@exits_on_error
def train_command(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(help="The config of `spacy train`", exists=True)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The output folder for pipelines and training states"),
    ],
    resume: Annotated[bool, RESUME] = False,
    force: Annotated[bool, FORCE] = False,
    gpu_id: Annotated[int, GPU_ID] = -1,
    code: Annotated[Path | None, typer.Option("--code", "-c", help=CODE)] = None,
) -> None:
    """Train a pipeline as `spacy train` does, with one or more processes; runs can be resumed.

    Several GPUs: torchrun --nproc-per-node 4 -m spacy bert train CONFIG --output FOLDER --gpu-id 0
    """
    from spacy.cli._util import import_code, parse_config_overrides

    from ..init_config import read_config
    from ..training.loop import train

    import_code(code)
    overrides = parse_config_overrides(ctx.args)
    train(
        read_config(config, overrides),
        output,
        resume=resume,
        force=force,
        gpu_id=gpu_id,
    )
