"""The training state of a run: pipeline, optimizer moments and progress."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from spacy.language import Language
from thinc.api import Model, Optimizer, get_current_ops

from ..encoder.shim import TorchShim
from ..encoder.step import MeanLoss

FORMAT = 1
PIPELINE = "pipeline"
# Settings that may change when a run is resumed: locations and the length of the run. The training
# texts are compared by a checksum.
FREE = (
    "paths.",
    "corpora.train.path",
    "corpora.dev.",
    "training.max_steps",
    "training.max_epochs",
    "training.patience",
    "training.logger.",
    "system.gpu_allocator",
)


# --- the optimizer


def optimizer_state(nlp: Language, optimizer: Optimizer) -> dict[str, Any]:
    """Return the moments of all components, both thinc's and torch's."""
    arrays = {}
    for name in ("mom1", "mom2", "averages", "nr_update", "last_seen"):
        values: dict[tuple[int, str], Any] = getattr(optimizer, name) or {}
        kept = [(place, key, values[key]) for place, key in _keys(nlp) if key in values]
        arrays[name] = {f"{place}:{key[1]}": _to_torch(value) for place, key, value in kept}
    shims = {
        place: shim.optimization.state_dict() for place, shim in _shims(nlp) if shim.has_module
    }
    return {"thinc": arrays, "torch": shims}


def restore_optimizer(nlp: Language, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore what `optimizer_state` returned."""
    for name, values in state["thinc"].items():
        if values:
            getattr(optimizer, name).update(
                {
                    key: _from_torch(values[f"{place}:{key[1]}"])
                    for place, key in _keys(nlp)
                    if f"{place}:{key[1]}" in values
                }
            )
    for place, shim in _shims(nlp):
        if place in state["torch"]:
            shim.optimization.load_state_dict(shim.module, optimizer, state["torch"][place])


def _nodes(nlp: Language) -> Iterator[tuple[str, Model]]:
    """Yield the nodes of the components' models, each with a name that is the same in every
    process."""
    for name, pipe in nlp.components:
        model = getattr(pipe, "model", None)
        if isinstance(model, Model):
            for i, node in enumerate(model.walk()):
                yield f"{name}.{i}", node


def _shims(nlp: Language) -> Iterator[tuple[str, TorchShim]]:
    for place, node in _nodes(nlp):
        for i, shim in enumerate(node.shims):
            if isinstance(shim, TorchShim):
                yield f"{place}.{i}", shim


def _keys(nlp: Language) -> Iterator[tuple[str, tuple[int, str]]]:
    """Yield the keys of a thinc optimizer, which contain the ids of nodes and shims."""
    for place, node in _nodes(nlp):
        yield from ((place, (node.id, name)) for name in node.param_names)
    for place, shim in _shims(nlp):
        if shim.has_module:
            yield from ((place, (shim.id, name)) for name, _ in shim.module.named_parameters())


def _to_torch(value: Any) -> Any:
    return value if isinstance(value, int) else torch.from_numpy(np.array(_to_numpy(value)))


def _to_numpy(value: Any) -> Any:
    return get_current_ops().to_numpy(value)


def _from_torch(value: Any) -> Any:
    return value if isinstance(value, int) else get_current_ops().asarray(value.numpy().copy())


# --- losses since the last evaluation


def pack_losses(losses: dict[str, float]) -> dict[str, list[float]]:
    """Return each loss as two numbers: the mean and its number of updates, 0 for a sum."""
    return {name: [float(loss), getattr(loss, "count", 0)] for name, loss in losses.items()}


def unpack_losses(packed: dict[str, list[float]]) -> dict[str, float]:
    """Restore what `pack_losses` returned."""
    return {
        name: MeanLoss(loss, int(count)) if count else loss
        for name, (loss, count) in packed.items()
    }
