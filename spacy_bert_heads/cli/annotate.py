"""The command `annotate`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import exits_on_error


@exits_on_error
def annotate_command(
    model: Annotated[str, typer.Argument(help="A pipeline: its folder or its package's name")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A file, a folder or a quoted pattern: .jsonl, .parquet, .txt (a document a line) "
            "or .spacy; all but .parquet also .gz or .zst",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A folder for the parts")],
    format: Annotated[
        str, typer.Option("--format", "-f", help="Of the parts: jsonl, parquet or spacy")
    ] = "jsonl",
    text_column: Annotated[str, typer.Option(help="The column or key of the text")] = "text",
    docs_per_part: Annotated[
        int, typer.Option(help="Documents of a part, which is done as a whole or not at all")
    ] = 1000,
    workers: Annotated[
        int, typer.Option("--workers", "-w", help="Processes, which share the processors")
    ] = 1,
    engine: Annotated[
        str, typer.Option(help="local for processes of this machine, ray for a cluster")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="With ray: the cluster's; else one is started here")
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, help="With ray: how many GPUs each worker gets")
    ] = 0,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16, int8 or auto; else the pipeline's")
    ] = None,
    gpu_id: Annotated[
        int,
        typer.Option(
            "--gpu-id", "-g", help="The GPU, -1 for the CPU; of several workers the first"
        ),
    ] = -1,
    code: Annotated[
        Path | None, typer.Option("--code", "-c", help="A Python file to import first")
    ] = None,
) -> None:
    """Annotate a corpus of any size: entities, categories, verdicts and answers with their
    probabilities. The same command, here or on other machines, joins a run or goes on with it."""
    from ..annotate.plan import Job
    from ..annotate.run import annotate

    if engine != "ray" and (address or gpus_per_worker):
        raise ValueError("--address and --gpus-per-worker go with --engine ray.")
    if engine == "ray" and gpu_id >= 0:
        raise ValueError("--gpu-id goes with --engine local. With ray: --gpus-per-worker 1.")
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
