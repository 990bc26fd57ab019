"""Counts of single Docs, from which the scores of any sample of them can be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spacy.tokens import Span, Token
from spacy.training import Example

# By label, named numbers that add up over Docs.
Tally = dict[str, dict[str, float]]
# Of several samples of Docs, by name (..., n_labels).
Counts = dict[str, NDArray[np.float64]]
Floats = NDArray[np.float64]


def count_decisions(decisions: Iterable[tuple[str, str]]) -> Tally:
    """Count true positives, false positives and false negatives ("tp", "fp", "fn") by label, from
    pairs of a true and a predicted label; "" is none."""
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
    """Divide, with NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def precision_recall_f(tp: Floats, fp: Floats, fn: Floats) -> tuple[Floats, Floats, Floats]:
    """Compute the three as spaCy's PRFScore: 0 without true positives; NaN where nothing was
    counted."""
    nothing = tp + fp + fn == 0
    scores = (ratio(tp, tp + fp), ratio(tp, tp + fn), ratio(2 * tp, 2 * tp + fp + fn))
    p, r, f = (np.where(nothing, np.nan, np.nan_to_num(score)) for score in scores)
    return p, r, f


def micro(counts: Counts) -> tuple[Floats, Floats, Floats]:
    """Compute precision, recall and F over all labels together."""
    return precision_recall_f(*(counts[kind].sum(axis=-1) for kind in ("tp", "fp", "fn")))


def match_entities(example: Example) -> Iterator[tuple[str, str]]:
    """Yield the entities of an example as `spacy.scorer.get_ner_prf` compares them: pairs of a
    true and a predicted label, "" where there is none. What is predicted where nothing is annotated
    is neither right nor wrong."""
    reference = example.reference
    if not reference.has_annotation("ENT_IOB"):
        return
    missed = {(ent.label_, ent.start, ent.end) for ent in reference.ents}
    for ent, place in _place_entities(example):
        yield ent.label_ if place in missed else "", ent.label_
        missed.discard(place)
    for label, _, _ in missed:
        yield label, ""


def judge_entities(example: Example) -> Iterator[tuple[Span, bool]]:
    """Yield each predicted entity, and whether it is right, as `match_entities` compares them."""
    reference = example.reference
    if not reference.has_annotation("ENT_IOB"):
        return
    gold = {(ent.label_, ent.start, ent.end) for ent in reference.ents}
    for ent, place in _place_entities(example):
        yield ent, place in gold
        gold.discard(place)


def _place_entities(example: Example) -> Iterator[tuple[Span, tuple[str, int, int]]]:
    """Yield the predicted entities where all tokens are annotated, each with its label and tokens
    in the reference."""
    reference = example.reference
    for ent in example.predicted.ents:
        tokens = example.alignment.x2y[ent.start : ent.end]
        if not len(tokens):
            continue
        start, end = int(tokens[0]), int(tokens[-1]) + 1
        if not any(token.ent_iob == 0 for token in reference[start:end]):
            yield ent, (ent.label_, start, end)


def match_tags(example: Example, get: Callable[[Token], Any]) -> Iterator[tuple[str, str]]:
    """Yield the tags of an example as `Scorer.score_token_attr` compares them: pairs of a true and
    a predicted tag, "" where there is none. `get` gives a token's tag, "" where it is not
    annotated."""
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
