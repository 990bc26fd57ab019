"""Where the files of a checkpoint are: in a folder, on the Hugging Face hub, or in memory.

A file is opened by a name that stands in this package, never by one that a checkpoint gives. The
one exception are the shards that an index of weights lists, which are plain names, checked first.
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

    `name` is what the user wrote, for messages. `revision` is the commit on the hub that all files
    are read from, None elsewhere. `find` gives the path of a file, or its content if that is in
    memory, or None if there is no such file.
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
        """Return the object in a JSON file, or None if there is no such file.

        Raises ValueError if the file holds anything else than a JSON object.
        """
        content = self.read(file)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{file} holds a {type(value).__name__} instead of an object.")
        return value


def open_source(name: str, revision: str | None = None) -> Source:
    """Open a checkpoint by its folder or its name on the Hugging Face hub.

    Without a `revision` (a branch, tag or commit) the hub's newest commit is taken, or the newest
    one in the local cache if there is no network. All files come from the same commit.

    Raises ValueError if there is no such folder, if the hub has no such name or can't be reached,
    and if a revision is given for a folder.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision = '{revision}' pins a checkpoint of the hub, but '{name}' is a folder. "
                "Leave revision out, or name the checkpoint as on the hub."
            )
        return open_folder(folder, name)
    if folder.is_absolute() or name.startswith(".") or folder.exists():
        raise ValueError(f"There is no checkpoint folder '{name}'. Check the path.")
    try:
        return _open_hub(name, revision)
    except Exception as error:  # huggingface_hub and the network have their own each
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
            # Without a network, what is not in the cache counts as missing; with one, it could not
            # be fetched, and another file must not take its place.
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
