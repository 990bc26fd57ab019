"""The decoder of a pretraining run, and the damaged texts that it restores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..encoder.buckets import Part
from ..heads.decoder import ENCODER, make_decoder
from ..text.arrays import Ints1d, select
from ..text.batch import PackedBatch
from .examples import Batch

if TYPE_CHECKING:
    from .objectives import Pretrainer

DECODER = "decoder"  # the folder of the decoder in that of the encoder


class DamagedPart(NamedTuple):
    """The damaged texts of a part of a batch."""

    places: torch.Tensor  # (num_positions,) theirs in the part, padding counted
    batch: PackedBatch
    restored: list[Ints1d]  # of each, without special tokens


def find_damaged(batch: Batch, part: Part, device: torch.device) -> DamagedPart | None:
    """Find the damaged texts in a part of a batch; None if there are none."""
    members = [i for i, number in enumerate(part.members.tolist()) if number in batch.restored]
    if not members:
        return None
    lengths = batch.packed.seqlens[part.members]
    taken = select(np.asarray(members), lengths)
    numbers = part.members[members]
    own, _ = batch.packed.take_windows(numbers, np.ones(len(numbers), dtype=np.int64))
    places = torch.from_numpy(part.places[taken]).to(device, non_blocking=True)
    return DamagedPart(places, own, [batch.restored[number] for number in numbers.tolist()])


def add_decoder(pretrainer: Pretrainer, name: str, origin: str, num_layers: int | None) -> None:
    """Add a decoder: the one that an earlier run has saved in the folder of the checkpoint `name`,
    else a new one, see `make_decoder` for the other arguments."""
    saved = Path(name).expanduser() / DECODER
    is_new = not saved.is_dir()
    decoder = make_decoder(
        pretrainer.encoder.checkpoint, origin if is_new else str(saved), num_layers
    )
    pretrainer.decoder = decoder
    if is_new:
        copied = set(decoder.model.base_model.parameters()) if origin == ENCODER else set()
        pretrainer.new_parameters |= {
            f"decoder.{name}"
            for name, parameter in decoder.named_parameters()
            if parameter not in copied or "crossattention" in name
        }
