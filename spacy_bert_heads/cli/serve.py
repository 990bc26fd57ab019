"""Define the command `serve`."""

from pathlib import Path
from typing import Annotated

import typer
from spacy.cli._util import import_code

from .common import GPU_ID, exits_on_error


@exits_on_error
def serve_command(
    model: Annotated[str, typer.Argument(help="The pipeline: a folder or a package name")],
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 for all networks")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535)] = 8000,
    max_wait: Annotated[
        float, typer.Option(min=0, help="The longest wait of a batch for more requests, in ms")
    ] = 5,
    batch_wordpieces: Annotated[
        int, typer.Option(min=1, help="The most wordpieces per batch (estimated)")
    ] = 2048,
    queue_wordpieces: Annotated[
        int,
        typer.Option(min=1, help="The most wordpieces in the queue (estimated), else status 429"),
    ] = 65536,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, help="The most seconds from request to response, else status 504"),
    ] = 30,
    max_body: Annotated[int, typer.Option(min=1, help="The most bytes per request")] = 2**20,
    max_texts: Annotated[int, typer.Option(min=1, help="The most texts per request")] = 128,
    max_chars: Annotated[int, typer.Option(min=1, help="The most characters per text")] = 100_000,
    max_pairs: Annotated[
        int,
        typer.Option(
            min=1,
            help="The most questions, hypotheses, categories, others and options per request, "
            "times texts",
        ),
    ] = 256,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16, int8 or auto; default: the pipeline's")
    ] = None,
    num_threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="The number of torch threads; default: all cores"),
    ] = None,
    gpu_id: Annotated[int, GPU_ID] = -1,
    code: Annotated[
        Path | None, typer.Option("--code", "-c", help="A Python file to import first")
    ] = None,
) -> None:
    """Serve a pipeline over HTTP, with a demo page."""
    from ..serving.limits import Limits
    from ..serving.run import serve

    import_code(code)
    limits = Limits(
        max_wait=max_wait / 1000,
        batch_wordpieces=batch_wordpieces,
        queue_wordpieces=queue_wordpieces,
        timeout=timeout,
        max_body=max_body,
        max_texts=max_texts,
        max_chars=max_chars,
        max_pairs=max_pairs,
    )
    serve(
        model,
        host=host,
        port=port,
        limits=limits,
        precision=precision,
        num_threads=num_threads,
        gpu_id=gpu_id,
    )
