"""Read the layer weights of heads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from thinc.api import Model

from ..encoder.features import mix_of
from ..encoder.listener import BertListener, checkpoint_behind
from ..evaluate import is_pipeline, load_pipeline
from .source import Floats1d


class LayerWeights(NamedTuple):
    """Hold the learned weights of the layers that a head reads."""

    head: str
    layers: tuple[int, ...]  # the layers that it reads
    weights: Floats1d  # (n_layers,), which sum to 1
    scale: float
    depth: int  # the encoder's last layer

    @property
    def centre(self) -> float:
        """Return the weighted mean layer: the centre of gravity of Tenney et al. (2019), section
        3."""
        return float(self.weights @ np.asarray(self.layers))


def read_weights(name: str) -> list[LayerWeights]:
    """Load a pipeline, and return the layer weights of its heads (Peters et al. 2018, equation 1).
    Raises ValueError if there is no such pipeline, or none of its heads has layer weights."""
    if not is_pipeline(name):
        raise ValueError(
            f"There is no pipeline '{name}', neither a folder with a config.cfg nor an installed "
            "package. A checkpoint has no heads, so it has no layer weights."
        )
    nlp = load_pipeline(name)
    found = []
    for head, component in nlp.components:
        model = getattr(component, "model", None)
        for node in model.walk() if isinstance(model, Model) else ():
            if node.name == "layer_features" and node.shims:
                mix, source = mix_of(node), node.layers[0]
                checkpoint = checkpoint_behind(source)
                assert checkpoint is not None
                reads = source.reads if isinstance(source, BertListener) else source.attrs["layers"]
                weights = mix.weights.detach().double().softmax(0).cpu().numpy()
                layers, scale = checkpoint.layer_numbers(reads), float(mix.scale.detach())
                found.append(LayerWeights(head, layers, weights, scale, checkpoint.num_layers))
    if not found:
        raise ValueError(
            f"No head of '{name}' has learned layer weights ({', '.join(nlp.component_names)}). "
            'Set layers = "all" and combine = "weighted" in a head\'s model.tok2vec, and train it.'
        )
    return found
