"""Pairs of texts: sequences, windows, spans and scores, by hand and by brute force."""

import copy
import random
import re
import string
import warnings
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import sklearn.metrics
import spacy
from checkpoints import FAMILIES, TEXTS, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from spacy.training import Example
from test_sequences import CLS, LETTERS, SEP, A, ints, letters, lists
from tokenizers import Tokenizer
from torchmetrics.functional.text import squad

from spacy_bert_heads.heads.answers import best_spans, best_threshold, compare_answers, score_qa
from spacy_bert_heads.heads.nli import score_nli
from spacy_bert_heads.pairs import make_verdict
from spacy_bert_heads.sequences import (
    TextTooLong,
    choose_windows,
    find_answers,
    make_pair_sequences,
    set_targets,
)
from spacy_bert_heads.types import Pairs, PairSequences
from spacy_bert_heads.wordpieces import Wordpieces

NLP = spacy.blank("en")
BLANK = -1


def pairs_of(*rows: tuple[str, list[str]], doc_first: bool = False, answers=None) -> Pairs:
    """Docs with words apart, and what is asked of them."""
    docs = []
    for text, _ in rows:
        words = text.split()
        docs.append(
            Doc(NLP.vocab, words=words, spaces=[True] * len(words[1:]) + [False] * bool(words))
        )
    return Pairs(docs, [texts for _, texts in rows], doc_first, answers)


def sequences_of(*rows, window: int = 10, stride: int = 6, doc_first: bool = False):
    pairs = pairs_of(*rows, doc_first=doc_first)
    return make_pair_sequences(pairs, letters(), window=window, stride=stride)


def pieces(text: str) -> list[int]:
    """The ids of words of the letters' tokenizer."""
    return [
        A + LETTERS.index(letter) + (len(LETTERS) if i else 0)
        for word in text.split()
        for i, letter in enumerate(word)
    ]


def spaced(values: list[int | None]) -> list[int]:
    return [BLANK if value is None else value for value in values]


TEN = "a b c d e f g h i j"


# --- sequences by hand


def test_question_before_context():
    sequences = sequences_of((TEN, ["yz"]), ("k lm", ["a", "x y"]), ("", ["c"]))
    # Beside "yz" there is room for 5 pieces. A Doc's own windows overlap by 10 - 2 - 6 = 2.
    yz = [CLS, *pieces("yz"), SEP]
    assert sequences.ids.tolist() == [
        *(*yz, *pieces("a b c d e"), SEP),  # 0
        *(*yz, *pieces("d e f g h"), SEP),  # 10
        *(*yz, *pieces("g h i j"), SEP),  # 20
        *(CLS, *pieces("a"), SEP, *pieces("k lm"), SEP),  # 29
        *(CLS, *pieces("x y"), SEP, *pieces("k lm"), SEP),  # 36
        *(CLS, *pieces("c"), SEP, SEP),  # 44
    ]
    assert sequences.lengths.tolist() == [10, 10, 9, 7, 8, 4]
    assert sequences.windows.tolist() == [3, 1, 1, 1]
    question, context = [0], [1]
    assert sequences.type_ids.tolist() == [
        *(question * 4 + context * 6) * 2,
        *question * 4 + context * 5,
        *question * 3 + context * 4,
        *question * 4 + context * 4,
        *question * 3 + context,
    ]
    around = [None] * 4
    assert sequences.starts.tolist() == spaced(
        [
            *(*around, 0, 2, 4, 6, 8, None),
            *(*around, 6, 8, 10, 12, 14, None),
            *(*around, 12, 14, 16, 18, None),
            *(*around[:3], 0, 2, 3, None),
            *(*around, 0, 2, 3, None),
            *around,
        ]
    )
    ends = np.where(sequences.starts < 0, BLANK, sequences.starts + 1)
    assert sequences.ends.tolist() == ends.tolist()
    # context    0 1 2 1 0
    # pieces     a b c d e
    # context          0 1 2 1 0
    # pieces           d e f g h
    # context                0 1 1 0
    # pieces                 g h i j
    best = [5 + i for i in range(-1, 3)] + [15, 16, 17] + [25, 26, 27] + [32, 33, 34, 40, 41, 42]
    assert np.flatnonzero(sequences.best).tolist() == best


