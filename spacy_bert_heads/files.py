"""Write files safely: atomic replacement, digests, marks of the folders that commands may fill."""

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
    """Add the path to an OSError of the block that lacks one (a full disk, a read-only folder)."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise


def replace_file(path: Path, content: bytes) -> None:
    """Write a file atomically, and create its folder if needed. A symbolic link is replaced, its
    target is not changed. Raises OSError with the path."""
    # The host is in the name, because several machines may write to a shared folder.
    written = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written.write_bytes(content)
        written.replace(path)
    except OSError as error:  # names the temporary path, or none
        written.unlink(missing_ok=True)
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        written.unlink(missing_ok=True)
        raise


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Create a folder and delete it after the block. Folders of this kind that killed processes of
    this machine have left in the same parent are deleted first."""
    prefix = f".temporary~{socket.gethostname()}~"
    for left in parent.glob(f"{prefix}*"):
        if not is_alive(int(left.name.removeprefix(prefix).partition("~")[0])):
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=f"{prefix}{os.getpid()}~", dir=parent) as made:
        yield Path(made)


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine exists; always True on Windows, where os.kill would
    end it."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        return True
    return True


@contextmanager
def in_component(component: str, path: Path | None = None) -> Iterator[None]:
    """Turn any exception while a component is loaded into a ValueError with its name and path."""
    try:
        yield
    except Exception as error:  # msgpack, json, safetensors and torch raise different classes
        where = "" if path is None else f" from '{path}'"
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        if "mismatched structure" in reason:  # thinc's
            reason = (
                "its config makes other layers than those that were saved. Leave the settings in "
                f"[components.{component}.model] as they were, such as combine and tok2vec, or "
                "train again with the new ones."
            )
        raise ValueError(f"Component '{component}' can't be loaded{where}: {reason}") from error


# --- digests of a saved component


def write_digests(folder: Path, files: Iterable[str]) -> None:
    """Write digests.json with the SHA-256 of a saved component's files into their folder."""
    digests = {name: sha256_of(folder / name) for name in sorted(files)}
    replace_file(folder / DIGESTS, json.dumps(digests, indent=1).encode("utf8"))


def find_damage(folder: Path, *, exclude: Iterable[str] = ()) -> tuple[Path, str] | None:
    """Compare the files of a folder with its digests.json. Returns the first file that is "missing"
    or "damaged", and which of the two; None if all are as they were. Files in `exclude` are not
    checked."""
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
    """Raise ValueError, with file and component, if a file of a saved component is missing or has
    changed. Files in `exclude` are not checked; nor are components without digests, which version
    0.1 saved."""
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
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- output folders of commands


def check_parents(path: Path) -> None:
    """Raise ValueError if a parent of the output path is a file."""
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{parent} is a file, so {path} can't be in it. Name another output.")


def read_mark(folder: Path) -> dict[str, Any]:
    """Return the notes of the command that has filled a folder; empty if none has."""
    try:
        mark = json.loads((folder / OUTPUT_MARK).read_bytes())
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def check_folder(folder: Path, command: str, *, force: bool = False) -> None:
    """Raise ValueError unless a command may fill a folder: one that does not exist, is empty except
    for hidden files, or was filled by the same command before. With `force` it may be any
    folder."""
    check_parents(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder. Name another output.")
    if force or not folder.exists() or read_mark(folder).get("command") == command:
        return
    held = next((path for path in folder.iterdir() if not path.name.startswith(".")), None)
    if held is not None:
        raise ValueError(
            f"{folder} was not made by `bert {command}` and contains '{held.name}'. Set an empty "
            "or new folder, or give --force to replace the files that the command writes there."
        )


def mark_folder(folder: Path, command: str, **notes: Any) -> None:
    """Mark a folder as filled by a command, with notes for its next run. The folder is created if
    needed. Raises OSError with the path."""
    mark = {"command": command, "version": __version__, **notes}
    replace_file(folder / OUTPUT_MARK, json.dumps(mark, indent=1).encode("utf8"))


@contextmanager
def fill_folder(folder: Path, command: str, *, force: bool = False) -> Iterator[Path]:
    """Fill the output folder of a command by way of a temporary folder. After the block its files
    and folders replace those with the same names; if the block fails, nothing is replaced. Raises
    ValueError as `check_folder` does."""
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
