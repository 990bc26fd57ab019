"""Attention that stays within each sequence of a bucketed batch.

With transformers 5 this is an entry of its `AttentionInterface`: the encoder's configuration names
it, and the layout of the batch comes with the call. With transformers 4, `function_mode.py` does
the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .buckets import BucketedBatch, round_up
from .devices import is_ampere
from .dropout import attend_and_drop
from .local import KEYS, Blocks, pays

NAME = "spacy_bert_heads"  # in the configuration of a model


class PackedAttention:
    """Attention within the sequences of one bucketed batch. `num_calls` counts the layers that used
    it; in other layers the sequences would have attended to each other."""

    def __init__(self, layout: BucketedBatch) -> None:
        self.layout = layout
        self.num_calls = 0
        self._local: dict[int, list[torch.Tensor | Blocks]] = {}
        # A CPU processes the rest of an incomplete vector of keys one by one, which takes longer
        # than all full vectors. Without a graph, the keys of the next sequence fill it up.
        is_cpu = layout.input_ids.device.type == "cpu"
        self._step = KEYS if is_cpu and not torch.is_grad_enabled() else 1
        self._is_one_sequence = len(layout.input_ids) == layout.shapes[0][1]
        self._one_mask: torch.Tensor | None = None
        self._packed: tuple[torch.Tensor, torch.Tensor] | None = None
        self._widths = [round_up(length, self._step) for _, length in layout.shapes]
        self._masks = [
            F.pad(mask, (0, width - mask.shape[1]))[:, None, None]
            if is_padded or width > mask.shape[1]
            else None
            for mask, width, is_padded in zip(
                layout.split(layout.mask), self._widths, layout.is_padded, strict=True
            )
        ]

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        dropout: float = 0.0,
        scale: float | None = None,
        sliding_window: int | None = None,
    ) -> torch.Tensor:
        """Attend in transformers' layout: `query`, `key` and `value` are (1, num_heads,
        num_positions, head_size). There may be more positions than in the buckets, and fewer heads
        of keys and values, each shared by several heads of queries (grouped-query attention,
        Ainslie et al. 2023). The rest is as in `attend`.
        """
        self.num_calls += 1
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            key, value = (one.repeat_interleave(shared, dim=1) for one in (key, value))
        q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))
        return self.attend(q, k, v, dropout=dropout, scale=scale, sliding_window=sliding_window)

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        dropout: float = 0.0,
        scale: float | None = None,
        sliding_window: int | None = None,
    ) -> torch.Tensor:
        """Attend. `queries`, `keys` and `values` are (num_positions, num_heads, head_size). `scale`
        is 1 / sqrt(head_size) by default. With a `sliding_window` a position attends to those at a
        distance below it.

        Returns (num_positions, num_heads, head_size).
        """
        if sliding_window is None and not dropout:
            if uses_varlen(queries):
                return self._attend_varlen(queries, keys, values, scale)
            if self._is_one_sequence and len(keys) % self._step == 0:
                return self._attend_one(queries, keys, values, scale)
        sizes = [n * length for n, length in self.layout.shapes]
        beyond = len(queries) - sum(sizes)
        sizes.append(beyond)  # padding after the buckets
        room = len(queries)  # positions after a bucket
        found = []
        parts = zip(*(states.split(sizes) for states in (queries, keys, values)), strict=True)
        masks = self._masks if sliding_window is None else self._local_masks(sliding_window)
        drops = dropout > 0 and queries.device.type == "cpu"
        attend = attend_and_drop if drops else F.scaled_dot_product_attention
        for shape, width, mask, (q, k, v) in zip(
            self.layout.shapes, self._widths, masks, parts, strict=False
        ):
            room -= len(q)
            if isinstance(mask, Blocks):
                q, k, v = (one.unflatten(0, shape) for one in (q, k, v))
                found.append(mask.attend(q, k, v, attend, dropout, scale).flatten(0, 1))
                continue
            q = q.unflatten(0, shape).transpose(1, 2)
            k, v = (widen(states, shape, width, room).transpose(1, 2) for states in (k, v))
            out = attend(q, k, v, mask, dropout, scale=scale)
            found.append(out.transpose(1, 2).flatten(0, 1))
        found.append(values[len(values) - beyond :])  # for padding: any values of this shape
        return torch.cat(found)

    def _attend_one(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """Attend within one sequence. Padding after it is masked."""
        length, width = len(self.layout.mask), len(key)
        if length < width and self._one_mask is None:
            self._one_mask = query.new_zeros(1, 1, 1, width)
            self._one_mask[..., length:] = -torch.inf
        q, k, v = (one.transpose(0, 1).unsqueeze(0) for one in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, self._one_mask, scale=scale)
        return out[0].transpose(0, 1)

    def _attend_varlen(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """Attend with torch's kernel for sequences of different lengths, without any padding."""
        if self._packed is None:  # once for all layers, because `nonzero` waits for the GPU
            lengths = torch.cat([part.sum(1) for part in self.layout.split(self.layout.mask)])
            cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
            self._packed = self.layout.mask.nonzero()[:, 0], cu_seqlens
        places, cu_seqlens = self._packed
        longest = max(length for _, length in self.layout.shapes)
        if scale is not None:  # the kernel's is 1 / sqrt(head_size)
            query = query * (scale * query.shape[-1] ** 0.5)
        packed = (states.index_select(0, places) for states in (query, key, value))
        out = load_varlen()(*packed, cu_seqlens, cu_seqlens, longest, longest)
        return torch.zeros_like(query).index_copy_(0, places, out)

    def _local_masks(self, sliding_window: int) -> list[torch.Tensor | Blocks]:
        """Return the masks of local attention by bucket: a band (…, length, width), or `Blocks` if
        its sequences are long."""
        if sliding_window not in self._local:
            device = self.layout.input_ids.device
            found: list[torch.Tensor | Blocks] = []
            present = self.layout.split(self.layout.mask)
            for (_, length), width, mask, real in zip(
                self.layout.shapes, self._widths, self._masks, present, strict=True
            ):
                if pays(length, sliding_window - 1):
                    found.append(Blocks(real, sliding_window - 1))
                    continue
                at = torch.arange(length, device=device)[:, None]
                to = torch.arange(width, device=device)
                band = ((at - to).abs() < sliding_window) & (to < length)
                found.append(band if mask is None else band & mask)
            self._local[sliding_window] = found
        return self._local[sliding_window]


