"""Fit the temperature of a head on annotated data."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, sqrt
from typing import NamedTuple

import numpy as np

from .collect import Collected
from .measures import Judged, negative_log_likelihood

LOWEST, HIGHEST = 0.05, 20.0
GRID = 13  # points that are tried before the search, because entities can lead to two minima
TOLERANCE = 1e-3  # of the logarithm of the temperature
GOLDEN = (sqrt(5) - 1) / 2
FEW = 100  # claims; with fewer, a warning is raised


class Fitted(NamedTuple):
    """Hold a temperature, and its effect on the data on which it was fitted."""

    before: float  # the head's previous temperature
    temperature: float
    claims: int
    errors: int
    nll_before: float
    nll: float
    at_edge: bool  # whether a temperature beyond the bounds might be better


def fit_temperature(found: Collected) -> Fitted:
    """Return the temperature of a head with the lowest negative log-likelihood (Guo et al. 2017,
    section 4.2); the head is not changed.

    Raises ValueError if all claims are correct or all are wrong, because then there is no best
    temperature.
    """
    head = found.head
    before = head.temperature

    def judge(temperature: float) -> Judged:
        with head.trying():
            head.set_temperature(temperature)
            head.cfg.update(head.no_thresholds)
            return Judged.of(found.claims())

    def nll(temperature: float) -> float:
        return negative_log_likelihood(judge(temperature))

    judged = judge(before)
    n, errors = len(judged.is_right), int((~judged.is_right).sum())
    if errors in (0, n):
        what = "makes no claims" if not n else f"has {'no' if not errors else 'only'} errors"
        raise ValueError(
            f"{head.name} {what} on this data ({n} claims), so there is no best temperature. Use "
            "more data that was not used for training."
        )
    temperature = exp(minimise(lambda x: nll(exp(x)), log(LOWEST), log(HIGHEST)))
    nll_before, best = negative_log_likelihood(judged), nll(temperature)
    if best >= nll_before:  # within the tolerance
        temperature, best = before, nll_before
    at_edge = not LOWEST * 1.05 < temperature < HIGHEST / 1.05
    return Fitted(before, temperature, n, errors, nll_before, best, at_edge)


def minimise(f: Callable[[float], float], low: float, high: float) -> float:
    """Return the minimum of a function of one number: first on a grid, then by golden-section
    search around the best point (Kiefer 1953)."""
    grid = np.linspace(low, high, GRID)
    best = int(np.argmin([f(float(x)) for x in grid]))
    a, b = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, GRID - 1)])
    c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    at_c, at_d = f(c), f(d)
    while b - a > TOLERANCE:
        if at_c < at_d:
            b, d, at_d = d, c, at_c
            c = b - GOLDEN * (b - a)
            at_c = f(c)
        else:
            a, c, at_c = c, d, at_d
            d = a + GOLDEN * (b - a)
            at_d = f(d)
    return (a + b) / 2
