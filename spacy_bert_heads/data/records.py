"""Define the records and options that the readers of all formats share.

    file ──▶ reader ──▶ Record | Rejected ──▶ Doc

A reader is a generator over one file. It yields plain data with the keys of the project's own JSONL
format, whatever the format of the file. It rejects a record that it can't read exactly, with the
place and the reason, and continues with the next one.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

from spacy.language import Language

T = TypeVar("T")
ITEM = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[-+\d][-+.\de]*""")
ARRAY = re.compile(rf"\[\s*(?:(?:{ITEM.pattern})\s+)+(?:{ITEM.pattern})\s*\]")
WHOLE = re.compile(r"(-?\d+)(?:\.0*)?")
OF_NUMPY = re.compile(r"\bnp\.\w+\(([^()]+)\)|\barray\((\[[^\]]*\])(?:,\s*dtype=\w+)?\)")


class Rejected(NamedTuple):
    """Describe a rejected record.

    `where` is its place in the file, appended to the file name, such as ":12". Reports group
    records by the reason up to its first colon; the rest is specific to the record. `size` is the
    number of the user's records in it.
    """

    where: str
    reason: str
    size: int = 1


@dataclass
class Notes:
    """Count what was corrected, skipped or not read, with the first example of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, example: str = "", *, count: int = 1) -> None:
        """Count one occurrence (or `count`) of a kind, and keep the first example."""
        self.counts[kind] += count
        if example:
            self.examples.setdefault(kind, example)

    def update(self, other: "Notes") -> None:
        """Add the counts of other notes; existing examples are kept."""
        self.counts.update(other.counts)
        self.examples = other.examples | self.examples


@dataclass
class Record:
    """Hold a text, or tokens, with annotations.

    `values` has the arguments of the heads' `read_json`, keyed by the first of the head's
    `json_keys`. `spaces` says which tokens are followed by white space; None if unknown. `size` is
    the number of the user's records: pairs or questions of one text. Records of the same `group`
    (parts of one document) stay together when data is split. `notes` counts corrections made while
    reading, `unread` has the keys that were not read. A record with `is_pair` may be merged with
    others of the same text.
    """

    where: str
    text: Any = None
    words: list[str] | None = None
    spaces: list[bool] | None = None
    values: dict[str, Any] = field(default_factory=dict)
    size: int = 1
    group: str | None = None
    notes: Notes = field(default_factory=Notes)
    unread: tuple[str, ...] = ()
    is_pair: bool = False


@dataclass(frozen=True)
class Options:
    """Hold the user's options for a file: names of columns or keys, and the meaning of labels.

    Columns of a file without a header are numbers, from 1. `labels` are the names of numeric
    labels, from 0. Each of `label_columns` is one category, each of `option_columns` one option of
    a choice. `label_separator` separates the categories of a cell; None means one category per
    cell, and an error if a cell looks like several.
    """

    text_column: str = "text"
    label_column: str = "label"
    score_column: str = "score"
    target_column: str = "target"
    option_columns: tuple[str, ...] = ()
    premise_column: str = "premise"
    hypothesis_column: str = "hypothesis"
    token_column: str = ""
    tag_column: str = ""
    labels: tuple[str, ...] = ()
    label_columns: tuple[str, ...] = ()
    label_separator: str | None = None

    def named_columns(self) -> set[str]:
        """Return the columns that the user named, that is, those that differ from the defaults."""
        columns = {one.name: one.default for one in fields(self) if one.name.endswith("_column")}
        named = {getattr(self, name) for name in columns if getattr(self, name) != columns[name]}
        return named | {*self.label_columns, *self.option_columns}


@dataclass
class Settings:
    """Hold what heads need to read a value, and collect what they find.

    `labels` collects categories. `others_negative` means that categories which a record doesn't
    name are negative; they are set when all categories are known. `notes` counts what was corrected
    or skipped.
    """

    nlp: Language
    labels: set[str] = field(default_factory=set)
    notes: Notes = field(default_factory=Notes)
    others_negative: bool = False


def attempt(where: str, make: Callable[..., T], *args: Any, **kwargs: Any) -> T | Rejected:
    """Return `make(*args, **kwargs)`, or a rejected record if it raises ValueError."""
    try:
        return make(*args, **kwargs)
    except ValueError as error:
        return Rejected(where, str(error))


def list_reasons(title: str, reasons: Counter[str], samples: list[str]) -> list[str]:
    """Format the rejected records of a report: the total, a line for each reason, the samples.

    Returns no lines if nothing was rejected.
    """
    if not reasons:
        return []
    counts = [f"  {count:>6,}  {reason}" for reason, count in reasons.most_common()]
    return [f"{title}: {reasons.total():,}", *counts, *(f"  {sample}" for sample in samples)]


def parse_json(text: str) -> Any:
    """Parse JSON. Raises ValueError with the reason if the text is anything else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


