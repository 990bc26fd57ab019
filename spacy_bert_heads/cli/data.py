"""Define the commands for data and configs: `convert` and `init-config`."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from .common import FORCE, check_file, exits_on_error


@exits_on_error
def convert_command(
    source: Annotated[Path, typer.Argument(help="A data file, or a folder of files")],
    output: Annotated[Path, typer.Argument(help="A .spacy file, or a folder with --split")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            help="conll, conllu, labelled, csv, tsv, jsonl, json, parquet, squad, brat, nli-jsonl, "
            "nli-tsv or nli-csv; default: detected",
        ),
    ] = None,
    lang: Annotated[str, typer.Option("--lang", "-l", help="The language of the tokenizer")] = "en",
    text_column: Annotated[
        str,
        typer.Option(help="The column or key of the text; without a header, its number from 1"),
    ] = "text",
    label_column: Annotated[str, typer.Option(help="The column or key of the label")] = "label",
    score_column: Annotated[
        str, typer.Option(help="The column of the score of a pair, such as a similarity")
    ] = "score",
    target_column: Annotated[
        str, typer.Option(help="The column of the text that is to be written, or of several")
    ] = "target",
    premise_column: Annotated[
        str, typer.Option(help="The column of the first text of a pair")
    ] = "premise",
    hypothesis_column: Annotated[
        str, typer.Option(help="The column of the second text of a pair")
    ] = "hypothesis",
    token_column: Annotated[
        str, typer.Option(help="The column of the tokens; in CoNLL, its number from 1")
    ] = "",
    tag_column: Annotated[
        str, typer.Option(help="The column of the tags; in CoNLL, its number, or -1 for the last")
    ] = "",
    labels: Annotated[
        str, typer.Option(help="Names for numeric labels, in order from 0, separated by commas")
    ] = "",
    label_columns: Annotated[
        str, typer.Option(help="Columns with 0 or 1 for one category each, separated by commas")
    ] = "",
    option_columns: Annotated[
        str, typer.Option(help="Columns with the options of a multiple choice, separated by commas")
    ] = "",
    label_separator: Annotated[
        str | None, typer.Option(help="The separator between several categories in one cell")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="0.8,0.1,0.1 writes train.spacy, dev.spacy and test.spacy to the folder"),
    ] = None,
    seed: Annotated[int, typer.Option(help="The random seed of --split")] = 0,
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
    """Split names at commas; blank ones are dropped."""
    return tuple(name.strip() for name in names.split(",") if name.strip())


@exits_on_error
def init_config_command(
    output: Annotated[
        Path, typer.Argument(help="The config file; - prints the config", allow_dash=True)
    ],
    heads: Annotated[
        str | None,
        typer.Option(
            help="Heads, separated by commas: ner,textcat, or with names: ner=diseases,ner=drugs; "
            "default: ner. An unknown head prints all heads"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", "-n", help="A checkpoint: a hub name or a folder; default: bert-base-uncased"
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="A trained pipeline to train further, instead of new heads: a folder or a package "
            "name"
        ),
    ] = None,
    adapt: Annotated[
        Path | None,
        typer.Option(help="A config of spaCy or spacy-transformers to convert to this encoder"),
    ] = None,
    lang: Annotated[
        str | None, typer.Option("--lang", "-l", help="The language of the tokenizer; default: en")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Use settings for training on a GPU")] = False,
    adapter: Annotated[
        str | None,
        typer.Option(help="pfeiffer, houlsby or lora: train an adapter instead of the encoder"),
    ] = None,
    attr: Annotated[
        str | None, typer.Option(help="The attribute for the tagger: tag or pos; default: tag")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Training data; its size determines the number of steps")
    ] = None,
    dev: Annotated[Path | None, typer.Option(help="Data for evaluation during training")] = None,
    pretrain: Annotated[
        bool, typer.Option("--pretrain", help="Create a config for `bert pretrain`")
    ] = False,
    raw: Annotated[
        str | None, typer.Option(help="With --pretrain: raw text (a file, folder or pattern)")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-F", help="Overwrite an existing config")
    ] = False,
) -> None:
    """Create a complete config for `spacy train`, with one encoder and the given heads, with the
    components of a trained pipeline, or from another config; or a config for `bert pretrain`."""
    from ..files import replace_file
    from ..init_config import check_storable, init_config
    from ..pretraining.recipe import make_recipe

    check_file(output)
    if output.exists() and str(output) != "-" and not force:
        raise ValueError(f"{output} exists. Choose another file, or add --force to overwrite it.")
    data = "" if train and dev else " --paths.train TRAIN.spacy --paths.dev DEV.spacy"
    command = f"train {quote(str(output))} --output training{data}"
    if raw and not pretrain:
        raise ValueError("--raw needs --pretrain. Add --pretrain, or leave --raw out.")
    if pretrain:
        if heads or source or adapt or gpu or adapter or attr or train or dev:
            raise ValueError(
                "--pretrain can only be combined with --raw, --name, --lang and --force."
            )
        check_storable(raw, name)
        config = make_recipe(raw=raw, encoder=name, lang=lang or "en")
        missing = "" if raw else " --paths.raw TEXTS"
        command = f"bert pretrain {quote(str(output))} training/pretrained{missing}"
    elif adapt is not None:
        from ..adapt_config import adapt_config

        if heads or source or lang or gpu or adapter or attr or train or dev:
            raise ValueError(
                "--adapt keeps the components, the language and the data of the config. It can "
                "only be combined with --name and --force."
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
    typer.echo(f"{output}: now run\npython -m spacy {command}")
