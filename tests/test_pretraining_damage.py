"""Runs that go on after damage to their files, and what is put into their folder from outside."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st
from pretraining_runs import log, run_until, weights, write_raw

from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.settings import Settings, adam, check_config
from spacy_bert_heads.runs.states import list_states


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a raw text, prepared, a run that is at its end and the same run in between."""
    folder = tmp_path_factory.mktemp("damage")
    settings = make_settings(folder)
    write_raw(folder / "raw.jsonl")
    pretrain(settings, folder / "whole", say=quiet)
    run_until(settings, folder / "out", 5)
    return folder


def make_settings(folder: Path) -> Settings:
    return check_config(
        {
            "paths": {
                "raw": str(folder / "raw.jsonl"),
                "encoder": None,
                "cache": str(folder / "cache"),
            },
            "encoder": {"size": "tiny", "vocab_size": 80},
            "text": {"workers": 1, "held_out": 0.2},
            "training": {
                "max_steps": 6,
                "batch_tokens": 64,
                "eval_tokens": 64,
                "eval_frequency": 3,
                "checkpoint_frequency": 2,
                "phases": [{"max_length": 16, "share": 0.5}, {"max_length": 32, "share": 0.5}],
                "optimizer": adam(1e-3, warmup_steps=1),
            },
        }
    )


def quiet(text: str) -> None:
    pass


def files_of(folder: Path) -> list[Path]:
    parts = (folder / "out", folder / "cache")
    return sorted(path for part in parts for path in part.rglob("*") if path.is_file())


def harm(path: Path, how: str, where: float) -> None:
    content = bytearray(path.read_bytes())
    place = int(where * len(content))
    match how:
        case "flip" if content:
            content[place] ^= 1 << int(where * 1000) % 8
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[:place])
        case _:
            path.unlink()


@configure(max_examples=20, deadline=None, derandomize=True)
@given(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["flip", "flip", "cut", "delete"]),
    st.floats(0, 1, exclude_max=True),
)
def test_any_damage(whole, tmp_path_factory, which, how, where):
    """A run ends as if nothing had happened, or says which file is damaged."""
    folder = tmp_path_factory.mktemp("copy") / "all"
    shutil.copytree(whole, folder)
    files = files_of(folder)
    path = files[int(which * len(files))]
    harm(path, how, where)
    try:
        pretrain(make_settings(folder), folder / "out", resume=True, say=quiet)
    except ValueError as error:
        # A damaged digest looks like a damaged file.
        named = path.name in str(error) or path.name == "digests.json"
        assert folder / "cache" in path.parents and named, (path, error)
        return
    left, right = weights(folder / "out"), weights(whole / "whole")
    assert all(np.array_equal(left[key], right[key]) for key in right), path
    lines, expected = log(folder / "out"), log(whole / "whole")
    if path.name == "log.jsonl":
        # A changed digit is still valid JSON.
        assert len(lines) <= len(expected) and lines[-1] == expected[-1]
    else:
        assert lines == expected, path
    shutil.rmtree(folder)


def test_no_state_is_left(whole, tmp_path):
    """Starting anew would delete what can still be used by hand."""
    out = tmp_path / "out"
    shutil.copytree(whole / "out", out)
    for state in list_states(out / "states"):
        harm(state / "state.pt", "flip", 0.5)
    with pytest.raises(ValueError, match=r"step-4/state.pt is damaged. .*step-2/state.pt is dam"):
        pretrain(make_settings(whole), out, resume=True)
    assert len(list_states(out / "states")) == 2


def test_a_text_that_moved(whole, tmp_path):
    """Same bytes, another date and place."""
    settings = make_settings(whole)
    shutil.copytree(whole / "out", tmp_path / "out")
    moved = tmp_path / "moved.jsonl"
    shutil.copyfile(whole / "raw.jsonl", moved)
    os.utime(moved, (1, 1))
    before = list((whole / "cache").iterdir())
    settings = replace(settings, paths=replace(settings.paths, raw=[str(moved)]))
    pretrain(settings, tmp_path / "out", resume=True, say=quiet)
    assert log(tmp_path / "out") == log(whole / "whole")
    assert list((whole / "cache").iterdir()) == before
    moved.write_bytes(moved.read_bytes() + b'{"text": "One more."}\n')
    with pytest.raises(ValueError, match="The raw text or its tokenizer has changed"):
        pretrain(settings, tmp_path / "out", resume=True, say=quiet)


def test_leftovers_of_killed_runs(whole, tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"
    shutil.copytree(whole / "out", out)
    shutil.copytree(whole / "cache", cache)
    left = ["out/.new-model-best/a", "out/states/.writing-4/a", "out/.new-start/a"]
    host, gone = os.uname().nodename, 2**22 + 1  # no process has that number
    left += ["out/.log.jsonl.123.new", f"cache/.temporary~{host}~{gone}~a/b", "out/plans/1/a"]
    alive = cache / f".temporary~{host}~{os.getpid()}~a"
    others = cache / f".temporary~{host}2~{gone}~a"
    for name in [*left, alive / "a", others / "a"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    settings = make_settings(whole)
    settings = replace(settings, paths=replace(settings.paths, cache=str(cache)))
    pretrain(settings, out, resume=True, say=quiet)
    assert [name for name in left if (tmp_path / name).exists()] == []
    assert alive.exists() and others.exists()
    for folder in (out, whole / "whole"):
        plans = sorted(path.name for path in (folder / "plans" / "0").iterdir())
        assert plans == ["held-out-1-0", "train-1-0"]
