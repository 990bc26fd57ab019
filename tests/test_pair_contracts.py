"""What spaCy's users may rely on where a Doc is read with second texts: inputs and outputs as plain
data, precedence of inputs, bad input, streams, files, training from the command line."""

import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import spacy
import srsly
import torch
from checkpoints import make_checkpoint
from spacy import displacy
from spacy.cli import app
from spacy.cli.train import train as train_command
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.util import registry
from thinc.api import Adam
from typer.testing import CliRunner

from spacy_bert_heads.data.reader import make_corpus
from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.init_config import init_config
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
        nlp.add_pipe(f"bert_{head}", config=settings.get(head, {}))
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pipeline that knows DATA by heart. Its checkpoint's folder is gone."""
    name = make_checkpoint(tmp_path_factory.mktemp("gone") / "bert")
    nlp = build(name, "nli", "qa", qa={"alternatives": 3})
    train(nlp)
    shutil.rmtree(name)
    return nlp


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    trained.to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def expected(trained):
    """What each Doc of the stream gets by itself."""
    return [results(trained(doc)) for doc in make_stream(trained)]


@pytest.fixture
def keep_handler(trained):
    """The pipeline, whose error handler the test may change."""
    yield trained
    trained.set_error_handler(spacy.util.raise_error)


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


# --- learning


def test_overfit(trained):
    for text, verdicts, answers in DATA:
        doc = trained(make_doc(trained, text, list(answers), list(verdicts)))
        assert [verdict["label"] for verdict in doc._.nli] == list(verdicts.values())
        places = [(answer["start_char"], answer["end_char"]) for answer in doc._.answers]
        assert places == list(answers.values())
        assert texts_of(doc._.answers) == [text[slice(*place)] for place in answers.values()]
    scores = trained.evaluate(make_examples(trained))
    assert {key: scores[key] for key in ("nli_acc", "nli_macro_f", "qa_exact", "qa_f1")} == {
        "nli_acc": 1.0, "nli_macro_f": 1.0, "qa_exact": 1.0, "qa_f1": 1.0
    }  # fmt: skip


# --- extensions


BLANK = """
import sys
import spacy

doc = spacy.blank("xx")("Anna left")
for name in ("questions", "answers", "hypotheses", "nli"):
    value = doc._.get(name)
    assert value == [] and type(value) is list, (name, value)
    value.append("one")
    assert doc._.get(name) == ["one"] and doc._.get(name) is value
doc._.questions = ["Who left?"]
assert doc._.questions == ["Who left?"]
assert spacy.blank("xx")("Anna left")._.questions == []
print("heavy:", sorted({"transformers", "tokenizers"} & set(sys.modules)))
"""


