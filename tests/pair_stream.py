"""Docs with questions and hypotheses, and pipelines that answer them."""

import warnings

import pytest
import spacy
import torch
from groups import GROUPS
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from thinc.api import Adam

from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.pairs import copy_inputs, make_answer, make_verdict

LANG = "xx"  # English has 1,500 exceptions for its tokenizer to learn, each time
SAILED, BURNED = "Anna Grete left Skagen on Tuesday", "The boat burned in Hull"
# Text, verdicts by hypothesis, characters of the answers by question.
DATA = [
    (
        SAILED,
        {"She left.": "entailment", "She sank.": "contradiction", "It rained.": "neutral"},
        {"Who left?": (0, 10), "What burned?": (0, 0), "When?": (26, 33)},
    ),
    (
        BURNED,
        {"It burned.": "entailment", "It rained.": "neutral"},
        {"Where?": (19, 23), "Who left?": (0, 0)},
    ),
]
QUESTIONS, HYPOTHESES = ["Who left?", "What burned?"], ["She left.", "It rained."]
# Each with its questions and hypotheses.
STREAM = [
    (SAILED, QUESTIONS, HYPOTHESES),
    (BURNED, [], []),
    ("Hull burned on Tuesday; the boat left Skagen. " * 20, ["When?"], []),  # several windows
    ("", ["Where?"], ["It burned."]),
    ("Anna can't swim, but cannot sink either 😀", [], ["She left.", "She left."]),
    ("  \n", ["Who left?"], []),
    (BURNED, ["Where?", "Who left?", "Where?"], ["It burned."]),
]


def build(name: str, *heads: str, initialize: bool = True, examples=None, **settings):
    """A pipeline of an encoder and some heads; settings by a head's name."""
    nlp = spacy.blank(LANG)
    encoder = {"name": name, "window": 64, "stride": 48}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    for head in heads:
        nlp.add_pipe(f"bert_{head}", config=GROUPS.get(head, {}) | settings.get(head, {}))
    if initialize:
        torch.manual_seed(0)
        nlp.initialize(lambda: examples or make_examples(nlp))
    return nlp


def make_examples(nlp, *, inputs: bool = True) -> list[Example]:
    """Examples of DATA, whose predicted Docs know what is asked or do not."""
    examples = []
    for text, verdicts, answers in DATA:
        gold = make_doc(nlp, text, list(answers), list(verdicts))
        gold._.nli = [make_verdict(label) for label in verdicts.values()]
        gold._.answers = [make_answer(gold, *place) for place in answers.values()]
        examples.append(Example(nlp.make_doc(text), gold))
        if inputs:
            copy_inputs(gold, examples[-1].predicted)
    return examples


def make_doc(nlp, text: str, questions=(), hypotheses=()) -> Doc:
    doc = nlp.make_doc(text)
    for name, texts in (("questions", questions), ("hypotheses", hypotheses)):
        if texts:
            doc._.set(name, list(texts))
    return doc


def make_stream(nlp) -> list[Doc]:
    return [make_doc(nlp, *row) for row in STREAM]


def train(nlp, *, steps: int = 60, **options) -> dict[str, float]:
    optimizer, losses = Adam(3e-3, use_averages=False), {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")  # a random BERT needs it
        for _ in range(steps):
            losses = nlp.update(make_examples(nlp), sgd=optimizer, losses={}, **options)
    nlp("")  # closes the step
    return losses


def weights_of(nlp, name: str) -> dict[str, torch.Tensor]:
    return {
        key: value.detach().clone()
        for node in nlp.get_pipe(name).model.walk()
        if node.shims
        for key, value in shim_of(node).module.named_parameters()
    }


def results(doc: Doc) -> dict:
    spans = doc.spans.get("answers")
    return {
        "questions": list(doc._.questions),
        "answers": doc._.answers,
        "hypotheses": list(doc._.hypotheses),
        "nli": doc._.nli,
        "cats": dict(doc.cats),
        "spans": [(s.start, s.end, s.label_) for s in spans] if spans is not None else None,
        "scores": [float(score) for score in spans.attrs["scores"]] if spans is not None else [],
    }


def assert_same(found, expected) -> None:
    """Equal, but for the last bits of probabilities."""
    one, other = separate(found), separate(expected)
    assert one[0] == other[0]
    assert one[1] == pytest.approx(other[1], abs=1e-5)


def separate(value) -> tuple[object, list[float]]:
    floats = []

    def walk(value):
        if type(value) is float:
            floats.append(value)
            return "float"
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(walk, value))
        return value

    return walk(value), floats


def texts_of(answers: list[dict]) -> list[str]:
    return [answer["text"] for answer in answers]


def assert_slices(doc: Doc) -> None:
    """Every answer is an exact slice of the text, within the tokens that it names."""
    assert len(doc._.answers) == len(doc._.questions) > 0
    for answer in doc._.answers:
        places = [answer, *answer["alternatives"]]
        found = [place for place in places if place["text"]]
        assert places.index(found[0]) <= 1 if found else not answer["alternatives"]
        for place in found:
            start, end = place["start_char"], place["end_char"]
            assert place["text"] == doc.text[start:end] == place["text"].strip()
            span = doc[place["start"] : place["end"]]
            assert span.start_char <= start < end <= span.end_char
            assert start < doc[place["start"]].idx + len(doc[place["start"]])
            assert end > doc[place["end"] - 1].idx
            assert 0 <= place["score"] <= 1 and 0 <= place["no_answer_score"] <= 1
        if not answer["text"]:
            assert [answer[key] for key in ("start_char", "end_char", "start", "end")] == [0] * 4
        taken = sorted((place["start_char"], place["end_char"]) for place in found)
        assert all(one[1] <= other[0] for one, other in zip(taken, taken[1:], strict=False))


def through_docbin(doc: Doc) -> Doc:
    content = DocBin(store_user_data=True, docs=[doc]).to_bytes()
    return next(DocBin().from_bytes(content).get_docs(spacy.blank(LANG).vocab))


def through_bytes(doc: Doc) -> Doc:
    return Doc(spacy.blank(LANG).vocab).from_bytes(doc.to_bytes())
