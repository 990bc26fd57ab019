"""What the encoder reads: sequences of wordpieces, laid out without padding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .arrays import Bools1d, Ints1d, ranges, select, sums


@dataclass(frozen=True)
class OffsetMapping:
    """Where the wordpieces at each position are in the text of their Doc."""

    starts: Ints1d  # (num_positions,) characters, -1 for special tokens and second texts
    ends: Ints1d  # (num_positions,); beside a second text equal to the start for white space
    # Of the windows that contain a wordpiece, the one where it has the most context.
    is_best: Bools1d  # (num_positions,)

    def take(self, positions: Ints1d) -> OffsetMapping:
        """Select positions."""
        return OffsetMapping(self.starts[positions], self.ends[positions], self.is_best[positions])


@dataclass(frozen=True)
class TokenMap:
    """Where the wordpieces of each spaCy token are in a packed batch.

    A wordpiece that is in two windows is found in the one where it has more context.
    """

    num_tokens: Ints1d  # (num_texts,) spaCy tokens of each Doc
    num_wordpieces: Ints1d  # (num_tokens,) wordpieces of each token, 0 for a zero-width one
    positions: Ints1d  # (sum(num_wordpieces),) positions of these, token after token

    def first_positions(self) -> Ints1d:
        """Return the position of each token's first wordpiece, -1 without one (num_tokens,)."""
        first = np.full(len(self.num_wordpieces), -1, dtype=np.int64)
        present = self.num_wordpieces > 0
        starts = np.cumsum(self.num_wordpieces) - self.num_wordpieces
        first[present] = self.positions[starts[present]]
        return first


@dataclass(frozen=True)
class PackedBatch:
    """Texts as sequences, one sequence after another.

    A text is a Doc, or a Doc with a second text. A sequence is one window of a text, with its
    special tokens. A position of `input_ids` and a row of the hidden states have the same number.
    """

    input_ids: Ints1d  # (num_positions,) wordpiece ids, special tokens included
    token_type_ids: Ints1d  # (num_positions,)
    cu_seqlens: Ints1d  # (num_sequences + 1,) where each sequence begins; then num_positions
    num_windows: Ints1d  # (num_texts,) sequences of each text
    offsets: OffsetMapping | None = None  # of Docs, alone or with a second text
    tokens: TokenMap | None = None  # of Docs without a second text

    @property
    def seqlens(self) -> Ints1d:
        """The length of each sequence (num_sequences,)."""
        return np.diff(self.cu_seqlens)

    @property
    def max_seqlen(self) -> int:
        """The length of the longest sequence, 0 without any."""
        return int(self.seqlens.max(initial=0))

    def take(self, texts: Ints1d) -> tuple[PackedBatch, Ints1d]:
        """Select texts by their indices, in the order given. Returns their batch, and the positions
        of this batch that it consists of."""
        taken, positions = self.take_windows(
            select(texts, self.num_windows), self.num_windows[texts]
        )
        if self.tokens is None:
            return taken, positions
        tokens = self.tokens
        chosen = select(texts, tokens.num_tokens)
        wordpieces = select(chosen, tokens.num_wordpieces)
        # All positions of a text move together, from where it began to where it begins now.
        sizes = sums(self.seqlens, self.num_windows)
        began = (np.cumsum(sizes) - sizes)[texts]
        begins = np.cumsum(sizes[texts]) - sizes[texts]
        moves = np.repeat(begins - began, sums(tokens.num_wordpieces, tokens.num_tokens)[texts])
        moved = TokenMap(
            num_tokens=tokens.num_tokens[texts],
            num_wordpieces=tokens.num_wordpieces[chosen],
            positions=tokens.positions[wordpieces] + moves,
        )
        return replace(taken, tokens=moved), positions

    def sample(self, max_windows: int | None) -> PackedBatch:
        """Select at most this many windows of each text, at random, in their order; None for all.
        A token outside of them has no wordpieces. Returns the batch itself if no text has more."""
        counts = self.num_windows
        if max_windows is None or (counts <= max_windows).all():
            return self
        text_of = np.repeat(np.arange(len(counts)), counts)
        # numpy's own generator, because it is the one that spaCy seeds.
        order = np.lexsort((np.random.random(len(text_of)), text_of))
        rank = ranges(np.zeros_like(counts), counts)  # of each window in the order of its text
        chosen = np.sort(order[rank < max_windows])
        taken, positions = self.take_windows(chosen, np.minimum(counts, max_windows))
        if self.tokens is None:
            return taken
        moved = np.full(len(self.input_ids), -1, dtype=np.int64)
        moved[positions] = np.arange(len(positions))
        places = moved[self.tokens.positions]
        present = places >= 0
        num_wordpieces = sums(present, self.tokens.num_wordpieces)
        return replace(
            taken, tokens=TokenMap(self.tokens.num_tokens, num_wordpieces, places[present])
        )

    def take_windows(self, windows: Ints1d, num_windows: Ints1d) -> tuple[PackedBatch, Ints1d]:
        """Select sequences by their indices, in the order given, `num_windows` for each text.

        Returns their batch, without a map of tokens, and the positions of this batch that it
        consists of.
        """
        positions = select(windows, self.seqlens)
        taken = PackedBatch(
            input_ids=self.input_ids[positions],
            token_type_ids=self.token_type_ids[positions],
            cu_seqlens=cumulate(self.seqlens[windows]),
            num_windows=num_windows,
            offsets=None if self.offsets is None else self.offsets.take(positions),
        )
        return taken, positions


def join(batches: list[PackedBatch]) -> PackedBatch:
    """Put batches of Docs, one at least, behind each other."""
    maps = [batch.tokens for batch in batches if batch.tokens is not None]
    offsets = [batch.offsets for batch in batches if batch.offsets is not None]
    sizes = np.asarray([len(batch.input_ids) for batch in batches], dtype=np.int64)
    begins = np.cumsum(sizes) - sizes
    tokens = TokenMap(
        num_tokens=np.concatenate([one.num_tokens for one in maps]),
        num_wordpieces=np.concatenate([one.num_wordpieces for one in maps]),
        positions=np.concatenate([t.positions + at for t, at in zip(maps, begins, strict=True)]),
    )
    return PackedBatch(
        input_ids=np.concatenate([batch.input_ids for batch in batches]),
        token_type_ids=np.concatenate([batch.token_type_ids for batch in batches]),
        cu_seqlens=cumulate(np.concatenate([batch.seqlens for batch in batches])),
        num_windows=np.concatenate([batch.num_windows for batch in batches]),
        offsets=OffsetMapping(
            starts=np.concatenate([one.starts for one in offsets]),
            ends=np.concatenate([one.ends for one in offsets]),
            is_best=np.concatenate([one.is_best for one in offsets]),
        ),
        tokens=tokens,
    )


def batch_of_tokens(num_tokens: Ints1d) -> PackedBatch:
    """Make a batch with one position for each token, for vectors that come from no tokenizer of
    ours. `num_tokens` are the tokens of each Doc (num_docs,)."""
    total = int(num_tokens.sum())
    zeros, ones = np.zeros(total, dtype=np.int64), np.ones(total, dtype=np.int64)
    return PackedBatch(
        input_ids=zeros,
        token_type_ids=zeros,
        cu_seqlens=cumulate(num_tokens),
        num_windows=np.ones_like(num_tokens),
        tokens=TokenMap(num_tokens, ones, np.arange(total, dtype=np.int64)),
    )


def cumulate(lengths: Ints1d) -> Ints1d:
    """Return where groups of these lengths begin, and where the last one ends (n + 1,)."""
    return np.append(0, np.cumsum(lengths))
