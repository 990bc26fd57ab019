"""`bert serve`: what it answers, limits, errors, metrics."""

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import sleep
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import spacy
from conftest import TRAIN_DATA
from served import Client, assert_record, offline, serve
from spacy.language import Language

from spacy_bert_heads.serving.annotator import Annotator, Query
from spacy_bert_heads.serving.app import make_app
from spacy_bert_heads.serving.limits import Limits
from spacy_bert_heads.serving.run import name_of

SAILED, BURNED = (text for text, _ in TRAIN_DATA)
QUESTIONS, HYPOTHESES = ["Who left?", "What burned?"], ["She left.", "It rained."]


@pytest.fixture(scope="module")
def served(joint):
    """A client of a server of `joint`, and the pipeline."""
    nlp = spacy.load(joint)
    with serve(make_app(nlp, name="joint")) as (client, _):
        yield client, spacy.load(joint)


def test_one_text_and_many(served):
    client, nlp = served
    texts = [SAILED, "", BURNED, "Hull burned on Tuesday. " * 30]
    for found, text in zip(client.annotate(texts), texts, strict=True):
        assert_record(found, offline(nlp, text))
    (found,) = client.annotate(SAILED)
    assert [one["text"] for one in found["entities"]] == ["Anna Grete", "Skagen", "Tuesday"]
    assert_record(found, offline(nlp, SAILED))


def test_questions_and_hypotheses(served):
    client, nlp = served
    asked = {"questions": QUESTIONS, "hypotheses": HYPOTHESES}
    for found, text in zip(client.annotate([SAILED, BURNED], **asked), TRAIN_DATA, strict=True):
        assert_record(found, offline(nlp, text[0], **asked))
    (found,) = client.annotate(SAILED, **asked)
    assert [one["text"] for one in found["answers"]] == ["Anna Grete", ""]
    assert [one["label"] for one in found["verdicts"]] == ["entailment", "neutral"]


@pytest.mark.parametrize("softmax", ["labels", "contradiction", "categories"])
def test_categories_are_those_of_a_config(served, joint, softmax):
    client, _ = served
    texts = {"trip": "She left.", "loss": "She sank.", "rain": "It rained."}
    settings = {"categories": texts, "category_softmax": softmax}
    nlp = spacy.load(joint, config={"components": {"bert_nli": settings}})
    found = client.annotate([SAILED, BURNED], categories=texts, category_softmax=softmax)
    for record, text in zip(found, (SAILED, BURNED), strict=True):
        cats = nlp(text).cats
        assert record["zero_shot"] == pytest.approx({key: cats[key] for key in texts}, abs=1e-4)
    assert sum(found[0]["zero_shot"].values()) == pytest.approx(1, abs=1e-4) or (
        softmax != "categories"
    )


def test_a_template_makes_hypotheses(served):
    client, _ = served
    (found,) = client.annotate(SAILED, categories=["She"], hypothesis_template="{} left.")
    (other,) = client.annotate(SAILED, categories={"She": "She left."})
    assert found["zero_shot"] == other["zero_shot"]


def test_many_clients_get_their_own_answers(served):
    client, nlp = served
    texts = [" ".join([SAILED] * (i % 3 + 1) + [BURNED] * (i % 2)) for i in range(24)]
    expected = {text: offline(nlp, text, questions=QUESTIONS) for text in {*texts}}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: client.annotate(text, questions=QUESTIONS)[0], texts))
    for record, text in zip(found, texts, strict=True):
        assert_record(record, expected[text])


def test_health_metrics_and_documentation(served):
    client, _ = served
    client.annotate([SAILED, BURNED])
    assert client.get("/health") == (200, {"status": "ok"})
    status, metrics = client.get("/metrics")
    assert status == 200
    assert 'spacy_bert_requests_total{path="/annotate",status="200"}' in metrics
    assert "spacy_bert_batch_texts_bucket" in metrics and "process_resident_memory" in metrics
    assert "spacy_bert_queue_wordpieces 0.0" in metrics
    schemas = client.get("/openapi.json")[1]["components"]["schemas"]
    assert schemas["Entity"]["properties"]["label"]["enum"] == ["DATE", "PLACE", "VESSEL"]
    verdict = schemas["Verdict"]["properties"]["label"]["anyOf"][0]
    assert verdict["enum"] == ["contradiction", "entailment", "neutral"]
    assert set(schemas["Annotations"]["properties"]) == {
        "entities", "categories", "verdicts", "answers", "zero_shot",
    }  # fmt: skip


