"""Texts with categories: CSV, TSV, and lines of a label and a text. Pairs use the tables too."""

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from spacy.tokens import Doc

from .annotations import make_doc
from .records import Refused, Settings, attempt, join_names

MAX_RECORD = 10_000_000  # characters; a record with more has a quote that is never closed
# Common names of a column, for files that don't have its default name.
COMMON_NAMES = {
    "text": ("sentence", "content", "review"),
    "label": (
        "category",
        "class",
        "sentiment",
        "gold_label",
        "entailment_judgment",
        "entailment_label",
    ),
    "premise": ("sentence1", "sentence_a", "question"),
    "hypothesis": ("sentence2", "sentence_b", "sentence"),
}
FASTTEXT = "__label__"


class Row(NamedTuple):
    """The cells of a table's row, with its line number."""

    line: int
    cells: list[str]


def read_labelled(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read a label and a text in each line, or fastText's `__label__a __label__b text`."""
    fasttext = False
    for number, line in enumerate(lines, 1):
        labels: list[str] = []
        text = line.strip()
        fasttext = fasttext or text.startswith(FASTTEXT)
        while text.startswith(FASTTEXT) if fasttext else text and not labels:
            label, text = [*text.split(maxsplit=1), ""][:2]
            labels.append(label.removeprefix(FASTTEXT))
        if labels or text:
            yield attempt(number, make_doc, text, settings, label=labels or "")


def read_csv(
    lines: Iterable[str], settings: Settings, *, delimiter: str
) -> Iterator[Doc | Refused]:
    """Read a table of texts with a header. A quoted field may contain newlines; a record has the
    number of its first line."""
    rows = split_quoted(lines, delimiter)
    for row in read_table(rows, settings.text_names()):
        if isinstance(row, Refused):
            yield row
        else:
            text, label = row.cells
            yield attempt(row.line, make_doc, text, settings, label=label)


def split_quoted(lines: Iterable[str], delimiter: str) -> Iterator[Row | Refused]:
    """Split the lines of a table whose fields may be quoted, and then may contain newlines.

    Blank lines are skipped. If the delimiter is "," but the header has only ";", it is ";".

    A stray quote does not swallow the rows after it: only the first line of an unreadable record is
    rejected, and reading goes on with its second line. Since tables with tabs are seldom quoted,
    lines with as many tabs as the header are rows there, whatever quotes they contain.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD))
    lines = iter(lines)
    ahead = deque(islice(lines, 1))  # lines that were read, but belong to later records
    if delimiter == "," and ahead and ";" in ahead[0] and "," not in ahead[0]:
        delimiter = ";"
    number, width = 1, 0
    while True:
        taken: list[str] = []
        cells, fault = [], ""
        try:
            cells = next(csv.reader(read_on(ahead, lines, taken), strict=True, delimiter=delimiter))
        except StopIteration:
            return
        except csv.Error as error:
            fault = f"broken quotes: {error}"
        if fault or len(taken) > 1:
            parts = taken[:1] if fault else taken
            if delimiter == "\t" and all(line.count("\t") == width - 1 for line in parts):
                cells, fault = [unquote(c) for c in taken[0].rstrip("\r\n").split("\t")], ""
                parts = taken[:1]
            ahead.extendleft(reversed(taken[len(parts) :]))
            taken = parts
        if fault:
            yield Refused(number, fault)
        elif cells:
            width = width or len(cells)
            yield Row(number, cells)
        number += len(taken)


def read_on(ahead: deque[str], lines: Iterator[str], taken: list[str]) -> Iterator[str]:
    """Yield the lines of a record, those read ahead first, and append them to `taken`."""
    size = 0
    while size <= MAX_RECORD:
        line = ahead.popleft() if ahead else next(lines, None)
        if line is None:
            return
        taken.append(line)
        size += len(line)
        yield line


def unquote(cell: str) -> str:
    """Remove the quotes around a cell that is quoted as a whole."""
    inner = cell[1:-1]
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def split_plain(lines: Iterable[str], delimiter: str) -> Iterator[Row]:
    """Split the lines of a table in which quotes are text and every line is a row."""
    for number, line in enumerate(lines, 1):
        if line := line.rstrip("\r\n"):
            yield Row(number, line.split(delimiter))


def read_table(rows: Iterable[Row | Refused], names: dict[str, str]) -> Iterator[Row | Refused]:
    """Read the rows after a header, of each the columns that `find_columns` finds, in the order of
    `names`. A header without them is rejected, and ends the table."""
    header: list[str] = []
    for row in rows:
        if isinstance(row, Refused):
            yield row
        elif not header:
            header = row.cells
            columns = find_columns(header, names)
            if min(columns) < 0:
                options = join_names(f"--{kind}-column" for kind in names)
                fault = f"no columns for {join_names(names)}: {header}, name them by {options}"
                yield Refused(row.line, fault)
                return
        elif len(row.cells) != len(header):
            wanted = len(header)
            yield Refused(
                row.line, f"wrong number of columns: {len(row.cells)} instead of {wanted}"
            )
        else:
            yield Row(row.line, [row.cells[column] for column in columns])


def find_columns(header: list[str], names: dict[str, str]) -> list[int]:
    """Find columns by their names or, if a default name is missing, by a common one.

    `names` maps each kind of column to its name in the file; the kind itself is the default name.
    Returns the index of each column, -1 unless exactly one fits.
    """
    columns = []
    for name in names.values():
        common = (name, *COMMON_NAMES.get(name, ()))
        exact = [i for i, column in enumerate(header) if column == name]
        similar = [i for i, column in enumerate(header) if column.strip().lower() in common]
        found = exact or similar
        columns.append(found[0] if len(found) == 1 else -1)
    return columns
