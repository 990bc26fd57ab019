"""Buckets that lie in one row: all but attention is computed for all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode

from ..types import Ints1d, Sequences, ranges, select, sums

KEYS = 16  # that a processor with AVX-512 takes at once


class Row(NamedTuple):
    """Buckets of sequences one behind the other, the short sequences of each padded at their ends.

    ids (Tensor): The wordpieces (n_slots,).
    type_ids (Tensor): Which of two texts they belong to (n_slots,).
    mask (Tensor): Whether there is a piece, not padding (n_slots,).
    columns (Tensor): Where they stand in their sequences (n_slots,).
    shapes (List[Tuple[int, int]]): Sequences and length of each bucket.
    is_padded (List[bool]): Whether a bucket has padding, which to ask of a GPU would take time.
    """

    ids: torch.Tensor
    type_ids: torch.Tensor
    mask: torch.Tensor
    columns: torch.Tensor
    shapes: list[tuple[int, int]]
    is_padded: list[bool]

    def split(self, states: torch.Tensor) -> list[torch.Tensor]:
        """states (Tensor): One for each slot (n_slots, …).
        RETURNS (List[Tensor]): Those of each bucket (n_sequences, length, …).
        """
        parts = states.split([n * length for n, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]


def pad(
    sequences: Sequences, buckets: list[Ints1d], pad_id: int, device: torch.device
) -> tuple[Row, Ints1d, Ints1d]:
    """Lay sequences out in a row.

    sequences (Sequences): All sequences of the batch.
    buckets (List[Ints1d]): Which of them are in each bucket of the row.
    pad_id (int): What fills a short sequence.
    device (torch.device): Where to.
    RETURNS: The row; the slots that stand in it; and where in the row they stand.
    """
    members = np.concatenate(buckets)
    lengths, slots = sequences.lengths[members], select(members, sequences.lengths)
    shapes = [(len(bucket), int(sequences.lengths[bucket].max())) for bucket in buckets]
    counts, longest = np.array(shapes).T
    widths = np.repeat(longest, counts)
    columns = ranges(np.zeros_like(widths), widths)
    mask = columns < np.repeat(lengths, widths)
    ids, type_ids = np.full(len(mask), pad_id, dtype=np.int64), np.zeros(len(mask), dtype=np.int64)
    ids[mask], type_ids[mask] = sequences.ids[slots], sequences.type_ids[slots]
    arrays = {"ids": ids, "type_ids": type_ids, "mask": mask, "columns": columns}
    tensors = {
        name: torch.from_numpy(array).to(device, non_blocking=True)
        for name, array in arrays.items()
    }
    is_padded = sums(lengths, counts) < counts * longest
    return Row(**tensors, shapes=shapes, is_padded=is_padded.tolist()), slots, np.flatnonzero(mask)


def common_size(n_slots: int) -> int:
    """Round up to one of few sizes, eight up to each power of two. oneDNN makes programs for each
    size that it meets, which with AMX takes longer than to run them, and keeps them: 10 MB or so.

    n_slots (int): Slots of a row, or rows of any matrix.
    RETURNS (int): The same or more, by an eighth at the most above 128.
    """
    step = max(16, 1 << max((n_slots - 1).bit_length() - 4, 0))
    return _round_up(n_slots, step)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


class RowAttention(TorchFunctionMode):
    """While this is entered, torch's attention over a row stays within each sequence. So whichever
    code of transformers calls it reads the row as it would read each bucket. On a CPU its dropout
    is ours, since torch's takes a tenth of the time of a training step there.

    It is not left by a `with` statement, whose code an interrupt (Ctrl-C) can keep from being run,
    but by `has_ended = True` as the first statement of a `finally` clause, before which CPython
    does not look for signals. A mode that has ended does nothing, wherever it is on torch's stack.
    """

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row
        self.n_calls = 0
        self.has_ended = False
        # A processor takes what is left of a vector of keys one by one, which takes longer than
        # all of the others. Without a graph to keep, the keys of the next sequence fill it up.
        step = 1 if torch.is_grad_enabled() or row.ids.device.type != "cpu" else KEYS
        self._widths = [_round_up(length, step) for _, length in row.shapes]
        self._masks = [
            F.pad(mask, (0, width - mask.shape[1]))[:, None, None]
            if is_padded or width > mask.shape[1]
            else None
            for mask, width, is_padded in zip(
                row.split(row.mask), self._widths, row.is_padded, strict=True
            )
        ]

    def __enter__(self) -> RowAttention:
        # Without what an interrupt left behind. It does nothing any more, but it costs time.
        drop_ended_modes()
        super().__enter__()
        return self

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is called, but attention and dropout in our way."""
        if self.has_ended:
            return func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        if func is F.dropout and self.row.ids.device.type == "cpu":
            func = dropout
        return func(*args, **(kwargs or {}))

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **settings: Any,
    ) -> torch.Tensor:
        """Attend within each sequence.

        query, key, value (Tensor): Of a row (1, n_heads, n_slots, width).
        attn_mask (Optional[Tensor]): Not used: the buckets' own masks are.
        dropout_p (float): The dropout of the weights.
        is_causal (bool): Not used: encoders are not.
        RETURNS (Tensor): The row (1, n_heads, n_slots, width).
        """
        self.n_calls += 1
        sizes = [n * length for n, length in self.row.shapes]
        room = query.shape[2]  # the slots behind a bucket
        drops = dropout_p > 0 and query.device.type == "cpu"
        attention = attend_and_drop if drops else F.scaled_dot_product_attention
        sizes.append(room - sum(sizes))  # padding behind the row
        queries, keys, values = (
            states[0].transpose(0, 1).split(sizes) for states in (query, key, value)
        )
        found = []
        # Without what is behind the last bucket.
        buckets = zip(
            self.row.shapes, self._widths, self._masks, queries, keys, values, strict=False
        )
        for shape, width, mask, q, k, v in buckets:
            room -= len(q)
            q = q.unflatten(0, shape).transpose(1, 2)
            k, v = (widen(states, shape, width, room).transpose(1, 2) for states in (k, v))
            out = attention(q, k, v, mask, dropout_p, **settings)
            found.append(out.transpose(1, 2).flatten(0, 1))
        found.append(values[-1])  # nothing is made of padding
        # As the caller turns it back, so that this is the only copy.
        return torch.cat(found).transpose(0, 1).unsqueeze(0)


