"""Convert rows of tables and JSON objects to records, by the names of their columns.

All files with rows (CSV, TSV, JSONL, JSON arrays, Parquet) are read by the same code. A first pass
over the file collects the facts that a single row can't show.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from ..heads.find import json_heads
from .annotations import holds_spans, span_fields
from .choices import choice_columns, numbered_answer, read_choice
from .columns import (
    Cells,
    Facts,
    NoColumns,
    Row,
    Rows,
    find_column,
    is_words,
    list_columns,
    parse_number,
    words_column,
)
from .conll import scheme_of, tagged_record
from .pairs import join_pairs, pair_columns, read_flat_squad, read_pair
from .records import Options, Record, Rejected, attempt, check_text, name_label, parse_cell
from .tools import is_prodigy, is_task, list_controls, read_answered, read_task

LIKE_LABELS = "texts to write that look like labels; for categories, add --label-column target"
MAX_LABELS = 20  # different values of a target, for it to look like a label
TAGS = ("ner_tags", "ner", "tags", "labels", "label")
TOKEN_TAGS = {"pos_tags": "tag", "xpos": "tag", "upos": "pos"}


def read_rows(rows: Rows, options: Options) -> Iterator[Record | Rejected]:
    """Yield a record for each row. Consecutive pairs or questions of one text are merged."""
    facts = survey(rows, options)
    return join_pairs(make_records(rows(), facts, options))


def survey(rows: Rows, options: Options) -> Facts:
    """Read all rows once to collect the facts that a single row can't show."""
    facts = Facts()
    for row in rows():
        if isinstance(row, Rejected):
            continue
        for key, cell in row.cells.items():
            if key not in facts.spans and holds_spans(parse_cell(cell)):
                facts.spans.add(key)
        facts.rejects |= row.cells.get("answer") == "reject"
        target = row.cells.get("target")
        if target not in (None, "") and len(facts.targets) <= MAX_LABELS:
            facts.targets.add(str(target))
        if answer := numbered_answer(row.cells, options):
            facts.answers.add(answer)
        if is_task(row.cells):
            facts.controls |= list_controls(row.cells)
        if words := words_column(row, options):
            facts.words = words
            for key in {*TAGS, options.tag_column} & row.cells.keys():
                value = parse_cell(row.cells[key])
                if isinstance(value, list):
                    facts.tags.setdefault(key, set()).update(map(str, value))
    return facts


def make_records(
    rows: Iterable[Row | Rejected], facts: Facts, options: Options
) -> Iterator[Record | Rejected]:
    """Yield a record for each row; a row that can't be read is rejected."""
    for row in rows:
        if isinstance(row, Rejected):
            yield row
        else:
            yield attempt(row.where, read_row, Cells(row, facts, options))


def read_row(cells: Cells) -> Record:
    """Convert a row to a record. Raises ValueError if its columns are unknown or malformed."""
    columns = cells.row.cells
    if is_task(columns):
        record = read_task(cells)
    elif (words := cells.facts.words) in columns:
        record = read_tokens(cells, words)
    elif options := choice_columns(columns, cells.options):
        record = read_choice(cells, options)
    elif {"context", "question"} <= columns.keys():
        record = read_flat_squad(cells)
    elif pair := pair_columns(columns, cells.options):
        record = read_pair(cells, *pair)
    else:
        prodigy = read_answered(cells) if is_prodigy(columns) else {}
        record = read_text(cells)
        record.values.update(prodigy)
    record.unread = cells.unread()
    return record


# --- a text


def read_text(cells: Cells) -> Record:
    """Read a text with the annotations for all heads in its row."""
    options = cells.options
    columns = [name for name in cells.row.cells if name not in cells.taken]
    column = find_column(columns, "text", options.text_column)
    if column is None:
        names = list_columns(cells.row.cells)
        raise NoColumns(f"no text column, name it with --text-column: {names}")
    record = Record(cells.row.where, cells.take_text(column))
    columns.remove(column)
    # A column that the user named for the label or the target is read for nothing else.
    renamed = {"label": options.label_column, "target": options.target_column}
    named = {name for key, name in renamed.items() if name != key} | {*options.label_columns}
    for keys, head in json_heads().items():
        own = [
            name
            for key in keys
            if (name := renamed.get(key, key)) in columns and (name != key or name not in named)
        ]
        if head.annotation == "categories":
            value = read_categories(cells, [name for name in own if name not in cells.facts.spans])
        elif head.annotation == "entities":
            spans = [name for name in columns if name in cells.facts.spans and name not in own]
            value = read_entities(cells, own + spans)
        elif head.annotation == "targets":  # texts, also where they look like numbers
            value = cells.take_one(own)
            if isinstance(value, str | int) and not named and look_like_labels(cells.facts.targets):
                record.notes.add(LIKE_LABELS, repr(value))
        else:
            value = parse_number(cells.take_one(own))
        if value is not None:
            record.values[keys[0]] = value
    if not record.values and not cells.taken - {column}:
        label = find_column(columns, "label", options.label_column)
        if label is not None:
            record.values["label"] = cells.take_label(label)
    return record


