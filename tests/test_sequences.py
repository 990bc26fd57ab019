"""Windows, buckets and packed states: exact values, and brute force."""

import time
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
import spacy
import torch
import transformers
from checkpoints import FAMILIES, SPECIAL, make_checkpoint, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from tokenizers import models

from spacy_bert_heads.encoder.loading import Bert, load_checkpoint
from spacy_bert_heads.encoder.model import run
from spacy_bert_heads.encoder.rows import Row
from spacy_bert_heads.sequences import (
    best_slots,
    cut_windows,
    make_buckets,
    make_sequences,
)
from spacy_bert_heads.types import DocSequences, Sequences, ranges
from spacy_bert_heads.wordpieces import Wordpieces

NLP = spacy.blank("en")
ZWSP = "\u200b"
CLS, SEP = SPECIAL["wordpiece"].index("[CLS]"), SPECIAL["wordpiece"].index("[SEP]")
# The pieces of the tests, one for each letter: a is 5, b is 6, …; ##a is 31, ##b is 32, …
LETTERS = "abcdefghijklmnopqrstuvwxyz"
A = len(SPECIAL["wordpiece"])


@cache
def letters() -> Wordpieces:
    tokenizer = make_tokenizer("wordpiece").backend_tokenizer
    pieces = [*SPECIAL["wordpiece"], *LETTERS, *(f"##{letter}" for letter in LETTERS), "cannot"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
    return Wordpieces(tokenizer)


def doc_of(*words: str) -> Doc:
    return Doc(NLP.vocab, words=list(words))


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def lists(sequences: Sequences) -> dict[str, list[int]]:
    return {name: value.tolist() for name, value in vars(sequences).items() if value is not None}


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


STRIDES = st.integers(1, 9).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c)))


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


def test_best_slots_by_hand():
    # slots      1  2  3  4      7  8  9 10     13 14 15 16
    # pieces     0  1  2  3      3  4  5  6      6  7  8  9
    # context    0  1  1  0      0  1  1  0      0  1  1  0
    # Pieces 3 and 6 are at the edge of two windows: the first has them.
    source = ints(0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9)
    slots = ints(1, 2, 3, 4, 7, 8, 9, 10, 13, 14, 15, 16)
    best = best_slots(source, slots, ints(4, 4, 4), n_pieces=10)
    assert best.tolist() == [1, 2, 3, 4, 8, 9, 10, 14, 15, 16]


def test_best_slots_takes_the_middle_of_a_window():
    # slots      0  1  2  3  4
    # pieces     0  1  2  3  4
    # context    0  1  2  1  0
    # slots                  5  6  7  8  9
    # pieces           2  3  4  5  6            (the second window begins at piece 2)
    # context          0  1  2  1  0            3 is the same in both, 4 is better in the second
    source = ints(0, 1, 2, 3, 4, 2, 3, 4, 5, 6)
    best = best_slots(source, np.arange(10), ints(5, 5), n_pieces=7)
    assert best.tolist() == [0, 1, 2, 3, 7, 8, 9]


def test_best_slots_with_one_piece_in_two_windows():
    # pieces     0  1  2  3
    # pieces              3  4  5  6            at the edge of both: the first has it
    best = best_slots(ints(0, 1, 2, 3, 3, 4, 5, 6), np.arange(8), ints(4, 4), n_pieces=7)
    assert best.tolist() == [0, 1, 2, 3, 5, 6, 7]


@pytest.mark.parametrize("sizes", [[3], [3, 0, 2], [0], []])
def test_best_slots_without_overlap(sizes):
    slots = np.arange(sum(sizes)) + 10
    best = best_slots(np.arange(sum(sizes)), slots, ints(*sizes), n_pieces=sum(sizes))
    assert best.tolist() == slots.tolist()


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 40), max_size=4), capacity_stride=STRIDES)
def test_best_slots_against_brute_force(sizes, capacity_stride):
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
    best = best_slots(ints(*source), ints(*slots), ints(*lengths), n_pieces=len(expected))
    assert best.tolist() == expected


# --- sequences


