"""Texts by a decoder: transformers' generation over hidden states that are already computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from ..encoder.hidden_states import HiddenStates
from ..encoder.loading import quiet
from ..encoder.parameters import copy_sharing
from ..encoder.shim import DTYPES
from ..text.arrays import Ints1d, sums
from ..text.batch import PackedBatch, cumulate

if TYPE_CHECKING:
    from transformers import EncoderDecoderModel, PretrainedConfig

# Positions that a decoder attends to at once, over all beams. In six layers with a width of 768
# their keys and values take 1.2 GB in fp32.
MAX_POSITIONS = 2**15


def make_generator(module: nn.Module, precision: str) -> EncoderDecoderModel:
    """Make the model for transformers' `generate`: the decoder, with an empty encoder that is never
    run, because the hidden states are passed in."""
    from transformers import BertConfig, BertModel, EncoderDecoderModel

    dtype = DTYPES.get(precision, torch.float32)
    model: Any = module.model
    decoder: Any = copy_sharing(model, lambda weight: nn.Parameter(weight.to(dtype)))
    sizes = {"num_hidden_layers": 0, "num_attention_heads": 1, "intermediate_size": 1}
    sizes |= {"vocab_size": 1, "max_position_embeddings": 1}
    config = BertConfig(hidden_size=model.config.hidden_size, **sizes)
    with quiet():
        encoder: Any = BertModel(config, add_pooling_layer=False).to(decoder.device)
        return cast(Any, EncoderDecoderModel(encoder=encoder, decoder=decoder)).eval()


def generate(
    generator: EncoderDecoderModel, hidden: HiddenStates, settings: Mapping[str, Any]
) -> list[Ints1d]:
    """Generate the wordpiece ids of a text for each Doc, special tokens included. Docs of similar
    length are run together, to attend to little padding."""
    from transformers import GenerationConfig
    from transformers.modeling_outputs import BaseModelOutput

    config = GenerationConfig(**{**text_ids(generator.config.decoder), **settings})
    batch, dtype = hidden.batch, next(generator.decoder.parameters()).dtype
    found: list[Ints1d] = [np.empty(0, dtype=np.int64)] * len(batch.num_windows)
    lengths = sums(batch.seqlens, batch.num_windows)
    for docs in group_by_length(lengths, MAX_POSITIONS // (config.num_beams or 1)):
        part, positions = batch.take_windows(*windows_of(docs, batch.num_windows))
        rows = hidden.states[torch.from_numpy(positions).to(hidden.states.device)].to(dtype)
        memory, mask = pad_states(rows, part)
        output: Any = generator.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=cast(Any, memory)),
            attention_mask=mask,
            generation_config=config,
        )
        for doc, ids in zip(docs.tolist(), output.cpu().numpy(), strict=True):
            found[doc] = ids
    return found


def text_ids(decoder: PretrainedConfig) -> dict[str, int | None]:
    """Return the ids around a text as generation settings, by a decoder's configuration."""
    return {
        "decoder_start_token_id": decoder.bos_token_id,
        "bos_token_id": decoder.bos_token_id,
        "eos_token_id": decoder.eos_token_id,
        "pad_token_id": decoder.pad_token_id,
    }


def group_by_length(lengths: Ints1d, budget: int) -> Iterator[Ints1d]:
    """Split items into groups of similar lengths, longest first, whose padded size is within a
    budget; an item that is longer makes a group of its own."""
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        size = max(budget // int(lengths[order[0]]), 1)
        yield order[:size]
        order = order[size:]


def windows_of(docs: Ints1d, num_windows: Ints1d) -> tuple[Ints1d, Ints1d]:
    """List the windows of some Docs, and how many each of them has."""
    begins = cumulate(num_windows)
    windows = [np.arange(begins[doc], begins[doc + 1]) for doc in docs]
    return np.concatenate(windows), num_windows[docs]


def padded_index(lengths: Ints1d) -> np.ndarray:
    """Return the indices of concatenated items by group (num_groups, max(lengths)), padded with
    -1."""
    begins = cumulate(lengths)[:-1]
    within = np.arange(lengths.max(initial=0))
    index = begins[:, None] + within
    return np.where(within < lengths[:, None], index, -1)


def pad_states(states: torch.Tensor, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Arrange packed hidden states (num_positions, width) by Doc: (num_docs, max_length, width),
    with the mask (num_docs, max_length). The windows of a Doc are concatenated."""
    lengths = sums(batch.seqlens, batch.num_windows)
    index = torch.from_numpy(padded_index(lengths)).to(states.device)
    rows = torch.cat([states, states.new_zeros(1, states.shape[1])])
    return rows[index], (index >= 0).long()
