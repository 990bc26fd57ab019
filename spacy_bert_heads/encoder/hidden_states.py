"""What the encoder gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..text.batch import PackedBatch

# Which layers to read: 0 is the embeddings, 1 the lowest layer, -1 the last; "all" is every one.
Layers = list[int] | str


@dataclass
class HiddenStates:
    """Hidden states, and the batch that they belong to."""

    states: torch.Tensor  # (num_positions, num_layers * hidden_size), float32
    batch: PackedBatch
    # The layers whose states are side by side, as `Checkpoint.layer_numbers` counts them. Empty for
    # what comes from no encoder of ours.
    layers: tuple[int, ...] = ()
