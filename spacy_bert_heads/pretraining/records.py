"""Read raw text: decompress the files of a source, split them into records, and read the text of a
record. Files are streamed, so memory doesn't grow with their size; only `.spacy` files are loaded
as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple

from spacy.tokens import DocBin
from spacy.vocab import Vocab
from tqdm import tqdm

from ..compression import decompress
from ..data.reader import DAMAGE
from ..data.records import check_text
from .layouts import read_lines, split_documents
from .sources import Reader, Source, list_sources
from .tables import NoColumn, read_table

CHUNK = 2**18  # bytes or characters; takes a worker a few tenths of a second
TABLES = ("csv", "parquet", "dataset")  # kinds of sources
OBJECTS = ("jsonl", "reader", *TABLES)  # kinds whose records are JSON objects


class Format(NamedTuple):
    """Hold how raw text is read."""

    layout: str = "auto"  # of text files, see layouts.py
    key: str = "text"  # of objects, and the column of tables


AUTO = Format()


class Record(NamedTuple):
    """Hold a candidate for a document."""

    where: str
    kind: str  # of the source, or the layout of a text file; "refused": content is the reason
    content: bytes


def read_texts(
    sources: Sequence[str | Path | Reader], format: Format = AUTO, *, progress: bool = False
) -> Iterator[str]:
    """Yield the texts of `sources`, in the order and by the rules of `prepare`, untokenized.

    Texts longer than `CHUNK` characters are yielded in parts. Records that `prepare` would report
    as skipped are skipped silently.

    Raises FileNotFoundError if a source doesn't exist, and ImportError if one needs a package that
    is not installed.
    """
    with TemporaryDirectory() as spool:
        found = list_sources(sources, Path(spool))
        for record in read_records(found, format, progress=progress):
            with suppress(ValueError):
                yield from cut(read_text(record, format.key), CHUNK)


def read_records(sources: Sequence[Source], format: Format, *, progress: bool) -> Iterator[Record]:
    """Yield the records of all sources, with a progress bar if there is a terminal."""
    size = sum(file.stat().st_size for source in sources for file in source.files)
    with tqdm(total=size, unit="B", unit_scale=True, disable=None if progress else True) as bar:
        for source in sources:
            yield from read_source(source, format, bar)


def read_source(source: Source, format: Format, bar: tqdm) -> Iterator[Record]:
    """Yield the records of a source up to its end or to the first damage; the last record then has
    the reason. The progress bar counts compressed bytes."""
    size = sum(file.stat().st_size for file in source.files)
    done = 0
    try:
        if source.kind in TABLES:
            for number, value in enumerate(read_table(source.path, source.kind, format.key), 1):
                content = json.dumps({format.key: value}).encode("utf8")
                yield Record(f"{source.name}:{number}", source.kind, content)
        else:
            with source.path.open("rb") as file_:
                for number, kind, content in read_stream(decompress(file_), source.kind, format):
                    yield Record(f"{source.name}:{number}", kind, content)
                    bar.update(file_.tell() - done)
                    done = file_.tell()
    except NoColumn as error:
        yield Record(source.name, "refused", str(error).encode("utf8"))
    except (*DAMAGE, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno
        ):  # an error of the disk, not of gzip or Parquet
            raise
        yield Record(source.name, "refused", f"damaged file: {error}".encode())
    bar.update(size - done)


def read_stream(
    stream: BinaryIO, kind: str | None, format: Format
) -> Iterator[tuple[int, str, bytes]]:
    """Split a decompressed file into records.

    `kind` is that of the source; if it is None, the first non-blank line decides between JSON Lines
    and text. Yields the number of the first line (for `.spacy`: of the Doc), the kind or layout,
    and the content.
    """
    if kind == "spacy":
        docs = DocBin().from_bytes(stream.read()).get_docs(Vocab())
        for number, doc in enumerate(docs, 1):
            yield number, kind, doc.text.encode("utf8")
        return
    lines = read_lines(stream)
    head = []
    for line in lines:  # up to the first non-blank line
        head.append(line)
        if line[1].strip():
            break
    kind = kind or ("jsonl" if head and holds_object(head[-1][1]) else "text")
    if kind == "jsonl" and head and head[-1][1].lstrip().startswith(b"["):
        yield head[-1][0], "refused", b"a JSON array, write one object per line: jq -c '.[]'"
        return
    all_lines = chain(head, lines)
    if kind == "text":
        yield from split_documents(all_lines, format.layout)
    else:
        for number, content in all_lines:
            yield number, kind, content


def holds_object(line: bytes) -> bool:
    """Check whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


# --- records to texts


def read_text(record: Record, key: str) -> str:
    """Return the text of a record. Raises ValueError with the reason if it has none."""
    if record.kind == "refused":
        raise ValueError(record.content.decode("utf8"))
    try:
        text = record.content.decode("utf8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    if record.kind not in OBJECTS:
        return check_text("text", text.replace("\r\n", "\n"))
    if not text.strip():
        raise ValueError("empty line")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object: {text.strip():.100}")
    key = "text" if record.kind == "reader" else key
    if key not in value:
        keys = ", ".join(list(value)[:10])
        raise ValueError(f"no '{key}': the keys are {keys}; set text.key to one of them")
    return check_text("text", value[key])


def cut(text: str, max_length: int) -> Iterator[str]:
    """Split a text into parts of at most `max_length` characters, at white space if the second half
    of a part has any, otherwise inside a word."""
    text = text.strip()
    while len(text) > max_length:
        middle = max_length // 2
        end = max(text.rfind(space, middle, max_length) for space in " \n\t")
        end = end if end > 0 else max_length
        yield text[:end]
        text = text[end:].lstrip()
    yield text