@pytest.mark.parametrize(
    "body, message",
    [
        (b"{", "JSON"),
        ({}, "texts: Field required"),
        ({"texts": [1]}, "should be a valid string"),
        ({"texts": SAILED, "question": ["Who?"]}, "question: Extra inputs"),
        ({"texts": SAILED, "questions": [" "]}, "questions.0"),
        ({"texts": SAILED, "categories": ["a"], "hypothesis_template": "x"}, "hypothesis_template"),
        ({"texts": SAILED, "hypotheses": ["\ud800"]}, "unicode"),
        ({"texts": SAILED, "categories": ["\ud800"]}, "unicode"),
    ],
)
def test_bad_requests(served, body, message):
    status, answer = served[0].post("/annotate", body)
    assert status == 422
    assert message in answer["error"]
    assert SAILED not in json.dumps(answer)


@pytest.mark.parametrize(
    "body, kind, status",
    [
        (b'{"texts": "x"}', "text/plain", 422),
        (b'{"texts": "x"}', "application/x-www-form-urlencoded", 422),
        ('{"texts": "café"}'.encode("latin1"), "application/json", 400),
        (b"[1]", "application/json", 422),
        (b"", "application/json", 422),
    ],
)
def test_a_body_that_is_no_json_object(served, body, kind, status):
    request = Request(f"{served[0].url}/annotate", body, {"Content-Type": kind})
    with pytest.raises(HTTPError) as info:
        urlopen(request, timeout=60)
    assert info.value.code == status
    message = json.loads(info.value.read())["error"]
    assert message.endswith("object in UTF-8, with the header Content-Type: application/json.")


def test_what_the_pipeline_lacks(make_nlp):
    with serve(make_app(make_nlp("ner"), name="ner")) as (client, _):
        for name in ("questions", "hypotheses", "categories"):
            status, answer = client.post("/annotate", {"texts": SAILED, name: ["a"]})
            assert status == 422 and f"Leave out {name}." in answer["error"]
        assert client.post("/pipeline/question-answering", {"inputs": {}})[0] == 404
        page = client.get("/")[1]
        assert '"questions": false' in page


def test_a_bad_text_fails_alone(nlp, caplog):
    @Language.component("fails_on_bad")
    def fails_on_bad(doc):
        if "BAD" in doc.text:
            raise RuntimeError(f"Can't read {doc.text}")
        return doc

    nlp.add_pipe("fails_on_bad")
    texts = [SAILED, "BAD secret", BURNED, "x" * 500, "half \ud800"]
    with (
        caplog.at_level(logging.ERROR, logger="spacy"),
        serve(make_app(nlp, name="joint", limits=Limits(max_chars=400))) as (client, _),
    ):
        found = client.annotate(texts)
        assert "spacy_bert_failed_texts_total 3.0" in client.get("/metrics")[1]
        status, answer = client.post("/pipeline/token-classification", {"inputs": texts})
        assert status == 422 and "could not be annotated" in answer["error"]
    assert_record(found[0], offline(spacy_without(nlp), SAILED))
    assert_record(found[2], offline(spacy_without(nlp), BURNED))
    assert "could not be annotated" in found[1]["error"] and "secret" not in found[1]["error"]
    assert "500 characters" in found[3]["error"]
    assert "surrogate" in found[4]["error"]
    assert "RuntimeError at" in caplog.text and "secret" not in caplog.text


def spacy_without(nlp):
    nlp.select_pipes(disable=["fails_on_bad"])
    return nlp


def test_limits(nlp):
    limits = Limits(max_body=1000, max_texts=3, max_pairs=4, queue_wordpieces=200)
    with serve(make_app(nlp, name="joint", limits=limits)) as (client, _):
        for body, message in (
            ({"texts": ["x" * 1000]}, "1,000 bytes"),
            ({"texts": ["x"] * 4}, "4 texts; at most 3 are allowed"),
            ({"texts": ["x"] * 3, "questions": ["a", "b"]}, "6 pairs"),
            ({"texts": "x" * 450, "questions": ["a", "b"]}, "Split it"),
        ):
            status, answer = client.post("/annotate", body)
            assert status == 413
            assert message in answer["error"]
        assert client.post("/annotate", {"texts": ["x"] * 3})[0] == 200


