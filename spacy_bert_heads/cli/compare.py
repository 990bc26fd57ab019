"""Define the command `compare`."""

from pathlib import Path
from typing import Annotated

import typer
from spacy.cli._util import import_code

from .common import GPU_ID, check_file, exits_on_error


@exits_on_error
def compare_command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Pipelines to compare with the first one: folders or packages; or folders or "
            "quoted patterns ('runs/base-*') with the seeds of one contestant",
        ),
    ],
    data: Annotated[Path, typer.Argument(help="A .spacy file, or a folder of files")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A JSON file for the report")
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option("--docs", help="A JSONL file for the errors and counts of each Doc"),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--page", help="An HTML file for the Docs in which the pipelines differ"),
    ] = None,
    page_limit: Annotated[
        int, typer.Option("--page-limit", min=1, help="The most Docs on the page")
    ] = 100,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown")] = False,
    resamples: Annotated[
        int, typer.Option("--resamples", min=1, help="Bootstrap resamples for the 95 % intervals")
    ] = 2000,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="The random seed of the bootstrap")
    ] = 0,
    gpu_id: Annotated[int, GPU_ID] = -1,
    code: Annotated[
        Path | None, typer.Option("--code", "-c", help="A Python file to import first")
    ] = None,
) -> None:
    """Compare pipelines on the same data, with confidence intervals and significance tests."""
    import srsly

    from ..comparison.compare import compare
    from ..comparison.tables import format_comparison
    from ..files import replace_file

    for file in (output, docs, page):
        check_file(file)
    import_code(code)
    found = compare(models, data, n_resamples=resamples, seed=seed, gpu_id=gpu_id)
    typer.echo(format_comparison(found.report, markdown=markdown))
    if output is not None:
        replace_file(output, srsly.json_dumps(found.report, indent=2).encode())
    if docs is not None:
        lines = "".join(f"{srsly.json_dumps(one)}\n" for one in found.documents())
        replace_file(docs, lines.encode())
    if page is not None:
        from ..pages.comparison import write_comparison

        write_comparison(found, page, limit=page_limit)
        typer.echo(f"{page}: open it in a browser")
