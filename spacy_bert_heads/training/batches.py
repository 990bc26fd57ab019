"""The batches of a training run, in a reproducible order that can be resumed."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.training import Example

RandomState = tuple[Any, ...]  # of Python's and of numpy's global generator


class Batches:
    """The batches of spaCy's training loop (`create_train_batches`), in the same order.

    They have their own random state, a copy of the global one at construction, so that the order
    does not depend on the updates and is the same in every process. To resume a run, `place`
    returns the position in the order, and `go_to` restores it by making the batches of that epoch
    again.

    `fingerprint` is a checksum of the texts; 0 for a corpus that is streamed in each epoch
    (`max_epochs` -1).
    """

    def __init__(
        self,
        nlp: Language,
        corpus: Callable[[Language], Iterable[Example]],
        batcher: Callable[[Iterable[Example]], Iterable[list[Example]]],
        max_epochs: int,
    ) -> None:
        self.nlp, self.corpus, self.batcher, self.max_epochs = nlp, corpus, batcher, max_epochs
        self._random = _random_state()
        self.epoch = self.num_read = 0  # batches of the epoch
        self.examples: list[Example] = []
        if max_epochs >= 0:
            with self._own_random():
                self.examples = list(corpus(nlp))
            if not self.examples:
                raise ValueError(
                    "The training corpus has no examples. Check the path of [corpora.train], and "
                    "that its documents are annotated for the pipeline: `bert debug-data CONFIG`."
                )
        self.fingerprint = checksum(self.examples)
        self.order = list(range(len(self.examples)))
        self._epoch_begin = self._random, list(self.order)
        self._skip = 0

    def __iter__(self) -> Iterator[tuple[int, list[Example]]]:
        """Yield each batch with the number of its epoch."""
        while self.max_epochs < 1 or self.epoch != self.max_epochs:
            self._epoch_begin = self._random, list(self.order)
            batches = self._epoch()
            while True:
                with self._own_random():
                    batch = next(batches, None)
                if batch is None:
                    break
                self.num_read += 1
                if self.num_read > self._skip:
                    yield self.epoch, batch
            self.epoch, self.num_read, self._skip = self.epoch + 1, 0, 0

    def _epoch(self) -> Iterator[list[Example]]:
        if self.max_epochs >= 0:
            random.shuffle(self.order)
            examples: Iterable[Example] = [self.examples[i] for i in self.order]
        else:
            examples = self.corpus(self.nlp)
        for batch in self.batcher(examples):
            yield list(batch)

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        others = _random_state()
        _set_random_state(self._random)
        try:
            yield
        finally:
            self._random = _random_state()
            _set_random_state(others)

    # --- resuming

    def place(self) -> dict[str, Any]:
        """Return the argument of `go_to`, made of numbers, strings, lists and dicts."""
        (python, numpy), order = self._epoch_begin
        return {
            "epoch": self.epoch,
            "num_read": self.num_read,
            "python": [python[0], list(python[1]), python[2]],
            "numpy": [numpy[0], numpy[1].tolist(), *numpy[2:]],
            "order": order,
            "fingerprint": self.fingerprint,
        }

    def go_to(self, place: dict[str, Any]) -> None:
        """Continue after the last batch before `place` was called. Raises ValueError if the texts
        have changed."""
        if place["fingerprint"] != self.fingerprint:
            raise ValueError(
                "The training texts have changed since the run began. Restore them to resume, or "
                "start a new run in another folder."
            )
        version, numbers, gauss = place["python"]
        name, keys, *rest = place["numpy"]
        numpy = (name, np.asarray(keys, dtype=np.uint32), *rest)
        self._random = (version, tuple(numbers), gauss), numpy
        self.epoch, self.num_read, self._skip = place["epoch"], 0, place["num_read"]
        self.order = list(place["order"])


def checksum(examples: Iterable[Example]) -> int:
    """Return a checksum of the examples' texts."""
    total = 0
    for example in examples:
        total = zlib.crc32(example.reference.text.encode("utf8"), total)
    return total


def _random_state() -> RandomState:
    return random.getstate(), np.random.get_state()


def _set_random_state(state: RandomState) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
