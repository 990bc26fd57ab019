"""Choose the wordpieces to predict in an example, and replace them in the encoder's input."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from ..text.arrays import Bools1d, Ints1d
from ..text.wordpieces import WordpieceTokenizer


@dataclass(frozen=True)
class Masking:
    """Hold how wordpieces are chosen and replaced.

    rate: the share of an example's wordpieces to predict. mask, random: the shares of these that
    are replaced with the mask token and with a random wordpiece; the rest is unchanged, because
    later the encoder reads text without masks (BERT, section 3.1). units: what is masked as a
    whole: "wordpieces", "words", or "spans" (the entities and noun chunks that a pipeline finds,
    and the words outside of them; ERNIE, Sun et al. 2019, section 3.2). max_ngram: the most
    consecutive units that are masked together; n has the probability p(n) ~ 1/n (ALBERT, section
    4.1).
    """

    rate: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    units: str = "words"
    max_ngram: int = 1


@dataclass(frozen=True)
class Vocabulary:
    """Hold what the examples need from a tokenizer."""

    tokenizer: WordpieceTokenizer
    mask_id: int
    size: int
    special: Ints1d  # ids that are never predicted, and never replace a wordpiece

    @cached_property
    def is_ordinary(self) -> Bools1d:
        """Return which ids may be predicted, a boolean array (size,)."""
        return np.isin(np.arange(self.size), self.special, invert=True)

    @cached_property
    def ordinary(self) -> Ints1d:
        """Return the ids that may replace a wordpiece."""
        return np.flatnonzero(self.is_ordinary)


def choose(
    starts: Bools1d, maskable: Bools1d, masking: Masking, random: np.random.Generator
) -> Ints1d:
    """Choose the positions to predict (n_masked,): units in random order, up to the masking rate.

    `starts` (n_positions,) marks the first position of each unit, `maskable` (n_positions,) the
    positions that may be predicted; all others (special tokens) end units and n-grams. The rate is
    a share of the maskable positions, at least one of them.

    Units are lined up in random order, and those that begin in a random stretch of the line are
    chosen. So each has the same probability, the rate. The last one may exceed the rate, and an
    example of long units may have none.
    `create_masked_lm_predictions` in google-research/bert skips a unit that would exceed it, so in
    a short example long words are hardly ever predicted. n-grams are those of
    google-research/albert; there one that overlaps a chosen unit is dropped, here it ends before
    the unit.
    """
    starts = starts | ~maskable
    starts[1:] |= ~maskable[:-1]
    begins = np.flatnonzero(starts)
    sizes = np.add.reduceat(maskable, begins, dtype=np.int64).tolist()
    begin = begins.tolist()
    room = round(masking.rate * sum(sizes)) or 1
    shares = list(accumulate(1 / n for n in range(1, masking.max_ngram + 1)))
    order = random.permutation(len(sizes)).tolist()
    # The stretch begins at this wordpiece of the line, which goes on from its end to its beginning.
    at, first = int(random.random() * sum(sizes)), 0
    while at > 0:
        at -= sizes[order[first]]
        first += 1
    room += at  # without the rest of the unit in which the stretch begins
    chosen: list[int] = []
    for unit in order[first:] + order[:first]:
        n = 1 if len(shares) == 1 else 1 + bisect_right(shares, random.random() * shares[-1])
        for place in range(unit, min(unit + n, len(sizes))):
            if not sizes[place] or room <= 0:
                break
            room -= sizes[place]
            chosen += range(begin[place], begin[place] + sizes[place])
            sizes[place] = 0  # not to be chosen again
        if room <= 0:
            break
    return np.array(sorted(chosen), dtype=np.int64)


def corrupt(
    targets: Ints1d, vocabulary: Vocabulary, masking: Masking, random: np.random.Generator
) -> Ints1d:
    """Return the ids that replace the chosen wordpieces in the input (n_masked,): the mask token, a
    random wordpiece, or the wordpiece itself."""
    fate, place = random.random((2, len(targets)))
    ordinary = vocabulary.ordinary
    others = ordinary[(place * len(ordinary)).astype(np.int64)]
    kept = np.where(fate < masking.mask + masking.random, others, targets)
    return np.where(fate < masking.mask, vocabulary.mask_id, kept)