def look_like_labels(targets: set[str]) -> bool:
    """Check whether the values of a column `target` are few words instead of texts."""
    return len(targets) <= MAX_LABELS and all(len(target.split()) == 1 for target in targets)


def read_categories(cells: Cells, columns: list[str]) -> Any:
    """Read the categories from --label-columns, otherwise from the single label column."""
    wanted = cells.options.label_columns
    if not wanted:
        held = [column for column in columns if cells.row.cells[column] is not None]
        if len(held) > 1:
            raise ValueError(f"more than one of {', '.join(columns)}")
        return cells.take_label(held[0]) if held else None
    if missing := [name for name in wanted if name not in cells]:
        names = list_columns(cells.row.cells)
        raise NoColumns(f"no column named by --label-columns: {', '.join(missing)}, {names}")
    cats = {name: read_one_hot(name, cells.take(name)) for name in wanted}
    return {name: value for name, value in cats.items() if value is not None}


def read_one_hot(name: str, cell: Any) -> float | None:
    """Read the 0 or 1 (or a probability) of a category; None if it is unknown."""
    if isinstance(cell, str):
        cell = parse_number(cell.strip().lower())
    if cell is None:
        return None
    if not (isinstance(cell, int | float) and 0 <= cell <= 1):
        raise ValueError(f"not between 0 and 1: '{name}' is {cell!r}")
    return float(cell)


def read_entities(cells: Cells, columns: list[str]) -> Any:
    """Read the spans, and whether they are all (`complete`). Tables and Label Studio omit them if
    there are none. An object that is not spans, such as a tweet's `entities`, is not read."""
    value = cells.take_one([name for name in columns if may_hold_spans(cells.row.cells[name])])
    if value is None and (cells.row.in_table or "annotation_id" in cells):
        value = [] if cells.facts.spans else None
    if isinstance(value, list) and read_flag(cells.row.cells.get("complete")) is not None:
        return {"spans": value, "complete": read_flag(cells.take("complete"))}
    return value


def may_hold_spans(cell: Any) -> bool:
    """Check whether a cell has spans, or a malformed list of them, which is to be rejected."""
    value = parse_cell(cell)
    if not isinstance(value, dict) or "spans" in value:
        return True
    return not value or span_fields(value) is not None or holds_spans(value)


def read_flag(cell: Any) -> bool | None:
    """Read true or false; None for anything else."""
    value = parse_number(cell.strip().lower()) if isinstance(cell, str) else cell
    return value if isinstance(value, bool) else None


# --- tokens


def read_tokens(cells: Cells, words: str) -> Record:
    """Read tokens with one tag each, as in Hugging Face's `datasets`."""
    row, options, known = cells.row, cells.options, cells.facts.tags
    tokens = cells.take(words)
    if not is_words(tokens):
        raise ValueError(f"'{words}' is not a list of tokens: {tokens!r}")
    record = Record(row.where, words=tokens)
    column = options.tag_column or next((name for name in TAGS if known.get(name)), "")
    if column and column not in cells and options.tag_column:
        there = list_columns(row.cells)
        raise NoColumns(f"no column named by --tag-column: {column}, {there}")
    tags = cells.take(column) if column in cells else None
    if tags is not None:
        tags = read_tags(tags, column, len(tokens), cells.names(column))
        scheme = scheme_of(cells.names(column) or known[column])
        record = tagged_record(row.where, tokens, tags, scheme)
    kinds: dict[str, list[str]] = {}
    for name, kind in TOKEN_TAGS.items():
        tags = parse_cell(row.cells.get(name))
        names = row.names.get(name, ())
        if name == column or not isinstance(tags, list):
            continue
        if names or all(isinstance(tag, str) for tag in tags):
            cells.take(name)
            kinds[kind] = read_tags(tags, name, len(tokens), names)
    if kinds:
        record.values.setdefault("pos_tags", kinds)
    return record


def read_tags(tags: Any, column: str, num_tokens: int, names: tuple[str, ...]) -> list[str]:
    """Return one tag name per token. Raises ValueError if the tags don't match the tokens, or are
    numbers without names."""
    if not isinstance(tags, list) or len(tags) != num_tokens:
        raise ValueError(f"'{column}' does not have a tag for each token: {tags!r}")
    if not names and any(type(tag) is int for tag in tags):
        raise ValueError(f"'{column}' has numbers, name the tags in order with --labels: {tags!r}")
    return [check_text("tag", name_label(tag, names)) for tag in tags]
