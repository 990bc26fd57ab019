"""The encoder's input: sequences of wordpieces, packed without padding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .arrays import Bools1d, Ints1d, ranges, select, sums


@dataclass(frozen=True)
class OffsetMapping:
    """The characters of the wordpiece at each position in the text of its Doc."""

    starts: Ints1d  # (num_positions,) characters, -1 for special tokens and second texts
    ends: Ints1d  # (num_positions,); in pairs equal to the start for white space
    # True in one of the windows that contain a wordpiece: where it has the most context.
    is_best: Bools1d  # (num_positions,)

    def take(self, positions: Ints1d) -> OffsetMapping:
        """Select positions."""
        return OffsetMapping(self.starts[positions], self.ends[positions], self.is_best[positions])


@dataclass(frozen=True)
class TokenMap:
    """The positions of each spaCy token's wordpieces in a packed batch.

    For a wordpiece in several windows it is the position with the most context.
    """

    num_tokens: Ints1d  # (num_texts,) number of spaCy tokens of each Doc
    # (num_tokens,) number of wordpieces of each token, 0 for a zero-width one
    num_wordpieces: Ints1d
    positions: Ints1d  # (sum(num_wordpieces),) their positions, token after token

    def first_positions(self) -> Ints1d:
        """Return the position of each token's first wordpiece, -1 if it has none (num_tokens,)."""
        first = np.full(len(self.num_wordpieces), -1, dtype=np.int64)
        present = self.num_wordpieces > 0
        starts = np.cumsum(self.num_wordpieces) - self.num_wordpieces
        first[present] = self.positions[starts[present]]
        return first


@dataclass(frozen=True)
class PackedBatch:
    """Texts as concatenated sequences, without padding.

    A text is a Doc, or a Doc with a second text. A sequence is one window of a text, with special
    tokens. A position of `input_ids` and the row of its hidden states have the same index.
    """

    input_ids: Ints1d  # (num_positions,) wordpiece ids, special tokens included
    token_type_ids: Ints1d  # (num_positions,)
    cu_seqlens: Ints1d  # (num_sequences + 1,) the start of each sequence, then num_positions
    num_windows: Ints1d  # (num_texts,) number of sequences of each text
    offsets: OffsetMapping | None = None  # of Docs, alone or with a second text
    tokens: TokenMap | None = None  # of Docs without a second text

    @property
    def seqlens(self) -> Ints1d:
        """The length of each sequence (num_sequences,)."""
        return np.diff(self.cu_seqlens)

    @property
    def max_seqlen(self) -> int:
        """The length of the longest sequence, 0 if there is none."""
        return int(self.seqlens.max(initial=0))

    def take(self, texts: Ints1d) -> tuple[PackedBatch, Ints1d]:
        """Select texts by their indices, in the same order. Returns a batch of them, and its
        positions in this batch."""
        taken, positions = self.take_windows(
            select(texts, self.num_windows), self.num_windows[texts]
        )
        if self.tokens is None:
            return taken, positions
        tokens = self.tokens
        chosen = select(texts, tokens.num_tokens)
        wordpieces = select(chosen, tokens.num_wordpieces)
        # All positions of a text move by the same offset.
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
        """Select at most `max_windows` random windows of each text, in their order; None for all.
        Tokens outside of them have no wordpieces. Returns the batch itself if no text has more."""
        counts = self.num_windows
        if max_windows is None or (counts <= max_windows).all():
            return self
        text_of = np.repeat(np.arange(len(counts)), counts)
        # numpy's global generator, because that is the one that spaCy seeds.
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
        """Select sequences by their indices, in the same order; `num_windows` is their number for
        each text. Returns a batch of them, without `tokens`, and its positions in this batch."""
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
    """Concatenate batches of Docs, at least one."""
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
    """Make a batch with one position for each token, for vectors that are not from our tokenizer.
    `num_tokens` is the number of tokens of each Doc (num_docs,)."""
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
    """Return the start of each of n consecutive groups with these lengths, then the total
    (n + 1,)."""
    return np.append(0, np.cumsum(lengths))
