"""Define the command `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer
from spacy.cli._util import import_code

from .common import FORCE, GPU_ID, check_file, exits_on_error

MAX_DOCS = 2**31 - 1  # the largest C int on all platforms
MARGIN = 0.3  # points of a score


@exits_on_error
def evaluate_command(
    model: Annotated[str, typer.Argument(help="The pipeline: a folder or a package name")],
    data: Annotated[
        Path, typer.Argument(help="A .spacy file, a folder, or any format that convert reads")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A JSON file for all scores")
    ] = None,
    per_type: Annotated[
        bool, typer.Option("--per-type", help="Also show the scores of each label")
    ] = False,
    lang: Annotated[
        str | None,
        typer.Option("--lang", "-l", help="The language of the data; default: the pipeline's"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16, fp16, int8 or auto; all compares them; default: the pipeline's"
        ),
    ] = None,
    store: Annotated[
        bool,
        typer.Option("--store", help="With --precision all: write the fastest one to the config"),
    ] = False,
    margin: Annotated[
        float, typer.Option(min=0, help="With --store: the most points to lose against fp32")
    ] = MARGIN,
    pages: Annotated[
        Path | None,
        typer.Option("--pages", help="A folder for an HTML page of gold and predicted annotations"),
    ] = None,
    pages_limit: Annotated[
        int, typer.Option("--pages-limit", min=1, max=MAX_DOCS, help="The most Docs on the page")
    ] = 100,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="A folder for a table and plots of the calibration"),
    ] = None,
    force: Annotated[bool, FORCE] = False,
    gpu_id: Annotated[int, GPU_ID] = -1,
    code: Annotated[
        Path | None, typer.Option("--code", "-c", help="A Python file to import first")
    ] = None,
) -> None:
    """Score a pipeline as `spacy evaluate` does, including pairs of texts."""
    import srsly

    from ..evaluate import evaluate, format_report
    from ..files import replace_file

    check_file(output)
    import_code(code)
    if store and precision != "all":
        raise ValueError("--store needs --precision all. Add it, or leave --store out.")
    if precision == "all":
        if per_type or pages is not None:
            raise ValueError(
                "--per-type and --pages can't be combined with --precision all. Pass one precision."
            )
        _compare_precisions(model, data, output, gpu_id, lang, margin if store else None)
        return
    report = evaluate(
        model,
        data,
        gpu_id=gpu_id,
        lang=lang,
        precision=precision,
        pages=pages,
        pages_limit=pages_limit,
        calibration=calibration,
        force=force,
    )
    typer.echo(format_report(report, per_type=per_type))
    if output is not None:
        replace_file(output, srsly.json_dumps(report, indent=2).encode())
    if calibration is not None:
        typer.echo(f"{calibration}: {', '.join(f'{name}.png' for name in report['calibration'])}")
    if pages is not None:
        typer.echo(f"{pages / 'index.html'}: open it in a browser")


def _compare_precisions(
    model: str,
    data: Path,
    output: Path | None,
    gpu_id: int,
    lang: str | None,
    margin: float | None,
) -> None:
    """Print the scores and the speed of each precision, and store one if there is a margin."""
    import srsly

    from ..files import replace_file
    from ..precisions import (
        as_report,
        check_storable,
        choose,
        format_precisions,
        measure_precisions,
        store_precision,
    )

    folder = None if margin is None else check_storable(model)
    measured = measure_precisions(model, data, gpu_id=gpu_id, lang=lang)
    typer.echo(format_precisions(measured))
    if output is not None:
        replace_file(output, srsly.json_dumps(as_report(measured), indent=2).encode())
    if folder is not None and margin is not None:
        chosen = choose(measured, margin)
        store_precision(folder, chosen)
        typer.echo(
            f'{folder / "config.cfg"}: precision = "{chosen}", the fastest within {margin:g} '
            "points of fp32 on this machine"
        )
