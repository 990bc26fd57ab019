"""What this package writes to disk, and what it may delete there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import __version__

DIGESTS = "digests.json"
OUTPUT_MARK = ".spacy_bert_heads.json"
AGAIN = "Copy or download the pipeline again."


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Have an OSError from within (a full disk, a folder that is read-only) name the path."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that appears under its name when it is whole, and make its folder if need be.
    Where the name is a symbolic link, the link is replaced; what it points to is left alone. Raises
    OSError with the path."""
    # Machines may write to a common folder.
    written = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written.write_bytes(content)
        written.replace(path)
    except OSError as error:  # names the path that is not there for long, or none
        written.unlink(missing_ok=True)
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        written.unlink(missing_ok=True)
        raise


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for as long as the block lasts. Those that were left in the same parent by
    processes of this machine that were killed are deleted first."""
    prefix = f".temporary~{socket.gethostname()}~"
    for left in parent.glob(f"{prefix}*"):
        if not is_alive(int(left.name.removeprefix(prefix).partition("~")[0])):
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=f"{prefix}{os.getpid()}~", dir=parent) as made:
        yield Path(made)


def is_alive(pid: int) -> bool:
    """Return whether there is a process of this machine with a number."""
    if os.name != "posix":  # where os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


@contextmanager
def in_component(component: str, path: Path | None = None) -> Iterator[None]:
    """Have whatever is raised while a component is loaded say which, and from where."""
    try:
        yield
    except Exception as error:  # msgpack, json, safetensors and torch have their own each
        where = "" if path is None else f" from '{path}'"
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"Component '{component}' can't be loaded{where}: {reason}") from error


# --- digests of a saved component


def write_digests(folder: Path, files: Iterable[str]) -> None:
    """Store the sha256 of a saved component's files beside them, in digests.json."""
    digests = {name: sha256_of(folder / name) for name in sorted(files)}
    replace_file(folder / DIGESTS, json.dumps(digests, indent=1).encode("utf8"))


def find_damage(folder: Path, *, exclude: Iterable[str] = ()) -> tuple[Path, str] | None:
    """Compare the files of a folder with the digests stored beside them. Returns the first file
    that is "missing" or "damaged", and which of both; None if there is no such file. `exclude`
    names files that are not going to be read."""
    path = folder / DIGESTS
    try:
        digests = dict(json.loads(path.read_bytes()).items())
    except OSError:
        return path, "missing"
    except (ValueError, AttributeError):
        return path, "damaged"
    excluded = set(exclude)
    for name in (name for name in digests if name not in excluded):
        file = folder / name
        if not file.is_file():
            return file, "missing"
        if sha256_of(file) != digests[name]:
            return file, "damaged"
    return None


def check_digests(folder: Path, component: str, *, exclude: Iterable[str] = ()) -> None:
    """Compare the files of a saved component with the digests stored beside them. There are none
    where version 0.1 saved it; then nothing is checked.

    `exclude` names files that are not going to be loaded. Raises ValueError with the
    file and the component if a file is missing or has changed.
    """
    if not (folder / DIGESTS).exists():
        return
    damage = find_damage(folder, exclude=exclude)
    if damage is None:
        return
    file, state = damage
    message = f"'{file}' of component '{component}' is {state}"
    if state == "missing" or file.name == DIGESTS:
        raise ValueError(f"{message}. {AGAIN}")
    raise ValueError(
        f"{message}: it is not the file that was saved. {AGAIN} If you changed it on purpose, "
        f"delete {DIGESTS} beside it."
    )


def sha256_of(path: Path) -> str:
    """Digest a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- what a command writes


def check_parents(path: Path) -> None:
    """Raise ValueError if an output can't be where it is to be, since a file is in the way."""
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{parent} is a file, so {path} can't be in it. Name another output.")


def read_mark(folder: Path) -> dict[str, Any]:
    """Return what a command of ours noted in a folder that it filled, nothing if none did."""
    try:
        mark = json.loads((folder / OUTPUT_MARK).read_bytes())
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def check_folder(folder: Path, command: str, *, force: bool = False) -> None:
    """Make sure that a command may fill a folder: one that doesn't exist, is empty but for hidden
    files, or was filled by the same command before.

    Raises ValueError for any other folder, unless `force` is set, and for a file.
    """
    check_parents(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder. Name another output.")
    if force or not folder.exists() or read_mark(folder).get("command") == command:
        return
    held = next((path for path in folder.iterdir() if not path.name.startswith(".")), None)
    if held is not None:
        raise ValueError(
            f"{folder} was not made by `bert {command}` and holds '{held.name}', among others. "
            "Name an empty or new folder, or give --force to replace what the command writes there."
        )


def mark_folder(folder: Path, command: str, **notes: Any) -> None:
    """Make a folder if there is none, and mark it as filled by a command, with notes for the next
    run of the same command. Raises OSError with the path."""
    mark = {"command": command, "version": __version__, **notes}
    replace_file(folder / OUTPUT_MARK, json.dumps(mark, indent=1).encode("utf8"))


@contextmanager
def fill_folder(folder: Path, command: str, *, force: bool = False) -> Iterator[Path]:
    """Have a block write into a temporary folder. What it has written then replaces what has the
    same name in the folder of a command; if it fails, nothing is written there.

    Raises ValueError before, as `check_folder` does.
    """
    check_folder(folder, command, force=force)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent) as made:
        yield made
        mark_folder(folder, command)
        for path in made.iterdir():
            target = folder / path.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            path.replace(target)
