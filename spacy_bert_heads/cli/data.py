"""The commands that make data and configs: `convert`, `init-config`."""

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
            help="conll, conllu, labelled, csv, tsv, jsonl, json, parquet, squad, brat, nli-jsonl, "
            "nli-tsv or nli-csv; found if left out",
        ),
    ] = None,
    lang: Annotated[str, typer.Option("--lang", "-l", help="The language of the tokenizer")] = "en",
    text_column: Annotated[
        str,
        typer.Option(help="The text's column or key; without a header, its number from 1"),
    ] = "text",
    label_column: Annotated[str, typer.Option(help="The label's column or key")] = "label",
    score_column: Annotated[
        str, typer.Option(help="The column of a number for two texts, as how similar they are")
    ] = "score",
    target_column: Annotated[
        str, typer.Option(help="The column of the text that is to be written, or of several")
    ] = "target",
    premise_column: Annotated[
        str, typer.Option(help="The column of the first text of pairs")
    ] = "premise",
    hypothesis_column: Annotated[
        str, typer.Option(help="The column of the second text of pairs")
    ] = "hypothesis",
    token_column: Annotated[
        str, typer.Option(help="The column of the tokens; in CoNLL its number from 1")
    ] = "",
    tag_column: Annotated[
        str, typer.Option(help="The column of their tags; in CoNLL its number, or -1 for the last")
    ] = "",
    labels: Annotated[
        str, typer.Option(help="Names of labels that are numbers from 0, in order, with commas")
    ] = "",
    label_columns: Annotated[
        str, typer.Option(help="Columns of a category each, with 0 and 1, with commas")
    ] = "",
    option_columns: Annotated[
        str, typer.Option(help="Columns of the options of a multiple choice, with commas")
    ] = "",
    label_separator: Annotated[
        str | None, typer.Option(help="What separates the categories of a text")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="0.8,0.1,0.1 writes train.spacy, dev.spacy and test.spacy to a folder"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another one splits otherwise")] = 0,
    force: Annotated[bool, FORCE] = False,
) -> None:
    """Convert annotated data to .spacy: tables, JSON, CoNLL, SQuAD, exports of annotation tools."""
    from ..data.convert import convert

    report = convert(
        source,
        output,
        format=format,
        lang=lang,
        split=split,
        seed=seed,
        force=force,
        text_column=text_column,
        label_column=label_column,
        score_column=score_column,
        target_column=target_column,
        premise_column=premise_column,
        hypothesis_column=hypothesis_column,
        token_column=token_column,
        tag_column=tag_column,
        labels=split_names(labels),
        label_columns=split_names(label_columns),
        option_columns=split_names(option_columns),
        label_separator=label_separator,
    )
    first, *lines = report.lines()
    typer.echo("\n".join([f"{output}: {first}", *lines]))


def split_names(names: str) -> tuple[str, ...]:
    """Split names with commas."""
    return tuple(name.strip() for name in names.split(",") if name.strip())


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
    pretrain: Annotated[
        bool, typer.Option("--pretrain", help="A config for `bert pretrain` instead")
    ] = False,
    raw: Annotated[
        str | None, typer.Option(help="With --pretrain: raw text, a file, folder or pattern")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-F", help="Replace a config that is there already")
    ] = False,
) -> None:
    """Make a complete config for `spacy train`: one encoder and the heads you name, the components
    of a trained pipeline, or those of another config; or one for `bert pretrain`."""
    from ..files import replace_file
    from ..init_config import init_config
    from ..pretraining.settings import make_config

    check_file(output)
    if output.exists() and str(output) != "-" and not force:
        raise ValueError(f"{output} exists. Name another file, or give --force to replace it.")
    data = "" if train and dev else " --paths.train TRAIN.spacy --paths.dev DEV.spacy"
    command = f"train {output} --output training{data}"
    if raw and not pretrain:
        raise ValueError("--raw goes with --pretrain.")
    if pretrain:
        if heads or source or adapt or gpu or adapter or attr or train or dev:
            raise ValueError("--pretrain goes with --raw, --name, --lang and --force alone.")
        config = make_config(raw=raw, encoder=name, lang=lang or "en")
        missing = "" if raw else " --paths.raw TEXTS"
        command = f"bert pretrain {output} training/pretrained{missing}"
    elif adapt is not None:
        from ..adapt_config import adapt_config

        if heads or source or lang or gpu or adapter or attr or train or dev:
            raise ValueError(
                "--adapt keeps the components, the language and the data of the config. Beside it "
                "go --name and --force alone."
            )
        config = adapt_config(adapt, name=name)
    else:
        heads = "ner" if heads is None and source is None else heads
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
    replace_file(output, config.to_str().encode())
    typer.echo(f"{output}: now type\npython -m spacy {command}")
