"""Texts to wordpieces with character offsets, and those to spaCy's tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from spacy.attrs import IDX, LENGTH
from spacy.tokens import Doc

from .types import Ints1d, Pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = re.compile(r"\s*")


class PairTemplate(NamedTuple):
    """What stands around two texts that are read together."""

    prefix: Ints1d
    middle: Ints1d
    suffix: Ints1d
    first_type: int  # the type id of the first text, and of what stands before it and after it
    second_type: int


class Wordpieces:
    """A fast tokenizer that leaves special tokens, truncation and padding to us.

    tokenizer (Tokenizer): A tokenizer of the `tokenizers` library. It is reconfigured in place.
    pad_id (int): The id that fills the slots behind a short sequence.
    """

    def __init__(self, tokenizer: Tokenizer, *, pad_id: int = 0) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.pad_id = pad_id
        # The special tokens around one text, read off the tokenizer itself, because each
        # family has its own.
        template = tokenizer.encode("a")
        text = [i for i, special in enumerate(template.special_tokens_mask) if not special]
        before, after = (text[0], text[-1] + 1) if text else (1, len(template.ids))
        self.prefix = np.asarray(template.ids[:before], dtype=np.int64)
        self.suffix = np.asarray(template.ids[after:], dtype=np.int64)
        self.pair = _read_pair_template(tokenizer)

    @property
    def n_special(self) -> int:
        """RETURNS (int): Special tokens around one text."""
        return len(self.prefix) + len(self.suffix)

    def __call__(self, texts: Sequence[str]) -> Pieces:
        """Tokenize a batch of texts of any length.

        texts (Sequence[str]): The texts.
        RETURNS (Pieces): Their wordpieces. Offsets never start on white space that precedes a
            word (byte-level and sentencepiece tokenizers count it to the word otherwise).
        """
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        ids = np.fromiter(chain.from_iterable(one.ids for one in encodings), dtype=np.int64)
        pairs = chain.from_iterable(one.offsets for one in encodings)
        offsets = np.fromiter(chain.from_iterable(pairs), dtype=np.int64).reshape(-1, 2)
        # All texts are looked at as one, behind each other.
        sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        shift = np.repeat(np.cumsum(sizes) - sizes, lengths)
        ends = offsets[:, 1]
        starts = _trim_spaces("".join(texts), offsets[:, 0] + shift, ends + shift) - shift
        return Pieces(ids, starts, ends, lengths)


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
    """Move piece starts over leading white space; a piece of nothing else stays."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    # Every kind of white space that a tokenizer could attach is at or below U+0020, a
    # no-break space, or above U+1680: most pieces are ruled out without a look at the text.
    first = codes[np.minimum(starts, len(codes) - 1)]
    for i in np.flatnonzero((first <= 32) | (first == 0xA0) | (first == 0x85) | (first >= 0x1680)):
        start = SPACE.match(text, starts[i], ends[i]).end()  # type: ignore[union-attr]
        if start < ends[i]:
            starts[i] = start
    return starts


def token_offsets(docs: Sequence[Doc]) -> tuple[Ints1d, Ints1d, Ints1d]:
    """Where the tokens of a batch of Docs start and end in their texts.

    docs (Sequence[Doc]): The Docs.
    RETURNS (Tuple[Ints1d, Ints1d, Ints1d]): Starts and ends as characters of each token's own
        text, trailing space excluded (n_tokens,), and the tokens of each Doc (n_docs,).
    """
    lengths = np.fromiter(map(len, docs), dtype=np.int64, count=len(docs))
    spans = np.concatenate([doc.to_array([IDX, LENGTH]) for doc in docs] or [np.empty((0, 2))])
    spans = spans.astype(np.int64)
    return spans[:, 0], spans[:, 0] + spans[:, 1], lengths


def align(
    pieces: Pieces, docs: Sequence[Doc], texts: Sequence[str]
) -> tuple[Ints1d, Ints1d, Ints1d]:
    """Find the wordpieces of every spaCy token by character offsets.

    A token's pieces are those that start in it. Where none does, it is the piece that covers
    the token's start (`cannot` is one piece, `can` and `not` are two tokens). A token of
    zero-width characters may have none at all.

    pieces (Pieces): The wordpieces of the Docs' texts.
    docs (Sequence[Doc]): The Docs.
    texts (Sequence[str]): The Docs' texts.
    RETURNS (Tuple[Ints1d, Ints1d, Ints1d]): For each token the index of its first piece in
        the batch and the number of its pieces (n_tokens,), and the tokens of each Doc (n_docs,).
    """
    starts, ends, tokens = token_offsets(docs)
    # Shift every Doc behind the one before it: one search then serves the whole batch.
    sizes = np.fromiter((len(text) + 1 for text in texts), dtype=np.int64, count=len(texts))
    shift = np.cumsum(sizes) - sizes
    starts, ends = starts + np.repeat(shift, tokens), ends + np.repeat(shift, tokens)
    piece_starts = pieces.starts + np.repeat(shift, pieces.lengths)
    piece_ends = pieces.ends + np.repeat(shift, pieces.lengths)

    first = np.searchsorted(piece_starts, starts, side="left")
    count = np.searchsorted(piece_starts, ends, side="left") - first
    if len(piece_starts):
        covering = np.maximum(np.searchsorted(piece_starts, starts, side="right") - 1, 0)
        covered = (piece_starts[covering] <= starts) & (starts < piece_ends[covering])
        use = (count == 0) & covered
        first, count = np.where(use, covering, first), np.where(use, 1, count)
    return first, count, tokens
