"""Buckets of sequences of similar length, several of which are run at once.

    packed batch     ├─seq 0─┤├──────seq 1──────┤├──seq 2──┤├─────seq 3─────┤
    bucket of two    ├──────seq 1──────┤├─────seq 3─────┤──    each padded to the longest
    bucket of two    ├──seq 2──┤├─seq 0─┤──
    bucketed batch   the buckets one after another, up to a budget of positions

Embeddings, linear layers and norms run over all positions of a bucketed batch in one call;
attention runs bucket by bucket (`attention.py`). So buckets are cheap, and with many of them only
4 % of a batch of 32 texts is padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from ..text.arrays import Ints1d, ranges, select, sums
from ..text.batch import PackedBatch


class BucketedBatch(NamedTuple):
    """Several buckets, one after another. The sequences of a bucket are padded at their ends to the
    same length."""

    input_ids: torch.Tensor  # (num_positions,) padding included
    token_type_ids: torch.Tensor  # (num_positions,)
    mask: torch.Tensor  # (num_positions,) False for padding
    position_ids: torch.Tensor  # (num_positions,) counted from 0 in each sequence
    shapes: list[tuple[int, int]]  # number of sequences and length of each bucket
    is_padded: list[bool]  # whether a bucket has padding, known without a GPU synchronization

    def split(self, states: torch.Tensor) -> list[torch.Tensor]:
        """Split a tensor (num_positions, …) by bucket into tensors (num_sequences, length, …)."""
        parts = states.split([n * length for n, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]


class Part(NamedTuple):
    """A part of a batch that is run at once."""

    layout: BucketedBatch
    members: Ints1d  # the sequences of the batch that are in this part
    positions: Ints1d  # their positions in the batch
    places: Ints1d  # their positions in the layout


def lay_out_one(batch: PackedBatch, device: torch.device) -> Part:
    """Lay out a batch of one sequence as a single bucket, without the time that `make_buckets`
    takes."""
    positions = np.arange(len(batch.input_ids))
    arrays = (batch.input_ids, batch.token_type_ids, np.ones(len(positions), np.bool_), positions)
    ids, types, real, at = (torch.from_numpy(a).to(device, non_blocking=True) for a in arrays)
    layout = BucketedBatch(ids, types, real, at, [(1, len(positions))], [False])
    return Part(layout, np.zeros(1, dtype=np.int64), positions, positions)


def lay_out(batch: PackedBatch, buckets: list[Ints1d], pad_id: int, device: torch.device) -> Part:
    """Lay out the sequences of `buckets`, which has the indices of each bucket's sequences."""
    members = np.concatenate(buckets)
    seqlens = batch.seqlens
    lengths, positions = seqlens[members], select(members, seqlens)
    shapes = [(len(bucket), int(seqlens[bucket].max())) for bucket in buckets]
    counts, longest = np.array(shapes).T
    widths = np.repeat(longest, counts)
    position_ids = ranges(np.zeros_like(widths), widths)
    mask = position_ids < np.repeat(lengths, widths)
    input_ids = np.full(len(mask), pad_id, dtype=np.int64)
    token_type_ids = np.zeros(len(mask), dtype=np.int64)
    input_ids[mask] = batch.input_ids[positions]
    token_type_ids[mask] = batch.token_type_ids[positions]
    arrays = (input_ids, token_type_ids, mask, position_ids)
    ids, types, real, at = (torch.from_numpy(a).to(device, non_blocking=True) for a in arrays)
    is_padded = (sums(lengths, counts) < counts * longest).tolist()
    layout = BucketedBatch(ids, types, real, at, shapes, is_padded)
    return Part(layout, members, positions, np.flatnonzero(mask))


def make_buckets(lengths: Ints1d, *, max_tokens: int, overhead: int) -> list[Ints1d]:
    """Choose bucket boundaries by dynamic programming to minimise padding plus per-bucket overhead.

    `lengths` are those of the sequences (num_sequences,). `max_tokens` is the maximum number of
    positions in a bucket, padding included; a longer sequence gets its own bucket. `overhead` is
    the cost of a bucket (kernel launches, small matrices) as a number of positions. Returns the
    indices of the sequences in each bucket, longest first. Time is at most quadratic in the number
    of sequences.
    """
    order = np.argsort(-lengths, kind="stable")
    n = len(order)
    # For the first i sequences: the lowest cost, and the start of the last bucket.
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


def group_buckets(
    buckets: list[Ints1d], lengths: Ints1d, max_tokens: int
) -> Iterator[list[Ints1d]]:
    """Yield groups of buckets that are run at once, in their order: at most `max_tokens` positions,
    padding included. A larger bucket is a group of its own."""
    group: list[Ints1d] = []
    room = max_tokens
    for bucket in buckets:
        size = len(bucket) * int(lengths[bucket].max())
        if group and size > room:
            yield group
            group, room = [], max_tokens
        group.append(bucket)
        room -= size
    if group:
        yield group


def common_size(num_rows: int) -> int:
    """Round up to one of a few sizes, eight between powers of two; above 128 by at most an eighth.

    oneDNN compiles and keeps a program for each number of rows, about 10 MB; with AMX, compiling
    takes longer than running it.
    """
    step = max(16, 1 << max((num_rows - 1).bit_length() - 4, 0))
    return round_up(num_rows, step)


def round_up(number: int, step: int) -> int:
    """Round up to a multiple of `step`."""
    return -(-number // step) * step
