"""Write views of an encoder as a PNG, and as an HTML page with the same content as text.

Pages work at a width of 400 pixels, with keyboard and touch. Colours have the contrast of WCAG 2.2,
level AA (4.5 for text, 3 for points).
"""

from __future__ import annotations

import json
import textwrap
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..files import replace_file
from ..html import make_page
from .map import Labelled, MapView
from .png import (
    MAP,
    draw,
    draw_map,
    draw_weights,
    draw_word,
    layer_name,
    name_map,
    on_scale,
    place_points,
    short_name,
    text_colour,
)
from .weights import LayerWeights
from .word import WordView, in_context

CONTEXT = 150  # characters of a text on each side of its word
MAP_TEXT = 300  # characters of a document that a map shows
STYLE = """
body { overflow-wrap: break-word; } h2 { margin: 1.5rem 0 .3rem; }
.panels { display: flex; flex-wrap: wrap; gap: 0 2rem; } .panels > * { margin: 0; max-width: 100%; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll td { padding: .2rem .35rem; }
:focus-visible { outline: 3px solid #0b5c8f; outline-offset: 2px; }
mark { background: none; font-weight: bold; color: #a84300; }
th.text { text-align: left; } td.bar { width: 12rem; text-align: left; }
.bar span { display: block; height: .8rem; background: #0072b2; }
.plot { position: relative; touch-action: pan-y; cursor: pointer; }
.maps > * { flex: 1 1 20rem; max-width: 36rem; } .maps p { margin: .2rem 0; }
.plot img { display: block; width: 100%; height: auto; }
.ring { position: absolute; width: 16px; height: 16px; margin: -10px 0 0 -10px; border-radius: 50%;
        border: 2px solid #000; box-shadow: 0 0 0 2px #fff; pointer-events: none; }
#shown { min-height: 6em; max-width: 50rem; border-left: 3px solid #0b5c8f; padding-left: .7rem; }
"""


def save_word(view: WordView, output: Path) -> list[Path]:
    """Write a word's similarities: a PNG with a heatmap per layer on a common colour scale, and a
    page with tables. Returns the paths of the PNG and the HTML file."""
    n = len(view.occurrences)
    title = f"“{view.word}” in {n} places: cosine similarity by layer"
    # The start of the colour scale.
    lowest = min(float(np.floor(10 * view.cosines.min())) / 10, 0.9)
    picture = draw(draw_word(view, f"{title}\n{short_name(view.source)}", lowest))
    contexts = [in_context(span, limit=CONTEXT) for span in view.occurrences]
    places = "\n".join(
        f"<li>{escape(one.before)}<mark>{escape(one.word)}</mark>{escape(one.after)}</li>"
        for one in contexts
    )
    head = "".join(f'<th scope="col">{i + 1}</th>' for i in range(n))
    parts = [
        f"<p>How alike the hidden states of the word are, of two places each, in "
        f"{escape(view.source)}; 1 is the same. The number beside a layer is the mean over all "
        f'pairs.</p>\n<ol>\n{places}\n</ol>\n<div class="panels">'
    ]
    for layer, (cosines, mean) in enumerate(zip(view.cosines, view.self_similarity, strict=True)):
        name = layer_name(layer, len(view.cosines) - 1)
        rows = "\n".join(
            f'<tr><th scope="row">{i + 1}</th>{to_cells(row, lowest)}</tr>'
            for i, row in enumerate(cosines)
        )
        parts.append(
            f'<section><h2 id="layer{layer}">{name} · mean {mean:.2f}</h2>\n'
            f'<div class="scroll" tabindex="0" role="region" aria-labelledby="layer{layer}"><table>'
            f"<thead><tr><td></td>{head}</tr></thead>\n{rows}</table></div></section>"
        )
    return write(output, picture, title, "\n".join([*parts, "</div>"]))


