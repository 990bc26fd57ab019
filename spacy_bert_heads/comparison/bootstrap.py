"""Test differences between pipelines: the paired bootstrap and McNemar's test."""

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
CHUNK = 2**22  # document weights in memory at once, 32 MB


class Difference(NamedTuple):
    """Hold the scores of two contestants, and their difference (second minus first) with its 95 %
    interval."""

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
    """Return the difference between two contestants on the same documents, with its percentile
    interval (Efron & Tibshirani 1993, section 13.3).

    The counts are per document (num_docs, num_counts), such as true positives, false positives and
    false negatives, or with several seeds (num_seeds, num_docs, num_counts). `metric` maps sums of
    counts (..., num_counts) to scores (...), NaN if undefined. Each resample uses the same
    documents for both contestants, and separate seeds; see `mean_over_seeds`. Raises ValueError if
    the numbers of documents differ.
    """
    sides = [np.asarray(counts, dtype=np.float64) for counts in (counts_a, counts_b)]
    sides = [side[None] if side.ndim == 2 else side for side in sides]
    n_docs = sides[0].shape[1]
    if sides[1].shape[1] != n_docs:
        raise ValueError(
            f"The first contestant has counts of {n_docs} documents, the second of "
            f"{sides[1].shape[1]}. Pass the same documents for both, in the same order."
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
    """Return the scores of all resamples by name."""
    parts = [scorer(weights) for weights in draw_weights(n_docs, n_resamples, seed)]
    return {key: np.concatenate([part[key] for part in parts], axis=-1) for key in parts[0]}


def draw_weights(n_docs: int, n_resamples: int, seed: int) -> Iterator[Ints2d]:
    """Yield the number of times that each document is drawn in resamples with replacement, in
    chunks (num_resamples, num_docs). The result depends only on the arguments."""
    rng = np.random.default_rng(seed)
    step = max(CHUNK // n_docs, 1)
    shares = np.full(n_docs, 1 / n_docs)
    for start in range(0, n_resamples, step):
        yield rng.multinomial(n_docs, shares, size=min(step, n_resamples - start))


def mean_over_seeds(values: Floats2d, seed: int, contestant: int) -> Floats1d:
    """Resample the seeds of a contestant: return the mean of scores (num_seeds, num_resamples) over
    the seeds that are drawn for each resample (num_resamples,).

    Of n seeds, n - 1 are drawn, because the variance with n draws would be too small by the factor
    (n - 1) / n, one half for two seeds (Rao & Wu 1988, section 2). One seed contains no information
    about the variance between seeds, so the interval then covers documents only.
    """
    n_seeds, n_resamples = values.shape
    if n_seeds == 1:
        return values[0]
    rng = np.random.default_rng([seed, contestant])
    drawn = rng.integers(n_seeds, size=(n_seeds - 1, n_resamples))
    return np.take_along_axis(values, drawn, axis=0).mean(axis=0)


def interval(values: Floats1d) -> tuple[float, float]:
    """Return the bounds of the central 95 % of resampled values. Resamples with an undefined score
    (NaN) are skipped; the bounds are NaN if all are undefined."""
    known = values[~np.isnan(values)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: a binomial test of the decisions for
    which only one contestant is right."""
    n, term, total = only_first + only_second, 1, 0
    for i in range(min(only_first, only_second) + 1):
        total += term
        term = term * (n - i) // (i + 1)
    return min(2 * total / 2**n, 1.0)
