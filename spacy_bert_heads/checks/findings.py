"""Define the inputs and the results of the checks of annotated data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spacy.training import Example

from ..text.wordpieces import WordpieceTokenizer

NUM_SHOWN = 3  # texts shown per finding
CHARS_SHOWN = 60


@dataclass(frozen=True)
class Split:
    """Hold the examples of one corpus."""

    name: str  # "train" or "dev"
    examples: Sequence[Example]


class Reading(NamedTuple):
    """Hold the tokenizer and the windows of an encoder."""

    tokenizer: WordpieceTokenizer
    window: int
    stride: int


@dataclass(frozen=True)
class Finding:
    """Describe a fault of the data.

    An "error" stops training, or makes a head learn something wrong. A "warning" is data that is
    skipped, or that should be reviewed.
    """

    check: str
    level: str
    where: str  # "train", "dev" or "config"
    count: int
    message: str
    fix: str
    examples: list[str] = field(default_factory=list)


# A check of a head on a corpus; the `Reading` is None for encoders of other packages.
Check = Callable[[Any, Split, Reading | None], list[Finding]]


def faults(
    check: str, level: str, where: str, texts: Sequence[str], message: str, fix: str
) -> list[Finding]:
    """Return a list with one finding for all texts that have a fault, or an empty list."""
    if not texts:
        return []
    return [Finding(check, level, where, len(texts), message, fix, show(texts))]


def show(texts: Iterable[str]) -> list[str]:
    """Return the first distinct texts, shortened."""
    distinct = list(dict.fromkeys(texts))[:NUM_SHOWN]
    return [t if len(t) <= CHARS_SHOWN else f"{t[: CHARS_SHOWN - 1]}…" for t in distinct]


def count_of(number: int, thing: str, plural: str | None = None) -> str:
    """Return a number with its noun in the right form."""
    return f"{number:,} {thing if number == 1 else plural or f'{thing}s'}"
