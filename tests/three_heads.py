"""Pipelines of three heads, which know two Docs by heart, and what they write."""

import warnings

import pytest
import spacy
import torch
from conftest import TRAIN_DATA, make_examples
from groups import GROUPS
from spacy.tokens import Doc
from thinc.api import Adam

from spacy_bert_heads.encoder.model import shim_of

LANG = "xx"  # English has 1,500 exceptions for its tokenizer to learn, each time
HEADS = ("ner", "tagger", "textcat")
POS = {"NNP": "PROPN", "NN": "NOUN", "VBD": "VERB", "IN": "ADP", "DT": "DET"}
DATA = [(text, {**gold, "pos": [POS[tag] for tag in gold["tags"]]}) for text, gold in TRAIN_DATA]
TEXTS = [
    *(text for text, _ in DATA),
    "",
    "Hull burned on Tuesday; the boat left Skagen. " * 20,  # several windows
    "Anna can't swim, but cannot sink either 😀",
    "  \n",
    "Grete",
]


def build(name: str, *heads: str, initialize: bool = True, settings=None, **encoder):
    nlp = spacy.blank(LANG)
    encoder = {"name": name, "window": 64, "stride": 48, **encoder}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    for head in heads:
        nlp.add_pipe(f"bert_{head}", config=GROUPS.get(head, {}) | (settings or {}))
    if initialize:
        torch.manual_seed(0)
        nlp.initialize(lambda: make_examples(nlp, DATA))
    return nlp


def train(nlp, data=DATA, *, steps: int = 40):
    optimizer = Adam(3e-3, use_averages=False)
    examples = make_examples(nlp, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")  # a random BERT needs it
        for _ in range(steps):
            nlp.update(examples, sgd=optimizer)
    return nlp


def annotations(doc: Doc) -> dict:
    return {
        "text": doc.text,
        "ents": [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents],
        "spans": {key: [(s.start, s.end, s.label_) for s in doc.spans[key]] for key in doc.spans},
        "tags": [token.tag_ for token in doc],
        "pos": [token.pos_ for token in doc],
        "cats": dict(doc.cats),
        "scores": {key: list(doc.spans[key].attrs["scores"]) for key in doc.spans},
    }


def annotate(nlp, texts=TEXTS, **options) -> list[dict]:
    return [annotations(doc) for doc in nlp.pipe(texts, **options)]


def close(found: list[dict]) -> list[dict]:
    """The same, with probabilities that need not agree to the last bit."""
    return [
        {
            **one,
            "cats": pytest.approx(one["cats"], abs=1e-5),
            "scores": {
                key: pytest.approx(scores, abs=1e-5) for key, scores in one["scores"].items()
            },
        }
        for one in found
    ]


def gold_of(key: str, doc: Doc) -> object:
    """What was written, in the form of DATA."""
    return {
        "entities": [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents],
        "tags": [token.tag_ for token in doc],
        "pos": [token.pos_ for token in doc],
        "cats": {label: p if 0.1 < p < 0.9 else round(p) for label, p in doc.cats.items()},
    }[key]


def weights_of(nlp, name: str) -> dict[str, torch.Tensor]:
    module = shim_of(nlp.get_pipe(name).model).module
    return {key: value.detach().clone() for key, value in module.named_parameters()}


ENTS = {"ents_p", "ents_r", "ents_f", "ents_per_type"}
CATS = {
    "cats_score",
    "cats_score_desc",
    *(f"cats_{average}_{score}" for average in ("micro", "macro") for score in "prf"),
    "cats_macro_auc",
    "cats_f_per_type",
    "cats_auc_per_type",
}


def listener(upstream: str) -> dict:
    return {
        "model": {
            "tok2vec": {
                "@architectures": "spacy_bert_heads.BertListener.v1",
                "upstream": upstream,
            }
        }
    }


def through_disk(nlp, folder):
    nlp.to_disk(folder)
    return spacy.load(folder)
