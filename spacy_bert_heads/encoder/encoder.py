"""The encoder: packed batches in, hidden states out."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from ..text.arrays import Ints1d
from ..text.batch import PackedBatch
from .attention import NAME, PackedAttention, register
from .buckets import (
    BucketedBatch,
    Part,
    common_size,
    group_buckets,
    lay_out,
    lay_out_one,
    make_buckets,
)
from .checkpoint import Checkpoint
from .dropout import use_fast_dropout
from .function_mode import AttentionMode, drop_ended_modes
from .fused import run_layers
from .hidden_states import HiddenStates

# Families in which positions interact in attention only, and which use torch's attention. MPNet and
# DeBERTa don't: their attention computes distances between positions itself.
PACKED = ("bert", "roberta", "xlm-roberta", "camembert", "albert", "electra", "distilbert")
# The same with transformers 5, whose interface passes the range of local attention.
PACKED_LONG = ("eurobert", "gte", "jina_embeddings_v3", "modernbert", "nomic_bert", "ultrabert")


class Encoder(nn.Module):
    """Run Hugging Face's model of a checkpoint over packed batches.

    `multiplies_by_onednn` says whether oneDNN computes the linear layers, as in inference copies on
    most CPUs: the number of rows is then rounded up to one of a few sizes. `is_fused` says whether
    the layers are those of `fused.py`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.model: Any = checkpoint.model
        self.multiplies_by_onednn = self.is_fused = False
        self.interface = attention_interface() if can_pack(checkpoint) else ""
        self._takes_types = checkpoint.takes("token_type_ids")
        if self.interface == "registered":
            register()
            self.model.config._attn_implementation = NAME
        use_fast_dropout(self.model)
        for module in self.model.modules():
            is_attention = all(hasattr(module, part) for part in ("query", "key", "value"))
            if is_attention and cast_once not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(cast_once)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.interface == "registered":  # in a process that has built no encoder
            register()

    @property
    def config(self) -> Any:
        """The model's configuration; `find_layers` needs it."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    def encode(
        self,
        batch: PackedBatch,
        layers: tuple[int, ...] | None = None,
        *,
        max_batch_tokens: int,
        train: bool = False,
    ) -> HiddenStates:
        """Compute the hidden states of some layers, concatenated: float32 (num_positions,
        num_layers * hidden_size). `layers` are counted as by `Checkpoint.layer_numbers`; None takes
        the last.

        `max_batch_tokens` is the maximum number of positions that are run at once, padding
        included. With `train` the hidden states have a graph; a batch over the limit is recomputed
        part by part in the backward pass (gradient checkpointing, Chen et al. 2016).

        If an interrupt (Ctrl-C) comes at any moment, gradients are enabled again afterwards.
        `torch.no_grad` does not guarantee that: its methods are Python code, which an interrupt can
        stop halfway.
        """
        layers = (self.checkpoint.num_layers,) if layers is None else layers
        if train:
            return self._encode_with_graph(batch, layers, max_batch_tokens)
        was_enabled = torch.is_grad_enabled()
        try:
            torch._C._set_grad_enabled(False)
            if len(batch.cu_seqlens) == 2:  # one sequence: nothing to reorder
                (part,) = self.lay_out(batch, max_batch_tokens)
                return HiddenStates(self.run(part.layout, layers).float(), batch, layers)
            size = self.checkpoint.hidden_size * len(layers)
            states = torch.empty(len(batch.input_ids), size, device=self.device)
            for part in self.lay_out(batch, max_batch_tokens):
                found = only_present(self.run(part.layout, layers), part.places)
                states[torch.from_numpy(part.positions).to(self.device)] = found.float()
            return HiddenStates(states, batch, layers)
        finally:
            torch._C._set_grad_enabled(was_enabled)

    def _encode_with_graph(
        self, batch: PackedBatch, layers: tuple[int, ...], max_batch_tokens: int
    ) -> HiddenStates:
        is_over_budget = len(batch.input_ids) > max_batch_tokens
        parts, order = [], []
        for part in self.lay_out(batch, max_batch_tokens):
            if is_over_budget:
                states = recompute(self.run, part.layout, layers, use_reentrant=False)
            else:
                states = self.run(part.layout, layers)
            parts.append(only_present(states, part.places).float())
            order.append(part.positions)
        rows = np.empty(len(batch.input_ids), dtype=np.int64)
        rows[np.concatenate(order)] = np.arange(len(rows))
        states = torch.cat(parts).index_select(0, torch.from_numpy(rows).to(self.device))
        return HiddenStates(states, batch, layers)

    def lay_out(self, batch: PackedBatch, max_batch_tokens: int) -> list[Part]:
        """Split a batch into parts that are run at once, of at most `max_batch_tokens` positions,
        padding included."""
        if len(batch.cu_seqlens) == 2:
            return [lay_out_one(batch, self.device)]
        lengths, overhead = batch.seqlens, self.bucket_overhead
        buckets = make_buckets(lengths, max_tokens=max_batch_tokens, overhead=overhead)
        groups = group_buckets(buckets, lengths, max_batch_tokens)
        pad_id = self.checkpoint.tokenizer.pad_id
        return [lay_out(batch, group, pad_id, self.device) for group in groups]

    @property
    def bucket_overhead(self) -> int:
        """The cost of a bucket, as a number of padding positions that cost the same."""
        is_cpu = self.device.type == "cpu"
        # With packed attention a bucket only costs its calls of attention; on a CPU it makes no
        # difference whether that is 2, 8 or 16 positions. Run alone, a bucket costs 8 ms against
        # 0.3 ms for a position in prediction, 60 ms against 1 ms in training (MiniLM, fp32, one
        # core). On a GPU its kernel launches take as long as thousands of positions, those of
        # attention alone a tenth of that: estimated, not measured yet.
        if self.interface:
            return 8 if is_cpu else 512
        return 64 if is_cpu else 4096

    def run(self, layout: BucketedBatch, layers: tuple[int, ...] | None = None) -> torch.Tensor:
        """Run the buckets, all at once if the family supports it. Returns the hidden states of all
        positions, padding included (num_positions, num_layers * hidden_size)."""
        layers = (self.checkpoint.num_layers,) if layers is None else layers
        if not self.interface:
            return self._run_each(layout, layers)
        inputs, attention = self._inputs(layout), PackedAttention(layout)
        if self.is_fused:
            states = run_layers(self.model, self.model.embeddings(**inputs)[0], attention)
            chosen = [states[n][: len(layout.input_ids)] for n in layers]
            return chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)
        if self.interface == "registered":
            output = self.model(**inputs, **self._ask_for(layers), packed_attention=attention)
        else:
            mode = AttentionMode(attention)
            try:
                mode.__enter__()
                output = self.model(**inputs, **self._ask_for(layers))
            finally:  # also after an interrupt, see AttentionMode
                mode.has_ended = True
                drop_ended_modes()
        if attention.num_calls != self.checkpoint.num_layers:  # sequences attended to each other
            warn_unknown(self.checkpoint.family)
            self.interface = ""
            return self._run_each(layout, layers)
        return self._choose(output, layers)[0, : len(layout.input_ids)]

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        mask: torch.Tensor,
        layers: tuple[int, ...] | None = None,
    ) -> torch.Tensor:
        """Run one bucket in Hugging Face's layout: ids, types and mask, 1 for a wordpiece and 0 for
        padding, are (num_sequences, length). Returns (num_sequences, length, num_layers *
        hidden_size)."""
        layers = (self.checkpoint.num_layers,) if layers is None else layers
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
        if self.checkpoint.uses_token_types:
            inputs["token_type_ids"] = token_type_ids
        return self._choose(self.model(**inputs, **self._ask_for(layers)), layers)

    def _run_each(self, layout: BucketedBatch, layers: tuple[int, ...]) -> torch.Tensor:
        """Run the buckets one by one."""
        tensors = (layout.input_ids, layout.token_type_ids, layout.mask.long())
        buckets = zip(*map(layout.split, tensors), strict=True)
        return torch.cat([self(*bucket, layers).flatten(0, 1) for bucket in buckets])

    def _inputs(self, layout: BucketedBatch) -> dict[str, torch.Tensor]:
        """Return the model's arguments, with all buckets as one long sequence."""
        checkpoint = self.checkpoint
        beyond = self.num_padding(len(layout.input_ids))
        input_ids = F.pad(layout.input_ids, (0, beyond), value=checkpoint.tokenizer.pad_id)[None]
        position_ids = F.pad(layout.position_ids, (0, beyond))[None] + checkpoint.first_position
        inputs = {"input_ids": input_ids, "position_ids": position_ids}
        if self._takes_types:
            # transformers' own default is limited to max_position_embeddings.
            types = F.pad(layout.token_type_ids, (0, beyond))[None]
            uses_types = checkpoint.uses_token_types
            inputs["token_type_ids"] = types if uses_types else torch.zeros_like(input_ids)
        if self.is_fused:  # by layers of ours
            return inputs
        if self.interface == "function mode":
            # transformers 4 warns about padding without a mask; version 5 would synchronize a GPU
            # to inspect one.
            inputs["attention_mask"] = torch.ones_like(input_ids)
        else:
            # Without a mask, transformers 5 would make one of num_positions² values for local
            # attention. A mask of four dimensions is passed on as it is; our attention ignores it.
            inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        return inputs

    def num_padding(self, num_rows: int) -> int:
        """Return the number of rows to append to the input of linear layers, so that oneDNN
        compiles programs for few sizes only."""
        by_onednn = self.multiplies_by_onednn or torch.is_autocast_enabled("cpu")
        return common_size(num_rows) - num_rows if by_onednn else 0

    def _ask_for(self, layers: tuple[int, ...]) -> dict[str, Any]:
        """Return the arguments that make transformers return these layers."""
        if layers == (self.checkpoint.num_layers,):
            return {}
        # transformers 5 returns the layers in the list; for version 4 the list means True.
        return {"output_hidden_states": list(layers)}

    def _choose(self, output: Any, layers: tuple[int, ...]) -> torch.Tensor:
        if layers == (self.checkpoint.num_layers,):
            return output.last_hidden_state
        # ModernBERT applies a final LayerNorm to last_hidden_state but not to hidden_states[-1]. A
        # head must read the same last layer, whatever other layers are read.
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        return torch.cat([states[n] for n in layers], dim=-1)


