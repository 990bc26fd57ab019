"""Buckets that lie in one row: all but attention is computed for all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..types import Ints1d, Sequences, ranges, select, sums


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


class RowAttention(TorchFunctionMode):
    """While this is entered, torch's attention over a row stays within each sequence. So whichever
    code of transformers calls it reads the row as it would read each bucket.

    row (Row): The row.
    """

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row
        self.n_calls = 0
        self._masks = [
            mask[:, None, None] if is_padded else None
            for mask, is_padded in zip(row.split(row.mask), row.is_padded, strict=True)
        ]

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is called, but attention in our way."""
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
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
        parts = (self.row.split(states[0].transpose(0, 1)) for states in (query, key, value))
        found = []
        for mask, *part in zip(self._masks, *parts, strict=True):
            q, k, v = (states.transpose(1, 2) for states in part)
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, **settings)
            found.append(out.transpose(1, 2).flatten(0, 1))
        # As the caller turns it back, so that this is the only copy.
        return torch.cat(found).transpose(0, 1).unsqueeze(0)