def test_extensions_are_there_without_an_import_of_ours(light):
    ran = subprocess.run([sys.executable, "-c", BLANK], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "heavy: []"


def through_docbin(doc: Doc) -> Doc:
    content = DocBin(store_user_data=True, docs=[doc]).to_bytes()
    return next(DocBin().from_bytes(content).get_docs(spacy.blank(LANG).vocab))


def through_docbin_twice(doc: Doc) -> Doc:
    return through_docbin(through_docbin(doc))


def through_bytes(doc: Doc) -> Doc:
    return Doc(spacy.blank(LANG).vocab).from_bytes(doc.to_bytes())


def through_json(doc: Doc) -> Doc:
    names = ["questions", "answers", "hypotheses", "nli"]
    text = json.dumps(doc.to_json(underscore=names))
    return Doc(spacy.blank(LANG).vocab).from_json(json.loads(text))


def through_pickle(doc: Doc) -> Doc:
    return pickle.loads(pickle.dumps(doc))


WAYS = [through_docbin, through_docbin_twice, through_bytes, through_json, through_pickle, Doc.copy]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_round_trips_of_docs(trained, way):
    """Equal to the last bit, and lists and floats all the way down."""
    for doc in trained.pipe(make_stream(trained)):
        before = results(doc)
        other = way(doc)
        for name in ("questions", "answers", "hypotheses", "nli"):
            assert other._.get(name) == before[name] == doc._.get(name)
            assert json.dumps(other._.get(name)) == json.dumps(before[name])
            assert type(other._.get(name)) is list
        for answer in other._.answers:
            assert type(answer["alternatives"]) is list
        assert other.cats == before["cats"]
        if way is not through_json:  # which has no attributes of span groups
            assert results(other)["spans"] == before["spans"]
            assert results(other)["scores"] == before["scores"]
        other._.questions.append("and now?")
        assert doc._.questions == before["questions"]


def test_scores_of_spans_are_plain_data(trained):
    doc = trained(make_doc(trained, *STREAM[0]))
    assert bool(doc.spans["answers"].attrs == through_docbin(doc).spans["answers"].attrs)
    assert all(type(score) is float for score in doc.spans["answers"].attrs["scores"])


def test_docs_that_are_asked_nothing_stay_as_they_are(trained):
    doc = trained(SAILED)
    assert doc.user_data == {} and dict(doc.spans) == {} and doc.cats == {}
    assert doc.to_bytes() == trained.make_doc(SAILED).to_bytes()


def test_questions_that_are_taken_back(trained):
    doc = trained(make_doc(trained, *STREAM[0]))
    doc._.questions = []
    trained(doc)
    assert len(doc._.answers) == len(doc._.questions) == 0


def test_asking_again(trained, expected):
    doc = trained(make_doc(trained, *STREAM[0]))
    doc._.questions = ["When?"]
    doc = trained(doc)
    assert texts_of(doc._.answers) == ["Tuesday"]
    assert results(doc)["spans"] == [(5, 6, "Q1")]
    doc._.questions = QUESTIONS
    assert_same(results(trained(doc)), expected[0])


# --- what is asked


@pytest.mark.parametrize("own", [[], ["When?"]])
@pytest.mark.parametrize("context", [None, {"questions": ["Who left?"]}])
@pytest.mark.parametrize("config", [[], ["What burned?"]])
def test_precedence(saved, own, context, config):
    nlp = spacy.load(saved, config={"components": {"bert_qa": {"questions": config}}})
    asked = own or (context or {}).get("questions") or config
    ((doc, kept),) = nlp.pipe([(make_doc(nlp, SAILED, own), context)], as_tuples=True)
    assert kept is context
    assert doc._.questions == asked
    right = {"When?": "Tuesday", "Who left?": "Anna Grete", "What burned?": ""}
    assert texts_of(doc._.answers) == [right[question] for question in asked]
    assert doc._.nli == doc._.hypotheses == []


CONTEXTS = [None, 3, 0, "questions", ["Who left?"], ("questions",), {}, {"id": 7},
            {"questions": None, "hypotheses": None}, {"questions": []}]  # fmt: skip


@pytest.mark.parametrize("config", [[], ["When?"]])
def test_other_contexts_are_left_alone(saved, config):
    nlp = spacy.load(saved, config={"components.bert_qa.questions": config})
    contexts = pickle.loads(pickle.dumps(CONTEXTS))
    found = list(nlp.pipe(((SAILED, context) for context in contexts), as_tuples=True))
    assert [context for _, context in found] == CONTEXTS
    assert all(kept is given for (_, kept), given in zip(found, contexts, strict=True))
    for doc, _ in found:
        assert texts_of(doc._.answers) == ["Tuesday"] * len(config)
        assert doc._.questions == config


def test_contexts_ask_each_doc_its_own(trained):
    stream = [
        (SAILED, {"questions": ["When?"], "hypotheses": ["She left."], "id": 1}),
        (BURNED, {"hypotheses": ["It burned.", "It rained."]}),
        (BURNED, None),
        (BURNED, {"questions": ["Where?"]}),
    ]
    docs = [doc for doc, _ in trained.pipe(stream, as_tuples=True, batch_size=3)]
    assert [texts_of(doc._.answers) for doc in docs] == [["Tuesday"], [], [], ["Hull"]]
    verdicts = [[verdict["label"] for verdict in doc._.nli] for doc in docs]
    assert verdicts == [["entailment"], ["entailment", "neutral"], [], []]
    assert [doc._.questions for doc in docs] == [["When?"], [], [], ["Where?"]]
    assert stream[0][1] == {"questions": ["When?"], "hypotheses": ["She left."], "id": 1}


def test_questions_of_the_config_are_not_shared(saved):
    nlp = spacy.load(saved, config={"components.bert_qa.questions": ["When?"]})
    one, other = nlp.pipe([SAILED, SAILED])
    one._.questions.append("Who left?")
    assert other._.questions == nlp(SAILED)._.questions == ["When?"]
    assert texts_of(nlp(one)._.answers) == ["Tuesday", "Anna Grete"]


@pytest.mark.parametrize(
    "texts, match", [("Who?", "not list"), ([""], "is empty"), ([3], "not .*str")]
)
@pytest.mark.parametrize("head, name", [("qa", "questions"), ("nli", "hypotheses")])
def test_bad_config(checkpoint, head, name, texts, match):
    with pytest.raises(ValueError, match=match) as caught:
        build(checkpoint, head, initialize=False, **{head: {name: texts}})
    assert name in str(caught.value)


# --- bad input


BAD = [
    ("Who left?", r"must be a list of strings, not 'Who left\?'"),
    ({"q": "Who left?"}, "must be a list of strings"),
    (7, "must be a list of strings, not 7"),
    (["Who left?", 3], r"must be a list of strings, but \[1\] is 3"),
    (["Who left?", None], r"but \[1\] is None"),
    (["Who left?", ["When?"]], r"but \[1\] is \['When\?'\]"),
    (["Who left?", ""], r"\[1\] is empty. Leave it out"),
    ([" \n\t"], r"\[0\] is empty. Leave it out"),
    (["Who \ud83d left?"], r"\[0\] holds half of a surrogate pair(.|\n)*Decode"),
]


@pytest.mark.parametrize("name, pipe", [("questions", "bert_qa"), ("hypotheses", "bert_nli")])
@pytest.mark.parametrize("bad, match", BAD, ids=[ascii(bad)[:20] for bad, _ in BAD])
@pytest.mark.parametrize("by_context", [False, True])
@pytest.mark.filterwarnings("ignore:.*W028")
def test_bad_input_loses_one_doc(keep_handler, expected, name, pipe, bad, match, by_context):
    nlp, lost = keep_handler, []
    nlp.set_error_handler(
        lambda name, pipe, docs, error: lost.append((name, [d.text for d in docs], error))
    )
    stream = [(doc, {"id": i}) for i, doc in enumerate(make_stream(nlp))]
    doc, context = nlp.make_doc("It is bad"), {"id": "bad"}
    if by_context:
        context[name] = bad
    else:
        doc._.set(name, bad)
    stream.insert(2, (doc, context))
    found = list(nlp.pipe(stream, as_tuples=True))
    assert [context["id"] for _, context in found] == list(range(len(STREAM)))
    for (doc, _), alone in zip(found, expected, strict=True):
        assert_same(results(doc), alone)
    ((where, texts, error),) = lost
    assert (where, texts) == (pipe, ["It is bad"])
    with pytest.raises(ValueError, match=match):
        raise error
    source = f"the context's '{name}'" if by_context else f"doc._.{name}"
    assert str(error).startswith(source)


@pytest.mark.parametrize("bad", [bad for bad, _ in BAD], ids=[ascii(bad)[:20] for bad, _ in BAD])
def test_bad_input_raises_by_default(trained, expected, bad):
    doc = trained.make_doc("It is bad")
    doc._.questions = bad
    with pytest.raises(ValueError):
        list(trained.pipe([*make_stream(trained), doc]))
    with pytest.raises(ValueError):
        trained(doc)
    assert_same(results(trained(make_doc(trained, *STREAM[0]))), expected[0])


@pytest.mark.filterwarnings("ignore:.*W028")
def test_a_text_that_is_too_long_loses_itself_alone(keep_handler, expected):
    nlp, long = keep_handler, "who left " * 40  # more than half a window
    questions, hypotheses = STREAM[0][1:]
    more = make_doc(nlp, STREAM[0][0], [*questions, long], [*hypotheses, long])
    stream = make_stream(nlp)
    with pytest.warns(UserWarning, match="'who left who(.|\n)*Shorten it, or set a larger window"):
        *found, doc = nlp.pipe([*stream, more])
    for one, alone in zip(found, expected, strict=True):
        assert_same(results(one), alone)
    assert (doc._.answers.pop(), doc._.nli.pop()) == (None, None)
    assert doc._.questions.pop() == doc._.hypotheses.pop() == long
    assert_same(results(doc), expected[0])


# --- extremes


def count_calls(nlp, monkeypatch) -> list[int]:
    """The characters of each call of the encoder."""
    model, calls = nlp.get_pipe("bert_encoder").model, []
    forward = model._func

    def count(model, pairs, is_train):
        calls.append(sum(len(d.text) * len(t) for d, t in zip(pairs.docs, pairs.texts)))  # noqa: B905
        return forward(model, pairs, is_train)

    monkeypatch.setattr(model, "_func", count)
    return calls


def test_500_questions(trained, monkeypatch):
    """Not all at once, which would take their states' memory all at once."""
    text = "The crew used a pump in the engine room. " * 20
    questions = [f"Who left {i % 250}?" for i in range(500)]
    calls = count_calls(trained, monkeypatch)
    doc = trained(make_doc(trained, text, questions))
    assert len(calls) > 1 and sum(calls) == 500 * len(text)
    assert max(calls) < 2**18
    assert doc._.questions == questions
    assert_slices(doc)
    for i in (0, 249):  # the same question, in another part
        assert_same(doc._.answers[i], doc._.answers[i + 250])
    one = trained(make_doc(trained, text, [questions[-1]]))
    assert_same(one._.answers[0], doc._.answers[-1])


def test_a_context_of_500_000_characters(trained, monkeypatch):
    monkeypatch.setattr(trained, "max_length", 10**6)
    text = ("the crew used pump in engine room " * 15_000)[:500_000]
    doc = trained(make_doc(trained, text, ["When?"]))
    assert len(doc.text) == 500_000
    assert_slices(doc)


@pytest.mark.parametrize("text", ["", "   ", "\n\t \r\n", "\u200b\u200d\ufeff"])
def test_nothing_to_read(trained, text):
    """There is no answer, and every hypothesis has a verdict."""
    doc = trained(make_doc(trained, text, ["Who left?", "When?"], ["She left."]))
    assert doc._.answers == [
        {"text": "", "start_char": 0, "end_char": 0, "start": 0, "end": 0, "score": 1.0,
         "no_answer_score": 1.0, "alternatives": []}
    ] * 2  # fmt: skip
    assert list(doc.spans["answers"]) == list(doc.spans["answers"].attrs["scores"]) == []
    assert sum(doc._.nli[0]["scores"].values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "😀 👩‍👩‍👧 👍🏽 🇩🇰",
        "e\u0301 \u200bAnna\u200d left\ufe0f",
        "\r\n Anna\r\nleft  \r\n\r\nSkagen ",
        "船在港口外搁浅了。",
        "\ufeffhello \u202eabc a\u00a0b \x00\x07",
        "x" * 3000,
    ],
)
def test_odd_texts(saved, text):
    nlp = spacy.load(saved, config={"components.bert_qa.no_answer_threshold": 1.0})
    # The text asks of itself too, if it is short enough.
    questions = ["Who left?", "😀 \u200b?", "\u200b", text[:20]]
    doc = nlp(make_doc(nlp, text, questions, [text[:30], "She\r\nleft."]))
    assert_slices(doc)
    assert all(answer["text"] for answer in doc._.answers)
    assert len(doc._.nli) == 2
    assert_slices(through_docbin(doc))


