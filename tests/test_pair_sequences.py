"""Sequences of pairs of texts, and their parts: by hand and by brute force."""

import copy

import numpy as np
import pytest
from arrays import ints
from hypothesis import given, settings
from hypothesis import strategies as st
from letter_pairs import (
    BLANK,
    CONTEXT,
    TEN,
    WORD,
    cases,
    pairs_of,
    pieces,
    sequences_of,
    sums_of_best,
)
from letters import CLS, LETTERS, SEP, letters, lists
from tokenizers import Tokenizer

from spacy_bert_heads.text.packing import pack_pairs
from spacy_bert_heads.text.pairs import Pairs, TextTooLong


def spaced(values: list[int | None]) -> list[int]:
    return [BLANK if value is None else value for value in values]


# --- batch by hand


def test_question_before_context():
    batch = sequences_of((TEN, ["yz"]), ("k lm", ["a", "x y"]), ("", ["c"]))
    # Beside "yz" there is room for 5 pieces. A Doc's own windows overlap by 10 - 2 - 6 = 2.
    yz = [CLS, *pieces("yz"), SEP]
    assert batch.input_ids.tolist() == [
        *(*yz, *pieces("a b c d e"), SEP),  # 0
        *(*yz, *pieces("d e f g h"), SEP),  # 10
        *(*yz, *pieces("g h i j"), SEP),  # 20
        *(CLS, *pieces("a"), SEP, *pieces("k lm"), SEP),  # 29
        *(CLS, *pieces("x y"), SEP, *pieces("k lm"), SEP),  # 36
        *(CLS, *pieces("c"), SEP, SEP),  # 44
    ]
    assert batch.seqlens.tolist() == [10, 10, 9, 7, 8, 4]
    assert batch.num_windows.tolist() == [3, 1, 1, 1]
    question, context = [0], [1]
    assert batch.token_type_ids.tolist() == [
        *(question * 4 + context * 6) * 2,
        *question * 4 + context * 5,
        *question * 3 + context * 4,
        *question * 4 + context * 4,
        *question * 3 + context,
    ]
    around = [None] * 4
    assert batch.offsets.starts.tolist() == spaced(
        [
            *(*around, 0, 2, 4, 6, 8, None),
            *(*around, 6, 8, 10, 12, 14, None),
            *(*around, 12, 14, 16, 18, None),
            *(*around[:3], 0, 2, 3, None),
            *(*around, 0, 2, 3, None),
            *around,
        ]
    )
    ends = np.where(batch.offsets.starts < 0, BLANK, batch.offsets.starts + 1)
    assert batch.offsets.ends.tolist() == ends.tolist()
    # context    0 1 2 1 0
    # pieces     a b c d e
    # context          0 1 2 1 0
    # pieces           d e f g h
    # context                0 1 1 0
    # pieces                 g h i j
    best = [5 + i for i in range(-1, 3)] + [15, 16, 17] + [25, 26, 27] + [32, 33, 34, 40, 41, 42]
    assert np.flatnonzero(batch.offsets.is_best).tolist() == best


def test_premise_before_hypothesis():
    batch = sequences_of(
        (TEN, ["yz"]), ("k lm", ["a", "x y"]), ("", ["c"]), doc_first=True, stride=7
    )
    yz = [SEP, *pieces("yz"), SEP]
    assert batch.input_ids.tolist() == [
        *(CLS, *pieces("a b c d e"), *yz),  # 0
        *(CLS, *pieces("e f g h i"), *yz),  # 10: an overlap of 10 - 2 - 7 = 1
        *(CLS, *pieces("i j"), *yz),  # 20
        *(CLS, *pieces("k lm"), SEP, *pieces("a"), SEP),  # 27
        *(CLS, *pieces("k lm"), SEP, *pieces("x y"), SEP),  # 34
        *(CLS, SEP, *pieces("c"), SEP),  # 42
    ]
    assert batch.seqlens.tolist() == [10, 10, 7, 7, 8, 4]
    assert batch.num_windows.tolist() == [3, 1, 1, 1]
    premise, hypothesis = [0], [1]
    assert batch.token_type_ids.tolist() == [
        *(premise * 7 + hypothesis * 3) * 2,
        *premise * 4 + hypothesis * 3,
        *premise * 5 + hypothesis * 2,
        *premise * 5 + hypothesis * 3,
        *premise * 2 + hypothesis * 2,
    ]
    behind = [None] * 4
    assert batch.offsets.starts.tolist() == spaced(
        [
            *(None, 0, 2, 4, 6, 8, *behind),
            *(None, 8, 10, 12, 14, 16, *behind),
            *(None, 16, 18, *behind),
            *(None, 0, 2, 3, *behind[:3]),
            *(None, 0, 2, 3, *behind),
            *behind,
        ]
    )
    # e and i stand at the edge of two windows: the first has them.
    best = [1, 2, 3, 4, 5, 12, 13, 14, 15, 22, 28, 29, 30, 35, 36, 37]
    assert np.flatnonzero(batch.offsets.is_best).tolist() == best


