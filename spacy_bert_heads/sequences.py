"""Wordpieces to the sequences that the encoder runs: windows of Docs and of pairs, and buckets
and rows under a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from spacy.tokens import Doc

from .types import (
    Bools1d,
    DocSequences,
    Ints1d,
    Ints2d,
    Pairs,
    PairSequences,
    ranges,
    sums,
)
from .wordpieces import Wordpieces, align


def make_sequences(
    docs: Sequence[Doc], wordpieces: Wordpieces, *, window: int, stride: int
) -> DocSequences:
    """Turn a batch of Docs into sequences, and point every token at its states.

    docs (Sequence[Doc]): The Docs.
    wordpieces (Wordpieces): The checkpoint's tokenizer.
    window (int): The longest sequence, in wordpieces, special tokens included.
    stride (int): The step from one window of a long Doc to the next, in wordpieces.
    RETURNS (DocSequences): The sequences of all Docs; an empty Doc has one without pieces.
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
    return DocSequences(
        ids=ids,
        type_ids=np.zeros(n_slots, dtype=np.int64),
        lengths=slots_per_sequence,
        windows=windows,
        tokens=tokens,
        pieces=count,
        rows=piece_rows[ranges(first, count)],
    )


class TextTooLong(ValueError):
    """Second texts that leave too little of a window to the Doc.

    texts (List[str]): The texts.
    limit (int): The most wordpieces that one may have.
    """

    def __init__(self, texts: list[str], limit: int) -> None:
        shown = texts[0] if len(texts[0]) <= 80 else f"{texts[0][:77]}…"
        others = f" (and {len(texts) - 1} others)" if len(texts) > 1 else ""
        super().__init__(
            f"A second text may fill half of a window, {limit} wordpieces, but this one has more: "
            f"'{shown}'{others}. Shorten it, or set a larger window in the encoder's model."
        )
        self.texts = texts


