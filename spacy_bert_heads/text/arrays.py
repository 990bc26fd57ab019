"""Index arithmetic for consecutive groups in an array."""

import numpy as np
from numpy.typing import NDArray

Ints1d = NDArray[np.int64]
Ints2d = NDArray[np.int64]
Bools1d = NDArray[np.bool_]


def ranges(starts: Ints1d, lengths: Ints1d) -> Ints1d:
    """Concatenate `arange(start, start + length)` for all starts and lengths, without a loop.

    ranges([5, 0], [3, 2]) -> [5, 6, 7, 0, 1]
    """
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum(), dtype=np.int64) + np.repeat(starts - before, lengths)


def select(groups: Ints1d, sizes: Ints1d) -> Ints1d:
    """Return the indices of the members of some groups; group i has sizes[i] members."""
    return ranges((np.cumsum(sizes) - sizes)[groups], sizes[groups])


def sums(values: Ints1d | Bools1d, sizes: Ints1d) -> Ints1d:
    """Return the sum of each group's values; group i has sizes[i] values."""
    total, ends = np.append(0, np.cumsum(values)), np.cumsum(sizes)
    return total[ends] - total[ends - sizes]
