"""Packed attention for transformers 4, which has no `AttentionInterface` for all families.

To be deleted together with the support of transformers 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode

from .attention import PackedAttention


class AttentionMode(TorchFunctionMode):
    """While this is entered, calls of torch's attention go to a `PackedAttention`, whichever code
    of transformers makes them.

    It is not left by a `with` statement, whose code an interrupt (Ctrl-C) can keep from being run,
    but by `has_ended = True` as the first statement of a `finally` clause, before which CPython
    does not look for signals. A mode that has ended does nothing, wherever it is on torch's stack.
    """

    def __init__(self, attention: PackedAttention) -> None:
        super().__init__()
        self.attention = attention
        self.has_ended = False

    def __enter__(self) -> AttentionMode:
        # Without what an interrupt left behind. It does nothing any more, but it costs time.
        drop_ended_modes()
        super().__enter__()
        return self

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is called, but attention in our way."""
        if func is F.scaled_dot_product_attention and not self.has_ended:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        """Mask and causality are not used: the layout has masks, and encoders are not causal."""
        states = self.attention(query, key, value, dropout=dropout_p, scale=scale)
        # As the caller turns it back, so that there is one copy.
        return states.transpose(0, 1).unsqueeze(0)


def drop_ended_modes() -> None:
    """Take modes that have ended off the top of torch's stack."""
    while modes := _get_current_function_mode_stack():
        if not (isinstance(modes[-1], AttentionMode) and modes[-1].has_ended):
            return
        _pop_mode()
