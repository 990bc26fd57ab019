"""Pairs that cost nothing, are not annotated or are too long."""

import pytest
import torch
from checkpoints import note_sequences
from pair_examples import DATA, ask, build, make_example, make_examples, train, weights_of
from thinc.api import Adam

from spacy_bert_heads.encoder.model import encoder_of
from spacy_bert_heads.pairs import INPUTS


@pytest.fixture
def count(folders):
    """A pipeline, and the sequences of each forward pass of its encoder."""

    def make(*heads: str, **settings):
        nlp = build(folders("bert"), *heads, **settings)
        calls = note_sequences(encoder_of(nlp.get_pipe("bert_encoder").model))
        return nlp, calls

    return make


@pytest.mark.parametrize("head, name", [("qa", "questions"), ("nli", "hypotheses")])
def test_docs_without_second_texts_cost_nothing(count, head, name):
    nlp, calls = count(head)
    output = {"qa": "answers", "nli": "nli"}[head]
    docs = list(nlp.pipe(["Anna left", "", "Hull burned"]))
    assert calls == []
    assert [doc._.get(output) for doc in docs] == [[], [], []]
    docs = [nlp.make_doc(text) for text in ("Anna left", "Hull burned", "Skagen")]
    docs[1]._.set(name, ["Who?", "What?"])
    docs = list(nlp.pipe(docs))
    assert sum(calls) == 2
    assert [len(doc._.get(output)) for doc in docs] == [0, 2, 0]
    calls.clear()
    with_none = [("Anna left", {name: {"Who?": None}}), ("Hull burned", {})]
    start = weights_of(nlp)
    losses = nlp.update(make_examples(nlp, with_none), sgd=Adam(1e-4, use_averages=False))
    assert calls == []
    assert losses[f"bert_{head}"] == 0.0
    assert torch.equal(weights_of(nlp), start)


def test_a_joint_update_reads_each_kind_of_input_once(count):
    nlp, calls = count("ner", "textcat", "nli", "qa")
    nlp.update(make_examples(nlp), sgd=Adam(1e-4, use_averages=False))
    # Two Docs with labels of their own, five hypotheses, seven questions. Buckets don't matter.
    assert sum(calls) == 2 + 5 + 7
    calls.clear()
    nlp.update(
        make_examples(nlp, DATA[:1]), sgd=Adam(1e-4, use_averages=False), exclude=["bert_qa"]
    )
    assert sum(calls) == 1 + 2


LONG = "a b c d e f g h i"  # 9 pieces, in a window of 16

KINDS = pytest.mark.parametrize(
    "head, name, entry, other",
    [("qa", "questions", "Anna", "boat"), ("nli", "hypotheses", "neutral", "entailment")],
)


def small(head: str) -> dict:
    """Windows that LONG is too long for."""
    return {"window": 16, "stride": 12} | ({"max_answer_length": 6} if head == "qa" else {})


def plain(name: str, entry: str, other: str) -> list[tuple[str, dict]]:
    return [("Anna left", {name: {"Who?": entry}}), ("A boat", {name: {"It?": other}})]


@KINDS
def test_what_is_not_annotated_changes_nothing(folders, head, name, entry, other):
    data = plain(name, entry, other)
    more = [
        ("Anna left", {name: {"Why?": None, "Who?": entry}}),
        ("Hull", {name: {"Who?": None}}),
        ("A boat", {name: {"It?": other, "Where?": None}}),
    ]
    weights = [
        weights_of(train(build(folders("bert"), head, data=data), one, steps=3))
        for one in (data, more)
    ]
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-5)
    untrained = weights_of(build(folders("bert"), head, data=data))
    assert (weights[0] != untrained).sum() > len(untrained) / 2


