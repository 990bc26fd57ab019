"""Runs: losses beside Hugging Face's, and a resumed run beside one without a break."""

import errno
import json
import random
import signal
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from safetensors.torch import load_file
from transformers import AlbertForPreTraining, AutoModelForMaskedLM, BertForPreTraining

from spacy_bert_heads.encoder.loading import load_checkpoint
from spacy_bert_heads.encoder.rows import Row
from spacy_bert_heads.pretraining import checkpoint as checkpoint_module
from spacy_bert_heads.pretraining.checkpoint import list_states, load_state, save_state
from spacy_bert_heads.pretraining.corpus import prepare
from spacy_bert_heads.pretraining.loop import Data, Run, check_same, make_optimizer, pretrain
from spacy_bert_heads.pretraining.objectives import Totals, load_pretrainer
from spacy_bert_heads.pretraining.settings import Phase, Settings, phase_at, read_settings

TEXT = "the boat left harbour at night and a fire broke out near Hull on Tuesday"


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_raw(tmp_path_factory.mktemp("raw") / "raw.jsonl")


def write_raw(path: Path) -> Path:
    rng = random.Random(0)
    with path.open("w") as file_:
        for _ in range(60):
            sentences = [
                " ".join(rng.choices(TEXT.split(), k=rng.randint(4, 9))).capitalize() + "."
                for _ in range(rng.randint(3, 9))
            ]
            file_.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("encoder") / "bert", dropout=0.1)


@pytest.fixture(scope="module")
def settings(raw, encoder, tmp_path_factory) -> Settings:
    made = read_settings(
        write_config(tmp_path_factory.mktemp("config"), raw, encoder),
        {"training.max_steps": 12},
    )
    made.paths.cache = str(tmp_path_factory.mktemp("cache"))
    return made


def write_config(folder: Path, raw: Path, encoder: str) -> Path:
    path = folder / "pretrain.cfg"
    path.write_text(
        f"""
[paths]
raw = "{raw}"
encoder = "{encoder}"
cache = "{folder / "cache"}"

[text]
held_out = 0.2
workers = 1

[training]
max_steps = 12
batch_pieces = 256
max_batch_tokens = 128
learn_rate = 0.001
warmup_steps = 2
eval_frequency = 4
eval_pieces = 512
checkpoint_frequency = 3
phases = [{{"max_length": 32, "share": 0.75}}, {{"max_length": 64, "share": 0.25}}]
"""
    )
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model-last" / "model.safetensors")


def log(folder: Path) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "tokens_per_second"} for x in lines]


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    pretrain(settings, folder)
    return folder


# --- losses


@pytest.mark.parametrize(
    "family, objective, model_class",
    [
        ("bert", "nsp", BertForPreTraining),
        ("bert", "sop", BertForPreTraining),
        ("albert", "sop", AlbertForPreTraining),
        ("bert", "full-sentences", AutoModelForMaskedLM),
        ("roberta", "doc-sentences", AutoModelForMaskedLM),
        ("distilbert", "full-sentences", AutoModelForMaskedLM),
        ("electra", "full-sentences", AutoModelForMaskedLM),
        ("mpnet", "full-sentences", AutoModelForMaskedLM),
        ("deberta-v2", "full-sentences", AutoModelForMaskedLM),
        ("modernbert", "full-sentences", AutoModelForMaskedLM),
    ],
)
def test_losses_and_gradients_are_hugging_faces(settings, tmp_path, family, objective, model_class):
    name = make_checkpoint(tmp_path / family, family=family)
    settings = replace(settings, objective=replace(settings.objective, sentences=objective))
    pretrainer = load_pretrainer(name, sentence_objective=objective)
    assert "masked-piece head" in pretrainer.new_heads
    pretrainer.model.save_pretrained(tmp_path / "saved")
    corpus = prepare(settings.paths.raw, tmp_path, wordpieces=pretrainer.bert.wordpieces, workers=1)
    data = Data(corpus, pretrainer.vocabulary(), settings, tmp_path / "plans")
    batch = data.held_out_batches(0)[0]
    scales = (1 / len(batch.masked), 1 / max((batch.labels >= 0).sum(), 1))
    sums = pretrainer.run(
        batch,
        max_batch_tokens=64,
        autocast=torch.autocast("cpu", enabled=False),
        scales=scales,
    )
    found = Totals(*sums.tolist())

    theirs = model_class.from_pretrained(tmp_path / "saved").eval()
    sequences, targets = batch.sequences, np.full(len(batch.sequences.ids), -100)
    targets[batch.masked] = batch.targets
    total = 0.0
    begin = 0
    for i, length in enumerate(sequences.lengths.tolist()):
        part = slice(begin, begin + length)
        begin += length
        inputs = {"input_ids": torch.from_numpy(sequences.ids[None, part])}
        if family in ("bert", "albert", "electra"):
            inputs["token_type_ids"] = torch.from_numpy(sequences.type_ids[None, part])
        output = theirs(**inputs)
        logits = getattr(output, "prediction_logits", getattr(output, "logits", None))
        gold = torch.from_numpy(targets[None, part])
        loss = torch.nn.functional.cross_entropy(logits[0], gold[0], reduction="sum")
        total = total + loss * scales[0]
        if batch.labels[i] >= 0:
            logits = getattr(output, "seq_relationship_logits", getattr(output, "sop_logits", None))
            label = torch.tensor([int(batch.labels[i])])
            total = total + torch.nn.functional.cross_entropy(logits, label) * scales[1]
    total.backward()
    ours = found.mlm_loss * scales[0] + found.sentence_loss * scales[1]
    assert ours == pytest.approx(float(total.detach()), abs=1e-4)
    assert found.n_masked == len(batch.masked)
    gradients = {n: p.grad for n, p in pretrainer.model.named_parameters() if p.grad is not None}
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    learning = {n for n, p in pretrainer.model.named_parameters() if p.requires_grad}
    assert set(gradients) == learning
    for key, gradient in expected.items():
        if key in gradients:
            torch.testing.assert_close(gradients[key], gradient, atol=1e-5, rtol=1e-3)
    assert len(set(gradients) & set(expected)) >= (10 if family == "modernbert" else 20)


