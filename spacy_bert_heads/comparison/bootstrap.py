"""How certain a difference between two pipelines is: the paired bootstrap, and McNemar's test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..text.arrays import Ints2d

Floats1d = NDArray[np.float64]
Floats2d = NDArray[np.float64]
LEVEL = 0.95
N_RESAMPLES = 2000
# From weights of Docs (n_resamples, n_docs) to scores (..., n_resamples), by name.
Scorer = Callable[[Ints2d], dict[Any, Any]]
CHUNK = 2**22  # weights of documents that are in memory at once, 32 MB


class Difference(NamedTuple):
    """The scores of two contestants, and their difference (second minus first) with its interval
    of 95 %."""

    first: float
    second: float
    difference: float
    low: float
    high: float


def paired_bootstrap(
    counts_a: ArrayLike,
    counts_b: ArrayLike,
    metric: Callable[[Any], Any],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Give the difference between two contestants on the same documents, with its percentile
    interval (Efron & Tibshirani 1993, section 13.3).

    Counts are those of each document (n_docs, n_counts), such as its true positives, false
    positives and false negatives; of several seeds (n_seeds, n_docs, n_counts). `metric` takes
    sums of them (..., n_counts) and gives a score for each (...), NaN where it is undefined. Both
    contestants get the same documents in each resample, and seeds of their own, see
    `mean_over_seeds`. Raises ValueError if the documents are not as many on both sides.
    """
    sides = [np.asarray(counts, dtype=np.float64) for counts in (counts_a, counts_b)]
    sides = [side[None] if side.ndim == 2 else side for side in sides]
    n_docs = sides[0].shape[1]
    if sides[1].shape[1] != n_docs:
        raise ValueError(
            f"The first contestant has counts of {n_docs} documents, the second of "
            f"{sides[1].shape[1]}. Give both the same documents, in the same order."
        )
    drawn = resample(
        lambda weights: {i: metric(weights @ side) for i, side in enumerate(sides)},
        n_docs,
        n_resamples=n_resamples,
        seed=seed,
    )
    first, second = (mean_over_seeds(drawn[i], seed, i) for i in range(2))
    a, b = (float(np.mean(metric(side.sum(axis=1)))) for side in sides)
    return Difference(a, b, b - a, *interval(second - first))


def resample(scorer: Scorer, n_docs: int, *, n_resamples: int, seed: int) -> dict[Any, Any]:
    """Give the scores of all resamples, by name."""
    parts = [scorer(weights) for weights in draw_weights(n_docs, n_resamples, seed)]
    return {key: np.concatenate([part[key] for part in parts], axis=-1) for key in parts[0]}


def draw_weights(n_docs: int, n_resamples: int, seed: int) -> Iterator[Ints2d]:
    """Draw documents with replacement: yield how often each is in some of the resamples
    (n_some, n_docs). The same for all who ask with the same seed."""
    rng = np.random.default_rng(seed)
    step = max(CHUNK // n_docs, 1)
    shares = np.full(n_docs, 1 / n_docs)
    for start in range(0, n_resamples, step):
        yield rng.multinomial(n_docs, shares, size=min(step, n_resamples - start))


def mean_over_seeds(values: Floats2d, seed: int, contestant: int) -> Floats1d:
    """Resample the seeds of a contestant too: from scores (n_seeds, n_resamples) to their mean over
    the seeds drawn for each resample (n_resamples,).

    Of n seeds, n - 1 are drawn, because the spread of n would be too small by the factor
    (n - 1) / n, half of it for two seeds (Rao & Wu 1988, section 2). One seed alone says nothing of
    the spread between seeds, so the interval is over documents only.
    """
    n_seeds, n_resamples = values.shape
    if n_seeds == 1:
        return values[0]
    rng = np.random.default_rng([seed, contestant])
    drawn = rng.integers(n_seeds, size=(n_seeds - 1, n_resamples))
    return np.take_along_axis(values, drawn, axis=0).mean(axis=0)


def interval(values: Floats1d) -> tuple[float, float]:
    """Give the bounds between which 95 % of the resampled values are. Resamples in which a score is
    undefined (NaN) are left out; NaN if it is in all of them."""
    known = values[~np.isnan(values)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Give the two-sided p-value of McNemar's exact test: how probable so uneven a split of the
    decisions of which only one contestant's is right would be by chance (a binomial test)."""
    n, term, total = only_first + only_second, 1, 0
    for i in range(min(only_first, only_second) + 1):
        total += term
        term = term * (n - i) // (i + 1)
    return min(2 * total / 2**n, 1.0)
