"""Define the commands `inspect word`, `weights`, `map` and `explain`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import check_file, exits_on_error

# Options of several commands.
ENCODER = typer.Option("--encoder", "-e", help="The encoder, if the pipeline has several")
VIEW = typer.Option("--output", "-o", help="The base name of the .png and .html files")


@exits_on_error
def inspect_word_command(
    model: Annotated[str, typer.Argument(help="A pipeline, or a checkpoint's folder or hub name")],
    word: Annotated[str, typer.Argument(help="A word that occurs in all texts")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts, each in quotes")
    ] = None,
    output: Annotated[Path, VIEW] = Path("word"),
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A file with more texts, one per line")
    ] = None,
    encoder: Annotated[str | None, ENCODER] = None,
    lang: Annotated[
        str, typer.Option("--lang", "-l", help="The language of a checkpoint's tokenizer")
    ] = "en",
) -> None:
    """Compare the hidden states of a word in several texts, layer by layer."""
    from ..inspection.html import save_word
    from ..inspection.source import open_source
    from ..inspection.word import compare_word

    check_file(output.with_suffix(".png"))
    lines = [] if file is None else file.read_text(encoding="utf-8-sig").splitlines()
    given = [*(texts or ()), *(line for line in lines if line.strip())]
    view = compare_word(open_source(model, encoder=encoder, lang=lang), word, given)
    files = save_word(view, output)
    means = " ".join(f"{mean:.2f}" for mean in view.self_similarity)
    typer.echo(f"Mean similarity, embeddings to last layer: {means}")
    typer.echo("\n".join(map(str, files)))


@exits_on_error
def inspect_weights_command(
    model: Annotated[str, typer.Argument(help="The pipeline: a folder or a package name")],
    output: Annotated[Path, VIEW] = Path("weights"),
) -> None:
    """Show the layer weights of heads with `combine = "weighted"`."""
    from ..inspection.html import save_weights
    from ..inspection.weights import read_weights

    check_file(output.with_suffix(".png"))
    views = read_weights(model)
    files = save_weights(model, views, output)
    for view in views:
        typer.echo(f"{view.head}: mean layer {view.centre:.2f}, scale {view.scale:.3f}")
    typer.echo("\n".join(map(str, files)))


@exits_on_error
def inspect_map_command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [MODEL] DATA",
            help="One or two pipelines or checkpoints, for example before and after fine-tuning; a "
            ".spacy file of documents with categories",
        ),
    ],
    output: Annotated[Path, VIEW] = Path("map"),
    by: Annotated[
        str | None,
        typer.Option(help="Colour by this category alone; default: by each Doc's category"),
    ] = None,
    layer: Annotated[
        int, typer.Option(help="The layer: 0 for the embeddings, -1 for the last layer")
    ] = -1,
    method: Annotated[str, typer.Option("--method", "-m", help="pca or tsne")] = "pca",
    limit: Annotated[
        int, typer.Option(min=0, help="The most documents, chosen at random; 0 for all")
    ] = 1000,
    encoder: Annotated[str | None, ENCODER] = None,
) -> None:
    """Plot documents, coloured by category, by the hidden states of one or two encoders."""
    from ..evaluate import is_pipeline
    from ..inspection.html import save_map
    from ..inspection.map import map_documents, read_labelled
    from ..inspection.source import open_source

    check_file(output.with_suffix(".png"))
    *models, data = names
    if not 1 <= len(models) <= 2:
        raise ValueError(f"{len(models)} models are given. Pass one or two, then the data.")
    labelled = read_labelled(Path(data), by=by, limit=limit)
    views = []
    for model in models:
        # Only a pipeline has named encoders; a checkpoint is one encoder.
        source = open_source(model, encoder=encoder if is_pipeline(model) else None)
        views.append(map_documents(source, labelled, layer=layer, method=method))
    files = save_map(views, labelled, output)
    if labelled.left_out:
        typer.echo(f"Skipped, without a category: {labelled.left_out:,}")
    for view in views:
        typer.echo(
            f"{view.source}: nearest neighbour correct {view.accuracy:.1%} "
            f"(chance {view.chance:.1%})"
        )
    typer.echo("\n".join(map(str, files)))


@exits_on_error
def inspect_explain_command(
    model: Annotated[str, typer.Argument(help="The pipeline: a folder or a package name")],
    text: Annotated[str, typer.Argument(help="A text, in quotes")],
    output: Annotated[Path, VIEW] = Path("explain"),
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="A question; may be repeated")
    ] = None,
    hypothesis: Annotated[
        list[str] | None, typer.Option("--hypothesis", "-y", help="A hypothesis; may be repeated")
    ] = None,
    heads: Annotated[
        str, typer.Option(help="Components, separated by commas; default: all supported ones")
    ] = "",
) -> None:
    """Show how much each word contributes to an entity, category, verdict or answer."""
    from ..evaluate import load_pipeline
    from ..inspection.explain import explain
    from ..inspection.explain_view import save_explanations
    from ..text.user_data import set_value

    check_file(output.with_suffix(".png"))
    nlp = load_pipeline(model)
    doc = nlp.make_doc(text)
    for name, asked in (("questions", question), ("hypotheses", hypothesis)):
        if asked:
            set_value(name, doc, list(asked))
    names = [name.strip() for name in heads.split(",") if name.strip()]
    found = explain(nlp, nlp(doc), names=names)
    files = save_explanations(model, found, output)
    for one in found:
        typer.echo(f"{one.component}: {one.title}; integration error {abs(one.error):.3f} nats")
    typer.echo("\n".join(map(str, files)))
