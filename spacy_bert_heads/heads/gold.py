"""Gold entities, as tags of the predicted Docs' tokens or wordpieces."""

from __future__ import annotations

import warnings
from collections.abc import Container, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from spacy.attrs import ENT_IOB
from spacy.tokens import Doc, Span
from spacy.training import Example

from ..text.arrays import Bools1d, Ints1d
from ..text.blanks import count_visible
from ..text.wordpieces import token_offsets
from .negations import Negation
from .tags import SCHEMES, STRICT_SCHEMES
from .units import Units, choose, rows_of

OUTSIDE = 2  # spaCy's IOB value of a token outside of entities
MISSING = -1


def is_negated(label: str, labels: Container[str]) -> bool:
    """Return whether a gold label is negated, as `!PERSON` is if the head has no such label."""
    return len(label) > 1 and label[0] == "!" and label not in labels


def without_negated(example: Example, labels: Container[str]) -> Example:
    """Turn negated gold entities into tokens without annotation, for scorers."""
    reference = example.reference
    negated = [ent for ent in reference.ents if is_negated(ent.label_, labels)]
    if not negated:
        return example
    reference = reference.copy()
    missing = [reference[ent.start : ent.end] for ent in negated]
    reference.set_ents([], missing=missing, default="unmodified")
    return Example(example.predicted, reference)


class GoldSpan(NamedTuple):
    """A span, by the rows of its tagged units."""

    rows: Ints1d
    label: str


class Gold(NamedTuple):
    """The gold entities of a batch."""

    outside: Bools1d  # (num_units,) annotated as outside of entities
    entities: list[GoldSpan]
    wrong: list[GoldSpan]  # there is no entity with this label and these borders
    moved: list[Hashable]  # entities with borders at units without a tag, which were moved
    dropped: list[Hashable]  # entities with borders inside of units, which were left out


def read_gold(
    examples: Sequence[Example],
    units: Units,
    *,
    labels: Container[str],
    mode: str,
    incorrect_spans_key: str | None = None,
) -> Gold:
    """Find the units of gold entities by their visible characters.

    If an entity's border is inside of a unit, `mode` decides: "expand" takes the units that it
    touches, "contract" those that it covers, "strict" leaves the entity out. The units of an entity
    that is left out count as not annotated.

    Raises ValueError if a span is both an entity and annotated as wrong.
    """
    gold = Gold(np.zeros(len(units.tagged), dtype=np.bool_), [], [], [], [])
    for example, rows in zip(examples, rows_of(units.lengths), strict=True):
        _read_example(example, units, rows, labels, mode, incorrect_spans_key, gold)
    return gold


def _read_example(
    example: Example,
    units: Units,
    rows: slice,
    labels: Container[str],
    mode: str,
    key: str | None,
    gold: Gold,
) -> None:
    reference = example.reference
    predicted_text, text = example.predicted.text, reference.text
    differ = predicted_text != text
    if differ:
        _ = example.alignment  # spaCy raises if more than white space and case differ
    # Places are counted in visible characters, which are the same in both Docs.
    place = count_visible(predicted_text, lower=differ)
    starts, ends = place[units.starts[rows]], place[units.ends[rows]]
    tagged = units.tagged[rows] & (ends > starts)
    place = count_visible(text, lower=differ)

    ents = list(reference.ents)
    taught = _taught(reference, place)
    taken = np.zeros(len(starts), dtype=np.bool_)
    for ent in ents:
        low, high = place[ent.start_char], place[ent.end_char]
        taught[low:high] = MISSING
        touched = tagged & (starts < high) & (ends > low)
        covered = touched & (starts >= low) & (ends <= high)
        chosen = choose(touched, covered, mode)
        which = (hash(text), ent.start_char, ent.end_char)
        if not touched.any() or _has_blank_border(ent, place, starts[touched], ends[touched]):
            gold.moved.append(which)
        if not len(chosen) or taken[chosen].any():
            if touched.any():
                gold.dropped.append(which)
            continue
        taken[chosen] = True
        if mode == "contract":  # what was cut off is outside
            taught[low:high] = 0
        negated = is_negated(ent.label_, labels)
        label = ent.label_[1:] if negated else ent.label_
        (gold.wrong if negated else gold.entities).append(GoldSpan(chosen + rows.start, label))
    known = np.append(0, np.cumsum(taught != 0))
    gold.outside[rows] = tagged & ~taken & (known[ends] == known[starts])

    right = {(ent.start_char, ent.end_char, ent.label) for ent in ents}
    for span in reference.spans.get(key, ()) if key is not None else ():
        if (span.start_char, span.end_char, span.label) in right:
            raise ValueError(
                f"'{span.text}' is an entity {span.label_} and also in doc.spans['{key}'], which "
                f"says that it is none. Remove it from one of the two: '{text[:60]}'."
            )
        low, high = place[span.start_char], place[span.end_char]
        touched = tagged & (starts < high) & (ends > low)
        chosen = choose(touched, touched & (starts >= low) & (ends <= high), mode)
        if len(chosen):
            gold.wrong.append(GoldSpan(chosen + rows.start, span.label_))


