"""Pairs of segments, for the objectives "nsp" (a true or a random next segment) and "sop" (two
consecutive segments, in order or swapped)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..text.arrays import Bools1d
from .documents import Document
from .draws import below

if TYPE_CHECKING:
    from .store import Corpus

Segment = tuple[int, int]  # the first wordpiece in the corpus, and the number of wordpieces
# Chooses a random segment of another document than the one with this number, of so many wordpieces.
ChooseOther = Callable[[np.random.Generator, int, int], Segment]


def pair_segments(
    document: Document,
    random: np.random.Generator,
    *,
    capacity: int,
    short_seq_prob: float,
    choose_other: ChooseOther | None,
) -> Iterator[tuple[list[Segment], int]]:
    """Yield the pairs of a document, each with its label, none if it has only one unit. Half of the
    pairs are altered (label 1): the second segment is one that `choose_other` gives, or the two
    are swapped if there is no `choose_other`.

    Notes
    -----
    The method is `create_instances_from_document` in google-research/bert. Two things differ. The
    target length is drawn for each example, not for each document, so that not all examples of a
    long document are short. And where only one sentence is left, BERT always takes a random next
    segment, so in short documents far more than half of the pairs are random; here the true pair is
    then the sentence with the one before it.
    """
    bounds, i, last = document.bounds, 0, len(document.bounds) - 1
    while i < last and last > 1:
        # Mostly as much as fits, because a shorter sequence is wasted computation.
        target = capacity
        if random.random() < short_seq_prob:
            target = 2 + below(random, capacity - 1)
        altered = below(random, 2)
        replaced = altered and choose_other is not None
        first = i - 1 if i + 1 == last and not replaced else i
        # At least two units, so that neither segment is empty.
        behind = min(max(bisect_left(bounds, bounds[first] + target), first + 2), last)
        # Any unit can be the last of the first segment, so that its place doesn't reveal the label.
        split = first + 1 + below(random, max(behind - first - 1, 1))
        a = (bounds[first], bounds[split] - bounds[first])
        if replaced and choose_other:
            b = choose_other(random, document.number, target - a[1])
            i = split  # the text that was replaced is not lost: it begins the next example
        else:
            b = (bounds[split], bounds[behind] - bounds[split])
            i = behind
        pair = _truncate(a, b, capacity, random)
        yield (pair[::-1] if altered and not replaced else pair), altered


def other_document(corpus: Corpus, chosen: Bools1d, capacity: int) -> ChooseOther:
    """Return what chooses segments of other documents. Each of the `chosen` documents is equally
    likely, whatever its length, and so is each sentence of it to be the first one.

    Training never sees what is held out, not even as a wrong answer. A segment has at least one
    sentence and at most `capacity` wordpieces.
    """
    numbers = np.flatnonzero(chosen)

    def choose(random: np.random.Generator, own: int, wanted: int) -> Segment:
        other = own
        while other == own:
            other = int(numbers[below(random, len(numbers))])
        first, behind = corpus.documents[other : other + 2].tolist()
        first += below(random, behind - first)
        bounds = corpus.sentences[first : behind + 1]
        end = min(int(np.searchsorted(bounds, bounds[0] + max(wanted, 1))), behind - first)
        return int(bounds[0]), min(int(bounds[end] - bounds[0]), capacity)

    return choose


def _truncate(a: Segment, b: Segment, capacity: int, random: np.random.Generator) -> list[Segment]:
    """Take wordpieces off the longer segment of a pair, one by one, until both fit: the rule of
    `truncate_seq_pair` in google-research/albert, without the loop.

    Each is taken from a random end: an encoder that only ever saw complete beginnings could tell
    the label by them.
    """
    excess = max(a[1] + b[1] - capacity, 0)
    longer = min(excess, abs(a[1] - b[1]))  # until both are equal, then in turns
    off_a = (longer if a[1] > b[1] else 0) + (excess - longer) // 2
    pair = []
    for (first, length), off in ((a, off_a), (b, excess - off_a)):
        front = int(random.binomial(off, 0.5)) if off else 0
        pair.append((first + front, length - off))
    return pair
