"""What the heads compute: entities and their probabilities, losses, poolings, tags."""

import itertools
import re
import warnings
from functools import cache

import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
import spacy
import torch
import transformers
from checkpoints import FAMILIES, make_checkpoint
from conftest import TRAIN_DATA, make_examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from losses import assert_same_loss, cross_entropy, get_loss, in_torch, token_logits
from spacy.tokens import Doc, Span
from spacy.training import Example
from torch.nn import functional as F

from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.heads import decoding
from spacy_bert_heads.heads.decoding import Layout, decode, viterbi
from spacy_bert_heads.heads.outputs import TokenLogits

NLP = spacy.blank("en")
PREFIXES = {"BIO": "BI", "BILOU": "BILU"}
ALLOWED = {
    "BIO": re.compile(r"(O |B-(\w) (I-\2 )*)*"),
    "BILOU": re.compile(r"(O |U-\w |B-(\w) (I-\2 )*L-\2 )*"),
}


def tags_of(scheme: str, labels: str) -> list[str]:
    return ["O", *(f"{prefix}-{label}" for label in labels for prefix in PREFIXES[scheme])]


BIO, BILOU = tags_of("BIO", "AB"), tags_of("BILOU", "AB")


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def floats(*values) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def doc_of(text: str) -> Doc:
    return Doc(NLP.vocab, words=text.split(" ") if text else [])


def make_head(kind: str, labels=("A", "B"), **config):
    """A head without weights, which is enough for what it does with scores."""
    head = NLP.create_pipe(f"bert_{kind}", config=config)
    for label in labels:
        head.add_label(label)
    return head


def scores_of(
    docs: list[list[dict[str, float]]], tags: list[str], known: list[bool] | None = None
) -> TokenLogits:
    """Scores from each token's probabilities by tag; what is left goes to the other tags."""
    rows = []
    for token in itertools.chain.from_iterable(docs):
        rest = (1 - sum(token.values())) / max(len(tags) - len(token), 1)
        rows.append([max(token.get(tag, rest), 1e-9) for tag in tags])
    logits = np.log(np.asarray(rows, dtype=np.float32).reshape(-1, len(tags)))
    is_known = np.ones(len(rows), dtype=bool) if known is None else np.asarray(known)
    return token_logits(logits + 1.5, is_known, ints(*map(len, docs)))  # any shift is the same


def certain(texts: list[str], tags: list[str], known: list[bool] | None = None) -> TokenLogits:
    """Scores that leave no doubt of these tags."""
    docs = [[{tag: 0.99} for tag in text.split()] for text in texts]
    return scores_of(docs, tags, known)


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

    # A threshold leaves out the less probable ones, and nothing else.
    threshold = data.draw(st.sampled_from([0.1, 0.5, *spans.score.tolist()]))
    kept = decode(token_logits(logits, known, lengths), tags, threshold=threshold)
    above = spans.score >= threshold
    assert [column.tolist() for column in kept] == [column[above].tolist() for column in spans]


def test_an_entity_reaches_over_unknown_tokens_but_does_not_end_on_one():
    known = [False, True, False, True, False, True]
    scores = certain(["B-B B-A O I-A I-A O"], BIO, known)
    assert spans_of(decode(scores, BIO)) == [(0, 1, 4, 0)]
    nothing = certain(["B-A", "B-A"], BIO, [False, False])
    assert spans_of(decode(nothing, BIO)) == []


# --- losses


@settings(max_examples=60, deadline=None)
@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(2, 5)),
        elements=st.floats(-50, 50, width=32),
    ),
    weighted=st.booleans(),
    data=st.data(),
)
def test_cross_entropy_is_torchs(logits, weighted, data):
    n, n_classes = logits.shape
    classes = data.draw(hnp.arrays(np.int64, n, elements=st.integers(-1, n_classes - 1)))
    weight = st.floats(0.125, 4, width=32)
    weights = data.draw(hnp.arrays(np.float32, n_classes, elements=weight)) if weighted else None
    found = cross_entropy(logits, classes, weights=weights)
    if (classes < 0).all():
        assert found[0] == 0.0
        assert found[1].tolist() == np.zeros_like(logits).tolist()
        return
    by_class = None if weights is None else torch.from_numpy(weights).double()
    gold = torch.from_numpy(classes)
    assert_same_loss(
        found,
        in_torch(lambda x: F.cross_entropy(x, gold, weight=by_class, ignore_index=-1), logits),
    )


