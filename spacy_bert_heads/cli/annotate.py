"""Define the command `annotate`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import exits_on_error


@exits_on_error
def annotate_command(
    model: Annotated[str, typer.Argument(help="The pipeline: a folder or a package name")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A file, a folder or a quoted pattern: .jsonl, .csv, .tsv, .parquet, .txt (one "
            "document per line) or .spacy; all except .parquet may be compressed (.gz, .zst)",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder for the parts")],
    format: Annotated[
        str, typer.Option("--format", "-f", help="The output format: jsonl, parquet or spacy")
    ] = "jsonl",
    text_column: Annotated[str, typer.Option(help="The column or key with the text")] = "text",
    docs_per_part: Annotated[
        int, typer.Option(help="The most documents per part; a part is written atomically")
    ] = 1000,
    workers: Annotated[
        int,
        typer.Option("--workers", "-w", help="The number of processes, which share the CPU cores"),
    ] = 1,
    engine: Annotated[
        str, typer.Option(help="local: processes on this machine; ray: a Ray cluster")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="With ray: the cluster's address; default: start one here")
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, help="With ray: the number of GPUs per worker")
    ] = 0,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16, int8 or auto; default: the pipeline's")
    ] = None,
    gpu_id: Annotated[
        int,
        typer.Option(
            "--gpu-id", "-g", help="The GPU, -1 for the CPU; with several workers, the first GPU"
        ),
    ] = -1,
    code: Annotated[
        Path | None, typer.Option("--code", "-c", help="A Python file to import first")
    ] = None,
) -> None:
    """Annotate a corpus of any size with entities, categories, verdicts and answers and their
    probabilities. Run the same command again, here or on other machines, to continue or join a
    run."""
    from ..annotate.plan import Job
    from ..annotate.run import annotate

    if engine != "ray" and (address or gpus_per_worker):
        raise ValueError(
            "--address and --gpus-per-worker need --engine ray. Add it, or leave them out."
        )
    if engine == "ray" and gpu_id >= 0:
        raise ValueError(
            "--gpu-id needs --engine local. With --engine ray, use --gpus-per-worker 1."
        )
    job = Job(
        model=str(Path(model).absolute()) if Path(model).is_dir() else model,
        source=str(Path(source).expanduser().absolute()),
        output=output.absolute(),
        format=format,
        text_column=text_column,
        docs_per_part=docs_per_part,
        precision=precision,
        gpu_id=gpu_id,
        code=code and code.absolute(),
    )
    summary = annotate(
        job,
        workers=workers,
        engine=engine,
        address=address,
        gpus_per_worker=gpus_per_worker,
        show=typer.echo,
    )
    typer.echo(f"{output}: " + "\n".join(summary.lines()))