def test_premise_before_hypothesis():
    sequences = sequences_of(
        (TEN, ["yz"]), ("k lm", ["a", "x y"]), ("", ["c"]), doc_first=True, stride=7
    )
    yz = [SEP, *pieces("yz"), SEP]
    assert sequences.ids.tolist() == [
        *(CLS, *pieces("a b c d e"), *yz),  # 0
        *(CLS, *pieces("e f g h i"), *yz),  # 10: an overlap of 10 - 2 - 7 = 1
        *(CLS, *pieces("i j"), *yz),  # 20
        *(CLS, *pieces("k lm"), SEP, *pieces("a"), SEP),  # 27
        *(CLS, *pieces("k lm"), SEP, *pieces("x y"), SEP),  # 34
        *(CLS, SEP, *pieces("c"), SEP),  # 42
    ]
    assert sequences.lengths.tolist() == [10, 10, 7, 7, 8, 4]
    assert sequences.windows.tolist() == [3, 1, 1, 1]
    premise, hypothesis = [0], [1]
    assert sequences.type_ids.tolist() == [
        *(premise * 7 + hypothesis * 3) * 2,
        *premise * 4 + hypothesis * 3,
        *premise * 5 + hypothesis * 2,
        *premise * 5 + hypothesis * 3,
        *premise * 2 + hypothesis * 2,
    ]
    behind = [None] * 4
    assert sequences.starts.tolist() == spaced(
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
    assert np.flatnonzero(sequences.best).tolist() == best


def test_each_question_of_a_doc_has_windows_of_its_own():
    sequences = sequences_of((TEN, ["z", "vwxyz"]), window=12, stride=4)
    # Room for 8 and for 4 pieces. The Docs' windows overlap by 6; these by half their room.
    assert sequences.windows.tolist() == [2, 4]
    windows = np.split(sequences.ids, np.cumsum(sequences.lengths)[:-1])
    parts = ["a b c d e f g h", "e f g h i j", "a b c d", "c d e f", "e f g h", "g h i j"]
    texts = ["z"] * 2 + ["vwxyz"] * 4
    for found, part, text in zip(windows, parts, texts, strict=True):
        assert found.tolist() == [CLS, *pieces(text), SEP, *pieces(part), SEP]
    assert sums_of_best(sequences) == [10, 10]


def sums_of_best(sequences: PairSequences) -> list[int]:
    """How many pieces each pair has."""
    pair_of = np.repeat(np.arange(len(sequences.windows)), sequences.windows)
    return np.bincount(np.repeat(pair_of, sequences.lengths)[sequences.best]).tolist()


def test_no_pairs():
    sequences = sequences_of()
    values = {name: len(value) for name, value in vars(sequences).items() if name != "targets"}
    assert set(values.values()) == {0}
    assert len(values) == 7


@pytest.mark.parametrize("doc_first", [False, True])
@pytest.mark.parametrize("window, text", [(10, "vwxyz"), (11, "vwxyz"), (12, "uvwxyz")])
def test_a_second_text_may_fill_half_a_window(doc_first, window, text):
    sequences = sequences_of((TEN, [text]), window=window, stride=3, doc_first=doc_first)
    assert sums_of_best(sequences) == [10]
    assert sequences.lengths.max() == window
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
    sequences = make_pair_sequences(pairs, wordpieces, window=10, stride=6)
    assert sequences.windows.tolist() == [3] * 26 + [1] * 3
    assert sorted(counting.seen) == sorted([TEN, "k lm", "", *sum(questions, [])])


# --- sequences by brute force

WORD = st.text("abc", min_size=1, max_size=4)
CONTEXT = st.lists(WORD, max_size=14).map(" ".join)
SHAPES = st.integers(8, 18).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w - 2)))