def test_sequences_of_a_long_and_a_short_doc():
    # Room for 4 of 6 slots, a step of 3. The Docs are "a b … j" and "k lm", where lm is two
    # pieces and two tokens are without.
    docs = [doc_of(*"abcdefghij"), doc_of(ZWSP, "k", "lm", ZWSP), doc_of()]
    sequences = make_sequences(docs, letters(), window=6, stride=3)
    a, b, c, d, e, f, g, h, i, j, k, l = (A + n for n in range(12))  # noqa: E741
    m = A + len(LETTERS) + 12
    assert sequences.ids.tolist() == [
        *(CLS, a, b, c, d, SEP),  # 0
        *(CLS, d, e, f, g, SEP),  # 6
        *(CLS, g, h, i, j, SEP),  # 12
        *(CLS, k, l, m, SEP),  # 18
        *(CLS, SEP),  # 23
    ]
    assert sequences.type_ids.tolist() == [0] * 25
    assert sequences.lengths.tolist() == [6, 6, 6, 5, 2]
    assert sequences.windows.tolist() == [3, 1, 1]
    assert sequences.tokens.tolist() == [10, 4, 0]
    assert sequences.pieces.tolist() == [1] * 10 + [0, 1, 2, 0]
    assert sequences.rows.tolist() == [1, 2, 3, 4, 8, 9, 10, 14, 15, 16, 19, 20, 21]
    first = [1, 2, 3, 4, 8, 9, 10, 14, 15, 16, -1, 19, 20, -1]
    assert sequences.first_rows().tolist() == first


def test_two_tokens_of_one_piece_share_its_row():
    doc = Doc(NLP.vocab, words=["a", "can", "not", "b"], spaces=[True, False, True, False])
    sequences = make_sequences([doc], letters(), window=8, stride=4)
    assert sequences.ids.tolist() == [CLS, A, A + 2 * len(LETTERS), A + 1, SEP]
    assert sequences.pieces.tolist() == [1, 1, 1, 1]
    assert sequences.rows.tolist() == [1, 2, 2, 3]
    assert sequences.first_rows().tolist() == [1, 2, 2, 3]


def test_no_docs():
    sequences = make_sequences([], letters(), window=6, stride=3)
    assert [len(value) for value in vars(sequences).values()] == [0] * 7
    assert sequences.first_rows().tolist() == []
    taken, slots = sequences.take(ints())
    assert lists(taken) == lists(sequences)
    assert slots.tolist() == []


WORDS = st.one_of(st.text("abc", min_size=1, max_size=4), st.sampled_from([ZWSP, "\n", "船", "?!"]))
BATCHES = st.lists(st.lists(WORDS, max_size=12).map(lambda words: doc_of(*words)), max_size=5)


def brute_force(docs: list[Doc], window: int, stride: int) -> dict[str, list[int]]:
    """The sequences, Doc by Doc and window by window."""
    ids, lengths, windows, pieces, rows = [], [], [], [], []
    for doc in docs:
        encoding = letters().tokenizer.encode(doc.text, add_special_tokens=False)
        candidates: list[list[tuple[int, int]]] = [[] for _ in encoding.ids]
        start, n_windows = 0, 0
        while True:
            part = encoding.ids[start : start + window - 2]
            for i in range(len(part)):
                context = min(i, len(part) - 1 - i)
                candidates[start + i].append((context, len(ids) + 1 + i))
            ids += [CLS, *part, SEP]
            lengths.append(len(part) + 2)
            n_windows += 1
            if start + len(part) >= len(encoding.ids):
                break
            start += stride
        windows.append(n_windows)
        best = [max(one, key=lambda slot: slot[0])[1] for one in candidates]
        for token in doc:
            own = [
                best[i]
                for i, (begin, _) in enumerate(encoding.offsets)
                if token.idx <= begin < token.idx + len(token)
            ]
            pieces.append(len(own))
            rows += own
    return {
        "ids": ids,
        "type_ids": [0] * len(ids),
        "lengths": lengths,
        "windows": windows,
        "tokens": [len(doc) for doc in docs],
        "pieces": pieces,
        "rows": rows,
    }


