"""Pipelines with heads that read pairs are saved, sourced, taken apart and put together."""

import json
import os
import pickle
import signal
import subprocess
import sys

import pytest
import spacy
from pair_stream import (
    LANG,
    SAILED,
    STREAM,
    assert_same,
    build,
    make_doc,
    make_examples,
    make_stream,
    results,
    train,
    weights_of,
)


def predictions(nlp) -> list[dict]:
    return [results(doc) for doc in nlp.pipe(make_stream(nlp))]


@pytest.fixture(scope="module")
def trained(answering):
    return answering


@pytest.fixture(scope="module")
def saved(answering_folder):
    return answering_folder


@pytest.fixture(scope="module")
def expected(answering_results):
    return answering_results


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