def to_cells(row: Sequence[float], lowest: float) -> str:
    """Return the cells of a table row as HTML, in the colours of the PNG."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    cells = []
    for value in row:
        colour = to_hex(colormaps[MAP](on_scale(value, lowest)))
        cells.append(
            f'<td style="background:{colour};color:{text_colour(colour)}">{value:.2f}</td>'
        )
    return "".join(cells)


def save_weights(name: str, views: Sequence[LayerWeights], output: Path) -> list[Path]:
    """Write the layer weights of each head: a PNG with bar charts, and a page with tables. Returns
    the paths of the PNG and the HTML file."""
    title = "Layers that the heads read"
    parts = [
        f"<p>The layer weights of the heads of {escape(name)}. The weights sum to 1; the weighted "
        'mean of the layers is multiplied by the scale.</p>\n<div class="panels">'
    ]
    for view in views:
        most = max(view.weights)
        rows = "\n".join(
            f'<tr><th scope="row" class="text">{layer_name(layer, view.depth)}</th>'
            f'<td>{weight:.3f}</td><td class="bar"><span style="width:{weight / most:.1%}"></span>'
            "</td></tr>"
            for layer, weight in zip(view.layers, view.weights, strict=True)
        )
        parts.append(
            f"<section><h2>{escape(view.head)} · mean layer {view.centre:.2f} · scale "
            f"{view.scale:.3f}</h2>\n<table>{rows}</table></section>"
        )
    picture = draw(draw_weights(views, f"{title}\n{short_name(name)}"))
    return write(output, picture, title, "\n".join([*parts, "</div>"]))


def save_map(views: Sequence[MapView], labelled: Labelled, output: Path) -> list[Path]:
    """Write one or two maps of the same documents: a PNG, and a page on which pointer, touch or
    arrow keys select a document, which is marked in each map and shown as text. Returns the paths
    of the PNG and the HTML file."""
    title = f"{len(labelled.docs):,} documents by category"
    plots, points = [], []
    for view in views:
        figure = draw_map([view], labelled)
        plot = draw(figure)  # places the points
        points.append(place_points(figure, view.points))
        name, figures = name_map(view)
        alt = f"{title}, {name}"
        plots.append(
            f"<section><h2>{escape(name)}</h2>\n<p>{figures}</p>\n"
            f'<div class="plot" tabindex="0" role="group" aria-label="{escape(alt, quote=True)}">'
            f'{embed(plot, alt)}<span class="ring" hidden></span></div></section>\n'
        )
    docs = [
        (category, textwrap.shorten(doc.text, MAP_TEXT, placeholder=" …"))
        for category, doc in zip(labelled.categories, labelled.docs, strict=True)
    ]
    data = json.dumps({"points": points, "docs": docs}, ensure_ascii=False).replace("<", "\\u003c")
    script = Path(__file__).with_name("map.js").read_text(encoding="utf8")
    body = (
        "<p>Each point is a document: the mean of its hidden states, projected to two dimensions. "
        "Hover over a point or touch it to read the document. With the keyboard, select a map with "
        "Tab, and documents with the arrow keys or Page Up and Page Down. The number above a map "
        "is the share of documents whose nearest neighbour, in all dimensions, has the same "
        "category.</p>\n"
        f'<div class="panels maps">\n{"".join(plots)}\n</div>\n'
        '<p id="shown" role="status" aria-live="polite"></p>\n'
        f'<script type="application/json" id="data">{data}</script>\n<script>\n{script}</script>'
    )
    picture = draw(draw_map(views, labelled, title))
    return write(output, picture, title, body)


def write(output: Path, picture: bytes, title: str, body: str) -> list[Path]:
    """Write a PNG and a self-contained page.

    `output` is the name of both files, with or without a suffix; `body` is HTML. Returns the PNG
    and the HTML file.
    """
    name = output.with_suffix("") if output.suffix in (".png", ".html") else output
    files = [name.with_name(f"{name.name}.{kind}") for kind in ("png", "html")]
    replace_file(files[0], picture)
    replace_file(files[1], make_page(title, body, style=STYLE).encode())
    return files


def embed(picture: bytes, alt: str) -> str:
    """Return HTML with an embedded PNG and its alternative text."""
    data = b64encode(picture).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt, quote=True)}">'
