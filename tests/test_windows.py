"""Windows of Docs and buckets of windows: exact values, and brute force."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from arrays import ints
from hypothesis import given, settings
from hypothesis import strategies as st
from letters import STRIDES

from spacy_bert_heads.encoder.buckets import make_buckets
from spacy_bert_heads.text.arrays import ranges
from spacy_bert_heads.text.packing import best_positions, cut_windows

# --- index arithmetic


@pytest.mark.parametrize(
    "starts, lengths, expected",
    [
        ([5, 0], [3, 2], [5, 6, 7, 0, 1]),
        ([5, 9, 0], [0, 1, 0], [9]),
        ([3, 3], [2, 2], [3, 4, 3, 4]),
        ([7], [0], []),
        ([], [], []),
    ],
)
def test_ranges(starts, lengths, expected):
    assert ranges(ints(*starts), ints(*lengths)).tolist() == expected


# --- windows


@pytest.mark.parametrize(
    "n_pieces, capacity, stride, expected",
    [
        # pieces    0 1 2 3 4 5 6 7 8 9
        # window 0  ├─────┤
        # window 1        ├─────┤
        # window 2              ├─────┤
        (10, 4, 3, [(0, 4), (3, 4), (6, 4)]),
        # pieces    0 1 2 3 4 5 6 7 8 9 10
        # window 3                    ├──┤      the last window holds what is left
        (11, 4, 3, [(0, 4), (3, 4), (6, 4), (9, 2)]),
        # Without overlap
        (8, 4, 4, [(0, 4), (4, 4)]),
        (9, 4, 4, [(0, 4), (4, 4), (8, 1)]),
        # It just fits, it just doesn't
        (4, 4, 3, [(0, 4)]),
        (5, 4, 3, [(0, 4), (3, 2)]),
        (5, 4, 1, [(0, 4), (1, 4)]),
        (1, 4, 3, [(0, 1)]),
        (3, 1, 1, [(0, 1), (1, 1), (2, 1)]),
        # A text without pieces has one window all the same
        (0, 4, 3, [(0, 0)]),
    ],
)
def test_cut_windows(n_pieces, capacity, stride, expected):
    windows, starts, lengths = cut_windows(ints(n_pieces), capacity=capacity, stride=stride)
    assert windows.tolist() == [len(expected)]
    assert list(zip(starts.tolist(), lengths.tolist(), strict=True)) == expected


def test_cut_windows_of_a_batch():
    windows, starts, lengths = cut_windows(ints(5, 0, 10), capacity=4, stride=3)
    assert windows.tolist() == [2, 1, 3]
    assert starts.tolist() == [0, 3, 0, 0, 3, 6]
    assert lengths.tolist() == [4, 2, 0, 4, 4, 4]
    assert [array.tolist() for array in cut_windows(ints(), capacity=4, stride=3)] == [[], [], []]


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 40), max_size=5), capacity_stride=STRIDES)
def test_windows_cover_every_piece_and_no_window_is_too_much(sizes, capacity_stride):
    capacity, stride = capacity_stride
    windows, starts, lengths = cut_windows(ints(*sizes), capacity=capacity, stride=stride)
    assert windows.sum() == len(starts) == len(lengths)
    cuts = list(zip(starts.tolist(), lengths.tolist(), strict=True))
    for size, n_windows in zip(sizes, windows.tolist(), strict=True):
        own, cuts = cuts[:n_windows], cuts[n_windows:]
        assert [start for start, _ in own] == [i * stride for i in range(n_windows)]
        assert all(length == min(capacity, size - start) for start, length in own)
        covered = {piece for start, length in own for piece in range(start, start + length)}
        assert covered == set(range(size))
        without_last = {p for start, length in own[:-1] for p in range(start, start + length)}
        assert n_windows == 1 or covered != without_last


# --- the window of each piece


def test_best_positions_by_hand():
    # slots      1  2  3  4      7  8  9 10     13 14 15 16
    # pieces     0  1  2  3      3  4  5  6      6  7  8  9
    # context    0  1  1  0      0  1  1  0      0  1  1  0
    # Pieces 3 and 6 are at the edge of two windows: the first has them.
    source = ints(0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9)
    slots = ints(1, 2, 3, 4, 7, 8, 9, 10, 13, 14, 15, 16)
    best = best_positions(source, slots, ints(4, 4, 4), num_wordpieces=10)
    assert best.tolist() == [1, 2, 3, 4, 8, 9, 10, 14, 15, 16]


def test_best_positions_takes_the_middle_of_a_window():
    # slots      0  1  2  3  4
    # pieces     0  1  2  3  4
    # context    0  1  2  1  0
    # slots                  5  6  7  8  9
    # pieces           2  3  4  5  6            (the second window begins at piece 2)
    # context          0  1  2  1  0            3 is the same in both, 4 is better in the second
    source = ints(0, 1, 2, 3, 4, 2, 3, 4, 5, 6)
    best = best_positions(source, np.arange(10), ints(5, 5), num_wordpieces=7)
    assert best.tolist() == [0, 1, 2, 3, 7, 8, 9]


def test_best_positions_with_one_piece_in_two_windows():
    # pieces     0  1  2  3
    # pieces              3  4  5  6            at the edge of both: the first has it
    best = best_positions(ints(0, 1, 2, 3, 3, 4, 5, 6), np.arange(8), ints(4, 4), num_wordpieces=7)
    assert best.tolist() == [0, 1, 2, 3, 5, 6, 7]


@pytest.mark.parametrize("sizes", [[3], [3, 0, 2], [0], []])
def test_best_positions_without_overlap(sizes):
    slots = np.arange(sum(sizes)) + 10
    best = best_positions(np.arange(sum(sizes)), slots, ints(*sizes), num_wordpieces=sum(sizes))
    assert best.tolist() == slots.tolist()


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 40), max_size=4), capacity_stride=STRIDES)
def test_best_positions_against_brute_force(sizes, capacity_stride):
    capacity, stride = capacity_stride
    source, slots, lengths, expected, n_slots = [], [], [], [], 0
    for size in sizes:
        candidates: list[list[tuple[int, int]]] = [[] for _ in range(size)]
        for start in range(0, max(size - capacity, 0) + stride, stride):
            length = min(capacity, size - start)
            n_slots += 1  # a special token before
            for i in range(length):
                source.append(len(expected) + start + i)
                slots.append(n_slots)
                candidates[start + i].append((min(i, length - 1 - i), n_slots))
                n_slots += 1
            n_slots += 1  # and one behind
            lengths.append(length)
        # max takes the first of equals
        expected += [max(one, key=lambda slot: slot[0])[1] for one in candidates]
    best = best_positions(ints(*source), ints(*slots), ints(*lengths), num_wordpieces=len(expected))
    assert best.tolist() == expected


# --- buckets


@pytest.mark.parametrize(
    "lengths, max_tokens, overhead, expected",
    [
        # In one bucket there are 4 more slots than in two, in two an overhead more.
        ([3, 5, 5, 2], 20, 7, [[1, 2, 0, 3]]),
        ([3, 5, 5, 2], 20, 3, [[1, 2], [0, 3]]),
        ([3, 5, 5, 2], 20, 0, [[1, 2], [0], [3]]),
        # Two of 5 fill the budget: a third row would not fit.
        ([3, 5, 5, 2], 10, 7, [[1, 2], [0, 3]]),
        # Three rows of 5 and one of 2 would be 17 slots; two of 5 and two of 3 are 16.
        ([3, 5, 5, 2], 15, 7, [[1, 2], [0, 3]]),
        # One that exceeds the budget is alone, be it the first or between others.
        ([3, 20, 3], 10, 100, [[1], [0, 2]]),
        ([20, 20], 10, 100, [[0], [1]]),
        ([2, 2, 2], 1, 100, [[0], [1], [2]]),
        # To fill a bucket is not always best: 5 and two of 4 are less than two of 5 and 4.
        ([5, 4, 4], 10, 1, [[0], [1, 2]]),
        ([7], 100, 64, [[0]]),
        ([], 100, 64, []),
        ([0, 0, 3], 100, 1, [[2], [0, 1]]),  # no special tokens, no text
    ],
)
def test_make_buckets(lengths, max_tokens, overhead, expected):
    buckets = make_buckets(ints(*lengths), max_tokens=max_tokens, overhead=overhead)
    assert [bucket.tolist() for bucket in buckets] == expected


@settings(deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(2, 12), st.integers(2, 512)), max_size=9),
    max_tokens=st.integers(1, 2000),
    overhead=st.integers(0, 300),
)
def test_no_other_buckets_within_the_budget_cost_less(lengths, max_tokens, overhead):
    found = make_buckets(ints(*lengths), max_tokens=max_tokens, overhead=overhead)
    buckets = [bucket.tolist() for bucket in found]
    in_order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    assert [i for bucket in buckets for i in bucket] == in_order

    def cost(parts: list[list[int]]) -> float:
        rows = [[lengths[i] for i in part] for part in parts]
        if any(len(row) > 1 and len(row) * row[0] > max_tokens for row in rows):
            return np.inf
        return sum(overhead + len(row) * row[0] for row in rows)

    cuts = range(1, len(lengths))
    every = (
        [in_order[i:j] for i, j in pairwise([0, *chosen, len(lengths)])]
        for n in range(len(lengths))
        for chosen in combinations(cuts, n)
    )
    assert not lengths or cost(buckets) == min(map(cost, every))
