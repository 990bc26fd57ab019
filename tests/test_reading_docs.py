"""Reading `doc._.…` changes nothing on the Doc; what is changed by hand is kept."""

import copy
import json
import pickle

import pytest
import spacy
from spacy.tokens import Doc, DocBin, Span

from spacy_bert_heads.pairs import make_answer, make_verdict
from spacy_bert_heads.text.user_data import get_list

NLP = spacy.blank("xx")
NAMES = ["questions", "answers", "hypotheses", "nli", "ent_scores"]
LISTS = NAMES[:-1]


def empty() -> Doc:
    return NLP.make_doc("Anna left Skagen on Tuesday")


def full() -> Doc:
    doc = empty()
    doc._.questions, doc._.hypotheses = ["Who?", "Why?"], ["It burned."]
    others = [make_answer(doc, 10, 16, score=0.25), make_answer(doc, 20, 27, score=0.125)]
    doc._.answers = [
        make_answer(doc, 0, 9, score=0.5, alternatives=others),
        make_answer(doc, alternatives=others[1:]),
    ]
    doc._.nli = [make_verdict("neutral")]
    doc._.ent_scores = [
        {"start_char": 0, "end_char": 4, "label": "X", "score": 0.5, "component": "bert_ner"}
    ]
    return doc


def from_docbin() -> Doc:
    content = DocBin(docs=[full()], store_user_data=True).to_bytes()
    return next(DocBin().from_bytes(content).get_docs(NLP.vocab))


def merged() -> Doc:
    doc = full()
    with doc.retokenize() as retokenizer:
        retokenizer.merge(doc[0:2])
    return doc


def merged_from_docbin() -> Doc:
    doc = from_docbin()
    with doc.retokenize() as retokenizer:
        retokenizer.merge(doc[0:2])
    return doc


MAKERS = [empty, full, from_docbin, merged, merged_from_docbin]
DOCS = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


def through_bytes(doc: Doc) -> Doc:
    return Doc(spacy.blank("xx").vocab).from_bytes(doc.to_bytes())


def through_docbin(doc: Doc) -> Doc:
    content = DocBin(store_user_data=True, docs=[doc]).to_bytes()
    return next(DocBin().from_bytes(content).get_docs(NLP.vocab))


def through_json(doc: Doc) -> Doc:
    text = json.dumps(doc.to_json(underscore=LISTS))
    return Doc(NLP.vocab).from_json(json.loads(text))


def through_pickle(doc: Doc) -> Doc:
    return pickle.loads(pickle.dumps(doc))


WAYS = [through_bytes, through_docbin, through_json, through_pickle, Doc.copy]


@DOCS
def test_reading_changes_nothing(make):
    doc = make()
    before, content = copy.deepcopy(doc.user_data), doc.to_bytes()
    values = {key: id(value) for key, value in doc.user_data.items()}
    for _ in range(2):
        for name in NAMES:
            list(doc._.get(name))
            assert doc._.get(name) == doc._.get(name)
            assert isinstance(doc._.get(name), list)
        ent = Span(doc, 0, 1, label="X")
        assert ent._.ent_score == (0.5 if make in (full, from_docbin) else None)
    assert doc.user_data == before
    assert {key: id(value) for key, value in doc.user_data.items()} == values
    assert doc.to_bytes() == content


@DOCS
def test_all_read_the_same(make):
    found, expected = make(), full()
    if make is empty:
        assert [found._.get(name) for name in NAMES] == [[]] * 5
        return
    for name in ("questions", "hypotheses", "nli", "ent_scores"):
        assert found._.get(name) == expected._.get(name)
    places = [(0, 2), (2, 3), (4, 5)] if "merged" not in make.__name__ else [(0, 1), (1, 2), (3, 4)]
    first, none = found._.answers
    spans = [(one["start"], one["end"]) for one in (first, *first["alternatives"])]
    assert spans == places
    assert [(one["start"], one["end"]) for one in none["alternatives"]] == places[2:]
    without = [{**one, "start": 0, "end": 0, "alternatives": []} for one in (first, none)]
    assert without == [
        {**one, "start": 0, "end": 0, "alternatives": []} for one in expected._.answers
    ]
    for one, other in zip(found._.answers, expected._.answers, strict=True):
        texts = [[entry["text"] for entry in some["alternatives"]] for some in (one, other)]
        assert texts[0] == texts[1]


CHANGES = {
    "append": lambda value: value.append("more"),
    "extend": lambda value: value.extend(["more", "and more"]),
    "insert": lambda value: value.insert(0, "more"),
    "add": lambda value: value.__iadd__(["more"]),
    "slice": lambda value: value.__setitem__(slice(0, 1), ["more"]),
    "twice": lambda value: (value.append("b"), value.append("a"), value.sort(key=str)),
    "clear": lambda value: (value.append("more"), value.clear()),
}


@DOCS
@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_list_that_is_changed_is_kept(make, name, change):
    doc = make()
    expected = copy.deepcopy(doc._.get(name))
    assert type(expected) is list
    CHANGES[change](expected)
    CHANGES[change](doc._.get(name))
    assert doc._.get(name) == expected
    assert doc.user_data["._.", name, None, None] == expected
    others = {other: copy.deepcopy(make()._.get(other)) for other in LISTS if other != name}
    for way in WAYS:
        assert way(doc)._.get(name) == expected
    assert {other: doc._.get(other) for other in others} == others


@DOCS
def test_one_list_is_changed_many_times(make):
    doc = make()
    for i in range(3):
        doc._.questions.append(f"{i}?")
    value = doc._.questions
    value.append("3?")
    doc._.questions += ["4?"]
    assert doc._.questions[-5:] == value[-5:] == ["0?", "1?", "2?", "3?", "4?"]
    assert doc._.questions is value is get_list("questions", doc)


@pytest.mark.parametrize("make", MAKERS[1:], ids=lambda make: make.__name__)
def test_entries_that_are_changed_are_kept(make):
    doc = make()
    answers = doc._.answers
    answers[0]["score"] = 0.75
    answers[0]["alternatives"].pop()
    doc._.answers[1]["alternatives"][0].update(score=0.0625)
    doc._.nli[0]["scores"]["neutral"] = 0.5
    for one in (doc, *(way(doc) for way in WAYS)):
        first, none = one._.answers
        assert (first["score"], len(first["alternatives"])) == (0.75, 1)
        assert none["alternatives"][0]["score"] == 0.0625
        assert one._.nli == [{"label": "neutral", "scores": {"neutral": 0.5}}]


def test_a_draft_that_is_out_of_date_overwrites_nothing():
    doc = empty()
    early = doc._.questions
    doc._.questions.append("Who?")
    with pytest.raises(RuntimeError, match=r"doc\._\.questions was set after .*Read it again"):
        early.append("Why?")
    assert doc._.questions == ["Who?"]


def test_one_docs_draft_on_another_is_its_own():
    one, other = empty(), empty()
    other._.questions = one._.questions
    other._.questions.append("Who?")
    assert (one._.questions, other._.questions) == ([], ["Who?"])


@pytest.mark.parametrize("make", [empty, from_docbin], ids=lambda make: make.__name__)
def test_copies_are_plain(make):
    value = make()._.answers
    for copied in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert type(copied) is list and copied == value
        copied.append("more")
    assert all(type(one) is dict for one in copy.deepcopy(value))


@pytest.mark.parametrize("value", ["Who?", {"a": 1}, 7, None])
def test_what_is_no_list_is_read_as_it_is(value):
    doc = empty()
    for name in LISTS:
        doc._.set(name, value)
        assert doc._.get(name) is value
