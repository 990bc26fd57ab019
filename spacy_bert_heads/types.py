"""The data of every hop from text to annotations, named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from thinc.types import Floats2d

if TYPE_CHECKING:
    import torch

Ints1d = NDArray[np.int64]
Bools1d = NDArray[np.bool_]


@dataclass(frozen=True)
class Pieces:
    """The wordpieces of a list of texts, text after text, without special tokens."""

    ids: Ints1d  # (n_pieces,)
    starts: Ints1d  # (n_pieces,) character offsets into the piece's own text
    ends: Ints1d  # (n_pieces,)
    lengths: Ints1d  # (n_texts,) pieces of each text


@dataclass(frozen=True)
class Sequences:
    """What the encoder reads of a batch of Docs, and where each spaCy token stands in it.

    A sequence is one window of one Doc with its special tokens; all sequences stand one after
    the other, so a slot of `ids` and a row of the packed states are the same number.
    """

    ids: Ints1d  # (n_slots,) wordpiece ids, special tokens included
    type_ids: Ints1d  # (n_slots,)
    lengths: Ints1d  # (n_sequences,) slots of each sequence
    windows: Ints1d  # (n_docs,) sequences of each Doc
    tokens: Ints1d  # (n_docs,) spaCy tokens of each Doc
    pieces: Ints1d  # (n_tokens,) wordpieces of each spaCy token, 0 for zero-width ones
    rows: Ints1d  # (sum(pieces),) rows of those pieces, token after token

    def first_rows(self) -> Ints1d:
        """RETURNS (Ints1d): The row of each token's first piece, -1 without one (n_tokens,)."""
        first = np.full(len(self.pieces), -1, dtype=np.int64)
        present = self.pieces > 0
        first[present] = self.rows[(np.cumsum(self.pieces) - self.pieces)[present]]
        return first

    def take(self, docs: Ints1d) -> tuple[Sequences, Ints1d]:
        """Select some Docs, in the order given.

        docs (Ints1d): Indices of the Docs.
        RETURNS (Tuple[Sequences, Ints1d]): Their sequences, and the rows of the packed states
            that belong to them.
        """
        windows = _select(docs, self.windows)
        slots = _select(windows, self.lengths)
        tokens = _select(docs, self.tokens)
        pieces = _select(tokens, self.pieces)
        # The rows of each Doc move together, from where its slots began to where they begin now.
        doc_slots = _sums(self.lengths, self.windows)
        began = (np.cumsum(doc_slots) - doc_slots)[docs]
        begin = np.cumsum(doc_slots[docs]) - doc_slots[docs]
        moved = np.repeat(begin - began, _sums(self.pieces, self.tokens)[docs])
        taken = Sequences(
            ids=self.ids[slots],
            type_ids=self.type_ids[slots],
            lengths=self.lengths[windows],
            windows=self.windows[docs],
            tokens=self.tokens[docs],
            pieces=self.pieces[tokens],
            rows=self.rows[pieces] + moved,
        )
        return taken, slots


def ranges(starts: Ints1d, lengths: Ints1d) -> Ints1d:
    """Concatenate `arange(start, start + length)` for every pair, without a loop.

    ranges([5, 0], [3, 2]) -> [5, 6, 7, 0, 1]
    """
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum(), dtype=np.int64) + np.repeat(starts - before, lengths)


def _select(groups: Ints1d, sizes: Ints1d) -> Ints1d:
    """The member indices of some groups, where group i has sizes[i] members in a row."""
    return ranges((np.cumsum(sizes) - sizes)[groups], sizes[groups])


def _sums(values: Ints1d, sizes: Ints1d) -> Ints1d:
    """The sum of each group's values, where group i has sizes[i] values in a row."""
    total, ends = np.append(0, np.cumsum(values)), np.cumsum(sizes)
    return total[ends] - total[ends - sizes]


@dataclass
class Encoded:
    """The encoder's answer: packed states, and the sequences that they are states of."""

    states: torch.Tensor  # (n_slots, width), float32, on the encoder's device
    sequences: Sequences


class TokenScores(NamedTuple):
    """A token head's answer for a batch, Doc after Doc."""

    logits: Floats2d  # (n_tokens, n_classes)
    known: Bools1d  # (n_tokens,) False where a token has no wordpiece: nothing is known of it
    lengths: Ints1d  # (n_docs,) tokens of each Doc


class MeanLoss(float):
    """A running mean that spaCy's training loop and loggers take for the usual float.

    spaCy adds a component's losses up between two reports, which makes a figure that nobody
    can read; this shows their mean per update instead.
    """

    count: int

    def __new__(cls, mean: float = 0.0, count: int = 0) -> MeanLoss:
        self = super().__new__(cls, mean)
        self.count = count
        return self

    def __add__(self, loss: float) -> MeanLoss:
        return MeanLoss(float(self) + (loss - float(self)) / (self.count + 1), self.count + 1)

    def __reduce__(self) -> tuple:
        return MeanLoss, (float(self), self.count)
