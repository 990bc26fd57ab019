"""Random numbers by key: their values, their statistics, and permutations."""

import numpy as np
from arrays import ints
from epochs import within
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_bert_heads.pretraining.draws import Choice, draw, shuffled, uniform


def test_draws_are_what_they_were():
    # A change here would change the text that a run sees after it is resumed.
    assert draw(Choice.WORDS, 1, ints(2, 3)).tolist() == [16745020883678844818, 7877781145066174480]
    assert shuffled(np.arange(10), 10, seed=1, epoch=2).tolist() == [8, 0, 1, 3, 9, 7, 6, 5, 4, 2]


def test_draws_are_uniform_and_independent():
    n = 100_000
    keys = np.arange(n)
    columns = [uniform(Choice.WORDS, 0, keys), uniform(Choice.WORDS, 1, keys)]
    columns += [uniform(Choice.SPAN, 0, keys), uniform(Choice.WORDS, keys, 0)]
    columns += [uniform(Choice.WORDS, 0, keys + 1)]
    for column in columns:
        assert column.min() >= 0 and column.max() < 1
        shares = np.bincount((column * 10).astype(int)) / n
        assert all(within(share, 0.1, n) for share in shares)
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 5 / n**0.5


@settings(deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_shuffled_is_a_permutation(n, seed, epoch):
    order = shuffled(np.arange(n), n, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))
    # and any part of it is found without the rest
    some = np.arange(n)[:: max(n // 7, 1)]
    assert shuffled(some, n, seed=seed, epoch=epoch).tolist() == order[some].tolist()


def test_shuffled_differs_and_is_well_mixed():
    n = 10_000
    orders = [shuffled(np.arange(n), n, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0)]]
    orders.append(np.arange(n))
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.count_nonzero(one == other) < 12  # one is expected
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / n**0.5
    # Every example is as likely as any other to be first
    firsts = [int(shuffled(ints(0), 5, seed=s, epoch=0)[0]) for s in range(1000)]
    assert all(within(share, 0.2, 1000) for share in np.bincount(firsts, minlength=5) / 1000)


def test_shuffled_holds_nothing():
    n = 10**15
    order = shuffled(ints(0, 1, 2, n - 1), n, seed=0, epoch=0)
    assert len(set(order.tolist())) == 4
    assert ((order >= 0) & (order < n)).all()
    assert order.min() > 10**11  # far from where they came from
