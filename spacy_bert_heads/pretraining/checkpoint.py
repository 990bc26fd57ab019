"""The state of a run on disk: whole or not there, the last few kept."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

NAME = re.compile(r"step-(\d+)")


def save_state(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> None:
    """Save a state. It appears under its name in one step when all of it is on the disk; only then
    are older ones deleted.

    folder (Path): Where the run's states are.
    step (int): The step after which this is the state.
    state (Dict[str, Any]): Tensors, numbers, strings, and lists and dicts of them.
    keep (int): How many states to keep.
    RAISES (OSError): If the disk is full; the states before are then as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".writing-*"):
        shutil.rmtree(stale)
    writing = folder / f".writing-{step}"
    writing.mkdir()
    try:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        _write(writing / "state.pt", content)
        digest = hashlib.blake2b(content).hexdigest()
        _write(writing / "digest.json", json.dumps({"blake2b": digest}).encode("utf8"))
        _sync(writing)
        final = folder / f"step-{step}"
        if final.exists():  # of the same run, resumed from an older state
            shutil.rmtree(final)
        writing.rename(final)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    _sync(folder)
    for old in list_states(folder)[keep:]:
        shutil.rmtree(old)


def load_state(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Load the newest state that is whole.

    folder (Path): Where the run's states are.
    RETURNS (Tuple[Optional[Dict[str, Any]], List[str]]): The state, None if there is none, and what
        was wrong with newer ones.
    """
    faults = []
    for path in list_states(folder):
        try:
            content = (path / "state.pt").read_bytes()
            wanted = json.loads((path / "digest.json").read_bytes())["blake2b"]
        except (OSError, ValueError, KeyError) as error:
            faults.append(f"{path} is damaged ({error}).")
            continue
        if hashlib.blake2b(content).hexdigest() != wanted:
            faults.append(f"{path} is damaged: its content is not what was written.")
            continue
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu"), faults
    return None, faults


def list_states(folder: Path) -> list[Path]:
    """folder (Path): Where the run's states are.
    RETURNS (List[Path]): They, newest first.
    """
    steps = {
        path: int(match.group(1))
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := NAME.fullmatch(path.name))
    }
    return sorted(steps, key=lambda path: -steps[path])


def replace_folder(new: Path, target: Path) -> None:
    """Put a folder in the place of another. If that is interrupted, `mend_folder` ends it.

    new (Path): The folder, complete, on the same disk.
    target (Path): Where it goes.
    """
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def mend_folder(target: Path) -> None:
    """target (Path): A folder that `replace_folder` may have been interrupted at."""
    old = target.with_name(f".old-{target.name}")
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _write(path: Path, content: bytes | memoryview) -> None:
    with path.open("wb") as file_:
        file_.write(content)
        file_.flush()
        os.fsync(file_.fileno())


def _sync(folder: Path) -> None:
    """Have the folder's entries on the disk too, where the system can do that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
