"""What the readers of all formats share.

    file ──▶ reader ──▶ Record | Rejected ──▶ Doc

A reader is a generator over one file. Its records are plain data in the words of the project's own
JSONL, whatever the file's format is. It rejects a record that it can't read exactly, with the place
and the reason, and goes on with the next one.
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
OF_NUMPY = re.compile(r"\bnp\.\w+\(([^()]+)\)|\barray\((\[[^\]]*\])(?:,\s*dtype=\w+)?\)")


class Rejected(NamedTuple):
    """A record that was rejected.

    `where` is its place behind the file's name, as ":12". Reports count the reason up to its first
    colon; what follows is specific to the record. `size` counts the user's records in it.
    """

    where: str
    reason: str
    size: int = 1


@dataclass
class Notes:
    """What was corrected, left out or not read: how often, and the first example of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, example: str = "", *, count: int = 1) -> None:
        """Count something."""
        self.counts[kind] += count
        if example:
            self.examples.setdefault(kind, example)

    def update(self, other: "Notes") -> None:
        """Add what others counted."""
        self.counts.update(other.counts)
        self.examples = other.examples | self.examples


@dataclass
class Record:
    """A text, or tokens, with annotations.

    `values` has what the `read_json` of the heads takes, each under the first of the `json_keys` of
    its head. `spaces` says which tokens have white space behind them, None where that is not known.
    `size` counts the user's records: pairs or questions of one text. Records of the same `group`, a
    document in parts, stay together when data is split. `notes` counts what was done to read the
    record, `unread` has the keys that were not read. A record that `is_pair` may be joined with
    others of its text.
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
    """What a user says of a file: the names of columns or keys, and what labels mean.

    Columns of a file without a header are numbers, from 1. `labels` are the names of labels that
    are numbers, from 0. `label_columns` are columns of a category each, `option_columns` those of
    the options of a choice. `label_separator` separates the categories of a text; None for one
    category, with an error where it looks like several.
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
        """Give the columns that the user has named."""
        columns = {one.name: one.default for one in fields(self) if one.name.endswith("_column")}
        named = {getattr(self, name) for name in columns if getattr(self, name) != columns[name]}
        return named | {*self.label_columns, *self.option_columns}


@dataclass
class Settings:
    """What heads use to read a value, and what they note meanwhile.

    `labels` collects categories. `others_negative` says that the categories which a record doesn't
    name do not hold, so that they are set when all are known. `notes` counts what was corrected or
    left out.
    """

    nlp: Language
    labels: set[str] = field(default_factory=set)
    notes: Notes = field(default_factory=Notes)
    others_negative: bool = False


def attempt(where: str, make: Callable[..., T], *args: Any, **kwargs: Any) -> T | Rejected:
    """Call `make` with the arguments, and turn a ValueError into a rejected record."""
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
    """Parse a table's cell that is a list or a dict, as JSON, Python or numpy writes it. Anything
    else stays as it is."""
    if not isinstance(cell, str) or cell.strip()[:1] not in ("[", "{"):
        return cell
    # Python would read the strings of a numpy array as a single one.
    written = add_commas(cell.strip())
    for text in (written, OF_NUMPY.sub(lambda of: of[1] or add_commas(of[2]), written)):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return cell


def add_commas(text: str) -> str:
    """Write an array of numpy (['a' 'b']) as Python's list; any other text stays as it is."""
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
    """Return the list, an empty one for null. Raises ValueError for anything else."""
    if value is not None and not isinstance(value, list):
        raise ValueError(f"{kind} are not a list: {value!r}")
    return value or []


def check_text(kind: str, value: Any, *, longest: int | None = None) -> str:
    """Return a text or label; an integer becomes a string.

    Raises ValueError if it is empty, blank, no string, not UTF-8, or has more than `longest`
    characters.
    """
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no {kind}: {value!r}")
    if not is_utf8(text):
        raise ValueError(f"{kind} is not UTF-8: {value!r}")
    if longest is not None and len(text) > longest:
        raise ValueError(f"too long for spaCy: {len(text)} characters")
    return text


def is_utf8(text: str) -> bool:
    """Check that there are no lone surrogates: they stand for undecodable bytes, and JSON can spell
    them out."""
    try:
        text.encode("utf8")
    except UnicodeEncodeError:
        return False
    return True


def name_label(value: Any, labels: tuple[str, ...]) -> Any:
    """Give the name of a label that is a number; any other value stays as it is. Raises ValueError
    if there is no such number among the names."""
    number = value
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
        number = int(value)
    if not labels or type(number) is not int:
        return value
    if number == -1:  # Hugging Face's ClassLabel for no label
        return None
    if not 0 <= number < len(labels):
        raise ValueError(f"no such label among --labels: {value!r}")
    return labels[number]
