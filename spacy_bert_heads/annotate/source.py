"""Stream the documents of a corpus from its files, starting at any row.

Memory doesn't grow with the size of a file, except for `.spacy`, which is loaded as a whole. A row
that can't be read becomes a document with an error, so that no row is lost and the order is kept.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, NamedTuple, TypeVar

from spacy.tokens import Doc, DocBin
from spacy.vocab import Vocab

from ..compression import COMPRESSED, decompress
from ..data.columns import find_column, list_columns
from ..data.files import check_not_utf16
from ..data.reader import DAMAGE
from ..data.records import Rejected, parse_json
from ..data.tables import read_csv
from ..files import naming
from ..heads.find import pair_names
from ..pretraining.sources import KINDS, find_kind, list_files
from ..pretraining.tables import check_package
from ..text.doc_data import ENT_SCORES
from ..text.user_data import copy_of_list

T = TypeVar("T")

MAX_LINE = 2**26  # bytes; a longer line is not loaded into memory
PARQUET_ROWS = 256  # decoded together
TEXT = "text"  # the column of formats without columns


class Document(NamedTuple):
    """Hold a row of a file: its columns and its unchecked text, or the error."""

    where: str
    columns: dict[str, Any]
    text: Any = None
    error: str | None = None
    carried: Any = None  # the row as an Arrow table, from Parquet to Parquet


class SourceFile(NamedTuple):
    """Represent a file of a corpus. `name` is its path in the corpus, the same on every machine."""

    name: str
    path: Path
    kind: str

    @property
    def has_offsets(self) -> bool:
        """Return whether reading can start at any byte."""
        return self.kind in ("jsonl", "text") and self.path.suffix.lower() not in COMPRESSED


def list_source(source: str | Path, output: Path | None = None) -> list[SourceFile]:
    """Return the files of a corpus in order: one file, those of a folder, or those that match a
    pattern. Files in the output folder, if there is one, are excluded.

    Raises FileNotFoundError if there are none, ValueError if a file has an unknown extension, is
    UTF-16 or a JSON array, and ImportError if it needs a package that is not installed.
    """
    excluded = None if output is None else output.absolute()
    paths = [path.absolute() for path in list_files(source)]
    paths = [path for path in paths if excluded not in path.parents]
    if not paths:
        raise FileNotFoundError(f"{source} has only files of the output folder. Pass other files.")
    base = os.path.commonpath([path.parent for path in paths])
    files = []
    for path in paths:
        kind = find_kind(path)
        if kind is None:
            raise ValueError(
                f"The extension of {path} is unknown. Rename it to one of {', '.join(KINDS)}, or "
                f"to one of these with {' or '.join(COMPRESSED)}."
            )
        check_package(str(path), kind)
        if path.suffix.lower() == ".zst":
            check_package(str(path), "zst")
        files.append(SourceFile(path.relative_to(base).as_posix(), path, kind))
        check_start(files[-1])
    return files


def find_text(file: SourceFile, columns: list[str], text_column: str) -> str:
    """Return the text column: the one with the given name, or if `text` is missing, one with a
    common name. Raises ValueError if there is none."""
    found = find_column(columns, "text", text_column)
    if found is None:
        raise ValueError(
            f"{file.path} has no column '{text_column}': {list_columns(columns)}. Set the text "
            "column with --text-column."
        )
    return found


# --- lines


def read_lines(
    stream: BinaryIO, update: Callable[[bytes], object] | None = None
) -> Iterator[tuple[int, bytes | None]]:
    """Yield the size in bytes and the content of each line; the content is None for a line longer
    than `MAX_LINE`. `update` is called with everything that is read."""
    while line := stream.readline(MAX_LINE):
        size, whole = len(line), line.endswith(b"\n") or len(line) < MAX_LINE
        if update is not None:
            update(line)
        while not whole and (part := stream.readline(MAX_LINE)):
            size, whole = size + len(part), part.endswith(b"\n")
            line = b""
            if update is not None:
                update(part)
        yield size, line or None


def is_document(kind: str, line: bytes | None) -> bool:
    """Return whether a line is a document: every line of a text file, every non-blank line of JSON
    Lines."""
    return kind == "text" or line is None or not line.isspace()


def read_line(file: SourceFile, number: int, line: bytes | None, text_column: str) -> Document:
    """Create a document from a line with this number, counted from 0."""
    where = f"{file.name}:{number + 1}"
    columns: dict[str, Any] = {"id": where} if file.kind == "text" else {}
    if line is None:
        error = f"too long: a line of more than {MAX_LINE >> 20} MiB, split it ({where})"
        return Document(where, columns, error=error)
    if number == 0:
        line = line.removeprefix(codecs.BOM_UTF8)
    if file.kind == "text":
        # Invalid UTF-8 becomes surrogates, which are detected later.
        text = line.rstrip(b"\r\n").decode("utf8", "surrogateescape")
        return Document(where, columns | {TEXT: text}, text)
    try:
        row = parse_json(line.decode("utf8"))
    except UnicodeDecodeError:
        return Document(where, columns, error=f"not UTF-8: the line ({where})")
    except ValueError as error:
        return Document(where, columns, error=f"{error} ({where})")
    if not isinstance(row, dict):
        kind = type(row).__name__
        return Document(where, columns, error=f"not a JSON object: {kind} ({where})")
    return Document(where, row, row.get(text_column))


def check_start(file: SourceFile) -> None:
    """Raise ValueError if a file of lines is UTF-16, or if a JSON array is given as JSON Lines."""
    if file.kind not in ("jsonl", "text"):
        return
    with file.path.open("rb") as opened, decompress(opened) as stream:
        blocks = checked(file, iter(partial(stream.read, 4096), b""))
        start = next(blocks, b"")
        try:
            check_not_utf16(start)
        except ValueError as error:
            raise ValueError(f"{file.path} can't be read: {error}") from None
        start = start.removeprefix(codecs.BOM_UTF8).lstrip()
        while not start and (block := next(blocks, b"")):
            start = block.lstrip()
    if file.kind == "jsonl" and start.startswith(b"["):
        show = {".gz": "gzip -dc", ".zst": "zstd -dc"}.get(file.path.suffix.lower(), "cat")
        raise ValueError(
            f"{file.path} is a JSON array, but each line must be one object. Convert it: {show} "
            f"{quote(str(file.path))} | jq -c '.[]' > lines.jsonl"
        )


# --- files


def read_documents(
    file: SourceFile,
    text_column: str,
    *,
    first: int = 0,
    offset: int | None = None,
    carry: bool = False,
) -> Iterator[Document]:
    """Yield the documents of a file from number `first` (counted from 0).

    `offset` is the byte at which this document starts, if it is known. `carry` keeps rows of
    Parquet as Arrow tables, and decodes only the columns that the pipeline needs.

    Raises ValueError if the file is damaged; a single row that can't be read is a document with an
    error.
    """
    if file.kind == "parquet":
        documents = _read_parquet(file, text_column, first, carry)
    elif file.kind == "spacy":
        documents = islice(_read_docs(file), first, None)
    elif file.kind == "csv":
        documents = islice(read_rows(file, text_column), first, None)
    else:
        documents = _read_text(file, text_column, first, offset)
    return checked(file, documents)


def checked(file: SourceFile, rows: Iterator[T]) -> Iterator[T]:
    """Yield the rows of a file. Raises ValueError with its name if it is damaged."""
    try:
        yield from rows
    except DAMAGE as error:
        raise ValueError(f"{file.path} is damaged: {error}") from error
    except OSError as error:
        if error.errno is None:  # gzip's
            raise ValueError(f"{file.path} is damaged: {error}") from error
        with naming(file.path):
            raise


def _read_text(
    file: SourceFile, text_column: str, first: int, offset: int | None
) -> Iterator[Document]:
    with file.path.open("rb") as opened:
        number = 0
        if offset is not None:
            opened.seek(offset)
            number = first
        with decompress(opened) as stream:
            for _, line in read_lines(stream):
                if is_document(file.kind, line):
                    if number >= first:
                        yield read_line(file, number, line, text_column)
                    number += 1


def read_rows(file: SourceFile, text_column: str) -> Iterator[Document]:
    """Yield a document for each row of a CSV file."""
    for row in read_csv(file.path):
        where = f"{file.name}{row.where}"
        if isinstance(row, Rejected):
            yield Document(where, {}, error=f"{row.reason} ({where})")
        else:
            yield Document(where, row.cells, row.cells.get(text_column))


def _read_docs(file: SourceFile) -> Iterator[Document]:
    for number, (text, columns) in enumerate(read_docbin(file)):
        yield Document(f"{file.name}:{number + 1}", columns, text)


def read_docbin(file: SourceFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the text of each Doc of a `.spacy` file with its columns: the text, the second texts,
    and the contents of `doc.user_data` and `doc._` except annotations of this package."""
    with file.path.open("rb") as opened, decompress(opened) as stream:
        docs = DocBin().from_bytes(stream.read())
    for doc in docs.get_docs(Vocab()):
        text = doc.text
        yield text, {TEXT: text, **_values(doc)}