@settings(max_examples=150, deadline=None)
@given(docs=BATCHES, capacity_stride=STRIDES)
def test_sequences_against_brute_force(docs, capacity_stride):
    capacity, stride = capacity_stride
    sequences = make_sequences(docs, letters(), window=capacity + 2, stride=stride)
    assert lists(sequences) == brute_force(docs, capacity + 2, stride)
    assert (sequences.lengths <= capacity + 2).all()


@settings(max_examples=150, deadline=None)
@given(docs=BATCHES.filter(len), capacity_stride=STRIDES, data=st.data())
def test_take_is_like_making_the_sequences_of_those_docs(docs, capacity_stride, data):
    capacity, stride = capacity_stride
    # Any of them, in any order, also more than once
    chosen = data.draw(st.lists(st.sampled_from(range(len(docs))), max_size=6))
    shape = {"window": capacity + 2, "stride": stride}
    sequences = make_sequences(docs, letters(), **shape)
    taken, slots = sequences.take(ints(*chosen))
    expected = make_sequences([docs[i] for i in chosen], letters(), **shape)
    assert lists(taken) == lists(expected)
    sizes = [make_sequences([doc], letters(), **shape).lengths.sum() for doc in docs]
    starts = np.cumsum([0, *sizes])
    assert slots.tolist() == [slot for i in chosen for slot in range(starts[i], starts[i + 1])]


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


# --- states


class Stub(torch.nn.Module):
    """Answers what it is asked: the states are id, type, position, length of the sequence."""

    width = 4
    wordpieces = Wordpieces(make_tokenizer("wordpiece").backend_tokenizer, pad_id=99)

    def __init__(self, reads_rows: bool = True) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(4))
        self.reads_rows = reads_rows
        self.rows: list[Row] = []

    def read_row(self, row, layers=None):
        self.rows.append(row)
        assert (row.ids[~row.mask] == 99).all() and (row.type_ids[~row.mask] == 0).all()
        lengths = [
            mask.sum(1, keepdim=True).expand_as(mask).flatten() for mask in row.split(row.mask)
        ]
        states = [row.ids, row.type_ids, row.columns, torch.cat(lengths)]
        return torch.stack(states, dim=1).float() * self.scale


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(2, 9), st.integers(2, 400)), min_size=1, max_size=12),
    max_tokens=st.integers(1, 1000),
    keep_graph=st.booleans(),
    reads_rows=st.booleans(),
)
def test_states_are_packed_in_the_order_of_the_slots(lengths, max_tokens, keep_graph, reads_rows):
    n_slots, none = sum(lengths), ints()
    ids, types = np.arange(n_slots) + 100, np.arange(n_slots) % 2
    sequences = DocSequences(ids, types, ints(*lengths), none, none, none, none)
    stub = Stub(reads_rows)
    with torch.set_grad_enabled(keep_graph):
        states = run(stub, sequences, max_tokens, keep_graph=keep_graph)
    positions = [i for length in lengths for i in range(length)]
    repeated = [length for length in lengths for _ in range(length)]
    expected = np.stack([ids, types, positions, repeated], axis=1)
    assert states.tolist() == expected.tolist()
    assert states.dtype == torch.float32
    for row in stub.rows:
        assert len(row.ids) <= max_tokens or [n for n, _ in row.shapes] == [1]
        masks = row.split(row.mask)
        assert row.is_padded == [not mask.all() for mask in masks]
    if keep_graph:
        gradient = torch.arange(4.0 * n_slots).reshape(-1, 4)
        states.backward(gradient)
        by_hand = (gradient.double() * torch.from_numpy(expected)).sum(0)
        assert torch.allclose(stub.scale.grad.double(), by_hand, rtol=1e-5)


def test_states_of_no_docs():
    sequences = make_sequences([], letters(), window=8, stride=4)
    assert run(Stub(), sequences, 100, keep_graph=False).shape == (0, 4)


WINDOW, STRIDE = 24, 15
TEXTS = [
    "The coaster Hanne Lind lost pitch control off Skagen.",
    "",
    "船 😀 can't",
    "Angela Merkel met Barack Obama in Berlin, then flew to New York with Anna. " * 2,
    "A fire",
    "A pump",
    ZWSP,
]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("states") / request.param, family=request.param)