def test_the_hypothesis_is_the_premise(trained):
    doc = trained(make_doc(trained, SAILED, [SAILED], [SAILED, SAILED]))
    assert doc._.nli[0] == doc._.nli[1]
    assert list(doc._.nli[0]["scores"]) == ["contradiction", "entailment", "neutral"]
    assert_slices(doc)


def test_the_same_question_twice(trained, expected):
    doc = trained(make_doc(trained, SAILED, ["Who left?"] * 3))
    assert_same(doc._.answers, expected[0]["answers"][:1] * 3)
    assert results(doc)["spans"] == [(0, 2, "Q1"), (0, 2, "Q2"), (0, 2, "Q3")]


def test_a_question_of_half_a_window_fits(trained):
    doc = trained(make_doc(trained, STREAM[2][0], ["the " * 32], ["the " * 32]))
    assert_slices(doc)
    with pytest.warns(UserWarning, match="32 wordpieces"):
        doc = trained(make_doc(trained, STREAM[2][0], ["the " * 33]))
    assert doc._.answers == [None]


# --- categories


@pytest.fixture
def categories(saved):
    return spacy.load(
        saved,
        config={"components.bert_nli.categories": {"fire": "It burned.", "rain": "It rained."}},
    )


def test_categories(categories, trained):
    """The probability of entailment, as the hypothesis itself has it."""
    for text, own in [(BURNED, []), (BURNED, ["It rained.", "She left."]), (SAILED, []), ("", [])]:
        doc = categories(make_doc(categories, text, [], own))
        asked = trained(make_doc(trained, text, [], ["It burned.", "It rained.", *own]))._.nli
        assert doc.cats == pytest.approx(
            {"fire": asked[0]["scores"]["entailment"], "rain": asked[1]["scores"]["entailment"]},
            abs=1e-5,
        )
        assert doc._.hypotheses == own
        assert_same(doc._.nli, asked[2:])
    assert categories(BURNED).cats["fire"] > 0.9 > 0.1 > categories(BURNED).cats["rain"]
    assert categories(BURNED).user_data == {}


