"""Pairs of segments, for the objectives "nsp" (a true or a random next segment) and "sop" (two
consecutive segments, in order or swapped)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..text.arrays import Ints1d, Ints2d, ranges, sums
from .blocks import Block, Examples, Side
from .draws import Choice, draw, uniform

if TYPE_CHECKING:
    from .store import Corpus


def make_pairs(
    corpus: Corpus,
    blocks: Iterator[Block],
    side: Side,
    capacity: int,
    short_seq_prob: float,
    swap: bool,
) -> Iterator[Examples]:
    """Make pairs of consecutive segments. Half of them are altered: the segments are swapped if
    `swap`, otherwise the second one is replaced by a random segment.

    Notes
    -----
    Two things differ from BERT's code. The target length is drawn for each example, not for each
    document, so that not all examples of a long document are short. And where only one sentence is
    left, BERT always takes a random next segment, so in short documents far more than half of the
    pairs are random; here the true pair is then the sentence with the one before it.
    """
    for block in blocks:
        # Every example begins its search at another unit, so that unit's first wordpiece can be
        # the key of its choices.
        keys = (side.seed, side.epoch, block.bounds)
        # Mostly as much as fits, because a shorter sequence is wasted computation.
        short = uniform(Choice.SHORT, *keys) < short_seq_prob
        any_length = 2 + (uniform(Choice.TARGET, *keys) * (capacity - 1)).astype(np.int64)
        targets = np.where(short, any_length, capacity)
        altered = (draw(Choice.PAIR, *keys) & np.uint64(1)).astype(np.int64)
        random = np.zeros_like(altered) if swap else altered
        rows, skipped = _split_pairs(block, targets, random, uniform(Choice.SPLIT, *keys))

        unit, document, first, split, behind = np.array(rows, dtype=np.int64).reshape(-1, 5).T
        key, label = block.bounds[unit], altered[unit]
        begin, middle, end = block.bounds[first], block.bounds[split], block.bounds[behind]
        second = middle.copy()
        one = np.flatnonzero(random[unit])
        second[one], end[one] = _random_segments(
            corpus,
            side,
            key[one],
            block.documents[document[one]],
            wanted=(targets[unit] - (middle - begin))[one],
            capacity=capacity,
        )
        a, b = _truncate(begin, middle - begin, second, end - second, capacity, side, key)
        segments = np.stack((a, b), axis=1)
        if swap:
            segments[label == 1] = segments[label == 1, ::-1]
        yield Examples(segments.reshape(-1, 2), np.full(len(label), 2), label, skipped)


def _split_pairs(
    block: Block, targets: Ints1d, random: Ints1d, splits: NDArray[np.float64]
) -> tuple[list[int], int]:
    """Split the documents of a block into pairs.

    For an example that begins at a unit (n_bounds,): `targets` is the number of wordpieces to
    reach, `random` whether its second segment is a random one, `splits` in [0, 1) where its first
    segment ends. Returns five numbers of each example, in one flat list: the unit that its choices
    were drawn for, its document, where its first segment begins, where that ends, and where the
    second one ends unless it is a random one; and the number of documents too short for a pair.
    """
    bounds: list[int] = block.bounds.tolist()
    target, is_random, share = targets.tolist(), random.tolist(), splits.tolist()
    rows: list[int] = []
    skipped = i = 0
    for document, end in enumerate(block.ends.tolist()):
        if end - i < 2:
            skipped += 1
            i = end
        while i < end:
            if i + 1 == end:  # one sentence is left
                rows += (i, document, i, end, end) if is_random[i] else (i, document, i - 1, i, end)
                break
            # At least two, so that neither segment is empty.
            behind = max(bisect_left(bounds, bounds[i] + target[i], i + 1, end), i + 2)
            # Any sentence can be the last of the first segment, so that its place doesn't reveal
            # the label.
            split = i + 1 + int(share[i] * (behind - i - 1))
            rows += (i, document, i, split, behind)
            # The text that a random segment replaced is not lost: it begins the next example.
            i = split if is_random[i] else behind
        i = end + 1
    return rows, skipped


def _random_segments(
    corpus: Corpus, side: Side, key: Ints1d, own: Ints1d, *, wanted: Ints1d, capacity: int
) -> tuple[Ints1d, Ints1d]:
    """Choose random segments of other documents than `own` (n,), from a random sentence on. All
    documents of the side are equally likely. Training never sees what is held out, not even as a
    wrong answer.

    `wanted` is the number of wordpieces to reach (n,); a segment has at least one sentence, and at
    most `capacity` wordpieces. Returns the first wordpiece of each and the end of its last (n,).
    """
    first, last = np.empty_like(key), np.empty_like(key)
    left, attempt = np.arange(len(key)), 0
    while len(left):
        keys = (side.seed, side.epoch, attempt, key[left])
        n_documents = len(corpus.documents) - 1
        document = (uniform(Choice.DOCUMENT, *keys) * n_documents).astype(np.int64)
        begin, behind = corpus.documents[document], corpus.documents[document + 1]
        sentence = (uniform(Choice.SENTENCE, *keys) * (behind - begin)).astype(np.int64)
        first[left] = corpus.sentences[begin + sentence]
        last[left] = corpus.sentences[behind]
        found = (document != own[left]) & side.has(document) & (first[left] < last[left])
        left, attempt = left[~found], attempt + 1
    enough = np.searchsorted(corpus.sentences, first + np.maximum(wanted, 1))
    enough = np.minimum(enough, len(corpus.sentences) - 1)
    last = np.minimum(last, corpus.sentences[enough])
    return first, np.minimum(last, first + capacity)


def _truncate(
    a: Ints1d, n_a: Ints1d, b: Ints1d, n_b: Ints1d, capacity: int, side: Side, key: Ints1d
) -> tuple[Ints2d, Ints2d]:
    """Take wordpieces off the longer segment of each pair, one by one, until both fit: the rule of
    `truncate_seq_pair` in google-research/albert, without the loop.

    `a` and `b` are the first wordpieces of the two segments (n,), `n_a` and `n_b` their lengths
    (n,). Returns the first wordpiece and the length of what remains of a and of b, each (n, 2).
    """
    excess = np.maximum(n_a + n_b - capacity, 0)
    longer = np.minimum(excess, np.abs(n_a - n_b))  # until both are equal, then in turns
    off_a = np.where(n_a > n_b, longer, 0) + (excess - longer) // 2
    rest = []
    for which, first, length, off in ((0, a, n_a, off_a), (1, b, n_b, excess - off_a)):
        # From a random end each time: an encoder that only ever saw complete beginnings could tell
        # the label by them.
        piece = ranges(np.zeros_like(off), off)
        bits = draw(Choice.CUT, side.seed, side.epoch, which, np.repeat(key, off), piece)
        front = sums((bits & np.uint64(1)).astype(np.int64), off)
        rest.append(np.stack((first + front, length - off), axis=1))
    return rest[0], rest[1]
