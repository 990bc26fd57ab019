"""Which wordpieces of a batch are predicted, and what the encoder reads in their place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..text.arrays import Bools1d, Ints1d, sums
from ..text.wordpieces import WordpieceTokenizer
from .draws import Choice, draw, uniform

# Seed, epoch and, for each wordpiece, its example and its number in that example: with these a
# wordpiece has the same fate in any batch.
Keys = tuple[int, int, Ints1d, Ints1d]


@dataclass(frozen=True)
class Masking:
    """The share of wordpieces that is predicted, and how they are replaced.

    rate: the share of an example's wordpieces that is predicted. mask, random: the shares of those
    that become the mask token and a random wordpiece; the others stay, because text without masks
    is what the encoder will read later (BERT, section 3.1). whole_words: predict all wordpieces of
    a word or none. max_ngram: up to so many words in a row, n with p(n) ~ 1/n (ALBERT, section
    4.1).
    """

    rate: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    whole_words: bool = True
    max_ngram: int = 1


@dataclass(frozen=True)
class Vocabulary:
    """What the examples need to know of a tokenizer."""

    tokenizer: WordpieceTokenizer
    mask_id: int
    size: int
    special: Ints1d  # ids that never replace a wordpiece

    @cached_property
    def ordinary(self) -> Ints1d:
        """The ids that may replace a wordpiece."""
        return np.setdiff1d(np.arange(self.size), self.special)


def choose(
    word_starts: Bools1d, segment: Ints1d, pieces: Ints1d, keys: Keys, masking: Masking
) -> Bools1d:
    """Choose the wordpieces to predict: words in random order, as many as the rate allows.

    `word_starts` (n_pieces,) marks the wordpieces that begin a word, `segment` (n_pieces,) numbers
    their segments, `pieces` (n_examples,) counts the wordpieces of each example. Returns the choice
    (n_pieces,).

    A word that would exceed the rate is skipped, so the rate may not be reached exactly; without
    whole words it is. The method is `create_masked_lm_predictions` in google-research/bert, and in
    google-research/albert for n-grams; there an n-gram that meets a chosen word is dropped, here
    it ends before it.
    """
    starts = np.flatnonzero(word_starts)
    seed, epoch, number, piece = keys
    keys = (seed, epoch, number[starts], piece[starts])
    sizes = np.diff(np.append(starts, len(word_starts)))
    words = sums(word_starts, pieces)
    example = np.repeat(np.arange(len(words)), words)
    # One sort for the whole batch: by example, then by 40 random bits.
    noise = (draw(Choice.WORDS, *keys) >> np.uint64(24)).astype(np.int64)
    order = np.argsort((example << 40) | noise, kind="stable")
    # Where the n-gram that begins at a word ends: never in another segment, which is other text.
    p = 1 / np.arange(1, masking.max_ngram + 1)
    n = np.searchsorted(np.cumsum(p[:-1]) / p.sum(), uniform(Choice.SPAN, *keys), side="right") + 1
    segment_end = np.searchsorted(segment[starts], segment[starts], side="right")
    ends = np.minimum(np.arange(len(starts)) + n, segment_end).tolist()
    budgets = np.maximum(np.rint(masking.rate * pieces), 1).astype(np.int64)

    # The only loop over words: whether a word still fits depends on all that were chosen before.
    chosen = np.zeros(len(starts), dtype=np.bool_)
    taken, size, ordered, position = chosen.tolist(), sizes.tolist(), order.tolist(), 0
    for n_words, room in zip(words.tolist(), budgets.tolist(), strict=True):
        for word in ordered[position : position + n_words]:
            end = ends[word]
            while word < end and not taken[word] and size[word] <= room:
                taken[word] = True
                room -= size[word]
                word += 1
            if not room:
                break
        position += n_words
    chosen[:] = taken
    return np.repeat(chosen, sizes)


def corrupt(targets: Ints1d, keys: Keys, vocabulary: Vocabulary, masking: Masking) -> Ints1d:
    """Return the ids that the encoder reads in place of the chosen wordpieces (n_masked,): the mask
    token, a random wordpiece, or the wordpiece itself."""
    fate = uniform(Choice.CORRUPT, *keys)
    ordinary = vocabulary.ordinary
    random = ordinary[(uniform(Choice.REPLACE, *keys) * len(ordinary)).astype(np.int64)]
    return np.where(
        fate < masking.mask,
        vocabulary.mask_id,
        np.where(fate < masking.mask + masking.random, random, targets),
    )
