"""Packed attention for transformers 4, which has no `AttentionInterface` for all families.

Delete this file together with the support of transformers 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode

from .attention import PackedAttention


class AttentionMode(TorchFunctionMode):
    """Replace calls of torch's attention by a `PackedAttention`, wherever transformers calls it.

    Don't leave the mode by a `with` statement: an interrupt (Ctrl-C) can prevent its exit code from
    running. Set `has_ended = True` as the first statement of a `finally` clause; CPython does not
    check for signals before it. A mode that has ended does nothing, wherever it is on torch's
    stack.
    """

    def __init__(self, attention: PackedAttention) -> None:
        super().__init__()
        self.attention = attention
        self.has_ended = False

    def __enter__(self) -> AttentionMode:
        # Modes that an interrupt left on the stack do nothing, but cost time.
        drop_ended_modes()
        super().__enter__()
        return self

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function; attention is replaced."""
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
        """Attend. `attn_mask` and `is_causal` are ignored: the layout has masks, and encoders are
        not causal."""
        states = self.attention(query, key, value, dropout=dropout_p, scale=scale)
        # The caller transposes it back, so that there is one copy only.
        return states.transpose(0, 1).unsqueeze(0)


def drop_ended_modes() -> None:
    """Remove modes that have ended from the top of torch's stack."""
    while modes := _get_current_function_mode_stack():
        if not (isinstance(modes[-1], AttentionMode) and modes[-1].has_ended):
            return
        _pop_mode()
