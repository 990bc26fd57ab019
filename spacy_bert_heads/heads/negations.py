"""The loss of predictions that are annotated as wrong: −log(1 − p)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..text.arrays import Bools1d, Ints1d
from .losses import mean_over


class Negation(NamedTuple):
    """A wrong prediction. Its probability p is a product over some rows of the logits: that the
    class of each row is one of `classes`."""

    rows: Ints1d  # (num_rows,)
    classes: list[Bools1d]  # (num_classes,) for each row
    weight: float = 1.0


def negation_losses(logits: torch.Tensor, negations: Sequence[Negation]) -> torch.Tensor:
    """Compute −log(1 − p) of each negation (num_negations,), in nats.

    With p = p_1 ⋯ p_n, 1 − p is the sum of the terms p_1 ⋯ p_(i-1) (1 − p_i), which are computed as
    logarithms. So the loss and its gradient are exact even if p rounds to 1 in float32.
    """
    lengths = np.asarray([len(one.rows) for one in negations], dtype=np.int64)
    number, place = np.nonzero(np.arange(lengths.max(initial=0)) < lengths[:, None])
    rows = torch.from_numpy(np.concatenate([one.rows for one in negations])).to(logits.device)
    chosen = np.stack([classes for one in negations for classes in one.classes])
    mask = torch.from_numpy(chosen).to(logits.device)
    log_p = logits.index_select(0, rows).log_softmax(-1)
    yes = log_p.masked_fill(~mask, -torch.inf).logsumexp(1)
    no = log_p.masked_fill(mask, -torch.inf).logsumexp(1)
    at = tuple(torch.from_numpy(index).to(logits.device) for index in (number, place))
    shape = len(negations), int(lengths.max())
    before = logits.new_zeros(shape).index_put(at, yes)
    fails = logits.new_full(shape, -torch.inf).index_put(at, no)
    return -(before.cumsum(1) - before + fails).logsumexp(1)


def tag_loss(
    logits: torch.Tensor,
    classes: Ints1d,
    *,
    weights: torch.Tensor,
    label_smoothing: float = 0.0,
    negations: Sequence[Negation] = (),
) -> torch.Tensor:
    """Compute the cross-entropy in nats of annotated rows, and −log(1 − p) of negations: a weighted
    mean over both.

    `logits` are (n, num_classes); `classes` has -1 for rows that are not annotated. `weights` of
    classes and `label_smoothing` are applied as in torch's cross_entropy. The loss is 0 if nothing
    has a weight above 0.
    """
    gold = torch.from_numpy(classes).to(logits.device)
    total = F.cross_entropy(
        logits,
        gold,
        weight=weights,
        ignore_index=-1,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    weight = (weights[gold.clamp(min=0)] * (gold >= 0)).sum()
    if negations:
        of_each = logits.new_tensor([one.weight for one in negations])
        total = total + (negation_losses(logits, negations) * of_each).sum()
        weight = weight + of_each.sum()
    return mean_over(total, weight)


def check_label_smoothing(value: float) -> float:
    """Return the value. Raises ValueError if it is not from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"label_smoothing is {value}; it must be from 0, for none, to 1.")
    return value
