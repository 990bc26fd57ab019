"""A training step: forward passes with a graph, the heads that it waits for, one backward pass."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from spacy.tokens import Doc
from thinc.api import Optimizer

from ..text.batch import join
from .accumulation import Accumulation, has_gradients, scale_gradients
from .hidden_states import HiddenStates
from .latest import content_of, take_docs
from .model import (
    DocSample,
    EncoderModel,
    PackedPairs,
    max_windows_of,
    may_lack_windows,
    shim_of,
)
from .optimization import AdamSettings


class MeanLoss(float):
    """A running mean that spaCy's training loop and loggers use like a float.

    Other components sum up their losses between two reports of spaCy, so that they depend on the
    number of updates; this shows the mean per update. Adding to it yields a plain float.
    """

    count: int

    def __new__(cls, mean: float = 0.0, count: int = 0) -> "MeanLoss":
        self = super().__new__(cls, mean)
        self.count = count
        return self

    def __reduce__(self) -> tuple:
        return MeanLoss, (float(self), self.count)


def add_loss(losses: dict[str, float], name: str, loss: float) -> None:
    """Add the loss of an update to a component's mean over updates. If the caller has put a plain
    number there, add to that number instead."""
    before = losses.setdefault(name, MeanLoss())
    if isinstance(before, MeanLoss):
        count = before.count + 1
        losses[name] = MeanLoss(before + (loss - before) / count, count)
    else:
        losses[name] = before + loss


class TrainingStep:
    """A training step, for the thread that opened it and the Docs of its batch.

    `waits_for` are the ids of the listeners that are expected to answer, which means to send a
    gradient or to skip. If spaCy requests the update before any answer, `finish` has the optimizer
    and its settings at that time.
    """

    def __init__(
        self, encoder_name: str, docs: list[Doc], losses: dict[str, float], waits_for: Iterable[int]
    ) -> None:
        self.encoder_name = encoder_name
        self.docs = {id(doc): doc for doc in docs}
        self.losses = losses
        self.waits_for = set(waits_for)
        self.has_answers = False
        self.is_closed = False
        self.reads: list[Read] = []
        # The number of items that the loss of each listener is a mean over; None if it is a sum.
        self.items: dict[int, float | None] = {}
        self.finish: tuple[Optimizer, AdamSettings | None] | None = None

    def has(self, docs: Sequence[Doc]) -> bool:
        """Return whether all Docs belong to this step."""
        return all(id(doc) in self.docs for doc in docs)

    def answer(self, listener_id: int) -> bool:
        """Mark a listener as answered. Returns whether all have answered."""
        self.has_answers = True
        self.waits_for.discard(listener_id)
        return not self.waits_for

    def check_open(self, component: str) -> None:
        """Raise ValueError if the step has ended, so that a component's gradient would be lost."""
        if self.is_closed:
            raise ValueError(
                f"{component} read {len(self.docs)} Docs in a training step of "
                f"'{self.encoder_name}' that has ended since, so its gradient can't reach the "
                "encoder any more. A step ends with the next update of the encoder, with "
                "finish_update, with use_params and when the pipeline is saved: call the backprop "
                "callback of begin_update before any of these."
            )

    def read(
        self, docs: Sequence[Doc], model: EncoderModel, listener_id: int = 0
    ) -> tuple[HiddenStates, Callable[[torch.Tensor], None]]:
        """Encode Docs with a graph. Docs that a listener has read with their present tokens are not
        encoded again, so heads that learn from different Docs of a batch share those that they have
        in common. A Doc is read twice only if one head needs a sample of its windows and a later
        one all of them.

        Returns the hidden states, and a callback for their gradient (num_positions, num_layers *
        hidden_size).
        """
        limit = max_windows_of(docs)
        missing = [doc for doc in docs if not any(read.has(doc, limit) for read in self.reads)]
        if missing:
            self.reads.append(Read(DocSample(missing, limit), model))
        by_read: dict[int, list[int]] = {}
        for place, doc in enumerate(docs):
            number = next(i for i, read in enumerate(self.reads) if read.has(doc, limit))
            by_read.setdefault(number, []).append(place)
        parts = [
            self.reads[i].take([docs[k] for k in places], listener_id)
            for i, places in by_read.items()
        ]
        if len(parts) == 1:
            return parts[0]

        states = torch.cat([hidden.states for hidden, _ in parts])
        batch = join([hidden.batch for hidden, _ in parts])
        # From the order of reads to the order of `docs`.
        order = np.argsort(np.concatenate(list(by_read.values())))
        joined, positions = take_docs(replace(parts[0][0], states=states, batch=batch), order)

        def answer(gradient: torch.Tensor) -> None:
            if positions is not None:
                gradient = torch.empty_like(gradient).index_copy_(0, positions, gradient)
            sizes = [len(hidden.states) for hidden, _ in parts]
            for (_, answer_part), part in zip(parts, gradient.split(sizes), strict=True):
                answer_part(part)

        return joined, answer

    def read_pairs(
        self, pairs: PackedPairs, model: EncoderModel, listener_id: int = 0
    ) -> tuple[HiddenStates, Callable[[torch.Tensor], None]]:
        """Encode pairs with a graph, without sharing: no two heads read the same pairs. Returns as
        `read` does."""
        read = Read(pairs, model)
        self.reads.append(read)
        return read.hidden, lambda gradient: read.add(gradient, None, listener_id)

    def drop(self) -> None:
        """End the step and discard its gradients, as after an error."""
        self.is_closed = True
        self.reads.clear()

    def close(self, model: EncoderModel, accumulation: Accumulation) -> None:
        """Run the backward pass with the sum of all gradients, weighted against those of earlier
        sub-batches since the last update, and add its norm to the losses."""
        self.is_closed = True
        is_first = not has_gradients(shim_of(model).module)
        factor, weights = accumulation.add(self.items, is_first=is_first)
        if factor != 1.0:
            scale_gradients(model, factor)
        while self.reads:
            read = self.reads.pop()
            if read.gradients:
                read.backprop(read.sum(weights))
                add_loss(self.losses, self.encoder_name, float(read.sum().norm()))


