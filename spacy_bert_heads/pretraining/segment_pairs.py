"""Create pairs of segments for the objectives "nsp" (a true or a random next segment) and "sop"
(two consecutive segments, in order or swapped)."""

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
# Chooses a random segment from another document, by its random generator, the number of the current
# document, the wanted number of wordpieces, and whether it should have at least as many.
ChooseOther = Callable[[np.random.Generator, int, int, bool], Segment]


def pair_segments(
    document: Document,
    random: np.random.Generator,
    *,
    capacity: int,
    short_seq_prob: float,
    choose_other: ChooseOther | None,
) -> Iterator[tuple[list[Segment], int]]:
    """Yield two examples for each pair of consecutive segments of a document.

    The first is the pair itself (label 0). The second (label 1) is the first segment with one from
    `choose_other`, or without `choose_other` the swapped pair. A document of only one unit has no
    examples.

    Notes
    -----
    The segments are those of `create_instances_from_document` in google-research/bert, which draws
    one label per pair. With both labels in the same batch, features of the first segment alone (its
    style, its source) don't predict the label, so they cancel in the gradient; what remains is
    whether the two belong together. The target length is drawn per pair, not per document, so that
    not all examples of a long document are short. If only one unit is left, it is paired with the
    unit before it; BERT's code always pairs it with a random next segment.
    """
    bounds, i, last = document.bounds, 0, len(document.bounds) - 1
    while i < last and last > 1:
        # Usually the full length, because shorter sequences waste computation.
        target = capacity
        if random.random() < short_seq_prob:
            target = 2 + below(random, capacity - 1)
        first = min(i, last - 2)
        # At least two units, so that neither segment is empty.
        behind = min(max(bisect_left(bounds, bounds[first] + target), first + 2), last)
        # The split is random, so that its position doesn't reveal the label.
        split = first + 1 + below(random, behind - first - 1)
        a = (bounds[first], bounds[split] - bounds[first])
        b = (bounds[split], bounds[behind] - bounds[split])
        pair = _truncate(a, b, capacity, random)
        yield pair, 0
        if choose_other is None:
            yield pair[::-1], 1
        else:
            # As the true segment, it reaches the target, or is as long as what was left of the
            # document: its length should not reveal the label.
            is_reached = a[1] + b[1] >= target
            wanted = target - a[1] if is_reached else b[1]
            other = choose_other(random, document.number, wanted, is_reached)
            yield _truncate(a, other, capacity, random), 1
        i = behind


def other_document(corpus: Corpus, chosen: Bools1d, capacity: int) -> ChooseOther:
    """Return a function that chooses random segments from other documents.

    Each sentence of the `chosen` documents is equally likely to be the first of the segment, except
    the first sentence of a document with several: true pairs never have it as second segment, so
    both labels draw from the same text. Held-out documents are never used in training, not even as
    random segments. A segment has the number of sentences that is closest to the wanted length, or
    that reaches it; it has at most `capacity` wordpieces. Memory: 16 bytes per document.
    """
    numbers = np.flatnonzero(chosen)
    # Candidates for the first sentence, numbered over all chosen documents.
    ends = np.cumsum(np.maximum(np.diff(corpus.documents)[numbers] - 1, 1))

    def choose(random: np.random.Generator, own: int, wanted: int, at_least: bool) -> Segment:
        i = int(np.searchsorted(numbers, own))
        own_begin, own_end = int(ends[i - 1]) if i else 0, int(ends[i])
        drawn = below(random, int(ends[-1]) - (own_end - own_begin))
        if drawn >= own_begin:
            drawn += own_end - own_begin
        i = int(np.searchsorted(ends, drawn, side="right"))
        behind = int(corpus.documents[numbers[i] + 1])
        first = behind - (int(ends[i]) - drawn)
        bounds = corpus.sentences[first : behind + 1]
        lengths = bounds[1:] - bounds[0]
        if at_least:
            end = min(int(np.searchsorted(lengths, max(wanted, 1))), len(lengths) - 1)
        else:
            end = int(np.abs(lengths - wanted).argmin())
        return int(bounds[0]), min(int(lengths[end]), capacity)

    return choose


def _truncate(a: Segment, b: Segment, capacity: int, random: np.random.Generator) -> list[Segment]:
    """Remove wordpieces from the longer segment of a pair, one by one, until both fit: the rule of
    `truncate_seq_pair` in google-research/albert, without the loop.

    Each wordpiece is removed from a random end. If the start of a segment were always complete, it
    would reveal the label.
    """
    excess = max(a[1] + b[1] - capacity, 0)
    longer = min(excess, abs(a[1] - b[1]))  # until both are equal, then in turns
    off_a = (longer if a[1] > b[1] else 0) + (excess - longer) // 2
    pair = []
    for (first, length), off in ((a, off_a), (b, excess - off_a)):
        front = int(random.binomial(off, 0.5)) if off else 0
        pair.append((first + front, length - off))
    return pair
