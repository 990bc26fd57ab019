"""Write explanations as a PNG and an HTML page with coloured words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .explain import Explanation, Floats
from .html import embed, write
from .png import BLUE, FONTS, GREY, ORANGE, draw, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_WORDS = 25  # bars per panel: the largest attributions, in text order
MAX_PANELS = 6
COLOURS = {True: (0, 114, 178), False: (213, 94, 0)}  # of png's BLUE and ORANGE
# The longest word that fits into a bar's label.
MAX_CHARS = 24


def save_explanations(model: str, found: Sequence[Explanation], output: Path) -> list[Path]:
    """Write a PNG with bars for the first explanations and a page with all. Returns the paths of
    the PNG and the HTML file."""
    title = f"Attributions of {Path(model).name}"
    picture = draw(draw_explanations(found[:MAX_PANELS], title))
    parts = [
        f"<p>The attribution of each word to the log-odds of a prediction of {escape(model)}, in "
        "nats: integrated gradients over the word embeddings, with a text of [MASK] tokens as the "
        "baseline. Blue words support the prediction, orange words oppose it. The attributions add "
        "up to the difference between the log-odds of the text and of the masked text.</p>"
    ]
    for one in found:
        top = max(float(np.abs(np.append(one.values, one.asked_values)).max(initial=0)), 1e-9)
        texts = [mark(one.words, one.values, top)]
        if one.asked:
            texts.insert(0, mark(one.asked, one.asked_values, top))
        body = "\n".join(f'<p class="words">{text}</p>' for text in texts)
        parts.append(
            f"<h2>{escape(one.component)}: {escape(one.title)}</h2>\n{body}\n"
            f"<p>Log-odds {one.score:+.2f}, masked {one.baseline:+.2f}; integration error "
            f"{abs(one.error):.3f}.</p>"
        )
    parts.append(embed(picture, title))
    style = "<style>.words { line-height: 2.1; } .words span { padding: .15em 0; }</style>"
    return write(output, picture, title, style + "\n".join(parts))


def mark(words: Sequence[str], values: Floats, top: float) -> str:
    """Return words as HTML with colours that saturate at `top`; hovering shows the number."""
    parts = []
    for word, value in zip(words, values.tolist(), strict=True):
        red, green, blue = COLOURS[value >= 0]
        share = min(abs(value) / top, 1.0) * 0.6
        text = word.rstrip()
        parts.append(
            f'<span style="background:rgba({red},{green},{blue},{share:.2f})" '
            f'title="{value:+.3f}">{escape(text)}</span>{escape(word[len(text) :])}'
        )
    return "".join(parts)


def draw_explanations(found: Sequence[Explanation], title: str) -> Figure:
    """Draw a panel for each explanation, with bars for the largest attributions; words of the
    second text come first."""
    panels = [_strongest(one) for one in found]
    height = max(len(labels) for labels, _ in panels) * 0.22 + 1.3
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    figure = new_figure(max(4.4 * columns, 6.0), height * rows + 0.5)
    figure.suptitle(plain(title), size=FONTS["title"])
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    for axes, one, (labels, values) in zip(grid.flat, found, panels, strict=False):
        places = np.arange(len(labels))
        axes.barh(places, values, color=[BLUE if value >= 0 else ORANGE for value in values])
        axes.set_yticks(places, [plain(label) for label in labels], size=FONTS["cell"])
        axes.invert_yaxis()
        axes.axvline(0, color=GREY, linewidth=0.8)
        name = one.title if len(one.title) <= 48 else f"{one.title[:47]}…"
        axes.set_title(plain(f"{one.component}\n{name}"), size=FONTS["panel"], loc="left")
        axes.set_xlabel("adds to the log-odds, nats", size=FONTS["text"])
        axes.tick_params(axis="x", labelsize=FONTS["cell"])
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _strongest(one: Explanation) -> tuple[list[str], list[float]]:
    words = [*(f"? {word.strip()}" for word in one.asked), *(word.strip() for word in one.words)]
    values = np.append(one.asked_values, one.values)
    strongest = np.sort(np.argsort(-np.abs(values), kind="stable")[:MAX_WORDS])
    chosen = [i for i in strongest.tolist() if words[i]]
    return [shorten(words[i]) for i in chosen], [float(values[i]) for i in chosen]


def shorten(word: str) -> str:
    return word if len(word) <= MAX_CHARS else f"{word[: MAX_CHARS - 1]}…"
