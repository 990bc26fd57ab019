"""Find and read the columns of a table's row, or the keys of an object."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .records import Options, Rejected, name_label, only_one, parse_cell

# Common names of a column, for files that don't have its default name.
COMMON_NAMES = {
    "text": ("sentence", "content", "review", "text_a", "data"),
    "label": (
        "category",
        "class",
        "sentiment",
        "gold_label",
        "entailment_judgment",
        "entailment_label",
    ),
    "premise": ("sentence1", "sentence_a", "question", "question1", "text_a"),
    "score": ("similarity", "similarity_score", "relatedness", "relatedness_score"),
    "hypothesis": ("sentence2", "sentence_b", "sentence", "question2", "text_b"),
}
TOKENS = ("tokens", "words")


class Row(NamedTuple):
    """Hold the cells of a row with its place. In a table, cells are strings and all rows have the
    same columns. `names` maps columns with numeric labels to class names, if the file has them."""

    where: str
    cells: dict[str, Any]
    in_table: bool = False
    names: Mapping[str, tuple[str, ...]] = {}


Rows = Callable[[], Iterator[Row | Rejected]]  # yields the same rows each time


class NoColumns(ValueError):
    """Report that a row lacks a needed column."""


@dataclass
class Facts:
    """Hold facts that a single row can't show: the column with lists of tokens, the columns with
    spans in any row, the tags of each tag column, different values of a column `target`, whether
    Prodigy's annotators rejected anything, and the types and names of Label Studio's
    controls."""

    words: str | None = None
    spans: set[str] = field(default_factory=set)
    tags: dict[str, set[str]] = field(default_factory=dict)
    targets: set[str] = field(default_factory=set)
    answers: set[tuple[int, int]] = field(default_factory=set)
    rejects: bool = False
    controls: set[tuple[str, str]] = field(default_factory=set)


class Cells:
    """Read the cells of a row, and record which columns were read (`taken`)."""

    def __init__(self, row: Row, facts: Facts, options: Options) -> None:
        self.row, self.facts, self.options = row, facts, options
        self.taken: set[str] = set()

    def __contains__(self, column: str) -> bool:
        return column in self.row.cells

    def names(self, column: str) -> tuple[str, ...]:
        """Return the class names of a column with numeric labels, () if there are none."""
        return self.options.labels or self.row.names.get(column, ())

    def take(self, column: str) -> Any:
        """Return a value, parsed if it is a written-out list or dict; None if missing."""
        self.taken.add(column)
        value = parse_cell(self.row.cells.get(column))
        return None if value == "" and self.row.in_table else value

    def take_text(self, column: str) -> Any:
        """Return a cell without parsing it."""
        self.taken.add(column)
        return self.row.cells[column]

    def take_label(self, column: str) -> Any:
        """Return a label, a list of labels, or a dict of numbers; "" for an empty cell of a
        table."""
        value, separator = self.take(column), self.options.label_separator
        if value is None and self.row.cells[column] is not None:
            value = self.row.cells[column]
        if separator and isinstance(value, str):
            value = [part.strip() for part in value.split(separator) if part.strip()]
        match value:
            case {"choices": list(choices)}:  # Label Studio
                value = choices
        if isinstance(value, list):
            return [name_label(one, self.names(column)) for one in value]
        return name_label(value, self.names(column))

    def take_one(self, columns: Iterable[str]) -> Any:
        """Return the value of the only column that is not empty, or None. Raises ValueError if
        several are not empty."""
        return only_one({column: self.take(column) for column in columns}, *columns)

    def unread(self) -> tuple[str, ...]:
        """Return the columns with a value that were not read."""
        cells = self.row.cells.items()
        return tuple(
            key for key, cell in cells if key not in self.taken and cell not in (None, "", [], {})
        )


def find_column(columns: Iterable[str], kind: str, name: str) -> str | None:
    """Return the column with the given name; if the name is the default and missing, the only
    column with a common name of its kind. Otherwise None."""
    columns = list(columns)
    if name in columns:
        return name
    common = (name, *(COMMON_NAMES[kind] if name == kind else ()))
    similar = [column for column in columns if column.strip().lower() in common]
    return similar[0] if len(similar) == 1 else None


def words_column(row: Row, options: Options) -> str | None:
    """Return the column with lists of tokens, None if there is none."""
    for name in (options.token_column,) if options.token_column else TOKENS:
        if is_words(parse_cell(row.cells.get(name))):
            return name
    return None


def is_words(value: Any) -> bool:
    """Check whether a value is a non-empty list of strings."""
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


def parse_number(value: Any) -> Any:
    """Parse the number in a table's cell; any other value is returned unchanged."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def list_columns(columns: Iterable[str]) -> str:
    """List the existing columns for an error message."""
    shown = ", ".join(f"{column:.40}" for column in columns)
    return f"the columns are {shown} (if this is not a header, use the numbers 1, 2 and so on)"