def cast_once(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Cast the input of attention before its three linear layers: autocast would cast it in each of
    them, and each of their gradients back. Returns the arguments, None for the same."""
    if not args or not torch.is_autocast_enabled(args[0].device.type):
        return None
    states, *rest = args
    return (states.to(torch.get_autocast_dtype(states.device.type)), *rest)


def only_present(states: torch.Tensor, places: Ints1d) -> torch.Tensor:
    """Remove the hidden states of padding; `places` are the positions of wordpieces."""
    if len(places) == len(states):
        return states
    return states.index_select(0, torch.from_numpy(places).to(states.device))


def can_pack(checkpoint: Checkpoint) -> bool:
    """Return whether buckets of this checkpoint can be run as one long sequence: positions matter
    only for position ids, which can be passed, and attention."""
    config = checkpoint.config
    is_long = checkpoint.family in PACKED_LONG and attention_interface() == "registered"
    return (
        (checkpoint.family in PACKED or is_long)
        and checkpoint.takes("position_ids")
        and config._attn_implementation in ("sdpa", NAME)
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and not getattr(config, "is_decoder", False)
        and getattr(config, "inner_group_num", 1) == 1
    )


@cache
def attention_interface() -> str:
    """Return how to replace attention in this version of transformers: "registered", "function
    mode", or "" for an unknown version."""
    major = int(version("transformers").split(".")[0])
    return {4: "function mode", 5: "registered"}.get(major, "")


@cache
def warn_unknown(family: str) -> None:
    """Warn once that packing is disabled."""
    warnings.warn(
        f"transformers {version('transformers')} computes the attention of '{family}' in an "
        "unknown way. Sequences are padded in buckets instead, which is slower; the results are "
        "the same.",
        stacklevel=2,
    )
