"""What the checks of annotated data read, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spacy.training import Example

from ..text.wordpieces import WordpieceTokenizer

NUM_SHOWN = 3  # texts that a finding shows
CHARS_SHOWN = 60


@dataclass(frozen=True)
class Split:
    """The examples of one corpus."""

    name: str  # "train" or "dev"
    examples: Sequence[Example]


class Reading(NamedTuple):
    """How an encoder reads texts."""

    tokenizer: WordpieceTokenizer
    window: int
    stride: int


@dataclass(frozen=True)
class Finding:
    """A fault of the data. An "error" ends the training or is learned as it is, wrong; what a
    "warning" names is lost or deserves a look."""

    check: str
    level: str
    where: str  # "train", "dev" or "config"
    count: int
    message: str
    fix: str
    examples: list[str] = field(default_factory=list)


# What a head looks for in a corpus, as an encoder reads it; None for one that is not ours.
Check = Callable[[Any, Split, Reading | None], list[Finding]]


def faults(
    check: str, level: str, where: str, texts: Sequence[str], message: str, fix: str
) -> list[Finding]:
    """Make a finding of all texts that have a fault; none if there are none."""
    if not texts:
        return []
    return [Finding(check, level, where, len(texts), message, fix, show(texts))]


def show(texts: Iterable[str]) -> list[str]:
    """Give the first distinct texts, shortened."""
    distinct = list(dict.fromkeys(texts))[:NUM_SHOWN]
    return [t if len(t) <= CHARS_SHOWN else f"{t[: CHARS_SHOWN - 1]}…" for t in distinct]


def count_of(number: int, thing: str, plural: str | None = None) -> str:
    """Write a number with its noun."""
    return f"{number:,} {thing if number == 1 else plural or f'{thing}s'}"
