"""Write the parts of a run as JSON Lines, Parquet or `.spacy`."""

from __future__ import annotations

import json
import math
import os
from base64 import b64encode
from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from spacy.tokens import Doc, DocBin

from ..data.records import is_utf8
from ..heads.find import pair_names
from .records import Columns
from .source import Document

INT64 = 2**63
ROW_GROUP = 2**26  # bytes of a part that are buffered before they are written to Parquet


class Row(NamedTuple):
    """Hold a document with its annotations, or with the error if it failed."""

    document: Document
    doc: Doc  # for a failed document: only its text, if there is one
    annotations: dict[str, Any] | None
    error: str | None


class Writer(Protocol):
    """Write the rows of a part."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows. Their Docs are not used afterwards."""

    def close(self) -> None:
        """Write the remaining rows and close the file."""


def check_format(name: str) -> None:
    """Raise ValueError for an unknown format, and ImportError if it needs a package that is not
    installed."""
    if name not in WRITERS:
        raise ValueError(f"There is no format '{name}'. Choose one of: {', '.join(WRITERS)}.")
    if name == "parquet" and find_spec("pyarrow") is None:
        raise ImportError("Parquet output needs pyarrow. Install it: pip install pyarrow")


def carried_names(names: Collection[str], columns: Columns) -> dict[str, str]:
    """Return the output names of all input columns. A column with the name of an annotation gets
    the prefix `input_`, as often as it takes until no other column has the name."""
    annotations = {*columns.labels, "error"}
    taken = annotations.union(names)
    carried = {}
    for name in names:
        new = name
        while name in annotations and new in taken:
            new = f"input_{new}"
        carried[name] = new
    return carried


class JsonlWriter:
    """Write one object per line: the input columns, then the annotations. Either `error` or the
    annotations are null."""

    def __init__(self, path: Path, columns: Columns, types: dict[str, str]) -> None:
        self.file, self.columns = path.open("wb"), columns

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            given = row.document.columns
            names = carried_names(given.keys(), self.columns)
            values = {names[name]: value for name, value in given.items()}
            values |= row.annotations or dict.fromkeys(self.columns.labels)
            values["error"] = row.error
            self.file.write(dump(values) + b"\n")

    def close(self) -> None:
        close(self.file)


def dump(values: Any) -> bytes:
    """Return JSON in UTF-8. Infinite numbers become null, bytes become Base64, other unknown types
    become strings; lone surrogates are escaped."""
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, default=_encode)
    except ValueError:
        text = json.dumps(_finite(values), ensure_ascii=False, default=_encode)
    if not is_utf8(text):
        text = json.dumps(_finite(values), default=_encode)
    return text.encode("utf8")


def _encode(value: Any) -> str:
    return b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def close(file_: Any) -> None:
    """Flush a file to the disk and close it, so that a later rename can't come first."""
    try:
        file_.flush()
        os.fsync(file_.fileno())
    finally:
        file_.close()


class ParquetWriter:
    """Write the input columns and the annotations. Columns from Parquet keep their types; the types
    of others are in `types`."""

    def __init__(self, path: Path, columns: Columns, types: dict[str, str]) -> None:
        self.file, self.columns, self.types = path.open("wb"), columns, types
        self.annotations = annotation_schema(columns)
        self.tables: list[Any] = []
        self.writer: Any = None

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow as pa

        for row in rows:
            self._check_labels(row)
        values = [
            (row.annotations or dict.fromkeys(self.columns.labels)) | {"error": row.error}
            for row in rows
        ]
        made = pa.Table.from_pylist(values, schema=self.annotations)
        carried = self._carried(rows)
        names = carried_names(carried.schema.names, self.columns)
        self.tables.append(
            pa.Table.from_arrays(
                [*carried.columns, *made.columns],
                schema=pa.schema(
                    [
                        *(one.with_name(names[one.name]) for one in carried.schema),
                        *self.annotations,
                    ]
                ),
            )
        )
        if sum(table.nbytes for table in self.tables) >= ROW_GROUP:
            self._flush()

    def _carried(self, rows: Sequence[Row]) -> Any:
        import pyarrow as pa

        if rows[0].document.carried is not None:
            return pa.concat_tables([row.document.carried for row in rows])
        schema = pa.schema([(name, _arrow_type(kind)) for name, kind in self.types.items()])
        values = [
            {
                name: _as_type(kind, row.document.columns.get(name))
                for name, kind in self.types.items()
            }
            for row in rows
        ]
        return pa.Table.from_pylist(values, schema=schema)

    def _check_labels(self, row: Row) -> None:
        # Arrow would drop the value silently.
        for name in ("categories", "numbers"):
            for label in (row.annotations or {}).get(name) or ():
                if label not in self.columns.labels[name]:
                    raise ValueError(
                        f"Parquet needs the labels of all {name} in advance, but no component "
                        f"lists '{label}' ({row.document.where}). Use --format jsonl."
                    )

    def _flush(self) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter as ArrowWriter

        table = pa.concat_tables(self.tables).combine_chunks()
        if self.writer is None:
            self.writer = ArrowWriter(self.file, table.schema, compression="zstd")
        self.writer.write_table(table)
        self.tables = []

    def close(self) -> None:
        try:
            if self.tables:
                self._flush()
            if self.writer is not None:
                self.writer.close()
        finally:
            close(self.file)


