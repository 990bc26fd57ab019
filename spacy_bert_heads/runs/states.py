"""Training states on disk: written atomically, the last few are kept."""

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
MODELS = ("model-best", "model-last")  # folders of a run
STATE = "state.pt"


def save_state(
    folder: Path,
    step: int,
    state: dict[str, Any],
    *,
    keep: int,
    write: Callable[[Path], None] | None = None,
) -> None:
    """Save the training state after a step, and delete all but the newest `keep` states. It is made
    of tensors, numbers, strings, lists and dicts; `write` adds other files to its folder.

    It is written tensor by tensor, without a copy in memory. The folder is renamed to its final
    name when all of it is on the disk; only then are older states deleted. Raises OSError if the
    disk is full; older states are not changed then.
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
        if final.exists():  # from the same run, which was resumed from an older state
            shutil.rmtree(final)
        writing.rename(final)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    _sync(folder)
    for old in list_states(folder)[keep:]:
        shutil.rmtree(old)


def find_newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged state, None if there is none, and what is wrong with newer
    ones."""
    faults: list[str] = []
    for path in list_states(folder):
        damage = find_damage(path)
        if damage is None:
            return path, faults
        faults.append(f"{damage[0]} is {damage[1]}.")
    return None, faults


def load_state(path: Path) -> dict[str, Any]:
    """Load a state. Its tensors are memory-mapped: they are read when they are copied, and take no
    memory until then."""
    return torch.load(path / STATE, weights_only=True, mmap=True, map_location="cpu")


def find_state(
    output: Path,
    settings: Mapping[str, Any],
    *,
    format: int,
    free: tuple[str, ...],
    say: Callable[[str], None],
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Path, dict[str, Any]] | None:
    """Return the path and the content of the newest undamaged training state in a run's folder;
    None if there is no state.

    `say` reports damaged ones. `settings` and `free` are those of `check_same`; `defaults` has the
    settings that the run may not know yet; `format` is the present version of the format. Raises
    ValueError if no state can be read, another version wrote it, or the settings differ.
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
        say(f"There is nothing to resume in {output}: starting a new run.")
        return None
    state = load_state(path)
    if state.get("format") != format:
        raise ValueError(
            f"The run in {output} was started by another version of this package. Finish it with "
            "that version, or start a new run in another folder from its model-best."
        )
    known = {k: v for k, v in flatten(defaults or {}).items() if k in flatten(settings)}
    check_same(known | flatten(state["settings"]), settings, free)
    return path, state


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], free: tuple[str, ...]) -> None:
    """Check that a run is resumed with the settings that it began with. Raises ValueError if one
    differs whose dotted name doesn't begin with one of `free`."""
    old, new = flatten(before), flatten(now)
    for name in sorted(set(old) | set(new)):
        if not name.startswith(free) and old.get(name) != new.get(name):
            raise ValueError(
                f"The run began with {name} = {old.get(name)!r}; now it is {new.get(name)!r}. "
                "Restore it to resume, or start a new run in another folder."
            )


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def list_states(folder: Path) -> list[Path]:
    """List the states in the folder `states` of a run, newest first."""
    steps = {
        path: int(match.group(1))
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := NAME.fullmatch(path.name))
    }
    return sorted(steps, key=lambda path: -steps[path])


def replace_folder(new: Path, target: Path) -> None:
    """Replace a folder by a complete one on the same disk. `finish_replacing` repairs an
    interrupted call."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def finish_replacing(target: Path) -> None:
    """Finish a call of `replace_folder` that was interrupted."""
    old = target.with_name(f".old-{target.name}")
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(output: Path, num_processes: int) -> None:
    """Delete incomplete files of a run that was killed, and the plans of processes that no longer
    exist."""
    for name in MODELS:
        finish_replacing(output / name)
    plans = {output / "plans" / str(rank) for rank in range(num_processes)}
    for pattern in (".new-*", ".*.new", "states/.writing-*", "plans/*"):
        for path in set(output.glob(pattern)) - plans:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk, if the system supports it."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
