"""Configs, training, evaluation and application from the command line."""

import subprocess
import sys
from pathlib import Path

import pytest
import spacy
import srsly
from commands import command
from conftest import make_examples
from spacy.tokens import DocBin
from spacy.util import load_model_from_config
from thinc.api import Config
from three_heads import DATA, LANG, TEXTS, annotate, annotations, close

from spacy_bert_heads.init_config import init_config


@pytest.fixture(scope="module")
def files(tmp_path_factory, checkpoint) -> Path:
    """A folder with data and the config that `init-config` makes for it."""
    folder = tmp_path_factory.mktemp("commands")
    nlp = spacy.blank(LANG)
    DocBin(docs=[eg.reference for eg in make_examples(nlp, DATA)]).to_disk(folder / "train.spacy")
    command("bert", "init-config", folder / "config.cfg", "--heads", "ner,tagger,textcat",
            "--lang", LANG, "--name", checkpoint, "--train", folder / "train.spacy",
            "--dev", folder / "train.spacy")  # fmt: skip
    return folder


SMALL = (
    "--components.bert_encoder.model.window", 64, "--components.bert_encoder.model.stride", 48
)  # fmt: skip


def test_config_is_complete(files):
    assert "config is already complete" in command(
        "init", "fill-config", files / "config.cfg", files / "filled.cfg"
    )
    assert (files / "filled.cfg").read_text() == (files / "config.cfg").read_text()
    assert "Config is valid" in command("debug", "config", files / "config.cfg")


@pytest.mark.parametrize("heads", [["ner"], ["textcat_multilabel"], ["tagger", "ner"]])
@pytest.mark.parametrize("gpu", [True, False])
def test_every_config_is_complete(tmp_path, heads, gpu):
    config = init_config(heads, gpu=gpu, lang=LANG)
    filled = load_model_from_config(config, auto_fill=True, validate=True).config
    assert filled.to_str() == config.to_str()
    assert config["nlp"]["pipeline"] == ["bert_encoder", *(f"bert_{head}" for head in heads)]


def test_optimizer_of_the_config(files):
    """What `debug data`, `assemble` and `nlp.resume_training` do with it."""
    config = Config().from_disk(files / "config.cfg", interpolate=False)
    nlp = load_model_from_config(config, auto_fill=True)
    optimizer, rates = nlp.resume_training(), []
    for _ in range(config["training"]["max_steps"] + 1):
        rates.append(optimizer.learn_rate)
        optimizer.step_schedules()
    assert max(rates) == config["training"]["optimizer"]["learn_rate"]["initial_rate"] < 5e-4
    assert rates[-1] == max(rates)  # whoever resumes a training says when it ends


def test_init_labels(files):
    command("init", "labels", files / "config.cfg", files / "labels", *SMALL)
    assert {file.name: srsly.read_json(file) for file in (files / "labels").iterdir()} == {
        "bert_ner.json": ["DATE", "PLACE", "VESSEL"],
        "bert_tagger.json": ["DT", "IN", "NN", "NNP", "VBD"],
        "bert_textcat.json": ["fire", "voyage"],
    }


def test_train_evaluate_apply(files):
    data = files / "train.spacy"
    rate, steps = "--training.optimizer.learn_rate", ("--training.max_steps", 40)
    rate = (f"{rate}.initial_rate", 3e-3, f"{rate}.total_steps", 80)
    with pytest.warns(UserWarning, match="A learning rate"):
        command("train", files / "config.cfg", "-o", files / "out", *SMALL, *rate, *steps)
    nlp = spacy.load(files / "out" / "model-last")
    assert nlp.meta["performance"]["ents_f"] == 1.0

    command("evaluate", files / "out" / "model-last", data, "--output", files / "scores.json")
    scores = srsly.read_json(files / "scores.json")
    for key in ("ents_f", "tag_acc", "cats_score", "cats_acc"):
        assert scores[key] == 1.0, key

    srsly.write_jsonl(files / "texts.jsonl", [{"text": text} for text in TEXTS])
    model, texts = files / "out" / "model-last", files / "texts.jsonl"
    command("apply", model, texts, files / "applied.spacy", "--batch-size", 3)
    found = DocBin().from_disk(files / "applied.spacy").get_docs(nlp.vocab)
    assert [annotations(doc) for doc in found] == close(annotate(nlp))


LIGHT = """
import sys
import spacy

nlp = spacy.blank("en")
nlp.add_pipe("bert_encoder")
for head in ("ner", "tagger", "textcat", "textcat_multilabel"):
    nlp.add_pipe(f"bert_{head}")
sys.argv = ["spacy", "--help"]
from spacy.cli._util import setup_cli
try:
    setup_cli()
except SystemExit as left:
    assert not left.code, left.code
heavy = {"transformers", "tokenizers", "safetensors", "huggingface_hub", "datasets"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""


def test_spacy_stays_light(light):
    """Neither a pipeline before its initialization nor a command waits for transformers."""
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", LIGHT],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert " bert " in ran.stdout
    assert ran.stdout.rstrip().endswith("heavy: []")