@pytest.mark.parametrize(
    "family, objective", [("bert", "nsp"), ("albert", "sop"), ("bert", "full-sentences")]
)
def test_all_that_learns_takes_part_in_every_row(tmp_path, family, objective):
    name = make_checkpoint(tmp_path / family, family=family)
    pretrainer = load_pretrainer(name, sentence_objective=objective)
    ids, none = torch.full((14,), 5), torch.empty(0, dtype=torch.int64)
    columns = torch.arange(7).repeat(2)
    row = Row(ids, torch.zeros_like(ids), ids == 5, columns, [(2, 7)], [False])
    mlm_loss, _, sentence_loss, _ = pretrainer(row, none, none, none, none)
    (mlm_loss + sentence_loss).backward()
    assert (mlm_loss.item(), sentence_loss.item()) == (0.0, 0.0)
    for key, parameter in pretrainer.named_parameters():
        is_frozen = objective == "full-sentences" and ("pooler" in key or "seq_rel" in key)
        assert parameter.requires_grad != is_frozen, key
        assert is_frozen or not parameter.grad.any(), key  # there is one, and it is zero


def test_a_wrapped_step_exchanges_gradients_after_the_last_row(settings, encoder, tmp_path):
    pretrainer = load_pretrainer(encoder, sentence_objective="nsp")
    corpus = prepare(settings.paths.raw, tmp_path, wordpieces=pretrainer.bert.wordpieces, workers=1)
    data = Data(corpus, pretrainer.vocabulary(), settings, tmp_path / "plans")
    batch = data.held_out_batches(0)[0]
    calls = []

    class Wrapped(torch.nn.Module):
        alone = False

        def forward(self, *inputs):
            calls.append(self.alone)
            return pretrainer(*inputs)

        @contextmanager
        def no_sync(self):
            self.alone = True
            yield
            self.alone = False

    options = {"max_batch_tokens": 64, "autocast": torch.autocast("cpu", enabled=False)}
    sums = pretrainer.run(batch, scales=(1.0, 1.0), **options)
    gradients = [parameter.grad.clone() for parameter in pretrainer.parameters()]
    pretrainer.zero_grad()
    assert torch.equal(pretrainer.run(batch, scales=(1.0, 1.0), step=Wrapped(), **options), sums)
    assert len(calls) > 2 and calls == [True] * (len(calls) - 1) + [False]
    for parameter, expected in zip(pretrainer.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, expected)


