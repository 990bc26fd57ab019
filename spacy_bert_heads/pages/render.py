"""Render results as HTML. All user text is escaped here, in the only place where it becomes
HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .results import MEASURED, Answer, Category, Entity, Judged, Measured, Result, Tag
from .style import COLOURS

LONG_TEXT = 3000  # characters above which a text gets its own scroll box
CONTEXT = 90  # characters of the text on each side of an answer
MANY_CARDS = 4
MAX_CATEGORIES = 8  # shown in addition to predicted and gold ones


def colour_labels(results: Sequence[Result]) -> dict[str, str]:
    """Return a colour for each entity label."""
    sides = [side for one in results for side in (one.gold_entities, one.entities) if side]
    labels = sorted({entity.label for side in sides for entity in side})
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}


def render_doc(
    number: int, result: Result, tasks: Sequence[str], colours: dict[str, str], lang: str
) -> str:
    """Return the section of a Doc."""
    counts = {task: result.count_errors(task) for task in tasks}
    errors = " ".join(task for task, count in counts.items() if count)
    badges = "".join(badge(task, count) for task, count in counts.items())
    return (
        f'<section class="doc" id="doc-{number}" data-kinds="{errors}">'
        f'<div class="head"><h2>{render_name(number, result)}</h2>{badges}</div>\n'
        f"{render_result(result, colours, lang)}\n</section>"
    )


def render_result(result: Result, colours: dict[str, str], lang: str, heading: str = "h3") -> str:
    """Return gold and predicted annotations; the plain text if there are no entities to mark."""
    if result.entities is None:
        parts = [text_block(escape(result.text), len(result.text), lang, "Text")]
    else:
        parts = [render_entities(result, result.entities, colours, lang, heading)]
    if result.categories:
        categories = cards(map(render_judged, result.categories))
        parts.append(f"<{heading}>Categories</{heading}>{categories}")
    if result.verdicts:
        verdicts = map(render_judged, result.verdicts)
        parts.append(fold("Verdicts on hypotheses", "verdicts", result, verdicts, heading))
    if result.choices:
        choices = map(render_judged, result.choices)
        parts.append(fold("Multiple choice", "choices", result, choices, heading))
    if result.answers:
        answers = (render_answer(answer, result.text, lang) for answer in result.answers)
        parts.append(fold("Answers to questions", "answers", result, answers, heading))
    if result.similarities:
        similarities = map(render_numbers, result.similarities)
        parts.append(fold("Similarities", "similarities", result, similarities, heading))
    if result.numbers:
        parts.append(f"<{heading}>Numbers</{heading}>{cards(map(render_numbers, result.numbers))}")
    if result.tags:
        tags = [render_tags(result.tags, lang)]
        parts.append(fold("Tags", "tags", result, tags, heading, is_open=False))
    return "\n".join(parts)


def render_name(number: int, result: Result) -> str:
    """Return a Doc's title with a permanent link."""
    name = f"{number} · {escape(result.name)}" if result.name else f"Doc {number}"
    return f'<a class="anchor" href="#doc-{number}">{name}</a>'


def fold(
    title: str,
    task: str,
    result: Result,
    contents: Iterable[str],
    heading: str = "h3",
    *,
    is_open: bool = True,
) -> str:
    """Return cards in a collapsible block; it is closed if there are many cards, or if not
    `is_open`. The filter opens the blocks of a task."""
    shown = [*contents]
    judged = [one.is_right for one in getattr(result, task) if one.is_right is not None]
    note = f"{judged.count(True)} of {len(judged)} correct" if judged else f"{len(shown)}"
    opened = " open" if is_open and len(shown) <= MANY_CARDS else ""
    return (
        f'<details data-task="{task}"{opened}><summary><{heading}>{title}</{heading}> '
        f'<span class="muted">{note}</span></summary>{cards(shown)}</details>'
    )


def badge(task: str, errors: int | None) -> str:
    """Return a Doc's badge for a task, "" for tasks with numbers; `errors` is None if the task is
    not annotated."""
    if task in MEASURED:
        return ""
    if errors is None:
        return f'<span class="badge">{task}: no gold annotation</span>'
    if not errors:
        return f'<span class="badge right">✓ {task}</span>'
    noun = "error" if errors == 1 else "errors"
    return f'<span class="badge wrong">✗ {task}: {errors} {noun}</span>'


