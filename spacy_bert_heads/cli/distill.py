"""Define the command `distill`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import FORCE, GPU_ID, RESUME, exits_on_error
from .pretrain import CODE


@exits_on_error
def distill_command(
    ctx: typer.Context,
    teacher: Annotated[
        str, typer.Argument(help="The trained pipeline: a folder or a package name")
    ],
    config: Annotated[Path, typer.Argument(help="The student's training config", exists=True)],
    output: Annotated[
        Path, typer.Argument(help="The output folder for pipelines and training states")
    ],
    keep_layers: Annotated[
        str,
        typer.Option(
            "--keep-layers",
            "-k",
            help="The checkpoint's layers to keep, such as 0,2,4; default: all",
        ),
    ] = "",
    resume: Annotated[bool, RESUME] = False,
    force: Annotated[bool, FORCE] = False,
    gpu_id: Annotated[int, GPU_ID] = -1,
    code: Annotated[Path | None, typer.Option("--code", "-c", help=CODE)] = None,
) -> None:
    """Train a smaller pipeline on the predictions of a trained one, on unannotated texts."""
    from spacy.cli._util import import_code, parse_config_overrides

    from ..distill import distill
    from ..init_config import read_config

    import_code(code)
    try:
        layers = [int(number) for number in keep_layers.split(",") if number.strip()]
    except ValueError:
        raise ValueError(
            f"--keep-layers is {keep_layers!r}. Pass layer numbers, counted from 0, such as 0,2,4."
        ) from None
    distill(
        teacher,
        read_config(config, parse_config_overrides(ctx.args)),
        output,
        keep_layers=layers,
        resume=resume,
        force=force,
        gpu_id=gpu_id,
    )
