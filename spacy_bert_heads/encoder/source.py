"""The files of a checkpoint: in a folder, on the Hugging Face hub, or in memory.

All names of files that are opened are constants of this package, none is from a checkpoint. The
only exception are the shards in an index of weights, which are checked to be plain names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.json"
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
TOKENIZER = (
    "tokenizer.json",
    *TOKENIZER_SETTINGS,
    "added_tokens.json",
    # Vocabularies of checkpoints without tokenizer.json.
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
)


class Source:
    """The named files of one checkpoint.

    `name` is the user's name for it, for error messages. `revision` is the commit on the hub from
    which all files are read, None elsewhere. `find` returns the path of a file, its content if that
    is in memory, or None if there is no such file.
    """

    def __init__(
        self,
        name: str,
        find: Callable[[str], Path | bytes | None],
        *,
        revision: str | None = None,
    ) -> None:
        self.name, self.find, self.revision = name, find, revision

    def read(self, file: str) -> bytes | None:
        """Return the content of a file, or None if there is no such file."""
        found = self.find(file)
        return found.read_bytes() if isinstance(found, Path) else found

    def read_json(self, file: str) -> dict[str, Any] | None:
        """Return the object in a JSON file, or None if there is no such file. Raises ValueError if
        the file is not a JSON object."""
        content = self.read(file)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{file} contains a {type(value).__name__} instead of an object.")
        return value


def open_source(name: str, revision: str | None = None) -> Source:
    """Open a checkpoint by its folder or its name on the Hugging Face hub.

    `revision` is a branch, tag or commit; None takes the hub's newest commit, or without a network
    the newest one in the local cache. All files are from the same commit.

    Raises ValueError if there is no such folder, if the hub has no such name or can't be reached,
    or if a revision is given for a folder.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision = '{revision}' pins a checkpoint of the hub, but '{name}' is a folder. "
                "Remove revision, or set the name of the checkpoint on the hub."
            )
        return open_folder(folder, name)
    if folder.is_absolute() or name.startswith(".") or folder.exists():
        raise ValueError(f"There is no checkpoint folder '{name}'. Check the path.")
    try:
        return _open_hub(name, revision)
    except Exception as error:  # huggingface_hub and the network raise different classes
        raise ValueError(
            f"Can't read a checkpoint from the hub name, and no folder of that name, '{name}': "
            f"{error}\nA hub name needs access to the hub or its cache."
        ) from error


def open_folder(folder: Path, name: str | None = None) -> Source:
    """Open the files in a folder."""

    def find(file: str) -> Path | None:
        path = folder / file
        return path if path.is_file() else None

    return Source(str(folder) if name is None else name, find)


def open_files(files: Mapping[str, bytes], name: str) -> Source:
    """Open files that are in memory."""
    return Source(name, files.get)


def _open_hub(name: str, revision: str | None) -> Source:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def find(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, revision=commit))
        except LocalEntryNotFoundError:
            # Offline, a file that is not in the cache counts as missing. Online, it could not be
            # downloaded, and another file must not be used instead.
            if not constants.HF_HUB_OFFLINE:
                raise
            return None
        except EntryNotFoundError:
            return None

    commit = revision
    first = find(CONFIG) or find("tokenizer.json") or find("tokenizer_config.json")
    if first is None:
        where = "the local cache, and HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it"
        raise ValueError(f"there is no {CONFIG} in {where}.")
    commit = first.parent.name  # …/snapshots/<commit>/config.json
    return Source(name, find, revision=commit)
