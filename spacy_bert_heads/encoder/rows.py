"""Buckets that lie in one row: all but attention is computed for all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class Bucket(NamedTuple):
    """Sequences side by side, the short ones padded at their ends: (n_sequences, length) each.

    ids (Tensor): The wordpieces.
    type_ids (Tensor): Which of two texts they belong to.
    mask (Tensor): 1 for a piece, 0 for padding.
    is_padded (bool): Whether there is any padding, which to ask of a GPU would take time.
    """

    ids: torch.Tensor
    type_ids: torch.Tensor
    mask: torch.Tensor
    is_padded: bool


class RowAttention(TorchFunctionMode):
    """While this is entered, torch's attention over a row of buckets stays within each sequence. So
    whichever code of transformers calls it reads the row as it would read each bucket.

    buckets (Sequence[Bucket]): The buckets, in the order of the row.
    """

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        super().__init__()
        self._shapes = [bucket.ids.shape for bucket in buckets]
        self.n_calls = 0
        self._masks = [b.mask[:, None, None].bool() if b.is_padded else None for b in buckets]

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
        sizes = [shape.numel() for shape in self._shapes]
        rows = zip(*(states[0].split(sizes, dim=1) for states in (query, key, value)), strict=True)
        found = []
        for shape, mask, row in zip(self._shapes, self._masks, rows, strict=True):
            q, k, v = (states.unflatten(1, shape).transpose(0, 1) for states in row)
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, **settings)
            found.append(out.transpose(1, 2).flatten(0, 1))
        # As the caller turns it back, so that this is the only copy.
        return torch.cat(found).transpose(0, 1).unsqueeze(0)
