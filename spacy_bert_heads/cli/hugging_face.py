"""Define the commands for Hugging Face models: `from-hf`, `to-hf` and `to-onnx`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import FORCE, exits_on_error


@exits_on_error
def from_hf_command(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Fine-tuned checkpoints: hub names or folders"),
    ],
    output: Annotated[Path, typer.Argument(help="The output folder for the pipeline")],
    task: Annotated[
        str | None,
        typer.Option(help="The head, such as ner; default: detected. An unknown name prints all"),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Class names in order, separated by commas; default: the checkpoint's"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit on the hub; default: the newest")
    ] = None,
    lang: Annotated[str, typer.Option("--lang", "-l", help="The language of the tokenizer")] = "en",
    force: Annotated[bool, FORCE] = False,
) -> None:
    """Create a pipeline from fine-tuned Hugging Face checkpoints, with one head for each."""
    from ..files import fill_folder
    from ..hf import from_hf

    given = [label.strip() for label in labels.split(",")] if labels else None
    with fill_folder(output, "from-hf", force=force) as made:
        nlp = from_hf(*names, task=task, labels=given, revision=revision, lang=lang)
        nlp.to_disk(made)
    typer.echo(f"{output}: {', '.join(nlp.pipe_names)}")
    for name in nlp.pipe_names:
        labels_of = getattr(nlp.get_pipe(name), "labels", ())
        if labels_of:
            typer.echo(f"{name}: {', '.join(labels_of)}")


@exits_on_error
def to_hf_command(
    model: Annotated[str, typer.Argument(help="The pipeline: a folder or a package name")],
    component: Annotated[str, typer.Argument(help="The name of a head or an encoder")],
    output: Annotated[Path, typer.Argument(help="The output folder for the checkpoint")],
    precision: Annotated[
        str, typer.Option(help="The precision of the weights: fp32, bf16 or fp16")
    ] = "fp32",
    force: Annotated[bool, FORCE] = False,
) -> None:
    """Save a head with its encoder as a Hugging Face checkpoint."""
    from ..evaluate import load_pipeline
    from ..hf import to_hf

    to_hf(load_pipeline(model), component, output, precision=precision, force=force)
    typer.echo(f"{output}: load it with transformers.pipeline(model={str(output)!r})")


@exits_on_error
def to_onnx_command(
    model: Annotated[str, typer.Argument(help="The pipeline: a folder or a package name")],
    component: Annotated[str, typer.Argument(help="The name of a head or an encoder")],
    output: Annotated[
        Path, typer.Argument(help="The output folder for the ONNX file and the tokenizer")
    ],
    force: Annotated[bool, FORCE] = False,
) -> None:
    """Save a head with its encoder as one ONNX file, verified with ONNX Runtime."""
    from ..evaluate import load_pipeline
    from ..hf import to_hf

    to_hf(load_pipeline(model), component, output, format="onnx", force=force)
    typer.echo(f"{output / 'model.onnx'}: run it with onnxruntime, or load {output} with optimum")
