"""Heads that read pairs, trained from the command line and asked about real texts."""

import json
from pathlib import Path

import numpy as np
import pytest
import spacy
import srsly
import torch
from commands import command
from pair_stream import (
    DATA,
    LANG,
    STREAM,
    assert_slices,
    make_doc,
    make_examples,
    texts_of,
    through_bytes,
)
from spacy.cli.train import train as train_command
from spacy.tokens import DocBin

from spacy_bert_heads.data.reader import make_corpus
from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.pairs import make_answer, make_verdict

# --- commands


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    docs = [eg.reference for eg in make_examples(spacy.blank(LANG))]
    docs[1].cats = {"fire": 1.0, "voyage": 0.0}
    docs[0].cats = {"fire": 0.0, "voyage": 1.0}
    DocBin(docs=docs, store_user_data=True).to_disk(folder / "train.spacy")
    return folder


def test_the_reader_carries_what_is_asked_and_no_more(files):
    nlp = spacy.blank(LANG)
    examples = list(make_corpus(files / "train.spacy")(nlp))
    assert len(examples) == 2
    for eg, (text, verdicts, answers) in zip(examples, DATA, strict=True):
        assert eg.predicted.text == text
        assert eg.predicted._.questions == eg.reference._.questions == list(answers)
        assert eg.predicted._.hypotheses == eg.reference._.hypotheses == list(verdicts)
        assert eg.predicted._.answers == eg.predicted._.nli == []
        assert eg.reference._.nli == [make_verdict(label) for label in verdicts.values()]
        assert len(eg.reference._.answers) == len(answers)


SCORES = {"nli": "nli_acc", "qa": "qa_f1", "textcat": "cats_score"}


@pytest.mark.parametrize("heads", [["nli"], ["qa"], ["textcat", "nli", "qa"]])
def test_train(files, checkpoint, tmp_path, heads):
    data = files / "train.spacy"
    config = init_config(heads, name=checkpoint, lang=LANG, train=data, dev=data)
    config.to_disk(tmp_path / "config.cfg")
    assert "Config is valid" in command("debug", "config", tmp_path / "config.cfg")
    small = {"window": 64, "stride": 48}
    overrides = {f"components.bert_encoder.model.{key}": n for key, n in small.items()}
    given = [word for key, n in overrides.items() for word in (f"--{key}", n)]
    command("init", "labels", tmp_path / "config.cfg", tmp_path / "labels", *given)
    found = {file.name: srsly.read_json(file) for file in (tmp_path / "labels").iterdir()}
    labels = {
        "nli": ["contradiction", "entailment", "neutral"],
        "textcat": ["fire", "voyage"],
    }
    assert found == {f"bert_{head}.json": labels[head] for head in heads if head in labels}

    overrides |= {
        "training.optimizer.learn_rate.initial_rate": 3e-3,
        "training.max_steps": 60,
        "training.eval_frequency": 30,
    }
    with pytest.warns(UserWarning, match="A learning rate"):
        train_command(tmp_path / "config.cfg", tmp_path / "out", overrides=overrides)
    folder = tmp_path / "out" / "model-last"
    nlp = spacy.load(folder)
    performance = nlp.meta["performance"]
    assert {key: performance[SCORES[key]] for key in heads} == dict.fromkeys(heads, 1.0)

    error = command("evaluate", folder, data, code=1)
    assert "python -m spacy bert evaluate" in error
    assert "100" in command("bert", "evaluate", folder, data)
    doc = nlp(make_doc(nlp, *STREAM[0]))
    if "qa" in heads:
        assert texts_of(doc._.answers) == ["Anna Grete", ""]
    if "nli" in heads:
        assert [verdict["label"] for verdict in doc._.nli] == ["entailment", "neutral"]


# --- real data


@pytest.mark.parametrize("lang", ["en", "de", "zh"])
def test_xquad(data, minilm, lang):
    """An untrained head gives wrong answers, but slices of the text."""
    content = json.loads((data / "qa_xquad" / f"xquad.{lang}.json").read_text("utf8"))
    paragraphs = [p for article in content["data"] for p in article["paragraphs"]][:3]
    nlp = spacy.blank(lang)
    nlp.add_pipe("bert_encoder", config={"model": {"name": minilm}})
    settings = {"alternatives": 2, "no_answer_threshold": 1.0}
    nlp.add_pipe("bert_qa", config=settings)
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    stream = [
        (p["context"], {"questions": [qa["question"] for qa in p["qas"][:2]]}) for p in paragraphs
    ]
    for doc, context in nlp.pipe(stream, as_tuples=True):
        assert doc._.questions == context["questions"]
        assert all(answer["text"] for answer in doc._.answers)
        assert_slices(doc)
        assert_slices(through_bytes(doc))
    for p in paragraphs:  # and the true ones can be written
        doc = nlp.make_doc(p["context"])
        for answer in (a for qa in p["qas"] for a in qa["answers"]):
            start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
            assert make_answer(doc, start, end)["text"] == answer["text"]
    assert np.isfinite([span["score"] for span in doc._.answers]).all()
