"""Categories, spans and streams of Docs that are read with second texts."""

import gc
import pickle
import threading

import pytest
import spacy
import torch
from pair_stream import (
    BURNED,
    DATA,
    QUESTIONS,
    SAILED,
    STREAM,
    assert_same,
    assert_slices,
    build,
    make_doc,
    make_examples,
    make_stream,
    results,
    train,
)
from spacy import displacy
from spacy.tokens import Span

from spacy_bert_heads.pairs import make_verdict


@pytest.fixture(scope="module")
def trained(answering):
    return answering


@pytest.fixture(scope="module")
def saved(answering_folder):
    return answering_folder


@pytest.fixture(scope="module")
def expected(answering_results):
    return answering_results


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
    """Spans of others stay."""
    doc = make_doc(trained, SAILED, ["When?", "What burned?", "Who left?"])
    doc.spans["answers"] = [Span(doc, 0, 3, label="CLAUSE")]
    for _ in range(2):
        doc = trained(doc)
        group = doc.spans["answers"]
        assert {(s.text, s.label_) for s in group} == {
            (doc[0:3].text, "CLAUSE"),
            ("Anna Grete", "Q3"),
            ("Tuesday", "Q1"),
        }
        scores = dict(zip([s.label_ for s in group], group.attrs["scores"], strict=True))
        answers = doc._.answers
        assert scores == {"CLAUSE": 1.0, "Q3": answers[2]["score"], "Q1": answers[0]["score"]}
        assert min(scores.values()) > 0.9
    assert_slices(doc)
    doc._.questions = []
    assert [s.label_ for s in trained(doc).spans["answers"]] == ["CLAUSE"]


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
