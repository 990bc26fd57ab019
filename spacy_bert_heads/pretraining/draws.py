"""Random numbers by key: each one is a hash of what it decides (the seed, the epoch, the place in
the corpus), not the next number of a generator. So it doesn't matter in which order, batch or
process an example is made, and a resumed run has no generator state to restore.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..text.arrays import Ints1d


class Choice(IntEnum):
    """What a random number decides, so that no two choices share their numbers."""

    HELD_OUT, SHORT, TARGET, SPLIT, PAIR, DOCUMENT, SENTENCE, CUT = range(8)
    WORDS, SPAN, CORRUPT, REPLACE, ORDER = range(8, 13)


def draw(choice: Choice, *keys: int | Ints1d) -> NDArray[np.uint64]:
    """Draw 64 random bits for each row of keys; the same keys always give the same bits.

    Keys are integers and arrays, which are broadcast. The mixing is that of SplitMix64 (Steele et
    al. 2014, "Fast splittable pseudorandom number generators"), once for each key.
    """
    state = np.zeros(1, dtype=np.uint64)
    for key in (int(choice), *keys):
        state = _mix(state, key)
    return state


def _mix(state: NDArray[np.uint64], key: int | Ints1d) -> NDArray[np.uint64]:
    state = state + np.asarray(key).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniform(choice: Choice, *keys: int | Ints1d) -> NDArray[np.float64]:
    """Draw like `draw`, but numbers in [0, 1)."""
    return (draw(choice, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(numbers: Ints1d, n: int, *, seed: int, epoch: int) -> Ints1d:
    """Return the elements at the positions `numbers` (each below n) of a shuffled `range(n)`.

    The shuffled range is never in memory, so a resumed run finds its place in an epoch in O(1).
    Each epoch has its own order. A Feistel network permutes the numbers below a power of four;
    results that are not below n are permuted again until they are (cycle walking; Black & Rogaway
    2002, "Ciphers with arbitrary finite domains").
    """
    half = max((n - 1).bit_length() + 1, 2) // 2
    low = (1 << half) - 1
    # Four rounds make a pseudo-random permutation (Luby & Rackoff 1988), but only for halves with
    # many bits, so there are eight. The part of their keys that all numbers share is drawn once.
    rounds = draw(Choice.ORDER, seed, epoch, np.arange(8))

    def permute(values: Ints1d) -> Ints1d:
        left, right = values >> half, values & low
        for state in rounds[:, None]:
            noise = _mix(state, right).astype(np.int64)
            left, right = right, left ^ (noise & low)
        return left << half | right

    result = permute(np.asarray(numbers, dtype=np.int64))
    while len(beyond := np.flatnonzero(result >= n)):
        result[beyond] = permute(result[beyond])
    return result
