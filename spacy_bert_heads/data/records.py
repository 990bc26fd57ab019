"""What the readers of all formats share.

    lines ──▶ reader ──▶ Doc | Refused

A reader is a generator. It rejects a record that it can't read exactly, with the line and the
reason, and goes on with the next one. Every reader streams, except SQuAD's, whose file is a single
JSON object.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from spacy.language import Language

T = TypeVar("T")


class Refused(NamedTuple):
    """A record that was rejected.

    Reports count the reason up to its first colon; what follows is specific to the record. Line 0
    is for formats in which line numbers are useless (SQuAD): there the details name the record.
    """

    line: int
    reason: str


@dataclass
class Settings:
    """What a reader needs to know about its file, and what it collects while reading.

    `labels` collects the categories of all records that could be read, `mended` counts the answers
    that were found at another place than their offset.
    """

    nlp: Language
    text_column: str = "text"
    label_column: str = "label"
    premise_column: str = "premise"
    hypothesis_column: str = "hypothesis"
    labels: set[str] = field(default_factory=set)
    mended: int = 0

    def text_names(self) -> dict[str, str]:
        """Map each kind of column in a table of texts to its name in the file."""
        return {"text": self.text_column, "label": self.label_column}

    def pair_names(self) -> dict[str, str]:
        """Map each kind of column in a table of pairs to its name in the file."""
        return {
            "premise": self.premise_column,
            "hypothesis": self.hypothesis_column,
            "label": self.label_column,
        }


def attempt(line: int, make: Callable[..., T], *args: Any, **kwargs: Any) -> T | Refused:
    """Call `make` with the arguments, and turn a ValueError into a rejected record."""
    try:
        return make(*args, **kwargs)
    except ValueError as error:
        return Refused(line, str(error))


def list_reasons(title: str, reasons: Counter[str], samples: list[str]) -> list[str]:
    """Format the rejected records of a report: the total, a line for each reason, the samples.

    Returns no lines if nothing was rejected.
    """
    if not reasons:
        return []
    counts = [f"  {count:>6,}  {reason}" for reason, count in reasons.most_common()]
    return [f"{title}: {reasons.total():,}", *counts, *(f"  {sample}" for sample in samples)]


def join_names(names: Iterable[str]) -> str:
    """Join words as in "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}"


def read_json(text: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError if the text is anything else."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict) or not is_utf8(text):
        raise ValueError("not a JSON object in UTF-8")
    return record


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
