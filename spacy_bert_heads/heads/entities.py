"""Write entities and their probabilities to a Doc that may have some of other components."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from spacy.attrs import ENT_IOB, ENT_TYPE
from spacy.tokens import Doc, Span

from ..text.doc_data import ENT_SCORES, get_ent_scores
from ..text.user_data import set_value

# The first token, the one after the last, the label as a number, the probability.
Entity = tuple[int, int, int, float]
Row = tuple[int, int, int | str, float]


def write_entities(
    doc: Doc, entities: list[Entity], *, component: str, spans_key: str | None
) -> None:
    """Write the entities of a component to `doc.ents`, `doc._.ent_scores`, and with a `spans_key`
    to that span group.

    Entities of other components stay, and overlapping ones of this component are left out. Earlier
    entities of the same component are replaced.
    """
    before = get_ent_scores(doc)
    own = {_place(doc, entry) for entry in before if entry["component"] == component}
    # Pipelines of version 0.1 marked a component's entities in the span group only.
    group = doc.spans.get(spans_key, ())
    grouped = {(s.start, s.end, s.label) for s in group if s.id_ == component}
    others = [
        ent
        for ent in doc.ents
        if (ent.start, ent.end, ent.label_) not in own
        and (ent.start, ent.end, ent.label) not in grouped
    ]
    blocked = blocked_tokens(doc)
    taken = {token for ent in others for token in range(ent.start, ent.end)}.union(blocked)
    entities = [row for row in entities if taken.isdisjoint(range(row[0], row[1]))]

    found = [Span(doc, start, end, label=label) for start, end, label, _ in entities]
    blocks = [doc[token : token + 1] for token in blocked]
    doc.set_ents([*others, *found], blocked=blocks, default="outside")
    entries = [entry for entry in before if entry["component"] != component]
    entries += [
        {
            "start_char": span.start_char,
            "end_char": span.end_char,
            "label": span.label_,
            "score": row[3],
            "component": component,
        }
        for span, row in zip(found, entities, strict=True)
    ]
    if entries or before:
        entries.sort(key=lambda entry: (entry["start_char"], entry["end_char"]))
        set_value(ENT_SCORES, doc, entries)
    if spans_key is not None:
        write_group(doc, entities, component, spans_key)


def split_by_threshold(
    doc: Doc, entities: list[Entity], reaches_threshold: Callable[[str, float], bool]
) -> tuple[list[Entity], list[dict[str, Any]]]:
    """Split entities into those that reach their thresholds, and entries of `doc._.abstained` for
    the others."""
    kept, entries = [], []
    for row in entities:
        span, score = Span(doc, row[0], row[1], label=row[2]), row[3]
        if reaches_threshold(span.label_, score):
            kept.append(row)
        else:
            place = {"start_char": span.start_char, "end_char": span.end_char}
            entries.append({"label": span.label_, "score": score, **place})
    return kept, entries


def write_group(doc: Doc, rows: Sequence[Row], component: str, key: str) -> None:
    """Write spans and their probabilities to a span group, behind those of others, which stay. The
    id of a span in the group is the name of its component."""
    group = list(doc.spans[key]) if key in doc.spans else []
    # Spans that were appended by hand have no score; they get 1.
    known = doc.spans[key].attrs.get("scores", []) if group else []
    scores = [*known, *[1.0] * len(group)]
    scored = [(s, p) for s, p in zip(group, scores, strict=False) if s.id_ != component]
    scored += [
        (Span(doc, start, end, label=label, span_id=component), score)
        for start, end, label, score in rows
    ]
    doc.spans[key] = [span for span, _ in scored]
    doc.spans[key].attrs["scores"] = [score for _, score in scored]


def _place(doc: Doc, entry: dict[str, Any]) -> tuple[int, int, str] | None:
    """Find the tokens of an entry of `doc._.ent_scores`: all that it touches, because tokens may
    have been merged or split since."""
    span = doc.char_span(entry["start_char"], entry["end_char"], alignment_mode="expand")
    return None if span is None else (span.start, span.end, entry["label"])


def blocked_tokens(doc: Doc) -> list[int]:
    """List the tokens that `doc.set_ents(…, blocked=…)` keeps out of entities."""
    if not doc.has_annotation("ENT_IOB"):
        return []
    iob, label = doc.to_array([ENT_IOB, ENT_TYPE]).T
    return np.flatnonzero((iob == 3) & (label == 0)).tolist()
