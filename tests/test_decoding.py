"""The best tags that fit together, and the probabilities of their entities."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from arrays import ints
from head_cases import ALLOWED, BILOU, BIO, PREFIXES, certain, scores_of, tags_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from losses import token_logits

from spacy_bert_heads.heads import decoding
from spacy_bert_heads.heads.decoding import Layout, decode, viterbi


def spans_of(spans) -> list[tuple[int, int, int, int]]:
    return list(zip(*(column.tolist() for column in spans[:4]), strict=True))


# --- Viterbi


@cache
def allowed_paths(scheme: str, n_labels: int, length: int) -> np.ndarray:
    """All sequences that the scheme allows, (n_sequences, length)."""
    tags = tags_of(scheme, "ABC"[:n_labels])
    every = itertools.product(range(len(tags)), repeat=length)
    fits = ALLOWED[scheme].fullmatch
    return np.asarray([path for path in every if fits("".join(f"{tags[i]} " for i in path))])


@st.composite
def token_rows(draw, elements, max_docs: int = 4):
    """A scheme, a number of labels, ragged lengths and a row for each token."""
    scheme, n_labels = draw(st.sampled_from(["BIO", "BILOU"])), draw(st.integers(1, 3))
    n_tags = 1 + n_labels * len(PREFIXES[scheme])
    longest = int(np.log(2500) / np.log(n_tags))  # 2,500 sequences to compare with
    lengths = draw(st.lists(st.integers(0, longest), max_size=max_docs))
    rows = draw(hnp.arrays(np.float64, (sum(lengths), n_tags), elements=elements))
    return scheme, n_labels, ints(*lengths), rows


@settings(max_examples=200, deadline=None)
@given(case=token_rows(st.one_of(st.integers(-5, 0).map(float), st.floats(-20, 0))))
def test_viterbi_is_the_best_of_all_allowed_sequences(case):
    scheme, n_labels, lengths, log_p = case
    path = viterbi(log_p.copy(), lengths, tags_of(scheme, "ABC"[:n_labels]))
    assert len(path) == len(log_p)
    end = 0
    for length in lengths.tolist():
        start, end = end, end + length
        if length:
            paths, rows = allowed_paths(scheme, n_labels, length), log_p[start:end]
            totals = rows[np.arange(length), paths].sum(axis=1)
            found = (paths == path[start:end]).all(axis=1)
            assert found.sum() == 1  # it is allowed
            assert totals[found][0] == pytest.approx(totals.max(), abs=1e-9)


@pytest.mark.parametrize("scheme", ["BIO", "BILOU"])
@pytest.mark.parametrize("seed", range(5))
def test_long_texts_are_parted_where_it_makes_no_difference(scheme, seed, monkeypatch):
    chance, tags = np.random.default_rng(seed), tags_of(scheme, "AB")
    log_p = chance.normal(scale=2.0, size=(400, len(tags)))
    log_p[:, 0] += chance.choice([0.0, 8.0], size=400)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    lengths, rows = ints(150, 1, 0, 249), np.arange(400)
    inner = np.repeat(True, 399)
    alone = decoding.surely_outside(log_p, inner, Layout.of(tuple(tags)))
    assert 50 < alone.sum() < 350
    parted = viterbi(log_p, lengths, tags)
    monkeypatch.setattr(
        decoding, "surely_outside", lambda log_p, inner, layout: np.zeros(400, dtype=bool)
    )
    whole = viterbi(log_p, lengths, tags)
    assert log_p[rows, parted].sum() == pytest.approx(log_p[rows, whole].sum(), rel=1e-12)
    assert (whole[alone] == 0).all()
    assert (whole != log_p.argmax(axis=1)).sum() > 20


def test_viterbi_by_hand():
    #         O    B    I
    log_p = np.log([[0.3, 0.1, 0.6], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]])
    # One text: I I B is the best without rules; of the allowed ones B I B (0.1·0.8·0.7 = 0.056)
    # stands above O B B (0.3·0.1·0.7) and O O B (0.3·0.1·0.7).
    assert viterbi(log_p, ints(3), ["O", "B-A", "I-A"]).tolist() == [1, 2, 1]
    # Three texts: an I can't begin one.
    assert viterbi(log_p, ints(1, 0, 1, 1), ["O", "B-A", "I-A"]).tolist() == [0, 0, 1]
    assert viterbi(log_p[:0], ints(0, 0), ["O", "B-A", "I-A"]).tolist() == []


# --- decoding


@pytest.mark.parametrize(
    "tags, texts, expected",
    [
        (BIO, ["B-A I-A O B-B"], [(0, 0, 2, 0), (0, 3, 4, 1)]),
        (BIO, ["B-A B-A I-A B-B I-B"], [(0, 0, 1, 0), (0, 1, 3, 0), (0, 3, 5, 1)]),
        # An entity ends with its text, and the next begins another.
        (BIO, ["O B-A", "", "B-A I-A", "O"], [(0, 1, 2, 0), (2, 0, 2, 0)]),
        (BIO, ["O O", "O"], []),
        (BIO, ["", ""], []),
        (BIO, [], []),
        (BILOU, ["B-A I-A L-A U-A O U-B"], [(0, 0, 3, 0), (0, 3, 4, 0), (0, 5, 6, 1)]),
        (BILOU, ["B-A L-A", "B-B L-B B-A L-A"], [(0, 0, 2, 0), (1, 0, 2, 1), (1, 2, 4, 0)]),
        (BILOU, ["O"], []),
    ],
)
def test_spans_of_clear_tags(tags, texts, expected):
    assert spans_of(decode(certain(texts, tags), tags)) == expected


@pytest.mark.parametrize(
    "tags, tokens, expected",
    [
        # I can't begin, so the second best of the first token opens the entity.
        (BIO, [{"I-A": 0.6, "B-A": 0.3}, {"I-A": 0.9}], [(0, 0, 2, 0, 0.3 * 0.9)]),
        # Here it is better that there is none.
        (BIO, [{"O": 0.9}, {"I-A": 0.5, "O": 0.4}], []),
        # The label of B decides, for what follows has to agree with it.
        (BIO, [{"B-A": 0.9}, {"I-B": 0.6, "I-A": 0.3}], [(0, 0, 2, 0, 0.9 * 0.3)]),
        # An entity of BIO ends where the next token doesn't go on with it.
        (BIO, [{"B-A": 0.9}, {"O": 0.6, "I-A": 0.3}], [(0, 0, 1, 0, 0.9 * 0.7)]),
        (BIO, [{"B-A": 0.9}, {"B-B": 0.6, "I-A": 0.2}], [(0, 0, 1, 0, 0.72), (0, 1, 2, 1, 0.6)]),
        # B must be closed before the text ends: U is the best that can be alone.
        (BILOU, [{"B-A": 0.6, "U-A": 0.3}], [(0, 0, 1, 0, 0.3)]),
        (BILOU, [{"B-A": 0.8}, {"I-A": 0.5, "L-A": 0.4}], [(0, 0, 2, 0, 0.8 * 0.4)]),
        # In BILOU the next token says nothing about the end.
        (BILOU, [{"U-A": 0.9}, {"O": 0.6}], [(0, 0, 1, 0, 0.9)]),
    ],
)
def test_entities_that_fit_together_and_their_probability(tags, tokens, expected):
    spans = decode(scores_of([tokens], tags), tags)
    assert spans_of(spans) == [one[:4] for one in expected]
    assert spans.score.tolist() == pytest.approx([one[4] for one in expected], rel=1e-5)


LOGITS = st.floats(-6, 6, width=32)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()


@settings(max_examples=150, deadline=None)
@given(case=token_rows(LOGITS, max_docs=2))
def test_a_probability_is_that_of_all_tag_sequences_with_the_entity(case):
    scheme, n_labels, lengths, rows = case
    tags, logits = tags_of(scheme, "ABC"[:n_labels]), rows.astype(np.float32)
    number = {tag: i for i, tag in enumerate(tags)}
    p = softmax(logits)
    begins = np.cumsum(lengths) - lengths
    spans = decode(token_logits(logits, np.ones(len(rows), dtype=bool), lengths), tags)
    for (doc, start, end, label), score in zip(spans_of(spans), spans.score, strict=True):
        length, begin, name = int(lengths[doc]), int(begins[doc]), "ABC"[label]
        every = np.asarray(list(itertools.product(range(len(tags)), repeat=length)))
        weights = p[begin + np.arange(length), every].prod(axis=1)
        if scheme == "BIO":
            wanted = ["B", *"I" * (end - start - 1)]
        else:
            wanted = ["U"] if end - start == 1 else ["B", *"I" * (end - start - 2), "L"]
        chosen = np.ones(len(every), dtype=bool)
        for place, prefix in enumerate(wanted, start):
            chosen &= every[:, place] == number[f"{prefix}-{name}"]
        if scheme == "BIO" and end < length:
            chosen &= every[:, end] != number[f"I-{name}"]
        assert score == pytest.approx(weights[chosen].sum(), rel=1e-4)


@settings(max_examples=150, deadline=None)
@given(case=token_rows(LOGITS), data=st.data())
def test_entities_never_overlap_and_unknown_tokens_are_passed_over(case, data):
    scheme, n_labels, lengths, rows = case
    tags, logits = tags_of(scheme, "ABC"[:n_labels]), rows.astype(np.float32)
    known = np.asarray(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    known = known.astype(bool)
    spans = decode(token_logits(logits, known, lengths), tags)
    free = [set(range(length)) for length in lengths.tolist()]
    for doc, start, end, label in spans_of(spans):
        assert start < end
        assert set(range(start, end)) <= free[doc]
        free[doc] -= set(range(start, end))
        assert 0 <= label < n_labels
    assert [one[:2] for one in spans_of(spans)] == sorted(one[:2] for one in spans_of(spans))
    assert ((spans.score > 0) & (spans.score <= 1)).all()

    # The same entities as in the text without those tokens
    parts = np.split(known, np.cumsum(lengths)[:-1]) if len(lengths) else []
    places = [np.flatnonzero(part) for part in parts]
    left = token_logits(logits[known], known[known], ints(*map(len, places)))
    without = decode(left, tags)
    expected = [
        (doc, int(places[doc][start]), int(places[doc][end - 1]) + 1, label)
        for doc, start, end, label in spans_of(without)
    ]
    assert spans_of(spans) == expected
    assert spans.score.tolist() == pytest.approx(without.score.tolist(), rel=1e-6)


def test_an_entity_reaches_over_unknown_tokens_but_does_not_end_on_one():
    known = [False, True, False, True, False, True]
    scores = certain(["B-B B-A O I-A I-A O"], BIO, known)
    assert spans_of(decode(scores, BIO)) == [(0, 1, 4, 0)]
    nothing = certain(["B-A", "B-A"], BIO, [False, False])
    assert spans_of(decode(nothing, BIO)) == []
