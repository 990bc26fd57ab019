"""Local attention in blocks: time and memory are linear in the length of a sequence."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .buckets import round_up

# The number of queries in a block. With a reach of 64 positions to each side, as in ModernBERT,
# attention over 8,192 positions in fp32 on one core takes 0.07 s in blocks of 64, 0.14 s in blocks
# of 256, and 2.7 s with a mask of 8,192 x 8,192.
BLOCK = 64
KEYS = 16  # the number of fp32 keys in an AVX-512 vector


class Blocks:
    """The sequences of a bucket in blocks of `BLOCK` queries, each with the keys that they attend
    to: those of their own positions and of `reach` more to each side.

    `present` is False for padding (num_sequences, length). The mask has length * (BLOCK + 2 *
    reach) values for each sequence. Padding attends to itself, so that no softmax is empty.
    """

    def __init__(self, present: torch.Tensor, reach: int) -> None:
        self.reach = reach
        self.width = block_width(reach)
        self.length = present.shape[1]
        self.num_blocks = -(-self.length // BLOCK)
        keys = torch.arange(self.width, device=present.device) - reach
        distance = keys - torch.arange(BLOCK, device=present.device)[:, None]
        seen = self._windows(present)[:, None] & (distance.abs() <= reach) | (distance == 0)
        self.mask = seen[:, None]  # (num_sequences * num_blocks, 1, BLOCK, width)

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attend: Callable[..., torch.Tensor],
        dropout: float,
        scale: float | None,
    ) -> torch.Tensor:
        """Attend within the sequences. All tensors, the result included, are (num_sequences,
        length, num_heads, head_size). `attend` has the arguments of torch's attention."""
        beyond = self.num_blocks * BLOCK - self.length
        q = F.pad(queries, (0, 0, 0, 0, 0, beyond)).unflatten(1, (self.num_blocks, BLOCK))
        q = q.flatten(0, 1).transpose(1, 2)
        # (num_sequences * num_blocks, num_heads, head_size, width) to (…, width, head_size)
        k, v = (self._windows(states).transpose(2, 3) for states in (keys, values))
        out = attend(q, k, v, self.mask, dropout, scale=scale).transpose(1, 2)
        return out.flatten(0, 1).unflatten(0, (len(queries), -1))[:, : self.length]

    def _windows(self, states: torch.Tensor) -> torch.Tensor:
        """Return the part of a tensor (num_sequences, length, …) that each block attends to, zeros
        beyond the ends: (num_sequences * num_blocks, …, width)."""
        behind = (self.num_blocks - 1) * BLOCK + self.width - self.reach - self.length
        inner = (0, 0) * (states.ndim - 2)
        padded = F.pad(states, (*inner, self.reach, behind))
        return padded.unfold(1, self.width, BLOCK).flatten(0, 1)


def block_width(reach: int) -> int:
    """Return the number of keys for a block, rounded up to full vectors."""
    return round_up(BLOCK + 2 * reach, KEYS)


def pays(length: int, reach: int) -> bool:
    """Return whether sequences are long enough for blocks to be faster than one mask."""
    return length > 2 * block_width(reach)