def cards(contents: Iterable[str]) -> str:
    """Arrange cards side by side if there is room."""
    return f'<div class="cards">{"".join(contents)}</div>'


def text_block(html: str, length: int, lang: str, title: str) -> str:
    """Return a block of text; a long one scrolls, also with the keyboard."""
    box = f' tabindex="0" role="group" aria-label="{title}"' if length > LONG_TEXT else ""
    kind = "text long" if box else "text"
    return f'<div class="{kind}" dir="auto"{lang_of(lang)}{box}>{html}</div>'


def lang_of(lang: str) -> str:
    """Return the `lang` attribute for a pipeline's language; "xx" means multilingual in spaCy."""
    return "" if lang == "xx" else f' lang="{escape(lang, quote=True)}"'


# --- entities


def render_entities(
    result: Result,
    entities: Sequence[Entity],
    colours: dict[str, str],
    lang: str,
    heading: str = "h3",
) -> str:
    """Return the text with gold and with predicted entities side by side."""
    sides = {"Predicted entities": mark_entities(result.text, entities, colours, "wrong")}
    if result.gold_entities is not None:
        gold = mark_entities(result.text, result.gold_entities, colours, "missed")
        sides = {"Gold entities": gold, **sides}
    blocks = [
        f"<div><{heading}>{title}</{heading}>"
        f"{text_block(html, len(result.text), lang, title)}</div>"
        for title, html in sides.items()
    ]
    return f'<div class="sides">{"".join(blocks)}</div>'


def mark_entities(
    text: str, entities: Sequence[Entity], colours: dict[str, str], fault: str
) -> str:
    """Mark entities in a text. `fault` labels those that the other side doesn't have."""
    parts, end = [], 0
    for entity in sorted(entities):
        parts.append(escape(text[end : entity.start]))
        label, end = escape(entity.label, quote=True), entity.end
        score = "" if entity.score is None else f" {entity.score:.2f}"
        tip = label if entity.score is None else f"{label}, probability {entity.score:.4f}"
        is_fault = entity.is_right is False
        kind, note = (' class="wrong"', f" <em>✗ {fault}</em>") if is_fault else ("", "")
        parts.append(
            f'<mark{kind} style="background:{colours[entity.label]}" title="{tip}">'
            f'{escape(text[entity.start : end])}<span class="tag"><b>{label}</b>{score}{note}'
            "</span></mark>"
        )
    return "".join([*parts, escape(text[end:])])


# --- categories, verdicts and choices


def render_judged(judged: Judged) -> str:
    """Return a card of bars: the categories of a component, or the verdict on a hypothesis."""
    title = f"<p>{escape(judged.title)} {judgement(judged.is_right)}</p>"
    if not judged.categories:
        return f'<div class="card">{title}<p class="muted">too long for a window, skipped</p></div>'
    shown = [
        one
        for i, one in enumerate(judged.categories)
        if i < MAX_CATEGORIES or one.is_given or one.is_gold
    ]
    bars = "".join(map(render_bar, shown))
    if judged.is_exclusive and not any(one.is_given for one in judged.categories):
        title += '<p class="muted">below its threshold, left out</p>'
    left = len(judged.categories) - len(shown)
    more = f'<p class="muted"><small>{left} more, less probable</small></p>' if left else ""
    return f'<div class="card">{title}<dl class="bars">{bars}</dl>{more}</div>'


def render_bar(category: Category) -> str:
    """Return the bar of a probability; the predicted label is bold, the gold label is marked."""
    kind = ' class="given"' if category.is_given else ""
    gold = ' <span class="right">gold</span>' if category.is_gold else ""
    is_known = category.score == category.score
    width = 100 * min(max(category.score, 0.0), 1.0) if is_known else 0.0
    return (
        f"<dt{kind}>{escape(category.label)}{gold}</dt>"
        f'<dd class="bar" aria-hidden="true"><span style="width:{width:.1f}%"></span></dd>'
        f'<dd class="value">{f"{category.score:.2f}" if is_known else "–"}</dd>'
    )


def judgement(is_right: bool | None) -> str:
    """Return a badge with a symbol and a word for correct or wrong."""
    if is_right is None:
        return '<span class="badge">no gold annotation</span>'
    word = "✓ correct" if is_right else "✗ wrong"
    return f'<span class="badge {"right" if is_right else "wrong"}">{word}</span>'