def test_cross_entropy_by_hand():
    loss, gradient = cross_entropy(floats([0, 0], [0, 0], [9, 9]), ints(0, 1, -1))
    assert loss == pytest.approx(np.log(2))
    assert gradient.tolist() == [[-0.25, 0.25], [0.25, -0.25], [0, 0]]
    # Weights 1 and 3: the second row counts three quarters.
    weights = floats(1, 3)
    loss, gradient = cross_entropy(floats([0, 0], [0, 0]), ints(0, 1), weights=weights)
    assert loss == pytest.approx(np.log(2))
    assert gradient.tolist() == [[-0.125, 0.125], [0.375, -0.375]]


def test_cross_entropy_survives_large_logits():
    loss, gradient = cross_entropy(floats([10_000, 0], [0, 10_000]), ints(0, 0))
    assert loss == 5000.0
    assert gradient.tolist() == [[0, 0], [-0.5, 0.5]]


def test_rows_whose_classes_weigh_nothing_teach_nothing():
    loss, gradient = cross_entropy(floats([1, 2], [3, 4]), ints(0, 0), weights=floats(0, 1))
    assert loss == 0.0
    assert gradient.tolist() == [[0, 0], [0, 0]]


def with_cats(*cats: dict[str, float]) -> list[Example]:
    return [Example.from_dict(doc_of("a b"), {"cats": one}) for one in cats]


def random_logits(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3


@pytest.mark.parametrize("weights", [None, {"B": 2.5}, {"A": 0.5, "B": 0.0, "C": 3.0}])
def test_textcat_loss_is_torchs(weights):
    textcat = make_head("textcat", "ABC", class_weights=weights)
    examples = with_cats(
        {"A": 1.0, "B": 0.0, "C": 0.0},
        {},  # not annotated
        {"B": 1.0},
        {"A": 0.0, "B": 0.0, "C": 0.0},  # none of them holds: nothing to learn
        {"C": 1.0, "A": 0.0},
    )
    logits = random_logits(5, 3)
    classes = torch.tensor([0, -1, 1, -1, 2])
    by_class = torch.tensor([(weights or {}).get(label, 1.0) for label in "ABC"]).double()
    assert_same_loss(
        get_loss(textcat, examples, logits),
        in_torch(lambda x: F.cross_entropy(x, classes, by_class, ignore_index=-1), logits),
    )


@pytest.mark.parametrize("weights", [None, {"B": 2.5}, {"A": 0.5, "B": 0.0, "C": 3.0}])
def test_multilabel_loss_is_torchs(weights):
    textcat = make_head("textcat_multilabel", "ABC", class_weights=weights)
    examples = with_cats({"A": 1.0, "B": 0.0, "C": 1.0}, {}, {"B": 1.0}, {"A": 0.0, "C": 0.0})
    logits = random_logits(4, 3)
    logits[3, 2] = -1000  # no overflow
    gold = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]).double()
    present = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]]).double()
    by_class = torch.tensor([(weights or {}).get(label, 1.0) for label in "ABC"]).double()

    def loss(x: torch.Tensor) -> torch.Tensor:
        weight = present * by_class
        total = F.binary_cross_entropy_with_logits(x, gold, weight, reduction="sum")
        return total / present.sum()

    assert_same_loss(get_loss(textcat, examples, logits), in_torch(loss, logits))


@pytest.mark.parametrize("kind", ["textcat", "textcat_multilabel"])
def test_categories_that_nobody_annotated_teach_nothing(kind):
    loss, gradient = get_loss(make_head(kind), with_cats({}, {}), random_logits(2, 2))
    assert loss == 0.0
    assert gradient.tolist() == [[0, 0], [0, 0]]


