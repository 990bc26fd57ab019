"""The block of the documentation for an experiment tracker, in training and in pretraining."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import spacy
from commands import command
from conftest import make_examples
from pretraining_runs import write_config, write_raw
from spacy.tokens import DocBin
from thinc.api import Config

pytestmark = pytest.mark.skipif(
    find_spec("wandb") is None, reason="W&B is not installed (pip install wandb)"
)


@pytest.fixture
def block(tmp_path, monkeypatch):
    """The block, and a folder in which W&B works without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    page = (Path(__file__).parents[1] / "docs" / "train.md").read_text(encoding="utf8")
    (found,) = re.findall(r"```ini\n(\[training\.logger\]\n.+?)```", page, re.DOTALL)
    assert "WANDB_MODE=offline" in page
    yield Config().from_str(f"[training]\n{found}")
    import wandb

    wandb.teardown()  # it would stay in this folder


def logged(folder: Path) -> str:
    """The only run: a log of messages in which names and values are text."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return file.read_bytes().decode("utf8", "replace")


def test_train(block, checkpoint, tmp_path):
    nlp = spacy.blank("xx")
    docs = [example.reference for example in make_examples(nlp)]
    DocBin(docs=docs).to_disk(tmp_path / "train.spacy")
    command("bert", "init-config", "config.cfg", "--heads", "ner", "--lang", "xx", "--name",
            checkpoint, "--train", "train.spacy", "--dev", "train.spacy")  # fmt: skip
    config = Config().from_disk("config.cfg", interpolate=False)
    config["components"]["bert_encoder"]["model"] |= {"window": 64, "stride": 48}
    config["training"]["logger"] = block["training"]["logger"]
    config.to_disk("config.cfg")
    printed = command("train", "config.cfg", "--output", "out", "--training.max_steps", 2,
                      "--training.eval_frequency", 1)  # fmt: skip
    assert "ENTS_F" in printed  # spaCy's own table
    run = logged(tmp_path)
    assert all(name in run for name in ("ships", "loss_bert_ner", "ents_f", "score"))


def test_pretrain(block, checkpoint, tmp_path):
    path = write_config(tmp_path, write_raw(tmp_path / "raw.jsonl"), checkpoint)
    config = Config().from_disk(path).merge(block)
    config.to_disk(path)
    command("bert", "pretrain", path, "out", "--training.max_steps", 2,
            "--training.eval_frequency", 1)  # fmt: skip
    last = json.loads(Path("out/log.jsonl").read_text().splitlines()[-1])
    run = logged(tmp_path)
    for name, key in (("held_out_mlm_loss", "held_out_mlm_loss"), ("loss_mlm", "mlm_loss")):
        assert name in run and repr(last[key]) in run
