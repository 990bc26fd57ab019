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
    """Yield two examples for each pair of consecutive segments of a document: the pair itself
    (label 0), and its first segment with one that `choose_other` gives, or the two swapped if there
    is no `choose_other` (label 1). A document of only one unit has none.

    Notes
    -----
    The segments are those of `create_instances_from_document` in google-research/bert, which draws
    one label for each pair. With both labels in the same batch, nothing about the first segment
    alone (its style, its source) predicts the label, so it cancels in the gradient; what remains is
    whether the two belong together. The target length is drawn for each pair, not for each
    document, so that not all examples of a long document are short. Where only one unit is left, it
    is paired with the one before it; BERT's code always gives it a random next segment.
    """
    bounds, i, last = document.bounds, 0, len(document.bounds) - 1
    while i < last and last > 1:
        # Mostly as much as fits, because a shorter sequence is wasted computation.
        target = capacity
        if random.random() < short_seq_prob:
            target = 2 + below(random, capacity - 1)
        first = min(i, last - 2)
        # At least two units, so that neither segment is empty.
        behind = min(max(bisect_left(bounds, bounds[first] + target), first + 2), last)
        # Any unit can be the last of the first segment, so that its place doesn't reveal the label.
        split = first + 1 + below(random, behind - first - 1)
        a = (bounds[first], bounds[split] - bounds[first])
        b = (bounds[split], bounds[behind] - bounds[split])
        pair = _truncate(a, b, capacity, random)
        yield pair, 0
        if choose_other is None:
            yield pair[::-1], 1
        else:
            other = choose_other(random, document.number, target - a[1])
            yield _truncate(a, other, capacity, random), 1
        i = behind


def other_document(corpus: Corpus, chosen: Bools1d, capacity: int) -> ChooseOther:
    """Return what chooses segments of other documents. Each sentence of the `chosen` documents is
    equally likely to be the first one, except the first of a document that has others, because true
    pairs don't have it as second segment either: both labels draw from the same text.

    Training never sees what is held out, not even as a wrong answer. A segment has at least one
    sentence and at most `capacity` wordpieces. The price is 16 bytes for each document.
    """
    numbers = np.flatnonzero(chosen)
    # Sentences that can be the first one, numbered over all chosen documents.
    ends = np.cumsum(np.maximum(np.diff(corpus.documents)[numbers] - 1, 1))

    def choose(random: np.random.Generator, own: int, wanted: int) -> Segment:
        i = int(np.searchsorted(numbers, own))
        own_begin, own_end = int(ends[i - 1]) if i else 0, int(ends[i])
        drawn = below(random, int(ends[-1]) - (own_end - own_begin))
        if drawn >= own_begin:
            drawn += own_end - own_begin
        i = int(np.searchsorted(ends, drawn, side="right"))
        behind = int(corpus.documents[numbers[i] + 1])
        first = behind - (int(ends[i]) - drawn)
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
