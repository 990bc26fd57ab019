"""Texts with numbers, and pipelines that learn them."""

import spacy
import torch
from spacy.training import Example

from spacy_bert_heads.heads.regression import BertRegression

LANG = "xx"  # English has 1,500 exceptions for its tokenizer to learn, each time
NLP = spacy.blank(LANG)
BertRegression.set_extensions()
DATA = [
    ("Anna left Skagen on Tuesday", {"rating": 4.5, "length": -1.0}),
    ("The boat burned in Hull", {"rating": 1.0, "length": 2.0}),
    ("Nobody can't swim", {"rating": 3.0}),
    ("A fire broke out", {"length": 0.5}),
    ("Hull", {}),
]


def make_example(nlp, text: str, values: dict | None, predicted: dict | None = None) -> Example:
    example = Example(nlp.make_doc(text), nlp.make_doc(text))
    if values is not None:
        example.reference._.regression = values
    if predicted is not None:
        example.predicted._.regression = predicted
    return example


def make_examples(nlp, data=DATA) -> list[Example]:
    return [make_example(nlp, text, dict(values)) for text, values in data]


def build(checkpoint: str, data=DATA, **init):
    nlp = spacy.blank(LANG)
    encoder = {"name": checkpoint, "window": 64, "stride": 48}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    nlp.add_pipe("bert_regression")
    torch.manual_seed(0)
    if init:
        nlp.config["initialize"]["components"] = {"bert_regression": init}
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


def values(nlp, texts) -> list[dict[str, float]]:
    return [dict(doc._.regression) for doc in nlp.pipe(texts)]
