"""Random numbers by purpose and number, and the order of an epoch."""

import numpy as np
from epochs import within
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_bert_heads.pretraining.draws import Purpose, below, generator, shuffle


def test_draws_are_what_they_were():
    # A change here would change the text that a run sees after it is resumed.
    assert generator(1, Purpose.MASKS, 2, 3).bit_generator.random_raw(2).tolist() == [
        5189031997826820109,
        28804322810939519,
    ]
    assert generator(1, Purpose.PAIRS, 2, 3).random(2).tolist() == [
        0.6645942726611466,
        0.2537292395720714,
    ]
    assert shuffle(10, seed=1, epoch=2).tolist() == [1, 2, 5, 3, 7, 4, 8, 9, 6, 0]


def test_generators_are_uniform_and_independent():
    n = 5000
    keys = [(0, Purpose.MASKS, 0, 0), (1, Purpose.MASKS, 0, 0), (0, Purpose.PAIRS, 0, 0)]
    keys += [(0, Purpose.MASKS, 1, 0), (0, Purpose.MASKS, 0, 1)]
    columns = [generator(*key).random(n) for key in keys]
    # The first draws of consecutive numbers are as random as those of one generator.
    columns += [
        np.array([generator(0, Purpose.MASKS, 2, number).random() for number in range(n)]),
        np.array([generator(0, Purpose.MASKS, epoch, 2).random() for epoch in range(3, n + 3)]),
    ]
    for column in columns:
        shares = np.bincount((column * 10).astype(int), minlength=10) / n
        assert all(within(share, 0.1, n) for share in shares)
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 5 / n**0.5


def test_integers_below():
    random = generator(0, Purpose.PAIRS)
    found = [below(random, 5) for _ in range(5000)]
    assert all(within(share, 0.2, 5000) for share in np.bincount(found) / 5000)
    assert below(random, 1) == 0


@settings(deadline=None)
@given(n=st.integers(0, 3000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 1000))
def test_an_order_has_every_example_once(n, seed, epoch):
    order = shuffle(n, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert order.tolist() == shuffle(n, seed=seed, epoch=epoch).tolist()


def test_orders_differ_and_are_well_mixed():
    n = 10_000
    orders = [shuffle(n, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0)]]
    orders.append(np.arange(n))
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.count_nonzero(one == other) < 12  # one is expected
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / n**0.5
    # Every example is as likely as any other to be first.
    firsts = [int(shuffle(5, seed=s, epoch=0)[0]) for s in range(1000)]
    assert all(within(share, 0.2, 1000) for share in np.bincount(firsts, minlength=5) / 1000)
