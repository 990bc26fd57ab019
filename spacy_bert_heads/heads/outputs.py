"""What heads give for a batch: logits as torch tensors, and what belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..text.arrays import Bools1d, Ints1d, Ints2d
from ..text.batch import PackedBatch


class TokenLogits(NamedTuple):
    """The output of a token head for a batch, Doc after Doc. Its rows are the tokens, or with
    `aggregation = "simple"` the wordpieces."""

    logits: torch.Tensor  # (num_tokens, num_classes), float32
    # (num_tokens,) False where a token has no wordpiece: nothing is known of it
    has_wordpiece: Bools1d
    lengths: Ints1d  # (num_docs,) tokens of each Doc
    # Of wordpieces: the characters of each in its Doc (num_wordpieces, 2).
    offsets: Ints2d | None = None
    # Of a conditional random field, see `crf` (num_classes + 1, num_classes + 1), float32.
    transitions: torch.Tensor | None = None


class SpanLogits(NamedTuple):
    """The output of a span head for a batch of pairs."""

    logits: torch.Tensor  # (num_positions, 2) for a span's first and last wordpiece, float32
    batch: PackedBatch
    # In training: what each window teaches, see `find_targets` (num_sequences, 2).
    targets: Ints2d | None = None


def map_tensors(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Change the tensors of a head's output, which is a tensor or a NamedTuple with some in it."""
    if torch.is_tensor(output):
        return change(output)
    if isinstance(output, tuple):
        return type(output)(*(map_tensors(part, change) for part in output))
    return output


def differentiate(loss: Callable[[Any], torch.Tensor], output: Any) -> tuple[torch.Tensor, Any]:
    """Give a loss of a head's output, and its gradient by the tensors of that, in a structure like
    that of the output."""
    leaves = map_tensors(output, lambda tensor: tensor.detach().requires_grad_())
    with torch.enable_grad():
        value = loss(leaves)
    value.backward()

    def gradient_of(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad

    return value, map_tensors(leaves, gradient_of)


def tensors_of(output: Any) -> list[torch.Tensor]:
    """List the tensors of a head's output, in order."""
    found: list[torch.Tensor] = []
    map_tensors(output, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found
