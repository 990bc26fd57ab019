"""One tiny pipeline with a head of each kind, which knows two Docs by heart."""

import warnings
from collections.abc import Sequence

import pytest
import spacy
import torch
from conftest import TRAIN_DATA
from groups import GROUPS
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Adam

from spacy_bert_heads.pairs import copy_inputs, make_answer, make_verdict

LANG = "xx"  # English has 1,500 exceptions for its tokenizer to learn, each time
HEADS = ("ner", "textcat", "nli", "qa")
SAILED, BURNED = (text for text, _ in TRAIN_DATA)
# Verdicts by hypothesis and the characters of the answers by question, for each of TRAIN_DATA.
PAIRS = [
    (
        {"She left.": "entailment", "She sank.": "contradiction", "It rained.": "neutral"},
        {"Who left?": (0, 10), "What burned?": (0, 0), "When?": (26, 33)},
    ),
    ({"It burned.": "entailment", "It rained.": "neutral"}, {"Where?": (19, 23)}),
]
# Each with its questions and hypotheses.
STREAM = [
    (SAILED, ["Who left?", "What burned?"], ["She left.", "It rained."]),
    (BURNED, [], []),
    ("Hull burned on Tuesday; the boat left Skagen. " * 20, ["When?"], []),  # several windows
    ("", ["Where?"], ["It burned."]),
    (BURNED, ["Where?"], ["It burned."]),
    ("Grete", [], []),
]


def build(checkpoint: str, heads: Sequence[str] = HEADS) -> Language:
    """An encoder and some heads, without weights."""
    nlp = spacy.blank(LANG)
    encoder = {"name": checkpoint, "window": 64, "stride": 48}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    for head in heads:
        nlp.add_pipe(f"bert_{head}", config=GROUPS.get(head, {}))
    return nlp


def train(nlp: Language, *, steps: int = 50) -> Language:
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    optimizer = Adam(3e-3, use_averages=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")  # a random BERT needs it
        for _ in range(steps):
            nlp.update(make_examples(nlp), sgd=optimizer)
    return nlp


def make_examples(nlp: Language) -> list[Example]:
    examples = []
    for (text, gold), (verdicts, answers) in zip(TRAIN_DATA, PAIRS, strict=True):
        example = Example.from_dict(nlp.make_doc(text), dict(gold))
        reference = example.reference
        reference._.hypotheses, reference._.questions = list(verdicts), list(answers)
        reference._.nli = [make_verdict(label) for label in verdicts.values()]
        reference._.answers = [make_answer(reference, *place) for place in answers.values()]
        copy_inputs(reference, example.predicted)
        examples.append(example)
    return examples


def make_docs(nlp: Language) -> list[Doc]:
    docs = []
    for text, questions, hypotheses in STREAM:
        docs.append(nlp.make_doc(text))
        if questions:
            docs[-1]._.questions = list(questions)
        if hypotheses:
            docs[-1]._.hypotheses = list(hypotheses)
    return docs


def annotations(doc: Doc) -> dict:
    """All that the heads wrote."""
    spans = {key: [(s.start, s.end, s.label_) for s in doc.spans[key]] for key in doc.spans}
    return {
        "ents": [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents],
        "spans": spans,
        "scores": {key: list(doc.spans[key].attrs["scores"]) for key in spans},
        "ent_scores": [{**entry, "component": ""} for entry in doc._.ent_scores],
        "cats": dict(doc.cats),
        "nli": doc._.nli,
        "answers": doc._.answers,
    }


def annotate(nlp: Language, **options) -> list[dict]:
    return [annotations(doc) for doc in nlp.pipe(make_docs(nlp), **options)]


def assert_same(found, expected) -> None:
    """Equal, but for the last digits of probabilities."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected
