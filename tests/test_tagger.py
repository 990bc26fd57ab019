"""What the head for tags writes, learns and is scored."""

import numpy as np
import pytest
import torch
from arrays import ints
from head_cases import NLP, doc_of, make_head, random_logits, unannotated
from losses import assert_same_loss, get_loss, in_torch, token_logits
from spacy.tokens import Doc
from spacy.training import Example
from torch.nn import functional as F

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
