"""The commands that make data and configs: `convert`, `prepare`, `init-config`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import FORCE, check_file, exits_on_error


@exits_on_error
def convert_command(
    source: Annotated[Path, typer.Argument(help="A data file, or a folder of files")],
    output: Annotated[Path, typer.Argument(help="A .spacy file, or a folder for several")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            help="conll, labelled, csv, tsv, jsonl, nli-jsonl, nli-tsv, nli-csv or squad; "
            "found if left out",
        ),
    ] = None,
    lang: Annotated[str, typer.Option("--lang", "-l", help="The language of the tokenizer")] = "en",
    text_column: Annotated[
        str, typer.Option(help="The text's column or key in CSV, TSV, JSONL")
    ] = "text",
    label_column: Annotated[str, typer.Option(help="The label's column or key there")] = "label",
    premise_column: Annotated[
        str, typer.Option(help="The column of the first text in nli-… formats")
    ] = "premise",
    hypothesis_column: Annotated[
        str, typer.Option(help="The column of the second text in nli-… formats")
    ] = "hypothesis",
    force: Annotated[bool, FORCE] = False,
) -> None:
    """Convert CoNLL, CSV, TSV, JSONL, `label text`, SNLI, GLUE or SQuAD files to .spacy."""
    from ..data.convert import convert
    from ..data.records import list_reasons

    report = convert(
        source,
        output,
        format=format,
        lang=lang,
        text_column=text_column,
        label_column=label_column,
        premise_column=premise_column,
        hypothesis_column=hypothesis_column,
        force=force,
    )
    typer.echo(f"{output}: {report.kept:,} of {report.read:,} records ({report.format})")
    if report.labels:
        counts = ", ".join(f"{label} {count:,}" for label, count in report.labels.most_common())
        typer.echo(f"Labels: {counts}")
    if report.pairs.total():
        counts = ", ".join(f"{count:,} {name}" for name, count in report.pairs.items() if count)
        typer.echo(f"Pairs: {counts}")
    if report.mended:
        typer.echo(f"Offsets mended: {report.mended:,}")
    for line in list_reasons("Refused", report.reasons, report.samples):
        typer.echo(line)


@exits_on_error
def prepare_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Raw text: .jsonl, .txt or .spacy files, also .gz or .zst; folders of them, "
            "patterns in quotes; - for standard input",
        ),
    ],
    encoder: Annotated[
        str, typer.Option("--encoder", "-e", help="Whose tokenizer: a hub name or a folder")
    ],
    cache: Annotated[
        Path, typer.Option("--cache", "-c", help="The folder for all that is prepared")
    ],
    lang: Annotated[str, typer.Option("--lang", "-l", help="The language of the text")] = "en",
    sentences: Annotated[
        str | None, typer.Option(help="A pipeline that finds sentences, not full stops alone")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=0, help="Processes; 0 for one on each core")
    ] = 0,
) -> None:
    """Tokenize raw text for pretraining. What is prepared already is not made again."""
    import spacy

    from ..encoder.loading import load_wordpiece_tokenizer
    from ..pretraining.prepare import prepare

    report = prepare(
        sources,
        cache,
        wordpieces=load_wordpiece_tokenizer(encoder),
        lang=lang,
        sentences=None if sentences is None else spacy.load(sentences),
        workers=workers,
        progress=True,
    ).report
    typer.echo(f"{cache}: " + "\n".join(report.lines()))


@exits_on_error
def init_config_command(
    output: Annotated[Path, typer.Argument(help="The config file; - prints it", allow_dash=True)],
    heads: Annotated[
        str | None,
        typer.Option(
            help="Heads with commas, such as ner,textcat, or with names: ner=diseases,ner=drugs; "
            "ner if left out. An unknown head lists all"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", "-n", help="The checkpoint: a hub name or a folder; else bert-base-uncased"
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="A trained pipeline to train further, in place of new heads: its folder or its "
            "package's name"
        ),
    ] = None,
    adapt: Annotated[
        Path | None,
        typer.Option(help="A config of spaCy or spacy-transformers, to put the encoder into"),
    ] = None,
    lang: Annotated[
        str | None, typer.Option("--lang", "-l", help="The language of the tokenizer; else en")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="For training on a GPU")] = False,
    adapter: Annotated[
        str | None,
        typer.Option(help="pfeiffer, houlsby or lora: train small modules, not the encoder"),
    ] = None,
    attr: Annotated[
        str | None, typer.Option(help="What the tagger learns: tag or pos; else tag")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Training data: the steps are fitted to its size")
    ] = None,
    dev: Annotated[Path | None, typer.Option(help="Data to evaluate on while training")] = None,
    force: Annotated[
        bool, typer.Option("--force", "-F", help="Replace a config that is there already")
    ] = False,
) -> None:
    """Make a complete config for `spacy train`: one encoder and the heads you name, the components
    of a trained pipeline, or those of another config."""
    from ..files import replace_file
    from ..init_config import init_config

    check_file(output)
    if output.exists() and str(output) != "-" and not force:
        raise ValueError(f"{output} exists. Name another file, or give --force to replace it.")
    if adapt is not None:
        from ..adapt_config import adapt_config

        if heads or source or lang or gpu or adapter or attr or train or dev:
            raise ValueError(
                "--adapt keeps the components, the language and the data of the config. Beside it "
                "go --name and --force alone."
            )
        config = adapt_config(adapt, name=name)
    else:
        if heads is None and source is None:
            heads = "ner"
        config = init_config(
            [head.strip() for head in (heads or "").split(",") if head.strip()],
            name=name,
            source=source,
            lang=lang,
            gpu=gpu,
            adapter=adapter,
            attr=attr,
            train=train,
            dev=dev,
        )
    if str(output) == "-":
        typer.echo(config.to_str())
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, config.to_str().encode())
    data = "" if train and dev else " --paths.train TRAIN.spacy --paths.dev DEV.spacy"
    typer.echo(f"{output}: now type\npython -m spacy train {output} --output training{data}")
