"""Batches, workers and settings change no result, and results are plain data."""

import json
import os
import pickle
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import spacy
import torch
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from three_heads import LANG, TEXTS, annotate, annotations

from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.encoder.shim import TorchShim


@pytest.fixture(scope="module")
def trained(three_heads):
    return three_heads


@pytest.fixture(scope="module")
def expected(three_heads_results):
    return three_heads_results


# --- streams


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
@pytest.mark.parametrize(
    "sizes",
    [{}, {"bert_ner": {"batch_size": 3}, "bert_tagger": {"batch_size": 5}}],
    ids=["equal", "unequal"],
)
def test_batch_sizes_change_nothing(trained, expected, batch_size, sizes):
    found = annotate(trained, TEXTS * 3, batch_size=batch_size, component_cfg=sizes)
    assert found == expected * 3


def test_a_document_alone(trained, expected):
    assert [annotations(trained(text)) for text in TEXTS] == expected
    assert annotate(trained, map(trained.make_doc, TEXTS)) == expected


def test_contexts(trained, expected):
    stream = ((text, {"line": i}) for i, text in enumerate(TEXTS))
    found = list(trained.pipe(stream, as_tuples=True, batch_size=2))
    assert [context for _, context in found] == [{"line": i} for i in range(len(TEXTS))]
    assert [annotations(doc) for doc, _ in found] == expected


# The parent has used torch's threads, which a forked worker doesn't have.
FORKED = """
import json, sys
import spacy, torch

torch.set_num_threads(2)
nlp = spacy.load(sys.argv[1])
texts = ["Anna Grete left Skagen on Tuesday. " * 10] * 16 + json.loads(sys.argv[2])
alone = [doc.cats for doc in nlp.pipe(texts)]
forked = [doc.cats for doc in nlp.pipe(texts, n_process=2, batch_size=4)]
print(json.dumps([alone, forked]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are not forked here")
@pytest.mark.parametrize(
    "parallel",
    [
        None,
        "true",  # often set to be rid of the tokenizers library's warning about forks
    ],
)
def test_workers_forked_after_a_prediction(trained, tmp_path, parallel):
    env = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    if parallel is not None:
        env["TOKENIZERS_PARALLELISM"] = parallel
    trained.to_disk(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path), json.dumps(TEXTS)],
        env=env,
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
    assert process.returncode == 0, errors
    alone, forked = json.loads(output)
    assert len(alone) == len(forked) == 16 + len(TEXTS)
    for one, other in zip(alone, forked, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_forked_worker_does_not_touch_a_gpu(monkeypatch):
    class OnGPU(torch.nn.Linear):
        def parameters(self, recurse=True):
            yield SimpleNamespace(device=torch.device("cuda"))

    shim = TorchShim(to_files=lambda module: {}, from_files=lambda files: OnGPU(1, 1))
    shim.module = OnGPU(1, 1)
    assert isinstance(shim.module, OnGPU)
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(ValueError, match="Leave n_process at 1"):
        _ = shim.module
    shim.module = OnGPU(1, 1)  # a worker that loads a pipeline itself may use it
    assert isinstance(shim.module, OnGPU)


# --- settings


def test_settings_of_the_config_that_it_is_loaded_with(trained, tmp_path):
    trained.to_disk(tmp_path / "saved")
    changed = {"bert_ner": {"threshold": 1.0, "spans_key": "found"}}
    nlp = spacy.load(tmp_path / "saved", config={"components": changed})
    doc = nlp(TEXTS[0])
    assert trained(TEXTS[0]).ents and not doc.ents
    assert "found" in doc.spans and "ents" not in doc.spans
    assert nlp.get_pipe("bert_ner").labels == trained.get_pipe("bert_ner").labels

    with pytest.raises(ValueError, match='trained with scheme = "BIO"'):
        spacy.load(tmp_path / "saved", config={"components.bert_ner.scheme": "BILOU"})

    # One that is set by hand is saved, until the config says another.
    nlp.get_pipe("bert_ner").cfg["threshold"] = 0.25
    nlp.to_disk(tmp_path / "again")
    for config, threshold in (({}, 0.25), ({"components.bert_ner.threshold": 0.5}, 0.5)):
        loaded = spacy.load(tmp_path / "again", config=config).get_pipe("bert_ner")
        assert (loaded.cfg["threshold"], loaded.cfg["spans_key"]) == (threshold, "found")


# --- plain data


def test_nothing_stays_on_a_doc(trained):
    """A Doc is byte for byte the one that is annotated by hand."""
    for doc in trained.pipe(TEXTS):
        plain = trained.make_doc(doc.text)
        ents = [Span(plain, ent.start, ent.end, label=ent.label_) for ent in doc.ents]
        plain.set_ents(ents, default="outside")
        # A span's id says who found it.
        found = ((ent.start, ent.end, ent.label_) for ent in ents)
        plain.spans["ents"] = [
            Span(plain, start, end, label=label, span_id="bert_ner") for start, end, label in found
        ]
        plain.spans["ents"].attrs["scores"] = [float(p) for p in doc.spans["ents"].attrs["scores"]]
        plain.cats = {label: float(p) for label, p in doc.cats.items()}
        for token, tagged in zip(plain, doc, strict=True):
            token.tag_ = tagged.tag_
        if ents:
            plain._.ent_scores = doc._.ent_scores
        assert doc.to_bytes() == plain.to_bytes()
        assert len(pickle.dumps(doc)) == len(pickle.dumps(plain))
        assert doc.tensor.size == 0
        assert doc.user_data.keys() == ({("._.", "ent_scores", None, None)} if ents else set())
        assert not doc.user_hooks and not doc.user_token_hooks
        assert b"torch" not in pickle.dumps(doc)


def through_docbin(docs: list[Doc], vocab) -> list[Doc]:
    content = DocBin(store_user_data=True, docs=docs).to_bytes()
    return list(DocBin().from_bytes(content).get_docs(vocab))


def through_doc_bytes(docs: list[Doc], vocab) -> list[Doc]:
    return [Doc(vocab).from_bytes(doc.to_bytes()) for doc in docs]


def through_doc_pickle(docs: list[Doc], vocab) -> list[Doc]:
    return pickle.loads(pickle.dumps(docs))


@pytest.mark.parametrize(
    "way", [through_docbin, through_doc_bytes, through_doc_pickle], ids=lambda way: way.__name__
)
def test_docs_keep_their_annotations(trained, way):
    docs = list(trained.pipe(TEXTS))
    assert any(doc.ents for doc in docs)
    for doc, other in zip(docs, way(docs, spacy.blank(LANG).vocab), strict=True):
        assert annotations(other) == annotations(doc)
        assert other.cats == doc.cats  # to the last bit
        assert other.spans["ents"].attrs == doc.spans["ents"].attrs
        scores = [entry["score"] for entry in doc._.ent_scores]
        values = [*doc.cats.values(), *doc.spans["ents"].attrs["scores"], *scores]
        assert all(type(value) is float for value in values)
        assert other._.ent_scores == doc._.ent_scores


def test_example_made_from_a_prediction(trained):
    """Entities that a pipeline wrote don't keep it from learning others."""
    doc = trained(TEXTS[0])
    example = Example.from_dict(doc, {"entities": [(16, 22, "DATE")]})
    losses = trained.update([example], sgd=False, losses={})
    shim_of(trained.get_pipe("bert_encoder").model).module.zero_grad()
    assert losses["bert_ner"] > 1