@KINDS
def test_a_text_that_is_too_long_is_left_out_of_training(folders, head, name, entry, other):
    data = plain(name, entry, other)
    more = [
        ("Anna left", {name: {LONG: entry, "Who?": entry}}),
        ("A boat", {name: {"It?": other}}),
        ("boat", {name: {LONG: other}}),
    ]
    shape = {**small(head), "data": data}
    expected = weights_of(train(build(folders("bert"), head, **shape), data, steps=3))
    nlp = build(folders("bert"), head, **shape)
    with pytest.warns(UserWarning, match=f"bert_{head} does not learn.*'{LONG}'") as caught:
        train(nlp, more, steps=3)
    assert len([one for one in caught if "does not learn" in str(one.message)]) == 1
    torch.testing.assert_close(weights_of(nlp), expected, atol=1e-6, rtol=1e-5)


@KINDS
def test_a_batch_of_nothing_but_texts_that_are_too_long(folders, head, name, entry, other):
    data = plain(name, entry, other)
    nlp = build(folders("bert"), head, data=data, **small(head))
    start = weights_of(nlp)
    with pytest.warns(UserWarning, match="does not learn"):
        train(nlp, [("Anna left", {name: {LONG: entry}})], steps=1)
    assert torch.equal(weights_of(nlp), start)
    train(nlp, data, steps=1)
    assert not torch.equal(weights_of(nlp), start)


@KINDS
def test_a_text_that_is_too_long_is_left_out_of_prediction(folders, head, name, entry, other):
    output = INPUTS[name]
    nlp = build(folders("bert"), head, data=plain(name, entry, other), **small(head))
    texts = [["Who?", LONG, "It?"], [LONG], ["Why?"]]
    docs = [nlp.make_doc(text) for text in ("Anna left", "A boat", "Hull")]
    for doc, asked in zip(docs, texts, strict=True):
        doc._.set(name, asked)
    with pytest.warns(UserWarning, match=f"bert_{head} leaves a pair out.*'{LONG}'"):
        docs = list(nlp.pipe(docs))
    entries = [doc._.get(output) for doc in docs]
    unread = [[entry is None for entry in some] for some in entries]
    assert unread == [[False, True, False], [True], [False]]
    alone = [ask(nlp, "Anna left", **{name: [text]})._.get(output)[0] for text in ("Who?", "It?")]
    key = "score" if head == "qa" else "scores"
    assert [entries[0][i][key] for i in (0, 2)] == [pytest.approx(e[key], abs=1e-6) for e in alone]


@KINDS
def test_a_text_that_is_too_long_is_wrong_in_evaluation(folders, head, name, entry, other):
    data = plain(name, entry, other)
    nlp = build(folders("bert"), head, data=data, **small(head))
    train(nlp, data, steps=40, rate=1e-2)
    figure = {"qa": "qa_exact", "nli": "nli_acc"}[head]
    assert nlp.evaluate([make_example(nlp, *row) for row in data])[figure] == 1
    # Without an answer is no better: nothing was read.
    more = [*data, ("Hull", {name: {LONG: "" if head == "qa" else "neutral"}})]
    with pytest.warns(UserWarning, match="leaves a pair out"):
        scores = nlp.evaluate([make_example(nlp, *row) for row in more])
    assert scores[figure] == pytest.approx(2 / 3)


def test_categories_that_are_too_long_are_an_error(folders):
    data = plain("hypotheses", "neutral", "entailment")
    nlp = build(folders("bert"), "nli", data=data, window=16, stride=12, categories={"X": LONG})
    with pytest.raises(ValueError, match=LONG):
        nlp("Anna left")


@KINDS
def test_there_must_be_as_many_entries_as_texts(folders, head, name, entry, other):
    data = plain(name, entry, other)
    nlp = build(folders("bert"), head, data=data)
    example = make_example(nlp, *data[0])
    example.reference._.set(name, ["Who?", "Why?"])
    with pytest.raises(ValueError, match=f"has 1 entries for 2 {name}.*'Anna left"):
        nlp.update([example], sgd=Adam(1e-4, use_averages=False))
