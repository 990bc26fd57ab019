"""Pictures of what `inspect_encoder.py` finds, and pages that hold them and the figures.

Colours are apart for every kind of colour vision: one hue from light to dark for amounts, those of
Okabe & Ito (2008) for categories, and a shape for each besides."""

from __future__ import annotations

import io
import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from spacy.tokens import Span

from .inspect_encoder import Labelled, LayerWeights, MapView, WordView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120
FONTS = {"title": 13, "panel": 10.5, "text": 9, "cell": 8}
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#5b6570"
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
SHAPES = "o^sDvPX*"  # as many as are coprime to the colours: 56 categories look different
MAP = "Blues"
# Characters of a text on each side of its word, in a picture and on a page.
PICTURE_CONTEXT, PAGE_CONTEXT = 30, 150
MAX_ROW = 17.0  # inches that a row of panels takes at the most
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 92rem; padding: 0 1rem;
       color: #1d2733; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.05rem; margin: 2.5rem 0 .5rem; }
p { max-width: 50rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .2rem .6rem; text-align: right; font-variant-numeric: tabular-nums; }
th { font-weight: normal; } thead th { border-bottom: 1px solid #b8c2cc; }
th.text { text-align: left; min-width: 22rem; } mark { background: none; font-weight: bold;
       color: #b34700; }
.full { max-width: 100%; height: auto; }
"""


def write(output: Path, picture: bytes, title: str, body: str) -> list[Path]:
    """Write a picture, and a page that needs no other file.

    output (Path): The files' name, with or without a suffix.
    picture (bytes): The picture, a PNG.
    title (str): The page's title.
    body (str): HTML.
    RETURNS (List[Path]): The PNG and the HTML file.
    """
    name = output.with_suffix("") if output.suffix in (".png", ".html") else output
    files = [name.with_name(f"{name.name}.{kind}") for kind in ("png", "html")]
    name.parent.mkdir(parents=True, exist_ok=True)
    files[0].write_bytes(picture)
    files[1].write_text(
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>\n'
        f"<h1>{escape(title)}</h1>\n{body}\n</html>\n",
        encoding="utf8",
    )
    return files


def draw(figure: Figure) -> bytes:
    """RETURNS (bytes): A figure as a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def embed(picture: bytes, alt: str, settings: str = 'class="full"') -> str:
    """picture (bytes): A PNG.
    alt (str): What it shows, for those who don't see it.
    settings (str): Attributes of the image.
    RETURNS (str): HTML with the picture in it.
    """
    data = b64encode(picture).decode("ascii")
    alt = escape(alt, quote=True)
    return (
        f'<div class="scroll"><img {settings} src="data:image/png;base64,{data}" alt="{alt}"></div>'
    )


def new_figure(width: float, height: float) -> Figure:
    """width, height (float): In inches.
    RETURNS (Figure): An empty figure.
    RAISES (ImportError): If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no window, no global state
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def plain(text: str) -> str:
    """RETURNS (str): The text, for matplotlib to write as it is: dollars would begin formulas."""
    return text.replace("$", r"\$")


def short_name(name: str) -> str:
    """RETURNS (str): The end of a path that tells it from others."""
    return "/".join(Path(name).parts[-2:])


def layer_name(layer: int, depth: int) -> str:
    """RETURNS (str): What to call a layer."""
    if layer == 0:
        return "embeddings"
    return f"layer {layer} (last)" if layer == depth else f"layer {layer}"


# --- one word in many sentences


class Context(NamedTuple):
    """A word in its text, in one line."""

    before: str
    word: str
    after: str


def in_context(span: Span, *, limit: int) -> Context:
    """Cut a text around a word.

    span (Span): The word.
    limit (int): The most characters to keep on each side.
    RETURNS (Context): The word, and what stands around it.
    """
    text = span.doc.text
    parts = text[: span.start_char], span.text, text[span.end_char :]
    before, word, after = (re.sub(r"\s+", " ", part) for part in parts)
    # At a space, in languages that have any.
    if len(before) > limit:
        before = before[-limit:]
        before = "…" + (before.partition(" ")[2] or before)
    if len(after) > limit:
        after = after[:limit]
        after = (after.rpartition(" ")[0] or after) + "…"
    return Context(before.lstrip(), word, after.rstrip())


def save_word(view: WordView, output: Path) -> list[Path]:
    """Write a word's similarities: a heatmap for each layer on one scale, and tables.

    view (WordView): The similarities.
    output (Path): The files' name, with or without a suffix.
    RETURNS (List[Path]): The PNG and the HTML file.
    """
    n = len(view.occurrences)
    title = f"“{view.word}” in {n} places: cosine similarity by layer"
    lowest = min(float(np.floor(10 * view.cosines.min())) / 10, 0.9)  # where the scale begins
    picture = draw(draw_word(view, f"{title}\n{short_name(view.source)}", lowest))
    parts = [
        f"<p>How alike the states of the word are, of two places each, in {escape(view.source)}; "
        "1 is the same. The number beside a layer is the mean over all pairs.</p>",
        embed(picture, title),
    ]
    contexts = [in_context(span, limit=PAGE_CONTEXT) for span in view.occurrences]
    for layer, (cosines, mean) in enumerate(zip(view.cosines, view.self_similarity, strict=True)):
        name = layer_name(layer, len(view.cosines) - 1)
        head = "".join(f'<th scope="col">{i + 1}</th>' for i in range(n))
        rows = [
            f'<tr><th scope="row" class="text">{i + 1}&ensp;{escape(one.before)}'
            f"<mark>{escape(one.word)}</mark>{escape(one.after)}</th>{_cells(row, lowest)}</tr>"
            for i, (one, row) in enumerate(zip(contexts, cosines, strict=True))
        ]
        parts.append(
            f'<h2>{name} · mean {mean:.2f}</h2>\n<div class="scroll"><table><thead><tr><th></th>'
            f"{head}</tr></thead>\n" + "\n".join(rows) + "</table></div>"
        )
    return write(output, picture, title, "\n".join(parts))


def draw_word(view: WordView, title: str, lowest: float) -> Figure:
    """view (WordView): The similarities.
    title (str): The figure's title.
    lowest (float): Where the scale of colours begins; it ends at 1.
    RETURNS (Figure): The sentences with a heatmap for each layer, row under row where there are
        many.
    """
    contexts = [in_context(span, limit=PICTURE_CONTEXT) for span in view.occurrences]
    n, n_layers = len(contexts), len(view.cosines)
    cell = 0.4 if n <= 10 else 0.2
    side = max(n * cell, 1.8)
    # The words stand one below another; what is the widest on each side sets the room for all.
    left = 0.07 * max(len(one.before) for one in contexts) + 0.3
    right = 0.07 * max(len(one.word + one.after) for one in contexts) + 0.3
    n_columns = min(n_layers, max(1, int((MAX_ROW - left - right) / (side + 0.35))))
    n_rows = -(-n_layers // n_columns)
    n_columns = -(-n_layers // n_rows)  # rows as even as they can be
    widths = [left + right, *[side + 0.35] * n_columns]
    figure = new_figure(sum(widths) + 0.9, n_rows * (side + 0.6) + 0.5)
    figure.suptitle(plain(title), fontsize=FONTS["title"], x=0.01, ha="left")
    grid: Any = figure.subplots(n_rows, n_columns + 1, width_ratios=widths, squeeze=False)
    for axes in grid[:, 0]:
        _write_contexts(axes, contexts, left / (left + right))
    panels = grid[:, 1:].ravel().tolist()
    for axes in panels[n_layers:]:
        axes.set_axis_off()
    for layer, (cosines, mean) in enumerate(zip(view.cosines, view.self_similarity, strict=True)):
        axes = panels[layer]
        image = axes.imshow(cosines, cmap=MAP, vmin=lowest, vmax=1, aspect="auto")
        axes.set_title(f"{layer_name(layer, n_layers - 1)} · mean {mean:.2f}", size=FONTS["panel"])
        axes.set_xticks(range(n), range(1, n + 1), fontsize=FONTS["cell"])
        axes.set_yticks(range(n), range(1, n + 1), fontsize=FONTS["cell"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if n <= 10:
            for (i, j), value in np.ndenumerate(cosines):
                colour = "white" if _share(value, lowest) > 0.55 else "black"
                axes.text(
                    *(j, i, f"{value:.2f}"),
                    color=colour,
                    size=FONTS["cell"],
                    ha="center",
                    va="center",
                )
    bar = figure.colorbar(image, ax=panels, fraction=0.03, pad=0.02, aspect=30, shrink=0.8)
    bar.set_label("cosine similarity", size=FONTS["text"])
    bar.ax.tick_params(labelsize=FONTS["cell"])
    bar.outline.set_visible(False)
    return figure


def _write_contexts(axes: Any, contexts: Sequence[Context], at: float) -> None:
    """Write sentences one below another, their words in one column, beside a heatmap's rows."""
    axes.set(xlim=(0, 1), ylim=(len(contexts) - 0.5, -0.5))
    axes.set_axis_off()
    shared = {"va": "center", "fontsize": FONTS["text"], "parse_math": False}
    for i, one in enumerate(contexts):
        before, after = one.before.replace(" ", "\u00a0"), one.after.replace(" ", "\u00a0")
        axes.text(at, i, before, ha="right", color="#333333", **shared)
        word = axes.text(at, i, one.word, ha="left", color=ORANGE, weight="bold", **shared)
        # What follows begins where the word ends, in whichever font.
        axes.annotate(after, (1, 0.5), xycoords=word, ha="left", color="#333333", **shared)


def _share(value: float, lowest: float) -> float:
    """Where on the scale of colours a value is, 0 to 1."""
    return float(np.clip((value - lowest) / (1 - lowest), 0, 1))


def _cells(row: Sequence[float], lowest: float) -> str:
    """A row of a table, in the colours of the picture."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    cells = []
    for value in row:
        share = _share(value, lowest)
        colours = (
            f"background:{to_hex(colormaps[MAP](share))};color:{'#fff' if share > 0.55 else '#000'}"
        )
        cells.append(f'<td style="{colours}">{value:.2f}</td>')
    return "".join(cells)


# --- the layers that heads read


def save_weights(name: str, views: Sequence[LayerWeights], output: Path) -> list[Path]:
    """Write the layer weights of each head: bars, and a table.

    name (str): The pipeline's name.
    views (Sequence[LayerWeights]): The weights of each head.
    output (Path): The files' name, with or without a suffix.
    RETURNS (List[Path]): The PNG and the HTML file.
    """
    title = "Layers that the heads read"
    layers = sorted({layer for view in views for layer in view.layers})
    head = "".join(f'<th scope="col">{layer_name(layer, views[0].depth)}</th>' for layer in layers)
    rows = []
    for view in views:
        weights = dict(zip(view.layers, view.weights, strict=True))
        cells = [f"{weights[one]:.3f}" if one in weights else "–" for one in layers]
        cells += [f"{view.centre:.2f}", f"{view.scale:.3f}"]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row" class="text">{escape(view.head)}</th>{row}</tr>')
    picture = draw(draw_weights(views, f"{title}\n{short_name(name)}"))
    body = (
        f"<p>How much of each layer the heads of {escape(name)} take: the weights sum to 1, what "
        "they make of the layers is multiplied by the scale.</p>\n"
        f'{embed(picture, title)}\n<div class="scroll"><table>'
        f'<thead><tr><th></th>{head}<th scope="col">mean layer</th><th scope="col">scale</th></tr>'
        "</thead>\n" + "\n".join(rows) + "</table></div>"
    )
    return write(output, picture, title, body)


def draw_weights(views: Sequence[LayerWeights], title: str) -> Figure:
    """views (Sequence[LayerWeights]): The weights of each head.
    title (str): The figure's title.
    RETURNS (Figure): Bars for each head.
    """
    n_columns = min(len(views), 2)
    n_rows = -(-len(views) // n_columns)
    places = np.arange(max(view.depth for view in views) + 1)
    width = n_columns * max(0.5 * len(places) + 0.6, 4.2)
    figure = new_figure(width, 2.6 * n_rows + 1)
    figure.suptitle(plain(title), fontsize=FONTS["title"], x=0.01, ha="left")
    grid: Any = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    panels = grid.ravel().tolist()
    for axes in panels[len(views) :]:
        axes.set_axis_off()
    for axes, view in zip(panels, views, strict=False):
        bars = axes.bar(view.layers, view.weights, color=BLUE, width=0.75)
        backed = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # the line stays behind
        axes.bar_label(bars, fmt="%.3f", fontsize=FONTS["cell"], padding=3, bbox=backed)
        even, centre = "all layers alike", "mean layer"
        axes.axhline(1 / len(view.layers), color=GREY, linestyle=":", zorder=0, label=even)
        top = axes.get_xaxis_transform()  # layers across, the height of the panel upwards
        axes.plot(view.centre, 1, "v", color=ORANGE, transform=top, clip_on=False, label=centre)
        axes.set_title(
            plain(f"{view.head} · mean layer {view.centre:.1f} · scale {view.scale:.2f}"),
            size=FONTS["panel"],
            pad=10,
        )
        axes.set_xlim(-0.6, places[-1] + 0.6)
        axes.set_xticks(places, ["emb.", *map(str, places[1:])], fontsize=FONTS["text"])
        axes.set_xlabel("layer", size=FONTS["text"])
        axes.margins(y=0.15)
        axes.tick_params(axis="y", labelsize=FONTS["text"])
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("weight", size=FONTS["text"])
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        lines, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=FONTS["text"]
    )
    return figure


# --- documents in two dimensions


def save_map(views: Sequence[MapView], labelled: Labelled, output: Path) -> list[Path]:
    """Write maps side by side. On the page, the documents can be read by pointing at them.

    views (Sequence[MapView]): One or two maps of the same documents.
    labelled (Labelled): The documents.
    output (Path): The files' name, with or without a suffix.
    RETURNS (List[Path]): The PNG and the HTML file.
    """
    title = f"{len(labelled.docs):,} documents by category"
    figure = draw_map(views, labelled, title)
    picture = draw(figure)  # after which points have their places
    height = figure.bbox.height
    areas = [
        f'<area shape="circle" coords="{x:.0f},{height - y:.0f},6" '
        f'title="{escape(f"{category}: {doc.text[:300]}", quote=True)}">'
        for axes, view in zip(figure.axes, views, strict=True)
        for (x, y), doc, category in zip(
            axes.transData.transform(view.points), labelled.docs, labelled.categories, strict=True
        )
    ]
    body = (
        "<p>Each document is a point: the mean of its states, in two dimensions. Point at one to "
        "read it. The figure above a map is the share of documents whose nearest neighbour, in all "
        "dimensions, has the same category.</p>\n"
        + embed(picture, title, 'usemap="#documents"')
        + '\n<map name="documents">\n'
        + "\n".join(areas)
        + "\n</map>"
    )
    return write(output, picture, title, body)


def draw_map(views: Sequence[MapView], labelled: Labelled, title: str) -> Figure:
    """views (Sequence[MapView]): Maps of the same documents.
    labelled (Labelled): The documents.
    title (str): The figure's title.
    RETURNS (Figure): The maps side by side, a colour and a shape for each category.
    """
    categories = np.asarray(labelled.categories)
    names = sorted(set(labelled.categories))
    figure = new_figure(5.6 * len(views) + 0.2, 5.9)
    figure.suptitle(plain(title), fontsize=FONTS["title"], x=0.01, ha="left")
    panels: Any = figure.subplots(1, len(views), squeeze=False)
    for axes, view in zip(panels[0], views, strict=True):
        for i, name, colour, shape in zip(range(len(names)), names, cycle(COLOURS), cycle(SHAPES)):
            points = view.points[categories == name]
            axes.scatter(
                *points.T,
                c=colour,
                marker=shape,
                s=18,
                alpha=0.65,
                linewidths=0.3,
                edgecolors="white",
                label=plain(name),
                zorder=2 + i / len(names),
            )
        axes.set_title(
            plain(f"{short_name(view.source)}, {layer_name(view.layer, view.depth)}\n")
            + f"nearest neighbour right: {view.accuracy:.1%} (chance {view.chance:.1%})",
            size=FONTS["panel"],
            loc="left",
        )
        axes.set_xlabel(view.axes[0], size=FONTS["text"])
        axes.set_ylabel(view.axes[1], size=FONTS["text"])
        axes.tick_params(labelsize=FONTS["cell"])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(names), 6),
        frameon=False,
        fontsize=FONTS["text"],
        markerscale=1.6,
    )
    return figure
