"""`python -m spacy bert …`: thin commands over plain functions.

spaCy imports this module before each of its own commands, so everything else waits for a
command of ours.
"""

import io
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from spacy.cli._util import app, import_code

FORCE = typer.Option("--force", "-F", help="Take any folder, and replace what is written there")

bert_app = typer.Typer(name="bert", help="Data, configs and scores for BERT pipelines.")
inspect_app = typer.Typer(name="inspect", help="Look inside an encoder: PNG and HTML.")
bert_app.add_typer(inspect_app)
app.add_typer(bert_app)


@bert_app.callback()
def main() -> None:
    """Convert data, make configs and score BERT pipelines (spacy_bert_heads)."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a Windows code page lacks "│", among others
        sys.stdout.reconfigure(errors="replace")


@bert_app.command("convert")
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
    from .convert import convert
    from .readers import list_reasons

    try:
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
    except (ValueError, OSError) as error:
        fail(error)
    typer.echo(f"{output}: {report.kept:,} of {report.read:,} records ({report.format})")
    if report.labels:
        counts = ", ".join(f"{label} {count:,}" for label, count in report.labels.most_common())
        typer.echo(f"Labels: {counts}")
    pairs = {"hypotheses": report.hypotheses, "questions": report.questions}
    if any(pairs.values()):
        counts = ", ".join(f"{count:,} {name}" for name, count in pairs.items() if count)
        typer.echo(f"Pairs: {counts}")
    if report.mended:
        typer.echo(f"Offsets mended: {report.mended:,}")
    for line in list_reasons("Refused", report.reasons, report.samples):
        typer.echo(line)


@bert_app.command("prepare")
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

    from .encoder.loading import load_wordpieces
    from .pretraining.prepare import prepare

    try:
        report = prepare(
            sources,
            cache,
            wordpieces=load_wordpieces(encoder),
            lang=lang,
            sentences=None if sentences is None else spacy.load(sentences),
            workers=workers,
            progress=True,
        ).report
    except (ValueError, OSError, ImportError) as error:
        fail(error)
    typer.echo(f"{cache}: " + "\n".join(report.lines()))


@bert_app.command("init-config")
def init_config_command(
    output: Annotated[Path, typer.Argument(help="The config file; - prints it", allow_dash=True)],
    heads: Annotated[
        str | None,
        typer.Option(
            help="ner, tagger, textcat, textcat_multilabel, nli, qa; several with commas; "
            "ner if left out"
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
    lang: Annotated[
        str | None, typer.Option("--lang", "-l", help="The language of the tokenizer; else en")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="For training on a GPU")] = False,
    adapter: Annotated[
        str | None,
        typer.Option(help="pfeiffer, houlsby or lora: train small modules, not the encoder"),
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Training data: the steps are fitted to its size")
    ] = None,
    dev: Annotated[Path | None, typer.Option(help="Data to evaluate on while training")] = None,
    force: Annotated[
        bool, typer.Option("--force", "-F", help="Replace a config that is there already")
    ] = False,
) -> None:
    """Make a complete config for `spacy train`: one encoder and the heads you name, or the
    components of a trained pipeline."""
    from .init_config import init_config

    try:
        if heads is None and source is None:
            heads = "ner"
        if output.exists() and str(output) != "-" and not force:
            raise ValueError(f"{output} exists. Name another file, or give --force to replace it.")
        config = init_config(
            [head.strip() for head in (heads or "").split(",") if head.strip()],
            name=name,
            source=source,
            lang=lang,
            gpu=gpu,
            adapter=adapter,
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


@bert_app.command("evaluate")
def evaluate_command(
    model: Annotated[str, typer.Argument(help="A pipeline: its folder or its package's name")],
    data: Annotated[Path, typer.Argument(help="A .spacy file, or a folder of files")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A JSON file for all scores")
    ] = None,
    per_type: Annotated[
        bool, typer.Option("--per-type", help="Show the scores of each label too")
    ] = False,
    lang: Annotated[
        str | None,
        typer.Option("--lang", "-l", help="The language of the data; else the pipeline's"),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16, int8 or auto; else the pipeline's")
    ] = None,
    gpu_id: Annotated[int, typer.Option("--gpu-id", "-g", help="The GPU, -1 for the CPU")] = -1,
    code: Annotated[
        Path | None, typer.Option("--code", "-c", help="A Python file to import first")
    ] = None,
) -> None:
    """Score a pipeline as `spacy evaluate` does, with hypotheses and questions."""
    import srsly

    from .evaluate import evaluate, format_report

    import_code(code)
    try:
        report = evaluate(model, data, gpu_id=gpu_id, lang=lang, precision=precision)
        typer.echo(format_report(report, per_type=per_type))
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            srsly.write_json(output, report)
    except (ValueError, OSError) as error:
        fail(error)


@bert_app.command(
    "pretrain", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def pretrain_command(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(help="The config, as configs/pretrain.cfg")],
    output: Annotated[Path, typer.Argument(help="A folder for checkpoints, log and states")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest state in the output")
    ] = False,
    force: Annotated[bool, FORCE] = False,
    gpu_id: Annotated[int, typer.Option("--gpu-id", "-g", help="The GPU, -1 for the CPU")] = -1,
) -> None:
    """Adapt an encoder to raw text. Settings are overridden by --section.key value."""
    from spacy.cli._util import parse_config_overrides
    from tqdm import tqdm

    from .pretraining.loop import pretrain
    from .pretraining.reports import COLUMNS, format_row
    from .pretraining.settings import read_settings

    try:
        settings = read_settings(config, parse_config_overrides(ctx.args))
        # Of several processes that torchrun started, the first one speaks.
        first = os.environ.get("RANK", "0") == "0"
        if first:
            typer.echo(COLUMNS)
        total = settings.training.max_steps
        with tqdm(total=total, unit="step", disable=None if first else True) as bar:

            def move(step: int) -> None:
                bar.update(step - bar.n)

            pretrain(
                settings,
                output,
                resume=resume,
                force=force,
                gpu_id=gpu_id,
                say=bar.write,
                on_report=lambda report: bar.write(format_row(report)),
                on_step=move,
            )
    except (ValueError, OSError, ImportError) as error:
        fail(error)
    if first:
        typer.echo(f"{output / 'model-best'}: use it as `name` of bert_encoder")


@bert_app.command("fill-mask")
def fill_mask_command(
    model: Annotated[str, typer.Argument(help="A checkpoint: a hub name or a folder")],
    text: Annotated[str, typer.Argument(help="A text with [MASK] in it")],
    top: Annotated[int, typer.Option(min=1, help="How many guesses")] = 5,
) -> None:
    """Guess what stands behind the mask tokens of a text."""
    from .pretraining.objectives import fill_mask, load_pretrainer

    try:
        pretrainer = load_pretrainer(model, sentence_objective=None)
        if "masked-piece head" in pretrainer.new_heads:
            raise ValueError(f"'{model}' has no head for masked pieces. Pretrain it first.")
        rows = fill_mask(pretrainer, text, top=top)
    except (ValueError, OSError) as error:
        fail(error)
    for row in rows:
        typer.echo("  ".join(f"{guess.text} {guess.score:.3f}" for guess in row))


@bert_app.command("from-hf")
def from_hf_command(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Fine-tuned checkpoints: hub names or folders"),
    ],
    output: Annotated[Path, typer.Argument(help="A folder for the pipeline")],
    task: Annotated[
        str | None,
        typer.Option(help="ner, tagger, textcat, textcat_multilabel, nli or qa; else found"),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Its classes in order, with commas; else its own names"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit on the hub; else the newest")
    ] = None,
    lang: Annotated[str, typer.Option("--lang", "-l", help="The language of the tokenizer")] = "en",
    force: Annotated[bool, FORCE] = False,
) -> None:
    """Make a pipeline of fine-tuned Hugging Face checkpoints, a head of each."""
    from .files import check_folder, mark_folder
    from .hf import from_hf

    try:
        given = [label.strip() for label in labels.split(",")] if labels else None
        check_folder(output, "from-hf", force=force)
        nlp = from_hf(*names, task=task, labels=given, revision=revision, lang=lang)
        nlp.to_disk(output)
        mark_folder(output, "from-hf")
    except (ValueError, OSError) as error:
        fail(error)
    typer.echo(f"{output}: {', '.join(nlp.pipe_names)}")
    for name in nlp.pipe_names:
        labels_of = getattr(nlp.get_pipe(name), "labels", ())
        if labels_of:
            typer.echo(f"{name}: {', '.join(labels_of)}")


@bert_app.command("to-hf")
def to_hf_command(
    model: Annotated[str, typer.Argument(help="A pipeline: its folder or its package's name")],
    component: Annotated[str, typer.Argument(help="A head, or the encoder")],
    output: Annotated[Path, typer.Argument(help="A folder for the checkpoint")],
    precision: Annotated[str, typer.Option(help="Of the weights: fp32, bf16 or fp16")] = "fp32",
    force: Annotated[bool, FORCE] = False,
) -> None:
    """Save a head with its encoder as a Hugging Face checkpoint."""
    import spacy

    from .hf import to_hf

    try:
        to_hf(spacy.load(model), component, output, precision=precision, force=force)
    except (ValueError, OSError) as error:
        fail(error)
    typer.echo(f"{output}: load it with transformers.pipeline(model={str(output)!r})")


# What all views take.
ENCODER = typer.Option("--encoder", "-e", help="Which encoder of a pipeline that has several")
VIEW = typer.Option("--output", "-o", help="Name of a .png and an .html file")


@inspect_app.command("word")
def inspect_word_command(
    model: Annotated[str, typer.Argument(help="A pipeline, or a checkpoint's folder or hub name")],
    word: Annotated[str, typer.Argument(help="A word that all texts have")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts, each in quotes")
    ] = None,
    output: Annotated[Path, VIEW] = Path("word"),
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A file with more texts, one a line")
    ] = None,
    encoder: Annotated[str | None, ENCODER] = None,
    lang: Annotated[
        str, typer.Option("--lang", "-l", help="The language of a checkpoint's tokenizer")
    ] = "en",
) -> None:
    """Compare a word's states in several texts, layer by layer."""
    from .inspect_encoder import compare_word, open_source
    from .pictures import save_word

    try:
        lines = [] if file is None else file.read_text(encoding="utf-8-sig").splitlines()
        given = [*(texts or ()), *(line for line in lines if line.strip())]
        view = compare_word(open_source(model, encoder=encoder, lang=lang), word, given)
        files = save_word(view, output)
    except (ValueError, OSError, ImportError) as error:
        fail(error)
    means = " ".join(f"{mean:.2f}" for mean in view.self_similarity)
    typer.echo(f"Mean similarity, embeddings to last layer: {means}")
    typer.echo("\n".join(map(str, files)))


