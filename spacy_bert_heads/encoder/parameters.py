"""The parameters of a torch module: groups for the optimizer, layers, copies that share them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn


def group_parameters(module: nn.Module, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Group the trainable parameters for a torch optimizer: "params", whether weight decay applies
    ("decays"), and the learning-rate multiplier ("rate"), which `rates` has by parameter name.
    Vectors, which are biases and LayerNorms, don't decay (BERT, optimization.py)."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim > 1, rates[name]), []).append(parameter)
    return [
        {"params": parameters, "decays": decays, "rate": rate}
        for (decays, rate), parameters in groups.items()
    ]


def copy_sharing(
    module: nn.Module, change: Callable[[nn.Parameter], nn.Parameter] = lambda weight: weight
) -> nn.Module:
    """Copy a module without its weights: the copy has the result of `change` for each, by default
    the weight itself.

    Forward hooks are not copied. transformers 5 adds some to a model whose lower layers are read,
    which can't be pickled, and an attribute that says so. Without that attribute it adds them
    again.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    memo |= {id(weight): change(weight) for weight in module.parameters()}
    bare = copy.deepcopy(module, memo)
    for part in bare.modules():
        part._forward_hooks.clear()
        part.__dict__.pop("_output_capturing_hooks_installed", None)
    return bare


def find_layers(module: nn.Module) -> nn.ModuleList | None:
    """Return the layers of a transformer, the lowest first, whatever their name is in the family;
    None for a module without a `config` or such layers (ALBERT's layers share one module)."""
    config = getattr(module, "config", None)
    if config is None or config.model_type == "albert":
        return None
    depth = config.num_hidden_layers
    stacks = (m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    return next(stacks, None)


# Parts of parameter names: relative positions of DeBERTa and MPNet, which all layers read.
POSITIONS = ("rel_embeddings", "relative_attention_bias", "encoder.LayerNorm")


def layer_depths(module: nn.Module) -> dict[str, int]:
    """Return each parameter's depth by name: 0 for embeddings, also of relative positions, 1 for
    the lowest layer and so on. All are 0 in a module without layers."""
    names = [name for name, _ in module.named_parameters()]
    stack = find_layers(module)
    if stack is None:
        return dict.fromkeys(names, 0)
    prefix = next(name for name, m in module.named_modules() if m is stack) + "."
    before_stack = True
    depths = {}
    for name in names:
        inside = name.startswith(prefix)
        before_stack = before_stack and not inside
        if inside:
            depths[name] = int(name[len(prefix) :].split(".")[0]) + 1
        else:
            is_embedding = before_stack or any(part in name for part in POSITIONS)
            depths[name] = 0 if is_embedding else len(stack)
    return depths
