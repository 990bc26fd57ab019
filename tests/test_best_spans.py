"""The best spans of all windows and their probabilities, by hand and by brute force."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from letter_pairs import TEN, cases, greedy, sequences_of
from letters import LETTERS

from spacy_bert_heads.heads.answers import best_spans
from spacy_bert_heads.text.batch import PackedBatch


def every_span(logits, batch: PackedBatch, max_length: int):
    """Of each pair the logit of no answer, and all spans (logit, start, end) in order."""
    found, slot, n = [], 0, 0
    starts, ends = batch.offsets.starts.tolist(), batch.offsets.ends.tolist()
    for n_windows in batch.num_windows.tolist():
        null, places = np.inf, {}  # of each span its context in each window, and its logit there
        for length in batch.seqlens[n : n + n_windows].tolist():
            own = [i for i in range(slot, slot + length) if starts[i] >= 0]
            null = min(null, float(logits[slot][0]) + float(logits[slot][1]))
            for a, first in enumerate(own):
                for b, last in enumerate(own[a : a + max_length], a):
                    if ends[first] > starts[first] and ends[last] > starts[last]:
                        logit = float(logits[first][0] + logits[last][1])
                        span = starts[first], ends[last]
                        context = min(a, len(own) - 1 - b)
                        places.setdefault(span, []).append((context, logit, first))
            slot += length
        n += n_windows
        # max takes the first of equals, which is the first window
        read = [(max(some, key=lambda place: place[0]), span) for span, some in places.items()]
        read.sort(key=lambda one: one[0][2])  # in the order of windows
        found.append((null, [(logit, *span) for (_, logit, _), span in read]))
    return found


def assert_best_spans(logits, batch, max_length: int, n_best: int, *, some=None) -> None:
    found = best_spans(logits, batch, max_length=max_length, n_best=n_best)
    expected = every_span(logits, batch, max_length)
    assert found.starts.shape == found.scores.shape == (len(expected), n_best)
    for i in range(len(expected)) if some is None else some:
        null, spans = expected[i]
        chosen = greedy(spans, n_best)
        rest = [0] * (n_best - len(chosen))
        assert found.starts[i].tolist() == [start for _, start, _ in chosen] + rest
        assert found.ends[i].tolist() == [end for *_, end in chosen] + rest
        total = np.logaddexp.reduce([null, *(logit for logit, *_ in spans)])
        scores = [np.exp(logit - total) for logit, *_ in chosen] + rest
        assert found.scores[i].tolist() == pytest.approx(scores, rel=1e-5)
        none = np.exp(null - np.logaddexp(null, chosen[0][0])) if chosen else 1.0
        assert found.no_answer[i] == pytest.approx(none, rel=1e-5)


def test_best_spans_by_hand():
    batch = sequences_of((TEN, ["yz"]))
    logits = np.zeros((29, 2))
    logits[[0, 10, 20], 0] = 3.0, 1.0, 2.0  # [CLS]
    logits[[0, 10, 20], 1] = 0.5, 0.25, -2.0
    logits[6] = 4.0, 0.0  # starts at c
    logits[7, 1] = 3.0  # ends at d
    logits[8, 1] = 9.0  # ends at e in the first window
    logits[14] = 9.0, 9.0  # d in the second window, where it has less context: no start
    logits[25, 0] = 2.0  # starts at h, in the third
    logits[27, 1] = 1.0  # ends at j
    logits[16, 1] = 0.5  # ends at f
    found = best_spans(logits, batch, max_length=3, n_best=3)
    # c to e; h to j; f alone, for e is taken
    assert found.starts.tolist() == [[4, 14, 10]]
    assert found.ends.tolist() == [[9, 19, 11]]
    null = 0.0  # the lowest of 3.5, 1.25 and 0
    assert found.no_answer[0] == pytest.approx(1 / (1 + np.exp(13 - null)))
    assert found.scores[0, 1] / found.scores[0, 0] == pytest.approx(np.exp(3 - 13))
    assert found.scores[0, 2] / found.scores[0, 0] == pytest.approx(np.exp(0.5 - 13))
    assert_best_spans(logits, batch, 3, 3)


VALUES = st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30))


@settings(max_examples=80, deadline=None)
@given(
    case=cases(),
    doc_first=st.booleans(),
    max_length=st.integers(1, 6),
    n_best=st.integers(1, 4),
    empty=st.sets(st.integers(0, 30), max_size=3),
    data=st.data(),
)
def test_best_spans_against_brute_force(case, doc_first, max_length, n_best, empty, data):
    rows, window, stride = case
    batch = sequences_of(*rows, window=window, stride=stride, doc_first=doc_first)
    # Some pieces hold no character: they can be neither start nor end.
    hollow = np.isin(batch.offsets.starts, list(empty))
    ends = np.where(hollow, batch.offsets.starts, batch.offsets.ends)
    batch = replace(batch, offsets=replace(batch.offsets, ends=ends))
    seed = data.draw(st.integers(0, 2**16))
    some = data.draw(st.lists(VALUES, min_size=1, max_size=12))
    rng = np.random.default_rng(seed)
    logits = rng.choice(some, (len(batch.input_ids), 2))  # with ties
    if seed % 2:
        logits += rng.normal(size=logits.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_best_spans(logits, batch, max_length, n_best)


@pytest.mark.parametrize("window, stride", [(10, 6), (12, 10), (40, 30)])
def test_probabilities_add_up_with_no_answer(window, stride):
    batch = sequences_of((TEN, ["yz", "z"]), ("a b", ["x"]), window=window, stride=stride)
    logits = np.random.default_rng(0).normal(size=(len(batch.input_ids), 2)) * 2
    # Of one piece each, so that none overlaps another and all are found.
    found = best_spans(logits, batch, max_length=1, n_best=12)
    assert (found.scores > 0).sum(axis=1).tolist() == [10, 10, 2]
    none = found.scores[:, 0] * found.no_answer / (1 - found.no_answer)
    assert (found.scores.sum(axis=1) + none).tolist() == pytest.approx([1.0] * 3)


def test_best_spans_without_any_piece():
    batch = sequences_of(("", ["x"]), ("", ["y"]))
    found = best_spans(np.ones((8, 2), dtype="f"), batch, max_length=3, n_best=2)
    assert [column.tolist() for column in found[:3]] == [[[0, 0], [0, 0]]] * 3
    assert found.no_answer.tolist() == [1.0, 1.0]
    nothing = best_spans(np.ones((0, 2), dtype="f"), sequences_of(), max_length=3, n_best=2)
    assert [column.shape for column in nothing] == [(0, 2), (0, 2), (0, 2), (0,)]


def test_large_logits_neither_overflow_nor_vanish():
    batch = sequences_of(("a", ["x"]), ("b", ["x"]), ("", ["x"]))
    # [CLS] x [SEP] a [SEP]
    logits = np.zeros((14, 2), dtype="f")
    logits[3], logits[5] = 10_000, 10_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = best_spans(logits, batch, max_length=2, n_best=2)
    assert found.scores.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert found.no_answer.tolist() == [0.0, 1.0, 1.0]
    assert found.starts[:, 0].tolist() == [0, 0, 0]
    assert found.ends[:, 0].tolist() == [1, 1, 0]


def test_best_spans_of_a_large_batch():
    rng = np.random.default_rng(0)
    contexts = [" ".join(rng.choice(list(LETTERS), n)) for n in rng.integers(0, 60, 100)]
    questions = ["".join(rng.choice(list(LETTERS), n)) for n in rng.integers(1, 9, 20)]
    batch = sequences_of(*((one, questions) for one in contexts), window=24, stride=16)
    assert len(batch.num_windows) == 2000
    assert len(batch.seqlens) > 6000
    logits = rng.normal(size=(len(batch.input_ids), 2)).astype(np.float32) * 3
    some = rng.choice(2000, 100, replace=False)
    assert_best_spans(logits, batch, 5, 3, some=some.tolist())