def make_pair_sequences(
    pairs: Pairs, wordpieces: Wordpieces, *, window: int, stride: int
) -> PairSequences:
    """Turn Docs with second texts into sequences. A Doc is tokenized once for all its texts.

    question before context       [CLS] question [SEP] window of the Doc [SEP]
    premise before hypothesis     [CLS] window of the Doc [SEP] hypothesis [SEP]

    pairs (Pairs): The pairs.
    wordpieces (Wordpieces): The checkpoint's tokenizer.
    window (int): The longest sequence, in wordpieces, special tokens and second text included.
    stride (int): The step between windows of a Doc alone. Those of a pair overlap as much, but by
        no more than half of what the second text leaves to the Doc.
    RETURNS (PairSequences): The sequences of all pairs; an empty Doc has one without pieces.
    RAISES (TextTooLong): If a second text has more wordpieces than half a window.
    """
    second = [text for texts in pairs.texts for text in texts]
    contexts, texts = wordpieces([doc.text for doc in pairs.docs]), wordpieces(second)
    special = wordpieces.pair
    prefix, middle, suffix = map(len, (special.prefix, special.middle, special.suffix))
    n_special = prefix + middle + suffix
    limit = max(min(window // 2, window - n_special - 1), 0)  # one piece of the Doc at least
    too_long = np.flatnonzero(texts.lengths > limit)
    if len(too_long):
        raise TextTooLong([second[i] for i in too_long], limit)
    doc_of = np.repeat(np.arange(len(pairs.docs)), pairs.sizes)
    capacity = window - n_special - texts.lengths
    overlap = np.minimum(window - wordpieces.n_special - stride, capacity // 2)
    windows, starts, lengths = cut_windows(
        contexts.lengths[doc_of], capacity=capacity, stride=capacity - overlap
    )

    pair_of = np.repeat(np.arange(len(second)), windows)
    text_lengths = texts.lengths[pair_of]
    slots_per_sequence = lengths + text_lengths + n_special
    base = np.cumsum(slots_per_sequence) - slots_per_sequence
    n_slots = int(slots_per_sequence.sum())
    first_lengths = lengths if pairs.doc_first else text_lengths
    middle_at = base + prefix + first_lengths
    first_at, second_at = base + prefix, middle_at + middle
    doc_at, text_at = (first_at, second_at) if pairs.doc_first else (second_at, first_at)
    # The pieces of each window, overlaps twice, and where they stand; the same of second texts.
    context_starts = np.cumsum(contexts.lengths) - contexts.lengths
    source = ranges(context_starts[doc_of[pair_of]] + starts, lengths)
    slots = ranges(doc_at, lengths)
    text_source = ranges((np.cumsum(texts.lengths) - texts.lengths)[pair_of], text_lengths)

    ids = np.empty(n_slots, dtype=np.int64)
    ids[slots] = contexts.ids[source]
    ids[ranges(text_at, text_lengths)] = texts.ids[text_source]
    ids[base[:, None] + np.arange(prefix)] = special.prefix
    ids[middle_at[:, None] + np.arange(middle)] = special.middle
    ids[(base + slots_per_sequence - suffix)[:, None] + np.arange(suffix)] = special.suffix
    type_ids = np.full(n_slots, special.first_type, dtype=np.int64)
    type_ids[ranges(second_at, base + slots_per_sequence - second_at)] = special.second_type

    piece_starts = np.full(n_slots, -1, dtype=np.int64)
    piece_ends = np.full(n_slots, -1, dtype=np.int64)
    piece_starts[slots], piece_ends[slots] = contexts.starts[source], contexts.ends[source]
    # Each pair has pieces of its own here, so that each keeps the best of its own windows.
    pair_lengths = contexts.lengths[doc_of]
    own = ranges((np.cumsum(pair_lengths) - pair_lengths)[pair_of] + starts, lengths)
    best = np.zeros(n_slots, dtype=np.bool_)
    best[best_slots(own, slots, lengths, n_pieces=int(pair_lengths.sum()))] = True
    return PairSequences(
        ids=ids,
        type_ids=type_ids,
        lengths=slots_per_sequence,
        windows=windows,
        starts=piece_starts,
        ends=piece_ends,
        best=best,
    )


def find_answers(sequences: PairSequences, answers: Ints2d) -> tuple[Ints1d, Ints1d, Bools1d]:
    """Find the pieces of each pair's answer in its windows.

    sequences (PairSequences): The pairs.
    answers (Ints2d): First and behind the last character of each pair's answer (n_pairs, 2).
    RETURNS (Tuple[Ints1d, Ints1d, Bools1d]): The slots of the answer's first and last piece in
        each window, those of its first slot ([CLS]) where the window doesn't hold all of it; and
        whether some window does hold it, or there is none to hold (n_sequences,).
    """
    base = np.cumsum(sequences.lengths) - sequences.lengths
    pair_of = np.repeat(np.arange(len(sequences.windows)), sequences.windows)
    begin, end = answers[np.repeat(pair_of, sequences.lengths)].T
    inside = (sequences.starts < end) & (sequences.ends > begin) & (begin < end)
    here = sums(inside, sequences.lengths)
    wanted = np.bincount(
        pair_of, weights=sums(inside & sequences.best, sequences.lengths), minlength=len(answers)
    )
    holds = (here == wanted[pair_of]) & (here > 0)
    slots = np.flatnonzero(inside)
    first_inside = (np.cumsum(here) - here)[holds]
    first, last = base.copy(), base.copy()
    first[holds] = slots[first_inside]
    last[holds] = slots[first_inside + here[holds] - 1]
    found = np.bincount(pair_of, weights=holds, minlength=len(answers)) > 0
    return first, last, (found | (answers[:, 0] == answers[:, 1]))[pair_of]


def set_targets(sequences: PairSequences, answers: Ints2d) -> PairSequences:
    """Set what each window teaches.

    sequences (PairSequences): All windows.
    answers (Ints2d): As above (n_pairs, 2).
    RETURNS (PairSequences): The same, with targets.
    """
    base = np.cumsum(sequences.lengths) - sequences.lengths
    first, last, known = find_answers(sequences, answers)
    targets = np.where(known[:, None], np.stack((first - base, last - base), axis=1), -1)
    return replace(sequences, targets=targets)


def choose_windows(sequences: PairSequences, answers: Ints2d) -> PairSequences:
    """Choose what of long contexts to train on: the windows that hold the answer, and one at
    random of those that do not, lest "not in this window" drown all else.

    sequences (PairSequences): All windows.
    answers (Ints2d): As above (n_pairs, 2).
    RETURNS (PairSequences): The windows chosen, with targets.
    """
    # Set before the choice, while all windows of an answer can be seen.
    sequences = set_targets(sequences, answers)
    assert sequences.targets is not None
    if (sequences.windows == 1).all():
        return sequences
    chosen = sequences.targets[:, 0] > 0
    pair_of = np.repeat(np.arange(len(sequences.windows)), sequences.windows)
    # numpy's own generator, because it is the one that spaCy seeds.
    order = np.random.permutation(len(chosen))
    order = order[~chosen[order]]
    _, one_of_each = np.unique(pair_of[order], return_index=True)
    chosen[order[one_of_each]] = True
    return sequences.keep(chosen)


def cut_windows(
    lengths: Ints1d, *, capacity: int | Ints1d, stride: int | Ints1d
) -> tuple[Ints1d, Ints1d, Ints1d]:
    """Cut texts into overlapping windows, until their last piece is covered.

    pieces    0 1 2 3 4 5 6 7 8 9      capacity 4, stride 3
    window 0  ├─────┤
    window 1        ├─────┤
    window 2              ├─────┤

    lengths (Ints1d): Wordpieces of each text (n_texts,).
    capacity (int / Ints1d): Wordpieces that fit into a window.
    stride (int / Ints1d): The step from one window to the next.
    RETURNS (Tuple[Ints1d, Ints1d, Ints1d]): Windows of each text (n_texts,), at least one;
        first piece and number of pieces of every window (n_windows,).
    """
    beyond = np.maximum(lengths - capacity, 0)
    windows = 1 - (-beyond // stride)
    number = ranges(np.zeros_like(windows), windows)
    starts = number * np.repeat(np.broadcast_to(stride, windows.shape), windows)
    capacities = np.repeat(np.broadcast_to(capacity, windows.shape), windows)
    return windows, starts, np.minimum(capacities, np.repeat(lengths, windows) - starts)


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


def make_buckets(lengths: Ints1d, *, max_tokens: int, overhead: int) -> list[Ints1d]:
    """Group sequences of like length, so that buckets and their padding together cost least.

    A bucket costs its slots, padding included, and `overhead`. Of all ways to cut the sequences,
    sorted by length, the cheapest is found by dynamic programming.

    lengths (Ints1d): Slots of each sequence (n_sequences,).
    max_tokens (int): The most slots, padding included, of a bucket. A sequence that is longer
        by itself is a bucket by itself.
    overhead (int): What a bucket costs by itself (kernel launches, small matrices), in slots.
    RETURNS (List[Ints1d]): The indices of the sequences in each bucket, longest first.
    """
    order = np.argsort(-lengths, kind="stable")
    n = len(order)
    # Of the first sequences, how many there are: the least cost, and where the last bucket starts.
    cost, start = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=np.int64)
    cost[0] = 0
    for i, longest in enumerate(lengths[order].tolist()):
        size = min(max(max_tokens // max(longest, 1), 1), n - i)
        with_this = cost[i] + overhead + longest * np.arange(1, size + 1)
        ends = slice(i + 1, i + 1 + size)
        start[ends] = np.where(with_this < cost[ends], i, start[ends])
        cost[ends] = np.minimum(with_this, cost[ends])
    buckets, end = [], n
    while end:
        buckets.append(order[start[end] : end])
        end = start[end]
    return buckets[::-1]


def fill_rows(buckets: list[Ints1d], lengths: Ints1d, max_tokens: int) -> Iterator[list[Ints1d]]:
    """Put buckets into rows, in their order.

    buckets (List[Ints1d]): The sequences of each bucket.
    lengths (Ints1d): The length of each sequence (n_sequences,).
    max_tokens (int): The most slots of a row, padding included. A bucket that has more by itself is
        a row by itself.
    YIELDS (List[Ints1d]): The buckets of a row.
    """
    row: list[Ints1d] = []
    room = max_tokens
    for bucket in buckets:
        size = len(bucket) * int(lengths[bucket].max())
        if row and size > room:
            yield row
            row, room = [], max_tokens
        row.append(bucket)
        room -= size
    if row:
        yield row
