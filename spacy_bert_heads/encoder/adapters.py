"""Adapters: small modules in a checkpoint that are trained instead of its weights.

Trained weights are saved in files of their own. LoRA is merged into the weights for prediction.
"""

import re
from collections.abc import Collection, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import gelu

# The width of a bottleneck, the rank of LoRA.
SIZES = {"pfeiffer": 64, "houlsby": 64, "lora": 32}
# The scale of LoRA's product: alpha / rank in the paper, where alpha is tuned once.
LORA_SCALE = 2.0


class AdapterSettings(NamedTuple):
    """The kind, size and place of an adapter."""

    kind: str  # one of SIZES
    size: int
    first_layer: int  # layers below it are frozen and get no adapter


class Places(NamedTuple):
    """The names of linear layers within a layer of a model family."""

    attention: str  # the last one of the attention block
    feed_forward: str  # the last one of the feed-forward block
    low_rank: tuple[str, ...]  # query and value


_BERT = Places(
    "attention.output.dense", "output.dense", ("attention.self.query", "attention.self.value")
)
PLACES = {
    "albert": Places("attention.dense", "ffn_output", ("attention.query", "attention.value")),
    "bert": _BERT,
    "camembert": _BERT,
    "deberta-v2": _BERT._replace(
        low_rank=("attention.self.query_proj", "attention.self.value_proj")
    ),
    "distilbert": Places("attention.out_lin", "ffn.lin2", ("attention.q_lin", "attention.v_lin")),
    "electra": _BERT,
    "modernbert": Places("attn.Wo", "mlp.Wo", ("attn.Wqkv",)),
    "mpnet": Places("attention.attn.o", "output.dense", ("attention.attn.q", "attention.attn.v")),
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}


class Bottleneck(nn.Module):
    """A linear layer of the checkpoint followed by a bottleneck adapter: a projection to `size`
    dimensions, a nonlinearity, a projection back, and a residual connection (Houlsby et al. 2019,
    section 2.1). It is initialised as the identity."""

    def __init__(self, linear: nn.Linear, size: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.out_features, size)
        self.up = nn.Linear(size, linear.out_features)
        nn.init.normal_(self.down.weight, std=0.02)
        for zeros in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeros)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Compute (…, out_features) from (…, in_features)."""
        states = self.linear(states)
        return states + self.up(gelu(self.down(states)))


class LowRank(nn.Module):
    """A linear layer of the checkpoint plus a product of two matrices of rank `size` (LoRA; Hu et
    al. 2021, section 4.1). The product is separate in training, and merged into the layer's weights
    otherwise."""

    def __init__(self, linear: nn.Linear, size: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, size, bias=False)
        self.up = nn.Linear(size, linear.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)
        self.is_merged = False

    def product(self) -> torch.Tensor:
        """Compute the update of the weights (out_features, in_features)."""
        return LORA_SCALE * self.up.weight @ self.down.weight

    @torch.no_grad()
    def merge(self, merge: bool) -> None:
        """Add the product to the layer's weights, or subtract it again."""
        if merge != self.is_merged:
            self.linear.weight.add_(self.product(), alpha=1 if merge else -1)
            self.is_merged = merge

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Compute (…, out_features) from (…, in_features)."""
        if self.is_merged:
            return self.linear(states)
        return self.linear(states) + LORA_SCALE * self.up(self.down(states))


def make_settings(kind: str, size: int | None, first_layer: int) -> AdapterSettings:
    """Make the settings of an adapter. `size` is the width of a bottleneck (None: 64) or the rank
    (None: 32). Raises ValueError if there is no such kind, or the size is below 1."""
    if kind not in SIZES:
        raise ValueError(f"Unknown adapter '{kind}'. Choose one of: {', '.join(SIZES)}.")
    if size is not None and size < 1:
        raise ValueError(f"adapter_size is {size}; it must be 1 or more.")
    return AdapterSettings(kind, size or SIZES[kind], first_layer)


def add_adapter(model: Any, settings: AdapterSettings) -> None:
    """Add an adapter to Hugging Face's model. Raises ValueError if the family is not supported."""
    family = model.config.model_type
    if family not in PLACES:
        raise ValueError(
            f"Adapters are not supported in '{family}' models. The supported families are: "
            f"{', '.join(PLACES)}. For others use frozen_layers and layer_decay."
        )
    places = PLACES[family]
    names = {
        "pfeiffer": (places.feed_forward,),
        "houlsby": (places.attention, places.feed_forward),
        "lora": places.low_rank,
    }[settings.kind]
    module_class = LowRank if settings.kind == "lora" else Bottleneck
    for name, linear in list(model.named_modules()):
        found = re.search(r"layers?\.(\d+)\.(.+)$", name)
        if found and int(found[1]) >= settings.first_layer and found[2] in names:
            assert isinstance(linear, nn.Linear)
            adapted = module_class(linear, settings.size).to(linear.weight.device)
            replace_module(model, name, adapted.train(linear.training))


def remove_adapter(model: nn.Module) -> None:
    """Remove adapters from a model. LoRA is merged into the weights; bottlenecks are lost."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRank):
            module.merge(True)
        if isinstance(module, LowRank | Bottleneck):
            replace_module(model, name, module.linear)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module with this name in a model."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def merge_adapter(model: nn.Module, merge: bool) -> bool:
    """Merge LoRA into the weights for prediction, or unmerge it for training. Bottlenecks can't be
    merged. Returns whether any weight has changed."""
    changed = False
    for module in model.modules():
        if isinstance(module, LowRank) and module.is_merged != merge:
            module.merge(merge)
            changed = True
    return changed


def assume_merged(model: nn.Module) -> None:
    """Mark LoRA as merged, after an adapter was added to saved weights, which contain it."""
    for module in model.modules():
        if isinstance(module, LowRank):
            module.is_merged = True


def learning_parameters(model: nn.Module, settings: AdapterSettings) -> Iterator[nn.Parameter]:
    """Yield the parameters that are trained with an adapter: its own, and with bottlenecks the
    LayerNorms of its layers (Houlsby et al. 2019, section 2)."""
    for name, module in model.named_modules():
        if isinstance(module, LowRank | Bottleneck):
            yield from (*module.down.parameters(), *module.up.parameters())
        elif isinstance(module, nn.LayerNorm) and settings.kind != "lora":
            layer = re.search(r"layers?\.(\d+)\.", name)
            if layer and int(layer[1]) >= settings.first_layer:
                yield from module.parameters()


def trained_weights(model: nn.Module, learned: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Return by name the weights that are trainable, and those that were `learned` before, see
    `without_adapter`."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or without_adapter(name) in learned
    }


def without_adapter(name: str) -> str:
    """Return the name that a parameter has in a model without an adapter."""
    return name.replace(".linear.", ".")


def digest_embeddings(model: Any) -> str:
    """Return the digest of the embedding table, by which version 0.1 identified a shared
    checkpoint."""
    table = model.get_input_embeddings().weight.detach().cpu().contiguous()
    return blake2b(table.numpy().tobytes(), digest_size=16).hexdigest()