@st.composite
def cases(draw, max_docs: int = 3):
    """Docs with second texts, a window and a stride."""
    window, stride = draw(SHAPES)
    text = st.text("xyz", min_size=1, max_size=window // 2)
    row = st.tuples(CONTEXT, st.lists(text, max_size=3))
    return draw(st.lists(row, max_size=max_docs)), window, stride


def brute_force(rows, window: int, stride: int, doc_first: bool) -> dict[str, list[int]]:
    """The sequences, pair by pair, window by window and slot by slot."""
    columns = ("ids", "type_ids", "lengths", "windows", "starts", "ends", "best")
    made: dict[str, list] = {name: [] for name in columns}

    def add(slots: list[tuple[int, int, int]], kind: int) -> None:
        for piece, start, end in slots:
            made["ids"].append(piece)
            made["type_ids"].append(kind)
            made["starts"].append(start)
            made["ends"].append(end)
            made["best"].append(False)

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
                began = len(made["ids"])
                first, second = (part, asked) if doc_first else (asked, part)
                add(special(CLS) + first + special(SEP), 0)
                add(second + special(SEP), 1)
                at = began + 1 + (0 if doc_first else len(asked) + 1)
                for i in range(len(part)):
                    candidates[start + i].append((min(i, len(part) - 1 - i), at + i))
                made["lengths"].append(len(made["ids"]) - began)
                n_windows += 1
                if start + len(part) >= len(slots):
                    break
                start += step
            made["windows"].append(n_windows)
            for one in candidates:  # max takes the first of equals
                made["best"][max(one, key=lambda slot: slot[0])[1]] = True
    return made


@settings(max_examples=80, deadline=None)
@given(case=cases(), doc_first=st.booleans())
def test_pair_sequences_against_brute_force(case, doc_first):
    rows, window, stride = case
    sequences = sequences_of(*rows, window=window, stride=stride, doc_first=doc_first)
    assert lists(sequences) == brute_force(rows, window, stride, doc_first)
    assert (sequences.lengths <= window).all()
    assert sequences.ids.dtype == sequences.type_ids.dtype == np.int64


@settings(max_examples=100, deadline=None)
@given(case=cases(), doc_first=st.booleans(), data=st.data())
def test_keep(case, doc_first, data):
    rows, window, stride = case
    sequences = sequences_of(*rows, window=window, stride=stride, doc_first=doc_first)
    n = len(sequences.lengths)
    chosen = np.asarray(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)
    kept = sequences.keep(chosen)
    ends = np.cumsum(sequences.lengths)
    for name in ("ids", "type_ids", "starts", "ends", "best"):
        parts = np.split(getattr(sequences, name), ends[:-1]) if n else []
        expected = [x for part, keep in zip(parts, chosen, strict=True) if keep for x in part]
        assert getattr(kept, name).tolist() == expected
    owners = np.repeat(np.arange(len(sequences.windows)), sequences.windows)[chosen]
    assert kept.windows.tolist() == [
        int((owners == i).sum()) for i in range(len(sequences.windows))
    ]
    assert kept.lengths.tolist() == sequences.lengths[chosen].tolist()


# --- sequences beside Hugging Face's


@cache
def tokenizers_of(kind: str):
    """Hugging Face's tokenizer and ours."""
    theirs = make_tokenizer(kind)
    ours = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    return theirs, Wordpieces(ours, pad_id=theirs.pad_token_id)


QUESTIONS = ["Why did it burn?", "Who can't swim", "船", "a  pump, or\ttwo 😀"]
CONTEXTS = [*TEXTS, "", "A fire", " ".join(TEXTS), "  Anna\n\nleft  Skagen "]


@pytest.mark.parametrize("doc_first", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_are_hugging_faces(family, doc_first):
    theirs, wordpieces = tokenizers_of(FAMILIES[family])
    docs = [NLP.make_doc(text) for text in CONTEXTS]
    pairs = Pairs(docs, [QUESTIONS] * len(docs), doc_first)
    sequences = make_pair_sequences(pairs, wordpieces, window=2000, stride=1900)
    assert (sequences.windows == 1).all()
    found = np.split(np.stack([sequences.ids, sequences.type_ids]), np.cumsum(sequences.lengths), 1)
    rows = [(doc.text, text) for doc in docs for text in QUESTIONS]
    for (context, text), ids in zip(rows, found[:-1], strict=True):
        # In a list, for an empty text alone is no text at all to it.
        expected = theirs(*(([context], [text]) if doc_first else ([text], [context])))
        assert ids.tolist() == [expected["input_ids"][0], expected["token_type_ids"][0]]


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Offsets without the white space that some tokenizers count to the word behind it."""
    piece = text[start:end]
    return (start + len(piece) - len(piece.lstrip()), end) if piece.strip() else (start, end)


@pytest.mark.parametrize("doc_first", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window, stride", [(48, 40), (64, 32), (100, 90)])
def test_windows_of_pairs_are_hugging_faces(family, doc_first, window, stride):
    theirs, wordpieces = tokenizers_of(FAMILIES[family])
    docs = [NLP.make_doc(text) for text in (" ".join(TEXTS * 2), TEXTS[0])]
    pairs = Pairs(docs, [QUESTIONS] * len(docs), doc_first)
    sequences = make_pair_sequences(pairs, wordpieces, window=window, stride=stride)
    ends = np.cumsum(sequences.lengths)
    rows = np.stack([sequences.ids, sequences.type_ids, sequences.starts, sequences.ends])
    found = iter(np.split(rows, ends[:-1], 1))
    n_special = theirs.num_special_tokens_to_add(pair=True)
    asked = [(doc.text, text) for doc in docs for text in QUESTIONS]
    for (context, text), n_windows in zip(asked, sequences.windows.tolist(), strict=True):
        room = window - n_special - len(theirs(text, add_special_tokens=False)["input_ids"])
        expected = theirs(
            *((context, text) if doc_first else (text, context)),
            truncation="only_first" if doc_first else "only_second",
            max_length=window,
            stride=min(window - 2 - stride, room // 2),  # Hugging Face's stride is the overlap
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        assert len(expected["input_ids"]) == n_windows
        covered = set()
        for i in range(n_windows):
            ids, type_ids, starts, stops = next(found).tolist()
            assert ids == expected["input_ids"][i]
            assert type_ids == expected["token_type_ids"][i]
            of_context = 0 if doc_first else 1
            offsets = [
                trimmed(context, *offset) if of == of_context else (BLANK, BLANK)
                for of, offset in zip(
                    expected.sequence_ids(i), expected["offset_mapping"][i], strict=True
                )
            ]
            assert list(zip(starts, stops, strict=True)) == offsets
            covered.update(offset for offset in offsets if offset != (BLANK, BLANK))
        every = theirs(context, add_special_tokens=False, return_offsets_mapping=True)
        assert covered == {trimmed(context, *offset) for offset in every["offset_mapping"]}
    assert next(found, None) is None
    assert sequences.windows[: len(QUESTIONS)].min() > 1
    n_pieces = wordpieces([doc.text for doc in docs]).lengths
    assert sums_of_best(sequences) == np.repeat(n_pieces, len(QUESTIONS)).tolist()


# --- parts of equal work


def test_split_by_hand():
    pairs = pairs_of(("a b", ["xy", "z"]), ("c", []), ("abcdef", ["x"]), ("", ["y", "z"]))
    # sizes              5      4              -               7               1    1
    assert pairs.sizes.tolist() == [2, 0, 1, 2]

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
    assert all(part.doc_first is doc_first and part.answers is None for part in parts)


# --- answers in windows


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
    sequences = sequences_of((TEN, ["yz"]))
    first, last, found = find_answers(sequences, ints(start, end).reshape(1, 2))
    assert list(zip(first.tolist(), last.tolist(), strict=True)) == expected
    assert found.tolist() == [known] * 3


def test_find_answers_of_a_batch_and_inside_tokens():
    sequences = sequences_of(("abcd ef", ["x", "x"]), ("", ["y"]), (TEN, ["yz"]), stride=8)
    assert sequences.lengths.tolist() == [10, 10, 4, 10, 10]
    answers = np.asarray([[1, 3], [3, 6], [0, 0], [18, 19]])
    first, last, known = find_answers(sequences, answers)
    assert first.tolist() == [4, 16, 20, 24, 42]
    assert last.tolist() == [5, 17, 20, 24, 42]
    assert known.tolist() == [True] * 5


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
    sequences = sequences_of(*rows, window=window, stride=stride, doc_first=doc_first)
    firsts, lasts, knowns = [], [], []
    texts = [text for _, texts in rows for text in texts]
    base = iter((np.cumsum(sequences.lengths) - sequences.lengths).tolist())
    by_hand = holding(rows, window, stride, answers)
    for text, answer, windows in zip(texts, answers.tolist(), by_hand, strict=True):
        known = answer[0] == answer[1] or any(windows)
        for places in windows:
            cls = next(base)
            at = cls + 1 + (0 if doc_first else len(text) + 1)
            firsts.append(at + places[0] if places else cls)
            lasts.append(at + places[-1] if places else cls)
            knowns.append(known)
    first, last, known = find_answers(sequences, answers)
    assert (first.tolist(), last.tolist(), known.tolist()) == (firsts, lasts, knowns)


def windows_of(sequences: PairSequences) -> list[list[tuple[int, ...]]]:
    """The pieces of each window of each pair, by the characters where they start."""
    parts = np.split(sequences.starts, np.cumsum(sequences.lengths))[:-1]
    windows = iter(tuple(part[part >= 0].tolist()) for part in parts)
    return [[next(windows) for _ in range(n)] for n in sequences.windows]


@settings(max_examples=80, deadline=None)
@given(case=asked_cases(), seed=st.integers(0, 99))
def test_chosen_windows_are_those_with_the_answer_and_one_without(case, seed):
    rows, window, stride, answers = case
    sequences = sequences_of(*rows, window=window, stride=stride)
    np.random.seed(seed)
    chosen = windows_of(choose_windows(sequences, answers))
    by_hand = holding(rows, window, stride, answers)
    for every, kept, places in zip(windows_of(sequences), chosen, by_hand, strict=True):
        with_answer = {one for one, place in zip(every, places, strict=True) if place}
        assert kept == sorted(kept)  # in order, none twice
        assert with_answer <= set(kept) <= set(every)
        assert len(kept) == len(with_answer) + min(1, len(every) - len(with_answer))


def test_any_window_without_the_answer_may_be_chosen():
    sequences = sequences_of((TEN, ["yz"]), (TEN, ["x", "yz"]), ("a", ["z"]))
    assert sequences.windows.tolist() == [3, 2, 3, 1]
    answers = np.asarray([[0, 1], [6, 7], [0, 0], [0, 1]])
    seen = Counter()
    for seed in range(200):
        np.random.seed(seed)
        kept = windows_of(choose_windows(sequences, answers))
        seen.update((i, one[0]) for i, own in enumerate(kept) for one in own)
        assert list(map(len, kept)) == [2, 2, 1, 1]
    assert seen[0, 0] == seen[1, 0] == seen[3, 0] == 200
    assert all(50 < count < 150 for place, count in seen.items() if place in [(0, 6), (0, 12)])
    assert {seen[2, start] > 40 for start in (0, 6, 12)} == {True}


@settings(max_examples=80, deadline=None)
@given(case=asked_cases(), seed=st.integers(0, 99))
def test_an_answer_is_where_it_was_after_the_choice_of_windows(case, seed):
    rows, window, stride, answers = case
    sequences = sequences_of(*rows, window=window, stride=stride)
    np.random.seed(seed)
    kept = choose_windows(sequences, answers)
    found = []
    for one in (set_targets(sequences, answers), kept):
        rows_of = iter(one.targets.tolist())
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
    sequences = sequences_of((TEN, ["yz"]), stride=stride)
    answers = np.asarray([answer])
    for seed in range(20):
        np.random.seed(seed)
        kept = choose_windows(sequences, answers)
        starts = [one[0] for one in windows_of(kept)[0]]
        assert kept.targets.tolist() == [places[start] for start in starts]


# --- the best spans


def every_span(logits, sequences: PairSequences, max_length: int):
    """Of each pair the logit of no answer, and all spans (logit, start, end) in order."""
    found, slot, n = [], 0, 0
    for n_windows in sequences.windows.tolist():
        null, spans = np.inf, []
        for length in sequences.lengths[n : n + n_windows].tolist():
            own = range(slot, slot + length)
            null = min(null, float(logits[slot][0]) + float(logits[slot][1]))
            places = [i for i in own if sequences.ends[i] > sequences.starts[i]]
            for a, first in enumerate(places):
                if sequences.best[first]:
                    for last in places[a : a + max_length]:
                        logit = logits[first][0] + logits[last][1]
                        spans.append(
                            (float(logit), int(sequences.starts[first]), int(sequences.ends[last]))
                        )
            slot += length
        n += n_windows
        found.append((null, spans))
    return found


def greedy(spans, n_best: int):
    """The best, then the best of what doesn't overlap it, and so on; max takes the first."""
    chosen = []
    while spans and len(chosen) < n_best:
        best = max(spans, key=lambda span: span[0])
        chosen.append(best)
        spans = [span for span in spans if span[2] <= best[1] or best[2] <= span[1]]
    return chosen


def assert_best_spans(logits, sequences, max_length: int, n_best: int, *, some=None) -> None:
    found = best_spans(logits, sequences, max_length=max_length, n_best=n_best)
    expected = every_span(logits, sequences, max_length)
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
    sequences = sequences_of((TEN, ["yz"]))
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
    found = best_spans(logits, sequences, max_length=3, n_best=3)
    # c to e; h to j; f alone, for e is taken
    assert found.starts.tolist() == [[4, 14, 10]]
    assert found.ends.tolist() == [[9, 19, 11]]
    null = 0.0  # the lowest of 3.5, 1.25 and 0
    assert found.no_answer[0] == pytest.approx(1 / (1 + np.exp(13 - null)))
    assert found.scores[0, 1] / found.scores[0, 0] == pytest.approx(np.exp(3 - 13))
    assert found.scores[0, 2] / found.scores[0, 0] == pytest.approx(np.exp(0.5 - 13))
    assert_best_spans(logits, sequences, 3, 3)


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
    sequences = sequences_of(*rows, window=window, stride=stride, doc_first=doc_first)
    # Some pieces hold no character: they can be neither start nor end.
    hollow = np.isin(sequences.starts, list(empty))
    ends = np.where(hollow, sequences.starts, sequences.ends)
    sequences = replace(sequences, ends=ends)
    seed = data.draw(st.integers(0, 2**16))
    some = data.draw(st.lists(VALUES, min_size=1, max_size=12))
    rng = np.random.default_rng(seed)
    logits = rng.choice(some, (len(sequences.ids), 2))  # with ties
    if seed % 2:
        logits += rng.normal(size=logits.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_best_spans(logits, sequences, max_length, n_best)


@pytest.mark.parametrize("window, stride", [(10, 6), (12, 10), (40, 30)])
def test_probabilities_add_up_with_no_answer(window, stride):
    sequences = sequences_of((TEN, ["yz", "z"]), ("a b", ["x"]), window=window, stride=stride)
    logits = np.random.default_rng(0).normal(size=(len(sequences.ids), 2)) * 2
    # Of one piece each, so that none overlaps another and all are found.
    found = best_spans(logits, sequences, max_length=1, n_best=12)
    assert (found.scores > 0).sum(axis=1).tolist() == [10, 10, 2]
    none = found.scores[:, 0] * found.no_answer / (1 - found.no_answer)
    assert (found.scores.sum(axis=1) + none).tolist() == pytest.approx([1.0] * 3)


def test_best_spans_without_any_piece():
    sequences = sequences_of(("", ["x"]), ("", ["y"]))
    found = best_spans(np.ones((8, 2), dtype="f"), sequences, max_length=3, n_best=2)
    assert [column.tolist() for column in found[:3]] == [[[0, 0], [0, 0]]] * 3
    assert found.no_answer.tolist() == [1.0, 1.0]
    nothing = best_spans(np.ones((0, 2), dtype="f"), sequences_of(), max_length=3, n_best=2)
    assert [column.shape for column in nothing] == [(0, 2), (0, 2), (0, 2), (0,)]


def test_large_logits_neither_overflow_nor_vanish():
    sequences = sequences_of(("a", ["x"]), ("b", ["x"]), ("", ["x"]))
    # [CLS] x [SEP] a [SEP]
    logits = np.zeros((14, 2), dtype="f")
    logits[3], logits[5] = 10_000, 10_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = best_spans(logits, sequences, max_length=2, n_best=2)
    assert found.scores.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert found.no_answer.tolist() == [0.0, 1.0, 1.0]
    assert found.starts[:, 0].tolist() == [0, 0, 0]
    assert found.ends[:, 0].tolist() == [1, 1, 0]


def test_best_spans_of_a_large_batch():
    rng = np.random.default_rng(0)
    contexts = [" ".join(rng.choice(list(LETTERS), n)) for n in rng.integers(0, 60, 100)]
    questions = ["".join(rng.choice(list(LETTERS), n)) for n in rng.integers(1, 9, 20)]
    sequences = sequences_of(*((one, questions) for one in contexts), window=24, stride=16)
    assert len(sequences.windows) == 2000
    assert len(sequences.lengths) > 6000
    logits = rng.normal(size=(len(sequences.ids), 2)).astype(np.float32) * 3
    some = rng.choice(2000, 100, replace=False)
    assert_best_spans(logits, sequences, 5, 3, some=some.tolist())


# --- scores of answers

WORDS = (
    "the a an The AN cat Cat. cat's U.S. theatre anna 1,000 3.5% naïve É “so” don't well-known — … "
    "船 港口 😀 Straße İzmir œuvre ( ) , ' the. .a thé a-b"
)


def draw_answer(rng: random.Random) -> str:
    words = rng.choices(WORDS.split(), k=rng.randint(0, 5))
    spaces = [" ", " ", " ", "  ", "\n", "\u00a0", "-", ""]
    return "".join(word + rng.choice(spaces) for word in words).strip()


def vary(rng: random.Random, text: str) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words[: rng.randint(0, len(words))] + rng.choices(WORDS.split(), k=1))


# Word for word the official script's (evaluate-v2.0.py).


def normalize_answer(s):
    def remove_articles(text):
        regex = re.compile(r"\b(a|an|the)\b", re.UNICODE)
        return re.sub(regex, " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    def lower(text):
        return text.lower()

    return white_space_fix(remove_articles(remove_punc(lower(s))))


def get_tokens(s):
    if not s:
        return []
    return normalize_answer(s).split()


def compute_exact(a_gold, a_pred):
    return int(normalize_answer(a_gold) == normalize_answer(a_pred))


def compute_f1(a_gold, a_pred):
    gold_toks = get_tokens(a_gold)
    pred_toks = get_tokens(a_pred)
    common = Counter(gold_toks) & Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        # If either is no-answer, then F1 is 1 if they agree, 0 otherwise
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    f1 = (2 * precision * recall) / (precision + recall)
    return f1


def official(gold: list[str], predicted: str) -> tuple[float, float]:
    gold_answers = [text for text in gold if normalize_answer(text)]
    if not gold_answers:
        # For unanswerable questions, only correct answer is empty string
        gold_answers = [""]
    return (
        max(compute_exact(a, predicted) for a in gold_answers),
        max(compute_f1(a, predicted) for a in gold_answers),
    )


def entry(text: str, *others: str, no_answer: float = 0.0, alternatives=()) -> dict:
    """An entry of `doc._.answers`; its place does not matter here."""
    places = {"start_char": 0, "end_char": len(text), "start": 0, "end": 1}
    more = [*(entry(other) for other in others), *alternatives]
    found = {"score": 1.0, "no_answer_score": no_answer, "alternatives": more}
    return {"text": text, **places, **found}


def qa_examples(gold: list, predicted: list, *, nlp=NLP) -> list[Example]:
    """Examples of up to three questions."""
    examples = []
    for start in range(0, len(gold), 3):
        docs = [nlp.make_doc("a") for _ in range(2)]
        for doc, entries in zip(docs, (predicted, gold), strict=True):
            doc._.answers = entries[start : start + 3]
            doc._.questions = [f"Q{i}" for i in range(len(doc._.answers))]
        examples.append(Example(*docs))
    return examples


def draw_answers(n: int, seed: int) -> list[tuple[list[str], str]]:
    """Right answers, and a guess that often has something of one."""
    rng, drawn = random.Random(seed), []
    for _ in range(n):
        gold = [draw_answer(rng) for _ in range(rng.randint(1, 4))]
        kind = rng.random()
        if kind < 0.4:
            guess = vary(rng, rng.choice(gold))
        elif kind < 0.7:
            guess = f" {rng.choice(gold).upper()}. "
        else:
            guess = draw_answer(rng)
        drawn.append((gold, guess))
    return drawn


def test_answers_are_scored_as_torchmetrics_does():
    drawn = [
        (gold, guess)
        for gold, guess in draw_answers(3000, 0)
        if all(normalize_answer(text) for text in gold)
    ]
    assert len(drawn) > 1500
    figures, totals = set(), np.zeros(2)
    for gold, guess in drawn:
        theirs = squad(
            [{"prediction_text": guess, "id": "0"}],
            [{"answers": {"answer_start": [0] * len(gold), "text": gold}, "id": "0"}],
        )
        expected = theirs["exact_match"].item() / 100, theirs["f1"].item() / 100
        assert compare_answers(guess, gold) == pytest.approx(expected, abs=1e-6), (gold, guess)
        figures.add(round(expected[1], 3))
        totals += expected
    assert len(figures) > 10
    examples = qa_examples(
        [entry(*gold) for gold, _ in drawn], [entry(guess) for _, guess in drawn]
    )
    scores = score_qa(examples)
    assert scores["qa_exact"] == pytest.approx(totals[0] / len(drawn))
    assert scores["qa_f1"] == pytest.approx(totals[1] / len(drawn))
    assert 0.2 < scores["qa_exact"] < scores["qa_f1"] < 0.9


def test_answers_are_scored_as_the_official_script_does():
    drawn = draw_answers(3000, 1)
    drawn += [([""], guess) for _, guess in draw_answers(500, 2)]
    drawn += [(["", *gold], guess) for gold, guess in draw_answers(500, 3)]
    for gold, guess in drawn:
        assert compare_answers(guess, gold) == pytest.approx(official(gold, guess)), (gold, guess)
    assert {official(gold, guess) for gold, guess in drawn if gold == [""]} == {(0, 0), (1, 1)}


@pytest.mark.parametrize(
    "guess, gold, exact, f1",
    [
        ("the Cat.", ["cat"], 1, 1),
        ("", [""], 1, 1),
        ("cat", [""], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", [""], 1, 1),  # an article is no answer
        ("", ["the"], 1, 1),
        ("", ["the", "cat"], 0, 0),  # one of the two is an answer, and it is missed
        ("red cat", ["cat", "big red cat"], 0, 0.8),  # 2 of 2 and 2 of 3; 1 of 2 and 1 of 1 is 2/3
        ("cat cat", ["cat"], 0, 2 / 3),
        ("dog", ["cat", "bird"], 0, 0),
        ("1,000", ["1000"], 1, 1),
        ("well-known", ["wellknown"], 1, 1),
        ("“cat”", ["cat"], 0, 0),  # the script knows ASCII punctuation alone
    ],
)
def test_compare_answers_by_hand(guess, gold, exact, f1):
    assert compare_answers(guess, gold) == pytest.approx((exact, f1))
    assert official(gold, guess) == pytest.approx((exact, f1))


@pytest.mark.parametrize("lang", ["zh", "ja", "th"])
@pytest.mark.parametrize(
    "guess, gold, exact, f1",
    [
        ("北京大学", ["北京"], 0, 2 / 3),  # 2 of 4 and 2 of 2
        ("北京。", ["《北京》"], 1, 1),
        ("京北", ["北京"], 0, 1),  # the same characters in another order
        ("上海", ["北京"], 0, 0),
        ("上海", ["北京", "上海市"], 0, 0.8),  # 2 of 2 and 2 of 3
        ("北 京\n", ["北京"], 1, 1),
        ("人人", ["人"], 0, 2 / 3),
        ("¥3,000元", ["3000元"], 1, 1),
        ("the A", ["A"], 0, 0.4),  # characters: 1 of 4 and 1 of 1
        ("a", ["A"], 1, 1),
        ("。", [""], 1, 1),
        ("北京", [""], 0, 0),
        ("", ["北京"], 0, 0),
    ],
)
def test_chinese_is_compared_by_characters(lang, guess, gold, exact, f1):
    assert compare_answers(guess, gold, lang) == pytest.approx((exact, f1))


def test_the_language_is_the_references():
    gold, guess = [entry("北京")], [entry("北京大学")]
    assert score_qa(qa_examples(gold, guess))["qa_f1"] == 0
    found = score_qa(qa_examples(gold, guess, nlp=spacy.blank("zh")))
    assert found["qa_f1"] == pytest.approx(2 / 3)


def test_score_qa_by_hand():
    gold = [entry("red cat", "cat"), entry(""), None, entry(""), entry("dog")]
    guess = [entry("big cat"), entry(""), entry("x"), entry("cat"), entry("the dog")]
    assert score_qa(qa_examples(gold, guess)) == {
        "qa_exact": 2 / 4,
        "qa_f1": pytest.approx((2 / 3 + 1 + 0 + 1) / 4),
        "qa_per_type": {
            "answer": {"exact": 1 / 2, "f1": pytest.approx((2 / 3 + 1) / 2), "count": 2},
            "no answer": {"exact": 1 / 2, "f1": 1 / 2, "count": 2},
        },
    }
    nothing = {"qa_exact": None, "qa_f1": None, "qa_per_type": None}
    assert score_qa([]) == score_qa(qa_examples([None], [entry("x")])) == nothing
    only = score_qa(qa_examples([entry("cat")], [entry("cat")]))["qa_per_type"]
    assert only == {"answer": {"exact": 1.0, "f1": 1.0, "count": 1}}


def test_answers_are_matched_by_their_questions():
    (example,) = qa_examples([entry("cat"), entry("dog")], [entry("dog"), entry("cat")])
    example.predicted._.questions = ["Q1", "Q0"]
    assert score_qa([example])["qa_exact"] == 1.0
    example.predicted._.questions = ["Q1", "Q2"]
    with pytest.raises(ValueError, match="not asked of the prediction .'Q0'"):
        score_qa([example])


# --- the threshold


def question(no_answer: float, gold: str, span: str, answered: bool = True) -> tuple[dict, dict]:
    """A question whose best span is this, whether it was given as the answer or not."""
    if answered and span:
        return entry(gold), entry(span, no_answer=no_answer)
    rest = [entry(span)] if span else []
    return entry(gold), entry("", no_answer=no_answer, alternatives=rest)


def threshold_of(rows) -> float:
    return best_threshold(qa_examples([gold for gold, _ in rows], [guess for _, guess in rows]))


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([question(0.2, "cat", "cat"), question(0.6, "", "dog")], 0.4),
        ([question(0.6, "", "dog"), question(0.2, "cat", "cat")], 0.4),  # in any order
        ([question(0.2, "cat", "cat"), question(0.6, "dog", "dog")], 1.0),
        ([question(0.2, "", "cat"), question(0.6, "", "dog")], 0.0),
        (
            [question(0.2, "cat", "dog"), question(0.6, "cat", "dog")],
            1.0,
        ),  # all the same: always answer
        # One right above, one wrong below: answering both is as good as answering none.
        ([question(0.25, "", "x"), question(0.75, "cat", "cat")], 1.0),
        ([question(0.25, "", "x"), question(0.25, "", "x"), question(0.75, "cat", "cat")], 0.0),
        # Two with the same score can't be told apart.
        ([question(0.5, "cat", "cat"), question(0.5, "", "x"), question(0.75, "", "x")], 0.625),
        # Half an answer is better than none.
        ([question(0.25, "red cat", "cat"), question(0.5, "", "x")], 0.375),
        # Refused ones count by the span behind them.
        ([question(0.25, "cat", "cat", False), question(0.75, "", "x", False)], 0.5),
        ([question(1.0, "cat", ""), question(1.0, "", "")], 1.0),
    ],
)
def test_best_threshold_by_hand(rows, expected):
    assert threshold_of(rows) == expected


QUESTION = st.builds(
    question,
    st.integers(1, 64).map(lambda n: n / 64),
    # The F1 of "cat" is a half, so that sums are exact and ties are ties.
    st.sampled_from(["", "big red cat", "dog"]),
    st.sampled_from(["", "big red cat", "cat", "dog", "the"]),
    st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(QUESTION, min_size=1, max_size=12))
def test_best_threshold_against_all_thresholds(rows):
    def total(threshold: float) -> tuple[float, int]:
        """The F1 of all questions, and how many are answered."""
        f1, answered = 0.0, 0
        for gold, guess in rows:
            text = guess["text"] or "".join(one["text"] for one in guess["alternatives"][:1])
            given_one = guess["no_answer_score"] <= threshold
            f1 += official([gold["text"]], text if given_one else "")[1]
            answered += given_one
        return f1, answered

    scores = sorted({guess["no_answer_score"] for _, guess in rows})
    assert total(threshold_of(rows)) == max(map(total, [0.0, *scores, 1.0]))


# --- scores of verdicts

LABELS = ["entailment", "neutral", "contradiction"]


def nli_examples(gold: list, predicted: list) -> list[Example]:
    """Examples of up to four hypotheses."""
    examples = []
    for start in range(0, len(gold), 4):
        docs = [NLP.make_doc("a") for _ in range(2)]
        for doc, labels in zip(docs, (predicted, gold), strict=True):
            labels = labels[start : start + 4]
            doc._.nli = [label and make_verdict(label) for label in labels]
            doc._.hypotheses = [f"H{i}" for i in range(len(labels))]
        examples.append(Example(*docs))
    return examples


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([*LABELS, None]), st.sampled_from([*LABELS, "other"])),
        max_size=20,
    )
)
def test_verdicts_are_scored_as_sklearn_does(rows):
    gold, guess = [true for true, _ in rows], [guess for _, guess in rows]
    scores = score_nli(nli_examples(gold, guess))
    annotated = [(true, guess) for true, guess in rows if true is not None]
    if not annotated:
        assert scores == {"nli_acc": None, "nli_macro_f": None, "nli_f_per_type": None}
        return
    true, guess = zip(*annotated, strict=True)
    labels = sorted({*true, *guess})
    p, r, f, _ = sklearn.metrics.precision_recall_fscore_support(
        true, guess, labels=labels, zero_division=0
    )
    assert scores["nli_acc"] == pytest.approx(sklearn.metrics.accuracy_score(true, guess))
    assert scores["nli_macro_f"] == pytest.approx(
        sklearn.metrics.f1_score(true, guess, average="macro", zero_division=0)
    )
    assert list(scores["nli_f_per_type"]) == labels
    for i, label in enumerate(labels):
        expected = {"p": p[i], "r": r[i], "f": f[i]}
        assert scores["nli_f_per_type"][label] == pytest.approx(expected)


def test_score_nli_by_hand():
    gold = ["entailment", "entailment", "neutral", None]
    guess = ["entailment", "neutral", "neutral", "entailment"]
    assert score_nli(nli_examples(gold, guess)) == {
        "nli_acc": pytest.approx(2 / 3),
        "nli_macro_f": pytest.approx(2 / 3),
        "nli_f_per_type": {
            "entailment": pytest.approx({"p": 1.0, "r": 0.5, "f": 2 / 3}),
            "neutral": pytest.approx({"p": 0.5, "r": 1.0, "f": 2 / 3}),
        },
    }


def test_hypotheses_that_were_not_asked():
    (example,) = nli_examples(["neutral"], ["neutral"])
    example.predicted._.hypotheses = ["another"]
    with pytest.raises(ValueError, match="not asked of the prediction .'H0'"):
        score_nli([example])
