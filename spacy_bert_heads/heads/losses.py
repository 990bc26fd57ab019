"""Losses that several heads share."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..text.arrays import Ints1d
from .outputs import TokenLogits


def cross_entropy(
    logits: torch.Tensor,
    classes: Ints1d,
    *,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Softmax cross-entropy in nats, averaged over the rows that are annotated.

    `logits` (n, n_classes); `classes` has the class of each row, -1 where it is not annotated (n,);
    `weights` one for each class, by which torch's weighted mean is taken. `label_smoothing` is
    torch's too. Without an annotated row of any weight the loss is 0.
    """
    gold = torch.from_numpy(classes).to(logits.device)
    known = gold >= 0
    weight = known if weights is None else known * weights[gold.clamp(min=0)]
    total = F.cross_entropy(
        logits, gold, weights, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    return total / weight.sum().clamp(min=torch.finfo(logits.dtype).tiny)


def token_loss(output: TokenLogits, classes: Sequence[int]) -> torch.Tensor:
    """Cross-entropy in nats, a mean over the tokens that have a class (not -1) and a wordpiece."""
    known = np.where(output.has_wordpiece, np.asarray(classes, dtype=np.int64), -1)
    return cross_entropy(output.logits, known)
