"""Losses that several heads share. They are means that know their number of items."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from ..text.arrays import Ints1d
from .outputs import SpanLogits

# Logits that are processed at once: 2 MiB in float32, which is the cache of a CPU core; on a GPU
# enough for its launches not to count.
CHUNK, CHUNK_ON_GPU = 2**19, 2**26


def cross_entropy(
    logits: torch.Tensor,
    classes: Ints1d,
    *,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Compute the softmax cross-entropy in nats, a mean over annotated rows.

    `logits` are (n, num_classes); `classes` has the class of each row, -1 if it is not annotated
    (n,). `weights` of classes (num_classes,) and `label_smoothing` are applied as in torch's
    cross_entropy. The loss is 0 if no annotated row has a weight above 0.
    """
    gold = torch.from_numpy(classes).to(logits.device)
    known = gold >= 0
    weight = known if weights is None else known * weights[gold.clamp(min=0)]
    total = F.cross_entropy(
        logits, gold, weights, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    return mean_over(total, weight.sum())


def summed_cross_entropy(
    logits: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the sum of the softmax cross-entropy in nats, and the number of correct predictions,
    for many classes: float32 scalars.

    `logits` are (n, num_classes) in any precision, `classes` (n,) the class of each row, -1
    for none. The loss and its gradient are computed at once, for as many rows as fit into the cache
    together, and only the gradient is kept, in the precision of the logits. torch's cross_entropy
    keeps several tensors of the size of the logits, in float32.
    """
    return _SummedCrossEntropy.apply(logits, classes)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss, right = (logits.new_zeros((), dtype=torch.float32) for _ in range(2))
        gradient = None
        if ctx.needs_input_grad[0]:
            # float16 has no room for small probabilities before the loss is scaled.
            dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
            gradient = torch.empty_like(logits, dtype=dtype)
        num_rows = (CHUNK_ON_GPU if logits.is_cuda else CHUNK) // logits.shape[1] + 1
        known = (classes >= 0).float()
        places = classes.clamp(min=0)[:, None]
        for begin in range(0, len(logits), num_rows):
            part = slice(begin, begin + num_rows)
            rows = logits[part].float()
            top, best = rows.max(1, keepdim=True)
            right += (known[part] * (best == places[part])[:, 0]).sum()
            rows = rows - top
            gold = rows.gather(1, places[part])[:, 0]
            sums = rows.exp_().sum(1)
            loss += (known[part] * (sums.log() - gold)).sum()
            if gradient is not None:
                rows *= (known[part] / sums)[:, None]
                rows.scatter_add_(1, places[part], -known[part][:, None])
                gradient[part] = rows
        ctx.dtype = logits.dtype
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return (ctx.saved_tensors[0] * gradients[0]).to(ctx.dtype), None


def mean_over(total: torch.Tensor, num_items: torch.Tensor | float) -> torch.Tensor:
    """Divide a sum of losses by the number of its items, or by their weight; 0 for no items.

    The returned tensor stores the divisor (`num_items_of`). Sub-batches of `accumulate_gradient`
    are weighted by it, so that their gradients add up to that of the whole batch.
    """
    number = float(num_items)
    loss = total / number if number else total * 0.0
    loss.num_items = number  # type: ignore[attr-defined]
    return loss


def num_items_of(loss: torch.Tensor, *, default: float) -> float:
    """Return the number of items of a loss that `mean_over` made, else the default."""
    return getattr(loss, "num_items", default)


def span_loss(output: SpanLogits) -> torch.Tensor:
    """Compute the softmax cross-entropy in nats of start and end, over the wordpieces of each
    window and [CLS], which stands for "not in this window"; a mean over windows (BERT, sections 4.2
    and 4.3)."""
    targets, begins = output.targets, output.batch.cu_seqlens[:-1]
    assert targets is not None
    logits, windows = candidates(output)
    sums = log_sum_exp(logits, windows, len(begins))
    known = targets[:, 0] >= 0
    positions = torch.from_numpy(begins[:, None] + np.maximum(targets, 0)).to(sums.device)
    losses = (sums - output.logits.gather(0, positions)).sum(1)
    total = 0.5 * (losses * torch.from_numpy(known).to(sums.device)).sum()
    return mean_over(total, int(known.sum()))


def span_divergence(output: SpanLogits, wanted: SpanLogits) -> torch.Tensor:
    """Compute the Kullback-Leibler divergence in nats of start and end from those that are wanted,
    over the candidates of `span_loss`; a mean over windows."""
    num_windows = len(output.batch.seqlens)
    (own, windows), (known, _) = candidates(output), candidates(wanted)
    own, known = (
        logits - log_sum_exp(logits, windows, num_windows)[windows]
        for logits in (own, known.to(own.device))
    )
    return mean_over(0.5 * (known.exp() * (known - own)).sum(), num_windows)


def candidates(output: SpanLogits) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of all positions that can begin or end an answer (num_candidates, 2), and
    the number of the window of each (num_candidates,)."""
    batch = output.batch
    assert batch.offsets is not None
    chosen = batch.offsets.starts >= 0
    chosen[batch.cu_seqlens[:-1]] = True
    windows = np.repeat(np.arange(len(batch.seqlens)), batch.seqlens)[chosen]
    device = output.logits.device
    rows = torch.from_numpy(np.flatnonzero(chosen)).to(device)
    return output.logits[rows], torch.from_numpy(windows).to(device)


def log_sum_exp(logits: torch.Tensor, groups: torch.Tensor, n_groups: int) -> torch.Tensor:
    """The logarithm of the sum of exponentials of each group of rows, column by column: logits
    (n, 2) with the number of each row's group (n,) become (n_groups, 2)."""
    index = groups[:, None].expand_as(logits)
    tops = torch.full((n_groups, logits.shape[1]), -torch.inf, device=logits.device)
    tops = tops.scatter_reduce(0, index, logits.detach(), "amax")
    sums = torch.zeros_like(tops).index_add(0, groups, (logits - tops[groups]).exp())
    return sums.log() + tops
