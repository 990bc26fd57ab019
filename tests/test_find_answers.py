"""Where answers are in windows, and which windows are learned from."""

from collections import Counter

import numpy as np
import pytest
from arrays import ints
from hypothesis import given, settings
from hypothesis import strategies as st
from letter_pairs import TEN, cases, sequences_of
from letters import letters

from spacy_bert_heads.heads.qa_windows import choose_windows, find_targets
from spacy_bert_heads.text.batch import PackedBatch


@pytest.mark.parametrize(
    "start, end, expected, known",
    [
        # window 0   a b c d e          slots 4 to 8
        # window 1         d e f g h    slots 14 to 18
        # window 2               g h i j   slots 24 to 27
        (0, 1, [(4, 4), (10, 10), (20, 20)], True),
        (4, 7, [(6, 7), (10, 10), (20, 20)], True),
        (4, 9, [(6, 8), (10, 10), (20, 20)], True),  # e has more context in the second
        (6, 7, [(7, 7), (14, 14), (20, 20)], True),  # in two windows
        (6, 9, [(7, 8), (14, 15), (20, 20)], True),
        (6, 15, [(0, 0), (14, 18), (20, 20)], True),  # all of the second window
        (14, 19, [(0, 0), (10, 10), (25, 27)], True),
        (5, 8, [(7, 7), (14, 14), (20, 20)], True),  # with the spaces around
        (4, 13, [(0, 0), (10, 10), (20, 20)], False),  # across windows
        (0, 19, [(0, 0), (10, 10), (20, 20)], False),  # longer than a window
        (1, 2, [(0, 0), (10, 10), (20, 20)], False),  # nothing but a space
        (0, 0, [(0, 0), (10, 10), (20, 20)], True),  # no answer
    ],
)
def test_find_answers(start, end, expected, known):
    batch = sequences_of((TEN, ["yz"]))
    targets = find_targets(batch, ints(start, end).reshape(1, 2))
    begins = batch.cu_seqlens[:-1, None]
    if known:
        assert (targets + begins).tolist() == [list(place) for place in expected]
    else:
        assert targets.tolist() == [[-1, -1]] * 3


def test_find_answers_of_a_batch_and_inside_tokens():
    batch = sequences_of(("abcd ef", ["x", "x"]), ("", ["y"]), (TEN, ["yz"]), stride=8)
    assert batch.seqlens.tolist() == [10, 10, 4, 10, 10]
    answers = np.asarray([[1, 3], [3, 6], [0, 0], [18, 19]])
    first, last = (find_targets(batch, answers) + batch.cu_seqlens[:-1, None]).T
    assert first.tolist() == [4, 16, 20, 24, 42]
    assert last.tolist() == [5, 17, 20, 24, 42]