def test_a_run_reports_and_its_folders_load(whole):
    lines = log(whole)
    assert [line["step"] for line in lines] == [0, 4, 8, 12]
    assert lines[0]["loss"] is None and lines[-1]["loss"] > 0
    assert lines[-1]["lr"] == 0.0
    assert all(0 <= line["held_out_nsp_accuracy"] <= 1 for line in lines)
    for name in ("model-best", "model-last"):
        _, info = BertForPreTraining.from_pretrained(whole / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        AutoModelForMaskedLM.from_pretrained(whole / name)
        assert load_checkpoint(str(whole / name)).encoder.pooler is not None


def test_a_run_learns(settings, tmp_path):
    training = replace(
        settings.training,
        max_steps=120,
        learn_rate=0.003,
        eval_frequency=60,
        checkpoint_frequency=120,
        phases=[Phase(32)],
    )
    pretrain(replace(settings, training=training), tmp_path / "out")
    # Of the fifteen words of the text each is about as frequent as another.
    assert log(tmp_path / "out")[-1]["held_out_mlm_loss"] < np.log(15) + 0.5


def test_what_the_checkpoint_lacks_learns_faster(settings):
    pretrainer = load_pretrainer(settings.paths.encoder, sentence_objective="nsp")
    assert "cls.predictions.transform.dense.weight" in pretrainer.made
    assert not any(name.startswith("bert.") for name in pretrainer.made)
    training = replace(settings.training, learn_rate=1e-3, rate_factor=7.0, weight_decay=0.0)
    optimizer = make_optimizer(pretrainer, training)
    before = {n: p.detach().clone() for n, p in pretrainer.model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] *= group["rate"]  # as `Run.learn` does
    for parameter in pretrainer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in pretrainer.model.named_parameters():
        # The first step of Adam is the rate, whatever the gradient's size.
        rate = 7e-3 if name in pretrainer.made else 1e-3
        expected = before[name] - rate
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=0)


def test_a_run_without_warm_up(settings, tmp_path):
    training = replace(settings.training, warmup_steps=0, max_steps=4)
    pretrain(replace(settings, training=training), tmp_path / "out")
    assert [line["lr"] for line in log(tmp_path / "out")] == [0.001, 0.0]


def test_what_is_left_out_is_said(settings, tmp_path):
    path = tmp_path / "raw.jsonl"
    lines = write_raw(path).read_text().splitlines()
    path.write_text("\n".join([*lines, '{"text": "One sentence."}', '{"body": "No text."}', "{"]))
    said: list[str] = []
    training = replace(settings.training, max_steps=1)
    paths = replace(settings.paths, raw=[str(path)])
    text = replace(settings.text, held_out=0.0)
    settings = replace(settings, training=training, paths=paths, text=text)
    pretrain(settings, tmp_path / "out", say=said.append)
    found = "\n".join(said)
    assert "Skipped: 2\n       1  no text\n       1  not JSON\n" in found
    assert f"read: 1 of the {len(lines) + 1} documents" in found


def test_the_best_checkpoint_is_of_the_last_phase(settings, tmp_path, monkeypatch):
    """Losses of sequences of other lengths can't be compared."""
    saved = []
    monkeypatch.setattr(Run, "save", lambda run, name: saved.append((name, run.step)))
    phases = [Phase(16, 0.5), Phase(64, 0.5)]
    training = replace(settings.training, learn_rate=0.0, phases=phases)
    pretrain(replace(settings, training=training), tmp_path / "out")
    losses = [line["held_out_mlm_loss"] for line in log(tmp_path / "out")]
    assert losses[0] == losses[1] < losses[2] == losses[3]
    assert saved == [("model-best", 0), ("model-best", 8), ("model-last", 12)]


# --- resuming


class Stop(Exception):
    pass


def run_until(settings, folder: Path, step: int, **options) -> list[str]:
    said: list[str] = []

    def stop(now: int) -> None:
        if now == step:
            raise Stop

    with pytest.raises(Stop):
        pretrain(settings, folder, on_step=stop, say=said.append, **options)
    return said


def assert_same_run(one: Path, other: Path) -> None:
    assert log(one) == log(other)
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


@pytest.mark.parametrize("step", [1, 3, 4, 5, 10])
def test_a_resumed_run_is_the_same(settings, whole, tmp_path, step):
    run_until(settings, tmp_path / "out", step)
    torch.manual_seed(99)  # another process has another state
    said: list[str] = []
    pretrain(settings, tmp_path / "out", resume=True, say=said.append)
    assert_same_run(whole, tmp_path / "out")
    assert any("starting anew" in line for line in said) == (step <= 3)


def test_resumed_again_and_again(settings, whole, tmp_path):
    for i, step in enumerate((2, 5, 7, 8, 11)):
        run_until(settings, tmp_path / "out", step, resume=i > 0)
    pretrain(settings, tmp_path / "out", resume=True)
    assert_same_run(whole, tmp_path / "out")


