"""Create confusion matrices for categories and verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from .results import Judged, Result
from .style import SHADES

MAX_LABELS = 8  # more don't fit on a phone
TITLES = {"categories": "Categories", "verdicts": "Verdicts on hypotheses"}


def render_confusions(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """Return a matrix for each task with a few exclusive labels; "" if there is none."""
    matrices = []
    for task, title in TITLES.items():
        if task in tasks:
            every = [one for result in results for one in getattr(result, task)]
            judged = [one for one in every if one.is_exclusive]
            matrices.append(render_confusion(title, count_confusions(judged)))
    if not any(matrices):
        return ""
    return (
        "<h2>Confusion matrices</h2><p>Rows are gold labels, columns are predicted labels; correct "
        "predictions are on the diagonal. Darker cells have a larger share of their row.</p>"
        f'<div class="matrices">{"".join(matrices)}</div>'
    )


def count_confusions(judged: Sequence[Judged]) -> Counter[tuple[str, str]]:
    """Count pairs of gold and predicted labels, where there is exactly one of each."""
    counts: Counter[tuple[str, str]] = Counter()
    for one in judged:
        gold = [category.label for category in one.categories if category.is_gold]
        given = [category.label for category in one.categories if category.is_given]
        if len(gold) == len(given) == 1:
            counts[gold[0], given[0]] += 1
    return counts


def render_confusion(title: str, counts: Counter[tuple[str, str]]) -> str:
    """Return a matrix, "" if it has too many labels."""
    labels = sorted({label for pair in counts for label in pair})
    if not 1 < len(labels) <= MAX_LABELS:
        return ""
    head = "".join(f'<th scope="col"><span>{escape(label)}</span></th>' for label in labels)
    rows = []
    for gold in labels:
        total = sum(counts[gold, given] for given in labels)
        cells = "".join(render_cell(counts[gold, given], total, gold == given) for given in labels)
        rows.append(f'<tr><th scope="row">{escape(gold)}</th>{cells}</tr>')
    return (
        f'<table class="matrix"><caption>{title}</caption><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def render_cell(count: int, total: int, is_right: bool) -> str:
    """Return a cell; its shade is the share of the row."""
    shade = SHADES[round((len(SHADES) - 1) * count / total)] if total else SHADES[0]
    kind = ' class="diagonal"' if is_right else ""
    return f'<td{kind} style="background:{shade}">{count:,}</td>'