def parse_cell(cell: Any) -> Any:
    """Parse a table's cell with a list or a dict in the syntax of JSON, Python or numpy. Any other
    value is returned unchanged."""
    if not isinstance(cell, str) or cell.strip()[:1] not in ("[", "{"):
        return cell
    # Python would concatenate the strings of a numpy array.
    written = add_commas(cell.strip())
    for text in (written, OF_NUMPY.sub(lambda of: of[1] or add_commas(of[2]), written)):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return cell


def add_commas(text: str) -> str:
    """Convert the text of a numpy array (['a' 'b']) to a Python list; other text is unchanged."""
    return f"[{', '.join(ITEM.findall(text))}]" if ARRAY.fullmatch(text) else text


def only_one(record: dict[str, Any], *keys: str) -> Any:
    """Return the value of the one key that is present; null counts as absent.

    Returns None if none is present, and raises ValueError if several are.
    """
    values = [record[key] for key in dict.fromkeys(keys) if record.get(key) is not None]
    if len(values) > 1:
        raise ValueError(f"more than one of {', '.join(keys)}")
    return values[0] if values else None


def check_list(kind: str, value: Any) -> list[Any]:
    """Return the list, or an empty one for null. Raises ValueError for any other type."""
    if value is not None and not isinstance(value, list):
        raise ValueError(f"{kind} are not a list: {value!r}")
    return value or []


def check_text(kind: str, value: Any, *, longest: int | None = None) -> str:
    """Return a text or label; an integer becomes a string.

    Raises ValueError if it is empty, blank, not a string, not UTF-8, or longer than `longest`
    characters.
    """
    text = str(value) if type(value) is int else value
    if kind == "label" and isinstance(value, bool | float) and value == value:  # not NaN
        raise ValueError(
            "label is a number, name the labels in order with --labels, or write it as a text: "
            f"{value!r}"
        )
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no {kind}: {value!r}")
    if not is_utf8(text):
        raise ValueError(f"{kind} is not UTF-8: {value!r}")
    if longest is not None and len(text) > longest:
        raise ValueError(f"too long for spaCy: {len(text)} characters")
    return text


def is_utf8(text: str) -> bool:
    """Check that a text has no lone surrogates. They come from undecodable bytes, or from JSON
    escapes."""
    try:
        text.encode("utf8")
    except UnicodeEncodeError:
        return False
    return True


def name_label(value: Any, labels: tuple[str, ...]) -> Any:
    """Return the name of a numeric label. It may be written as 1.0, as pandas does for a column
    with empty cells.

    Names, missing labels, lists and objects are returned unchanged, without `labels` any value.
    Raises ValueError for a value that is neither the number nor the name of a label.
    """
    if not labels or value is None or isinstance(value, list | dict):
        return value
    text = str(int(value) if isinstance(value, bool) else value).strip()
    if whole := WHOLE.fullmatch(text):
        number = int(whole[1])
        if number == -1:  # "no label" in Hugging Face's ClassLabel
            return None
        if 0 <= number < len(labels):
            return labels[number]
    if text in ("", "-", *labels):  # "-" is the label of SNLI's pairs without consensus
        return value
    raise ValueError(f"label is not among --labels, neither by number nor by name: {value!r}")
