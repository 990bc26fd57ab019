"""A resumed run next to one without a break; training states on disk."""

import errno
import random
import signal
import time
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from pretraining_runs import log, make_settings, run_until, weights, write_raw

from spacy_bert_heads.pretraining.loop import FREE, pretrain
from spacy_bert_heads.pretraining.settings import Settings, adam
from spacy_bert_heads.runs import states as states_module
from spacy_bert_heads.runs.states import (
    check_same,
    find_newest,
    list_states,
    load_state,
    save_state,
)


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
    assert any("starting a new run" in line for line in said) == (step <= 3)


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
    optimizer = adam(0.5, warmup_steps=2)
    other = replace(settings, training=replace(settings.training, optimizer=optimizer))
    with pytest.raises(ValueError, match="learn_rate.initial_rate = 0.001; now it is 0.5"):
        pretrain(other, tmp_path / "out", resume=True)
    with pytest.raises(ValueError, match="--resume"):
        pretrain(settings, tmp_path / "out")
    # What is said and kept may change.
    logger = {"@loggers": "spacy.ConsoleLogger.v3", "console_output": False}
    other = replace(settings, training=replace(settings.training, logger=logger))
    check_same(asdict(settings), asdict(other), FREE)


def test_a_run_of_an_earlier_version_does_not_know_new_settings(settings, whole, tmp_path):
    run_until(settings, tmp_path / "out", 4)
    states = tmp_path / "out" / "states"
    path, _ = find_newest(states)
    state = torch.load(path / "state.pt", weights_only=True)
    del state["settings"]["masking"]["max_ngram"], state["settings"]["denoising"]
    save_state(states, 4, state, keep=1)
    other = replace(settings, masking=replace(settings.masking, max_ngram=3))
    with pytest.raises(ValueError, match="max_ngram = 1; now it is 3"):
        pretrain(other, tmp_path / "out", resume=True)
    pretrain(settings, tmp_path / "out", resume=True)
    assert log(tmp_path / "out")[-1]["step"] == 12


def test_held_out_text_may_be_moved(settings, tmp_path):
    here, there = (tmp_path / name / "held_out.jsonl" for name in ("here", "there"))
    here.parent.mkdir()
    settings = replace(settings, paths=replace(settings.paths, held_out=[str(write_raw(here))]))
    run_until(settings, tmp_path / "out", 4)
    here.parent.rename(there.parent)
    moved = replace(settings, paths=replace(settings.paths, held_out=[str(there)]))
    pretrain(moved, tmp_path / "out", resume=True)
    there.write_text(there.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="raw text or its tokenizer has changed"):
        pretrain(moved, tmp_path / "out", resume=True)


def test_a_full_disk(settings, tmp_path, monkeypatch):
    run_until(settings, tmp_path / "out", 4)
    states = tmp_path / "out" / "states"
    before = [path.name for path in states.iterdir()]

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(states_module.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        pretrain(settings, tmp_path / "out", resume=True)
    assert [path.name for path in states.iterdir()] == before
    newest, _ = find_newest(states)
    assert newest is not None and load_state(newest)["step"] == 3


def test_the_last_states_are_kept(tmp_path):
    for step in (5, 10, 15, 100):
        save_state(tmp_path, step, {"step": step}, keep=2)
    assert [path.name for path in list_states(tmp_path)] == ["step-100", "step-15"]
    assert find_newest(tmp_path) == (tmp_path / "step-100", [])
    assert load_state(tmp_path / "step-100") == {"step": 100}
    assert find_newest(tmp_path / "none") == (None, [])


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