def _taught(reference: Doc, place: Ints1d) -> Ints1d:
    """Return 0 for each visible character of a reference that is outside of entities, else -1."""
    starts, ends, _ = token_offsets([reference])
    outside = reference.to_array([ENT_IOB]).ravel() == OUTSIDE
    return np.repeat(np.where(outside, 0, MISSING), place[ends] - place[starts])


def _has_blank_border(ent: Span, place: Ints1d, starts: Ints1d, ends: Ints1d) -> bool:
    """Return whether an entity begins or ends with a token that is invisible or has no
    wordpiece."""
    for token in (ent[0], ent[-1]):
        if place[token.idx] == place[token.idx + len(token)]:
            return True
    return bool(starts.min() > place[ent.start_char] or ends.max() < place[ent.end_char])


def tag_classes(
    gold: Gold, tags: Sequence[str], scheme: str, beside: Container[str] = ()
) -> Ints1d:
    """Return the gold class of each unit, -1 if it is not annotated or no head has its label.
    Entities with a label that other heads have, `beside`, are outside for this one."""
    number = {tag: i for i, tag in enumerate(tags)}
    classes = np.where(gold.outside, number["O"], MISSING)
    for span in gold.entities:
        other = number["O"] if span.label in beside else MISSING
        of_each = [number.get(f"{mark}-{span.label}", other) for mark in _marks(span, scheme)]
        classes[span.rows] = of_each
    return classes


def _marks(span: GoldSpan, scheme: str) -> list[str]:
    n = len(span.rows)
    marks = ["U"] if n == 1 else ["B", *["I"] * (n - 2), "L"]
    return [SCHEMES[scheme][mark] for mark in marks]


def negations(
    gold: Gold, units: Units, tags: Sequence[str], scheme: str, weights: Sequence[float]
) -> list[Negation]:
    """Make a `Negation` of each span that is annotated as wrong, with the probability that `decode`
    would compute for it. `weights` are those of the tags."""
    tagged = np.flatnonzero(units.tagged)
    doc = np.repeat(np.arange(len(units.lengths)), units.lengths)
    number = {tag: i for i, tag in enumerate(tags)}
    has_ends = "L" in SCHEMES[scheme].values()
    found = []
    for span in gold.wrong:
        own = np.asarray([tag[2:] == span.label for tag in tags])
        if not own.any():
            continue  # a label that this head never predicts
        rows, classes = list(span.rows), [own] * len(span.rows)
        if scheme in STRICT_SCHEMES:
            path = [number[f"{mark}-{span.label}"] for mark in _marks(span, scheme)]
            classes = [np.arange(len(tags)) == tag for tag in path]
        after = np.searchsorted(tagged, rows[-1]) + 1
        if not has_ends and after < len(tagged) and doc[tagged[after]] == doc[rows[-1]]:
            rows.append(tagged[after])
            classes.append(np.arange(len(tags)) != number[f"I-{span.label}"])
        weight = weights[int(np.flatnonzero(own)[0])]
        found.append(Negation(np.asarray(rows), classes, weight))
    return found


class CountedWarning:
    """A warning about events that repeat: issued for the first, the tenth, the hundredth event and
    so on. `message` has a placeholder for their number, {n}."""

    def __init__(self, message: str) -> None:
        self.message = message
        self.count, self._next = 0, 1
        self._seen: set[Hashable] = set()

    def add(self, n: int) -> None:
        """Count `n` more events."""
        self.count += n
        if self.count >= self._next:
            while self.count >= self._next:
                self._next *= 10
            warnings.warn(self.message.format(n=self.count), stacklevel=3)

    def add_new(self, things: Sequence[Hashable]) -> None:
        """Count the events that were not counted before, such as in an earlier epoch."""
        new = set(things) - self._seen
        self._seen |= new
        self.add(len(new))


def make_warnings(name: str) -> tuple[CountedWarning, CountedWarning, CountedWarning]:
    """Make a component's warnings about gold entities whose borders were moved, gold entities that
    were left out, and predicted entities that were left out."""
    moved = CountedWarning(
        f"{name}: {{n}} gold entities begin or end with white space, or with tokens without a "
        "wordpiece. They are learned without those, and not at all if nothing else is left. "
        "Correct their borders in the data to avoid this warning."
    )
    inside = (
        'begin or end inside a token. To keep more of them, set alignment_mode to "contract" or '
        f'"expand" under [components.{name}], or let the tokenizer split there.'
    )
    dropped = CountedWarning(f"{name} does not learn {{n}} gold entities: they {inside}")
    lost = CountedWarning(f"{name} leaves out {{n}} predicted entities: they {inside}")
    return moved, dropped, lost
