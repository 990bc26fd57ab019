"""Gradients of sub-batches that add up to the gradient of the whole batch.

spaCy splits a batch for `accumulate_gradient`, calls `update` with each sub-batch, and then updates
the weights once. A head's loss is a mean over the annotated items of a sub-batch, so its gradients
can't just be added: the gradient of the batch is their mean, weighted by the numbers of items.
Future numbers are not known, so it is a running mean: the accumulated gradient is multiplied by
`old / (old + new)`, then the next one is added with the weight `new / (old + new)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from thinc.api import Model
from torch import nn

Items = dict[int, float | None]  # by listener


class Accumulation:
    """The running mean of an encoder's gradients, which come from several listeners.

    The encoder accumulates one sum for all listeners, so there is one factor for it: the mean of
    the factors that the listeners need. That is exact for one listener, and for several whose
    numbers of items are proportional (two heads for the same tokens). For others (tokens and whole
    texts) single sub-batches of a listener count slightly more or less than they should, but their
    total weight is right: the weight of the next gradient compensates for the factor. Exact
    gradients would need a backward pass for each listener.

    A listener without a number of items (None: spaCy's own components) has a loss that is a sum;
    its gradients are just added.

    `gather` is set if several processes have a part of each batch. It takes the items of this
    process by listener, and whether it has no gradients yet, and returns the same for all
    processes together.
    """

    def __init__(self) -> None:
        self.gather: Callable[[Items, bool], tuple[Items, bool]] | None = None
        self.clear()

    def clear(self) -> None:
        """Start again, without accumulated gradients."""
        self._items: dict[int, float] = {}  # by listener
        self._targets: dict[int, float] = {}  # what the weights of a listener should sum to
        self._weights: dict[int, float] = {}  # what they sum to

    def add(self, own: Items, *, is_first: bool) -> tuple[float, dict[int, float]]:
        """Add a sub-batch with the number of items of each listener that has answered. `is_first`
        says that there is no accumulated gradient.

        Returns the factor for the accumulated gradients, and the weight of each listener's new
        gradient. With these, the sum over processes is the gradient of one process with the whole
        batch.
        """
        items = own
        if self.gather is not None:
            items, is_first = self.gather(own, is_first)
        if is_first:
            self.clear()
        factors = [
            1.0 if self._items[key] == 0 else self._items[key] / (self._items[key] + new)
            for key, new in ((key, items.get(key) or 0.0) for key in self._weights)
        ]
        factor = sum(factors) / len(factors) if factors else 1.0
        for key in self._weights:
            self._weights[key] *= factor
        weights = {}
        for key, new in items.items():
            if new == 0:  # nothing was annotated after all, so the gradient is zero
                weights[key] = 1.0
                continue
            self._items[key] = self._items.get(key, 0.0) + (new or 0.0)
            self._targets[key] = 1.0 if new else self._targets.get(key, 0.0) + 1.0
            weights[key] = max(self._targets[key] - self._weights.get(key, 0.0), 0.0)
            self._weights[key] = self._weights.get(key, 0.0) + weights[key]
        shares = {key: (own.get(key) or 0.0) / total for key, total in items.items() if total}
        return factor, {key: weight * shares.get(key, 1.0) for key, weight in weights.items()}


def has_gradients(module: nn.Module) -> bool:
    """Return whether there are gradients since the last update of the weights."""
    return any(parameter.grad is not None for parameter in module.parameters())


def scale_gradients(model: Model, factor: float) -> None:
    """Multiply all accumulated gradients of a model and the layers below it by a factor."""
    gradients = list(_torch_gradients(model))
    if gradients:
        torch._foreach_mul_(gradients, factor)
    for node in model.walk():
        for name in node.grad_names:
            node.set_grad(name, node.get_grad(name) * factor)


def _torch_gradients(model: Model) -> Iterator[torch.Tensor]:
    for node in model.walk():
        for shim in node.shims:
            module: Any = shim._model
            if isinstance(module, nn.Module):
                yield from (p.grad for p in module.parameters() if p.grad is not None)
