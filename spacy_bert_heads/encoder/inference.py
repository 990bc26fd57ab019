"""The inference copy of an encoder: weights in the precision's type and in the CPU's preferred
layout. It shares all other weights with the module that is trained, which stays in fp32. `Trimmer`
keeps memory from growing with the number of documents.
"""

from __future__ import annotations

import copy
import ctypes
import warnings
from typing import Any

import torch
from spacy.util import logger
from torch import nn

from .adapters import Bottleneck, LowRank, replace_module
from .encoder import Encoder
from .fused import FusedLayer, fuse_layers
from .int8 import Int8FeedForward, Int8Linear, has_int8, measure_ranges
from .parameters import copy_sharing

TRIM_AFTER = 32768  # in wordpieces


def for_inference(encoder: nn.Module, precision: str) -> nn.Module:
    """Make the inference copy of an `Encoder`, in eval mode. Weights that need no change are
    shared.

    `precision` is "fp32", "bf16", "fp16", or, on a CPU, "int8", which is fp32 but for the linear
    layers. A CPU with AMX uses bf16 instead of int8: its products are as fast, and no rounding is
    needed before them.
    """
    assert isinstance(encoder, Encoder)
    is_cpu = encoder.device.type == "cpu"
    if precision == "int8" and _has_amx():
        precision = "bf16"
    packs = is_cpu and precision in ("fp32", "bf16") and packing_pays()
    replaces = packs or precision == "int8"  # the linear layers
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model: Any = copy_sharing(
        encoder.model, lambda weight: nn.Parameter(weight.to(dtype), requires_grad=False)
    )
    fast = copy.copy(encoder)
    fast._modules = {**encoder._modules, "model": model}
    fast.is_fused = replaces and bool(encoder.interface) and fuse_layers(model)
    fast.eval()  # also if another thread trains the encoder now
    if precision == "int8":
        use_int8(fast)
    elif packs:
        for name, linear in _large_layers(model).items():
            replace_module(model, name, PackedLinear(linear))
    fuse(model)
    fast.multiplies_by_onednn = replaces or is_cpu and precision == "bf16"
    return fast


def use_int8(encoder: Encoder) -> None:
    """Replace the linear layers of an inference copy in fp32 by ones in int8. A layer that is not
    used, such as the pooler, stays."""
    layers = _large_layers(encoder.model)
    ranges = measure_ranges(encoder, layers.values())
    for block in list(encoder.model.modules()):
        if isinstance(block, FusedLayer) and is_gelu(block.intermediate.intermediate_act_fn):
            up, down = block.intermediate.dense, block.output.dense
            if up in ranges and down in ranges:
                above, below = ranges.pop(up), ranges.pop(down)
                block.intermediate = nn.Identity()
                block.output = Int8FeedForward(up, down, block.output.LayerNorm, above, below)
    for name, linear in layers.items():
        if linear in ranges:
            replace_module(encoder.model, name, Int8Linear(linear, ranges[linear]))


