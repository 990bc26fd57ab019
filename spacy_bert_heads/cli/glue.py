"""The command `glue`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import FORCE, GPU_ID, exits_on_error


@exits_on_error
def glue_command(
    folder: Annotated[Path, typer.Argument(help="A folder with GLUE's tasks", file_okay=False)],
    output: Annotated[Path, typer.Argument(help="A folder for scores and submission files")],
    model: Annotated[str, typer.Option("--name", "-n", help="The checkpoint")],
    tasks: Annotated[
        str | None, typer.Option("--tasks", "-t", help="CoLA,RTE …; else all that are there")
    ] = None,
    seeds: Annotated[str, typer.Option(help="0,1,2 …")] = "0",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data")] = 3,
    learn_rate: Annotated[float, typer.Option(help="The encoder's, at its highest")] = 1e-4,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto")] = "auto",
    beside: Annotated[
        bool, typer.Option("--beside", help="Also by Hugging Face's classes and a plain loop")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many examples of each set")
    ] = None,
    force: Annotated[bool, FORCE] = False,
    gpu_id: Annotated[int, GPU_ID] = -1,
) -> None:
    """Train and score the tasks of GLUE, and two Chinese ones, from their own files."""
    from ..glue.run import Setup, format_results, run_glue

    setup = Setup(model, epochs, learn_rate, precision, gpu_id, limit)
    scores = run_glue(
        folder,
        output,
        setup,
        tasks=tasks.split(",") if tasks else (),
        seeds=read_seeds(seeds),
        beside=beside,
        force=force,
        say=typer.echo,
    )
    typer.echo(f"\n{format_results(scores)}")
    if (output / "submissions").is_dir():
        typer.echo(f"\n{output / 'submissions'}: predictions as GLUE's server takes them")


def read_seeds(text: str) -> list[int]:
    """Read numbers with commas between."""
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds takes numbers, as 0,1,2, not '{text}'.") from None
