"""The files of a run: JSON Lines, Parquet or `.spacy`, a file for each part."""

from __future__ import annotations

import json
import math
import os
from base64 import b64encode
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from spacy.tokens import Doc, DocBin

from ..data.records import is_utf8
from ..heads.find import pair_names
from .records import Columns
from .source import Document

INT64 = 2**63
ROW_GROUP = 2**26  # bytes of a part that are held in memory before they are written to Parquet


class Row(NamedTuple):
    """A document with its annotations; without, and with the reason, if it failed."""

    document: Document
    doc: Doc  # of a document that failed the text alone, as far as there is one
    annotations: dict[str, Any] | None
    error: str | None


class Writer(Protocol):
    """Writes the rows of a part."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows. Their Docs are not used afterwards."""

    def close(self) -> None:
        """Write what is left."""


def check_format(name: str) -> None:
    """Raise ValueError if there is no such format, and ImportError if it needs a package that is
    not installed."""
    if name not in WRITERS:
        raise ValueError(f"There is no format '{name}'. Choose one of: {', '.join(WRITERS)}.")
    if name == "parquet" and find_spec("pyarrow") is None:
        raise ImportError("Parquet can't be written without pyarrow: pip install pyarrow")


def carried_name(name: str, columns: Columns) -> str:
    """Name a column of the input in the output: an annotation's name has `input_` before it."""
    return f"input_{name}" if name in columns.labels or name == "error" else name


class JsonlWriter:
    """An object in each line: the columns of the input, then those of the annotations. `error` is
    null, and where it isn't, the annotations are."""

    def __init__(self, path: Path, columns: Columns, types: dict[str, str]) -> None:
        self.file, self.columns = path.open("wb"), columns

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            values = {
                carried_name(name, self.columns): value
                for name, value in row.document.columns.items()
            }
            values |= row.annotations or dict.fromkeys(self.columns.labels)
            values["error"] = row.error
            self.file.write(dump(values) + b"\n")

    def close(self) -> None:
        close(self.file)


def dump(values: Any) -> bytes:
    """Write JSON in UTF-8. What JSON doesn't have becomes null (infinite numbers), Base64 (bytes)
    or a string; half a surrogate pair is escaped."""
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
    """Close a file whose content is on the disk, so that a rename can't overtake it."""
    try:
        file_.flush()
        os.fsync(file_.fileno())
    finally:
        file_.close()


class ParquetWriter:
    """A column for each of the input and of the annotations. Columns that come from Parquet keep
    their types; of others `types` has them."""

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
        names = [carried_name(name, self.columns) for name in carried.schema.names]
        self.tables.append(
            pa.Table.from_arrays(
                [*carried.columns, *made.columns],
                schema=pa.schema(
                    [
                        *(one.with_name(n) for one, n in zip(carried.schema, names, strict=True)),
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
        # Arrow would leave the value out without a word.
        for name in ("categories", "numbers"):
            for label in (row.annotations or {}).get(name) or ():
                if label not in self.columns.labels[name]:
                    raise ValueError(
                        f"Parquet needs to know all {name} beforehand, but no component says that "
                        f"it has '{label}' ({row.document.where}). Write --format jsonl."
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
    """Make the Arrow schema of annotations."""
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
    """A DocBin. The columns of the input are in `doc.user_data`, and so is the `error` of a
    document that failed. A part is held in memory."""

    def __init__(self, path: Path, columns: Columns, types: dict[str, str]) -> None:
        self.file, self.columns = path.open("wb"), columns
        self.docs = DocBin(store_user_data=True)
        self.asked = set(pair_names())

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in row.document.columns.items():
                # The Doc has the text and what is asked in places of its own.
                if name not in self.asked and value is not row.document.text:
                    row.doc.user_data[carried_name(name, self.columns)] = to_plain(value)
            if row.error is not None:
                row.doc.user_data["error"] = row.error
            self.docs.add(row.doc)

    def close(self) -> None:
        try:
            self.file.write(self.docs.to_bytes())
        finally:
            close(self.file)


def to_plain(value: Any) -> Any:
    """Give what `doc.user_data` can store of a value."""
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
