"""The inference copy of an encoder: weights in the precision's type and in the CPU's preferred
layout. It shares all other weights with the module that is trained, which stays in fp32. `Trimmer`
keeps memory from growing with the number of documents.
"""

from __future__ import annotations

import copy
import ctypes
import warnings
from collections.abc import Callable
from typing import Any

import torch
from spacy.util import logger
from torch import nn

from .adapters import Bottleneck, LowRank, replace_module
from .encoder import Encoder
from .fused import fuse_layers
from .parameters import copy_sharing

TRIM_AFTER = 32768  # in wordpieces
_INT8_PRODUCT: Any = getattr(torch.ops.onednn, "qlinear_pointwise", None)


def for_inference(encoder: nn.Module, precision: str) -> nn.Module:
    """Make the inference copy of an `Encoder`, in eval mode. Weights that need no change are
    shared.

    `precision` is "fp32", "bf16", "fp16", or, on a CPU, "int8". A CPU with AMX uses bf16 instead of
    int8: its products are as fast, and no rounding is needed before them.
    """
    assert isinstance(encoder, Encoder)
    is_cpu = encoder.device.type == "cpu"
    if precision == "int8" and _has_amx():
        precision = "bf16"
    layer: Callable[[nn.Linear], nn.Module] | None = None
    if precision == "int8":
        layer = Int8Linear
    elif is_cpu and precision in ("fp32", "bf16") and packing_pays():
        layer = PackedLinear
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model: Any = copy_sharing(
        encoder.model, lambda weight: nn.Parameter(weight.to(dtype), requires_grad=False)
    )
    is_fused = layer is not None and bool(encoder.interface) and fuse_layers(model)
    if layer is not None:
        for name, module in list(model.named_modules()):
            parent = model.get_submodule(name.rpartition(".")[0])
            # The layers of adapters are too small to get faster.
            is_thin = isinstance(parent, Bottleneck | LowRank) and module is not parent.linear
            if isinstance(module, nn.Linear) and not is_thin:
                replace_module(model, name, layer(module))
        fuse(model)
    fast = copy.copy(encoder)
    fast._modules = {**encoder._modules, "model": model}
    fast.is_fused = is_fused
    fast.multiplies_by_onednn = is_cpu and (layer is not None or precision == "bf16")
    return fast.eval()  # also if another thread trains the encoder now


def fuse(model: nn.Module) -> None:
    """Fuse the packed layers of a PreTrainedModel with the following activation, or with the
    residual connection."""
    from transformers.activations import GELUActivation

    for name, module in list(model.named_modules()):
        dense, activation = (getattr(module, key, None) for key in ("dense", "intermediate_act_fn"))
        if not isinstance(dense, PackedLinear):
            continue
        if isinstance(activation, GELUActivation):
            dense.activation = "gelu"
            module.intermediate_act_fn = nn.Identity()
        elif {key for key, _ in module.named_children()} == {"dense", "dropout", "LayerNorm"}:
            replace_module(model, name, PackedOutput(dense, module.LayerNorm))


def check_device(precision: str, device: torch.device) -> None:
    """Check whether a precision is sensible on a device.

    Raises ValueError if this build of torch has no int8. Warns if the CPU would only emulate bf16;
    on one with AMX the log says what bf16 would gain.
    """
    if precision == "int8" and _INT8_PRODUCT is None:
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
    if _INT8_PRODUCT is not None and not _has_amx():
        found.append("int8")
    return found


def packing_pays() -> bool:
    """Return whether oneDNN multiplies faster than MKL, which torch uses for fp32: on CPUs with
    AVX-512, by up to two times on AMD's. With AVX2 it is slower."""
    return torch.backends.mkldnn.is_available() and "AVX512" in _capability()


def int8_bits() -> int:
    """Return the number of bits of int8 weights. Without VNNI the CPU adds pairs of products in 16
    bits, which 8 bits could overflow and 7 bits can't."""
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", None)
    return 8 if has_vnni is not None and has_vnni() else 7


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


class PackedOutput(nn.Module):
    """The end of a block of BERT (`BertSelfOutput`, `BertOutput`): LayerNorm(x + dense(states))."""

    def __init__(self, dense: PackedLinear, norm: nn.Module) -> None:
        super().__init__()
        self.dense, self.norm = dense, norm

    def forward(self, states: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        """Compute (…, out_features) from the block's hidden states (…, in_features) and its input x
        (…, out_features)."""
        return self.norm(self.dense(states, around))


class Int8Linear(nn.Module):
    """A linear layer in int8, with one scale for each row of the weights, and a scale and zero
    point for each position, computed at run time (Yao et al. 2022, ZeroQuant, section 4.1). Some
    wordpieces, such as [SEP], have far larger hidden states than others: one scale for a batch, as
    in `torch.ao`, would leave few bits for the rest."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        largest = weight.abs().amax(1).clamp(min=1e-12)
        self._scales = largest / (2 ** (int8_bits() - 1) - 1)
        rounded = (weight / self._scales[:, None]).round()
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        # The factor of a row's zero point, and the bias: (2, out_features).
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach()
        self._added = torch.stack((rounded.sum(1) * self._scales, bias))
        self._weight = torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Compute (…, out_features) from (…, in_features)."""
        rows = states.reshape(-1, states.shape[-1])
        low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
        step = (high - low).clamp_(min=1e-12).div_(255)
        # Adding half a step makes truncation round to nearest.
        levels = rows.sub(low - step / 2).mul_(1 / step).to(torch.uint8)
        out = self.product(levels).mul_(step)
        out.addmm_(torch.cat((low, torch.ones_like(low)), dim=1), self._added)
        return out.view(*states.shape[:-1], -1)

    def product(self, levels: torch.Tensor) -> torch.Tensor:
        """Multiply `levels`, each row's values as steps above its zero point, uint8 (num_rows,
        in_features), by the weights. Returns the products in the same steps (num_rows,
        out_features)."""
        return _INT8_PRODUCT(
            levels, 1.0, 0, self._weight, self._scales, self._zeros, None, 1.0, 0,
            torch.float32, "none", [], "",
        )  # fmt: skip


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
