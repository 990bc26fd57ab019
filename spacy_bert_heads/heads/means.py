"""Losses that are means, and over how many items."""

from __future__ import annotations

import torch


def mean_over(total: torch.Tensor, num_items: torch.Tensor | float) -> torch.Tensor:
    """Divide a sum of losses by the number of its items, or by their weight; 0 for no items.

    The loss says what it was divided by (`num_items_of`). The sub-batches of `accumulate_gradient`
    are weighted by that, so that their gradient is the one of the whole batch.
    """
    number = float(num_items)
    loss = total / (number or 1.0)
    loss.num_items = number  # type: ignore[attr-defined]
    return loss


def num_items_of(loss: torch.Tensor, *, default: float) -> float:
    """Give the number of items of a loss that `mean_over` has given, else the default."""
    return getattr(loss, "num_items", default)
