"""Linear layers in int8 on a CPU, for prediction.

The input of each layer is rounded with one scale and one zero point, which are measured once, on
random and on repeated wordpieces: no text is needed, rounding takes one pass, and a text's hidden
states don't depend on its batch. Hidden states have a few channels that are far larger than the
others, which a common scale would leave few bits. Two things make up for it:

- each channel is divided by a factor, by which its weights are multiplied (Xiao et al. 2023,
  SmoothQuant, section 4);
- channels that are still much larger than the others are not rounded (Dettmers et al. 2022,
  LLM.int8(), section 3.2). In MiniLM there is one in most feed-forward blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..text.batch import PackedBatch
from .encoder import Encoder

NUM_SEQUENCES, LENGTH = 32, 32  # of wordpieces from which ranges are measured
SMOOTHING = 0.6  # how much of the difference between channels moves to the weights; 1 is all
MARGIN = 1.1  # by which a range may be exceeded
MAX_OUTLIERS = 4
OUTLIER = 2.0  # times the range of the largest other channel
_PRODUCT: Any = getattr(torch.ops.onednn, "qlinear_pointwise", None)


class Range(NamedTuple):
    """The smallest and the largest value of each channel of a layer's input, (in_features,)."""

    low: torch.Tensor
    high: torch.Tensor


def has_int8() -> bool:
    """Return whether this build of torch has products in int8."""
    return _PRODUCT is not None


def int8_bits() -> int:
    """Return the number of bits of int8 weights. Without VNNI the CPU adds pairs of products in 16
    bits, which 8 bits could overflow and 7 bits can't."""
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", None)
    return 8 if has_vnni is not None and has_vnni() else 7


