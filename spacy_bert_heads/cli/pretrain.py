"""The commands for encoders and raw text: `pretrain`, `fill-mask`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .common import FORCE, exits_on_error


@exits_on_error
def pretrain_command(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(help="The config, as configs/pretrain.cfg")],
    output: Annotated[Path, typer.Argument(help="A folder for checkpoints, log and states")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest state in the output")
    ] = False,
    force: Annotated[bool, FORCE] = False,
    gpu_id: Annotated[int, typer.Option("--gpu-id", "-g", help="The GPU, -1 for the CPU")] = -1,
) -> None:
    """Adapt an encoder to raw text. Settings are overridden by --section.key value."""
    from spacy.cli._util import parse_config_overrides
    from tqdm import tqdm

    from ..pretraining.loop import pretrain
    from ..pretraining.reports import COLUMNS, format_row
    from ..pretraining.settings import read_settings

    settings = read_settings(config, parse_config_overrides(ctx.args))
    # Of several processes that torchrun started, the first one speaks.
    first = os.environ.get("RANK", "0") == "0"
    if first:
        typer.echo(COLUMNS)
    total = settings.training.max_steps
    with tqdm(total=total, unit="step", disable=None if first else True) as bar:

        def move(step: int) -> None:
            bar.update(step - bar.n)

        pretrain(
            settings,
            output,
            resume=resume,
            force=force,
            gpu_id=gpu_id,
            say=bar.write,
            on_report=lambda report: bar.write(format_row(report)),
            on_step=move,
        )
    if first:
        typer.echo(f"{output / 'model-best'}: use it as `name` of bert_encoder")


@exits_on_error
def fill_mask_command(
    model: Annotated[str, typer.Argument(help="A checkpoint: a hub name or a folder")],
    text: Annotated[str, typer.Argument(help="A text with [MASK] in it")],
    top: Annotated[int, typer.Option(min=1, help="How many guesses")] = 5,
) -> None:
    """Guess what stands behind the mask tokens of a text."""
    from ..pretraining.objectives import fill_mask, load_pretrainer

    pretrainer = load_pretrainer(model, sentence_objective=None)
    if "masked-piece head" in pretrainer.new_heads:
        raise ValueError(f"'{model}' has no head for masked pieces. Pretrain it first.")
    rows = fill_mask(pretrainer, text, top=top)
    for row in rows:
        typer.echo("  ".join(f"{guess.text} {guess.score:.3f}" for guess in row))
