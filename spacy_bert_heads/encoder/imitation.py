"""What an encoder has to learn from another one, or from what it was before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from .hidden_states import HiddenStates, Layers
from .model import EncoderModel, checkpoint_of, reading_layers, shim_of

if TYPE_CHECKING:
    from .component import BertEncoder


class Imitating:
    """An encoder as a student, or as the teacher of its own later state."""

    model: EncoderModel
    _settle: Callable[[], None]
    _remembered: tuple[int, EncoderModel] | None = None  # a copy with its version
    _teacher: BertEncoder | None = None

    def remember(self, layers: Layers) -> EncoderModel:
        """Return a copy of the model as it is now that reads these layers. Until the next update its
        weights are copied once."""
        version = shim_of(self.model).version
        if self._remembered is None or self._remembered[0] != version:
            self._remembered = version, self.model.copy()
        return reading_layers(self._remembered[1], layers)

    def keep_layers(self, numbers: Sequence[int]) -> None:
        """Go on with these layers of the checkpoint alone, counted from 0, the lowest. Raises
        ValueError if they can't be taken one by one."""
        checkpoint_of(self.model).keep_layers(numbers)
        shim_of(self.model).version += 1
        self.model.attrs["layers"] = [-1]
        self._settle()

    def follow(self, teacher: BertEncoder) -> None:
        """Learn the hidden states of a teacher, too, from now on: the mean squared difference by
        position and dimension (Jiao et al. 2020, section 3.1) joins the loss of each head that
        learns from a batch. Both need the same tokenizer, windows and hidden size."""
        self._teacher = teacher


def pull(hidden: HiddenStates, wanted: HiddenStates) -> torch.Tensor:
    """Return the gradient of half the mean squared difference between hidden states, by those of the
    student (num_positions, num_layers * hidden_size)."""
    difference = hidden.states - wanted.states.to(hidden.states)
    return difference / max(difference.numel(), 1)
