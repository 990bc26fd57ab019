"""Texts with questions and hypotheses, and pipelines that learn them."""

import warnings

import spacy
import torch
from groups import GROUPS
from spacy.training import Example
from thinc.api import Adam

from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.pairs import make_answer, make_verdict

LANG = "xx"  # English has 1,500 exceptions for its tokenizer to learn, each time
NLP = spacy.blank(LANG)
# Of each text the questions with their answers ("" for none) and the hypotheses with their labels;
# None is not annotated.
DATA = [
    (
        "Anna left Skagen on Tuesday",
        {
            "questions": {"Who left?": "Anna", "Where from?": "Skagen", "Why?": ""},
            "hypotheses": {"She left": "entailment", "It burned": "neutral"},
            "entities": [(0, 4, "VESSEL"), (10, 16, "PLACE")],
            "cats": {"voyage": 1.0, "fire": 0.0},
        },
    ),
    (
        "The boat burned in Hull",
        {
            "questions": {"Where from?": "", "What burned?": "The boat", "Why?": ""},
            "hypotheses": {"It burned": "entailment", "Nothing burned": "contradiction"},
            "entities": [(19, 23, "PLACE")],
            "cats": {"voyage": 0.0, "fire": 1.0},
        },
    ),
    ("Hull", {"questions": {"Why?": ""}, "hypotheses": {"It burned": "neutral"}}),
]


def make_example(nlp, text: str, gold: dict) -> Example:
    usual = {key: gold[key] for key in ("entities", "cats") if key in gold}
    example = Example.from_dict(nlp.make_doc(text), usual)
    doc = example.reference
    for name, output in (("questions", "answers"), ("hypotheses", "nli")):
        asked = gold.get(name, {})
        for one in (doc, example.predicted):
            one._.set(name, list(asked))
        entries = [entry_of(doc, name, entry) for entry in asked.values()]
        doc._.set(output, entries)
    return example


def entry_of(doc, name: str, entry) -> dict | None:
    """A gold entry; of an answer its text (the first in the Doc) or its characters."""
    if entry is None:
        return None
    if name == "hypotheses":
        return make_verdict(entry)
    if isinstance(entry, tuple):
        return make_answer(doc, *entry)
    start = doc.text.index(entry)
    return make_answer(doc, start, start + len(entry)) if entry else make_answer(doc)


def make_examples(nlp, data=DATA) -> list[Example]:
    return [make_example(nlp, text, gold) for text, gold in data]


def build(name: str, *heads: str, data=DATA, window: int = 64, stride: int = 48, **config):
    nlp = spacy.blank(LANG)
    encoder = {"name": name, "window": window, "stride": stride}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    for head in heads:
        nlp.add_pipe(f"bert_{head}", config=GROUPS.get(head, {}) | config)
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


def train(nlp, data=DATA, *, steps: int, rate: float = 3e-3):
    optimizer = Adam(rate, use_averages=False)
    examples = make_examples(nlp, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")  # a random BERT needs it
        for _ in range(steps):
            nlp.update(examples, sgd=optimizer)
        nlp.get_pipe("bert_encoder").predict([])  # takes the last step
    return nlp


def module_of(nlp, head: str) -> torch.nn.Module:
    return shim_of(nlp.get_pipe(f"bert_{head}").model).module


def weights_of(nlp) -> torch.Tensor:
    modules = [shim_of(pipe.model).module for _, pipe in nlp.pipeline]
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


def ask(nlp, text: str, **inputs: list[str]):
    doc = nlp.make_doc(text)
    for name, texts in inputs.items():
        doc._.set(name, texts)
    return nlp(doc)


def make_head(kind: str, **config):
    return NLP.create_pipe(f"bert_{kind}", config=config)


def predict_pairs(head, pairs):
    """What a head's model gives for pairs."""
    return head.model.predict(head.pack(pairs))
