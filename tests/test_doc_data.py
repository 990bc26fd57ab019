"""What is written to a Doc survives spaCy's own components, and being installed changes nothing."""

import subprocess
import sys

import pytest
import spacy
from joint import make_docs
from spacy.tokens import Doc, DocBin, Span

from spacy_bert_heads.heads.find import register_extensions
from spacy_bert_heads.text.user_data import get_list

# As a new pipeline writes; the fixture of trained ones asks for span groups too.
NO_GROUPS = {name: {"spans_key": None} for name in ("bert_ner", "bert_qa")}
ALONE = """
import os
at_fork = []
plain = os.register_at_fork
os.register_at_fork = lambda **functions: (at_fork.append(functions), plain(**functions))
before = dict(os.environ)
import spacy
from spacy.tokens import Doc, Span
nlp = spacy.blank("xx")
nlp("Anna left Skagen")
ours = [f for functions in at_fork for f in functions.values() if "bert_heads" in str(f.__module__)]
names = ("nli", "answers", "questions", "hypotheses", "ent_scores")
print([name for name in names if Doc.has_extension(name)], Span.has_extension("ent_score"), ours)
print({k: v for k, v in os.environ.items() if before.get(k) != v})
nlp.add_pipe("bert_qa")
print([name for name in names if not Doc.has_extension(name)])
"""


@pytest.fixture
def nlp(joint):
    return spacy.load(joint, config={"components": NO_GROUPS})


def test_being_installed_changes_nothing():
    found = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines() == ["[] False []", "{}", "[]"]


@pytest.mark.parametrize("name", ["answers", "ent_scores"])
def test_an_extension_of_other_code_is_an_error(name):
    old = Doc.get_extension(name) if Doc.has_extension(name) else None
    if old:
        Doc.remove_extension(name)
    Doc.set_extension(name, default=None)
    try:
        with pytest.raises(ValueError, match=rf"has registered doc\._\.{name}, .*remove_extension"):
            spacy.blank("xx").add_pipe("bert_qa")
    finally:
        Doc.remove_extension(name)
        register_extensions()


def test_probabilities_of_entities(nlp):
    doc = nlp("Anna Grete left Skagen on Tuesday")
    assert [ent.text for ent in doc.ents] == ["Anna Grete", "Skagen", "Tuesday"]
    assert not doc.spans
    scores = doc._.ent_scores
    assert [(s["start_char"], s["end_char"], s["label"]) for s in scores] == [
        (ent.start_char, ent.end_char, ent.label_) for ent in doc.ents
    ]
    assert [ent._.ent_score for ent in doc.ents] == [s["score"] for s in scores]
    assert all(0.9 < s["score"] <= 1 and s["component"] == "bert_ner" for s in scores)
    assert doc[0:1]._.ent_score is None
    assert nlp("left")._.ent_scores == []


def test_reading_again_gives_the_same(nlp):
    doc = nlp("Anna Grete left Skagen on Tuesday")
    before = doc._.ent_scores
    ner = nlp.get_pipe("bert_ner")
    ner(doc)
    assert doc._.ent_scores == before
    other = nlp.create_pipe("bert_ner")
    doc.user_data[("._.", "ent_scores", None, None)][0]["component"] = "another"
    ner(doc)
    assert [entry["component"] for entry in doc._.ent_scores] == ["another", "bert_ner", "bert_ner"]
    assert [ent.text for ent in doc.ents] == ["Anna Grete", "Skagen", "Tuesday"]
    assert other.name == "bert_ner"


@pytest.mark.parametrize("kind", ["merge_entities", "token_splitter", "by hand"])
def test_docs_survive_retokenization(nlp, kind, tmp_path):
    if kind == "by hand":

        @spacy.Language.component("merge_all_but_one")
        def merge(doc):
            with doc.retokenize() as retokenizer:
                retokenizer.merge(doc[0 : len(doc) - 1])
            return doc

        nlp.add_pipe("merge_all_but_one")
    else:
        config = {"min_length": 4, "split_length": 2} if kind == "token_splitter" else {}
        nlp.add_pipe(kind, config=config)
    doc = nlp.make_doc("Anna Grete left Skagen on Tuesday")
    doc._.questions = ["Who left?", "What burned?"]
    n = len(doc)
    doc = nlp(doc)
    assert len(doc) != n
    again = [
        Doc(nlp.vocab).from_bytes(doc.to_bytes()),
        doc.copy(),
        next(iter(DocBin(docs=[doc], store_user_data=True).get_docs(nlp.vocab))),
    ]
    for one in (doc, *again):
        assert [s["label"] for s in one._.ent_scores] == ["VESSEL", "PLACE", "DATE"]
        for s in one._.ent_scores:
            assert one.text[s["start_char"] : s["end_char"]] in ("Anna Grete", "Skagen", "Tuesday")
        answer = one._.answers[0]
        assert answer["text"] == "Anna Grete"
        span = one[answer["start"] : answer["end"]]
        assert span.start_char <= answer["start_char"] < answer["end_char"] <= span.end_char
        assert span[0].idx + len(span[0]) > answer["start_char"]
    if kind == "merge_entities":
        assert all(ent._.ent_score > 0.9 for ent in doc.ents)
        found = list(nlp.pipe(make_docs(nlp), n_process=2, batch_size=2))
        assert [len(one) for one in found] == [len(one) for one in nlp.pipe(make_docs(nlp))]


def test_a_span_group_is_there_for_those_who_ask(joint):
    nlp = spacy.load(joint)
    doc = nlp.make_doc("Anna Grete left Skagen on Tuesday")
    doc._.questions = ["Who left?"]
    doc = nlp(doc)
    assert [span.text for span in doc.spans["ents"]] == ["Anna Grete", "Skagen", "Tuesday"]
    scores = [entry["score"] for entry in doc._.ent_scores]
    assert doc.spans["ents"].attrs["scores"] == pytest.approx(scores)
    assert [(span.text, span.label_) for span in doc.spans["answers"]] == [("Anna Grete", "Q1")]


def test_our_own_code_needs_no_extension(nlp):
    """Also where other code takes the names after us."""
    saved = {name: Doc.get_extension(name) for name in ("answers", "questions")}
    for name in saved:
        Doc.set_extension(name, default="theirs", force=True)
    try:
        doc = nlp.make_doc("Anna Grete left Skagen on Tuesday")
        get_list("questions", doc).append("Who left?")
        nlp(doc)
        assert get_list("answers", doc)[0]["text"] == "Anna Grete"
    finally:
        for name in saved:
            Doc.remove_extension(name)
        register_extensions()
    assert Span.has_extension("ent_score")
