"""Figures of probabilities, beside what is computed by hand and in other ways."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacy_bert_heads.calibration.measures import (
    Judged,
    brier_score,
    calibration_error,
    make_bins,
    measure,
    negative_log_likelihood,
    risk_coverage,
    simulate_perfect,
)
from spacy_bert_heads.calibration.report import draw_calibration, format_calibration
from spacy_bert_heads.calibration.thresholds import choose
from spacy_bert_heads.heads.claims import Claim

CLAIMS = [
    Claim("A", 0.9, True, 0.9),
    Claim("A", 0.8, False, 0.1),
    Claim("B", 0.6, True, 0.6),
    Claim("B", 0.5, False, 0.5),
]
P = st.floats(0.001, 0.999)
LISTS = st.lists(st.tuples(P, st.booleans()), min_size=1, max_size=30)


def claims_of(rows, label: str = "A") -> list[Claim]:
    return [Claim.of(label, p, is_right) for p, is_right in rows]


def test_scores_by_hand():
    judged = Judged.of(CLAIMS)
    assert negative_log_likelihood(judged) == pytest.approx(-np.log(0.9 * 0.1 * 0.6 * 0.5) / 4)
    assert brier_score(judged) == pytest.approx((0.01 + 0.64 + 0.16 + 0.25) / 4)
    # Two bins: (0.5, wrong), (0.6, right) and (0.8, wrong), (0.9, right).
    assert calibration_error(judged, 2) == pytest.approx((0.05 + 0.35) / 2)
    bins = make_bins(judged, 2)
    assert bins.counts.tolist() == [2, 2] and bins.accuracy.tolist() == [0.5, 0.5]
    assert bins.probability.tolist() == pytest.approx([0.55, 0.85])


@given(LISTS, st.integers(1, 20))
def test_bins_are_of_equal_size(rows, num_bins):
    bins = make_bins(Judged.of(claims_of(rows)), num_bins)
    assert bins.counts.sum() == len(rows) and len(bins.counts) == min(num_bins, len(rows))
    assert bins.counts.max() - bins.counts.min() <= 1
    assert (np.diff(bins.probability) >= -1e-12).all()
    assert np.average(bins.accuracy, weights=bins.counts) == pytest.approx(
        np.mean([is_right for _, is_right in rows])
    )


def test_what_a_perfect_head_would_show():
    """One bin of n claims of 1/2: the error is |k / n − 1/2| of a binomial k."""
    from math import comb

    n = 20
    simulated = simulate_perfect(np.full(n, 0.5), num_bins=1, times=20_000)
    exact = sum(comb(n, k) * abs(k / n - 0.5) for k in range(n + 1)) / 2**n
    assert simulated.mean == pytest.approx(exact, abs=0.002)
    # |k − 10| is 4 or less with a probability of 0.959, 3 or less with 0.885.
    assert simulated.upper == pytest.approx(0.2)
    assert simulated.low.tolist() == pytest.approx([0.3])
    assert simulated.high.tolist() == pytest.approx([0.7])


def test_what_a_perfect_head_would_show_is_measured_in_the_same_way():
    """Of claims of one probability the number of bins doesn't matter."""
    one, many = (simulate_perfect(np.full(20, 0.5), num_bins=n) for n in (1, 5))
    assert many.mean == pytest.approx(one.mean, abs=0.01)
    assert many.upper == pytest.approx(one.upper, abs=0.01)


def test_errors_against_coverage_by_hand():
    curve = risk_coverage(Judged.of(CLAIMS))
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.errors.tolist() == [0, 1, 1, 2]  # surest first: right, wrong, right, wrong
    assert curve.oracle.tolist() == [0, 0, 1, 2]
    assert curve.errors_at(0.75) == (0.5, 0.5)
    assert curve.errors_at(0.5) == (0.5, 0.0)
    assert curve.errors_at(0.875) == (0.75, 0.75)


@given(LISTS, st.randoms(use_true_random=False))
def test_equal_probabilities_come_in_any_order(rows, random):
    rows = [(round(p, 1), is_right) for p, is_right in rows]
    mixed = random.sample(rows, len(rows))
    one, other = (risk_coverage(Judged.of(claims_of(each))) for each in (rows, mixed))
    np.testing.assert_allclose(one.errors, other.errors, atol=1e-9)
    assert (one.errors >= one.oracle - 1e-9).all()