def test_what_a_config_asks_counts(joint):
    settings = {"bert_qa": {"questions": ["Who left?"]}, "bert_nli": {"hypotheses": ["She left."]}}
    annotator = Annotator(spacy.load(joint, config={"components": settings}))
    query = annotator.complete(Query("x" * 40))
    assert query.second_texts == ["Who left?", "She left."]
    assert query.cost > Query("x" * 40).cost
    own = annotator.complete(Query("x", questions=["When?"]))
    assert own.second_texts == ["When?", "She left."]
    (record,) = annotator.annotate([query])
    assert [one["question"] for one in record["answers"]] == ["Who left?"]


class Gate:
    """Holds a pipeline back until it is opened."""

    def __init__(self, nlp: Language) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        make_doc = nlp.make_doc

        def wait(text):
            self.entered.set()
            self.opened.wait(60)
            return make_doc(text)

        nlp.make_doc = wait


def test_a_full_queue_and_a_late_answer(nlp):
    gate = Gate(nlp)
    limits = Limits(queue_wordpieces=20, timeout=0.5)
    with serve(make_app(nlp, name="joint", limits=limits)) as (client, _):
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.post, "/annotate", {"texts": "first"})
            assert gate.entered.wait(60)
            second = pool.submit(client.post, "/annotate", {"texts": "x" * 50})
            while "queue_wordpieces 0.0" in client.get("/metrics")[1]:
                pass
            status, answer = client.post("/annotate", {"texts": "y" * 50})
            assert status == 429 and "Too many requests" in answer["error"]
            for late in (first, second):
                status, answer = late.result()
                assert status == 504 and "0.5 seconds" in answer["error"]
        gate.opened.set()
        assert client.annotate("after that")


def test_a_stop_answers_what_has_come(nlp):
    gate = Gate(nlp)
    with serve(make_app(nlp, name="joint")) as (client, server), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.annotate, SAILED)
        assert gate.entered.wait(60)
        server.should_exit = True  # what SIGTERM sets
        gate.opened.set()
        assert asked.result()[0]["categories"]


def test_an_unexpected_error_shows_nothing(nlp, caplog, monkeypatch):
    def fail(*args):
        raise RuntimeError("secret")

    monkeypatch.setattr("spacy_bert_heads.serving.app.Desk.answer", fail)
    with (
        caplog.at_level(logging.ERROR),
        serve(make_app(nlp, name="joint")) as (client, _),
    ):
        status, answer = client.post("/annotate", {"texts": "x"})
    assert status == 500 and answer == {
        "error": "Internal server error. The server's log has its location."
    }
    assert "RuntimeError at" in caplog.text and "secret" not in caplog.text


def test_new_words_are_forgotten(nlp):
    with serve(make_app(nlp, name="joint")) as (client, _):
        client.annotate("warm up")
        before = len(nlp.vocab.strings)
        client.annotate([f"word{i} other{i}" for i in range(50)])
        assert len(nlp.vocab.strings) == before


@pytest.mark.long
def test_the_command_until_it_is_stopped(joint):
    """In a process of its own: started, asked, and ended by SIGTERM; without a text in its log."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "spacy", "bert", "serve", str(joint), "--port", str(port)]
    process = subprocess.Popen([*words, "--threads", "1"], stderr=subprocess.PIPE, text=True)
    client = Client(f"http://127.0.0.1:{port}")
    while process.poll() is None:
        with suppress(OSError):
            client.get("/health")
            break
        sleep(0.2)
    (found,) = client.annotate(SAILED, questions=["Who left? " * 50, "Who left?"])
    assert [one["text"] for one in found["answers"]] == [None, "Anna Grete"]
    process.send_signal(signal.SIGTERM)
    log = process.communicate(timeout=60)[1]
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Finished server process" in log and "Who left?" not in log and SAILED not in log


def test_a_pipeline_is_named_by_its_folder(tmp_path):
    (tmp_path / "ships" / "model-best").mkdir(parents=True)
    assert name_of(str(tmp_path / "ships" / "model-best")) == "ships \u00b7 model-best"
    assert name_of(str(tmp_path / "ships")) == "ships"
    assert name_of("en_ships") == "en_ships"