def _values(doc: Doc) -> dict[str, Any]:
    left_out = {ENT_SCORES, *pair_names(), *pair_names().values()}
    values = {name: asked for name in pair_names() if (asked := copy_of_list(name, doc))}
    for key, value in (doc.user_data or {}).items():
        if isinstance(key, tuple) and len(key) == 4 and key[0] == "._." and key[2] is None:
            key = key[1]
        if not isinstance(key, str) or key in left_out:
            continue
        try:
            values[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue  # an object of another component
    return values


def open_parquet(file: SourceFile) -> Any:
    """Open a Parquet file to read it in parts. Raises ValueError if it is damaged."""
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        # Without a buffer, a whole row group would be read at once.
        return ParquetFile(file.path, buffer_size=2**20, pre_buffer=False)
    except ArrowInvalid as error:
        raise ValueError(f"{file.path} can't be read: {error}") from error


def _read_parquet(
    file: SourceFile, text_column: str, first: int, carry: bool
) -> Iterator[Document]:
    import pyarrow as pa

    with open_parquet(file) as table:
        sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        skipped, number = 0, 0
        while skipped < len(sizes) and number + sizes[skipped] <= first:
            number += sizes[skipped]
            skipped += 1
        groups = list(range(skipped, len(sizes)))
        needed = [name for name in table.schema_arrow.names if name in {text_column, *pair_names()}]
        for batch in table.iter_batches(PARQUET_ROWS, row_groups=groups):
            start = max(first - number, 0)
            part = batch.slice(start)
            plain = part.select(needed) if carry else _without_times(part)
            for i, columns in enumerate(plain.to_pylist()):
                where = f"{file.name}:{number + start + i + 1}"
                carried = pa.Table.from_batches([part.slice(i, 1)]) if carry else None
                yield Document(where, columns, columns.get(text_column), carried=carried)
            number += len(batch)


def _without_times(batch: Any) -> Any:
    """Convert times and decimals to strings, because JSON has neither."""
    import pyarrow as pa

    kinds = (pa.types.is_date, pa.types.is_time, pa.types.is_timestamp, pa.types.is_decimal)
    columns = [
        column.cast(pa.string()) if any(is_kind(column.type) for is_kind in kinds) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
