"""The update of a pipeline with a batch that is split between processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from spacy.language import Language
from spacy.training import Example
from spacy.training.loop import subdivide_batch
from thinc.api import Optimizer
from torch import nn

from ..encoder.accumulation import Items
from ..encoder.component import BertEncoder
from ..encoder.shim import TorchShim
from ..encoder.step import MeanLoss
from ..heads.head import BertHead
from ..runs.processes import Processes
from .batches import checksum


class OutOfMemory(MemoryError):
    """Another process of the run has no memory left for its part of the batch."""


class Updater:
    """Update a pipeline as spaCy's training loop does, with the same result for any number of
    processes.

    Every process has the whole batch and learns from every nth example. For each part of
    `accumulate_gradient`, before the backward pass through the encoder, the processes exchange the
    numbers of items that each head has learned from: the loss of one process would be the mean over
    all of them. After the last part the gradients are summed. If a GPU has not enough memory, this
    and all later batches are split into twice as many parts.

    Raises ValueError if a component can't be trained by several processes.
    """

    def __init__(
        self,
        nlp: Language,
        optimizer: Optimizer,
        processes: Processes,
        *,
        exclude: Sequence[str],
        annotates: Sequence[str],
        accumulate_gradient: int,
    ) -> None:
        self.nlp, self.optimizer, self.processes = nlp, optimizer, processes
        self.exclude, self.annotates = list(exclude), list(annotates)
        self.accumulate_gradient = accumulate_gradient
        self.pipes: dict[str, Any] = {
            name: pipe
            for name, pipe in nlp.pipeline
            if name not in exclude
            and getattr(pipe, "is_trainable", False)
            and getattr(pipe, "model", None) not in (True, False, None)
        }
        self.encoders = in_closing_order(self.pipes)
        self._waiting: list[BertEncoder] = []  # encoders that have not exchanged items of the part
        if processes.size > 1:
            self._check_pipes()
            for encoder in self.encoders:
                encoder.accumulation.gather = self._gather_for(encoder)
            for module in self._modules():
                processes.begin_alike(module)

    def _check_pipes(self) -> None:
        others = [
            name
            for name, pipe in self.pipes.items()
            if not isinstance(pipe, BertEncoder | BertHead)
        ]
        if others:
            raise ValueError(
                f"'{others[0]}' can't be trained by several processes: it does not report the "
                "number of items that its loss is a mean over, so parts of a batch can't be "
                "combined. Train with one process, or add it to [training] frozen_components."
            )
        layers = [
            (name, node.name)
            for name, pipe in self.pipes.items()
            for node in pipe.model.walk()
            if node.param_names
        ]
        if layers:
            raise ValueError(
                f"'{layers[0][0]}' can't be trained by several processes: its model has layers "
                f"that are not torch's ('{layers[0][1]}'), whose gradients are not combined. "
                "Train with one process, or put a BertListener into its model."
            )

    # --- an update

    def __call__(
        self, batch: list[Example], *, dropout: float, losses: dict[str, float]
    ) -> dict[str, float]:
        """Update the weights with a batch. Returns the losses, including those of this batch.

        Raises ValueError if a single example does not fit into memory, or if the processes of the
        run have read different batches.
        """
        is_alone = self.processes.size == 1
        if not is_alone:
            self._check_same(batch)
        while (learned := self._learn(batch, dropout, losses)) is None:
            self._forget_gradients()
            if self.accumulate_gradient >= len(batch):
                text = max((eg.reference.text for eg in batch), key=len)
                raise ValueError(
                    "There is not enough GPU memory to learn from a single example; the longest is "
                    f"{text[:60]!r} … of {len(text):,} characters. Lower max_windows of the heads, "
                    "max_batch_tokens of the encoder, or max_length of [corpora.train]."
                )
            self.accumulate_gradient *= 2
            warnings.warn(
                "A batch didn't fit into the GPU's memory. From now on batches are split into "
                f"{self.accumulate_gradient} parts; the update is the same except for rounding, "
                "and with several heads nearly the same. To start like that, set [training] "
                f"accumulate_gradient = {self.accumulate_gradient}.",
                stacklevel=2,
            )
        for pipe in self.pipes.values():
            if not is_alone:
                self._sum_gradients(pipe)
            pipe.finish_update(self.optimizer)
        return learned

    def _learn(
        self, batch: list[Example], dropout: float, losses: dict[str, float]
    ) -> dict[str, float] | None:
        """Accumulate the gradients of a batch. Returns the losses, or None if there is not enough
        memory."""
        losses = dict(losses)
        # With fewer examples than parts, spaCy would make a single part.
        for part in subdivide_batch(batch, min(self.accumulate_gradient, len(batch))):
            own = part[self.processes.rank :: self.processes.size]
            self._waiting = list(self.encoders)
            failed = False
            try:
                self._learn_part(own, dropout, losses)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
            if self._any_failed(failed):
                return None
        return losses

    def _learn_part(self, part: list[Example], dropout: float, losses: dict[str, float]) -> None:
        if part:
            self.nlp.update(
                part,
                drop=dropout,
                losses=losses,
                sgd=False,  # type: ignore[arg-type]
                exclude=self.exclude,
                annotates=self.annotates,
            )
        else:  # only other processes have examples
            for name, pipe in self.pipes.items():
                losses.setdefault(name, MeanLoss())
                if isinstance(pipe, BertEncoder):
                    pipe.update([], losses=losses)
        for encoder in self.encoders:
            encoder.close_step()

    def _forget_gradients(self) -> None:
        for pipe in self.pipes.values():
            if isinstance(pipe, BertEncoder):
                pipe.drop_step()
            for node in pipe.model.walk():
                for name in node.grad_names:
                    node.set_grad(name, 0 * node.get_grad(name))
        for module in self._modules():
            module.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _modules(self) -> Iterator[nn.Module]:
        for pipe in self.pipes.values():
            yield from modules_of(pipe)

    # --- communication between processes

    def _check_same(self, batch: list[Example]) -> None:
        number = checksum(batch)
        if self.processes.sum([number])[0] != number * self.processes.size:
            raise ValueError(
                "The processes of this run have read different batches. A reader or batcher must "
                "yield the same examples in every process: let it use Python's `random` or numpy's "
                "global generator, and read the same files."
            )

    def _gather_for(self, encoder: BertEncoder) -> Callable[[Items, bool], tuple[Items, bool]]:
        def gather(items: Items, is_first: bool) -> tuple[Items, bool]:
            return self._gather(encoder, items, is_first, failed=False)

        return gather

    def _gather(
        self, encoder: BertEncoder, items: Items, is_first: bool, *, failed: bool
    ) -> tuple[Items, bool]:
        """Sum the items of an encoder's listeners over all processes, some of which may have
        failed. Every process calls it once for each encoder and each part of a batch."""
        self._waiting.remove(encoder)
        ids = [listener.id for listener in encoder.listeners]
        own = [items.get(key) or 0.0 for key in ids]
        *totals, num_first, num_failed = self.processes.sum([*own, is_first, failed])
        if num_failed and not failed:
            raise OutOfMemory
        return dict(zip(ids, totals, strict=True)), num_first == self.processes.size

    def _any_failed(self, failed: bool) -> bool:
        """Return whether a process was out of memory for its part. Processes that have failed first
        take part in the exchanges that the others wait for."""
        if self.processes.size == 1:
            return failed
        for encoder in list(self._waiting):
            self._gather(encoder, {}, True, failed=True)
        return bool(self.processes.sum([failed])[0])

    def _sum_gradients(self, pipe: Any) -> None:
        # The encoder's gradients are weighted by the items of each head already.
        num_items = pipe.num_items if isinstance(pipe, BertHead) else None
        for module in modules_of(pipe):
            parameters = list(module.parameters())
            if num_items and all(one.grad is None for one in parameters):
                num_items = 0.0  # that number was of an earlier update
            self.processes.sum_gradients(parameters, num_items=num_items)


def in_closing_order(pipes: dict[str, Any]) -> list[BertEncoder]:
    """Return the encoders in the order in which their steps end: when the last head that reads them
    has answered. Processes without examples, or without memory, must keep to it."""
    last: dict[int, int] = {}
    for place, pipe in enumerate(pipes.values()):
        for listener in pipe._listeners() if isinstance(pipe, BertHead) else ():
            last[id(listener.upstream)] = place
    encoders = [pipe for pipe in pipes.values() if isinstance(pipe, BertEncoder)]
    return sorted(encoders, key=lambda encoder: last.get(id(encoder), len(pipes)))


def modules_of(pipe: Any) -> Iterator[nn.Module]:
    """Yield the torch modules of a component."""
    for node in pipe.model.walk():
        for shim in node.shims:
            if isinstance(shim, TorchShim) and shim.has_module:
                yield shim.module


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that a GPU is out of memory: torch's, cupy's, or another
    process's. It is recognized by its name, because torch has moved its class and cupy may not be
    installed."""
    return isinstance(error, OutOfMemory) or type(error).__name__ == "OutOfMemoryError"
