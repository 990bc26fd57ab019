"""Counts of single Docs, from which the scores of any sample of Docs can be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spacy.tokens import Span, Token
from spacy.training import Example

# By label: named numbers that can be summed over Docs.
Tally = dict[str, dict[str, float]]
# By name: sums of tallies over each of several samples of Docs (..., num_labels). "occurs" says
# which labels the whole data set has (num_labels,).
Counts = dict[str, NDArray[np.float64]]
Floats = NDArray[np.float64]


def count_decisions(decisions: Iterable[tuple[str, str]]) -> Tally:
    """Count true positives, false positives and false negatives ("tp", "fp", "fn") by label, from
    pairs of a gold and a predicted label; "" means none."""
    tally: Tally = {}

    def count(label: str, kind: str) -> None:
        if label:
            tally.setdefault(label, {"tp": 0, "fp": 0, "fn": 0})[kind] += 1

    for true, guess in decisions:
        if true == guess:
            count(true, "tp")
        else:
            count(true, "fn")
            count(guess, "fp")
    return tally


def ratio(part: Floats, whole: Floats) -> Floats:
    """Divide elementwise; NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def precision_recall_f(tp: Floats, fp: Floats, fn: Floats) -> tuple[Floats, Floats, Floats]:
    """Compute precision, recall and F as spaCy's PRFScore does: 0 without true positives; NaN where
    nothing was counted."""
    nothing = tp + fp + fn == 0
    scores = (ratio(tp, tp + fp), ratio(tp, tp + fn), ratio(2 * tp, 2 * tp + fp + fn))
    p, r, f = (np.where(nothing, np.nan, np.nan_to_num(score)) for score in scores)
    return p, r, f


def micro(counts: Counts) -> tuple[Floats, Floats, Floats]:
    """Compute precision, recall and F over all labels together."""
    return precision_recall_f(*(counts[kind].sum(axis=-1) for kind in ("tp", "fp", "fn")))


def match_entities(example: Example) -> Iterator[tuple[str, str]]:
    """Yield the entities of an example as `spacy.scorer.get_ner_prf` compares them: pairs of a gold
    and a predicted label, "" for none. Predictions on tokens without annotation are not counted."""
    reference = example.reference
    if not reference.has_annotation("ENT_IOB"):
        return
    missed = {(ent.label_, ent.start, ent.end) for ent in reference.ents}
    for ent, place in place_entities(example):
        yield ent.label_ if place in missed else "", ent.label_
        missed.discard(place)
    for label, _, _ in missed:
        yield label, ""


def judge_entities(example: Example) -> Iterator[tuple[Span, bool]]:
    """Yield each predicted entity and whether it is right, as `match_entities` does."""
    reference = example.reference
    if not reference.has_annotation("ENT_IOB"):
        return
    gold = {(ent.label_, ent.start, ent.end) for ent in reference.ents}
    for ent, place in place_entities(example):
        yield ent, place in gold
        gold.discard(place)


def place_entities(example: Example) -> Iterator[tuple[Span, tuple[str, int, int]]]:
    """Yield the predicted entities whose tokens are all annotated, with label, start and end in the
    reference."""
    reference = example.reference
    for ent in example.predicted.ents:
        tokens = example.alignment.x2y[ent.start : ent.end]
        if not len(tokens):
            continue
        start, end = int(tokens[0]), int(tokens[-1]) + 1
        if not any(token.ent_iob == 0 for token in reference[start:end]):
            yield ent, (ent.label_, start, end)


def match_tags(example: Example, get: Callable[[Token], Any]) -> Iterator[tuple[str, str]]:
    """Yield the tags of an example as `Scorer.score_token_attr` compares them: pairs of a gold and
    a predicted tag, "" for none. `get` returns a token's tag, "" if it is not annotated."""
    gold = {token.i: tag for token in example.reference if (tag := get(token))}
    found: dict[int, set[str]] = {}
    to_gold = example.alignment.x2y
    for token in example.predicted:
        if not token.is_space and to_gold.lengths[token.i] == 1:
            found.setdefault(int(to_gold[token.i][0]), set()).add(get(token) or "no tag")
    for i, true in gold.items():
        guesses = found.get(i, set())
        for guess in guesses:
            yield true if guess == true else "", guess
        if true not in guesses:
            yield true, ""