def test_categories_beside_those_of_others(categories):
    doc = categories.make_doc(BURNED)
    doc.cats["other"] = 0.5
    assert set(categories(doc).cats) == {"fire", "rain", "other"}


@pytest.mark.parametrize("empty", ["", "  "])
def test_category_without_a_hypothesis(checkpoint, empty):
    with pytest.raises(ValueError, match="'categories'.* is empty"):
        build(checkpoint, "nli", initialize=False, nli={"categories": {"fire": empty}})


def test_categories_need_entailment(checkpoint):
    nlp = build(checkpoint, "nli", initialize=False, nli={"categories": {"fire": "It burned."}})
    examples = make_examples(nlp)
    for eg in examples:
        eg.reference._.nli = [
            make_verdict("yes" if verdict["label"] == "entailment" else "no")
            for verdict in eg.reference._.nli
        ]
    with pytest.raises(ValueError, match="none of its labels is called entailment: no, yes"):
        nlp.initialize(lambda: examples)


@pytest.mark.parametrize(
    "labels",
    [["neutral", "entailment", "contradiction"], ["contradiction", "neutral", "entailment"]],
)
def test_labels_go_by_name(checkpoint, tmp_path, labels):
    settings = {"categories": {"fire": "It burned."}}
    nlp = build(checkpoint, "nli", initialize=False, nli=settings)
    nlp.config["initialize"]["components"] = {"bert_nli": {"labels": labels}}
    nlp.initialize(lambda: make_examples(nlp))
    train(nlp, steps=40)
    nlp.to_disk(tmp_path)
    for pipeline in (nlp, spacy.load(tmp_path)):
        assert pipeline.get_pipe("bert_nli").labels == tuple(labels)
        assert pipeline(BURNED).cats["fire"] > 0.9
        for text, verdicts, _ in DATA:
            doc = pipeline(make_doc(pipeline, text, [], list(verdicts)))
            for verdict, label in zip(doc._.nli, verdicts.values(), strict=True):
                assert verdict["label"] == label
                assert list(verdict["scores"]) == labels
                assert verdict["scores"][label] == max(verdict["scores"].values()) > 0.9


