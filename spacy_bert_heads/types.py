"""The data of every hop from text to annotations, named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from spacy.tokens import Doc

# Which layers are read: 0 is the embeddings, 1 the lowest layer, -1 the last; "all" is every one.
Layers = list[int] | str

Ints1d = NDArray[np.int64]
Ints2d = NDArray[np.int64]
Bools1d = NDArray[np.bool_]


@dataclass(frozen=True)
class Pieces:
    """The wordpieces of a list of texts, text after text, without special tokens."""

    ids: Ints1d  # (n_pieces,)
    starts: Ints1d  # (n_pieces,) character offsets into the piece's own text
    ends: Ints1d  # (n_pieces,)
    lengths: Ints1d  # (n_texts,) pieces of each text


@dataclass(frozen=True)
class Pairs:
    """Docs, and the second texts to read beside each, pair after pair."""

    docs: list[Doc]
    texts: list[list[str]]  # of each Doc
    doc_first: bool  # premise before hypothesis; else question before context
    # In training on answers: where that of each pair stands, as characters (n_pairs, 2), equal
    # ones for no answer. Windows are chosen by it.
    answers: Ints2d | None = None

    @property
    def sizes(self) -> Ints1d:
        """RETURNS (Ints1d): The pairs of each Doc (n_docs,)."""
        return np.fromiter(map(len, self.texts), dtype=np.int64, count=len(self.texts))

    def split(self, max_chars: int) -> Iterator[Pairs]:
        """Cut into parts of about equal work. A pair is never cut.

        max_chars (int): The most characters of a part, unless one pair has more.
        YIELDS (Pairs): The parts, in order, without answers.
        """
        docs: list[Doc] = []
        texts: list[list[str]] = []
        room = max_chars
        for doc, doc_texts in zip(self.docs, self.texts, strict=True):
            size = doc[-1].idx + len(doc[-1]) if len(doc) else 0
            for i, text in enumerate(doc_texts):
                room -= size + len(text)
                if room < 0 and docs:
                    yield Pairs(docs, texts, self.doc_first)
                    docs, texts, room = [], [], max_chars - size - len(text)
                if i == 0 or not docs:
                    docs.append(doc)
                    texts.append([])
                texts[-1].append(text)
        if docs:
            yield Pairs(docs, texts, self.doc_first)


@dataclass(frozen=True)
class Sequences:
    """What the encoder reads.

    A sequence is one window, with its special tokens; all sequences stand one after the other,
    so a slot of `ids` and a row of the packed states are the same number.
    """

    ids: Ints1d  # (n_slots,) wordpiece ids, special tokens included
    type_ids: Ints1d  # (n_slots,)
    lengths: Ints1d  # (n_sequences,) slots of each sequence
    windows: Ints1d  # (n_inputs,) sequences of each Doc, or of each pair


@dataclass(frozen=True)
class PairSequences(Sequences):
    """Pairs of texts as sequences: the second text is in every window of the Doc."""

    # Characters of the Doc's text, -1 where a slot is no piece of the Doc (n_slots,).
    starts: Ints1d
    ends: Ints1d
    best: Bools1d  # (n_slots,) of the windows that hold a piece, the one with the most context
    # In training on answers: the answer's first and last piece, counted from the window's first
    # slot, which stands for "not here"; -1 where nothing can be learned (n_sequences, 2).
    targets: Ints2d | None = None

    def keep(self, chosen: Bools1d) -> PairSequences:
        """Select some windows.

        chosen (Bools1d): Which sequences (n_sequences,).
        RETURNS (PairSequences): Those.
        """
        slots = np.repeat(chosen, self.lengths)
        return PairSequences(
            ids=self.ids[slots],
            type_ids=self.type_ids[slots],
            lengths=self.lengths[chosen],
            windows=sums(chosen, self.windows),
            starts=self.starts[slots],
            ends=self.ends[slots],
            best=self.best[slots],
            targets=None if self.targets is None else self.targets[chosen],
        )


@dataclass(frozen=True)
class DocSequences(Sequences):
    """Docs as sequences, and where each spaCy token stands in them."""

    tokens: Ints1d  # (n_docs,) spaCy tokens of each Doc
    pieces: Ints1d  # (n_tokens,) wordpieces of each spaCy token, 0 for zero-width ones
    rows: Ints1d  # (sum(pieces),) rows of those pieces, token after token

    def first_rows(self) -> Ints1d:
        """RETURNS (Ints1d): The row of each token's first piece, -1 without one (n_tokens,)."""
        first = np.full(len(self.pieces), -1, dtype=np.int64)
        present = self.pieces > 0
        first[present] = self.rows[(np.cumsum(self.pieces) - self.pieces)[present]]
        return first

    @staticmethod
    def join(parts: list[DocSequences]) -> DocSequences:
        """parts (List[DocSequences]): Docs after Docs, one part at least.
        RETURNS (DocSequences): All of them.
        """
        sizes = np.asarray([len(part.ids) for part in parts], dtype=np.int64)
        begin = np.cumsum(sizes) - sizes
        return DocSequences(
            ids=np.concatenate([part.ids for part in parts]),
            type_ids=np.concatenate([part.type_ids for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            windows=np.concatenate([part.windows for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
            pieces=np.concatenate([part.pieces for part in parts]),
            rows=np.concatenate([p.rows + at for p, at in zip(parts, begin, strict=True)]),
        )

    def take(self, docs: Ints1d) -> tuple[DocSequences, Ints1d]:
        """Select some Docs, in the order given.

        docs (Ints1d): Indices of the Docs.
        RETURNS (Tuple[DocSequences, Ints1d]): Their sequences, and the rows of the packed states
            that belong to them.
        """
        windows = select(docs, self.windows)
        slots = select(windows, self.lengths)
        tokens = select(docs, self.tokens)
        pieces = select(tokens, self.pieces)
        # The rows of each Doc move together, from where its slots began to where they begin now.
        doc_slots = sums(self.lengths, self.windows)
        began = (np.cumsum(doc_slots) - doc_slots)[docs]
        begin = np.cumsum(doc_slots[docs]) - doc_slots[docs]
        moved = np.repeat(begin - began, sums(self.pieces, self.tokens)[docs])
        taken = DocSequences(
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


def select(groups: Ints1d, sizes: Ints1d) -> Ints1d:
    """The member indices of some groups, where group i has sizes[i] members in a row."""
    return ranges((np.cumsum(sizes) - sizes)[groups], sizes[groups])


def sums(values: Ints1d | Bools1d, sizes: Ints1d) -> Ints1d:
    """The sum of each group's values, where group i has sizes[i] values in a row."""
    total, ends = np.append(0, np.cumsum(values)), np.cumsum(sizes)
    return total[ends] - total[ends - sizes]


Read = TypeVar("Read", bound=Sequences)


@dataclass
class Encoded(Generic[Read]):
    """The encoder's answer: packed states, and the sequences that they are states of."""

    states: torch.Tensor  # (n_slots, n_layers * width), float32, on the encoder's device
    sequences: Read
    # Whose states stand side by side: 0 for the embeddings, 1 for the lowest layer, and so on.
    # Empty for what comes from no encoder of ours.
    layers: tuple[int, ...] = ()


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
