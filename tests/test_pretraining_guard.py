"""What stops a run: another run in its folder, signals, numbers that are not finite."""

import json
import os
import signal
import socket
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import typer
from checkpoints import make_checkpoint
from pretraining_runs import log, make_settings, run_until, weights
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.cli.common import exits_on_error
from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.run import Run
from spacy_bert_heads.pretraining.settings import Settings, adam
from spacy_bert_heads.runs.guard import Signals, lock_folder
from spacy_bert_heads.runs.states import list_states


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    folder = tmp_path_factory.mktemp("settings")
    return make_settings(folder, make_checkpoint(folder / "bert", dropout=0.1))


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    pretrain(settings, folder)
    return folder


# --- locks


def hold(folder: Path, connection) -> None:
    with lock_folder(folder):
        connection.send(os.getpid())
        connection.recv()


def test_one_run_at_a_time(settings, tmp_path):
    out = tmp_path / "out"
    here, there = get_context("fork").Pipe()
    other = get_context("fork").Process(target=hold, args=(out, there))
    other.start()
    pid = here.recv()
    with pytest.raises(
        BlockingIOError, match=rf"in use by another run \(process {pid} on {socket.gethostname()}\)"
    ):
        pretrain(settings, out, resume=True)
    assert [path.name for path in out.iterdir()] == [".lock"]
    other.kill()  # what holds the lock is the process, not the file
    other.join()
    with lock_folder(out):
        assert json.loads((out / ".lock").read_bytes())["pid"] == os.getpid()


def test_a_foreign_folder_gets_no_lock(settings, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="was not made by `bert pretrain`"):
        pretrain(settings, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- signals


@pytest.mark.parametrize(
    "number, error, code",
    [(signal.SIGTERM, SystemExit, 143), (signal.SIGINT, KeyboardInterrupt, 130)],
)
def test_a_signal_ends_a_run_after_its_step(settings, whole, tmp_path, number, error, code):
    out, said = tmp_path / "out", []

    def send(step: int) -> None:
        if step == 7:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(error) as raised:
        pretrain(settings, out, on_step=send, say=said.append)
    assert signal.getsignal(number) is before
    # It arrived between two steps. The next one, which was under way, is the last, with its report.
    assert said[-1] == "Stopped after step 8; the training state is saved. Continue with --resume."
    assert list_states(out / "states")[0].name == "step-8"
    assert [line["step"] for line in log(out)] == [0, 4, 8]
    pretrain(settings, out, resume=True)
    assert log(out) == log(whole)
    left, right = weights(out), weights(whole)
    assert all(torch.equal(left[key], right[key]) for key in right)

    def end() -> None:
        raise raised.value

    app = typer.Typer()
    app.command()(exits_on_error(end))
    assert CliRunner().invoke(app).exit_code == code


def test_a_second_interrupt_does_not_wait():
    with pytest.raises(KeyboardInterrupt), Signals(alone=True) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    with Signals(alone=False) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT


# --- numbers that are not finite


def test_a_run_that_diverges(settings, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_until(settings, out, 7)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    learn = Run.learn

    def overflow(run: Run, batch, **options):
        if run.step == 8:
            run.pretrainer.model.bert.embeddings.word_embeddings.weight.data.fill_(torch.inf)
        return learn(run, batch, **options)

    monkeypatch.setattr(Run, "learn", overflow)
    with pytest.raises(FloatingPointError) as raised:
        pretrain(settings, out, resume=True)
    text = str(raised.value)
    assert text.startswith("The gradient of step 8 is nan: the run has diverged. The loss is nan, ")
    assert "the learning rate 0.0004" in text and "good training state is" in text
    assert str(out / "states" / "step-6") in text
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert changed <= {".lock", ".spacy_bert_heads.json", "log.jsonl"}
    assert all(line["step"] <= 4 for line in log(out))


def test_weights_that_are_not_finite_are_not_saved(settings, tmp_path):
    """Gradients are finite, the step isn't."""
    optimizer = {**adam(grad_clip=0.0), "learn_rate": 1e38}
    training = replace(settings.training, optimizer=optimizer, checkpoint_frequency=1, max_steps=1)
    with pytest.raises(FloatingPointError, match="of step 1 is .*good training state is none"):
        pretrain(replace(settings, training=training), tmp_path / "out")
    assert not (tmp_path / "out" / "states").exists()


def test_the_command_ends_with_1(settings, tmp_path):
    config = Path(settings.paths.raw[0]).with_name("pretrain.cfg")
    rate = ["--training.optimizer.learn_rate.initial_rate", "1e38"]
    options = [*rate, "--training.optimizer.grad_clip", "0.0"]
    result = CliRunner().invoke(bert_app, ["pretrain", str(config), str(tmp_path / "o"), *options])
    assert result.exit_code == 1 and "the run has diverged" in result.output
