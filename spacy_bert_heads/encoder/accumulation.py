"""Gradients of sub-batches that add up to the gradient of the whole batch.

spaCy splits a batch for `accumulate_gradient` and updates with one sub-batch after the other; only
then is the optimizer asked to step. A head's loss is the mean over the annotated items of a
sub-batch, so its gradients must not be added up: the mean over the batch is the mean of theirs,
weighted by items. How many items will come is not known, so it is a running mean: what has gathered
is multiplied by `old / (old + new)` before `new / (old + new)` of the next gradient is added.
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

    Its gradients are kept as one sum, so there is one factor for what has gathered: the mean of
    those that the listeners need. It is exact for one listener, and for several whose items are in
    proportion (two heads for the same tokens). For others (tokens beside texts) each listener's
    sub-batches count a little more or less than they should, but together as much: the next weight
    makes up for the factor. Exact gradients of each would need a backward pass for each.

    A listener without a number of items (None: spaCy's own components) has a loss that is a sum,
    and its gradients are added up.

    `gather` is set where several processes have a part of each batch. It takes this process's items
    by listener, and whether nothing has gathered here, and gives those of all processes.
    """

    def __init__(self) -> None:
        self.gather: Callable[[Items, bool], tuple[Items, bool]] | None = None
        self.clear()

    def clear(self) -> None:
        """Start anew, where no gradient has gathered."""
        self._items: dict[int, float] = {}  # by listener
        self._targets: dict[int, float] = {}  # what a listener's weights should add up to
        self._weights: dict[int, float] = {}  # what they do add up to

    def add(self, own: Items, *, is_first: bool) -> tuple[float, dict[int, float]]:
        """Add a sub-batch with a number of items for each listener that has answered; `is_first` if
        no gradient has gathered before. Returns the factor for the gradients so far, and the weight
        of each listener's new gradient: summed over processes, the gradients are those of one
        process with the whole batch."""
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
    """Whether some gradient has gathered since the last update of the weights."""
    return any(parameter.grad is not None for parameter in module.parameters())


def scale_gradients(model: Model, factor: float) -> None:
    """Multiply all gradients that have gathered in a model and the layers below it."""
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