def test_an_unknown_category_is_named_once_and_left_out():
    textcat = make_head("textcat_multilabel", "AB")
    logits = random_logits(1, 2)
    with pytest.warns(UserWarning, match="bert_textcat_multilabel has no label 'X'"):
        found = get_loss(textcat, with_cats({"X": 1.0, "A": 1.0}), logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_loss(textcat, with_cats({"X": 1.0, "A": 1.0}), logits)
        assert_same_loss(found, get_loss(textcat, with_cats({"A": 1.0}), logits))


def test_categories_are_probabilities_beside_those_that_are_there():
    logits = floats([np.log(2), np.log(6)], [500, -500])
    docs = [doc_of("a"), doc_of("b")]
    docs[0].cats["earlier"] = 0.3
    make_head("textcat").set_annotations(docs, torch.from_numpy(logits))
    assert docs[0].cats == pytest.approx({"earlier": 0.3, "A": 0.25, "B": 0.75})
    assert docs[1].cats == pytest.approx({"A": 1.0, "B": 0.0})
    make_head("textcat_multilabel").set_annotations(docs, torch.from_numpy(logits))
    assert docs[0].cats == pytest.approx({"earlier": 0.3, "A": 2 / 3, "B": 6 / 7})
    assert docs[1].cats == pytest.approx({"A": 1.0, "B": 0.0})


@pytest.mark.parametrize("kind", ["textcat", "textcat_multilabel"])
def test_docs_without_categories_do_not_count_in_the_score(kind):
    textcat = make_head(kind)
    examples = with_cats({"A": 1.0, "B": 0.0}, {"A": 1.0, "B": 0.0}, {"A": 0.0, "B": 1.0}, {})
    textcat.set_annotations([eg.predicted for eg in examples], torch.tensor([[5.0, -5.0]] * 4))
    scores = textcat.score(examples)
    assert scores["cats_micro_p"] == pytest.approx(2 / 3)
    assert scores["cats_micro_r"] == pytest.approx(2 / 3)
    assert scores["cats_f_per_type"]["A"] == pytest.approx({"p": 2 / 3, "r": 1.0, "f": 0.8})


# --- entities: what is learned


def with_ents(predicted: str, reference: str, ents: list[tuple[int, int, str]]) -> Example:
    """An Example of two tokenizations ("_" is the word without a space)."""
    docs = [
        Doc(
            NLP.vocab,
            words=[word.rstrip("_") for word in text.split(" ")],
            spaces=[not word.endswith("_") for word in text.split(" ")],
        )
        for text in (predicted, reference)
    ]
    docs[1].set_ents([Span(docs[1], start, end, label) for start, end, label in ents])
    return Example(*docs)


def masked(example: Example, start: int, end: int) -> Example:
    """Take the annotation of some tokens away."""
    reference = example.reference
    rest = [ent for ent in reference.ents if ent.end <= start or ent.start >= end]
    reference.set_ents(rest, missing=[reference[start:end]], default="unmodified")
    return example


def unannotated(text: str) -> Example:
    return Example(doc_of(text), doc_of(text))


# Of BIO the classes are O 0, B-A 1, I-A 2, B-B 3, I-B 4;
# of BILOU O 0, B-A 1, I-A 2, L-A 3, U-A 4, B-B 5, I-B 6, L-B 7, U-B 8.
GOLD = {
    "entities": (
        lambda: with_ents("a b c d", "a b c d", [(0, 2, "A"), (3, 4, "B")]),
        [1, 2, 0, 3],
        [1, 3, 0, 8],
    ),
    "neighbours": (
        lambda: with_ents("a b c d", "a b c d", [(0, 3, "B"), (3, 4, "B")]),
        [3, 4, 4, 3],
        [5, 6, 7, 8],
    ),
    "no entities": (lambda: with_ents("a b", "a b", []), [0, 0], [0, 0]),
    "no annotation": (lambda: unannotated("a b"), [-1, -1], [-1, -1]),
    "an empty Doc": (lambda: unannotated(""), [], []),
    "some tokens not annotated": (
        lambda: masked(with_ents("a b c d", "a b c d", [(0, 1, "A"), (2, 3, "A")]), 2, 4),
        [1, 0, -1, -1],
        [4, 0, -1, -1],
    ),
    "tags with -": (
        lambda: Example.from_dict(doc_of("a b c"), {"entities": ["U-A", "-", "O"]}),
        [1, -1, 0],
        [4, -1, 0],
    ),
    "an entity that ends inside a token": (
        lambda: with_ents("a New York-based b", "a New York_ -_ based b", [(1, 3, "A")]),
        [0, -1, -1, 0],
        [0, -1, -1, 0],
    ),
    "a token that is two": (
        lambda: with_ents("a can_ not b", "a cannot b", [(1, 2, "A")]),
        [0, 1, 2, 0],
        [0, 1, 3, 0],
    ),
    "two tokens that are one": (
        lambda: with_ents("a cannot b", "a can_ not b", [(1, 3, "A"), (3, 4, "B")]),
        [0, 1, 3],
        [0, 4, 8],
    ),
}


@pytest.mark.parametrize("scheme", ["BIO", "BILOU"])
def test_ner_learns_from_what_is_annotated(scheme):
    ner = make_head("ner", scheme=scheme)
    assert ner.tags == tags_of(scheme, "AB")
    examples = [make() for make, *_ in GOLD.values()]
    columns = [case[1 if scheme == "BIO" else 2] for case in GOLD.values()]
    assert [len(eg.predicted) for eg in examples] == [len(column) for column in columns]
    classes = [number for column in columns for number in column]
    known = np.ones(len(classes), dtype=bool)
    known[[0, 7]] = False  # without a wordpiece
    logits = random_logits(len(classes), len(ner.tags))
    scores = token_logits(logits, known, ints(*map(len, columns)))
    gold = torch.tensor(np.where(known, classes, -1))
    found = get_loss(ner, examples, scores)
    assert_same_loss(found, in_torch(lambda x: F.cross_entropy(x, gold, ignore_index=-1), logits))
    assert (found[1] != 0).any(axis=1).tolist() == (gold >= 0).tolist()


@pytest.mark.parametrize("case", GOLD)
def test_ner_gold_case_by_case(case):
    make, *columns = GOLD[case]
    for scheme, classes in zip(["BIO", "BILOU"], columns, strict=True):
        ner = make_head("ner", scheme=scheme)
        # With these logits a row's gradient is largest by far, below 0, at its class.
        logits = np.zeros((len(classes), len(ner.tags)), dtype=np.float32)
        known = np.ones(len(classes), dtype=bool)
        loss, gradient = get_loss(ner, [make()], token_logits(logits, known, ints(len(classes))))
        taught = [int(row.argmin()) if row.any() else -1 for row in gradient]
        assert taught == classes
        any_gold = any(number >= 0 for number in classes)
        assert loss == pytest.approx(np.log(len(ner.tags)) if any_gold else 0.0)


def test_misaligned_character_offsets_are_not_learned():
    doc = doc_of("New York is big")
    with pytest.warns(UserWarning, match="W030"):
        example = Example.from_dict(doc, {"entities": [(0, 6, "A"), (12, 15, "B")]})
    ner = make_head("ner")
    logits = np.zeros((4, 5), dtype=np.float32)
    known = np.ones(4, dtype=bool)
    _, gradient = get_loss(ner, [example], token_logits(logits, known, ints(4)))
    assert [int(row.argmin()) if row.any() else -1 for row in gradient] == [-1, -1, 0, 3]


def test_ner_names_an_unknown_label_once_and_leaves_it_out():
    ner = make_head("ner", "A")
    scores = token_logits(random_logits(3, 3), np.ones(3, dtype=bool), ints(3))
    example = with_ents("a b c", "a b c", [(0, 1, "A"), (1, 3, "X")])
    with pytest.warns(UserWarning, match="bert_ner has no label 'X'") as caught:
        found = get_loss(ner, [example], scores)
    assert len(caught) == 1
    gold = torch.tensor([1, -1, -1])
    expected = in_torch(lambda x: F.cross_entropy(x, gold, ignore_index=-1), scores.logits)
    assert_same_loss(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_loss(ner, [example], scores)
    with pytest.warns(UserWarning, match="no label 'Y'"):
        get_loss(ner, [with_ents("a b c", "a b c", [(1, 3, "Y")])], scores)


# --- entities: what is written

PROBABLE = [
    [{"B-A": 0.9}, {"I-A": 0.8}, {"O": 0.95, "I-A": 0.01}],
    [],
    [{"B-B": 0.6}, {"B-A": 0.7, "I-B": 0.1}],
]


def test_entities_and_their_scores():
    ner = make_head("ner")
    docs = [doc_of("a b c"), doc_of(""), doc_of("d e")]
    ner.set_annotations(docs, scores_of(PROBABLE, BIO))
    written = [[(ent.start, ent.end, ent.label_) for ent in doc.ents] for doc in docs]
    assert written == [[(0, 2, "A")], [], [(0, 1, "B"), (1, 2, "A")]]
    for doc, ents in zip(docs, written, strict=True):
        assert [(s.start, s.end, s.label_) for s in doc.spans["ents"]] == ents
        assert doc.has_annotation("ENT_IOB", require_complete=True)
    scores = [doc.spans["ents"].attrs["scores"] for doc in docs]
    assert scores[0] == pytest.approx([0.9 * 0.8 * 0.99], rel=1e-5)
    assert scores[1] == []
    assert scores[2] == pytest.approx([0.6 * 0.9, 0.7], rel=1e-5)


def test_threshold_and_spans_key():
    docs = [doc_of("a b c"), doc_of(""), doc_of("d e")]
    ner = make_head("ner", threshold=0.69, spans_key=None)
    ner.set_annotations(docs, scores_of(PROBABLE, BIO))
    assert [[ent.text for ent in doc.ents] for doc in docs] == [["a b"], [], ["e"]]
    assert [dict(doc.spans) for doc in docs] == [{}, {}, {}]
    ner.cfg.update(threshold=0.705, spans_key="found")  # read at every prediction
    docs = [doc_of("a b c"), doc_of(""), doc_of("d e")]
    ner.set_annotations(docs, scores_of(PROBABLE, BIO))
    assert [[ent.text for ent in doc.ents] for doc in docs] == [["a b"], [], []]
    assert [len(doc.spans["found"]) for doc in docs] == [1, 0, 0]


def test_entities_that_are_there_win():
    doc = doc_of("a b c d e")
    doc.ents = [Span(doc, 1, 2, "X", kb_id="Q1"), Span(doc, 4, 5, "Y")]
    ner = make_head("ner")
    ner.set_annotations([doc], certain(["B-A I-A B-B O O"], BIO))
    ents = [(ent.start, ent.end, ent.label_, ent.kb_id_) for ent in doc.ents]
    assert ents == [(1, 2, "X", "Q1"), (2, 3, "B", ""), (4, 5, "Y", "")]
    assert [(s.start, s.end, s.label_) for s in doc.spans["ents"]] == [(2, 3, "B")]
    p = 0.99 * (1 - 0.01 / 4)  # the closing token is an O
    assert doc.spans["ents"].attrs["scores"] == pytest.approx([p], rel=1e-5)


@pytest.mark.parametrize("scheme", ["BIO", "BILOU"])
def test_scores_are_seqevals(scheme):
    tags, rng = tags_of(scheme, "ABC"), np.random.default_rng(0)
    ner = make_head("ner", "ABC", scheme=scheme)

    def draw(length: int) -> list[str]:
        while True:
            path = rng.choice(tags, length, p=[0.4] + [0.6 / (len(tags) - 1)] * (len(tags) - 1))
            if ALLOWED[scheme].fullmatch("".join(f"{tag} " for tag in path)):
                return path.tolist()

    gold = [draw(length) for length in rng.integers(1, 7, 300)]
    guessed = [draw(len(one)) if rng.random() < 0.5 else one for one in gold]
    examples = []
    for one in gold:
        words = ["w"] * len(one)
        iob = [tag.replace("L-", "I-").replace("U-", "B-") for tag in one]
        reference = Doc(NLP.vocab, words=words, ents=iob)
        examples.append(Example(Doc(NLP.vocab, words=words), reference))
    scores = certain([" ".join(one) for one in guessed], tags)
    ner.set_annotations([eg.predicted for eg in examples], scores)
    found = ner.score([*examples, unannotated("a b")])

    report = seqeval.metrics.classification_report(
        gold,
        guessed,
        output_dict=True,
        mode="strict",
        scheme=seqeval.scheme.IOB2 if scheme == "BIO" else seqeval.scheme.BILOU,
    )
    assert 0.2 < found["ents_f"] < 0.9
    for ours, theirs in (("p", "precision"), ("r", "recall"), ("f", "f1-score")):
        assert found[f"ents_{ours}"] == pytest.approx(report["micro avg"][theirs])
        for label in "ABC":
            assert found["ents_per_type"][label][ours] == pytest.approx(report[label][theirs])


# --- tags

TAGS = [("tag", "NN", "VB", "_SP"), ("pos", "NOUN", "VERB", "SPACE")]


@pytest.mark.parametrize("attr, noun, verb, space", TAGS)
@pytest.mark.parametrize("trained_on_space", [True, False])
def test_tags(attr, noun, verb, space, trained_on_space):
    labels = [noun, verb, space] if trained_on_space else [noun, verb]
    tagger = make_head("tagger", labels, attr=attr)
    # A word, white space and a zero-width character without a piece, white space with one.
    words = ["a", "\n", "\u200b", "\t", "b"]
    doc = Doc(NLP.vocab, words=words)
    setattr(doc[2], f"{attr}_", noun)  # by an earlier component
    logits = np.zeros((6, len(tagger.labels)), dtype=np.float32)
    logits[[0, 1, 2, 3, 4, 5], [0, 1, 1, 1, 1, 0]] = 1
    known = np.asarray([True, False, False, True, True, True])
    other = doc_of("c")
    docs = [doc, doc_of(""), other]
    tagger.set_annotations(docs, token_logits(logits, known, ints(5, 0, 1)))
    found = [getattr(token, f"{attr}_") for token in doc]
    assert found == [noun, space if trained_on_space else "", noun, verb, verb]
    assert [getattr(token, f"{attr}_") for token in other] == [noun]
    other_attr = {"tag": "pos_", "pos": "tag_"}[attr]
    assert {getattr(token, other_attr) for token in doc} == {""}


@pytest.mark.parametrize("attr, noun, verb, space", TAGS)
def test_tagger_learns_from_what_is_annotated(attr, noun, verb, space):
    tagger = make_head("tagger", [noun, verb], attr=attr)
    key = {"tag": "tags", "pos": "pos"}[attr]
    examples = [
        Example.from_dict(doc_of("a b c"), {key: [noun, verb, noun]}),
        unannotated("a b"),
        Example.from_dict(doc_of("a b"), {key: ["", verb]}),
        # Of two tokens that are one the tag is clear only if they agree.
        Example.from_dict(
            doc_of("ab cd"), {"words": ["a", "b", "c", "d"], key: [noun, noun, noun, verb]}
        ),
        Example.from_dict(doc_of("a"), {key: [space]}),
    ]
    logits = random_logits(10, 2)
    known = np.ones(10, dtype=bool)
    known[2] = False  # without a wordpiece
    scores = token_logits(logits, known, ints(3, 2, 2, 2, 1))
    gold = torch.tensor([0, 1, -1, -1, -1, -1, 1, 0, -1, -1])
    with pytest.warns(UserWarning, match=f"bert_tagger has no label '{space}'") as caught:
        found = get_loss(tagger, examples, scores)
    assert len(caught) == 1
    assert_same_loss(found, in_torch(lambda x: F.cross_entropy(x, gold, ignore_index=-1), logits))
    assert [tagger.has_gold(eg) for eg in examples] == [True, False, True, True, True]


@pytest.mark.parametrize("attr, noun, verb, space", TAGS)
def test_tagger_score(attr, noun, verb, space):
    tagger = make_head("tagger", [noun, verb], attr=attr)
    key = {"tag": "tags", "pos": "pos"}[attr]
    examples = [Example.from_dict(doc_of("a b c d"), {key: [noun, verb, noun, verb]})]
    logits = np.asarray([[1, 0]] * 4, dtype=np.float32)
    scores = token_logits(logits, np.ones(4, dtype=bool), ints(4))
    tagger.set_annotations([eg.predicted for eg in examples], scores)
    assert tagger.score([*examples, unannotated("a")]) == {f"{attr}_acc": 0.5}


# --- settings that make no sense


@pytest.mark.parametrize(
    "kind, config, message",
    [
        ("ner", {"scheme": "BIOX"}, "Unknown scheme 'BIOX'"),
        ("ner", {"threshold": 1.5}, "threshold is 1.5"),
        ("ner", {"threshold": -0.1}, "threshold is -0.1"),
        ("textcat_multilabel", {"threshold": 2.0}, "threshold is 2.0"),
        ("textcat", {"class_weights": {"A": -1.0}}, "must not be negative"),
        ("textcat", {"model": {"pooling": "max"}}, "Unknown pooling 'max'"),
        ("tagger", {"attr": "lemma"}, "attr is 'lemma'"),
    ],
)
def test_settings_are_checked(kind, config, message):
    with pytest.raises(ValueError, match=message):
        make_head(kind, **config)


# --- in a pipeline, beside Hugging Face


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Make a checkpoint of a family with these settings, or find it made."""
    base = tmp_path_factory.mktemp("heads")

    @cache
    def folder(family: str, **settings) -> str:
        name = "-".join([family, *map(str, itertools.chain(*sorted(settings.items())))])
        return make_checkpoint(base / name, family=family, **settings)

    return folder


def pipeline(name: str, kind: str, *, window: int = 100, data=TRAIN_DATA, **config):
    nlp = spacy.blank("en")
    encoder = {"name": name, "window": window, "stride": window // 2}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    nlp.add_pipe(f"bert_{kind}", name="head", config=config)
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


def module_of(nlp) -> torch.nn.Module:
    return shim_of(nlp.get_pipe("head").model).module


def first_pieces(tokenizer, doc: Doc) -> list[int]:
    """Each token's first piece, or the one that covers its start, by Hugging Face's offsets."""
    encoding = tokenizer(doc.text, return_offsets_mapping=True, return_special_tokens_mask=True)
    places = {}
    for i, (start, end) in enumerate(encoding["offset_mapping"]):
        piece = doc.text[start:end]
        indent = len(piece) - len(piece.lstrip()) if piece.strip() else 0
        if not encoding["special_tokens_mask"][i]:
            places[i] = (start + indent, end)
    first = []
    for token in doc:
        begin, stop = token.idx, token.idx + len(token)
        starting = [i for i, (start, _) in places.items() if begin <= start < stop]
        covering = [i for i, (start, end) in places.items() if start <= begin < end]
        first.append((starting or covering)[0])
    return first


TEXTS = ["Anna Grete left Skagen on Tuesday.", "", "They cannot swim", "Das Schiff läuft auf Grund"]


@pytest.mark.parametrize("family", [one for one in FAMILIES if one != "modernbert"])
def test_token_logits_are_hugging_faces(folders, family):
    nlp = pipeline(folders(family), "ner")
    head = nlp.get_pipe("head")
    labels = len(head.tags)
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(
        folders(family), num_labels=labels
    ).eval()
    module_of(nlp).classifier.load_state_dict(theirs.classifier.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders(family))
    docs = [nlp.make_doc(text) for text in TEXTS]
    scores = head.predict(docs)
    assert scores.has_pieces.all()
    expected = []
    for doc in docs:
        with torch.no_grad():
            logits = theirs(torch.tensor([tokenizer(doc.text)["input_ids"]])).logits[0]
        expected.append(logits[first_pieces(tokenizer, doc)] if len(doc) else logits[:0])
    assert scores.lengths.tolist() == [len(doc) for doc in docs]
    np.testing.assert_allclose(scores.logits, torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "albert", "roberta", "xlm-roberta"])
def test_sequence_logits_are_hugging_faces(folders, family):
    nlp = pipeline(folders(family), "textcat")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        folders(family), num_labels=2
    ).eval()
    ours = module_of(nlp)
    if "roberta" in family:  # a dense layer of the head's own in place of the pooler
        ours.dense.linear.load_state_dict(theirs.classifier.dense.state_dict())
        ours.classifier.load_state_dict(theirs.classifier.out_proj.state_dict())
    else:  # the pooler is the checkpoint's already
        ours.classifier.load_state_dict(theirs.classifier.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders(family))
    with torch.no_grad():
        expected = [theirs(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS]
    found = nlp.get_pipe("head").predict([nlp.make_doc(text) for text in TEXTS])
    np.testing.assert_allclose(found, torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean"])
def test_pooling_and_the_mean_of_windows_by_hand(folders, pooling):
    window = 9
    nlp = pipeline(folders("bert"), "textcat", window=window, model={"pooling": pooling})
    module = module_of(nlp)
    torch.nn.init.normal_(module.classifier.bias)
    weight, bias = module.classifier.weight, module.classifier.bias
    model = transformers.AutoModel.from_pretrained(folders("bert")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders("bert"))
    texts = ["A fire", " ".join(TEXTS), "", "Anna met Barack in Berlin, then flew to New York."]
    expected, n_windows = [], []
    for text in texts:
        windows = tokenizer(
            text,
            truncation=True,
            max_length=window,
            stride=window - 2 - window // 2,  # Hugging Face's stride is the overlap
            return_overflowing_tokens=True,
        )["input_ids"]
        logits = []
        for ids in windows:
            with torch.no_grad():
                output = model(torch.tensor([ids]))
                states = output.last_hidden_state[0]
                vectors = {
                    "cls": states[0],
                    "pooler": output.pooler_output[0],
                    "mean": states.mean(0),
                }
                logits.append(weight @ vectors[pooling] + bias)
        expected.append(torch.stack(logits).mean(0))
        n_windows.append(len(windows))
    assert n_windows[0] == n_windows[2] == 1
    assert min(n_windows[1], n_windows[3]) > 1
    found = nlp.get_pipe("head").predict([nlp.make_doc(text) for text in texts])
    np.testing.assert_allclose(found, torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "albert", "roberta"])
def test_the_pooler_starts_as_the_checkpoints(folders, family):
    model = transformers.AutoModel.from_pretrained(folders(family))
    theirs = model.pooler if family == "albert" else model.pooler.dense
    ours = module_of(pipeline(folders(family), "textcat")).dense.linear
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    assert theirs.bias.abs().max() > 0.01


def test_without_a_pooler_in_the_checkpoint_it_starts_new(folders, tmp_path):
    model = transformers.BertModel.from_pretrained(folders("bert"), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folders("bert")).save_pretrained(tmp_path)
    for name in (str(tmp_path), folders("electra")):
        dense = module_of(pipeline(name, "textcat")).dense.linear
        assert dense.bias.abs().max() == 0
        assert float(dense.weight.detach().std()) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("initializer_range", [0.02, 0.2])
@pytest.mark.parametrize("kind", ["tagger", "textcat"])
def test_weights_start_as_wide_as_the_checkpoints(folders, kind, initializer_range):
    name = folders("bert", initializer_range=initializer_range)
    labels = [f"L{i}" for i in range(60)]
    cats = dict.fromkeys(labels, 0.0)
    data = [(" ".join(labels), {"tags": labels, "cats": cats})]
    classifier = module_of(pipeline(name, kind, data=data)).classifier
    assert classifier.weight.shape == (60, 32)
    assert float(classifier.weight.detach().std()) == pytest.approx(initializer_range, rel=0.08)
    assert float(classifier.weight.detach().mean()) == pytest.approx(0, abs=0.1 * initializer_range)
    assert classifier.bias.tolist() == [0.0] * 60


@pytest.mark.parametrize(
    "family, rates",
    [
        ("bert", {"dropout": 0.3}),
        ("bert", {"dropout": 0.3, "classifier_dropout": 0.25}),
        ("bert", {"dropout": 0.3, "classifier_dropout": 0.0}),
        ("roberta", {"dropout": 0.3}),
        ("electra", {"dropout": 0.3, "classifier_dropout": 0.25}),
        ("albert", {"dropout": 0.3, "classifier_dropout_prob": 0.15}),
        ("distilbert", {"dropout": 0.3, "seq_classif_dropout": 0.4}),
    ],
)
@pytest.mark.parametrize("kind", ["ner", "textcat"])
def test_dropout_is_that_of_hugging_faces_head(folders, family, rates, kind):
    name = folders(family, **rates)
    if kind == "ner":
        theirs = transformers.AutoModelForTokenClassification.from_pretrained(name).dropout
    else:
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(name)
        theirs = getattr(theirs, "dropout", None) or theirs.classifier.dropout
    assert theirs.p in rates.values()
    assert module_of(pipeline(name, kind)).dropout.p == theirs.p


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_of_the_head_is_at_work_in_training_alone(folders, rate):
    nlp = pipeline(folders("bert", dropout=0.3), "textcat", model={"dropout": rate})
    assert module_of(nlp).dropout.p == rate
    head = nlp.get_pipe("head")
    docs = [nlp.make_doc(text) for text in TEXTS]
    predicted = head.predict(docs)
    # Outside of an encoder's step the states are those of a prediction.
    first, second = (head.model.begin_update(docs)[0] for _ in range(2))
    assert np.array_equal(first, second) == (rate == 0)
    assert np.array_equal(first, predicted) == (rate == 0)
    assert np.array_equal(head.predict(docs), predicted)


def test_a_token_without_pieces_has_the_logits_of_zeros(folders):
    nlp = pipeline(folders("bert"), "ner")
    bias = module_of(nlp).classifier.bias
    torch.nn.init.normal_(bias)
    doc = Doc(nlp.vocab, words=["Anna", "\u200b", "left"])
    scores = nlp.get_pipe("head").predict([doc])
    assert scores.has_pieces.tolist() == [True, False, True]
    assert scores.logits[1].tolist() == bias.tolist()
    assert (scores.logits[0] != scores.logits[2]).any()


def test_blocked_tokens_stay_out_of_entities(make_nlp):
    nlp = make_nlp("ner")
    doc = nlp.make_doc("Anna Grete left Skagen")
    doc.set_ents([], blocked=[doc[0:1], doc[3:4]])
    ner = nlp.get_pipe("bert_ner")
    logits = np.full((4, len(ner.tags)), -9.0, dtype="f")
    logits[[0, 1, 2, 3], [ner.tags.index(t) for t in ("B-PLACE", "O", "B-PLACE", "B-PLACE")]] = 9.0
    ner.set_annotations([doc], token_logits(logits, np.ones(4, dtype=bool), np.asarray([4])))
    assert [(ent.start, ent.end, ent.label_) for ent in doc.ents] == [(2, 3, "PLACE")]
    assert [token.ent_iob_ for token in doc] == ["B", "O", "B", "B"]  # "B" without a type: blocked
    assert [token.ent_type_ for token in doc] == ["", "", "PLACE", ""]
