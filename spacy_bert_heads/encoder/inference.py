"""The inference copy of an encoder: weights in the type of the precision, laid out for the
processor. It shares what it doesn't change with the module that learns, which stays in fp32. And
memory that does not grow with the number of documents.
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

TRIM_AFTER = 32768  # wordpieces
_INT8_PRODUCT: Any = getattr(torch.ops.onednn, "qlinear_pointwise", None)


def for_inference(encoder: nn.Module, precision: str) -> nn.Module:
    """Make the inference copy of an `Encoder`: in eval mode, sharing the weights that it doesn't
    change, as fast as the precision allows.

    `precision` is "fp32", "bf16", "fp16", or, on a CPU, "int8". A CPU with AMX takes bf16 for int8:
    its products are as fast, and nothing has to be rounded before them.
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
            # What is added to a layer is too thin to gain from it.
            is_thin = isinstance(parent, Bottleneck | LowRank) and module is not parent.linear
            if isinstance(module, nn.Linear) and not is_thin:
                replace_module(model, name, layer(module))
        fuse(model)
    fast = copy.copy(encoder)
    fast._modules = {**encoder._modules, "model": model}
    fast.is_fused = is_fused
    fast.multiplies_by_onednn = is_cpu and (layer is not None or precision == "bf16")
    return fast.eval()  # whatever another thread does with the weights


def fuse(model: nn.Module) -> None:
    """Leave to the packed layers of a PreTrainedModel what comes after them: the activation, or
    what is added."""
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
    """Check whether the precision in force makes sense on a device.

    Raises ValueError if this build of torch has no int8. Warns if the processor would only imitate
    bf16; on one with AMX the log says what bf16 would gain.
    """
    if precision == "int8" and _INT8_PRODUCT is None:
        raise ValueError(
            'precision is "int8", which this build of torch lacks (oneDNN is not in it). '
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
    """List the precisions in which prediction makes sense on a device, "fp32" first: those that its
    processor computes in, and that differ."""
    if device.type == "cuda":
        return ["fp32", "bf16", "fp16"]
    found = ["fp32"]
    if _has_bf16():
        found.append("bf16")
    if _INT8_PRODUCT is not None and not _has_amx():
        found.append("int8")
    return found


def packing_pays() -> bool:
    """Whether oneDNN multiplies faster than MKL, which torch takes for fp32: on CPUs with AVX-512,
    by up to two times on those of AMD. With AVX2 it is the slower one."""
    return torch.backends.mkldnn.is_available() and "AVX512" in _capability()


def int8_bits() -> int:
    """Return the bits of int8 weights. Without VNNI the processor adds products of int8 by twos in 16
    bits, which 7 bits can't overflow."""
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
    """A linear layer, in fp32 or bf16, in the order that oneDNN reads, through the operators of
    torch's compiler."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self.activation = "none"  # or "gelu"

    def forward(self, states: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Compute (…, out_features) from (…, in_features), plus what is `added` (…,
        out_features)."""
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
        """Compute (…, out_features) from what the block has computed (…, in_features) and what it
        has read, x (…, out_features)."""
        return self.norm(self.dense(states, around))


class Int8Linear(nn.Module):
    """A linear layer in int8: a scale for each row of the weights, computed once, and a scale and a
    zero point for each row of the hidden states, computed each time (Yao et al. 2022, ZeroQuant,
    section 4.1). Some wordpieces, such as [SEP], have far larger hidden states than others: with
    one scale for a batch, as in `torch.ao`, they leave few bits to the rest."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        largest = weight.abs().amax(1).clamp(min=1e-12)
        self._scales = largest / (2 ** (int8_bits() - 1) - 1)
        rounded = (weight / self._scales[:, None]).round()
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        # What a row's zero point is multiplied by, and the bias: (2, out_features).
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach()
        self._added = torch.stack((rounded.sum(1) * self._scales, bias))
        self._weight = torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Compute (…, out_features) from (…, in_features)."""
        rows = states.reshape(-1, states.shape[-1])
        low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
        step = (high - low).clamp_(min=1e-12).div_(255)
        # Truncating what is half a step more rounds it.
        levels = rows.sub(low - step / 2).mul_(1 / step).to(torch.uint8)
        out = self.product(levels).mul_(step)
        out.addmm_(torch.cat((low, torch.ones_like(low)), dim=1), self._added)
        return out.view(*states.shape[:-1], -1)

    def product(self, levels: torch.Tensor) -> torch.Tensor:
        """Multiply `levels`, the steps of each row above its zero point, uint8 (num_rows,
        in_features), by the weights. Returns the products in these steps (num_rows,
        out_features)."""
        return _INT8_PRODUCT(
            levels, 1.0, 0, self._weight, self._scales, self._zeros, None, 1.0, 0,
            torch.float32, "none", [], "",
        )  # fmt: skip


class Trimmer:
    """Return freed memory back to the system. glibc keeps it, in pieces that seldom fit what the next
    batch asks for, so that a process that reads documents for hours would grow and grow."""

    def __init__(self) -> None:
        self._count = 0
        try:
            self._trim: Any = ctypes.CDLL("libc.so.6").malloc_trim
        except (OSError, AttributeError):  # another system, or another C library
            self._trim = None

    def count(self, num_wordpieces: int) -> None:
        """Trim once in a while: it takes 5 to 20 ms, and what is used again must be mapped again.
        `num_wordpieces` have been read on a CPU since the last call."""
        self._count += num_wordpieces
        if self._trim is not None and self._count >= TRIM_AFTER:
            self._count = 0
            self._trim(0)
