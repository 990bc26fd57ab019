"""Hugging Face's wire formats, by Hugging Face's own client."""

import warnings

import pytest
import spacy
from conftest import TRAIN_DATA
from huggingface_hub import InferenceClient, constants, utils
from huggingface_hub.errors import HfHubHTTPError
from served import offline, serve

from spacy_bert_heads.serving.app import make_app

SAILED, BURNED = (text for text, _ in TRAIN_DATA)


@pytest.fixture(scope="module")
def served(joint):
    with serve(make_app(spacy.load(joint), name="joint")) as (client, _):
        yield client, spacy.load(joint)


@pytest.fixture
def ask(served, monkeypatch):
    """Hugging Face's client of a task."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # or it doesn't ask local servers
    # huggingface_hub reads it at each request; before version 1 only with a new HTTP client.
    reset_sessions = getattr(utils._http, "reset_sessions", lambda: None)
    reset_sessions()

    def client(task: str) -> InferenceClient:
        return InferenceClient(model=f"{served[0].url}/pipeline/{task}", token="hf_none")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield client
    reset_sessions()


def test_token_classification(served, ask):
    found = ask("token-classification").token_classification(SAILED)
    expected = offline(served[1], SAILED)["entities"]
    assert [(one.entity_group, one.word, one.start, one.end) for one in found] == [
        (one["label"], one["text"], one["start"], one["end"]) for one in expected
    ]
    scores = [one["score"] for one in expected]
    assert [one.score for one in found] == pytest.approx(scores, abs=1e-4)
    with pytest.raises(HfHubHTTPError) as info:
        ask("token-classification").token_classification(SAILED, aggregation_strategy="none")
    assert "entities are merged" in info.value.response.text


def test_text_classification(served, ask):
    found = ask("text-classification").text_classification(BURNED)
    assert [one.label for one in found] == ["fire", "voyage"]
    cats = offline(served[1], BURNED)["categories"]
    assert {one.label: one.score for one in found} == pytest.approx(cats, abs=1e-4)
    (best,) = ask("text-classification").text_classification(BURNED, top_k=1)
    assert best.label == "fire"


@pytest.mark.parametrize("task", ["text-classification", "question-answering"])
@pytest.mark.parametrize("top_k", ["2", 1.5, -1, 0, True])
def test_top_k_is_a_number_of_results(served, task, top_k):
    inputs = SAILED if task.startswith("text") else {"question": "Who left?", "context": SAILED}
    body = {"inputs": inputs, "parameters": {"top_k": top_k}}
    status, answer = served[0].post(f"/pipeline/{task}", body)
    assert status == 422 and answer["error"].startswith("body.parameters.top_k: Input should be")


@pytest.mark.parametrize("parameters", [None, {}, {"top_k": None, "truncation": True}])
def test_without_top_k_all_classes_and_the_best_answer(served, parameters):
    body = {"inputs": BURNED, "parameters": parameters}
    status, (found,) = served[0].post("/pipeline/text-classification", body)
    assert status == 200 and [one["label"] for one in found] == ["fire", "voyage"]
    body = {"inputs": {"question": "Who left?", "context": SAILED}, "parameters": parameters}
    status, found = served[0].post("/pipeline/question-answering", body)
    assert status == 200 and found["answer"] == "Anna Grete"


def test_pairs_are_classified_by_verdict(served):
    client, nlp = served
    pair = {"text": SAILED, "text_pair": "She sank."}
    status, found = client.post("/pipeline/text-classification", {"inputs": [pair, pair]})
    assert status == 200 and len(found) == 2
    (verdict,) = offline(nlp, SAILED, hypotheses=["She sank."])["verdicts"]
    scores = {one["label"]: one["score"] for one in found[0]}
    assert found[0][0]["label"] == "contradiction"
    assert scores == pytest.approx(verdict["scores"], abs=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot(served, ask, multi_label):
    labels = ["left", "sank", "rained"]
    how = {"multi_label": multi_label, "hypothesis_template": "She {}."}
    found = ask("zero-shot-classification").zero_shot_classification(SAILED, labels, **how)
    softmax = "contradiction" if multi_label else "categories"
    texts = {label: f"She {label}." for label in labels}
    (record,) = served[0].annotate(SAILED, categories=texts, category_softmax=softmax)
    scores = {one.label: one.score for one in found}
    assert scores == pytest.approx(record["zero_shot"], abs=1e-4)
    assert [one.score for one in found] == sorted(scores.values(), reverse=True)


def test_zero_shot_as_transformers_has_it(served):
    body = {"inputs": SAILED, "parameters": {"candidate_labels": "left, sank"}}
    status, found = served[0].post("/pipeline/zero-shot-classification", body)
    assert status == 200 and found["sequence"] == SAILED
    assert {*found["labels"]} == {"left", "sank"} and sum(found["scores"]) == pytest.approx(1)


def test_question_answering(served, ask):
    client = ask("question-answering")
    found = client.question_answering(question="Who left?", context=SAILED)
    assert (found.answer, found.start, found.end) == ("Anna Grete", 0, 10)
    (expected,) = offline(served[1], SAILED, questions=["Who left?"])["answers"]
    assert found.score == pytest.approx(expected["score"], abs=1e-4)
    # Without leave to say that there is none, the best part of the text.
    forced = client.question_answering(question="What burned?", context=SAILED)
    assert forced.answer and forced.answer in SAILED
    none = client.question_answering(
        question="What burned?", context=SAILED, handle_impossible_answer=True
    )
    assert (none.answer, none.start, none.end) == ("", 0, 0)
