"""Learning from another encoder's hidden states (distillation), and copies for rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from spacy.tokens import Doc

from .hidden_states import HiddenStates, Layers
from .model import (
    EncoderModel,
    PackedPairs,
    checkpoint_of,
    encode,
    may_lack_windows,
    reading_layers,
    shim_of,
)

if TYPE_CHECKING:
    from .component import BertEncoder


class Imitating:
    """The part of the encoder for distillation and rehearsal."""

    model: EncoderModel
    _after_loading: Callable[[], None]
    _remembered: tuple[int, EncoderModel] | None = None  # a copy with its version
    _teacher: BertEncoder | None = None

    def remember(self, layers: Layers) -> EncoderModel:
        """Return a copy of the model in its present state that reads these layers. Copies that are
        made before the next update share their weights."""
        version = shim_of(self.model).version
        if self._remembered is None or self._remembered[0] != version:
            self._remembered = version, self.model.copy()
        return reading_layers(self._remembered[1], layers)

    def keep_layers(self, numbers: Sequence[int]) -> None:
        """Remove all layers of the checkpoint except these, counted from 0, the lowest. Raises
        ValueError if the family's layers can't be selected."""
        checkpoint_of(self.model).keep_layers(numbers)
        shim_of(self.model).version += 1
        self.model.attrs["layers"] = [-1]
        self._after_loading()

    def follow(self, teacher: BertEncoder | None) -> None:
        """Add the distance to a teacher's hidden states to the loss of each head from now on: half
        the mean squared difference over positions and dimensions (Jiao et al. 2020, section 3.1).
        Both encoders need the same tokenizer, windows and hidden size. None ends it."""
        self._teacher = teacher

    def imitation_gradient(
        self, inputs: Sequence[Doc] | PackedPairs, hidden: HiddenStates
    ) -> torch.Tensor:
        """Return the gradient of the distance to the teacher, see `follow`, with respect to the
        hidden states of inputs (num_positions, num_layers * hidden_size)."""
        teacher, batch = self._teacher, hidden.batch
        assert teacher is not None
        if not isinstance(inputs, PackedPairs) and may_lack_windows(inputs, batch).any():
            wanted = encode(teacher.model, batch)  # the same windows of long Docs
        else:
            wanted, _ = teacher.read(inputs, None)  # as the teacher's head has read them
        difference = hidden.states - wanted.states.to(hidden.states)
        return difference / max(difference.numel(), 1)
