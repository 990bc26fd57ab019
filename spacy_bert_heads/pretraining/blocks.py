"""The documents of a corpus, read in blocks of bounded size for the planning of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..text.arrays import Bools1d, Ints1d, Ints2d, ranges
from .draws import Choice, uniform

if TYPE_CHECKING:
    from .store import Corpus

# How much is planned at a time. Memory grows with it, not with the corpus.
BLOCK_SENTENCES = 1 << 16


@dataclass(frozen=True)
class Side:
    """Training or evaluation: the documents that are planned, and the keys of all choices."""

    seed: int
    epoch: int
    held_out: float
    evaluation: bool

    def has(self, documents: Ints1d) -> Bools1d:
        """Tell for each document number whether it is on this side. Only the seed and the number
        decide, so no epoch and no process ever trains on what is held out."""
        held_out = uniform(Choice.HELD_OUT, self.seed, documents) < self.held_out
        return held_out == self.evaluation


class Block(NamedTuple):
    """Some documents, cut into units: sentences, or parts of those that don't fit."""

    documents: Ints1d  # (n_documents,) their numbers
    # First wordpiece of each unit and, after the last unit of a document, the end of that unit.
    bounds: Ints1d
    ends: Ints1d  # (n_documents,) where in `bounds` each document ends


class Examples(NamedTuple):
    """The examples of a block."""

    segments: Ints2d  # (n_segments, 2) as in `Plan`
    sizes: Ints1d  # (n_examples,) number of segments of each
    labels: Ints1d  # (n_examples,)
    skipped: int = 0  # documents


def has_one_document(corpus: Corpus, side: Side) -> bool:
    """Tell whether exactly one document of a side has text. Stops at the second one."""
    found = 0
    for start in range(0, len(corpus.documents) - 1, BLOCK_SENTENCES):
        first = corpus.sentences[corpus.documents[start : start + BLOCK_SENTENCES + 1]]
        numbers = np.arange(start, start + len(first) - 1)
        found += int(np.count_nonzero((first[1:] > first[:-1]) & side.has(numbers)))
        if found > 1:
            return False
    return found == 1


def read_blocks(corpus: Corpus, side: Side, capacity: int) -> Iterator[Block]:
    """Yield the documents of a side in blocks, with units of at most `capacity` wordpieces.

    A document with more sentences than a block (a book, a file without blank lines) is read as
    several, because memory must not grow with it either. The price is that a pair or a packed
    sequence ends early, once per `BLOCK_SENTENCES` sentences.
    """
    for start in range(0, len(corpus.documents) - 1, BLOCK_SENTENCES):
        first = np.asarray(corpus.documents[start : start + BLOCK_SENTENCES + 1])
        numbers = np.arange(start, start + len(first) - 1)
        chosen = side.has(numbers)
        numbers, first, last = numbers[chosen], first[:-1][chosen], first[1:][chosen]
        # Parts of equal size, so that the last one is not too short for a pair.
        parts = np.maximum(-(-(last - first) // BLOCK_SENTENCES), 1)
        part, n_parts = ranges(np.zeros_like(parts), parts), np.repeat(parts, parts)
        numbers, sizes = np.repeat(numbers, parts), np.repeat(last - first, parts)
        begins = np.repeat(first, parts) + sizes * part // n_parts
        sizes = sizes * (part + 1) // n_parts - sizes * part // n_parts
        block = np.cumsum(sizes) // BLOCK_SENTENCES
        for some in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(block)) + 1):
            if len(some):
                units = _cut_units(corpus, begins[some], sizes[some], capacity)
                yield Block(numbers[some], *units)


def _cut_units(
    corpus: Corpus, begins: Ints1d, sizes: Ints1d, capacity: int
) -> tuple[Ints1d, Ints1d]:
    """Find the bounds and ends of a block, by the first sentence and the number of sentences of
    each document (n_documents,)."""
    bounds = np.asarray(corpus.sentences[ranges(begins, sizes + 1)], dtype=np.int64)
    document = np.repeat(np.arange(len(sizes)), sizes + 1)
    # Sentences without wordpieces are dropped.
    new = np.append(True, (np.diff(bounds) > 0) | (np.diff(document) > 0))
    bounds, document = bounds[new], document[new]
    too_long = (np.diff(bounds) > capacity) & (np.diff(document) == 0)
    places, cuts = [], []
    for i in np.flatnonzero(too_long).tolist():
        at, end = int(bounds[i]), int(bounds[i + 1])
        while end - at > capacity:
            # Before a word if possible, so that the word can be masked as a whole.
            starts = np.flatnonzero(corpus.words[at + 1 : at + capacity + 1])
            at += int(starts[-1]) + 1 if len(starts) else capacity
            places.append(i + 1)
            cuts.append(at)
    if places:
        bounds = np.insert(bounds, places, cuts)
        document = np.insert(document, places, document[places])
    return bounds, np.searchsorted(document, np.arange(len(sizes)), side="right") - 1
