"""Features for heads from several layers of the encoder."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from spacy.tokens import Doc
from thinc.api import Model
from thinc.shims import Shim
from torch import nn

from .checkpoint import Files
from .hidden_states import HiddenStates, Layers
from .model import PackedPairs
from .settings import Settings
from .shim import TorchShim

COMBINATIONS = ("concat", "sum", "weighted")
# All weights start equal, far from their optimum: at the learning rate of a new head they hardly
# change within a few hundred steps.
MIX_MULTIPLIER = 100.0


class ScalarMix(nn.Module):
    """The weighted mean of layers, with learned weights and scale (Peters et al. 2018, eq. 1)."""

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(n_layers))  # before the softmax
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Mix (num_positions, num_layers, hidden_size) to (num_positions, hidden_size)."""
        weights = self.scale * self.weights.softmax(0)
        return torch.einsum("l,slw->sw", weights, states)


def mix_to_files(mix: nn.Module) -> Files:
    """Serialize the weights to a named file."""
    from safetensors.torch import save

    return {"model.safetensors": save(mix.state_dict())}


def mix_from_files(files: Files) -> ScalarMix:
    """Make the module from what `mix_to_files` returned."""
    from safetensors.torch import load

    weights = load(files["model.safetensors"])
    mix = ScalarMix(len(weights["weights"]))
    mix.load_state_dict(weights)
    return mix


def build_layer_features(
    encoder: Model[Any, HiddenStates], layers: Layers, combine: str = "concat"
) -> Model[Any, HiddenStates]:
    """Build a layer that reads several layers of a head's own encoder, for `nlp.replace_listeners`.
    `layers` and `combine` are those of `BertListener.v1`."""
    encoder.attrs["layers"] = layers
    return combine_layers(encoder, layers, combine)


def combine_layers(
    source: Model[Any, HiddenStates], layers: Layers, combine: str
) -> Model[Any, HiddenStates]:
    """Combine the `layers` that `source` returns concatenated: "concat" keeps them so, "sum" adds
    them, "weighted" learns a weighted mean. Returns the source itself if there is nothing to
    combine. Raises ValueError if `layers` is empty or `combine` is unknown."""
    if combine not in COMBINATIONS:
        options = ", ".join(COMBINATIONS)
        raise ValueError(f"Unknown way to combine layers '{combine}'. Choose one of: {options}.")
    if not layers or (isinstance(layers, str) and layers != "all"):
        raise ValueError(f'layers is {layers!r}; name some, as in [-1], or write "all".')
    if combine == "concat" or (combine == "sum" and len(layers) == 1):
        return source
    shims: list[Shim] = []
    if combine == "weighted":
        shims = [
            TorchShim(
                to_files=mix_to_files,
                from_files=mix_from_files,
                learning_rate_multiplier=MIX_MULTIPLIER,
            )
        ]
    return Model(
        "layer_features",
        forward,
        init=init,
        dims={"nO": None},
        layers=[source],
        shims=shims,
        attrs={"settings": Settings({"combine": combine})},
    )


def init(model: Model, X: Any = None, Y: Any = None) -> Model:
    """Initialize equal weights for the layers, unless there are weights already."""
    source = model.layers[0].initialize(X=X)
    n_layers = source.get_dim("n_layers")
    model.set_dim("nO", source.get_dim("nO") // n_layers, force=True)
    for shim in model.shims:
        assert isinstance(shim, TorchShim)
        if not shim.has_module:
            shim.module = ScalarMix(n_layers)
    return model


def mix_of(model: Model) -> ScalarMix:
    """Return the torch module of a "weighted" layer."""
    shim = model.shims[0]
    assert isinstance(shim, TorchShim)
    return cast(ScalarMix, shim.module)


def forward(
    model: Model, inputs: list[Doc] | PackedPairs, is_train: bool
) -> tuple[HiddenStates, Callable[[torch.Tensor], Any]]:
    """Combine the layers of a batch. Returns the hidden states, and a callback for their
    gradient."""
    hidden, backprop_source = model.layers[0](inputs, is_train)
    layers = hidden.states.unflatten(1, (len(hidden.layers), -1)).detach()
    with torch.set_grad_enabled(is_train):
        layers.requires_grad_(is_train)
        states = mix_of(model)(layers) if model.shims else layers.sum(1)

    def backprop(gradient: torch.Tensor) -> Any:
        torch.autograd.backward(states, gradient)
        assert layers.grad is not None
        backprop_source(layers.grad.flatten(1))
        return inputs

    return replace(hidden, states=states.detach(), layers=()), backprop
