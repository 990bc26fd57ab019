"""The state of a run on disk: whole or not there, the last few kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..files import DIGESTS, find_damage, write_digests

NAME = re.compile(r"step-(\d+)")
STATE = "state.pt"


def save_state(
    folder: Path,
    step: int,
    state: dict[str, Any],
    *,
    keep: int,
    write: Callable[[Path], None] | None = None,
) -> None:
    """Save the state after a step, of tensors, numbers, strings, and lists and dicts of them, and
    keep the newest `keep` ones. `write` puts what else belongs to it into its folder.

    It is written tensor by tensor, so it takes no memory beside them. It appears under its name in
    one step when all of it is on the disk; only then are older ones deleted. Raises OSError if the
    disk is full; the states before are then as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writing = folder / f".writing-{step}"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    try:
        if write is not None:
            write(writing)
        torch.save(state, writing / STATE)
        files = [path for path in writing.rglob("*") if path.is_file()]
        for path in files:
            _sync(path)
        write_digests(writing, [path.relative_to(writing).as_posix() for path in files])
        _sync(writing / DIGESTS)
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


def find_newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the newest state that is whole, None if there is none, and say what is wrong with newer
    ones."""
    faults: list[str] = []
    for path in list_states(folder):
        damage = find_damage(path)
        if damage is None:
            return path, faults
        faults.append(f"{damage[0]} is {damage[1]}.")
    return None, faults


def load_state(path: Path) -> dict[str, Any]:
    """Load a state. Its tensors are mapped: they are read from the disk where they are copied from,
    and take no memory until then."""
    return torch.load(path / STATE, weights_only=True, mmap=True, map_location="cpu")


def find_state(
    output: Path,
    settings: Mapping[str, Any],
    *,
    format: int,
    free: tuple[str, ...],
    say: Callable[[str], None],
) -> tuple[Path, dict[str, Any]] | None:
    """Find the newest training state that is whole in a run's folder, to go on from: where it is,
    and what is in it; None if there is none. `say` is told of damaged ones. `settings` and `free`
    are those of `check_same`, `format` is that of the states of this version.

    Raises ValueError if no state can be read, another version wrote it, or the settings differ.
    """
    states = output / "states"
    path, faults = find_newest(states)
    if path is None and faults:
        raise ValueError(
            f"No training state in {states} can be read. {' '.join(faults)} Copy them again, or "
            "give --force, without --resume, to start again."
        )
    for fault in faults:
        say(f"{fault} Going back to the state before.")
    if path is None:
        say(f"There is nothing to resume in {output}: starting anew.")
        return None
    state = load_state(path)
    if state.get("format") != format:
        raise ValueError(
            f"The run in {output} was begun by another version of this package. End it with that "
            "one, or start a new run in another folder that begins with its model-best."
        )
    check_same(state["settings"], settings, free)
    return path, state


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], free: tuple[str, ...]) -> None:
    """Check that a run is resumed with the settings that it began with. Raises ValueError if one
    differs whose dotted name doesn't begin with one of `free`."""
    old, new = flatten(before), flatten(now)
    for name in sorted(set(old) | set(new)):
        if not name.startswith(free) and old.get(name) != new.get(name):
            raise ValueError(
                f"The run began with {name} = {old.get(name)!r}; now it is {new.get(name)!r}. Put "
                "it back to resume, or start a new run in another folder."
            )


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def list_states(folder: Path) -> list[Path]:
    """List the states in a run's folder for them, newest first."""
    steps = {
        path: int(match.group(1))
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := NAME.fullmatch(path.name))
    }
    return sorted(steps, key=lambda path: -steps[path])


def replace_folder(new: Path, target: Path) -> None:
    """Put a folder, which is complete and on the same disk, in the place of another. If that is
    interrupted, `mend_folder` ends it."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def mend_folder(target: Path) -> None:
    """End what `replace_folder` may have been interrupted at."""
    old = target.with_name(f".old-{target.name}")
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(output: Path, num_processes: int) -> None:
    """Delete what a run that was killed was writing in its folder, and the plans of processes that
    there are no more."""
    for name in ("model-best", "model-last"):
        mend_folder(output / name)
    plans = {output / "plans" / str(rank) for rank in range(num_processes)}
    for pattern in (".new-*", ".*.new", "states/.writing-*", "plans/*"):
        for path in set(output.glob(pattern)) - plans:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _sync(path: Path) -> None:
    """Have a file, or the entries of a folder, on the disk, where the system can do that."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
