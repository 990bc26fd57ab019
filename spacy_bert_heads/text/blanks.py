"""Invisible text: white space, control characters and zero-width characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from spacy.attrs import IS_ALPHA, IS_DIGIT, IS_PUNCT, ORTH
from spacy.tokens import Doc

from .arrays import Bools1d, Ints1d, Ints2d

CATEGORIES = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp"))


@lru_cache(maxsize=1 << 16)
def is_blank(text: str) -> bool:
    """Return whether a text has only white space, control and format characters, such as a newline,
    a zero-width space or a byte order mark."""
    return all(unicodedata.category(character) in CATEGORIES for character in text)


def blank_tokens(docs: Sequence[Doc]) -> Bools1d:
    """Return which tokens are invisible (num_tokens,)."""
    rows = [doc.to_array([ORTH, IS_ALPHA, IS_DIGIT, IS_PUNCT]) for doc in docs]
    array = np.concatenate(rows) if rows else np.empty((0, 4), dtype=np.uint64)
    # Few tokens are neither letters, digits nor punctuation, and most of these are repeated.
    rest = np.flatnonzero((array[:, 1:] == 0).all(axis=1))
    orths, places = np.unique(array[rest, 0], return_inverse=True)
    found = [is_blank(docs[0].vocab.strings[int(orth)]) for orth in orths]
    blank = np.zeros(len(array), dtype=np.bool_)
    blank[rest] = np.asarray(found, dtype=np.bool_)[places]
    return blank


def count_visible(text: str, *, lower: bool = False) -> Ints1d:
    """Count the visible characters before each place of a text (len(text) + 1,). With `lower` a
    character counts as many as its lower case has."""
    if text.isascii():
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        widths = ((codes > 32) & (codes != 127)).astype(np.int64)
    elif lower:
        widths = np.asarray([0 if is_blank(c) else len(c.lower()) for c in text], dtype=np.int64)
    else:
        widths = np.asarray([not is_blank(c) for c in text], dtype=np.int64)
    return np.append(0, np.cumsum(widths))


def map_spans(spans: Ints2d, text: str, other: str) -> Ints2d:
    """Map spans of characters from a text to another one that differs in white space and case only.
    `spans` are starts and ends (n, 2); an empty one becomes (0, 0)."""
    before, after = (count_visible(one, lower=True) for one in (text, other))
    starts = np.searchsorted(after, before[spans[:, 0]], side="right") - 1
    ends = np.searchsorted(after, before[spans[:, 1]], side="left")
    is_empty = spans[:, 0] == spans[:, 1]
    return np.where(is_empty[:, None], 0, np.stack([starts, ends], axis=1))
