"""`python -m spacy bert …`: thin commands over plain functions.

spaCy imports this module before each of its own commands, so everything else waits for a
command of ours.
"""

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from spacy.cli._util import app

bert_app = typer.Typer(name="bert", help="Convert data and make configs for BERT pipelines.")
app.add_typer(bert_app)


@bert_app.callback()
def main() -> None:
    """Convert data and make configs for BERT pipelines (spacy_bert_heads)."""


@bert_app.command("convert")
def convert_command(
    source: Annotated[Path, typer.Argument(help="A data file, or a folder of files")],
    output: Annotated[Path, typer.Argument(help="A .spacy file, or a folder for several")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format", "-f", help="conll, labelled, csv, tsv or jsonl; found if left out"
        ),
    ] = None,
    lang: Annotated[str, typer.Option("--lang", "-l", help="The language of the tokenizer")] = "en",
    text_column: Annotated[str, typer.Option(help="The text's column in CSV and TSV")] = "text",
    label_column: Annotated[str, typer.Option(help="The label's column in CSV and TSV")] = "label",
) -> None:
    """Convert CoNLL, CSV, TSV, JSONL or `label text` files to .spacy."""
    from .convert import convert

    try:
        report = convert(
            source,
            output,
            format=format,
            lang=lang,
            text_column=text_column,
            label_column=label_column,
        )
    except (ValueError, OSError) as error:
        fail(error)
    typer.echo(f"{output}: {report.kept:,} of {report.read:,} records ({report.format})")
    if report.labels:
        counts = ", ".join(f"{label} {count:,}" for label, count in report.labels.most_common())
        typer.echo(f"Labels: {counts}")
    if report.refused:
        typer.secho(f"Refused: {report.refused:,}", fg="yellow")
        for reason, count in report.reasons.most_common():
            typer.echo(f"  {count:>6,}  {reason}")
        for sample in report.samples:
            typer.echo(f"  {sample}")


@bert_app.command("init-config")
def init_config_command(
    output: Annotated[Path, typer.Argument(help="The config file; - prints it", allow_dash=True)],
    heads: Annotated[
        str, typer.Option(help="ner, tagger, textcat, textcat_multilabel; several with commas")
    ] = "ner",
    name: Annotated[
        str, typer.Option("--name", "-n", help="The checkpoint: a hub name or a folder")
    ] = "bert-base-uncased",
    lang: Annotated[str, typer.Option("--lang", "-l", help="The language of the tokenizer")] = "en",
    gpu: Annotated[bool, typer.Option("--gpu", help="For training on a GPU")] = False,
    train: Annotated[
        Path | None, typer.Option(help="Training data: the steps are fitted to its size")
    ] = None,
    dev: Annotated[Path | None, typer.Option(help="Data to evaluate on while training")] = None,
) -> None:
    """Make a complete config for `spacy train`: one encoder, the heads you name."""
    from .init_config import init_config

    try:
        config = init_config(
            [head.strip() for head in heads.split(",") if head.strip()],
            name=name,
            lang=lang,
            gpu=gpu,
            train=train,
            dev=dev,
        )
    except (ValueError, OSError) as error:
        fail(error)
    if str(output) == "-":
        typer.echo(config.to_str())
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    config.to_disk(output)
    data = "" if train and dev else " --paths.train TRAIN.spacy --paths.dev DEV.spacy"
    typer.echo(f"{output}: now type\npython -m spacy train {output} --output training{data}")


def fail(error: Exception) -> NoReturn:
    """Say what is wrong, without a traceback, and leave.

    error (Exception): What was raised.
    """
    typer.secho(f"Error: {error}", fg="red", err=True)
    raise typer.Exit(1) from error