def annotation_schema(columns: Columns) -> Any:
    """Return the Arrow schema of the annotations."""
    import pyarrow as pa

    text, place, number = pa.string(), pa.int64(), pa.float32()

    def by_label(kind: str, value: Any = number) -> Any:
        return pa.struct([(label, value) for label in columns.labels[kind]])

    span = [("text", text), ("start", place), ("end", place), ("score", number)]
    makers: dict[str, Callable[[], Any]] = {
        "entities": lambda: pa.list_(
            pa.struct(
                [("start", place), ("end", place), ("label", text), ("text", text)]
                + [("score", number)]
            )
        ),
        "categories": lambda: by_label("categories"),
        "verdicts": lambda: pa.list_(
            pa.struct(
                [("hypothesis", text), ("label", text), ("score", number)]
                + [("scores", by_label("verdicts"))]
            )
        ),
        "answers": lambda: pa.list_(
            pa.struct(
                [("question", text), *span, ("no_answer_score", number)]
                + [("alternatives", pa.list_(pa.struct(span)))]
            )
        ),
        "similarities": lambda: pa.list_(
            pa.struct([("other", text), ("scores", by_label("similarities", pa.float64()))])
        ),
        "chosen": lambda: pa.list_(
            pa.struct(
                [("question", text), ("options", pa.list_(text)), ("answer", place), ("text", text)]
                + [("score", number), ("scores", pa.list_(number))]
            )
        ),
        "numbers": lambda: by_label("numbers", pa.float64()),
        "generated": pa.string,
        "review": pa.bool_,
        "tags": lambda: pa.list_(
            pa.struct([("start", place), ("end", place), ("tag", text), ("pos", text)])
        ),
    }
    return pa.schema([*((name, makers[name]()) for name in columns.labels), ("error", text)])


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    types = {"int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_(), "null": pa.null()}
    return types.get(kind, pa.string())


def _as_type(kind: str, value: Any) -> Any:
    if value is None or kind in ("int64", "bool", "null"):
        return value
    if kind == "double":
        return float(value)
    text = value if isinstance(value, str) else dump(value).decode("utf8")
    return text if is_utf8(text) else text.encode("utf8", "replace").decode("utf8")


class SpacyWriter:
    """Write a DocBin, with the input columns and the `error` of a failed document in
    `doc.user_data`. A whole part is in memory."""

    def __init__(self, path: Path, columns: Columns, types: dict[str, str]) -> None:
        self.file, self.columns = path.open("wb"), columns
        self.docs = DocBin(store_user_data=True)
        self.asked = set(pair_names())

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            names = carried_names(row.document.columns.keys(), self.columns)
            for name, value in row.document.columns.items():
                # The Doc already has the text and the second texts.
                if name not in self.asked and value is not row.document.text:
                    row.doc.user_data[names[name]] = to_plain(value)
            if row.error is not None:
                row.doc.user_data["error"] = row.error
            self.docs.add(row.doc)

    def close(self) -> None:
        try:
            self.file.write(self.docs.to_bytes())
        finally:
            close(self.file)


def to_plain(value: Any) -> Any:
    """Convert a value to one that `doc.user_data` can store."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -INT64 <= value < INT64 else str(value)
    if isinstance(value, str):
        return value if is_utf8(value) else value.encode("utf8", "replace").decode("utf8")
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    return _encode(value)


WRITERS: dict[str, Callable[[Path, Columns, dict[str, str]], Writer]] = {
    "jsonl": JsonlWriter,
    "parquet": ParquetWriter,
    "spacy": SpacyWriter,
}
