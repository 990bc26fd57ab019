"""Losses that several heads share. They are means, and know over how many items."""

import torch
import torch.nn.functional as F

from ..text.arrays import Ints1d


def cross_entropy(
    logits: torch.Tensor, classes: Ints1d, *, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax cross-entropy in nats, averaged over the rows that are annotated.

    `logits` (n, n_classes); `classes` has the class of each row, -1 where it is not annotated (n,);
    `weights` one for each class, by which torch's weighted mean is taken. Without an annotated row
    of any weight the loss is 0.
    """
    gold = torch.from_numpy(classes).to(logits.device)
    known = gold >= 0
    weight = known if weights is None else known * weights[gold.clamp(min=0)]
    losses = F.cross_entropy(logits, gold, ignore_index=-1, reduction="none")
    return mean_over((losses * weight).sum(), weight.sum())


def mean_over(total: torch.Tensor, num_items: torch.Tensor | float) -> torch.Tensor:
    """Divide a sum of losses by the number of its items, or by their weight; 0 for no items.

    The loss knows what it was divided by (`num_items_of`). The sub-batches of `accumulate_gradient`
    are weighted by that, so that their gradient is the one of the whole batch.
    """
    number = float(num_items)
    loss = total / (number or 1.0)
    loss.num_items = number  # type: ignore[attr-defined]
    return loss


def num_items_of(loss: torch.Tensor, *, default: float) -> float:
    """Give the number of items of a loss that `mean_over` has given, else the default."""
    return getattr(loss, "num_items", default)
