"""Class weights and label smoothing of the heads for tokens, beside torch's."""

import numpy as np
import pytest
import torch
from arrays import ints
from head_cases import doc_of, make_head, random_logits, unannotated
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import assert_same_loss, get_loss, in_torch, token_logits
from spacy.training import Example
from torch.nn import functional as F

from spacy_bert_heads.heads.negations import tag_loss

# Of BIO the classes are O 0, B-A 1, I-A 2, B-B 3, I-B 4; of BILOU U-A is 4 and so on.
NER = [
    ("BIO", [1, 2, 0, 3, -1, -1], [1, 2, 2, 0.5, 0.5]),
    ("BILOU", [1, 3, 0, 8, -1, -1], [1, 2, 2, 2, 2, 0.5, 0.5, 0.5, 0.5]),
]


def ner_examples() -> list[Example]:
    tags = ["B-A", "L-A", "O", "U-B"]
    return [Example.from_dict(doc_of("a b c d"), {"entities": tags}), unannotated("e f")]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, {"A": 2, "B": 0.5}, {"O": 0.25}, {"A": 0.0}])
@pytest.mark.parametrize("scheme, classes, of_labels", NER)
def test_ner(scheme, classes, of_labels, weights, smoothing):
    ner = make_head("ner", scheme=scheme, class_weights=weights, label_smoothing=smoothing)
    by_class = [1.0] * len(ner.tags)
    if weights:
        by_class = [weights.get(tag.split("-")[-1], 1.0) for tag in ner.tags]
    if weights and "B" in weights:
        assert by_class == of_labels
    logits, gold = random_logits(6, len(ner.tags)), torch.tensor(classes)

    def expected(x):
        return F.cross_entropy(x, gold, weight=torch.tensor(by_class, dtype=x.dtype),
                               ignore_index=-1, label_smoothing=smoothing)  # fmt: skip

    output = token_logits(logits, np.ones(6, dtype=bool), ints(4, 2))
    assert_same_loss(get_loss(ner, ner_examples(), output), in_torch(expected, logits))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, {"N": 3.0, "V": 0.5}])
def test_tagger(weights, smoothing):
    labels = ["N", "V", "X"]
    tagger = make_head("tagger", labels, class_weights=weights, label_smoothing=smoothing)
    example = Example.from_dict(doc_of("a b c d"), {"tags": ["V", "N", "", "X"]})
    logits, gold = random_logits(4, 3), torch.tensor([1, 0, -1, 2])
    by_class = [(weights or {}).get(label, 1.0) for label in labels]

    def expected(x):
        return F.cross_entropy(x, gold, weight=torch.tensor(by_class, dtype=x.dtype),
                               ignore_index=-1, label_smoothing=smoothing)  # fmt: skip

    output = token_logits(logits, np.ones(4, dtype=bool), ints(4))
    assert_same_loss(get_loss(tagger, [example], output), in_torch(expected, logits))


@settings(max_examples=100, deadline=None)
@given(classes=st.lists(st.integers(-1, 2), max_size=6), seed=st.integers(0, 99),
       smoothing=st.floats(0, 1), weights=st.lists(st.floats(0.1, 4), min_size=3, max_size=3),
       )  # fmt: skip
def test_tag_loss_is_torchs(classes, seed, smoothing, weights):
    logits, gold = (
        random_logits(len(classes), 3, seed=seed),
        torch.tensor(classes, dtype=torch.int64),
    )

    def expected(x):
        if not (gold >= 0).any():
            return (x * 0).sum()
        return F.cross_entropy(x, gold, weight=torch.tensor(weights, dtype=x.dtype),
                               ignore_index=-1, label_smoothing=smoothing)  # fmt: skip

    x = torch.tensor(logits, requires_grad=True)
    loss = tag_loss(x, ints(*classes), weights=torch.tensor(weights), label_smoothing=smoothing)
    loss.backward()
    found = float(loss.detach()), x.grad.numpy()
    assert_same_loss(found, in_torch(expected, logits))


def test_a_class_without_weight_teaches_nothing():
    x = torch.zeros((2, 2), requires_grad=True)
    loss = tag_loss(x, ints(1, 1), weights=torch.tensor([1.0, 0.0]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert (x.grad == 0).all()


@pytest.mark.parametrize("kind", ["ner", "tagger"])
def test_settings_that_make_no_sense(kind, make_nlp):
    with pytest.raises(ValueError, match="label_smoothing is 1.5; it must be from 0, for none, to"):
        make_head(kind, label_smoothing=1.5)
    with pytest.raises(ValueError, match="class_weights must not be negative"):
        make_head(kind, class_weights={"A": -1.0})
    nlp = make_nlp(initialize=False)
    head = nlp.add_pipe(f"bert_{kind}", config={"class_weights": {"Z": 2.0}})
    head.add_label("A")
    names = "O, A" if kind == "ner" else "A"
    with pytest.raises(ValueError, match=f"class_weights of bert_{kind} names 'Z'.*: {names}"):
        nlp.initialize()