def holding(rows, window: int, stride: int, answers: np.ndarray) -> list[list[list[int] | None]]:
    """Of each window of each pair the positions of the answer in its part, if it has all of it."""
    found, asked = [], [(context, text) for context, texts in rows for text in texts]
    for (context, text), (begin, end) in zip(asked, answers.tolist(), strict=True):
        offsets = letters().tokenizer.encode(context, add_special_tokens=False).offsets
        wanted = [i for i, (a, b) in enumerate(offsets) if a < end and b > begin and begin < end]
        room = window - 3 - len(text)
        step = room - min(window - 2 - stride, room // 2)
        own: list[list[int] | None] = []
        for start in range(0, max(len(offsets) - room, 0) + step, step):
            inside = wanted and start <= wanted[0] and wanted[-1] < start + room
            own.append([i - start for i in wanted] if inside else None)
        found.append(own)
    return found


@st.composite
def asked_cases(draw):
    """As above, with an answer to each question: (0, 0) or any characters."""
    rows, window, stride = draw(cases())
    answers = []
    for context, texts in rows:
        for _ in texts:
            end = draw(st.integers(0, len(context)))
            answers.append((draw(st.integers(0, end - 1)), end) if end else (0, 0))
    return rows, window, stride, np.asarray(answers, dtype=np.int64).reshape(-1, 2)


@settings(max_examples=80, deadline=None)
@given(case=asked_cases(), doc_first=st.booleans())
def test_find_answers_against_brute_force(case, doc_first):
    rows, window, stride, answers = case
    batch = sequences_of(*rows, window=window, stride=stride, doc_first=doc_first)
    expected = []
    texts = [text for _, texts in rows for text in texts]
    by_hand = holding(rows, window, stride, answers)
    for text, answer, windows in zip(texts, answers.tolist(), by_hand, strict=True):
        known = answer[0] == answer[1] or any(windows)
        for places in windows:
            at = 1 + (0 if doc_first else len(text) + 1)
            here = [at + places[0], at + places[-1]] if places else [0, 0]
            expected.append(here if known else [-1, -1])
    assert find_targets(batch, answers).tolist() == expected


def windows_of(batch: PackedBatch) -> list[list[tuple[int, ...]]]:
    """The pieces of each window of each pair, by the characters where they start."""
    parts = np.split(batch.offsets.starts, np.cumsum(batch.seqlens))[:-1]
    windows = iter(tuple(part[part >= 0].tolist()) for part in parts)
    return [[next(windows) for _ in range(n)] for n in batch.num_windows]


@settings(max_examples=80, deadline=None)
@given(case=asked_cases(), seed=st.integers(0, 99))
def test_chosen_windows_are_those_with_the_answer_and_one_without(case, seed):
    rows, window, stride, answers = case
    batch = sequences_of(*rows, window=window, stride=stride)
    np.random.seed(seed)
    chosen = windows_of(choose_windows(batch, answers)[0])
    by_hand = holding(rows, window, stride, answers)
    for every, kept, places in zip(windows_of(batch), chosen, by_hand, strict=True):
        with_answer = {one for one, place in zip(every, places, strict=True) if place}
        assert kept == sorted(kept)  # in order, none twice
        assert with_answer <= set(kept) <= set(every)
        assert len(kept) == len(with_answer) + min(1, len(every) - len(with_answer))


def test_any_window_without_the_answer_may_be_chosen():
    batch = sequences_of((TEN, ["yz"]), (TEN, ["x", "yz"]), ("a", ["z"]))
    assert batch.num_windows.tolist() == [3, 2, 3, 1]
    answers = np.asarray([[0, 1], [6, 7], [0, 0], [0, 1]])
    seen = Counter()
    for seed in range(200):
        np.random.seed(seed)
        kept = windows_of(choose_windows(batch, answers)[0])
        seen.update((i, one[0]) for i, own in enumerate(kept) for one in own)
        assert list(map(len, kept)) == [2, 2, 1, 1]
    assert seen[0, 0] == seen[1, 0] == seen[3, 0] == 200
    assert all(50 < count < 150 for place, count in seen.items() if place in [(0, 6), (0, 12)])
    assert {seen[2, start] > 40 for start in (0, 6, 12)} == {True}


@settings(max_examples=80, deadline=None)
@given(case=asked_cases(), seed=st.integers(0, 99))
def test_an_answer_is_where_it_was_after_the_choice_of_windows(case, seed):
    rows, window, stride, answers = case
    batch = sequences_of(*rows, window=window, stride=stride)
    np.random.seed(seed)
    found = []
    for one, targets in ((batch, find_targets(batch, answers)), choose_windows(batch, answers)):
        rows_of = iter(targets.tolist())
        found.append([{part: next(rows_of) for part in own} for own in windows_of(one)])
    for before, after in zip(*found, strict=True):
        assert after == {part: before[part] for part in after}


@pytest.mark.parametrize(
    "stride, answer, places",
    [
        # The second window has more context for e, but the answer is whole in the first alone.
        (6, (4, 9), {0: [6, 8], 6: [0, 0], 12: [0, 0]}),
        # No window holds it: no part of it may be learned, nor that it is not there.
        (6, (0, 19), {0: [-1, -1], 6: [-1, -1], 12: [-1, -1]}),
        (7, (0, 17), {0: [-1, -1], 8: [-1, -1], 16: [-1, -1]}),
    ],
)
def test_an_answer_in_chosen_windows_by_hand(stride, answer, places):
    batch = sequences_of((TEN, ["yz"]), stride=stride)
    answers = np.asarray([answer])
    for seed in range(20):
        np.random.seed(seed)
        kept, targets = choose_windows(batch, answers)
        starts = [one[0] for one in windows_of(kept)[0]]
        assert targets.tolist() == [places[start] for start in starts]
