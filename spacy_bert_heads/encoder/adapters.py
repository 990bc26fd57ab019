"""Small modules inside a checkpoint that learn in its place.

What is trained is kept apart from the checkpoint, in files of its own; LoRA is merged into the
weights for prediction.
"""

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import gelu

# The width of a bottleneck, the rank of LoRA.
SIZES = {"pfeiffer": 64, "houlsby": 64, "lora": 32}
# By what LoRA's product is multiplied: alpha / rank in the paper, where alpha is tuned once.
LORA_SCALE = 2.0


class AdapterSettings(NamedTuple):
    """What is put in, and where."""

    kind: str  # one of SIZES
    size: int
    first_layer: int  # those below it are frozen and get none


class Places(NamedTuple):
    """The linear layers of a family, by their names within one of its layers."""

    attention: str  # the last one of the attention
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
    """A linear layer of the checkpoint, then an adapter: down to a few dimensions, a nonlinearity,
    up again, added to what came in (Houlsby et al. 2019, section 2.1). It begins as the identity.

    linear (nn.Linear): The checkpoint's layer.
    size (int): The few dimensions.
    """

    def __init__(self, linear: nn.Linear, size: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.out_features, size)
        self.up = nn.Linear(size, linear.out_features)
        nn.init.normal_(self.down.weight, std=0.02)
        for zeros in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeros)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """states (Tensor): (…, in_features).
        RETURNS (Tensor): (…, out_features).
        """
        states = self.linear(states)
        return states + self.up(gelu(self.down(states)))


class LowRank(nn.Module):
    """A linear layer of the checkpoint plus a product of two thin matrices (LoRA; Hu et al. 2021,
    section 4.1), apart in training, added to the layer's own weights otherwise.

    linear (nn.Linear): The checkpoint's layer.
    size (int): The rank.
    """

    def __init__(self, linear: nn.Linear, size: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, size, bias=False)
        self.up = nn.Linear(size, linear.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)
        self.is_merged = False

    def product(self) -> torch.Tensor:
        """RETURNS (Tensor): What is added to the weights (out_features, in_features)."""
        return LORA_SCALE * self.up.weight @ self.down.weight

    @torch.no_grad()
    def merge(self, merge: bool) -> None:
        """Add the product to the layer's weights, or take it out.

        merge (bool): Which.
        """
        if merge != self.is_merged:
            self.linear.weight.add_(self.product(), alpha=1 if merge else -1)
            self.is_merged = merge

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """states (Tensor): (…, in_features).
        RETURNS (Tensor): (…, out_features).
        """
        if self.is_merged:
            return self.linear(states)
        return self.linear(states) + LORA_SCALE * self.up(self.down(states))


def make_settings(kind: str, size: int | None, first_layer: int) -> AdapterSettings:
    """kind (str): "pfeiffer", "houlsby" or "lora".
    size (Optional[int]): The width of a bottleneck, or the rank; None for 64, or 32.
    first_layer (int): The first layer that gets one.
    RETURNS (AdapterSettings): The settings.
    RAISES (ValueError): If there is no such adapter, or the size isn't above 0.
    """
    if kind not in SIZES:
        raise ValueError(f"Unknown adapter '{kind}'. Choose one of: {', '.join(SIZES)}.")
    if size is not None and size < 1:
        raise ValueError(f"adapter_size is {size}; it must be 1 or more.")
    return AdapterSettings(kind, size or SIZES[kind], first_layer)


def add_adapter(encoder: Any, settings: AdapterSettings) -> None:
    """Put an adapter into a checkpoint.

    encoder (PreTrainedModel): Hugging Face's model, without one.
    settings (AdapterSettings): Which.
    RAISES (ValueError): If it isn't known where one goes in the family.
    """
    family = encoder.config.model_type
    if family not in PLACES:
        raise ValueError(
            f"Adapters don't know where to go in '{family}' models. The families are: "
            f"{', '.join(PLACES)}. Others learn with frozen_layers and layer_decay."
        )
    places = PLACES[family]
    names = {
        "pfeiffer": (places.feed_forward,),
        "houlsby": (places.attention, places.feed_forward),
        "lora": places.low_rank,
    }[settings.kind]
    module_class = LowRank if settings.kind == "lora" else Bottleneck
    for name, linear in list(encoder.named_modules()):
        found = re.search(r"layers?\.(\d+)\.(.+)$", name)
        if found and int(found[1]) >= settings.first_layer and found[2] in names:
            assert isinstance(linear, nn.Linear)
            adapted = module_class(linear, settings.size).to(linear.weight.device)
            replace_module(encoder, name, adapted.train(linear.training))


def remove_adapter(encoder: nn.Module) -> None:
    """Leave the checkpoint's own layers. What LoRA learned stays in their weights.

    encoder (nn.Module): Hugging Face's model, which is changed.
    """
    for name, module in list(encoder.named_modules()):
        if isinstance(module, LowRank):
            module.merge(True)
        if isinstance(module, LowRank | Bottleneck):
            replace_module(encoder, name, module.linear)


def replace_module(encoder: nn.Module, name: str, module: nn.Module) -> None:
    """encoder (nn.Module): Hugging Face's model, which is changed.
    name (str): The name of one of its modules.
    module (nn.Module): What takes its place.
    """
    parent, _, last = name.rpartition(".")
    setattr(encoder.get_submodule(parent), last, module)


def merge_adapter(encoder: nn.Module, merge: bool) -> bool:
    """Make LoRA part of the weights, for prediction, or take it out again, to train. Bottlenecks
    can't be merged. Gives whether any weight has changed."""
    changed = False
    for module in encoder.modules():
        if isinstance(module, LowRank) and module.is_merged != merge:
            module.merge(merge)
            changed = True
    return changed


def assume_merged(encoder: nn.Module) -> None:
    """Take the weights for ones that have LoRA in them already, as they are saved.

    encoder (nn.Module): Hugging Face's model, whose adapter has just been made.
    """
    for module in encoder.modules():
        if isinstance(module, LowRank):
            module.is_merged = True


def learning_parameters(encoder: nn.Module, settings: AdapterSettings) -> Iterator[nn.Parameter]:
    """What learns where there is an adapter: it alone, and with bottlenecks the LayerNorms of its
    layers (Houlsby et al. 2019, section 2).

    encoder (nn.Module): Hugging Face's model.
    settings (AdapterSettings): Its adapter.
    YIELDS (nn.Parameter): The parameters.
    """
    for name, module in encoder.named_modules():
        if isinstance(module, LowRank | Bottleneck):
            yield from (*module.down.parameters(), *module.up.parameters())
        elif isinstance(module, nn.LayerNorm) and settings.kind != "lora":
            layer = re.search(r"layers?\.(\d+)\.", name)
            if layer and int(layer[1]) >= settings.first_layer:
                yield from module.parameters()


def trained_weights(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """encoder (nn.Module): Hugging Face's model.
    RETURNS (Dict[str, Tensor]): What learns of it, by name.
    """
    return {n: p.detach() for n, p in encoder.named_parameters() if p.requires_grad}


def digest_embeddings(encoder: Any) -> str:
    """Digest the embedding table, by which version 0.1 told one shared checkpoint from another."""
    table = encoder.get_input_embeddings().weight.detach().cpu().contiguous()
    return blake2b(table.numpy().tobytes(), digest_size=16).hexdigest()