@pytest.fixture(scope="module")
def bert(folder) -> Bert:
    return load_checkpoint(folder).eval()


def states_of(bert: Bert, docs: list[Doc], budget: int) -> list[torch.Tensor]:
    """The states of each Doc."""
    sequences = make_sequences(docs, bert.wordpieces, window=WINDOW, stride=STRIDE)
    with torch.no_grad():
        states = run(bert, sequences, budget, keep_graph=False)
    sizes = np.split(sequences.lengths, np.cumsum(sequences.windows)[:-1])
    return list(states.split([int(size.sum()) for size in sizes]))


def test_states_are_hugging_faces_own_window_by_window(folder, bert):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    docs = [NLP.make_doc(text) for text in TEXTS]
    every_state = states_of(bert, docs, 4096)
    lengths = []
    for doc, states in zip(docs, every_state, strict=True):
        # Hugging Face's stride is the overlap of two windows.
        windows = tokenizer(
            doc.text,
            truncation=True,
            max_length=WINDOW,
            stride=WINDOW - 2 - STRIDE,
            return_overflowing_tokens=True,
        )["input_ids"]
        with torch.no_grad():
            expected = [model(torch.tensor([ids])).last_hidden_state[0] for ids in windows]
        torch.testing.assert_close(states, torch.cat(expected), atol=1e-5, rtol=1e-5)
        lengths.append([len(ids) for ids in windows])
    assert lengths[1] == [2]
    assert lengths[3][0] == WINDOW
    assert len(lengths[3]) > 1


def test_states_depend_neither_on_the_budget_nor_on_the_order(bert):
    docs = [NLP.make_doc(text) for text in TEXTS]
    expected = states_of(bert, docs, 4096)
    order = [3, 1, 6, 0, 2, 5, 4, 0]
    for budget in (1, 60):
        found = states_of(bert, [docs[i] for i in order], budget)
        for i, states in zip(order, found, strict=True):
            torch.testing.assert_close(states, expected[i], atol=1e-5, rtol=1e-5)


def test_gradients_do_not_depend_on_the_budget(bert):
    docs = [NLP.make_doc(text) for text in TEXTS]
    sequences = make_sequences(docs, bert.wordpieces, window=WINDOW, stride=STRIDE)
    gradients = []
    for budget in (60, 4096):  # a batch over the budget is computed again in the backward pass
        states = run(bert, sequences, budget, keep_graph=True)
        (states * torch.linspace(-1, 1, states.numel()).reshape(states.shape)).sum().backward()
        grads = {n: p.grad.clone() for n, p in bert.named_parameters() if p.grad is not None}
        gradients.append(grads)
        bert.zero_grad(set_to_none=True)
    assert gradients[0].keys() == gradients[1].keys()
    assert max(float(grad.abs().max()) for grad in gradients[0].values()) > 0.1
    for name, grad in gradients[0].items():
        torch.testing.assert_close(grad, gradients[1][name], atol=1e-3, rtol=1e-4)


# --- long Docs


def test_a_long_doc_is_quick():
    text = ("Skagen a fire broke out; " * 4000)[:100_000]
    wordpieces = Wordpieces(make_tokenizer("wordpiece").backend_tokenizer)
    doc = NLP.make_doc(text)
    start = time.process_time()
    sequences = make_sequences([doc], wordpieces, window=128, stride=96)
    sequences.take(ints(0, 0))
    assert time.process_time() - start < 5
    n_pieces = len(wordpieces([text]).ids)
    assert len(doc.text) == 100_000 and n_pieces > 20_000
    n_windows = 1 + -(-(n_pieces - 126) // 96)
    assert sequences.windows.tolist() == [n_windows]
    assert len(sequences.ids) == n_pieces + 30 * (n_windows - 1) + 2 * n_windows
    assert (sequences.pieces > 0).all()
    assert (np.diff(sequences.rows) > 0).all()
    firsts = wordpieces([text]).ids[np.cumsum(sequences.pieces) - sequences.pieces]
    with torch.no_grad():
        states = run(Stub(), sequences, 4096, keep_graph=False)
    assert states[sequences.first_rows(), 0].tolist() == firsts.tolist()
