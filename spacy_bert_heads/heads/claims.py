"""The claims of heads about annotated texts: the events whose probabilities are calibrated, and
when each of them is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from spacy.training import Example

from ..text.doc_data import ent_scores_of
from .answers import accepted, compare_answers, kind_of
from .pair_head import match_predictions
from .tallies import judge_entities
from .verdicts import NONE, with_none

OPTION = "option"  # the label of all choices: the first option has nothing of its own


class Claim(NamedTuple):
    """A prediction of a head with its probability, and whether it is right."""

    label: str
    probability: float  # of the prediction, by the head
    is_right: bool
    # The probability of the truth, by the head. For one of several labels that is the probability
    # of the gold label; for an entity, answer or single category it is p if right, 1 − p if wrong.
    truth: float

    @staticmethod
    def of(label: str, probability: float, is_right: bool) -> Claim:
        """Make a claim that is either right or wrong."""
        truth = probability if is_right else 1 - probability
        return Claim(label, probability, is_right, truth)

    @staticmethod
    def among(probabilities: Mapping[str, float], true: str, guess: str) -> Claim:
        """Make the claim that one of several labels is the gold one. If the head does not have the
        gold label, its `truth` is the probability that the claim is wrong."""
        p = probabilities[guess]
        return Claim(guess, p, guess == true, probabilities.get(true, 1 - p))


def claim_entities(example: Example, component: str) -> Iterator[Claim]:
    """Yield a claim for each entity of a component: that it has these tokens and this label."""
    scores = ent_scores_of(example.predicted, component)
    for ent, is_right in judge_entities(example):
        score = scores.get((ent.start_char, ent.end_char, ent.label_))
        if score is not None:
            yield Claim.of(ent.label_, score, is_right)


def claim_tags(
    example: Example, gold: Sequence[str], probabilities: np.ndarray, labels: Sequence[str]
) -> Iterator[Claim]:
    """Yield a claim for the tag of each token that is also one annotated token of the reference.

    `gold` has the tags of the reference, "" if not annotated. `probabilities` are those of the
    predicted Doc's tokens (num_tokens, num_labels), NaN for tokens without a wordpiece.
    """
    to_gold = example.alignment.x2y
    for token, row in zip(example.predicted, probabilities, strict=True):
        if token.is_space or to_gold.lengths[token.i] != 1 or np.isnan(row[0]):
            continue
        true = gold[int(to_gold[token.i][0])]
        if true:
            by_label = dict(zip(labels, row.tolist(), strict=True))
            yield Claim.among(by_label, true, labels[int(row.argmax())])


def claim_category(example: Example, labels: Sequence[str], true: str) -> Claim:
    """Make the claim of the most probable one of exclusive categories."""
    found = {label: example.predicted.cats[label] for label in labels}
    return Claim.among(found, true, max(found, key=found.__getitem__))


def claim_categories(example: Example, labels: Sequence[str], threshold: float) -> Iterator[Claim]:
    """Yield a claim for each annotated category: that it holds if its probability reaches the
    threshold, otherwise that it does not ("not …")."""
    for label in labels:
        if label not in example.reference.cats:
            continue
        p, holds = example.predicted.cats[label], example.reference.cats[label] >= 0.5
        if p >= threshold:
            yield Claim.of(label, p, holds)
        else:
            yield Claim.of(f"not {label}", 1 - p, not holds)


def claim_verdicts(
    example: Example, labels: Sequence[str], names: tuple[str, str]
) -> Iterator[Claim]:
    """Yield a claim for the label of each annotated verdict. `names` are those of input and output
    in `doc._`."""
    for gold, found in match_predictions(example, *names):
        if found is not None:
            true, scores = gold["label"], with_none(found["scores"])
            yield Claim.among(scores, true if true in scores else NONE, found["label"])


def claim_options(example: Example, names: tuple[str, str]) -> Iterator[Claim]:
    """Yield a claim for the chosen option of each annotated choice."""
    for gold, found in match_predictions(example, *names):
        if found is not None:
            scores = {str(i): p for i, p in enumerate(found["scores"])}
            claim = Claim.among(scores, str(gold["answer"]), str(found["answer"]))
            yield claim._replace(label=OPTION)


def claim_answers(example: Example, names: tuple[str, str]) -> Iterator[Claim]:
    """Yield a claim for each answer, or "no answer": that it is exactly correct, as in
    `qa_exact`."""
    for gold, found in match_predictions(example, *names):
        if found is not None:
            exact, _ = compare_answers(found["text"], accepted(gold), example.reference.lang_)
            yield Claim.of(kind_of(found), found["score"], bool(exact))
