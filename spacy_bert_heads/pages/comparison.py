"""Write the page of a comparison: scores, a filter, and the Docs in which the pipelines differ."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..comparison.compare import Comparison
from ..comparison.tables import score_rows
from ..files import replace_file
from ..html import make_page
from .render import badge, colour_labels, render_result
from .results import Result
from .style import SCRIPT, STYLE
from .write import render_filter

SIDE_BY_SIDE = """
.pipeline { min-width: 0; } .pipeline h3 { overflow-wrap: anywhere; font-size: 1rem; }
.pipeline .sides, .pipeline .cards { grid-template-columns: minmax(0, 1fr); }
h4 { font-size: .9rem; margin: 1rem 0 .3rem; }
.scores th { overflow-wrap: anywhere; } [colspan] { font-weight: bold; }
"""


def write_comparison(found: Comparison, file: Path, *, limit: int = 100) -> None:
    """Write a self-contained page of the first `limit` Docs in which the pipelines differ, with the
    first pipeline of each contestant."""
    page = render_comparison(found, limit=limit)
    replace_file(file, page.encode("utf8", "replace"))


def render_comparison(found: Comparison, *, limit: int) -> str:
    """Return the page of a comparison."""
    firsts = {name: runs[0] for name, runs in found.runs.items()}
    numbers = [i for i, tasks in enumerate(found.differing) if tasks]
    tasks = list(found.report["differing"])
    docs, kinds = [], []
    shown = numbers[:limit]
    colours = colour_labels([run.results[i] for run in firsts.values() for i in shown])
    for i in shown:
        results = {name: run.results[i] for name, run in firsts.items()}
        kinds.append([*found.differing[i], *fewest_errors(list(results.values()), tasks)])
        sides = "".join(
            f'<div class="pipeline"><h3>{escape(name)}</h3><div class="head">'
            f"{''.join(badge(task, result.count_errors(task)) for task in tasks)}</div>"
            f"{render_result(result, colours, firsts[name].lang, 'h4')}</div>"
            for name, result in results.items()
        )
        docs.append(
            f'<section class="doc" id="doc-{i + 1}" data-kinds="{" ".join(kinds[-1])}">'
            f'<h2>Doc {i + 1}</h2><div class="sides">{sides}</div></section>'
        )
    names = [(task, task) for task in tasks]
    best = [(f"best-{i}", name) for i, name in enumerate(firsts)]
    groups = {
        title: [(value, name, sum(value in some for some in kinds)) for value, name in boxes]
        for title, boxes in (
            ("Docs that differ in", names),
            ("and with the fewest errors from", best),
        )
    }
    links = "".join(f'<a href="#doc-{i + 1}">{i + 1}</a>' for i in shown)
    body = [
        f'<p class="made">Data: {escape(found.report["data"])}</p>',
        f"<p>The predictions differ in {len(numbers):,} of {len(found.differing):,} Docs; "
        f"{'the first' if len(shown) < len(numbers) else 'all'} {len(shown):,} are shown. "
        "For several seeds, predictions are those of the first. Intervals are 95 % intervals.</p>",
        render_scores(found),
        render_filter(groups, len(shown)),
        f'<nav aria-label="Docs">{links}</nav>',
        *docs,
        f"<script>{SCRIPT}</script>",
    ]
    title = "Compared: " + ", ".join(firsts)
    return make_page(title, "<main>" + "\n".join(body) + "</main>", style=STYLE + SIDE_BY_SIDE)


def fewest_errors(results: Sequence[Result], tasks: Sequence[str]) -> list[str]:
    """Return the contestants with the fewest errors in a Doc, [] if all have the same number."""
    errors = [sum(result.count_errors(task) or 0 for task in tasks) for result in results]
    least = min(errors)
    return [f"best-{i}" for i, n in enumerate(errors) if n == least < max(errors)]


def render_scores(found: Comparison) -> str:
    """Return the table of scores with their intervals."""
    rows = []
    for score in found.report["scores"].values():
        rows.append(f'<tr><th colspan="3" scope="colgroup">{escape(score["title"])}</th></tr>')
        for _, name, value, low_high, difference, bounds in score_rows(score):
            cells = (
                f"<td>{first}<br><small>{second}</small></td>"
                for first, second in ((value, low_high), (difference, bounds))
            )
            rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    header = "".join(f'<th scope="col">{name}</th>' for name in ("Pipeline", "Score", "Difference"))
    return f'<table class="scores"><thead><tr>{header}</tr></thead>{"".join(rows)}</table>'
