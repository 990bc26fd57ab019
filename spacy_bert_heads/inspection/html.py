"""The views of an encoder as files: a picture, and a page with the picture and the figures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..files import replace_file
from ..html import make_page
from .map import Labelled, MapView
from .png import MAP, draw, draw_map, draw_weights, draw_word, layer_name, on_scale, short_name
from .weights import LayerWeights
from .word import WordView, in_context

CONTEXT = 150  # characters of a text on each side of its word
STYLE = """
.scroll { overflow-x: auto; } .full { max-width: 100%; height: auto; }
th.text { text-align: left; min-width: 22rem; }
mark { background: none; font-weight: bold; color: #b34700; }
"""


def save_word(view: WordView, output: Path) -> list[Path]:
    """Write a word's similarities: a heatmap for each layer, all on one colour scale, and tables.
    Returns the PNG and the HTML file."""
    n = len(view.occurrences)
    title = f"“{view.word}” in {n} places: cosine similarity by layer"
    # The start of the colour scale.
    lowest = min(float(np.floor(10 * view.cosines.min())) / 10, 0.9)
    picture = draw(draw_word(view, f"{title}\n{short_name(view.source)}", lowest))
    parts = [
        f"<p>How alike the states of the word are, of two places each, in {escape(view.source)}; "
        "1 is the same. The number beside a layer is the mean over all pairs.</p>",
        embed(picture, title),
    ]
    contexts = [in_context(span, limit=CONTEXT) for span in view.occurrences]
    for layer, (cosines, mean) in enumerate(zip(view.cosines, view.self_similarity, strict=True)):
        name = layer_name(layer, len(view.cosines) - 1)
        head = "".join(f'<th scope="col">{i + 1}</th>' for i in range(n))
        rows = [
            f'<tr><th scope="row" class="text">{i + 1}&ensp;{escape(one.before)}'
            f"<mark>{escape(one.word)}</mark>{escape(one.after)}</th>{to_cells(row, lowest)}</tr>"
            for i, (one, row) in enumerate(zip(contexts, cosines, strict=True))
        ]
        parts.append(
            f'<h2>{name} · mean {mean:.2f}</h2>\n<div class="scroll"><table><thead><tr><th></th>'
            f"{head}</tr></thead>\n" + "\n".join(rows) + "</table></div>"
        )
    return write(output, picture, title, "\n".join(parts))


def to_cells(row: Sequence[float], lowest: float) -> str:
    """Return the cells of a table's row as HTML, in the colours of the picture."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    cells = []
    for value in row:
        share = on_scale(value, lowest)
        colours = (
            f"background:{to_hex(colormaps[MAP](share))};color:{'#fff' if share > 0.55 else '#000'}"
        )
        cells.append(f'<td style="{colours}">{value:.2f}</td>')
    return "".join(cells)


def save_weights(name: str, views: Sequence[LayerWeights], output: Path) -> list[Path]:
    """Write the layer weights of each head: bar charts, and a table. Returns the PNG and the HTML
    file."""
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


def save_map(views: Sequence[MapView], labelled: Labelled, output: Path) -> list[Path]:
    """Write one or two maps of the same documents side by side. On the page, pointing at a document
    shows its text. Returns the PNG and the HTML file."""
    title = f"{len(labelled.docs):,} documents by category"
    figure = draw_map(views, labelled, title)
    picture = draw(figure)  # places the points
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


def write(output: Path, picture: bytes, title: str, body: str) -> list[Path]:
    """Write a PNG, and a page that needs no other file.

    `output` is the name of both files, with or without a suffix; `body` is HTML. Returns the PNG
    and the HTML file.
    """
    name = output.with_suffix("") if output.suffix in (".png", ".html") else output
    files = [name.with_name(f"{name.name}.{kind}") for kind in ("png", "html")]
    replace_file(files[0], picture)
    replace_file(files[1], make_page(title, body, style=STYLE).encode())
    return files


def embed(picture: bytes, alt: str, settings: str = 'class="full"') -> str:
    """Return HTML with a PNG in it. `alt` describes the picture for people who can't see it,
    `settings` are more attributes of the image."""
    data = b64encode(picture).decode("ascii")
    alt = escape(alt, quote=True)
    return (
        f'<div class="scroll"><img {settings} src="data:image/png;base64,{data}" alt="{alt}"></div>'
    )
