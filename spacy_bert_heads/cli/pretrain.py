"""Define the commands for pretraining: `prepare`, `pretrain` and `fill-mask`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..deprecated import warn_deprecated
from .common import FORCE, GPU_ID, RESUME, exits_on_error

CODE = "A Python file to import first, with registered functions of the config"


@exits_on_error
def prepare_command(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG", help="The config of `bert pretrain`"),
    ],
    code: Annotated[Path | None, typer.Option("--code", help=CODE)] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", "-e", hidden=True)] = None,
    cache: Annotated[str | None, typer.Option("--cache", "-c", hidden=True)] = None,
    lang: Annotated[str, typer.Option("--lang", "-l", hidden=True)] = "en",
    sentences: Annotated[str | None, typer.Option(hidden=True)] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", min=0, hidden=True)] = 0,
) -> None:
    """Tokenize raw text for pretraining; existing files are reused. Override settings with
    --section.key VALUE."""
    from spacy.cli._util import import_code, parse_config_overrides

    from ..pretraining.settings import Paths, Settings, Text, read_settings
    from ..pretraining.start import prepare_alone

    import_code(code)
    if encoder is None:
        settings = read_settings(Path(arguments[0]), parse_config_overrides(arguments[1:]))
    else:
        # The command of version 0.1, which works until 0.3.
        warn_deprecated(
            "`bert prepare SOURCE --encoder … --cache …`",
            "`bert prepare CONFIG --paths.raw SOURCE --paths.encoder … --paths.cache …`",
        )
        if cache is None:
            raise ValueError(
                "--encoder needs --cache. Pass the folder for the prepared corpus with --cache."
            )
        text = Text(lang, sentences, workers=workers)
        settings = Settings(Paths(arguments, encoder, cache), text=text)
    report = prepare_alone(settings, say=typer.echo).report
    typer.echo(f"{settings.paths.cache}: " + "\n".join(report.lines()))


@exits_on_error
def pretrain_command(
    ctx: typer.Context,
    config: Annotated[
        Path, typer.Argument(help="The config; `bert init-config --pretrain` creates one")
    ],
    output: Annotated[
        Path, typer.Argument(help="The output folder for checkpoints, log and training states")
    ],
    resume: Annotated[bool, RESUME] = False,
    force: Annotated[bool, FORCE] = False,
    gpu_id: Annotated[int, GPU_ID] = -1,
    code: Annotated[Path | None, typer.Option("--code", "-c", help=CODE)] = None,
) -> None:
    """Pretrain an encoder on raw text. Override settings with --section.key VALUE."""
    from spacy.cli._util import import_code, parse_config_overrides
    from tqdm import tqdm

    from ..pretraining.loop import pretrain
    from ..pretraining.reports import COLUMNS, Report, format_row
    from ..pretraining.settings import read_settings

    import_code(code)
    settings = read_settings(config, parse_config_overrides(ctx.args))
    # Only the first of several torchrun processes prints.
    first = os.environ.get("RANK", "0") == "0"
    titles = iter([COLUMNS])  # printed with the first row, so an earlier error has no table
    total = settings.training.max_steps  # None if epochs are counted
    with tqdm(total=total, unit="step", disable=None if first else True) as bar:

        def move(step: int) -> None:
            bar.update(step - bar.n)

        def show(report: Report) -> None:
            for line in (*titles, format_row(report)):
                bar.write(line)

        pretrain(
            settings,
            output,
            resume=resume,
            force=force,
            gpu_id=gpu_id,
            say=bar.write,
            on_report=show,
            on_step=move,
        )
    if first:
        typer.echo(f"{output / 'model-best'}: use it as `name` of bert_encoder")


@exits_on_error
def fill_mask_command(
    model: Annotated[str, typer.Argument(help="The checkpoint: a hub name or a folder")],
    text: Annotated[str, typer.Argument(help="A text that contains [MASK]")],
    top: Annotated[int, typer.Option(min=1, help="The number of predictions per mask token")] = 5,
) -> None:
    """Predict the masked wordpieces of a text."""
    from ..pretraining.objectives import fill_mask, load_pretrainer

    pretrainer = load_pretrainer(model, sentence_objective=None)
    if "masked-LM head" in pretrainer.new_heads:
        raise ValueError(
            f"'{model}' has no masked-LM head. Pretrain it first, with `bert pretrain`."
        )
    rows = fill_mask(pretrainer, text, top=top)
    for row in rows:
        typer.echo("  ".join(f"{guess.text} {guess.score:.3f}" for guess in row))
