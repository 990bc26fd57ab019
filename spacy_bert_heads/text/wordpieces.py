"""Tokenize texts into wordpieces with an offset mapping, and align them with spaCy's tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from spacy.attrs import IDX, LENGTH
from spacy.tokens import Doc

from .arrays import Ints1d

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = re.compile(r"\s*")
# Whether each code point is white space; the last entry is for all higher code points.
IS_SPACE = np.asarray([chr(code).isspace() for code in range(0x3001)] + [False])


@dataclass(frozen=True)
class Wordpieces:
    """The wordpieces of a list of texts, text after text, without special tokens."""

    ids: Ints1d  # (num_wordpieces,)
    starts: Ints1d  # (num_wordpieces,) offset mapping, in characters of the wordpiece's text
    ends: Ints1d  # (num_wordpieces,)
    lengths: Ints1d  # (num_texts,) number of wordpieces of each text


class PairTemplate(NamedTuple):
    """The special tokens around two texts that are read together."""

    prefix: Ints1d
    middle: Ints1d
    suffix: Ints1d
    first_type: int  # the type id of the first text, of the prefix and of the middle
    second_type: int  # the type id of the second text and of the suffix

    @property
    def num_special(self) -> int:
        """The number of special tokens around two texts."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


class WordpieceTokenizer:
    """A fast tokenizer of the `tokenizers` library without special tokens, truncation and padding,
    which `packing.py` does. `tokenizer` is reconfigured in place. `pad_id` is the padding id."""

    def __init__(self, tokenizer: Tokenizer, *, pad_id: int = 0) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.pad_id = pad_id
        # Special tokens differ between families, so they are read from the tokenizer itself.
        template = tokenizer.encode("a")
        text = [i for i, special in enumerate(template.special_tokens_mask) if not special]
        before, after = (text[0], text[-1] + 1) if text else (1, len(template.ids))
        self.prefix = np.asarray(template.ids[:before], dtype=np.int64)
        self.suffix = np.asarray(template.ids[after:], dtype=np.int64)
        self.pair = _read_pair_template(tokenizer)

    @property
    def num_special(self) -> int:
        """The number of special tokens around one text."""
        return len(self.prefix) + len(self.suffix)

    def around(self, before: Ints1d, after: Ints1d) -> WordpieceTokenizer:
        """Make one that has more wordpieces around every text, inside the special tokens."""
        wider = copy(self)
        wider.prefix = np.concatenate([self.prefix, before])
        wider.suffix = np.concatenate([after, self.suffix])
        return wider

    def __call__(self, texts: Sequence[str]) -> Wordpieces:
        """Tokenize texts of any length.

        Offsets never start on white space before a word, which byte-level and sentencepiece
        tokenizers count as part of the word.
        """
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        ids = np.fromiter(chain.from_iterable(one.ids for one in encodings), dtype=np.int64)
        pairs = chain.from_iterable(one.offsets for one in encodings)
        offsets = np.fromiter(chain.from_iterable(pairs), dtype=np.int64).reshape(-1, 2)
        # One search over all texts, concatenated.
        sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        shift = np.repeat(np.cumsum(sizes) - sizes, lengths)
        ends = offsets[:, 1]
        starts = _trim_spaces("".join(texts), offsets[:, 0] + shift, ends + shift) - shift
        return Wordpieces(ids, starts, ends, lengths)


def _read_pair_template(tokenizer: Tokenizer) -> PairTemplate:
    template = tokenizer.encode("a", "a")
    first = [i for i, text in enumerate(template.sequence_ids) if text == 0]
    second = [i for i, text in enumerate(template.sequence_ids) if text == 1]
    ids = np.asarray(template.ids, dtype=np.int64)
    types = template.type_ids
    return PairTemplate(
        prefix=ids[: first[0]],
        middle=ids[first[-1] + 1 : second[0]],
        suffix=ids[second[-1] + 1 :],
        first_type=types[first[0]],
        second_type=types[second[0]],
    )


def _trim_spaces(text: str, starts: Ints1d, ends: Ints1d) -> Ints1d:
    """Move the starts of wordpieces after leading white space, except for those of white space
    only."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    # White space is at or below U+0020, U+0085, a no-break space, or above U+1680: most wordpieces
    # need no search.
    first = codes[np.minimum(starts, len(codes) - 1)]
    for i in np.flatnonzero((first <= 32) | (first == 0xA0) | (first == 0x85) | (first >= 0x1680)):
        start = SPACE.match(text, starts[i], ends[i]).end()  # type: ignore[union-attr]
        if start < ends[i]:
            starts[i] = start
    return starts


def trim_offsets(text: str, starts: Ints1d, ends: Ints1d) -> tuple[Ints1d, Ints1d]:
    """Remove white space from both sides of ranges of characters. Ranges of white space only become
    empty."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    space = IS_SPACE[np.minimum(codes, len(IS_SPACE) - 1)]
    at = np.arange(len(codes))
    ahead = np.append(np.where(space, len(codes), at), len(codes))
    behind = np.append(0, np.where(space, 0, at + 1))
    ends = np.maximum(np.maximum.accumulate(behind)[ends], starts)
    return np.minimum(np.minimum.accumulate(ahead[::-1])[::-1][starts], ends), ends


def token_offsets(docs: Sequence[Doc]) -> tuple[Ints1d, Ints1d, Ints1d]:
    """Return the start and the end of each token in the text of its Doc, without trailing space
    (num_tokens,), and the number of tokens of each Doc (num_docs,)."""
    lengths = np.fromiter(map(len, docs), dtype=np.int64, count=len(docs))
    spans = np.concatenate([doc.to_array([IDX, LENGTH]) for doc in docs] or [np.empty((0, 2))])
    spans = spans.astype(np.int64)
    return spans[:, 0], spans[:, 0] + spans[:, 1], lengths


def align(
    wordpieces: Wordpieces, docs: Sequence[Doc], texts: Sequence[str]
) -> tuple[Ints1d, Ints1d, Ints1d]:
    """Find the wordpieces of every spaCy token by character offsets.

    A token's wordpieces are those that start in it. If none does, it is the one that covers the
    token's start (`cannot` is one wordpiece, `can` and `not` are two tokens). A token of zero-width
    characters can have none.

    `texts` are those of the Docs. Returns the index of each token's first wordpiece and the number
    of its wordpieces (num_tokens,), and the number of tokens of each Doc (num_docs,).
    """
    starts, ends, tokens = token_offsets(docs)
    # Concatenate all Docs, so that one search is enough for the batch.
    sizes = np.fromiter((len(text) + 1 for text in texts), dtype=np.int64, count=len(texts))
    shift = np.cumsum(sizes) - sizes
    starts, ends = starts + np.repeat(shift, tokens), ends + np.repeat(shift, tokens)
    piece_starts = wordpieces.starts + np.repeat(shift, wordpieces.lengths)
    piece_ends = wordpieces.ends + np.repeat(shift, wordpieces.lengths)

    first = np.searchsorted(piece_starts, starts, side="left")
    count = np.searchsorted(piece_starts, ends, side="left") - first
    if len(piece_starts):
        covering = np.maximum(np.searchsorted(piece_starts, starts, side="right") - 1, 0)
        covered = (piece_starts[covering] <= starts) & (starts < piece_ends[covering])
        use = (count == 0) & covered
        first, count = np.where(use, covering, first), np.where(use, 1, count)
    return first, count, tokens
