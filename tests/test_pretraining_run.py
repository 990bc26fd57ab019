"""Runs: what they report, save and say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from pretraining_runs import log, make_settings, write_raw
from transformers import AutoModelForMaskedLM, BertForPreTraining

from spacy_bert_heads.encoder.loading import load_checkpoint
from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.objectives import load_pretrainer
from spacy_bert_heads.pretraining.run import Run, make_optimizer
from spacy_bert_heads.pretraining.settings import Phase, Settings, adam


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("encoder") / "bert", dropout=0.1)


@pytest.fixture(scope="module")
def settings(encoder, tmp_path_factory) -> Settings:
    return make_settings(tmp_path_factory.mktemp("settings"), encoder)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    pretrain(settings, folder)
    return folder


def test_a_run_reports_and_its_folders_load(whole):
    lines = log(whole)
    assert [line["step"] for line in lines] == [0, 4, 8, 12]
    assert lines[0]["loss"] is None and lines[-1]["loss"] > 0
    assert lines[-1]["lr"] == pytest.approx(0.001 / 11)  # the step after it would be at 0
    assert all(0 <= line["held_out_nsp_accuracy"] <= 1 for line in lines)
    for name in ("model-best", "model-last"):
        _, info = BertForPreTraining.from_pretrained(whole / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        AutoModelForMaskedLM.from_pretrained(whole / name)
        assert load_checkpoint(str(whole / name)).model.pooler is not None


def test_a_run_learns(settings, tmp_path):
    training = replace(
        settings.training,
        max_steps=120,
        optimizer=adam(0.003, warmup_steps=2),
        eval_frequency=60,
        checkpoint_frequency=120,
        phases=[Phase(32)],
    )
    pretrain(replace(settings, training=training), tmp_path / "out")
    # Of the fifteen words of the text each is about as frequent as another.
    assert log(tmp_path / "out")[-1]["held_out_mlm_loss"] < np.log(15) + 0.5


def test_what_the_checkpoint_lacks_learns_faster(settings):
    pretrainer = load_pretrainer(settings.paths.encoder, sentence_objective="nsp")
    assert "cls.predictions.transform.dense.weight" in pretrainer.new_parameters
    of_encoder = {name for name in pretrainer.new_parameters if name.startswith("bert.")}
    assert of_encoder == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    optimizer = make_optimizer(pretrainer, 7.0)
    before = {n: p.detach().clone() for n, p in pretrainer.model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1e-3 * group["rate"], 0.0  # as `Run.learn` does
    for parameter in pretrainer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in pretrainer.model.named_parameters():
        # The first step of Adam is the rate, whatever the gradient's size.
        rate = 7e-3 if name in pretrainer.new_parameters else 1e-3
        expected = before[name] - rate
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=0)


def test_a_run_without_warm_up(settings, tmp_path):
    training = replace(settings.training, optimizer=adam(0.001, warmup_steps=0), max_steps=4)
    pretrain(replace(settings, training=training), tmp_path / "out")
    assert [line["lr"] for line in log(tmp_path / "out")] == [0.001, 0.0002]


def test_what_is_left_out_is_said(settings, tmp_path):
    path = tmp_path / "raw.jsonl"
    lines = write_raw(path).read_text().splitlines()
    path.write_text("\n".join([*lines, '{"text": "One sentence."}', '{"body": "No text."}', "{"]))
    said: list[str] = []
    training = replace(settings.training, optimizer=adam(warmup_steps=0), max_steps=1)
    paths = replace(settings.paths, raw=[str(path)])
    text = replace(settings.text, held_out=0.0)
    settings = replace(settings, training=training, paths=paths, text=text)
    pretrain(settings, tmp_path / "out", say=said.append)
    found = "\n".join(said)
    assert "Skipped: 2\n       1  no 'text'\n       1  not JSON\n" in found
    assert f"pair of segments: 1 of the {len(lines) + 1} documents" in found


def test_held_out_documents_that_are_too_short_for_pairs(settings, tmp_path):
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text('{"text": "Anna swims."}\n' * 4)
    pairs = replace(settings.objective, sentences="nsp")
    paths = replace(settings.paths, held_out=[str(held_out)])
    said: list[str] = []
    settings = replace(settings, objective=pairs, paths=paths)
    pretrain(settings, tmp_path / "out", say=said.append)
    assert any("all held-out documents are too short for a pair" in line for line in said)
    assert [line["held_out_mlm_loss"] for line in log(tmp_path / "out")] == [None] * 4


def test_the_best_checkpoint_is_of_the_last_phase(settings, tmp_path, monkeypatch):
    """Losses of sequences of other lengths can't be compared."""
    saved = []
    monkeypatch.setattr(Run, "save", lambda run, name: saved.append((name, run.step)))
    phases = [Phase(16, 0.5), Phase(64, 0.5)]
    training = replace(settings.training, optimizer=adam(0.0, warmup_steps=0), phases=phases)
    pretrain(replace(settings, training=training), tmp_path / "out")
    losses = [line["held_out_mlm_loss"] for line in log(tmp_path / "out")]
    assert losses[0] == losses[1] < losses[2] == losses[3]
    assert saved == [("model-best", 0), ("model-best", 8), ("model-last", 12)]