def measure_ranges(encoder: Encoder, layers: Iterable[nn.Linear]) -> dict[nn.Linear, Range]:
    """Measure the ranges of the inputs of linear layers, over wordpieces that are always the same
    for a vocabulary. Layers that did not run are missing. Raises ValueError if the encoder computes
    numbers that are not finite."""
    found: dict[Any, Range] = {}

    def note(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        rows = inputs[0].detach().flatten(0, -2)
        low, high = rows.amin(0), rows.amax(0)
        if layer in found:  # ALBERT's layers share their weights
            low, high = low.minimum(found[layer].low), high.maximum(found[layer].high)
        found[layer] = Range(low, high)

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.random.fork_rng(devices=[]):  # BigBird draws random numbers
            encoder.encode(_make_batch(encoder), max_batch_tokens=NUM_SEQUENCES * LENGTH)
    finally:
        for hook in hooks:
            hook.remove()
    if not all(torch.isfinite(values).all() for one in found.values() for values in one):
        raise ValueError(
            "The encoder's weights are damaged: its hidden states are not finite. Load another "
            "checkpoint of the training, or train again with a lower learning rate."
        )
    return found


def _make_batch(encoder: Encoder) -> PackedBatch:
    """Make sequences of random wordpieces, and as many that repeat one: attention averages values
    that cancel out in the first and add up in the second, as in "ha ha ha", rules and tables."""
    checkpoint = encoder.checkpoint
    tokenizer = checkpoint.tokenizer
    length = min(LENGTH, checkpoint.max_window)
    size = min(tokenizer.tokenizer.get_vocab_size(), checkpoint.config.vocab_size)
    ids = np.random.default_rng(0).integers(size, size=(NUM_SEQUENCES, length))
    ids[::2] = ids[::2, :1]
    ids[:, : len(tokenizer.prefix)] = tokenizer.prefix
    ids[:, length - len(tokenizer.suffix) :] = tokenizer.suffix
    return PackedBatch(
        ids.ravel(), np.zeros_like(ids.ravel()), np.arange(NUM_SEQUENCES + 1) * length,
        np.ones(NUM_SEQUENCES, dtype=np.int64),
    )  # fmt: skip


class Int8Linear(nn.Module):
    """A linear layer in int8: a scale and a zero point for its input, and a scale for each row of
    its weights.

    `inputs` is the range of its input. With `smooth` the channels of the input are divided by
    factors, and up to `max_outliers` of them are not rounded.
    """

    def __init__(
        self,
        linear: nn.Linear,
        inputs: Range,
        *,
        smooth: bool = True,
        max_outliers: int = MAX_OUTLIERS,
    ) -> None:
        super().__init__()
        weight, (low, high) = linear.weight.detach(), inputs
        largest = low.abs().maximum(high.abs()).clamp(min=1e-5)
        factors = torch.ones_like(largest)
        if smooth:
            spread = weight.abs().amax(0).clamp(min=1e-5)
            factors = largest**SMOOTHING / spread ** (1 - SMOOTHING)
        low, high, largest = (values / factors for values in (low, high, largest))
        weight = weight * factors
        others = largest.sort(descending=True).values[min(max_outliers, len(largest) - 1)]
        is_outlier = largest > OUTLIER * others if max_outliers else largest < 0
        low, high = low[~is_outlier].amin().clamp(max=0), high[~is_outlier].amax().clamp(min=0)
        self.step = MARGIN * float(high - low) / 255 or 1.0
        self.zero = round(MARGIN * -float(low) / self.step)
        self._levels = 1 / (factors * self.step)
        self._half = torch.tensor(self.zero + 0.5)
        self.outliers = is_outlier.nonzero()[:, 0]
        self.outlier_weight = (weight / factors)[:, self.outliers].T  # (num_outliers, out_features)
        weight = weight.masked_fill(is_outlier, 0)
        scales = weight.abs().amax(1).clamp(min=1e-12) / (2 ** (int8_bits() - 1) - 1)
        rounded = (weight / scales[:, None]).round().to(torch.int8)
        zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._weight = (torch.ops.onednn.qlinear_prepack(rounded, None), scales, zeros)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Compute (…, out_features) from (…, in_features), plus `added` (…, out_features)."""
        rows = states.reshape(-1, states.shape[-1])
        if added is not None:
            added = added.reshape(len(rows), added.shape[-1])
        if len(self.outliers):
            values, weight = rows[:, self.outliers], self.outlier_weight
            added = values @ weight if added is None else torch.addmm(added, values, weight)
        found = self.multiply(self.quantize(rows), added)
        return found.view(*states.shape[:-1], found.shape[-1])

    def quantize(self, rows: torch.Tensor) -> torch.Tensor:
        """Round the input to steps above the zero point, uint8 of the same shape."""
        # Adding a half makes truncation round to nearest. By way of int32, because torch converts
        # float32 to uint8 one by one, which takes three times as long.
        levels = torch.addcmul(self._half, rows, self._levels).clamp_(0, 255)
        return levels.to(torch.int32).to(torch.uint8)

    def multiply(self, levels: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Compute (num_rows, out_features) from the rounded input (num_rows, in_features), plus
        `added` (num_rows, out_features)."""
        inputs, output = (levels, self.step, self.zero, *self._weight), (1.0, 0, torch.float32)
        if added is None:
            return _PRODUCT(*inputs, self._bias, *output, "none", [], "")
        return _PRODUCT.binary(
            *inputs, added, self._bias, *output, 1.0, 0, "add", 1.0, "none", [], ""
        )

    def multiply_for(self, levels: torch.Tensor, layer: Int8Linear) -> torch.Tensor:
        """Compute GELU of the output from the rounded input, as the rounded input of a `layer`."""
        inputs = (levels, self.step, self.zero, *self._weight, self._bias)
        return _PRODUCT(*inputs, layer.step, layer.zero, torch.uint8, "gelu", [], "none")


class Int8FeedForward(nn.Module):
    """The feed-forward block of BERT (`BertIntermediate`, `BertOutput`) with GELU:
    LayerNorm(x + down(GELU(up(x)))). The values between the two layers are never written in full,
    except those of outliers.

    `above` and `below` are the ranges of the inputs of `up` and `down`.
    """

    def __init__(
        self, up: nn.Linear, down: nn.Linear, norm: nn.Module, above: Range, below: Range
    ) -> None:
        super().__init__()
        # GELU comes between, so `up` can't add outliers, nor divide the input of `down`.
        self.up = Int8Linear(up, above, max_outliers=0)
        self.down = Int8Linear(down, below, smooth=False)
        self.norm = norm
        weight, chosen = up.weight.detach(), self.down.outliers
        bias = weight.new_zeros(len(weight)) if up.bias is None else up.bias.detach()
        self._outliers = weight[chosen], bias[chosen], self.down.outlier_weight

    def forward(self, states: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        """Compute (num_positions, hidden_size) from x twice: BERT's layers pass what
        `BertIntermediate` returns, here its input, and what is added."""
        levels = self.up.multiply_for(self.up.quantize(states), self.down)
        if len(self.down.outliers):
            weight, bias, below = self._outliers
            around = torch.addmm(around, F.gelu(F.linear(states, weight, bias)), below)
        found: torch.Tensor = self.norm(self.down.multiply(levels, around))
        return found
