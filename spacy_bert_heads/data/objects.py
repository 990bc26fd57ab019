"""Read rows that are objects: JSONL, JSON arrays, Python literals (spaCy's TRAIN_DATA), Parquet."""

import ast
import json
from collections.abc import Iterator
from typing import Any

from .columns import Row
from .files import File
from .records import Rejected, is_utf8, parse_json
from .tools import is_task

ROWS = ("data", "annotations", "rows", "paragraphs")  # keys of a list of records


def read_json_lines(file: File) -> Iterator[Row | Rejected]:
    """Yield a row for each line with a JSON object."""
    for number, line in enumerate(file.lines(), 1):
        if line.strip():
            try:
                yield make_row(f":{number}", parse_json(line), line)
            except ValueError as error:
                yield Rejected(f":{number}", str(error))


def read_json_array(file: File) -> Iterator[Row | Rejected]:
    """Yield the objects of a JSON array, of the array under `data` or `annotations` in an object,
    or spaCy's pairs of a text and a dict. The file is loaded into memory as a whole, and may be a
    Python literal."""
    try:
        rows = find_rows(parse_whole(file.text(), is_python=file.extension == ".py"))
    except ValueError as error:
        yield Rejected("", str(error))
        return
    for number, row in enumerate(rows, 1):
        match row:
            case None:  # some tools write null after the last record
                continue
            case [text, {**annotations}] | (text, {**annotations}):
                row = {"text": text, **annotations}
        try:
            yield make_row(f", record {number}", row)
        except ValueError as error:
            yield Rejected(f", record {number}", str(error))


def parse_whole(text: str, *, is_python: bool = False) -> Any:
    """Parse JSON, or the last list literal that a Python file assigns. No code is executed. Raises
    ValueError if the text is neither."""
    try:
        return parse_json(text)
    except ValueError as error:
        fault = error
    try:
        found = None
        for statement in ast.parse(text).body:
            value = getattr(statement, "value", None)
            if isinstance(value, ast.List | ast.Tuple):
                found = value
        if found is not None:
            return ast.literal_eval(found)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if is_python:
            raise ValueError(f"not a Python literal: {error}") from None
    raise ValueError("no list of records" if is_python else str(fault))


def find_rows(value: Any) -> list[Any] | tuple[Any, ...]:
    """Return the list of records in a parsed file. Raises ValueError if there is none."""
    if isinstance(value, dict) and "text" not in value:
        lists = [value[key] for key in ROWS if isinstance(value.get(key), list)]
        value = lists[0] if lists and not is_task(value) else value
    if not isinstance(value, list | tuple):
        raise ValueError(f"no list of records: {type(value).__name__}")
    # `datasets` of the hub's viewer: {"rows": [{"row": {…}}]}
    return [row["row"] if isinstance(row, dict) and "row_idx" in row else row for row in value]


def make_row(where: str, value: Any, source: str | None = None) -> Row:
    """Create a row from an object. Raises ValueError if it is not an object, or not UTF-8."""
    if not isinstance(value, dict) or (source is not None and not is_utf8(source)):
        raise ValueError("not a JSON object in UTF-8")
    return Row(where, value)


def read_parquet(file: File) -> Iterator[Row | Rejected]:
    """Yield the rows of a Parquet file, with the class names that Hugging Face's `datasets` store.
    Raises ImportError if pyarrow is missing, and ValueError if the file is damaged."""
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError(
            f"{file.path} is a Parquet file. Install pyarrow: pip install pyarrow"
        ) from error
    try:
        table = ParquetFile(file.path)
    except ArrowInvalid as error:
        raise ValueError(f"{file.path} can't be read as Parquet: {error}") from error
    names = class_names(table.schema_arrow.metadata or {})
    number = 0
    for batch in table.iter_batches():
        for cells in batch.to_pylist():
            number += 1
            yield Row(f", row {number}", cells, names=names)


def class_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the class names by column, from the metadata that `datasets` stores."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(feature, list):  # newer versions write a list of one
            inner = feature[0]
        if isinstance(inner, dict) and isinstance(inner.get("names"), list):
            found[column] = tuple(inner["names"])
    return found