class Read:
    """One forward pass with a graph, and the gradients of listeners for it."""

    def __init__(self, inputs: list[Doc] | PackedPairs, model: EncoderModel) -> None:
        docs = [] if isinstance(inputs, PackedPairs) else inputs
        self.places = {id(doc): (i, content_of(doc)) for i, doc in enumerate(docs)}
        self.max_windows = max_windows_of(docs)
        self.hidden: HiddenStates
        self.backprop: Callable[[Any], Any]
        self.hidden, self.backprop = model.begin_update(inputs)
        self.may_lack = may_lack_windows(docs, self.hidden.batch)
        self.gradients: dict[int, torch.Tensor] = {}  # by listener

    def has(self, doc: Doc, max_windows: int | None) -> bool:
        """Return whether this pass has the Doc with its present tokens, and all of its windows or a
        sample for the same `max_windows`."""
        place = self.places.get(id(doc))
        return (
            place is not None
            and place[1] == content_of(doc)
            and (max_windows == self.max_windows or not self.may_lack[place[0]])
        )

    def take(
        self, docs: Sequence[Doc], listener_id: int
    ) -> tuple[HiddenStates, Callable[[torch.Tensor], None]]:
        """Return the hidden states of some of the Docs, and a callback for their gradient."""
        places = np.asarray([self.places[id(doc)][0] for doc in docs], dtype=np.int64)
        hidden, positions = take_docs(self.hidden, places)
        return hidden, lambda gradient: self.add(gradient, positions, listener_id)

    def add(self, gradient: torch.Tensor, positions: torch.Tensor | None, listener_id: int) -> None:
        """Add a listener's gradient (num_positions, num_layers * hidden_size) for some `positions`,
        None for all."""
        if positions is not None:
            whole = torch.zeros_like(self.hidden.states)
            gradient = whole.index_add_(0, positions, gradient)
        before = self.gradients.get(listener_id)
        self.gradients[listener_id] = gradient if before is None else before + gradient

    def sum(self, weights: Mapping[int, float] = MappingProxyType({})) -> torch.Tensor:
        """Return the sum of the gradients, each multiplied by the weight of its listener, 1 by
        default."""
        parts = [(one, weights.get(key, 1.0)) for key, one in self.gradients.items()]
        return reduce(add, (one if weight == 1.0 else one * weight for one, weight in parts))
