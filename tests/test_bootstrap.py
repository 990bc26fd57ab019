"""Intervals beside exact ones and scipy's; McNemar's test beside published values."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacy_bert_heads.comparison import bootstrap
from spacy_bert_heads.comparison.bootstrap import (
    draw_weights,
    interval,
    mcnemar,
    mean_over_seeds,
    paired_bootstrap,
    resample,
)

SPLITS = st.integers(0, 60)


def f_score(counts):
    tp, fp, fn = np.moveaxis(np.asarray(counts), -1, 0)
    return 2 * tp / np.maximum(2 * tp + fp + fn, 1)


def share(counts):
    right, n = np.moveaxis(np.asarray(counts), -1, 0)
    return right / n


def draw_counts(n_docs: int, *, skill: float, seed: int) -> np.ndarray:
    """True positives, false positives and false negatives of Docs with 1 to 9 entities."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, size=n_docs)
    found = rng.binomial(sizes, skill)
    return np.stack([found, rng.binomial(sizes, 1 - skill), sizes - found], axis=1)


def test_scores_and_difference():
    one, two = draw_counts(50, skill=0.6, seed=0), draw_counts(50, skill=0.9, seed=1)
    found = paired_bootstrap(one, two, f_score)
    assert found.first == f_score(one.sum(axis=0)) and found.second == f_score(two.sum(axis=0))
    assert found.difference == found.second - found.first
    assert 0 < found.low < found.difference < found.high


def test_the_interval_of_all_resamples():
    """Of four Docs there are 256 resamples: the interval is between their exact quantiles."""
    one = np.asarray([[3, 1, 0], [0, 2, 2], [1, 0, 4], [5, 1, 1]])
    two = np.asarray([[2, 1, 1], [2, 0, 0], [2, 1, 3], [5, 0, 1]])
    exact = np.sort(
        [
            f_score(two[list(docs)].sum(axis=0)) - f_score(one[list(docs)].sum(axis=0))
            for docs in product(range(4), repeat=4)
        ]
    )
    found = paired_bootstrap(one, two, f_score, n_resamples=40_000)
    for bound, level in ((found.low, 0.025), (found.high, 0.975)):
        assert (
            np.mean(exact < bound - 1e-9) - 0.004 <= level <= np.mean(exact <= bound + 1e-9) + 0.004
        )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_interval_beside_scipy(seed):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    one, two = draw_counts(80, skill=0.6, seed=seed), draw_counts(80, skill=0.65, seed=seed + 9)

    def difference(*columns, axis):
        sums = np.stack([np.sum(column, axis=axis) for column in columns], axis=-1)
        return f_score(sums[..., 3:]) - f_score(sums[..., :3])

    other = stats.bootstrap(
        (*one.T, *two.T),
        difference,
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    found = paired_bootstrap(one, two, f_score, n_resamples=20_000, seed=seed)
    width = other.high - other.low
    assert found.low == pytest.approx(other.low, abs=0.03 * width)
    assert found.high == pytest.approx(other.high, abs=0.03 * width)


def test_pairs_are_kept():
    """Documents vary far more than the contestants differ; only unpaired intervals are as wide."""
    one = draw_counts(200, skill=0.5, seed=0)
    two = one.copy()
    two[:150, 0] += 1
    found = paired_bootstrap(one, two, f_score)
    assert found.low > 0 and found.high - found.low < 0.05
    same = paired_bootstrap(one, one, f_score)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    back = paired_bootstrap(two, one, f_score)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_the_seed_is_all_that_counts(monkeypatch):
    one, two = draw_counts(30, skill=0.5, seed=0), draw_counts(30, skill=0.7, seed=1)
    found = paired_bootstrap(one, two, f_score, n_resamples=100)
    monkeypatch.setattr(bootstrap, "CHUNK", 70)  # two resamples at once
    assert paired_bootstrap(one, two, f_score, n_resamples=100) == found
    assert paired_bootstrap(one, two, f_score, n_resamples=100, seed=1) != found


def test_weights_are_resamples():
    weights = np.concatenate(list(draw_weights(20, 5000, 0)))
    assert weights.shape == (5000, 20) and np.all(weights.sum(axis=1) == 20)
    assert weights.mean(axis=0) == pytest.approx(np.ones(20), abs=0.06)
    assert weights.var(axis=0) == pytest.approx(np.full(20, 19 / 20), abs=0.08)


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_the_spread_of_seeds(n_seeds):
    """Seeds alone, without Docs: the variance of a mean is s²/n, with s² the unbiased variance."""
    scores = np.random.default_rng(0).normal(size=n_seeds)
    drawn = mean_over_seeds(np.repeat(scores[:, None], 200_000, axis=1), 0, 0)
    assert drawn.mean() == pytest.approx(scores.mean(), abs=0.01)
    assert drawn.var() == pytest.approx(scores.var(ddof=1) / n_seeds, rel=0.02)


def test_several_seeds_widen_the_interval():
    one = np.stack([draw_counts(100, skill=0.6, seed=0)] * 3)
    two = np.stack([draw_counts(100, skill=skill, seed=1) for skill in (0.5, 0.7, 0.9)])
    found = paired_bootstrap(one, two, f_score)
    assert found.second == pytest.approx(np.mean([f_score(side.sum(axis=0)) for side in two]))
    alone = paired_bootstrap(one[0], two[1], f_score)
    assert found.high - found.low > 2 * (alone.high - alone.low)
    same = paired_bootstrap(one, np.stack([two[1]] * 4), f_score)  # seeds that don't differ
    assert same[2:] == pytest.approx(alone[2:])


def test_coverage():
    """Of 200 data sets from one distribution about 95 % have the true difference inside."""
    inside = 0
    for i in range(200):
        rng = np.random.default_rng(i)
        right = rng.random((2, 100)) < [[0.6], [0.7]]
        one, two = (np.stack([side, np.ones(100)], axis=1) for side in right)
        found = paired_bootstrap(one, two, share, n_resamples=300, seed=i)
        inside += found.low <= 0.1 <= found.high
    assert 0.91 <= inside / 200 <= 0.99


def test_undefined_resamples_are_left_out():
    assert interval(np.asarray([np.nan, 1.0, 1.0, np.nan])) == (1.0, 1.0)
    assert np.isnan(interval(np.full(3, np.nan))).all()


def test_the_same_documents_on_both_sides():
    with pytest.raises(ValueError, match="counts of 3 documents, the second of 2"):
        paired_bootstrap(np.ones((3, 3)), np.ones((2, 3)), f_score)


def test_scores_by_name():
    found = resample(
        lambda weights: {"n": weights.sum(axis=1), "first": weights[:, 0]},
        5,
        n_resamples=7,
        seed=0,
    )
    assert found["n"].tolist() == [5] * 7 and found["first"].shape == (7,)


# --- McNemar's test


@pytest.mark.parametrize(
    "only_first, only_second, p",
    [
        (1, 7, 0.0703),  # Fagerland, Lydersen & Laake 2013, table 1: airway hyper-responsiveness
        (6, 16, 0.0525),  # and table 2: complete response before and after consolidation
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 32),
    ],
)
def test_known_values(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p, abs=5e-5)
    assert mcnemar(only_second, only_first) == mcnemar(only_first, only_second)


@given(SPLITS, SPLITS)
def test_it_is_a_binomial_test(only_first, only_second):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    if only_first + only_second:
        other = stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
        assert mcnemar(only_first, only_second) == pytest.approx(other, rel=1e-9)


def test_many_decisions():
    assert mcnemar(20_000, 21_000) == pytest.approx(8.1e-07, rel=0.02)