@inspect_app.command("weights")
def inspect_weights_command(
    model: Annotated[str, typer.Argument(help="A pipeline: its folder or its package's name")],
    output: Annotated[Path, VIEW] = Path("weights"),
) -> None:
    """Show how much of each layer the heads with learned layer weights take."""
    from .inspect_encoder import read_weights
    from .pictures import save_weights

    try:
        views = read_weights(model)
        files = save_weights(model, views, output)
    except (ValueError, OSError, ImportError) as error:
        fail(error)
    for view in views:
        typer.echo(f"{view.head}: mean layer {view.centre:.2f}, scale {view.scale:.3f}")
    typer.echo("\n".join(map(str, files)))


@inspect_app.command("map")
def inspect_map_command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [MODEL] DATA",
            help="One or two pipelines or checkpoints, as before and after fine-tuning; a .spacy "
            "file of documents with categories",
        ),
    ],
    output: Annotated[Path, VIEW] = Path("map"),
    by: Annotated[
        str | None, typer.Option(help="Show where this label holds; else the one that holds")
    ] = None,
    layer: Annotated[
        int, typer.Option(help="Whose states: 0 for the embeddings, -1 for the last layer")
    ] = -1,
    method: Annotated[str, typer.Option("--method", "-m", help="pca or tsne")] = "pca",
    limit: Annotated[
        int, typer.Option(min=0, help="The most documents, chosen at random; 0 for all")
    ] = 1000,
    encoder: Annotated[str | None, ENCODER] = None,
) -> None:
    """Draw documents as points, coloured by category, as one or two encoders see them."""
    from .evaluate import is_pipeline
    from .inspect_encoder import map_documents, open_source, read_labelled
    from .pictures import save_map

    *models, data = names
    try:
        if not 1 <= len(models) <= 2:
            raise ValueError("Name one or two models, then the data: MODEL [MODEL] DATA.spacy")
        labelled = read_labelled(Path(data), by=by, limit=limit)
        views = []
        for model in models:
            # Of a checkpoint and a pipeline made of it, the pipeline has names.
            source = open_source(model, encoder=encoder if is_pipeline(model) else None)
            views.append(map_documents(source, labelled, layer=layer, method=method))
        files = save_map(views, labelled, output)
    except (ValueError, OSError, ImportError) as error:
        fail(error)
    if labelled.left_out:
        typer.echo(f"Left out, without a category: {labelled.left_out:,}")
    for view in views:
        typer.echo(
            f"{view.source}: nearest neighbour right {view.accuracy:.1%} (chance {view.chance:.1%})"
        )
    typer.echo("\n".join(map(str, files)))


def fail(error: Exception) -> NoReturn:
    """Say what is wrong, without a traceback, and leave.

    error (Exception): What was raised.
    """
    typer.secho(f"Error: {error}", fg="red", err=True)
    raise typer.Exit(1) from error