def uses_varlen(query: torch.Tensor) -> bool:
    """Return whether torch's kernel for sequences of different lengths can be used: on a GPU that
    has it, in half precision, without a graph, for heads whose size is a multiple of 8."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and not torch.is_grad_enabled()
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and load_varlen() is not None
        and torch.backends.cuda.is_flash_attention_available()
        and is_ampere(query.device)
    )


@cache
def load_varlen() -> Any:
    """Import torch's kernel for sequences of different lengths; None before torch 2.10. It is
    imported lazily, because it imports torch's compiler, which takes a second."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


@cache
def register() -> None:
    """Register our attention with transformers 5 under NAME; calls without a layout use torch's.

    transformers makes no padding mask at all for a name without a mask function, so ours is
    registered with that of torch's attention.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        packed_attention: PackedAttention | None = None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **settings: Any,
    ) -> tuple[torch.Tensor, None]:
        if packed_attention is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
                sliding_window=sliding_window, **settings,
            )  # fmt: skip
        states = packed_attention(
            query, key, value, dropout=dropout, scale=scaling, sliding_window=sliding_window
        )
        return states.unsqueeze(0), None

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def widen(states: torch.Tensor, shape: tuple[int, int], width: int, room: int) -> torch.Tensor:
    """Extend each sequence of a bucket to `width` positions, as a view where that is possible.

    `states` is the bucket's part (num_positions, num_heads, head_size), `shape` its number of
    sequences and their length. The additional positions are those that follow in memory, or zeros
    where `room`, the number of positions after this part, is too small. Returns
    (num_sequences, width, num_heads, head_size).
    """
    n, length = shape
    if length < width <= length + room:
        position, *inner = states.stride()
        strides = (length * position, position, *inner)
        return states.as_strided((n, width, *states.shape[1:]), strides)
    bucket = states.unflatten(0, shape)
    return F.pad(bucket, (0, 0, 0, 0, 0, width - length)) if width > length else bucket
