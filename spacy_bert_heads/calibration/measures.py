"""Measure probabilities: proper scores, calibration, and the errors among the most confident
claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..heads.claims import Claim

Floats = NDArray[np.float64]
NUM_BINS = 15
NUM_SIMULATIONS = 1000
TINY = 1e-12  # lower bound of the probability of the true outcome, so that the logarithm is finite
COVERAGE = 0.8


class Judged(NamedTuple):
    """Hold claims as arrays (num_claims,)."""

    probability: Floats
    is_right: NDArray[np.bool_]
    truth: Floats

    @staticmethod
    def of(claims: Sequence[Claim]) -> Judged:
        rows = np.asarray([claim[1:] for claim in claims], dtype=np.float64).reshape(-1, 3)
        return Judged(rows[:, 0], rows[:, 1] > 0, rows[:, 2])


def negative_log_likelihood(judged: Judged) -> float:
    """Return the mean negative log-likelihood of the true outcome, in nats."""
    return float(-np.log(judged.truth.clip(TINY)).mean())


def brier_score(judged: Judged) -> float:
    """Return the mean squared difference between the probability and the outcome of each claim
    (Brier 1950, for two outcomes)."""
    return float(((judged.probability - judged.is_right) ** 2).mean())


class Bins(NamedTuple):
    """Hold claims in bins by probability, with equal numbers of claims as far as possible."""

    counts: Floats  # (n_bins,)
    probability: Floats  # (n_bins,) the mean
    accuracy: Floats  # (n_bins,) the share of correct claims


def make_bins(judged: Judged, num_bins: int = NUM_BINS) -> Bins:
    """Sort claims into `num_bins` bins, or fewer if there are fewer claims. Claims of equal
    probability in different bins have the same share of correct ones in each."""
    order = np.argsort(judged.probability, kind="stable")
    edges = _edges(len(order), num_bins)
    counts = np.diff(edges).astype(np.float64)
    p = judged.probability[order]
    right = _pool(judged.is_right[order], *_equal(p))
    means = (np.add.reduceat(values, edges[:-1]) / counts for values in (p, right))
    return Bins(counts, *means)


def _equal(p: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the groups of equal values begin in sorted ones, and their sizes."""
    begins = np.flatnonzero(np.append(True, p[1:] != p[:-1]))
    return begins, np.diff(np.append(begins, len(p)))


def _pool(
    is_right: NDArray[np.bool_], begins: NDArray[np.int64], sizes: NDArray[np.int64]
) -> Floats:
    """Return for each claim the share of correct ones in its group."""
    return np.repeat(np.add.reduceat(is_right.astype(np.float64), begins) / sizes, sizes)


def _edges(n: int, num_bins: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, n, num_bins + 1).round().astype(np.int64))


def calibration_error(judged: Judged, num_bins: int = NUM_BINS) -> float:
    """Return the adaptive calibration error (Nixon et al. 2019, section 3): the mean difference
    between confidence and accuracy over bins of equal size."""
    bins = make_bins(judged, num_bins)
    return float(np.average(np.abs(bins.probability - bins.accuracy), weights=bins.counts))


class Simulated(NamedTuple):
    """Hold the calibration errors of simulated, perfectly calibrated claims."""

    mean: float
    upper: float  # the 95th percentile
    low: Floats  # (n_bins,) the 2.5th and the 97.5th percentile of the accuracy of each bin
    high: Floats


def simulate_perfect(
    probability: Floats, *, num_bins: int = NUM_BINS, seed: int = 0, times: int = NUM_SIMULATIONS
) -> Simulated:
    """Simulate outcomes of a perfectly calibrated head with the same probabilities, to estimate the
    calibration error that arises by chance (consistency resampling, Bröcker & Smith 2007)."""
    p = np.sort(probability)
    edges = _edges(len(p), num_bins)
    counts = np.diff(edges)
    means = np.add.reduceat(p, edges[:-1]) / counts
    rng, groups = np.random.default_rng(seed), _equal(p)
    accuracies = np.asarray(
        [np.add.reduceat(_pool(rng.random(len(p)) < p, *groups), edges[:-1]) / counts
         for _ in range(times)]
    )  # fmt: skip
    errors = np.abs(accuracies - means) @ (counts / len(p))
    low, high = np.percentile(accuracies, (2.5, 97.5), axis=0)
    return Simulated(float(errors.mean()), float(np.percentile(errors, 95)), low, high)


class RiskCoverage(NamedTuple):
    """Hold the errors among the most confident claims (El-Yaniv & Wiener 2010)."""

    coverage: Floats  # (n_points,) from above 0 to 1
    errors: Floats  # (n_points,) wrong claims among them
    oracle: Floats  # (n_points,) the same if all wrong claims were the least confident

    def errors_at(self, coverage: float) -> tuple[float, float]:
        """Return the share of all errors at a coverage, and the oracle's."""
        total = max(float(self.errors[-1]), 1e-12)
        points = np.append(0.0, self.coverage)
        left = (
            float(np.interp(coverage, points, np.append(0.0, errors))) / total
            for errors in (self.errors, self.oracle)
        )
        return next(left), next(left)


def risk_coverage(judged: Judged) -> RiskCoverage:
    """Count errors among the k most confident claims, for each k. Errors among claims of equal
    probability are spread evenly."""
    order = np.argsort(-judged.probability, kind="stable")
    p, wrong = judged.probability[order], ~judged.is_right[order]
    n = len(p)
    count = np.arange(1, n + 1)
    ends = np.flatnonzero(np.append(p[1:] != p[:-1], True)) + 1
    errors = np.interp(count, np.append(0, ends), np.append(0, wrong.cumsum()[ends - 1]))
    oracle = np.maximum(count - (n - wrong.sum()), 0).astype(np.float64)
    return RiskCoverage(count / n, errors, oracle)


def measure(claims: Sequence[Claim]) -> dict[str, Any]:
    """Return all measures of one or more claims."""
    judged = Judged.of(claims)
    simulated = simulate_perfect(judged.probability)
    left, oracle = risk_coverage(judged).errors_at(COVERAGE)
    return {
        "claims": len(claims),
        "errors": int((~judged.is_right).sum()),
        "nll": negative_log_likelihood(judged),
        "brier": brier_score(judged),
        "calibration_error": calibration_error(judged),
        "simulated_error": simulated.mean,
        "simulated_error_95": simulated.upper,
        "errors_at_80": left,
        "oracle_errors_at_80": oracle,
    }
