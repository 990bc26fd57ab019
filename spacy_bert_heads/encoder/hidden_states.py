"""The output of the encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..text.batch import PackedBatch

# Which layers to read: 0 is the embeddings, 1 the lowest layer, -1 the last; "all" is every one.
Layers = list[int] | str


@dataclass
class HiddenStates:
    """Hidden states and their packed batch."""

    states: torch.Tensor  # (num_positions, num_layers * hidden_size), float32
    batch: PackedBatch
    # The concatenated layers, as `Checkpoint.layer_numbers` counts them. Empty for vectors that are
    # not from an encoder of ours.
    layers: tuple[int, ...] = ()