def test_each_question_of_a_doc_has_windows_of_its_own():
    batch = sequences_of((TEN, ["z", "vwxyz"]), window=12, stride=4)
    # Room for 8 and for 4 pieces. The Docs' windows overlap by 6; these by half their room.
    assert batch.num_windows.tolist() == [2, 4]
    windows = np.split(batch.input_ids, np.cumsum(batch.seqlens)[:-1])
    parts = ["a b c d e f g h", "e f g h i j", "a b c d", "c d e f", "e f g h", "g h i j"]
    texts = ["z"] * 2 + ["vwxyz"] * 4
    for found, part, text in zip(windows, parts, texts, strict=True):
        assert found.tolist() == [CLS, *pieces(text), SEP, *pieces(part), SEP]
    assert sums_of_best(batch) == [10, 10]


def test_no_pairs():
    batch = sequences_of()
    assert all(not values for name, values in lists(batch).items() if name != "cu_seqlens")
    assert batch.cu_seqlens.tolist() == [0]


@pytest.mark.parametrize("doc_first", [False, True])
@pytest.mark.parametrize("window, text", [(10, "vwxyz"), (11, "vwxyz"), (12, "uvwxyz")])
def test_a_second_text_may_fill_half_a_window(doc_first, window, text):
    batch = sequences_of((TEN, [text]), window=window, stride=3, doc_first=doc_first)
    assert sums_of_best(batch) == [10]
    assert batch.seqlens.max() == window
    longer = text + "a"
    with pytest.raises(TextTooLong, match=f"{len(text)} wordpieces.*'{longer}'") as caught:
        sequences_of((TEN, [longer, "a"]), ("a", ["b", longer * 2]), window=window, stride=3)
    assert caught.value.texts == [longer, longer * 2]


def test_a_text_that_is_too_long_is_shown_in_part():
    with pytest.raises(TextTooLong) as caught:
        sequences_of((TEN, ["ab " * 60]))
    assert f"'{('ab ' * 60)[:77]}…'" in str(caught.value)


@pytest.mark.parametrize("window, text", [(4, "yz"), (6, "xyz")])
def test_a_window_without_room_for_the_context(window, text):
    with pytest.raises(ValueError, match="window"):
        sequences_of((TEN, [text]), window=window, stride=1)


