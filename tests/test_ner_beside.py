"""Several recognizers in one pipeline, each with labels of its own."""

import warnings

import numpy as np
import pytest
import spacy
import torch
from arrays import ints
from conftest import TRAIN_DATA, make_examples
from head_cases import tags_of
from losses import get_loss, token_logits
from small_pipelines import LANG
from spacy.training import Example
from thinc.api import Adam

from spacy_bert_heads.heads.gold import Gold, GoldSpan, tag_classes

LABELS = {"ships": ("VESSEL",), "rest": ("DATE", "PLACE")}


@pytest.fixture
def nlp(checkpoint):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    for name, labels in LABELS.items():
        nlp.add_pipe("bert_ner", name=name)
        nlp.config["initialize"]["components"][name] = {"labels": list(labels)}
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def taught(head, example: Example) -> list[str]:
    """The tag of each token that the head learns, "" for none."""
    n = len(example.predicted)
    logits = np.zeros((n, len(head.tags)), dtype=np.float32)
    _, gradient = get_loss(head, [example], token_logits(logits, np.ones(n, dtype=bool), ints(n)))
    return [head.tags[row.argmin()] if row.any() else "" for row in gradient]


@pytest.mark.parametrize("scheme, own", [("BIO", [1, 2]), ("BILOU", [1, 3])])
def test_labels_beside_are_outside_and_unknown_ones_not_annotated(scheme, own):
    places = {"A": ints(0, 1), "B": ints(2, 3), "C": ints(4)}
    entities = [GoldSpan(rows, label) for label, rows in places.items()]
    gold = Gold(np.arange(6) == 5, entities, [], [], [])
    tags = tags_of(scheme, "A")
    assert tag_classes(gold, tags, scheme, {"B"}).tolist() == [*own, 0, 0, -1, 0]
    assert tag_classes(gold, tags, scheme).tolist() == [*own, -1, -1, -1, 0]


def test_each_learns_that_the_entities_of_others_are_none_of_its_own(nlp):
    example = make_examples(nlp)[0]  # Anna Grete left Skagen on Tuesday
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert taught(nlp.get_pipe("ships"), example) == ["B-VESSEL", "I-VESSEL", *"OOOO"]
        assert taught(nlp.get_pipe("rest"), example) == [*"OOO", "B-PLACE", "O", "B-DATE"]


def test_a_head_with_an_encoder_of_its_own_learns_so_too(nlp):
    nlp.replace_listeners("bert_encoder", "ships", ["model.tok2vec"])
    assert taught(nlp.get_pipe("ships"), make_examples(nlp)[0]) == ["B-VESSEL", "I-VESSEL", *"OOOO"]


def test_a_label_that_no_head_has_is_not_learned(nlp):
    example = Example.from_dict(nlp.make_doc("Anna left Hull"), {"entities": [(0, 4, "CREW")]})
    for name in LABELS:
        with pytest.warns(UserWarning, match=f"{name} has no label 'CREW'"):
            assert taught(nlp.get_pipe(name), example) == ["", "O", "O"]


def test_after_training_each_finds_only_its_own(nlp):
    optimizer = Adam(3e-3, use_averages=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")  # a random BERT needs it
        for _ in range(40):
            nlp.update(make_examples(nlp), sgd=optimizer)
    for name, labels in LABELS.items():
        with nlp.select_pipes(enable=["bert_encoder", name]):
            docs = list(nlp.pipe(text for text, _ in TRAIN_DATA))
        found = [[(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents] for doc in docs]
        assert found == [[e for e in gold["entities"] if e[2] in labels] for _, gold in TRAIN_DATA]
