"""Read tables with a header (CSV, TSV), and lines with a label and a text."""

import csv
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from .columns import Row
from .files import File
from .records import Options, Record, Rejected, attempt, name_label

MAX_RECORD = 10_000_000  # characters; a longer record has an unclosed quote
FASTTEXT = "__label__"


class Line(NamedTuple):
    """Hold the cells of a row with its line number."""

    number: int
    cells: list[str]


def read_labelled(file: File, options: Options) -> Iterator[Record | Rejected]:
    """Yield a record for each line with a label and a text, or fastText's `__label__a __label__b
    text`."""
    fasttext = False
    for number, line in enumerate(file.lines(), 1):
        labels: list[str] = []
        text = line.strip()
        fasttext = fasttext or text.startswith(FASTTEXT)
        while text.startswith(FASTTEXT) if fasttext else text and not labels:
            label, text = [*text.split(maxsplit=1), ""][:2]
            labels.append(label.removeprefix(FASTTEXT))
        if labels or text:
            yield attempt(f":{number}", make_labelled, f":{number}", text, labels, options)


def make_labelled(where: str, text: str, labels: list[str], options: Options) -> Record:
    """Create a record from a text and its labels. Raises ValueError if --labels has not all of
    them."""
    named = [name_label(label, options.labels) for label in labels]
    return Record(where, text, values={"label": named or ""})


def read_table(
    file: File, options: Options, *, delimiter: str, quoted: bool = True
) -> Iterator[Row | Rejected]:
    """Yield the rows after a header.

    A quoted field may contain newlines; a record has the number of its first line. In a table that
    is not `quoted`, every line is a row, unless a cell has doubled quotes within quotes. If the
    options have numbers for columns, there is no header. Columns with the same name are numbered,
    such as "text (2)".
    """
    quoted = quoted or any(
        '""' in cell[1:-1] and unquote(cell) != cell
        for line in split_plain(file.lines(), delimiter)
        for cell in line.cells
    )
    lines = file.lines()
    split = split_quoted(lines, delimiter) if quoted else split_plain(lines, delimiter)
    header: list[str] = []
    for line in split:
        if isinstance(line, Rejected):
            yield line
            continue
        number, cells = line
        is_header = not header
        if is_header:
            header = name_columns(cells, options)
        if len(cells) != len(header):
            fault = f"wrong number of columns: {len(cells)} instead of {len(header)}"
            if quoted and len(cells) > len(header):
                fault += "; a cell that contains the separator needs quotes around it"
            yield Rejected(f":{number}", fault)
        elif not is_header or header[0] == "1":
            yield Row(f":{number}", dict(zip(header, cells, strict=True)), in_table=True)


def read_csv(path: Path) -> Iterator[Row | Rejected]:
    """Yield the rows of a `.csv` or `.tsv` file with a header; it may be compressed."""
    file = File(path)
    return read_table(file, Options(), delimiter="\t" if file.extension == ".tsv" else ",")


def name_columns(cells: list[str], options: Options) -> list[str]:
    """Return the column names: the first row of the table, or numbers."""
    numbers = [str(i) for i in range(1, len(cells) + 1)]
    named = options.named_columns()
    by_number = named & {*numbers}
    # One number may occur in the first row by chance, but not all of them.
    if by_number and not by_number <= {*cells} and (named - by_number).isdisjoint(cells):
        return numbers
    counts, seen = Counter(cells), Counter[str]()
    header = []
    for cell in cells:
        seen[cell] += 1
        header.append(f"{cell} ({seen[cell]})" if counts[cell] > 1 else cell)
    return header


def split_quoted(lines: Iterable[str], delimiter: str) -> Iterator[Line | Rejected]:
    """Split the lines of a table whose fields may be quoted; quoted fields may contain newlines.

    Blank lines are skipped. If the delimiter is "," but the header has only ";", ";" is used; so is
    the delimiter of a first line such as "sep=;", which Excel writes.

    A stray quote does not swallow the rows after it: only the first line of an unreadable record is
    rejected, and reading continues with its second line. Tables with tabs are rarely quoted, so
    lines with as many tabs as the header are always rows there.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD))
    lines = iter(lines)
    ahead = deque(islice(lines, 1))  # lines that were read ahead and belong to later records
    number, width = 1, 0
    if ahead and (first := ahead[0].strip()).startswith("sep=") and len(first) == len("sep=;"):
        delimiter = first[-1]
        ahead.popleft()
        number = 2
    elif delimiter == "," and ahead and ";" in ahead[0] and "," not in ahead[0]:
        delimiter = ";"
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
            yield Rejected(f":{number}", fault)
        elif cells:
            width = width or len(cells)
            yield Line(number, cells)
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
    """Remove the quotes around a fully quoted cell."""
    inner = cell[1:-1]
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def split_plain(lines: Iterable[str], delimiter: str) -> Iterator[Line]:
    """Split the lines of a table in which quotes are text and every line is a row."""
    for number, line in enumerate(lines, 1):
        if line := line.rstrip("\r\n"):
            yield Line(number, line.split(delimiter))
