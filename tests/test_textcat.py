"""What the heads for categories learn, write and are scored."""

import warnings

import numpy as np
import pytest
import torch
from arrays import floats
from head_cases import doc_of, make_head, random_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import assert_same_loss, get_loss, in_torch
from spacy.training import Example
from torch.nn import functional as F


def with_cats(*cats: dict[str, float]) -> list[Example]:
    return [Example.from_dict(doc_of("a b"), {"cats": one}) for one in cats]


@pytest.mark.parametrize("weights", [None, {"B": 2.5}, {"A": 0.5, "B": 0.0, "C": 3.0}])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_textcat_loss_is_torchs(weights, smoothing):
    textcat = make_head("textcat", "ABC", class_weights=weights, label_smoothing=smoothing)
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

    def loss(x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x, classes, by_class, ignore_index=-1, label_smoothing=smoothing)

    assert_same_loss(get_loss(textcat, examples, logits), in_torch(loss, logits))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, 2.0])
def test_label_smoothing_is_a_part(smoothing):
    with pytest.raises(
        ValueError, match=f"label_smoothing is {smoothing}; it must be from 0, for none, to 1"
    ):
        make_head("textcat", label_smoothing=smoothing)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    st.none() | st.fixed_dictionaries(dict.fromkeys("ABC", st.floats(0.1, 5))),
    st.floats(0, 0.9),
)
def test_exclusive_values_that_sum_to_1_are_probabilities(values, weights, smoothing):
    """As targets of torch's cross_entropy; a mean by their weights."""
    q = np.asarray(values) / sum(values)
    head = make_head("textcat", "ABC", class_weights=weights, label_smoothing=smoothing)
    logits = random_logits(2, 3)
    examples = with_cats(dict(zip("ABC", q.tolist(), strict=True)), {"B": 1.0})
    loss, _ = get_loss(head, examples, logits)
    targets = torch.tensor([q.tolist(), [0.0, 1.0, 0.0]])
    weight = torch.tensor([1.0] * 3 if weights is None else [weights[label] for label in "ABC"])
    total = F.cross_entropy(
        torch.as_tensor(logits), targets, weight, reduction="sum", label_smoothing=smoothing
    )
    assert loss == pytest.approx(float(total / (targets * weight).sum()), rel=1e-4)


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


def predict(textcat, *rows: tuple[dict[str, float], dict[str, float]]) -> list[Example]:
    """Examples of (gold, predicted) categories."""
    examples = with_cats(*(gold for gold, _ in rows))
    for example, (_, found) in zip(examples, rows, strict=True):
        example.predicted.cats = found
    return examples


def test_accuracy_of_exclusive_categories():
    textcat = make_head("textcat", "ABC")
    examples = predict(
        textcat,
        ({"A": 1.0, "B": 0.0, "C": 0.0}, {"A": 0.4, "B": 0.3, "C": 0.3}),  # right
        ({"A": 1.0}, {"A": 0.1, "B": 0.2, "C": 0.7}),
        ({"B": 1.0, "A": 0.0}, {"A": 0.2, "B": 0.5, "C": 0.3, "other": 0.9}),  # right
        ({"C": 1.0}, {"A": 0.0, "B": 1.0, "C": 0.0}),
        ({"A": 0.0, "B": 0.0, "C": 0.0}, {"A": 0.5, "B": 0.3, "C": 0.2}),  # nothing to be right
        ({}, {"A": 0.5, "B": 0.3, "C": 0.2}),
    )
    assert textcat.score(examples)["cats_acc"] == 0.5
    assert textcat.score(examples[:1])["cats_acc"] == 1.0
    assert textcat.score(examples[4:])["cats_acc"] is None
    multilabel = make_head("textcat_multilabel", "ABC")
    assert "cats_acc" not in multilabel.score(examples)
    assert "cats_acc" not in multilabel.scores