# --- spans


def test_span_group(trained):
    doc = trained(make_doc(trained, SAILED, ["When?", "What burned?", "Who left?"]))
    group = doc.spans["answers"]
    assert [(s.text, s.label_) for s in group] == [("Tuesday", "Q1"), ("Anna Grete", "Q3")]
    scores = [doc._.answers[i]["score"] for i in (0, 2)]
    assert list(group.attrs["scores"]) == scores and min(scores) > 0.9
    assert_slices(doc)


def test_spans_cover_answers_inside_tokens(trained):
    text = "Anna-Grete/Skagen:Tuesday. " * 3
    doc = trained(make_doc(trained, text, QUESTIONS + ["When?", "Where?"]))
    assert_slices(doc)
    for span in doc.spans["answers"]:
        answer = doc._.answers[int(span.label_[1:]) - 1]
        assert (span.start, span.end) == (answer["start"], answer["end"])
        assert answer["text"] in span.text


def test_displacy(trained):
    doc = trained(make_doc(trained, SAILED, ["Who left?", "When?", "Who left?"]))
    html = displacy.render(doc, style="span", options={"spans_key": "answers"}, jupyter=False)
    assert all(f"Q{i}" in html for i in (1, 2, 3)) and "Grete" in html


@pytest.mark.parametrize("alternatives", [0, 1, 20])
def test_alternatives(saved, alternatives):
    nlp = spacy.load(saved, config={"components.bert_qa.alternatives": alternatives})
    doc = nlp(make_doc(nlp, STREAM[2][0], ["Who left?", "When?"]))
    assert_slices(doc)
    for answer in doc._.answers:
        assert len(answer["alternatives"]) == alternatives + (not answer["text"])
        scores = [place["score"] for place in answer["alternatives"]]
        assert scores == sorted(scores, reverse=True)
        assert not answer["text"] or answer["score"] >= max(scores, default=0)


# --- streams


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_sizes_change_nothing(trained, expected, batch_size):
    docs = list(trained.pipe(make_stream(trained) * 2, batch_size=batch_size))
    assert [doc.text for doc in docs] == [text for text, _, _ in STREAM] * 2
    for doc, alone in zip(docs, expected * 2, strict=True):
        assert_same(results(doc), alone)


def test_threads(trained, expected):
    found = {}

    def work(name: int) -> None:
        found[name] = [results(doc) for _ in range(3) for doc in trained.pipe(make_stream(trained))]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [0, 1]
    for results_of_one in found.values():
        assert_same(results_of_one, expected * 3)


def n_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())


def test_no_tensor_stays(trained):
    list(trained.pipe(make_stream(trained)))
    before = n_tensors()
    docs = list(trained.pipe(make_stream(trained) * 5))
    assert n_tensors() == before
    assert all(doc.tensor.size == 0 and b"torch" not in pickle.dumps(doc) for doc in docs)


def test_memory_zone(trained, expected):
    n_strings = len(trained.vocab.strings)
    for _ in range(2):
        with trained.memory_zone():
            stream = [(f"{text} zone", q, h) for text, q, h in STREAM]
            for doc in trained.pipe(make_doc(trained, *row) for row in stream):
                if doc._.questions:
                    assert_slices(doc)
        assert len(trained.vocab.strings) == n_strings
    assert_same(results(trained(make_doc(trained, *STREAM[0]))), expected[0])


# --- files


def predictions(nlp) -> list[dict]:
    return [results(doc) for doc in nlp.pipe(make_stream(nlp))]


def test_bytes(trained, expected):
    other = spacy.blank(LANG).from_config(trained.config).from_bytes(trained.to_bytes())
    assert_same(predictions(other), expected)


def test_pickled_pipeline(trained, expected):
    assert_same(predictions(pickle.loads(pickle.dumps(trained))), expected)


