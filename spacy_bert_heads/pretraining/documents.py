"""Choose the held-out documents of a corpus, and split documents into units."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..text.arrays import Bools1d
from .draws import Purpose, generator

if TYPE_CHECKING:
    from .store import Corpus

# The most sentences of a document that are planned together; it limits memory.
MAX_SENTENCES = 1 << 16


class Side(NamedTuple):
    """Hold the documents for training, or the held-out ones."""

    corpus: Corpus
    chosen: Bools1d  # (n_documents,) of the corpus


class Document(NamedTuple):
    """Hold a document split into units: its sentences, or parts of sentences that are too long."""

    number: int
    bounds: list[int]  # the first wordpiece of each unit, and the end of the last one


def hold_out(n_documents: int, share: float, *, seed: int, least: int = 1) -> Bools1d:
    """Choose the held-out documents, a boolean mask (num_documents,).

    Their number follows from `share`, but it is at least `least`, and at least `least` documents
    are left for training. With a share of 0, or if the corpus is too small for both, none is held
    out. The choice depends only on the seed and the number of documents, so no epoch and no process
    ever trains on held-out documents. Memory: at most nine bytes per document.
    """
    held_out = np.zeros(n_documents, dtype=np.bool_)
    if share > 0 and n_documents >= 2 * least:
        n = min(max(round(share * n_documents), least), n_documents - least)
        random = generator(seed, Purpose.HELD_OUT)
        held_out[random.choice(n_documents, n, replace=False, shuffle=False)] = True
    return held_out


def read_documents(corpus: Corpus, chosen: Bools1d, capacity: int) -> Iterator[Document]:
    """Yield the chosen documents, in units of at most `capacity` wordpieces.

    A document with more than `MAX_SENTENCES` sentences (a file without blank lines) is read as
    several documents of about equal size with the same number, so that memory doesn't grow with it.
    In return, the last example of each part can be shorter.
    """
    for number in map(int, np.flatnonzero(chosen)):
        first, behind = corpus.documents[number : number + 2].tolist()
        n_parts = max(-(-(behind - first) // MAX_SENTENCES), 1)
        edges = [first + (behind - first) * part // n_parts for part in range(n_parts + 1)]
        for begin, end in pairwise(edges):
            bounds = corpus.sentences[begin : end + 1].tolist()
            yield Document(number, _cut_units(corpus, bounds, capacity))


def _cut_units(corpus: Corpus, bounds: list[int], capacity: int) -> list[int]:
    """Split sentences that are too long, before a word if possible, so that the word can be masked
    as a whole."""
    cut = bounds[:1]
    for end in bounds[1:]:
        at = cut[-1]
        while end - at > capacity:
            starts = np.flatnonzero(corpus.words[at + 1 : at + capacity + 1])
            at += int(starts[-1]) + 1 if len(starts) else capacity
            cut.append(at)
        cut.append(end)
    return cut
