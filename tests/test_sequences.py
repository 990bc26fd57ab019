"""Sequences of pieces and where each token's are: exact values, and brute force."""

import numpy as np
from arrays import ints
from hypothesis import given, settings
from hypothesis import strategies as st
from letters import CLS, LETTERS, NLP, SEP, STRIDES, ZWSP, A, doc_of, letters, lists
from spacy.tokens import Doc

from spacy_bert_heads.text.packing import pack_docs


def test_sequences_of_a_long_and_a_short_doc():
    # Room for 4 of 6 positions, a step of 3. The Docs are "a b … j" and "k lm", where lm is two
    # pieces and two tokens are without.
    docs = [doc_of(*"abcdefghij"), doc_of(ZWSP, "k", "lm", ZWSP), doc_of()]
    batch = pack_docs(docs, letters(), window=6, stride=3)
    a, b, c, d, e, f, g, h, i, j, k, l = (A + n for n in range(12))  # noqa: E741
    m = A + len(LETTERS) + 12
    assert batch.input_ids.tolist() == [
        *(CLS, a, b, c, d, SEP),  # 0
        *(CLS, d, e, f, g, SEP),  # 6
        *(CLS, g, h, i, j, SEP),  # 12
        *(CLS, k, l, m, SEP),  # 18
        *(CLS, SEP),  # 23
    ]
    assert batch.token_type_ids.tolist() == [0] * 25
    assert batch.seqlens.tolist() == [6, 6, 6, 5, 2]
    assert batch.num_windows.tolist() == [3, 1, 1]
    assert batch.tokens.num_tokens.tolist() == [10, 4, 0]
    assert batch.tokens.num_wordpieces.tolist() == [1] * 10 + [0, 1, 2, 0]
    assert batch.tokens.positions.tolist() == [1, 2, 3, 4, 8, 9, 10, 14, 15, 16, 19, 20, 21]
    first = [1, 2, 3, 4, 8, 9, 10, 14, 15, 16, -1, 19, 20, -1]
    assert batch.tokens.first_positions().tolist() == first


def test_two_tokens_of_one_piece_share_its_row():
    doc = Doc(NLP.vocab, words=["a", "can", "not", "b"], spaces=[True, False, True, False])
    batch = pack_docs([doc], letters(), window=8, stride=4)
    assert batch.input_ids.tolist() == [CLS, A, A + 2 * len(LETTERS), A + 1, SEP]
    assert batch.tokens.num_wordpieces.tolist() == [1, 1, 1, 1]
    assert batch.tokens.positions.tolist() == [1, 2, 2, 3]
    assert batch.tokens.first_positions().tolist() == [1, 2, 2, 3]


def test_no_docs():
    batch = pack_docs([], letters(), window=6, stride=3)
    assert all(not values for name, values in lists(batch).items() if name != "cu_seqlens")
    assert batch.cu_seqlens.tolist() == [0]
    assert batch.max_seqlen == 0
    assert batch.tokens.first_positions().tolist() == []
    taken, positions = batch.take(ints())
    assert lists(taken) == lists(batch)
    assert positions.tolist() == []


WORDS = st.one_of(st.text("abc", min_size=1, max_size=4), st.sampled_from([ZWSP, "\n", "船", "?!"]))
BATCHES = st.lists(st.lists(WORDS, max_size=12).map(lambda words: doc_of(*words)), max_size=5)


def brute_force(docs: list[Doc], window: int, stride: int) -> dict[str, list[int]]:
    """The batch, Doc by Doc and window by window."""
    ids, lengths, windows, pieces, rows = [], [], [], [], []
    spans, is_best = [], []
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
            spans += [(-1, -1), *encoding.offsets[start : start + window - 2], (-1, -1)]
            lengths.append(len(part) + 2)
            n_windows += 1
            if start + len(part) >= len(encoding.ids):
                break
            start += stride
        windows.append(n_windows)
        best = [max(one, key=lambda slot: slot[0])[1] for one in candidates]
        is_best += best
        for token in doc:
            own = [
                best[i]
                for i, (begin, _) in enumerate(encoding.offsets)
                if token.idx <= begin < token.idx + len(token)
            ]
            pieces.append(len(own))
            rows += own
    return {
        "input_ids": ids,
        "token_type_ids": [0] * len(ids),
        "cu_seqlens": [sum(lengths[:i]) for i in range(len(lengths) + 1)],
        "num_windows": windows,
        "starts": [start for start, _ in spans],
        "ends": [end for _, end in spans],
        "is_best": [i in is_best for i in range(len(ids))],
        "num_tokens": [len(doc) for doc in docs],
        "num_wordpieces": pieces,
        "positions": rows,
        "seqlens": lengths,
    }


@settings(max_examples=150, deadline=None)
@given(docs=BATCHES, capacity_stride=STRIDES)
def test_sequences_against_brute_force(docs, capacity_stride):
    capacity, stride = capacity_stride
    batch = pack_docs(docs, letters(), window=capacity + 2, stride=stride)
    assert lists(batch) == brute_force(docs, capacity + 2, stride)
    assert (batch.seqlens <= capacity + 2).all()


@settings(max_examples=150, deadline=None)
@given(docs=BATCHES.filter(len), capacity_stride=STRIDES, data=st.data())
def test_take_is_like_making_the_sequences_of_those_docs(docs, capacity_stride, data):
    capacity, stride = capacity_stride
    # Any of them, in any order, also more than once
    chosen = data.draw(st.lists(st.sampled_from(range(len(docs))), max_size=6))
    shape = {"window": capacity + 2, "stride": stride}
    batch = pack_docs(docs, letters(), **shape)
    taken, positions = batch.take(ints(*chosen))
    expected = pack_docs([docs[i] for i in chosen], letters(), **shape)
    assert lists(taken) == lists(expected)
    sizes = [pack_docs([doc], letters(), **shape).seqlens.sum() for doc in docs]
    starts = np.cumsum([0, *sizes])
    assert positions.tolist() == [p for i in chosen for p in range(starts[i], starts[i + 1])]
