"""Find the files of a source, and identify them by their content."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from glob import glob
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..compression import COMPRESSED
from .tables import check_package, find_dataset

KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".txt", ".text"), "text"),
    ".spacy": "spacy",
    ".parquet": "parquet",
    **dict.fromkeys((".csv", ".tsv"), "csv"),
}

# Yields raw texts, as strings or as {"text": …}; must yield the same texts at every call.
Reader = Callable[[], Iterable[str | dict[str, Any]]]


class Source(NamedTuple):
    """Represent a file to read, or the folder of a data set."""

    name: str  # as the user knows it
    path: Path
    kind: str | None  # a value of `KINDS`, "dataset", "reader", or None if unknown by the name
    digest: str = ""  # of its content, its kind and the extension of its compression

    @property
    def files(self) -> list[Path]:
        """Return the file, or the files of the folder."""
        return sorted(self.path.iterdir()) if self.path.is_dir() else [self.path]


def list_sources(sources: Sequence[str | Path | Reader], spool: Path) -> list[Source]:
    """Return the files to read, in order.

    Sources that can be read only once (standard input, pipes) and the texts of readers are first
    copied to the folder `spool`. All content is read to compute its digest, at about a gigabyte per
    second, because a path and a date don't identify the content. Raises FileNotFoundError if a
    source doesn't exist, and ImportError if one needs a package that is not installed.
    """
    found = []
    for number, source in enumerate(sources):
        copy = spool / str(number)
        if callable(source):
            name = getattr(source, "__qualname__", type(source).__qualname__)
            found.append(Source(name, _copy_texts(source, copy), "reader"))
        elif str(source) == "-":
            found.append(Source("standard input", _copy_stream(sys.stdin.buffer, copy), None))
        elif dataset := find_dataset(Path(source).expanduser()):
            found.append(Source(str(source), dataset, "dataset"))
        else:
            for path in list_files(source):
                if path.is_file():
                    found.append(Source(str(path), path, find_kind(path)))
                else:  # a pipe, such as <(command) of a shell
                    with path.open("rb") as stream:
                        copied = _copy_stream(stream, copy)
                    found.append(Source(str(path), copied, find_kind(path)))
    for one in found:
        check_package(one.name, one.kind)
        if one.path.suffix.lower() == ".zst":
            check_package(one.name, "zst")
    return [one._replace(digest=_digest(one)) for one in found]


def list_files(source: str | Path) -> list[Path]:
    """Return the files of a file name, folder or pattern, in reading order.

    Raises FileNotFoundError if there are none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        inside = (found for found in path.rglob("*") if found.is_file() and find_kind(found))
        files = sorted(
            found
            for found in inside
            if not any(part.startswith(".") for part in found.relative_to(path).parts)
        )
        if not files:
            raise FileNotFoundError(
                f"{source} has no files of raw text ({', '.join(KINDS)}, or these with "
                f"{' or '.join(COMPRESSED)}). For other names use a pattern: '{source}/*'."
            )
        return files
    if path.exists():
        return [path]
    files = sorted(found for found in map(Path, glob(str(path), recursive=True)) if found.is_file())
    if not files:
        raise FileNotFoundError(
            f"{source} does not exist. Pass a file, a folder, or a pattern such as "
            "'shards/*.jsonl.gz'."
        )
    return files


def find_kind(path: Path) -> str | None:
    """Return one of `KINDS` by the file's extension, None if it is unknown."""
    compressed = path.suffix.lower() in COMPRESSED
    return KINDS.get((Path(path.stem) if compressed else path).suffix.lower())


def _digest(source: Source) -> str:
    ending = source.path.suffix.lower()
    about = [source.kind, ending if ending in COMPRESSED else None]
    digest = blake2b(json.dumps(about).encode("utf8"), digest_size=12)
    for file in source.files:
        with file.open("rb") as stream:
            digest.update(file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def _copy_stream(stream: BinaryIO, path: Path) -> Path:
    with path.open("wb") as file_:
        shutil.copyfileobj(stream, file_)
    return path


def _copy_texts(reader: Reader, path: Path) -> Path:
    with path.open("w", encoding="utf8") as file_:
        for number, text in enumerate(reader()):
            record = {"text": text} if isinstance(text, str) else text
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise ValueError(
                    f"The reader of raw text yields {record!r:.80} as item {number}. It must yield "
                    'texts, as strings or as {"text": "…"}.'
                )
            file_.write(json.dumps({"text": record["text"]}) + "\n")
    return path