# Loads and predicts with no network and no unpickling; both would be heard of. Then with forked
# workers, which don't have the threads of torch that the parent has used.
ALONE = """
import json, os, sys
import spacy, torch

def listen(event, args):
    if listening and (event == "pickle.find_class" or event.startswith("socket.")):
        print("heard", event, args[:2])
        os._exit(3)

listening = False
sys.addaudithook(listen)
listening = True
torch.set_num_threads(2)
nlp = spacy.load(sys.argv[1], config={"components.bert_qa.questions": ["When?"]})
stream = [(text, {"questions": questions, "hypotheses": hypotheses})
          for text, questions, hypotheses in json.loads(sys.argv[2])] * 2
for options in [{}, {"n_process": 2, "batch_size": 3}][: 1 + hasattr(os, "fork")]:
    docs = [doc for doc, context in nlp.pipe(stream, as_tuples=True, **options)]
    docs += nlp.pipe([text for text, _ in stream], **options)
    listening = False
    print(json.dumps([[doc.text, doc._.questions, doc._.answers, doc._.hypotheses, doc._.nli,
                       [span.label_ for span in doc.spans["answers"]]] for doc in docs]))
"""


def test_another_process_and_its_workers(saved, tmp_path, expected):
    """Offline, and the checkpoint's folder is gone."""
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(saved), json.dumps(STREAM)],
        env={**os.environ, "HF_HUB_OFFLINE": "", "HF_HOME": str(tmp_path / "no-cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("the workers hang")
    assert process.returncode == 0, output + errors
    alone, *forked = map(json.loads, output.splitlines())
    asked = [questions or ["When?"] for _, questions, _ in STREAM] * 2
    assert [row[1] for row in alone] == asked + [["When?"]] * len(asked)
    for row, one in zip(alone, expected * 2, strict=False):
        assert_same(row[3:5], [one["hypotheses"], one["nli"]])
        if one["questions"]:
            assert_same(row[2], one["answers"])
    assert len(forked) == hasattr(os, "fork")
    for other in forked:
        assert_same(other, alone)


def test_sourcing(trained, expected, tmp_path):
    other = spacy.blank(LANG)
    for name in ("bert_encoder", "bert_qa"):
        other.add_pipe(name, source=trained)
    other.to_disk(tmp_path)
    for nlp in (other, spacy.load(tmp_path)):
        for found, whole in zip(predictions(nlp), expected, strict=True):
            for key in ("questions", "answers", "spans", "scores"):
                assert_same(found[key], whole[key])
            assert found["nli"] == []


@pytest.mark.parametrize("heads", [["bert_qa"], ["bert_nli"], ["bert_qa", "bert_nli"]])
def test_heads_with_their_own_copy_of_the_encoder(saved, expected, tmp_path, heads):
    nlp = spacy.load(saved)
    for head in heads:
        nlp.replace_listeners("bert_encoder", head, ["model.tok2vec"])
    assert_same(predictions(nlp), expected)
    if len(heads) == 2:
        assert nlp.get_pipe("bert_encoder").listening_components == []
        nlp.remove_pipe("bert_encoder")
    nlp.to_disk(tmp_path)
    nlp = spacy.load(tmp_path)
    assert_same(predictions(nlp), expected)
    before = weights_of(nlp, heads[0])
    assert train(nlp, steps=1)[heads[0]] > 0  # and they learn
    assert any((value != before[key]).any() for key, value in weights_of(nlp, heads[0]).items())


@pytest.mark.parametrize("head, keys", [("bert_qa", ["answers", "spans"]), ("bert_nli", ["nli"])])
def test_disabled_heads(trained, expected, head, keys):
    with trained.select_pipes(disable=[head]):
        found = predictions(trained)
    for one, whole in zip(found, expected, strict=True):
        assert not any(one[key] for key in keys)
        for key in {"answers", "spans", "nli"} - set(keys):
            assert_same(one[key], whole[key])
    assert_same(predictions(trained), expected)


def test_disabled_encoder_still_answers(trained, expected):
    with trained.select_pipes(disable=["bert_encoder"]):
        assert_same(predictions(trained), expected)


@pytest.mark.parametrize("head", ["bert_qa", "bert_nli"])
def test_without_the_encoder(saved, head):
    other = "bert_nli" if head == "bert_qa" else "bert_qa"
    nlp = spacy.load(saved, exclude=["bert_encoder", other])
    match = rf"{head} reads the hidden states of an encoder(.|\n)*nlp.add_pipe\('bert_encoder'"
    with pytest.raises(ValueError, match=match):
        nlp(make_doc(nlp, *STREAM[0]))
    assert nlp(SAILED).user_data == {}  # nothing is asked, nothing is missed


@pytest.mark.parametrize("head", ["nli", "qa"])
def test_behind_another_tok2vec(head):
    tok2vec = {
        "@architectures": "spacy.HashEmbedCNN.v2", "pretrained_vectors": None, "width": 32,
        "depth": 1, "embed_size": 100, "window_size": 1, "maxout_pieces": 2,
        "subword_features": False,
    }  # fmt: skip
    nlp = spacy.blank(LANG)
    nlp.add_pipe(f"bert_{head}", config={"model": {"tok2vec": tok2vec}})
    match = rf"bert_{head} reads pairs(.|\n)*BertListener.v1 in its model, behind a bert_encoder"
    with pytest.raises(ValueError, match=match):
        nlp.initialize(lambda: make_examples(nlp))


@pytest.mark.parametrize("head", ["nli", "qa"])
def test_not_initialized(checkpoint, head):
    nlp = build(checkpoint, head, initialize=False)
    with pytest.raises(ValueError, match=r"no weights yet. Call nlp.initialize\(\)"):
        nlp(make_doc(nlp, *STREAM[0]))


# --- training


def weights_of(nlp, name: str) -> dict[str, torch.Tensor]:
    return {
        key: value.detach().clone()
        for node in nlp.get_pipe(name).model.walk()
        if node.shims
        for key, value in shim_of(node).module.named_parameters()
    }


@pytest.mark.parametrize("frozen", ["bert_encoder", "bert_nli", "bert_qa"])
def test_frozen_components(checkpoint, frozen):
    nlp = build(checkpoint, "nli", "qa")
    before = {name: weights_of(nlp, name) for name in nlp.pipe_names}
    losses = train(nlp, steps=2, exclude=[frozen])
    assert losses.keys() == set(nlp.pipe_names) - {frozen}
    for name, old in before.items():
        new = weights_of(nlp, name)
        assert any((new[key] != old[key]).any() for key in old) == (name != frozen), name


def test_annotating_components(checkpoint):
    """What is predicted stands on the Docs, for components behind; what is learned is the same."""
    nlp, other = build(checkpoint, "qa", "nli"), build(checkpoint, "qa", "nli")
    seen = []
    Language.component("spy", func=lambda doc: seen.append(doc) or doc)
    nlp.add_pipe("spy", after="bert_qa")
    annotates, optimizer = ["bert_qa", "spy"], Adam(1e-4, use_averages=False)
    losses = nlp.update(make_examples(nlp), sgd=optimizer, annotates=annotates)
    nlp.remove_pipe("spy")
    plain = other.update(make_examples(other), sgd=Adam(1e-4, use_averages=False))
    for doc, (text, _, answers) in zip(seen, DATA, strict=True):
        assert (doc.text, doc._.questions, doc._.nli) == (text, list(answers), [])
        assert_slices(doc)
    nlp(""), other("")  # closes the step
    assert losses == pytest.approx(plain, rel=1e-4)
    for name in nlp.pipe_names:
        found, wanted = weights_of(nlp, name), weights_of(other, name)
        for key in wanted:
            torch.testing.assert_close(found[key], wanted[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["nli", "qa"])
def test_scoring_what_was_not_asked(checkpoint, head):
    nlp = build(checkpoint, head)
    with pytest.raises(ValueError, match="python -m spacy bert evaluate"):
        nlp.evaluate(make_examples(nlp, inputs=False))


@pytest.mark.parametrize("lacking", ["start_char", "end_char", "text"])
def test_gold_answers_that_lack_a_part(checkpoint, lacking):
    """They are written by hand too."""
    nlp = build(checkpoint, "qa")
    examples = make_examples(nlp)
    del examples[0].reference._.answers[0][lacking]
    with pytest.raises(ValueError, match=lacking):
        nlp.update(examples, sgd=False)


def test_gold_answers_in_short(checkpoint):
    nlp = build(checkpoint, "qa", qa={"no_answer_threshold": 0.5})
    plain, short = make_examples(nlp), make_examples(nlp)
    for eg in short:
        for answer in eg.reference._.answers:
            for key in ("start", "end", "score", "no_answer_score", "alternatives"):
                del answer[key]
    losses = [nlp.update(some, sgd=False, losses={})["bert_qa"] for some in (plain, short)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0] > 0
    scores = [nlp.evaluate(some)["qa_f1"] for some in (plain, short)]
    assert scores[0] == scores[1]


def test_gold_answers_outside_of_the_text(checkpoint):
    nlp = build(checkpoint, "qa")
    (first, _) = make_examples(nlp)
    first.reference._.answers[0] |= {"start_char": 1000, "end_char": 1010}
    with pytest.raises(ValueError, match="1000"):
        nlp.update([first], sgd=False)


@pytest.mark.parametrize(
    "head, output, entry",
    [("nli", "nli", "entailment"), ("qa", "answers", "Anna Grete"), ("qa", "answers", (0, 10))],
)
def test_gold_that_is_no_dict(checkpoint, head, output, entry):
    # BUG (bert_nli): a bare AttributeError; in initialize too.
    nlp = build(checkpoint, head)
    examples = make_examples(nlp)
    examples[0].reference._.get(output)[0] = entry
    with pytest.raises(ValueError):
        nlp.update(examples, sgd=False)


def test_gold_answers_of_another_text(checkpoint):
    nlp = build(checkpoint, "qa")
    examples = make_examples(nlp)
    examples[0].reference._.answers[0] |= {"start_char": 2, "end_char": 12}
    with pytest.raises(ValueError, match="Anna Grete"):
        nlp.update(examples, sgd=False)


# --- commands


def command(*words: object, code: int = 0) -> str:
    """Run `python -m spacy …` in this process."""
    registry.cli.get_all()
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output if code == 0 else result.output + str(result.exception)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    docs = [eg.reference for eg in make_examples(spacy.blank(LANG))]
    docs[1].cats = {"fire": 1.0, "voyage": 0.0}
    docs[0].cats = {"fire": 0.0, "voyage": 1.0}
    DocBin(docs=docs, store_user_data=True).to_disk(folder / "train.spacy")
    return folder


def test_the_reader_carries_what_is_asked_and_no_more(files):
    nlp = spacy.blank(LANG)
    examples = list(make_corpus(files / "train.spacy")(nlp))
    assert len(examples) == 2
    for eg, (text, verdicts, answers) in zip(examples, DATA, strict=True):
        assert eg.predicted.text == text
        assert eg.predicted._.questions == eg.reference._.questions == list(answers)
        assert eg.predicted._.hypotheses == eg.reference._.hypotheses == list(verdicts)
        assert eg.predicted._.answers == eg.predicted._.nli == []
        assert eg.reference._.nli == [make_verdict(label) for label in verdicts.values()]
        assert len(eg.reference._.answers) == len(answers)


SCORES = {"nli": "nli_acc", "qa": "qa_f1", "textcat": "cats_score"}


@pytest.mark.parametrize("heads", [["nli"], ["qa"], ["textcat", "nli", "qa"]])
def test_train(files, checkpoint, tmp_path, heads):
    data = files / "train.spacy"
    config = init_config(heads, name=checkpoint, lang=LANG, train=data, dev=data)
    config.to_disk(tmp_path / "config.cfg")
    assert "Config is valid" in command("debug", "config", tmp_path / "config.cfg")
    small = {"window": 64, "stride": 48}
    overrides = {f"components.bert_encoder.model.{key}": n for key, n in small.items()}
    given = [word for key, n in overrides.items() for word in (f"--{key}", n)]
    command("init", "labels", tmp_path / "config.cfg", tmp_path / "labels", *given)
    found = {file.name: srsly.read_json(file) for file in (tmp_path / "labels").iterdir()}
    labels = {
        "nli": ["contradiction", "entailment", "neutral"],
        "textcat": ["fire", "voyage"],
    }
    assert found == {f"bert_{head}.json": labels[head] for head in heads if head in labels}

    overrides |= {
        "training.optimizer.learn_rate.initial_rate": 3e-3,
        "training.max_steps": 60,
        "training.eval_frequency": 30,
    }
    with pytest.warns(UserWarning, match="A learning rate"):
        train_command(tmp_path / "config.cfg", tmp_path / "out", overrides=overrides)
    folder = tmp_path / "out" / "model-last"
    nlp = spacy.load(folder)
    performance = nlp.meta["performance"]
    assert {key: performance[SCORES[key]] for key in heads} == dict.fromkeys(heads, 1.0)

    error = command("evaluate", folder, data, code=1)
    assert "python -m spacy bert evaluate" in error
    assert "100" in command("bert", "evaluate", folder, data)
    doc = nlp(make_doc(nlp, *STREAM[0]))
    if "qa" in heads:
        assert texts_of(doc._.answers) == ["Anna Grete", ""]
    if "nli" in heads:
        assert [verdict["label"] for verdict in doc._.nli] == ["entailment", "neutral"]


# --- real data


@pytest.mark.parametrize("lang", ["en", "de", "zh"])
def test_xquad(data, minilm, lang):
    """An untrained head gives wrong answers, but slices of the text."""
    content = json.loads((data / "qa_xquad" / f"xquad.{lang}.json").read_text("utf8"))
    paragraphs = [p for article in content["data"] for p in article["paragraphs"]][:3]
    nlp = spacy.blank(lang)
    nlp.add_pipe("bert_encoder", config={"model": {"name": minilm}})
    settings = {"alternatives": 2, "no_answer_threshold": 1.0}
    nlp.add_pipe("bert_qa", config=settings)
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    stream = [
        (p["context"], {"questions": [qa["question"] for qa in p["qas"][:2]]}) for p in paragraphs
    ]
    for doc, context in nlp.pipe(stream, as_tuples=True):
        assert doc._.questions == context["questions"]
        assert all(answer["text"] for answer in doc._.answers)
        assert_slices(doc)
        assert_slices(through_bytes(doc))
    for p in paragraphs:  # and the true ones can be written
        doc = nlp.make_doc(p["context"])
        for answer in (a for qa in p["qas"] for a in qa["answers"]):
            start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
            assert make_answer(doc, start, end)["text"] == answer["text"]
    assert np.isfinite([span["score"] for span in doc._.answers]).all()
