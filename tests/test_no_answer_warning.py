"""A checkpoint with questions without an answer: where a user is told of the threshold."""

import warnings

import pytest
import spacy
import torch
from hf_models import ANSWERS, ENDS, save
from pair_examples import ask, build, make_examples, module_of, train

import spacy_bert_heads
from spacy_bert_heads.text.pairs import Pairs

TEXT = "Anna left Skagen on Tuesday"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("hf") / "qa", ANSWERS, ENDS)


def never_answer(nlp) -> None:
    """Make "no answer" the most probable of all, as of a checkpoint of SQuAD 2."""
    pairs = nlp.get_pipe("bert_qa").pack(Pairs([nlp.make_doc(TEXT)], [["Who?"]], False))
    states = nlp.get_pipe("bert_encoder").model.predict(pairs).states
    wanted = torch.full((len(states), 1), -5.0)
    wanted[0] = 5.0  # [CLS]
    weight = torch.linalg.lstsq(states, wanted).solution
    with torch.no_grad():
        module_of(nlp, "qa").classifier.weight.copy_(weight.T.expand(2, -1))


def messages(nlp, *questions: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        doc = ask(nlp, TEXT, questions=list(questions))
    assert all(answer["text"] for answer in doc._.answers)
    return [str(one.message) for one in caught if "no_answer_threshold" in str(one.message)]


def test_an_improbable_answer_says_what_to_set(folder, tmp_path):
    nlp = spacy_bert_heads.from_hf(folder)
    assert nlp.get_pipe("bert_qa").no_answer_threshold == 1.0
    never_answer(nlp)
    nlp.to_disk(tmp_path)
    (message,) = messages(nlp, "Who?", "Why?")
    assert "answers 'Who?'" in message
    assert 'nlp.get_pipe("bert_qa").cfg["no_answer_threshold"] = 0.5' in message
    assert messages(nlp, "Who?") == []  # said once
    # What it says works.
    nlp.get_pipe("bert_qa").cfg["no_answer_threshold"] = 0.5
    doc = ask(nlp, TEXT, questions=["Who?"])
    assert doc._.answers[0]["text"] == "" and doc._.answers[0]["alternatives"]
    loaded = spacy.load(tmp_path, config={"components.bert_qa.no_answer_threshold": 0.5})
    assert ask(loaded, TEXT, questions=["Who?"])._.answers[0]["text"] == ""
    assert len(messages(spacy.load(tmp_path), "Who?")) == 1  # saved, it is as unset as before
    always = spacy.load(tmp_path, config={"components.bert_qa.no_answer_threshold": 1.0})
    assert messages(always, "Who?") == []


def test_a_probable_answer_says_nothing(folder):
    nlp = spacy_bert_heads.from_hf(folder)
    never_answer(nlp)
    module_of(nlp, "qa").classifier.weight.data.neg_()
    assert messages(nlp, "Who?", "Why?") == []


def test_a_threshold_that_was_tuned_says_nothing(folder):
    nlp = spacy_bert_heads.from_hf(folder)
    data = [(TEXT, {"questions": {"Who?": "Anna", "Where from?": "Skagen"}})]
    train(nlp, data, steps=1)
    nlp.evaluate(make_examples(nlp, data))
    assert nlp.get_pipe("bert_qa").cfg["no_answer_threshold"] == 1.0
    never_answer(nlp)
    assert messages(nlp, "Who?") == []


def test_a_head_that_is_trained_here_says_nothing(folders):
    data = [(TEXT, {"questions": {"Who?": "Anna"}})]
    nlp = build(folders("bert"), "qa", data=data)
    never_answer(nlp)
    assert messages(nlp, "Who?") == []