def drop_ended_modes() -> None:
    """Take modes that have ended off the top of torch's stack."""
    while modes := _get_current_function_mode_stack():
        if not (isinstance(modes[-1], RowAttention) and modes[-1].has_ended):
            return
        _pop_mode()


def widen(states: torch.Tensor, shape: tuple[int, int], width: int, room: int) -> torch.Tensor:
    """Give the sequences of a bucket more slots than they have.

    states (Tensor): The bucket's part of a row (n_slots, n_heads, size).
    shape (Tuple[int, int]): Its sequences and their length.
    width (int): The slots to give for each: beyond its length those of what comes next in the row,
        or zeros where the row ends.
    room (int): The slots of the row behind this part.
    RETURNS (Tensor): A view where that can be (n_sequences, width, n_heads, size).
    """
    n, length = shape
    if length < width <= length + room:
        slot, *inner = states.stride()
        return states.as_strided((n, width, *states.shape[1:]), (length * slot, slot, *inner))
    bucket = states.unflatten(0, shape)
    return F.pad(bucket, (0, 0, 0, 0, 0, width - length)) if width > length else bucket


def attend_and_drop(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    scale: float | None = None,
) -> torch.Tensor:
    """Attend with dropout, in fp32: for products in bf16 oneDNN makes programs for every shape of a
    bucket. On a CPU torch has no kernel for this either.

    query, key, value (Tensor): (n_sequences, n_heads, length, size).
    mask (Optional[Tensor]): Which keys are seen, broadcast to the scores.
    dropout_p (float): The dropout of the weights.
    scale (Optional[float]): What scores are multiplied with; None for 1 / sqrt(size).
    RETURNS (Tensor): (n_sequences, n_heads, length, size).
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast("cpu", enabled=False):
        scores = query.float() * scale @ key.float().mT
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        states = dropout(scores.softmax(-1), dropout_p) @ value.float()
    return states.to(value.dtype)


def dropout(
    states: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """torch's dropout for CPUs: four states share a random number of 64 bits, where torch draws one
    for each. p is rounded to a multiple of 2^-16, which the scale allows for.

    states (Tensor): Any states.
    p (float): The share that becomes 0.
    training (bool): Whether to do anything.
    inplace (bool): Not used.
    RETURNS (Tensor): As many.
    """
    dropped = round(p * 2**16)
    if not training or not dropped or dropped == 2**16:
        return F.dropout(states, p, training)
    numbers = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = numbers.view(torch.int16)[: states.numel()].view(states.shape)
    kept = (bits >= dropped - 2**15).to(states.dtype)
    return states * kept.mul_(2**16 / (2**16 - dropped))
