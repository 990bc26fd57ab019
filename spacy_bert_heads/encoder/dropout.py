"""Dropout on a CPU, of hidden states and of attention weights.

torch draws a random number of 64 bits for each value, one after the other, and has no fused
attention with dropout: both together take a third of a training step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

STEPS = 2**16  # of a probability: one random number of 64 bits is used for four values
CHUNK = 2**19  # attention weights that are processed at once: 2 MiB, the cache of a core


class Dropout(nn.Dropout):
    """torch's dropout, with `fast_dropout` on a CPU: torch's takes a tenth of a training step."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply dropout to hidden states of any shape."""
        if not self.training or states.device.type != "cpu":
            return super().forward(states)
        return fast_dropout(states, self.p)


def use_fast_dropout(model: nn.Module) -> None:
    """Replace torch's dropout modules in a model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))


def fast_dropout(states: torch.Tensor, p: float) -> torch.Tensor:
    """Apply dropout faster than torch does on a CPU. p is rounded to a multiple of 2^-16; the scale
    is that of the rounded p."""
    dropped = round(p * STEPS)
    if dropped in (0, STEPS):
        return F.dropout(states, p)
    kept = keep_at_random(states.shape, dropped).to(states.dtype)
    return states * kept.mul_(scale_of(dropped))


def keep_at_random(shape: torch.Size, dropped: int) -> torch.Tensor:
    """Draw which values are kept, bool: each is dropped with a probability of dropped / 2^16."""
    numbers = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    return (numbers.view(torch.int16)[: shape.numel()] >= dropped - STEPS // 2).view(shape)


def scale_of(dropped: int) -> float:
    """Return the factor of values that are kept."""
    return STEPS / (STEPS - dropped) if dropped < STEPS else 0.0


def attend_and_drop(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    scale: float | None = None,
) -> torch.Tensor:
    """Attend with dropout of the attention weights.

    `query`, `key` and `value` are (num_sequences, num_heads, length, head_size). `mask` is True for
    keys that are attended to, and broadcast to the attention weights. `scale` is
    1 / sqrt(head_size) by default.

    As many heads at once as fit into the cache go through all steps, and the weights are computed
    again in the backward pass (Dao et al. 2022, section 3.1), so memory holds one byte for each of
    them. It computes in fp32, because oneDNN would compile programs for every shape of a bucket for
    products in bf16.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _DroppedAttention.apply(query, key, value, mask, round(dropout_p * STEPS), scale)


class _DroppedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        dropped: int,
        scale: float,
    ) -> torch.Tensor:
        kept = torch.empty(*query.shape[:-1], key.shape[-2], dtype=torch.bool)
        q, k, v = map(flat, (query, key, value))
        found, kept_flat = torch.empty_like(q), kept.flatten(0, -3)
        with torch.autocast("cpu", enabled=False):
            for part, weights in all_weights(q, k, mask, kept.shape, scale):
                kept_flat[part] = keep_at_random(weights.shape, dropped)
                torch.bmm(weights.mul_(kept_flat[part]), v[part], out=found[part])
        ctx.save_for_backward(query, key, value, mask, kept)
        ctx.factor, ctx.scale = scale_of(dropped), scale
        return found.mul_(ctx.factor).view(query.shape).to(value.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, mask, kept = ctx.saved_tensors
        q, k, v, out = map(flat, (query, key, value, gradients[0]))
        to_q, to_k, to_v = map(torch.empty_like, (q, k, v))
        kept_flat = kept.flatten(0, -3)
        with torch.autocast("cpu", enabled=False):
            for part, weights in all_weights(q, k, mask, kept.shape, ctx.scale):
                own = out[part] * ctx.factor
                torch.bmm((weights * kept_flat[part]).mT, own, out=to_v[part])
                change = torch.bmm(own, v[part].mT).mul_(kept_flat[part])
                change -= (change * weights).sum(-1, keepdim=True)
                change *= weights.mul_(ctx.scale)
                torch.bmm(change, k[part], out=to_q[part])
                torch.bmm(change.mT, q[part], out=to_k[part])
        to_all = zip((to_q, to_k, to_v), (query, key, value), strict=True)
        return *(to.view(one.shape).to(one.dtype) for to, one in to_all), None, None, None


def flat(states: torch.Tensor) -> torch.Tensor:
    """Bring (num_sequences, num_heads, length, head_size) into fp32 and into the order of memory:
    (num_sequences * num_heads, length, head_size)."""
    return states.float().contiguous().flatten(0, -3)


def all_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    shape: torch.Size,
    scale: float,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Compute attention weights, for as many heads at once as fit into the cache. `shape` is that
    of all weights."""
    if mask is not None:
        mask = ~mask.expand(*shape[:-2], *mask.shape[-2:]).flatten(0, -3)
    length, width = shape[-2:]
    num_heads = CHUNK // (length * width) + 1
    for begin in range(0, len(query), num_heads):
        part = slice(begin, begin + num_heads)
        weights = torch.bmm(query[part], key[part].mT).mul_(scale)
        if mask is not None:
            weights.masked_fill_(mask[part], -torch.inf)
        yield part, weights.softmax(-1)