def _large_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers by name, without those of adapters, which are too small to get
    faster."""
    found = {}
    for name, module in model.named_modules():
        parent = model.get_submodule(name.rpartition(".")[0])
        is_thin = isinstance(parent, Bottleneck | LowRank) and module is not parent.linear
        if isinstance(module, nn.Linear) and not is_thin:
            found[name] = module
    return found


def is_output(block: nn.Module) -> bool:
    """Return whether a module ends a block of BERT (`BertSelfOutput`, `BertOutput`)."""
    return {name for name, _ in block.named_children()} == {"dense", "dropout", "LayerNorm"}


def is_gelu(activation: Any) -> bool:
    """Return whether an activation is GELU, not one of its approximations."""
    from transformers.activations import GELUActivation

    return isinstance(activation, GELUActivation)


def fuse(model: nn.Module) -> None:
    """Fuse the packed layers of a PreTrainedModel with the following activation, and these and
    those in int8 with the residual connection."""
    for name, module in list(model.named_modules()):
        dense, activation = (getattr(module, key, None) for key in ("dense", "intermediate_act_fn"))
        if isinstance(dense, PackedLinear) and is_gelu(activation):
            dense.activation = "gelu"
            module.intermediate_act_fn = nn.Identity()
        elif isinstance(dense, PackedLinear | Int8Linear) and is_output(module):
            replace_module(model, name, FusedOutput(dense, module.LayerNorm))


def check_device(precision: str, device: torch.device) -> None:
    """Check whether a precision is sensible on a device.

    Raises ValueError if this build of torch has no int8. Warns if the CPU would only emulate bf16;
    on one with AMX the log says what bf16 would gain.
    """
    if precision == "int8" and not has_int8():
        raise ValueError(
            'precision is "int8", which this build of torch does not support (it lacks oneDNN). '
            'Set precision = "fp32" in the encoder\'s model.'
        )
    if precision == "bf16" and device.type == "cpu" and not _has_bf16():
        warnings.warn(
            f'precision is "bf16", which this CPU ({_capability()}) only imitates, about 20 times '
            'slower than fp32. Set precision to "fp32", or "int8" to predict, in the encoder\'s '
            "model.",
            stacklevel=2,
        )
    if precision == "fp32" and device.type == "cpu" and _has_amx():
        logger.info(
            'This CPU has AMX: precision = "bf16" in the encoder\'s model predicts about three '
            "times as fast."
        )


def sensible_precisions(device: torch.device) -> list[str]:
    """List the precisions that are useful for prediction on a device, "fp32" first: those that its
    hardware supports, without duplicates."""
    if device.type == "cuda":
        return ["fp32", "bf16", "fp16"]
    found = ["fp32"]
    if _has_bf16():
        found.append("bf16")
    if has_int8() and not _has_amx():
        found.append("int8")
    return found


def packing_pays() -> bool:
    """Return whether oneDNN multiplies faster than MKL, which torch uses for fp32: on CPUs with
    AVX-512, by up to two times on AMD's. With AVX2 it is slower."""
    return torch.backends.mkldnn.is_available() and "AVX512" in _capability()


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _has_amx() -> bool:
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return has_tiles is not None and has_tiles() and _has_bf16()


def _has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class PackedLinear(nn.Module):
    """A linear layer in fp32 or bf16 with weights in oneDNN's layout, by the operators of torch's
    compiler."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self.activation = "none"  # or "gelu"

    def forward(self, states: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Compute (…, out_features) from (…, in_features), plus `added` (…, out_features)."""
        linear = torch.ops.mkldnn._linear_pointwise
        if added is not None:
            return linear.binary(states, added, self._weight, self._bias, "add")
        return linear(states, self._weight, self._bias, self.activation, [], "none")


class FusedOutput(nn.Module):
    """The end of a block of BERT (`BertSelfOutput`, `BertOutput`): LayerNorm(x + dense(states))."""

    def __init__(self, dense: PackedLinear | Int8Linear, norm: nn.Module) -> None:
        super().__init__()
        self.dense, self.norm = dense, norm

    def forward(self, states: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        """Compute (…, out_features) from the block's hidden states (…, in_features) and its input x
        (…, out_features)."""
        return self.norm(self.dense(states, around))


class Trimmer:
    """Return freed memory to the system. glibc keeps it in pieces that rarely fit the next batch,
    so that the memory of a process that runs for hours would keep growing."""

    def __init__(self) -> None:
        self._count = 0
        try:
            self._trim: Any = ctypes.CDLL("libc.so.6").malloc_trim
        except (OSError, AttributeError):  # another system, or another C library
            self._trim = None

    def count(self, num_wordpieces: int) -> None:
        """Trim once every TRIM_AFTER wordpieces, because it takes 5 to 20 ms, and memory that is
        used again must be mapped again. `num_wordpieces` were encoded on a CPU since the last
        call."""
        self._count += num_wordpieces
        if self._trim is not None and self._count >= TRIM_AFTER:
            self._count = 0
            self._trim(0)
