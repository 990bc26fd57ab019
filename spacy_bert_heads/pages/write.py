"""Write the page of an evaluation: scores, a filter for errors, and a section for each Doc."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import islice
from pathlib import Path

from spacy.language import Language
from spacy.training import Example

from ..files import mark_folder, replace_file
from ..html import make_page
from .confusion import render_confusions
from .render import colour_labels, render_doc
from .results import MEASURED, Result, make_result, tasks_of
from .style import SCRIPT, STYLE


def write_pages(
    nlp: Language,
    examples: Sequence[Example],
    folder: Path,
    *,
    model: str,
    data: Path,
    limit: int = 100,
) -> Path:
    """Write a self-contained page with the gold and predicted annotations of the first `limit`
    Docs, and return its path: index.html in a folder that `files.check_folder` has checked.

    `model` and `data` are shown on the page.
    """
    tasks = tasks_of(nlp)
    results = [make_result(nlp, example, tasks) for example in islice(examples, limit)]
    made = f"Pipeline: {model} · Data: {data}"
    page = render_page(results, tasks, made=made, total=len(examples), lang=nlp.lang or "xx")
    mark_folder(folder, "evaluate")
    file = folder / "index.html"
    replace_file(file, page.encode("utf8", "replace"))
    return file


def render_page(
    results: Sequence[Result],
    tasks: Sequence[str],
    *,
    made: str,
    total: int,
    lang: str,
    title: str = "Gold and predicted",
    overview: str = "",
) -> str:
    """Return the page of `results`, the first of `total` Docs. `made` names their origin;
    `overview` is HTML that comes first."""
    colours = colour_labels(results)
    docs = [render_doc(i + 1, one, tasks, colours, lang) for i, one in enumerate(results)]
    shown = (
        f"All {total:,}" if len(results) == total else f"The first {len(results):,} of {total:,}"
    )
    links = [render_link(i + 1, one, tasks) for i, one in enumerate(results)]
    boxes = [(task, task, count_docs(results, task)) for task in tasks]
    body = [
        f'<p class="made">{escape(made)}</p>',
        overview,
        f"<p>{shown} evaluated Docs. Entities, categories and answers are shown with their "
        "probabilities. An entity is correct if a gold entity has the same boundaries and label. "
        "In "
        'texts of answers, the <mark class="gold">gold answer</mark> is underlined, the <mark '
        'class="found">predicted one</mark> is coloured.</p>',
        render_scores(results, tasks),
        render_confusions(results, tasks),
        "<h2>Doc by Doc</h2>",
        render_filter({"Errors only: Docs with errors in": boxes}, len(results)),
        f'<nav aria-label="Docs">{"".join(links)}</nav>',
        *docs,
        f"<script>{SCRIPT}</script>",
    ]
    return make_page(title, "<main>" + "\n".join(body) + "</main>", style=STYLE)


def render_scores(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """Return a table of correct predictions by task."""
    rows = "".join(
        f'<tr><th scope="row">{task.capitalize()}</th><td>{escape(sum_up(results, task))}</td>'
        f"<td>{count_docs(results, task):,}</td></tr>"
        for task in tasks
    )
    return (
        '<table class="scores"><thead><tr><th scope="col">Task</th><th scope="col">Correct</th>'
        f'<th scope="col">Docs with errors</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def sum_up(results: Sequence[Result], task: str) -> str:
    """Return a summary of the correct predictions of a task."""
    if task == "entities":
        gold = [one.is_right for result in results for one in result.gold_entities or ()]
        found = [one.is_right for result in results for one in result.entities or ()]
        if all(result.gold_entities is None for result in results):
            return "no gold annotation"
        wrong = found.count(False)
        return f"{gold.count(True):,} of {len(gold):,} found, {wrong:,} predictions are wrong"
    if task in MEASURED:
        missed = [x for result in results for one in getattr(result, task) for x in one.errors]
        if not missed:
            return "no gold annotation"
        return f"mean absolute error {sum(missed) / len(missed):.3g}, {len(missed):,} annotated"
    judged = [one.is_right for result in results for one in getattr(result, task)]
    judged = [one for one in judged if one is not None]
    if not judged:
        return "no gold annotation"
    right = judged.count(True)
    return f"{right:,} of {len(judged):,} ({right / len(judged):.0%})"


def count_docs(results: Sequence[Result], task: str) -> int:
    """Count the Docs with errors of a task."""
    return sum(bool(result.count_errors(task)) for result in results)


def render_filter(groups: dict[str, list[tuple[str, str, int]]], num_docs: int) -> str:
    """Return the filter. `groups` maps the title of each group to its checkboxes: value, name and
    number of Docs."""
    fieldsets = []
    for title, boxes in groups.items():
        labels = "".join(
            f'<label><input type="checkbox" value="{value}"> {escape(name)} '
            f"<small>({num:,})</small></label>"
            for value, name, num in boxes
        )
        fieldsets.append(f"<fieldset><legend>{title}</legend>{labels}</fieldset>")
    return (
        f'<div id="filter">{"".join(fieldsets)}</div>'
        f'<p role="status" class="muted" id="shown">{num_docs} Docs</p>'
    )


def render_link(number: int, result: Result, tasks: Sequence[str]) -> str:
    """Return the link to a Doc's section."""
    counts = [count for task in tasks if (count := result.count_errors(task)) is not None]
    if any(counts):
        kind, sign, word = ' class="has-errors"', "✗", "errors"
    else:
        kind, sign, word = ("", "✓", "correct") if counts else ("", "–", "no gold annotation")
    name = f"{number} {escape(result.name, quote=True)}" if result.name else f"Doc {number}"
    shown = name if result.name else number
    return f'<a href="#doc-{number}"{kind} aria-label="{name}, {word}">{shown} {sign}</a>'
