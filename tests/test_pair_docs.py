"""What is asked of a Doc and what is answered is plain data, and goes where the Doc goes."""

import json
import pickle
import subprocess
import sys

import pytest
import spacy
from pair_stream import (
    BURNED,
    DATA,
    LANG,
    QUESTIONS,
    SAILED,
    STREAM,
    assert_same,
    build,
    make_doc,
    make_examples,
    make_stream,
    results,
    texts_of,
    through_bytes,
    through_docbin,
)
from spacy.tokens import Doc


@pytest.fixture(scope="module")
def trained(answering):
    return answering


@pytest.fixture(scope="module")
def saved(answering_folder):
    return answering_folder


@pytest.fixture(scope="module")
def expected(answering_results):
    return answering_results


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
import spacy_bert_heads.pairs

doc = spacy.blank("xx")("Anna left")
for name in ("questions", "answers", "hypotheses", "nli"):
    value = doc._.get(name)
    assert value == [] and isinstance(value, list), (name, value)
    value.append("one")
    assert doc._.get(name) == ["one"] and doc._.get(name) is value
doc._.questions = ["Who left?"]
assert doc._.questions == ["Who left?"]
assert spacy.blank("xx")("Anna left")._.questions == []
print("heavy:", sorted({"transformers", "tokenizers"} & set(sys.modules)))
"""


def test_extensions_are_there_after_an_import(light):
    ran = subprocess.run([sys.executable, "-c", BLANK], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "heavy: []"


def through_docbin_twice(doc: Doc) -> Doc:
    return through_docbin(through_docbin(doc))


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
            assert isinstance(other._.get(name), list)
        for answer in other._.answers:
            assert isinstance(answer["alternatives"], list)
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
    "texts, match", [("Who?", "Set it to the list"), ([""], "is empty"), ([3], "not .*str")]
)
@pytest.mark.parametrize("head, name", [("qa", "questions"), ("nli", "hypotheses")])
def test_bad_config(checkpoint, head, name, texts, match):
    with pytest.raises(ValueError, match=match) as caught:
        build(checkpoint, head, initialize=False, **{head: {name: texts}})
    assert name in str(caught.value)
