"""The outputs of heads for a batch: logits as torch tensors, with what is needed to read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..text.arrays import Bools1d, Ints1d, Ints2d
from ..text.batch import PackedBatch


class TokenLogits(NamedTuple):
    """The output of a token head for a batch, Doc after Doc. Rows are tokens, or wordpieces with
    `aggregation = "simple"`."""

    logits: torch.Tensor  # (num_tokens, num_classes), float32
    # (num_tokens,) False for a token without wordpieces, whose logits mean nothing
    has_wordpiece: Bools1d
    lengths: Ints1d  # (num_docs,) the number of tokens of each Doc
    # With aggregation = "simple": the characters of each wordpiece in its Doc (num_wordpieces, 2).
    offsets: Ints2d | None = None
    # Of a conditional random field, see `crf.py` (num_classes + 1, num_classes + 1), float32.
    transitions: torch.Tensor | None = None


class SpanLogits(NamedTuple):
    """The output of a span head for a batch of pairs."""

    logits: torch.Tensor  # (num_positions, 2) for a span's first and last wordpiece, float32
    batch: PackedBatch
    # In training: the target of each window, see `find_targets` (num_sequences, 2).
    targets: Ints2d | None = None


def map_tensors(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply a function to each tensor of a head's output, a tensor or a NamedTuple with some."""
    if torch.is_tensor(output):
        return change(output)
    if isinstance(output, tuple):
        return type(output)(*(map_tensors(part, change) for part in output))
    return output


def differentiate(loss: Callable[[Any], torch.Tensor], output: Any) -> tuple[torch.Tensor, Any]:
    """Compute a loss of a head's output, and its gradient with respect to each tensor of the
    output, in the structure of the output."""
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
