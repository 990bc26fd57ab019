"""Draw views of an encoder.

Colours are distinguishable with every kind of colour vision: amounts have one hue from light to
dark, categories have the palette of Okabe & Ito (2008) and different shapes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .map import Labelled, MapView
from .weights import LayerWeights
from .word import Context, WordView, in_context

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120
FONTS = {"title": 13, "panel": 10.5, "text": 9, "cell": 8}
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#5b6570"
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
EDGE = "#1d2733"  # dark, because some of the colours alone have too little contrast on white
SHAPES = "o^sDvPX*"  # 8 shapes and 7 colours are coprime: 56 categories look different
MAP = "Blues"
CONTEXT = 30  # characters of a text on each side of its word
MAX_ROW = 17.0  # inches, the maximum width of a row of panels


def draw_word(view: WordView, title: str, lowest: float) -> Figure:
    """Draw the sentences with a heatmap for each layer, in several rows if there are many. The
    colour scale goes from `lowest` to 1."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    contexts = [in_context(span, limit=CONTEXT) for span in view.occurrences]
    n, n_layers = len(contexts), len(view.cosines)
    cell = 0.4 if n <= 10 else 0.2
    side = max(n * cell, 1.8)
    # The words are aligned in one column; the widest context on each side sets the width.
    left = 0.07 * max(len(one.before) for one in contexts) + 0.3
    right = 0.07 * max(len(one.word + one.after) for one in contexts) + 0.3
    n_columns = min(n_layers, max(1, int((MAX_ROW - left - right) / (side + 0.35))))
    n_rows = -(-n_layers // n_columns)
    n_columns = -(-n_layers // n_rows)  # rows as even as possible
    widths = [left + right, *[side + 0.35] * n_columns]
    figure = new_figure(sum(widths) + 0.9, n_rows * (side + 0.6) + 0.5)
    figure.suptitle(plain(title), fontsize=FONTS["title"], x=0.01, ha="left")
    grid: Any = figure.subplots(n_rows, n_columns + 1, width_ratios=widths, squeeze=False)
    for axes in grid[:, 0]:
        write_contexts(axes, contexts, left / (left + right))
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
                colour = text_colour(to_hex(colormaps[MAP](on_scale(value, lowest))))
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


def write_contexts(axes: Any, contexts: Sequence[Context], at: float) -> None:
    """Write sentences one below another, beside the rows of a heatmap, with their words aligned in
    one column at `at` (0 to 1)."""
    axes.set(xlim=(0, 1), ylim=(len(contexts) - 0.5, -0.5))
    axes.set_axis_off()
    shared = {"va": "center", "fontsize": FONTS["text"], "parse_math": False}
    for i, one in enumerate(contexts):
        before, after = one.before.replace(" ", "\u00a0"), one.after.replace(" ", "\u00a0")
        axes.text(at, i, before, ha="right", color="#333333", **shared)
        word = axes.text(at, i, one.word, ha="left", color=ORANGE, weight="bold", **shared)
        # Anchored to the word, because its width depends on the font.
        axes.annotate(after, (1, 0.5), xycoords=word, ha="left", color="#333333", **shared)


def on_scale(value: float, lowest: float) -> float:
    """Return the position of a value on the colour scale, 0 to 1."""
    return float(np.clip((value - lowest) / (1 - lowest), 0, 1))


def text_colour(background: str) -> str:
    """Choose black or white for text on a colour (`#rrggbb`), whichever has the higher contrast,
    which is then 4.58 at the least (WCAG 2.2, relative luminance)."""
    channels = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def draw_weights(views: Sequence[LayerWeights], title: str) -> Figure:
    """Draw a bar chart of layer weights for each head."""
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
        backed = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # keeps the line behind
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


def draw_map(views: Sequence[MapView], labelled: Labelled, title: str = "") -> Figure:
    """Draw maps of the same documents side by side, with a colour and a shape for each category.
    Without a title it is for a page, which has all titles as text: smaller, so that its letters can
    be read when the page is narrow."""
    categories = np.asarray(labelled.categories)
    names = sorted(set(labelled.categories))
    figure = new_figure((5.6 if title else 4.2) * len(views) + 0.2, 5.9 if title else 4.4)
    if title:
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
                alpha=0.8,
                linewidths=0.5,
                edgecolors=EDGE,
                label=plain(name),
                zorder=2 + i / len(names),
            )
        if title:
            axes.set_title(plain("\n".join(name_map(view))), size=FONTS["panel"], loc="left")
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
        ncols=min(len(names), 6 if title else 3),
        frameon=False,
        fontsize=FONTS["text"],
        markerscale=1.6,
    )
    return figure


def name_map(view: MapView) -> tuple[str, str]:
    """Return the title of a map, and its nearest-neighbour accuracy."""
    return (
        f"{short_name(view.source)}, {layer_name(view.layer, view.depth)}",
        f"nearest neighbour correct: {view.accuracy:.1%} (chance {view.chance:.1%})",
    )


def place_points(figure: Figure, points: np.ndarray) -> list[list[float]]:
    """Return the places of points (n, 2) in a drawn map, as shares of its width and height from the
    upper left corner."""
    places = figure.axes[0].transData.transform(points) / (figure.bbox.width, figure.bbox.height)
    places[:, 1] = 1 - places[:, 1]
    return np.round(places, 4).tolist()


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure; sizes are in inches. Raises ImportError if matplotlib is not
    installed."""
    try:
        from matplotlib.figure import Figure  # not pyplot, which has windows and global state
    except ImportError as error:
        raise ImportError("Plots need matplotlib. Install it: pip install matplotlib") from error
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def draw(figure: Figure) -> bytes:
    """Render a figure as a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def plain(text: str) -> str:
    """Escape a text for matplotlib, in which dollar signs start formulas."""
    return text.replace("$", r"\$")


def short_name(name: str) -> str:
    """Return the last two parts of a path, which identify a model."""
    return "/".join(Path(name).parts[-2:])


def layer_name(layer: int, depth: int) -> str:
    """Return the display name of a layer: 0 is the embeddings, `depth` the last layer."""
    if layer == 0:
        return "embeddings"
    return f"layer {layer} (last)" if layer == depth else f"layer {layer}"