def test_a_damaged_state_is_passed_over(settings, whole, tmp_path):
    run_until(settings, tmp_path / "out", 8)
    newest = list_states(tmp_path / "out" / "states")[0] / "state.pt"
    assert newest.parent.name == "step-6"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    said: list[str] = []
    pretrain(settings, tmp_path / "out", resume=True, say=said.append)
    assert any("damaged" in line and "state before" in line for line in said)
    assert any("after step 3 of 12" in line for line in said)
    assert_same_run(whole, tmp_path / "out")


def test_another_config_is_refused(settings, tmp_path):
    run_until(settings, tmp_path / "out", 4)
    other = replace(settings, training=replace(settings.training, learn_rate=0.5))
    with pytest.raises(ValueError, match="training.learn_rate = 0.001; now it is 0.5"):
        pretrain(other, tmp_path / "out", resume=True)
    with pytest.raises(ValueError, match="--resume"):
        pretrain(settings, tmp_path / "out")
    # What is said and kept may change.
    logger = {"@loggers": "spacy.ConsoleLogger.v3", "console_output": False}
    check_same(
        asdict(settings), replace(settings, training=replace(settings.training, logger=logger))
    )


def test_a_full_disk(settings, tmp_path, monkeypatch):
    run_until(settings, tmp_path / "out", 4)
    states = tmp_path / "out" / "states"
    before = [path.name for path in states.iterdir()]

    def full(path, content):
        path.write_bytes(bytes(content[: len(content) // 2]))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_write", full)
    with pytest.raises(OSError, match="No space"):
        pretrain(settings, tmp_path / "out", resume=True)
    assert [path.name for path in states.iterdir()] == before
    assert load_state(states)[0]["step"] == 3


def test_the_last_states_are_kept(tmp_path):
    for step in (5, 10, 15, 100):
        save_state(tmp_path, step, {"step": step}, keep=2)
    assert [path.name for path in list_states(tmp_path)] == ["step-100", "step-15"]
    assert load_state(tmp_path) == ({"step": 100}, [])
    assert load_state(tmp_path / "none") == (None, [])


def test_killed_at_any_moment(settings, tmp_path):
    """kill -9, ten times in one run, wherever it is after its newest state."""
    training = replace(settings.training, max_steps=60, checkpoint_frequency=1, eval_frequency=20)
    settings = replace(settings, training=training)
    pretrain(settings, tmp_path / "whole")
    rng, out = random.Random(0), tmp_path / "out"
    for _ in range(10):
        before = list_states(out / "states")[:1]
        run = get_context("fork").Process(target=go_on, args=(settings, out))
        run.start()
        while list_states(out / "states")[:1] == before and run.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        run.kill()
        run.join()
        assert run.exitcode == -signal.SIGKILL  # neither at its end nor an error of its own
    go_on(settings, out)
    assert_same_run(tmp_path / "whole", out)


def go_on(settings: Settings, folder: Path) -> None:
    pretrain(settings, folder, resume=True)


# --- settings


def test_phases_by_step():
    phases = [Phase(128, 0.9), Phase(512, 0.1)]
    assert [phase_at(phases, step, 100) for step in (0, 89, 90, 99, 100)] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "line, message",
    [
        ("[training]\nsteps = 3", "Unknown setting 'steps' in \\[training\\]"),
        ("[training]\nmax_steps = 0", "training.max_steps is 0"),
        ("[training]\nmax_steps = 1.5", "training.max_steps must be int"),
        ("[training]\nwarmup_steps = -1", "training.warmup_steps is -1"),
        ('[objective]\nsentences = "x"', "objective.sentences is 'x'"),
        ("[masking]\nrate = 2", "masking.rate is 2.0"),
        ("[training]\nphases = []", "training.phases needs"),
        ("[other]\na = 1", "Unknown setting 'other'"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, line, message):
    path = tmp_path / "pretrain.cfg"
    path.write_text(f'[paths]\nraw = "a"\nencoder = "b"\n\n{line}\n')
    with pytest.raises(ValueError, match=message):
        read_settings(path, {})


def test_an_objective_that_the_family_has_no_head_for(tmp_path):
    name = make_checkpoint(tmp_path / "roberta", family="roberta")
    with pytest.raises(ValueError, match="full-sentences"):
        load_pretrainer(name, sentence_objective="nsp")
