"""Define the command `glue`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import FORCE, GPU_ID, exits_on_error


@exits_on_error
def glue_command(
    folder: Annotated[
        Path, typer.Argument(help="The folder with GLUE's task folders", file_okay=False)
    ],
    output: Annotated[
        Path, typer.Argument(help="The output folder for scores and submission files")
    ],
    model: Annotated[
        str, typer.Option("--name", "-n", help="The checkpoint: a hub name or a folder")
    ],
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", "-t", help="Such as CoLA,RTE; default: all tasks in the folder"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Random seeds, such as 0,1,2")] = "0",
    epochs: Annotated[int, typer.Option(min=1, help="The number of epochs")] = 3,
    learn_rate: Annotated[float, typer.Option(help="The encoder's peak learning rate")] = 1e-4,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto")] = "auto",
    beside: Annotated[
        bool, typer.Option("--beside", help="Also train Hugging Face's classes in a plain loop")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The most examples per data set")] = None,
    force: Annotated[bool, FORCE] = False,
    gpu_id: Annotated[int, GPU_ID] = -1,
) -> None:
    """Train and score GLUE's tasks and two Chinese ones from their original files."""
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
        typer.echo(f"\n{output / 'submissions'}: predictions in the format of GLUE's server")


def read_seeds(text: str) -> list[int]:
    """Parse comma-separated seeds. Raises ValueError if one is not an integer."""
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--seeds is '{text}'. Pass integers separated by commas, such as 0,1,2."
        ) from None
