"""The commands about probabilities: `calibrate` and `tune-thresholds`."""

from pathlib import Path
from typing import Annotated

import typer
from spacy.cli._util import import_code

from .common import GPU_ID, exits_on_error

MODEL = Annotated[str, typer.Argument(help="A pipeline: its folder or its package's name")]
DATA = typer.Argument(help="Annotated data that it was not trained on, as for evaluate")
OUTPUT = Annotated[
    Path | None, typer.Option("--output", "-o", help="A folder for the changed pipeline")
]
HEADS = Annotated[
    str,
    typer.Option("--heads", help="Components, with commas between; else all that can"),
]
FORCE = Annotated[
    bool,
    typer.Option(
        "--force", "-F", help="Without an output, change the pipeline itself; else take any folder"
    ),
]
GPU = Annotated[int, GPU_ID]
CODE = Annotated[Path | None, typer.Option("--code", "-c", help="A Python file to import first")]


@exits_on_error
def calibrate_command(
    model: MODEL,
    data: Annotated[Path | None, DATA] = None,
    output: OUTPUT = None,
    heads: HEADS = "",
    reset: Annotated[
        bool, typer.Option("--reset", help="Set all temperatures to 1; without data")
    ] = False,
    force: FORCE = False,
    gpu_id: GPU = -1,
    code: CODE = None,
) -> None:
    """Make probabilities mean what they say: fit a temperature for each head."""
    from ..calibration import run

    import_code(code)
    names = split_names(heads)
    place = output or model
    if reset:
        changed = run.reset(model, output, names=names, force=force)
        typer.echo(f"{place}: the temperature of {', '.join(changed)} is 1")
        return
    if data is None:
        raise ValueError("Name the data to calibrate on: MODEL DATA.spacy, or give --reset.")
    fitted = run.calibrate(model, data, output, names=names, force=force, gpu_id=gpu_id)
    typer.echo(run.format_fitted(fitted))
    typer.echo(f"{place}: calibrated")


@exits_on_error
def tune_thresholds_command(
    model: MODEL,
    data: Annotated[Path, DATA],
    precision: Annotated[
        float | None, typer.Option(help="What claims of a label from its threshold on must have")
    ] = None,
    recall: Annotated[
        float | None, typer.Option(help="What they must find of what is annotated with the label")
    ] = None,
    f: Annotated[bool, typer.Option("--f", help="The best F score of each label")] = False,
    output: OUTPUT = None,
    heads: HEADS = "",
    force: FORCE = False,
    gpu_id: GPU = -1,
    code: CODE = None,
) -> None:
    """Choose a threshold for each label, below which heads abstain."""
    from ..calibration import run

    import_code(code)
    goals = {"precision": precision, "recall": recall, "f": 0.0 if f else None}
    given = [(goal, value) for goal, value in goals.items() if value is not None]
    if len(given) != 1:
        raise ValueError("Name one goal: --precision 0.95, --recall 0.8 or --f.")
    tuned = run.tune_thresholds(
        model, data, *given[0], output, names=split_names(heads), force=force, gpu_id=gpu_id
    )
    typer.echo(run.format_tuned(tuned))
    typer.echo(f"{output or model}: thresholds are set")


def split_names(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
