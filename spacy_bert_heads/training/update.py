"""One update of a pipeline by a batch, of which each process has a part."""

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
    """Update a pipeline as spaCy's training loop does, on all processes of a run as on one.

    Every process has the whole batch and takes every nth example of it. For each part of
    `accumulate_gradient` the processes tell each other how many items each head has learned from,
    before the backward pass through the encoder: a mean over the items of all of them is what one
    process would have computed. After the last part the gradients are summed. A batch that a GPU
    has no memory for is cut into twice as many parts, as are those after it.

    Raises ValueError if several processes can't train the pipeline as one would.
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
        self.encoders = [pipe for pipe in self.pipes.values() if isinstance(pipe, BertEncoder)]
        self._waiting: list[BertEncoder] = []  # that have not gathered the items of the part
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
                f"'{others[0]}' can't be trained by several processes: it doesn't say over how "
                "many items its loss is a mean, so the parts of a batch can't be put together. "
                "Train with one process, or put it into [training] frozen_components."
            )

    # --- an update

    def __call__(
        self, batch: list[Example], *, dropout: float, losses: dict[str, float]
    ) -> dict[str, float]:
        """Update the weights by a batch. Returns the losses, with those of this batch in them.

        Raises ValueError if a single example of the batch doesn't fit into memory, or the processes
        of the run have read different batches.
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
                "A batch didn't fit into the GPU's memory. It is read in "
                f"{self.accumulate_gradient} parts from now on, which is the same update but for "
                "rounding, and with several heads nearly so. To begin like that: [training] "
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
        """Gather the gradients of a batch. Returns the losses; None if there is not enough memory."""
        losses = dict(losses)
        # spaCy makes one part of a batch that has fewer examples than parts.
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
        else:  # the other processes have some
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

    # --- what the processes tell each other

    def _check_same(self, batch: list[Example]) -> None:
        number = checksum(batch)
        if self.processes.sum([number])[0] != number * self.processes.size:
            raise ValueError(
                "The processes of this run have read different batches. A reader or batcher must "
                "give the same examples in every process: let it take its random numbers from "
                "Python's `random` or numpy's global generator, and read the same files."
            )

    def _gather_for(self, encoder: BertEncoder) -> Callable[[Items, bool], tuple[Items, bool]]:
        def gather(items: Items, is_first: bool) -> tuple[Items, bool]:
            return self._gather(encoder, items, is_first, failed=False)

        return gather

    def _gather(
        self, encoder: BertEncoder, items: Items, is_first: bool, *, failed: bool
    ) -> tuple[Items, bool]:
        """Sum the items of an encoder's listeners over all processes, one of which may have failed.
        Every process calls this once for each encoder and each part of a batch."""
        self._waiting.remove(encoder)
        ids = [listener.id for listener in encoder.listeners]
        own = [items.get(key) or 0.0 for key in ids]
        *totals, num_first, num_failed = self.processes.sum([*own, is_first, failed])
        if num_failed and not failed:
            raise OutOfMemory
        return dict(zip(ids, totals, strict=True)), num_first == self.processes.size

    def _any_failed(self, failed: bool) -> bool:
        """Whether a process has no memory left for its part. Those that have failed make up for
        what the others wait for."""
        if self.processes.size == 1:
            return failed
        for encoder in list(self._waiting):
            self._gather(encoder, {}, True, failed=True)
        return bool(self.processes.sum([failed])[0])

    def _sum_gradients(self, pipe: Any) -> None:
        # The encoder's are weighted already, by the items of each head.
        num_items = pipe.num_items if isinstance(pipe, BertHead) else None
        for module in modules_of(pipe):
            parameters = list(module.parameters())
            if num_items and all(one.grad is None for one in parameters):
                num_items = 0.0  # of an update before
            self.processes.sum_gradients(parameters, num_items=num_items)


def modules_of(pipe: Any) -> Iterator[nn.Module]:
    """Return the torch modules of a component."""
    for node in pipe.model.walk():
        for shim in node.shims:
            if isinstance(shim, TorchShim) and shim.has_module:
                yield shim.module


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a GPU has no memory left: torch's, cupy's, or another process's.
    By the name, as torch's has moved and cupy may be missing."""
    return isinstance(error, OutOfMemory) or type(error).__name__ == "OutOfMemoryError"
