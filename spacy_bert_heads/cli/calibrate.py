"""Define the commands for probabilities: `calibrate` and `tune-thresholds`."""

from pathlib import Path
from typing import Annotated

import typer
from spacy.cli._util import import_code

from .common import GPU_ID, exits_on_error

MODEL = Annotated[str, typer.Argument(help="The pipeline: a folder or a package name")]
DATA = typer.Argument(help="Annotated data, not used for training, in any format of evaluate")
OUTPUT = Annotated[
    Path | None, typer.Option("--output", "-o", help="A folder for the resulting pipeline")
]
HEADS = Annotated[
    str,
    typer.Option("--heads", help="Components, separated by commas; default: all supported ones"),
]
FORCE = Annotated[
    bool,
    typer.Option(
        "--force",
        "-F",
        help="Without --output, change the pipeline in place; with it, allow any output folder",
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
        bool, typer.Option("--reset", help="Set all temperatures to 1; needs no data")
    ] = False,
    force: FORCE = False,
    gpu_id: GPU = -1,
    code: CODE = None,
) -> None:
    """Calibrate probabilities: fit a temperature for each head."""
    from ..calibration import run

    import_code(code)
    names = split_names(heads)
    place = output or model
    if reset:
        changed = run.reset(model, output, names=names, force=force)
        typer.echo(f"{place}: the temperature of {', '.join(changed)} is 1")
        return
    if data is None:
        raise ValueError("The data to calibrate on is missing. Pass MODEL DATA.spacy, or --reset.")
    fitted = run.calibrate(model, data, output, names=names, force=force, gpu_id=gpu_id)
    typer.echo(run.format_fitted(fitted))
    typer.echo(f"{place}: calibrated")


@exits_on_error
def tune_thresholds_command(
    model: MODEL,
    data: Annotated[Path, DATA],
    precision: Annotated[
        float | None, typer.Option(help="The precision to reach for each label")
    ] = None,
    recall: Annotated[float | None, typer.Option(help="The recall to reach for each label")] = None,
    f: Annotated[bool, typer.Option("--f", help="Choose the best F score of each label")] = False,
    output: OUTPUT = None,
    heads: HEADS = "",
    force: FORCE = False,
    gpu_id: GPU = -1,
    code: CODE = None,
) -> None:
    """Choose a threshold for each label; below it the head abstains."""
    from ..calibration import run

    import_code(code)
    goals = {"precision": precision, "recall": recall, "f": 0.0 if f else None}
    given = [(goal, value) for goal, value in goals.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"{len(given)} goals are set. Set exactly one of --precision, --recall and --f."
        )
    tuned = run.tune_thresholds(
        model, data, *given[0], output, names=split_names(heads), force=force, gpu_id=gpu_id
    )
    typer.echo(run.format_tuned(tuned))
    typer.echo(f"{output or model}: thresholds set")


def split_names(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
