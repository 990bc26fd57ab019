"""A threshold for each label, chosen by what it gives on annotated data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..heads.claims import Claim
from .collect import Collected

GOALS = ("precision", "recall", "f")
MIN_CLAIMS = 20  # below which a threshold says little of other data


class Threshold(NamedTuple):
    """A threshold of a label, and what it gives."""

    label: str
    threshold: float
    reached: bool  # whether it gives what was wanted
    claims: int  # of the label, with any probability
    kept: int  # from the threshold on
    precision: float | None  # of those that are kept
    recall: float | None
    f: float | None
    without: float | None  # the precision of all


def tune(found: Collected, goal: str, value: float) -> list[Threshold]:
    """Choose a threshold for each label of a head: for a `goal` of "precision" the one that keeps
    most and gives the `value` at least; for "recall" the one that leaves out most and gives it; for
    "f" the one with the best F score, whatever the value. The head stays as it is."""
    head = found.head
    with head.without_thresholds():
        claims, truths = found.claims(), found.truths()
    by_label: dict[str, list[Claim]] = {}
    for claim in claims:
        by_label.setdefault(claim.label, []).append(claim)
    # Claims such as that a category does not hold are of no label.
    labels = [label for label in sorted(by_label) if label in truths or label in head.labels]
    return [choose(label, by_label[label], truths[label], goal, value) for label in labels]


def choose(
    label: str, claims: Sequence[Claim], num_true: float, goal: str, value: float
) -> Threshold:
    """Choose the threshold of a label. `num_true` is how often it is annotated."""
    order = sorted(claims, key=lambda claim: -claim.probability)
    p = np.asarray([claim.probability for claim in order])
    right = np.cumsum([claim.is_right for claim in order])
    kept = np.arange(1, len(p) + 1)
    # Claims of equal probability are kept together.
    ends = np.flatnonzero(np.append(p[1:] < p[:-1], True))
    right, kept = right[ends], kept[ends]
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
