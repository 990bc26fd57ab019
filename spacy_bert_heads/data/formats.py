"""Define the reader of each format, and detect the format of a file."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from .brat import read_brat
from .columns import NoColumns, Row, find_column
from .conll import TAG, read_conll, read_conllu, split_columns
from .files import File
from .objects import (
    find_rows,
    parse_whole,
    read_json_array,
    read_json_lines,
    read_parquet,
)
from .pairs import pair_columns
from .records import Options, Record, Rejected
from .rows import read_rows
from .squad import read_squad
from .tables import FASTTEXT, name_columns, read_labelled, read_table

Reader = Callable[[File, Options], Iterator[Record | Rejected]]
UNIVERSAL = re.compile("[A-Z]+|_")  # a part of speech of CoNLL-U
OPENING = re.compile(r"[\[{]\s*($|[\[{\"(])")
EXTENSIONS = {
    **dict.fromkeys((".conll", ".conll03", ".bio", ".bioes", ".iob", ".iob2", ".ner"), "conll"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".conllu": "conllu",
    ".parquet": "parquet",
    ".ann": "brat",
    ".py": "json",
}


def of_objects(read: Callable[[File], Iterator[Row | Rejected]]) -> Reader:
    """Return a reader for rows that need no options."""
    return lambda file, options: read_rows(partial(read, file), options)


def of_table(delimiter: str, *, quoted: bool = True) -> Reader:
    """Return a reader for tables with this delimiter."""

    def read(file: File, options: Options) -> Iterator[Record | Rejected]:
        rows = partial(read_table, file, options, delimiter=delimiter, quoted=quoted)
        return read_rows(rows, options)

    return read


UNITS = {
    **dict.fromkeys(("conll", "conllu"), "sentences"),
    **dict.fromkeys(("nli-jsonl", "nli-tsv", "nli-csv"), "pairs"),
    "squad": "questions",
    "brat": "documents",
}
READERS: dict[str, Reader] = {
    "conll": read_conll,
    "conllu": read_conllu,
    "labelled": read_labelled,
    "csv": of_table(","),
    "tsv": of_table("\t"),
    "jsonl": of_objects(read_json_lines),
    "json": of_objects(read_json_array),
    "parquet": of_objects(read_parquet),
    "squad": read_squad,
    "brat": read_brat,
    # Tab-separated tables of pairs, such as SICK's and GLUE's, have unescaped quotes.
    "nli-jsonl": of_objects(read_json_lines),
    "nli-tsv": of_table("\t", quoted=False),
    "nli-csv": of_table(","),
}


def find_format(file: File, options: Options) -> str | None:
    """Return the format of a file, by its extension if that is enough, otherwise by its first
    lines; None if it is unknown."""
    known = EXTENSIONS.get(file.extension)
    if known not in (None, "jsonl"):
        return known
    if file.path.suffix == ".txt" and file.annotations.exists():
        return "brat"
    head = file.head()
    if not head:
        return known
    half = len(head) / 2  # a majority, so that a few bad lines don't hide the format of the rest
    objects = [line for line in head if line.startswith("{") and line.endswith("}")]
    if known or len(objects) > half:
        if not known and len(head) == 1:
            return find_json(file) or "jsonl"
        n_pairs = sum(holds_pairs(list_keys(line), options) for line in head)
        return "nli-jsonl" if n_pairs > half else "jsonl"
    rows = [split_columns(line) for line in head]
    if sum(len(row) == 10 and bool(UNIVERSAL.fullmatch(row[3])) for row in rows) > half:
        return "conllu"
    for place in (-1, 0):
        if sum(len(row) > 1 and bool(TAG.fullmatch(row[place])) for row in rows) > half:
            return "conll"
    if file.extension == ".json":
        return find_json(file) or "json"  # the reader reports the error
    if OPENING.match(head[0]):
        return find_json(file)
    for name, delimiter in (("tsv", "\t"), ("csv", ","), ("csv", ";")):
        columns = [column.strip('"') for column in head[0].split(delimiter)]
        header = name_columns(columns, options)
        if holds_pairs(header, options):
            return f"nli-{name}"
        if file.extension == f".{name}" or (len(header) > 1 and holds_rows(header, options)):
            return name
    if sum(line.startswith(FASTTEXT) for line in head) > half:
        return "labelled"
    # In plain text, lines start with many different words; in other lists, with punctuation.
    labels = {line.split()[0] for line in head}
    few = max(len(head) // 4, 2 if all(label.isdecimal() for label in labels) else 0)
    return "labelled" if len(labels) <= few and all(x[-1].isalnum() for x in labels) else None


def find_json(file: File) -> str | None:
    """Return "squad" or "json"; None if there is no list of records."""
    try:
        records = find_rows(parse_whole(file.text()))
    except ValueError:
        return None
    first = next((record for record in records if isinstance(record, dict)), {})
    return "squad" if {"paragraphs", "qas"} & first.keys() else "json"


def holds_pairs(columns: Iterable[str], options: Options) -> bool:
    """Check by the names of columns or keys whether rows have two texts."""
    try:
        return pair_columns(columns, options) is not None
    except NoColumns:
        return False


def holds_rows(columns: Iterable[str], options: Options) -> bool:
    """Check whether column names are those of a table with texts and annotations."""
    columns = list(columns)
    text = find_column(columns, "text", options.text_column)
    label = find_column(columns, "label", options.label_column)
    named = {options.tag_column, options.token_column, *options.label_columns} - {""}
    return (text is not None and (label is not None or bool(named & {*columns}))) or (
        "tokens" in columns and "ner_tags" in columns
    )


def list_keys(line: str) -> list[str]:
    """Return the keys of a line of JSONL, [] if it is not an object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return list(record) if isinstance(record, dict) else []
