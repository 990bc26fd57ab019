"""The columns of a table's row, or the keys of an object: their names, and what is read of them."""

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
    """A row with its place. The cells of a table are strings, and its rows have the same columns.
    `names` are those of labels that are numbers, by column, where a file has them."""

    where: str
    cells: dict[str, Any]
    in_table: bool = False
    names: Mapping[str, tuple[str, ...]] = {}


Rows = Callable[[], Iterator[Row | Rejected]]  # gives the same each time


class NoColumns(ValueError):
    """The columns of a row don't say what to read."""


@dataclass
class Facts:
    """What a single row can't tell: which column has lists of tokens, which columns have spans in
    some row, which tags there are in a column of tags, whether Prodigy's annotators rejected
    anything, and what Label Studio asked."""

    words: str | None = None
    spans: set[str] = field(default_factory=set)
    tags: dict[str, set[str]] = field(default_factory=dict)
    rejects: bool = False
    controls: set[str] = field(default_factory=set)


class Cells:
    """The cells of a row, and how to read them. What was not taken has not been read."""

    def __init__(self, row: Row, facts: Facts, options: Options) -> None:
        self.row, self.facts, self.options = row, facts, options
        self.taken: set[str] = set()

    def __contains__(self, column: str) -> bool:
        return column in self.row.cells

    def names(self, column: str) -> tuple[str, ...]:
        """Give the names of a column's numbers, () if there are none."""
        return self.options.labels or self.row.names.get(column, ())

    def take(self, column: str) -> Any:
        """Take a value; lists and dicts may be written out, as in a table. None if missing."""
        self.taken.add(column)
        value = parse_cell(self.row.cells.get(column))
        return None if value == "" and self.row.in_table else value

    def take_text(self, column: str) -> Any:
        """Take a text as it is."""
        self.taken.add(column)
        return self.row.cells[column]

    def take_label(self, column: str) -> Any:
        """Take a label, a list of them, or a dict of numbers; "" for an empty cell of a table."""
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
        """Take the value of the one column that is not empty, None without. Raises ValueError if
        several are not."""
        return only_one({column: self.take(column) for column in columns}, *columns)

    def unread(self) -> tuple[str, ...]:
        """Name the columns that were not taken and hold something."""
        cells = self.row.cells.items()
        return tuple(
            key for key, cell in cells if key not in self.taken and cell not in (None, "", [], {})
        )


def find_column(columns: Iterable[str], kind: str, name: str) -> str | None:
    """Find a column by its name or, if that is the default and missing, by a common one. None
    unless exactly one fits."""
    columns = list(columns)
    if name in columns:
        return name
    common = (name, *(COMMON_NAMES[kind] if name == kind else ()))
    similar = [column for column in columns if column.strip().lower() in common]
    return similar[0] if len(similar) == 1 else None


def words_column(row: Row, options: Options) -> str | None:
    """Find the column of tokens: a list of strings."""
    for name in (options.token_column,) if options.token_column else TOKENS:
        if is_words(parse_cell(row.cells.get(name))):
            return name
    return None


def is_words(value: Any) -> bool:
    """Tell a list of strings, and not an empty one."""
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


def parse_number(value: Any) -> Any:
    """Give the number that a table's cell is; anything else stays as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def list_columns(columns: Iterable[str]) -> str:
    """Name the columns that there are, for a message."""
    shown = ", ".join(f"{column:.40}" for column in columns)
    return f"there are {shown} (if those are no names, columns are 1, 2 and so on)"
