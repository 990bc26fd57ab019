"""Wordpieces to the sequences that the encoder runs: windows, and buckets under a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from spacy.tokens import Doc

from .types import Ints1d, Sequences, ranges
from .wordpieces import Wordpieces, align


def make_sequences(
    docs: Sequence[Doc], wordpieces: Wordpieces, *, window: int, stride: int
) -> Sequences:
    """Turn a batch of Docs into sequences, and point every token at its states.

    docs (Sequence[Doc]): The Docs.
    wordpieces (Wordpieces): The checkpoint's tokenizer.
    window (int): The longest sequence, in wordpieces, special tokens included.
    stride (int): The step from one window of a long Doc to the next, in wordpieces.
    RETURNS (Sequences): The sequences of all Docs; an empty Doc has one without pieces.
    """
    texts = [doc.text for doc in docs]  # spaCy builds a Doc's text anew at every access
    pieces = wordpieces(texts)
    capacity = window - wordpieces.n_special
    windows, starts, lengths = cut_windows(pieces.lengths, capacity=capacity, stride=stride)

    slots_per_sequence = lengths + wordpieces.n_special
    base = np.cumsum(slots_per_sequence) - slots_per_sequence
    n_slots = int(slots_per_sequence.sum())
    doc_start = np.repeat(np.cumsum(pieces.lengths) - pieces.lengths, windows)
    source = ranges(doc_start + starts, lengths)  # pieces of each window, the overlaps twice
    slots = ranges(base + len(wordpieces.prefix), lengths)  # where they stand

    ids = np.empty(n_slots, dtype=np.int64)
    ids[slots] = pieces.ids[source]
    before, after = len(wordpieces.prefix), len(wordpieces.suffix)
    ids[base[:, None] + np.arange(before)] = wordpieces.prefix
    ids[(base + before + lengths)[:, None] + np.arange(after)] = wordpieces.suffix

    first, count, tokens = align(pieces, docs, texts)
    piece_rows = best_slots(source, slots, lengths, n_pieces=len(pieces.ids))
    return Sequences(
        ids=ids,
        type_ids=np.zeros(n_slots, dtype=np.int64),
        lengths=slots_per_sequence,
        windows=windows,
        tokens=tokens,
        pieces=count,
        rows=piece_rows[ranges(first, count)],
    )


def cut_windows(lengths: Ints1d, *, capacity: int, stride: int) -> tuple[Ints1d, Ints1d, Ints1d]:
    """Cut texts into overlapping windows, until their last piece is covered.

    pieces    0 1 2 3 4 5 6 7 8 9      capacity 4, stride 3
    window 0  ├─────┤
    window 1        ├─────┤
    window 2              ├─────┤

    lengths (Ints1d): Wordpieces of each text (n_texts,).
    capacity (int): Wordpieces that fit into a window.
    stride (int): The step from one window to the next.
    RETURNS (Tuple[Ints1d, Ints1d, Ints1d]): Windows of each text (n_texts,), at least one;
        first piece and number of pieces of every window (n_windows,).
    """
    beyond = np.maximum(lengths - capacity, 0)
    windows = 1 - (-beyond // stride)
    number = ranges(np.zeros_like(windows), windows)
    starts = number * stride
    return windows, starts, np.minimum(capacity, np.repeat(lengths, windows) - starts)


def best_slots(source: Ints1d, slots: Ints1d, lengths: Ints1d, *, n_pieces: int) -> Ints1d:
    """Choose for every piece the window in which its shorter side has the most context; of
    equals the first. (The rule of `run_squad.py` in google-research/bert.)

    source (Ints1d): The piece in each window position (n_positions,).
    slots (Ints1d): The slot of each window position (n_positions,).
    lengths (Ints1d): Positions of each window (n_windows,).
    n_pieces (int): The number of pieces.
    RETURNS (Ints1d): The slot of each piece (n_pieces,).
    """
    best = np.empty(n_pieces, dtype=np.int64)
    if len(source) > n_pieces:  # some window overlaps another
        left = ranges(np.zeros_like(lengths), lengths)
        context = np.minimum(left, np.repeat(lengths, lengths) - 1 - left)
        # Written in the order of context, first windows last: the last write stands.
        order = np.lexsort((-slots, context))
        source, slots = source[order], slots[order]
    best[source] = slots
    return best


def make_buckets(lengths: Ints1d, *, max_tokens: int) -> list[Ints1d]:
    """Group sequences of like length, so that little of a bucket is padding.

    Going from long to short, a bucket is closed when another sequence would take it over
    the budget, or when the next would bring more padding than starting a bucket costs.

    lengths (Ints1d): Slots of each sequence (n_sequences,).
    max_tokens (int): The most slots, padding included, of a bucket. A sequence that is longer
        by itself is a bucket by itself.
    RETURNS (List[Ints1d]): The indices of the sequences in each bucket, longest first.
    """
    order = np.argsort(-lengths, kind="stable")
    buckets, start, padding = [], 0, 0
    for i, length in enumerate(lengths[order].tolist()):
        longest = int(lengths[order[start]])
        padding += longest - length
        if (i - start + 1) * longest > max_tokens or padding > BUCKET_OVERHEAD:
            if i > start:
                buckets.append(order[start:i])
            start, padding = i, 0
    if start < len(order):
        buckets.append(order[start:])
    return buckets


# What a bucket costs by itself (kernel launches, small matrices), in slots of padding.
BUCKET_OVERHEAD = 256
