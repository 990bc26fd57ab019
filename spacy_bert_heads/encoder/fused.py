"""BERT's layers for prediction on a CPU, without transformers' Python code around them.

For a single sentence that code takes a third of the time: wrappers for deprecated arguments,
chunking, masks, and with transformers 4 a function mode around each of torch's functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .attention import PackedAttention

# Families whose layers have the same modules as BERT's in the same order, LayerNorm last.
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


class FusedLayer(nn.Module):
    """A layer of BERT over a bucketed batch, with one matrix product for queries, keys and values.
    The other modules are those of the original layer."""

    def __init__(self, layer: Any, num_heads: int) -> None:
        super().__init__()
        attention = layer.attention.self
        self.num_heads = num_heads
        self.qkv = join_linear(attention.query, attention.key, attention.value)
        self.attention_output = layer.attention.output
        self.intermediate, self.output = layer.intermediate, layer.output

    def forward(self, states: torch.Tensor, attention: PackedAttention) -> torch.Tensor:
        """Compute hidden states (num_positions, hidden_size) from those of the layer below."""
        query, key, value = self.qkv(states).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        context = attention.attend(query, key, value).flatten(1)
        states = self.attention_output(context, states)
        return self.output(self.intermediate(states), states)


def join_linear(*layers: nn.Linear) -> nn.Linear:
    """Join linear layers with the same input to one that returns their concatenated outputs."""
    weights = torch.cat([layer.weight.detach() for layer in layers])
    joined = nn.Linear(weights.shape[1], weights.shape[0], device="meta")
    joined.weight = nn.Parameter(weights, requires_grad=False)
    biases = torch.cat([layer.bias.detach() for layer in layers])
    joined.bias = nn.Parameter(biases, requires_grad=False)
    return joined


def fuse_layers(model: Any) -> bool:
    """Replace the layers of an inference copy, which then only `run_layers` can run. Returns False
    if it is not possible: in other families, and with an adapter in the attention."""
    if model.config.model_type not in FAMILIES:
        return False
    layers = model.encoder.layer
    attentions = [layer.attention.self for layer in layers]
    linear = [getattr(one, name) for one in attentions for name in ("query", "key", "value")]
    if any(type(module) is not nn.Linear or module.bias is None for module in linear):
        return False
    num_heads = model.config.num_attention_heads
    model.encoder.layer = nn.ModuleList(FusedLayer(layer, num_heads) for layer in layers)
    return True


def run_layers(
    model: Any, embeddings: torch.Tensor, attention: PackedAttention
) -> list[torch.Tensor]:
    """Compute the input of the first layer and the hidden states of every layer, each
    (num_positions, hidden_size), from `embeddings`, which can be narrower in ELECTRA."""
    project = getattr(model, "embeddings_project", None)
    found = [embeddings if project is None else project(embeddings)]
    for layer in model.encoder.layer:
        found.append(layer(found[-1], attention))
    return found