@given(
    st.lists(st.tuples(st.sampled_from([0.5, 0.8]), st.booleans()), min_size=4, max_size=30),
    st.integers(2, 5),
    st.randoms(use_true_random=False),
)
def test_the_calibration_error_is_that_of_claims_in_any_order(rows, num_bins, random):
    mixed = random.sample(rows, len(rows))
    one, other = (calibration_error(Judged.of(claims_of(each)), num_bins) for each in (rows, mixed))
    assert one == pytest.approx(other, abs=1e-12)


def test_bins_of_one_probability_share_the_right_claims():
    bins = make_bins(Judged.of(claims_of([(0.8, True)] * 2 + [(0.8, False)] * 2)), 2)
    assert bins.accuracy.tolist() == [0.5, 0.5]
    judged = Judged.of(claims_of([(0.9, False)] + [(0.8, True)] * 2 + [(0.8, False)]))
    # (0.8, 0.8) and (0.8, 0.9), with 2 / 3 and 1 / 3 of right ones.
    assert calibration_error(judged, 2) == pytest.approx(((0.8 - 2 / 3) + (0.85 - 1 / 3)) / 2)


def test_all_figures_and_the_picture():
    figures = measure(CLAIMS * 5)
    assert figures["claims"] == 20 and figures["errors"] == 10
    assert 0 < figures["simulated_error"] < figures["simulated_error_95"]
    shown = format_calibration({"bert_ner": figures})
    assert "bert_ner" in shown and "NLL" in shown and f"{figures['nll']:.4f}" in shown
    left, right = draw_calibration(CLAIMS * 5, "title").axes
    measured = next(line for line in left.lines if line.get_label() == "measured")
    assert measured.get_xdata().tolist() == pytest.approx(
        make_bins(Judged.of(CLAIMS * 5)).probability
    )
    oracle = next(line for line in right.lines if line.get_label() == "oracle")
    assert oracle.get_ydata()[-1] == 0.5


# --- thresholds


def test_thresholds_by_hand():
    rows = [(0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, False)]
    found = choose("A", claims_of(rows), 4, "precision", 0.75)
    assert found.threshold == pytest.approx(0.55)  # 3 of 4 are right from 0.6 on
    assert (found.kept, found.precision, found.recall) == (4, 0.75, 0.75)
    assert found.f == pytest.approx(0.75) and found.without == 0.6 and found.reached
    found = choose("A", claims_of(rows), 4, "precision", 0.9)
    assert found.threshold == pytest.approx(0.75) and found.kept == 2
    found = choose("A", claims_of(rows), 4, "recall", 0.5)
    assert found.threshold == pytest.approx(0.75) and found.recall == 0.5
    found = choose("A", claims_of(rows), 4, "recall", 0.9)
    assert not found.reached and found.threshold == 0.0  # all of them find 3 of 4
    found = choose("A", claims_of(rows), 4, "f", 0.0)
    assert found.threshold == pytest.approx(0.55) and found.f == pytest.approx(0.75)
    found = choose("A", claims_of([(0.9, False)]), 1, "precision", 0.5)
    assert (found.threshold, found.kept, found.reached) == (1.0, 0, False)


@given(LISTS, st.floats(0.05, 1), st.integers(0, 5), st.sampled_from(["precision", "recall", "f"]))
def test_thresholds_against_all_thresholds(rows, value, missed, goal):
    rows = [(round(p, 2), is_right) for p, is_right in rows]
    num_true = sum(is_right for _, is_right in rows) + missed
    found = choose("A", claims_of(rows), num_true, goal, value)

    def at(threshold: float) -> tuple[int, float, float, float]:
        kept = [is_right for p, is_right in rows if p >= threshold]
        right = sum(kept)
        f = 2 * right / (len(kept) + num_true)
        return len(kept), right / len(kept), right / max(num_true, 1), f

    everywhere = [at(p) for p, _ in rows]
    place = {"precision": 1, "recall": 2, "f": 3}[goal]
    if goal == "f":
        assert found.f == pytest.approx(max(row[3] for row in everywhere))
    else:
        good = [row for row in everywhere if row[place] >= value]
        assert found.reached == bool(good)
        if good:
            best = (max if goal == "precision" else min)(row[0] for row in good)
            assert found.kept == best
    if found.kept:
        assert at(found.threshold)[:2] == (found.kept, pytest.approx(found.precision))
