"""The documents of a corpus: which are held out, and the units of each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..text.arrays import Bools1d
from .draws import Purpose, generator

if TYPE_CHECKING:
    from .store import Corpus

# How much of a document is planned at a time. Memory grows with it, not with the document.
MAX_SENTENCES = 1 << 16


class Side(NamedTuple):
    """The documents to train on, or those that are held out."""

    corpus: Corpus
    chosen: Bools1d  # (n_documents,) of the corpus


class Document(NamedTuple):
    """A document, cut into units: its sentences, or parts of those that don't fit."""

    number: int
    bounds: list[int]  # the first wordpiece of each unit, and the end of the last one


def hold_out(n_documents: int, share: float, *, seed: int, least: int = 1) -> Bools1d:
    """Choose the documents that are held out (n_documents,), as many as the share says, but at
    least `least`, and no more than leave as many to train on. A share of 0 holds out none, and so
    does a corpus too small for both.

    Only the seed and the number of documents decide, so no epoch and no process ever trains on what
    is held out. The price is at most nine bytes for each document.
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
    several of about equal size with the same number, because memory must not grow with it. The
    price is that an example ends early where a part does.
    """
    for number in map(int, np.flatnonzero(chosen)):
        first, behind = corpus.documents[number : number + 2].tolist()
        n_parts = max(-(-(behind - first) // MAX_SENTENCES), 1)
        edges = [first + (behind - first) * part // n_parts for part in range(n_parts + 1)]
        for begin, end in pairwise(edges):
            bounds = corpus.sentences[begin : end + 1].tolist()
            yield Document(number, _cut_units(corpus, bounds, capacity))


def _cut_units(corpus: Corpus, bounds: list[int], capacity: int) -> list[int]:
    """Cut sentences that don't fit, before a word if possible, so that the word can be masked as a
    whole."""
    cut = bounds[:1]
    for end in bounds[1:]:
        at = cut[-1]
        while end - at > capacity:
            starts = np.flatnonzero(corpus.words[at + 1 : at + capacity + 1])
            at += int(starts[-1]) + 1 if len(starts) else capacity
            cut.append(at)
        cut.append(end)
    return cut