class Counting:
    """A tokenizer that remembers what it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.seen = tokenizer, []

    def encode_batch(self, texts: list[str], **options):
        self.seen += texts
        return self.tokenizer.encode_batch(texts, **options)


def test_a_doc_is_tokenized_once_for_all_its_texts():
    wordpieces = copy.copy(letters())
    counting = wordpieces.tokenizer = Counting(letters().tokenizer)
    questions = [[f"a{letter}" for letter in LETTERS], ["a", "b"], ["c"]]
    pairs = pairs_of(*zip([TEN, "k lm", ""], questions, strict=True))
    batch = pack_pairs(pairs, wordpieces, window=10, stride=6)
    assert batch.num_windows.tolist() == [3] * 26 + [1] * 3
    assert sorted(counting.seen) == sorted([TEN, "k lm", "", *sum(questions, [])])


# --- batch by brute force


def brute_force(rows, window: int, stride: int, doc_first: bool) -> dict[str, list[int]]:
    """The batch, pair by pair, window by window and slot by slot."""
    columns = ("input_ids", "token_type_ids", "seqlens", "num_windows", "starts", "ends", "is_best")
    made: dict[str, list] = {name: [] for name in columns}

    def add(slots: list[tuple[int, int, int]], kind: int) -> None:
        for piece, start, end in slots:
            made["input_ids"].append(piece)
            made["token_type_ids"].append(kind)
            made["starts"].append(start)
            made["ends"].append(end)
            made["is_best"].append(False)

    def special(piece: int) -> list[tuple[int, int, int]]:
        return [(piece, BLANK, BLANK)]

    for context, texts in rows:
        for text in texts:
            encoding = letters().tokenizer.encode(context, add_special_tokens=False)
            slots = [(p, *span) for p, span in zip(encoding.ids, encoding.offsets, strict=True)]
            asked = [slot for piece in pieces(text) for slot in special(piece)]
            room = window - 3 - len(asked)
            step = room - min(window - 2 - stride, room // 2)
            candidates: list[list[tuple[int, int]]] = [[] for _ in slots]
            start, n_windows = 0, 0
            while True:
                part = slots[start : start + room]
                began = len(made["input_ids"])
                first, second = (part, asked) if doc_first else (asked, part)
                add(special(CLS) + first + special(SEP), 0)
                add(second + special(SEP), 1)
                at = began + 1 + (0 if doc_first else len(asked) + 1)
                for i in range(len(part)):
                    candidates[start + i].append((min(i, len(part) - 1 - i), at + i))
                made["seqlens"].append(len(made["input_ids"]) - began)
                n_windows += 1
                if start + len(part) >= len(slots):
                    break
                start += step
            made["num_windows"].append(n_windows)
            for one in candidates:  # max takes the first of equals
                made["is_best"][max(one, key=lambda slot: slot[0])[1]] = True
    return made


@settings(max_examples=80, deadline=None)
@given(case=cases(), doc_first=st.booleans())
def test_pair_sequences_against_brute_force(case, doc_first):
    rows, window, stride = case
    batch = sequences_of(*rows, window=window, stride=stride, doc_first=doc_first)
    found = lists(batch)
    assert found.pop("cu_seqlens") == np.cumsum([0, *found["seqlens"]]).tolist()
    assert found == brute_force(rows, window, stride, doc_first)
    assert (batch.seqlens <= window).all()
    assert batch.input_ids.dtype == batch.token_type_ids.dtype == np.int64


@settings(max_examples=100, deadline=None)
@given(case=cases(), doc_first=st.booleans(), data=st.data())
def test_take_windows(case, doc_first, data):
    """Any windows, also in another order or more than once."""
    rows, window, stride = case
    batch = sequences_of(*rows, window=window, stride=stride, doc_first=doc_first)
    n = len(batch.seqlens)
    chosen = data.draw(st.lists(st.integers(0, n - 1), max_size=9)) if n else []
    taken, positions = batch.take_windows(ints(*chosen), ints(len(chosen)))
    ends = np.cumsum(batch.seqlens)
    before, after = lists(batch), lists(taken)
    for name in ("input_ids", "token_type_ids", "starts", "ends", "is_best"):
        parts = [part.tolist() for part in np.split(np.asarray(before[name]), ends[:-1])]
        assert after[name] == [x for i in chosen for x in parts[i]]
        assert after[name] == [before[name][i] for i in positions]
    assert after["seqlens"] == [before["seqlens"][i] for i in chosen]
    assert after["num_windows"] == [len(chosen)]
    assert taken.tokens is None


# --- parts of equal work


def test_split_by_hand():
    pairs = pairs_of(("a b", ["xy", "z"]), ("c", []), ("abcdef", ["x"]), ("", ["y", "z"]))
    # sizes              5      4              -               7               1    1
    assert pairs.num_pairs.tolist() == [2, 0, 1, 2]

    def split(max_chars: int) -> list[list[tuple[str, list[str]]]]:
        return [
            [(doc.text, texts) for doc, texts in zip(part.docs, part.texts, strict=True)]
            for part in pairs.split(max_chars)
        ]

    assert split(100) == [[("a b", ["xy", "z"]), ("abcdef", ["x"]), ("", ["y", "z"])]]
    assert split(9) == [[("a b", ["xy", "z"])], [("abcdef", ["x"]), ("", ["y", "z"])]]
    assert split(8) == [
        [("a b", ["xy"])],
        [("a b", ["z"])],
        [("abcdef", ["x"]), ("", ["y"])],
        [("", ["z"])],
    ]
    assert split(1) == [
        [("a b", ["xy"])],
        [("a b", ["z"])],
        [("abcdef", ["x"])],
        [("", ["y"])],
        [("", ["z"])],
    ]
    assert list(Pairs([], [], False).split(10)) == []


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(CONTEXT, st.lists(WORD, max_size=4)), max_size=5),
    max_chars=st.integers(1, 150),
    doc_first=st.booleans(),
)
def test_parts_hold_every_pair_once_within_the_budget(rows, max_chars, doc_first):
    pairs = pairs_of(*rows, doc_first=doc_first)
    parts = list(pairs.split(max_chars))

    def flat(part: Pairs) -> list[tuple[int, str, int]]:
        return [
            (id(doc), text, len(doc.text) + len(text))
            for doc, texts in zip(part.docs, part.texts, strict=True)
            for text in texts
        ]

    assert [pair for part in parts for pair in flat(part)] == flat(pairs)
    sizes = [[size for *_, size in flat(part)] for part in parts]
    assert all(sum(part) <= max_chars or len(part) == 1 for part in sizes)
    # None was closed before it had to be; a Doc stands in a part once.
    assert not any(
        sum(one) + following[0] <= max_chars
        for one, following in zip(sizes, sizes[1:], strict=False)
    )
    assert all(len(set(map(id, part.docs))) == len(part.docs) for part in parts)
    assert all(part.doc_first is doc_first for part in parts)