# --- numbers and tags


def render_numbers(measured: Measured) -> str:
    """Return a card of numbers, with gold numbers if there are any."""
    title = f"<p>{escape(measured.title)}</p>" if measured.title else ""
    if measured.found is None:
        return f'<div class="card">{title}<p class="muted">too long for a window, skipped</p></div>'
    rows = "".join(
        f"<dt>{escape(label)}</dt><dd>{value:.3g}"
        + (f" <small>gold {measured.gold[label]:.3g}</small>" if label in measured.gold else "")
        + "</dd>"
        for label, value in measured.found.items()
    )
    return f'<div class="card">{title}<dl class="answer">{rows}</dl></div>'


def render_tags(tags: Sequence[Tag], lang: str) -> str:
    """Return the tokens with their tags, and the gold tag if it differs."""
    parts = []
    for tag in tags:
        gold = f" <em>✗ gold {escape(tag.gold)}</em>" if tag.is_right is False else ""
        kind = ' class="wrong"' if gold else ""
        parts.append(
            f'<mark{kind}>{escape(tag.text)}<span class="tag"><b>{escape(tag.found or "–")}</b>'
            f"{gold}</span></mark>"
        )
    return text_block(" ".join(parts), len(parts) * 8, lang, "Tags")


# --- answers


def render_answer(answer: Answer, text: str, lang: str) -> str:
    """Return the card of a question: gold and predicted answer, and both in their context."""
    rows = []
    if answer.gold is not None:
        gold = " <span class='muted'>or</span> ".join(map(show_answer, answer.gold))
        rows.append(f"<dt>Gold</dt><dd>{gold}</dd>")
    if answer.text is None:
        found = '<span class="muted">question too long for a window, skipped</span>'
    else:
        found = f"{show_answer(answer.text)} <small>{answer.score:.2f}</small>"
        if answer.is_right is False and answer.f1:
            found += f" <small>F1 {answer.f1:.2f}</small>"
    rows.append(f"<dt>Predicted</dt><dd>{found}</dd>")
    places = [place for place in (answer.place, *answer.gold_places) if place[1] > place[0]]
    excerpt = ""
    if places:
        marked = mark_answer(text, answer.place, answer.gold_places)
        excerpt = f'<div class="text" dir="auto"{lang_of(lang)}>{marked}</div>'
    title = f"<p><b>{escape(answer.question)}</b> {judgement(answer.is_right)}</p>"
    return f'<div class="card">{title}<dl class="answer">{"".join(rows)}</dl>{excerpt}</div>'


def show_answer(text: str) -> str:
    """Return an answer, or "no answer"."""
    return escape(text) if text else '<span class="muted">no answer</span>'


def mark_answer(text: str, found: tuple[int, int], gold: Sequence[tuple[int, int]]) -> str:
    """Return the context of the answers with the answers marked: gold ones are underlined, the
    predicted one is coloured."""
    places = [place for place in (found, *gold) if place[1] > place[0]]
    parts, end = [], 0
    for begin, stop in merge_ranges(text, places):
        parts.append("… " if begin > end else "")
        bounds = sorted({begin, stop, *(at for place in places for at in place)})
        bounds = [at for at in bounds if begin <= at <= stop]
        for left, right in zip(bounds, bounds[1:], strict=False):
            kinds = ["gold"] if any(a <= left and right <= b for a, b in gold) else []
            kinds += ["found"] if found[0] <= left and right <= found[1] else []
            piece = escape(text[left:right])
            tip = " and ".join({"gold": "gold", "found": "predicted"}[kind] for kind in kinds)
            marked = f'<mark class="{" ".join(kinds)}" title="{tip} answer">{piece}</mark>'
            parts.append(marked if kinds else piece)
        end = stop
    return "".join([*parts, " …" if end < len(text) else ""])


def merge_ranges(text: str, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of a text around the places, extended to whole words."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(places):
        begin = max(text.rfind(" ", 0, max(start - CONTEXT, 0)) + 1, 0)
        stop = text.find(" ", min(end + CONTEXT, len(text)))
        stop = len(text) if stop < 0 else stop
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((begin, stop))
    return merged
