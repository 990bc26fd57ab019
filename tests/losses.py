"""Losses of heads beside the same in torch, from arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from spacy_bert_heads.heads import losses
from spacy_bert_heads.heads.outputs import SpanLogits, TokenLogits


def token_logits(logits: np.ndarray, has_pieces: np.ndarray, lengths: np.ndarray) -> TokenLogits:
    return TokenLogits(torch.from_numpy(logits), has_pieces, lengths)


def get_loss(component: Any, examples: list, output: Any) -> tuple[float, np.ndarray]:
    """What a head makes of its output, or of an array of logits: loss, and gradient by them."""
    if isinstance(output, np.ndarray):
        output = torch.from_numpy(output)
    loss, gradient = component.get_loss(examples, output)
    is_whole = isinstance(gradient, TokenLogits | SpanLogits)
    return loss, (gradient.logits if is_whole else gradient).numpy()


def cross_entropy(
    logits: np.ndarray,
    classes: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    label_smoothing: float = 0.0,
) -> tuple[float, np.ndarray]:
    """The heads' cross-entropy, and its gradient by the logits."""
    x = torch.tensor(logits, requires_grad=True)
    by_class = None if weights is None else torch.from_numpy(weights)
    settings = {"weights": by_class, "label_smoothing": label_smoothing}
    loss = losses.cross_entropy(x, classes, **settings)
    loss.backward()
    assert x.grad is not None
    return float(loss.detach()), x.grad.numpy()


def in_torch(loss: Callable, logits: Any) -> tuple[float, np.ndarray]:
    """The value of a loss, and its gradient by the logits, in float64."""
    x = torch.tensor(np.asarray(logits), dtype=torch.float64, requires_grad=True)
    value = loss(x)
    value.backward()
    assert x.grad is not None
    return float(value.detach()), x.grad.numpy()


def assert_same_loss(found: tuple, expected: tuple) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)
    assert found[1].dtype == np.float32
