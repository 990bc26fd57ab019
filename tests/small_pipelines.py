"""Small pipelines without training, and what they write."""

import pytest
import spacy
import torch
from conftest import TRAIN_DATA, make_examples
from groups import GROUPS

LANG = "xx"  # English has 1,500 exceptions for its tokenizer to learn, each time

TEXT = "Anna Grete left Skagen on Tuesday"


def build(checkpoint: str, *heads: str, data=TRAIN_DATA, settings=None, **encoder):
    nlp = spacy.blank(LANG)
    encoder = {"name": checkpoint, "window": 64, "stride": 48, **encoder}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    for head in heads:
        nlp.add_pipe(f"bert_{head}", config=GROUPS.get(head, {}) | (settings or {}))
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


def annotations(doc) -> dict:
    spans = doc.spans.get("ents")
    return {
        "text": doc.text,
        "ents": [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents],
        "tags": [token.tag_ for token in doc],
        "cats": doc.cats,
        "scores": list(spans.attrs["scores"]) if spans is not None else [],
    }


def assert_same(one: dict, other: dict) -> None:
    for key in ("text", "ents", "tags"):
        assert one[key] == other[key]
    assert one["cats"] == pytest.approx(other["cats"], abs=1e-5)
    assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
