"""Choose a threshold for each label on annotated data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..heads.claims import Claim
from .collect import Collected

GOALS = ("precision", "recall", "f")
MIN_CLAIMS = 20  # with fewer claims, a threshold is unreliable on other data


class Threshold(NamedTuple):
    """Hold the threshold of a label, and its scores."""

    label: str
    threshold: float
    reached: bool  # whether the goal is reached
    claims: int  # of the label, with any probability
    kept: int  # claims at or above the threshold
    precision: float | None  # of the kept claims
    recall: float | None
    f: float | None
    without: float | None  # the precision without a threshold


def tune(found: Collected, goal: str, value: float) -> list[Threshold]:
    """Choose a threshold for each label of a head; the head is not changed.

    For the goal "precision" it is the lowest threshold that reaches `value`, for "recall" the
    highest, for "f" the one with the best F score, regardless of `value`.
    """
    head = found.head
    with head.without_thresholds():
        claims, truths = found.claims(), found.truths()
    by_label: dict[str, list[Claim]] = {}
    for claim in claims:
        by_label.setdefault(claim.label, []).append(claim)
    # Claims such as "the category doesn't apply" belong to no label.
    labels = sorted({*head.threshold_labels, *(by_label.keys() & truths.keys())})
    return [choose(label, by_label.get(label, ()), truths[label], goal, value) for label in labels]


def choose(
    label: str, claims: Sequence[Claim], num_true: float, goal: str, value: float
) -> Threshold:
    """Choose the threshold of a label. `num_true` is the number of its gold annotations. Without
    claims there is nothing to choose from: the threshold is 0."""
    if not claims:
        reached = goal != "recall" or not num_true
        return Threshold(label, 0.0, reached, 0, 0, None, 0.0 if num_true else None, None, None)
    order = sorted(claims, key=lambda claim: -claim.probability)
    p = np.asarray([claim.probability for claim in order])
    right = np.cumsum([claim.is_right for claim in order])
    kept = np.arange(1, len(p) + 1)
    # Claims of equal probability are kept together.
    ends = np.flatnonzero(np.append(p[1:] < p[:-1], True))
    right, kept = right[ends], kept[ends]
    num_true = max(num_true, int(right[-1]))  # a right answer of another kind than the gold one
    precision, recall = right / kept, right / max(num_true, 1)
    f = 2 * right / (kept + num_true)
    if goal == "precision":
        good = np.flatnonzero(precision >= value)
        best = int(good[-1]) if len(good) else -1
    elif goal == "recall":
        good = np.flatnonzero(recall >= value)
        best = int(good[0]) if len(good) else len(ends) - 1
    else:
        good, best = ends, len(f) - 1 - int(f[::-1].argmax())
    without = float(precision[-1])
    if best < 0:
        return Threshold(label, 1.0, False, len(p), 0, None, 0.0, None, without)
    at = ends[best]
    threshold = 0.0 if at == len(p) - 1 else float(p[at] + p[at + 1]) / 2
    return Threshold(
        label,
        threshold,
        bool(len(good)),
        len(p),
        int(kept[best]),
        float(precision[best]),
        float(recall[best]) if num_true else None,
        float(f[best]),
        without,
    )
