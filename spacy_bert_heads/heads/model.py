"""The thinc model of a head: a torch module in a shim, behind a listener or other tok2vec layer."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import srsly
import torch
from spacy.tokens import Doc
from thinc.api import Model, torch2xp, xp2torch
from thinc.types import Floats2d
from torch import nn

from ..encoder.checkpoint import Files
from ..encoder.hidden_states import HiddenStates
from ..encoder.listener import BertListener, checkpoint_behind, reads_last_layer
from ..encoder.model import DocSample, PackedPairs, shim_of
from ..encoder.parameters import copy_sharing
from ..encoder.settings import Settings
from ..encoder.shim import TorchShim, without_graph
from ..text.batch import batch_of_tokens
from .families import dense_settings
from .modules import ChoiceClassifier, Classifier, SequenceClassifier
from .outputs import map_tensors, tensors_of

# The names of a head's own dropout in configurations.
DROPOUT_RATES = ("classifier_dropout", "classifier_dropout_prob")
# Attributes of a token head's model that its component sets, see `TokenClassifier`.
AGGREGATION, CRF = "aggregation", "crf"


def head_model(
    name: str,
    forward: Callable,
    init: Callable,
    tok2vec: Model,
    shim: TorchShim,
    settings: dict[str, Any],
    nO: int | None,
) -> Model:
    """Make the thinc model of a head: a torch module in a shim, behind the layer `tok2vec`.
    `settings` are those of the config, which win over saved ones when the model is loaded."""
    return Model(
        name,
        forward,
        init=init,
        dims={"nO": nO},
        layers=[tok2vec],
        refs={"tok2vec": tok2vec},
        shims=[shim],
        attrs={**settings, "settings": Settings(settings)},
    )


def init_head(module_class: type[Classifier], model: Model, X: Any = None, Y: Any = None) -> Model:
    """Make the module of a head whose nO is known, built and initialised as Hugging Face's heads
    of the encoder's family are. `X` has Docs, for layers that infer their width from data."""
    tok2vec = model.layers[0].initialize(X=X)
    checkpoint = checkpoint_behind(tok2vec)
    config = None if checkpoint is None else checkpoint.config
    settings = {k: v for k, v in model.attrs["settings"].values.items() if k != "max_windows"}
    if CRF in model.attrs:
        settings[CRF] = model.attrs[CRF]
    if settings["dropout"] is None:
        settings["dropout"] = classifier_dropout(config, module_class)
    if settings.get("pooling") in (None, "pooler"):
        settings |= family_settings(config, module_class, dropout=settings["dropout"])
    module = module_class(tok2vec.get_dim("nO"), model.get_dim("nO"), **settings)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=initializer_range(config))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if isinstance(module, SequenceClassifier) and checkpoint and reads_last_layer(tok2vec):
        module.start_from(checkpoint)
    shim_of(model).module = module
    return model


def initializer_range(config: Any) -> float:
    """Return the standard deviation for new weights on a checkpoint; 0.02 without a checkpoint."""
    return getattr(config, "initializer_range", 0.02)


def add_classes(model: Model, number: int) -> None:
    """Append classes to a head that has weights, see `Classifier.add_classes`."""
    shim, checkpoint = shim_of(model), checkpoint_behind(model.get_ref("tok2vec"))
    module = shim.module
    assert isinstance(module, Classifier)
    module.add_classes(number, std=initializer_range(checkpoint and checkpoint.config))
    shim.module = module  # drops the optimizer's moments and the inference copy
    model.set_dim("nO", module.settings["n_classes"], force=True)


def set_aggregation(model: Model, aggregation: str) -> None:
    """Set how a token head's model aggregates wordpieces, see `TokenClassifier.forward`. Raises
    ValueError if it has an LSTM, which needs one vector for each token."""
    if aggregation != "first" and model.attrs.get("lstm_width"):
        raise ValueError(
            f'aggregation is "{aggregation}", but the head\'s LSTM reads the first wordpiece of a '
            f"token (lstm_width = {model.attrs['lstm_width']} in its model). Set aggregation = "
            '"first", or train again with lstm_width = 0.'
        )
    model.attrs[AGGREGATION] = aggregation


def family_settings(
    config: Any, module_class: type[Classifier], *, dropout: float
) -> dict[str, Any]:
    """Return the settings of a head's module that depend on the model family. `config` is that of
    the checkpoint, None for BERT's settings; `dropout` the probability before the classifier."""
    dense = dense_settings(config, dropout, is_choice=module_class is ChoiceClassifier)
    if issubclass(module_class, SequenceClassifier):
        return {"pooling": getattr(config, "classifier_pooling", "cls"), "dense": dense}
    # Only ModernBERT has one under heads for tokens and spans too.
    is_modern = getattr(config, "model_type", "") == "modernbert"
    return {"dense": dense if is_modern else None}


def classifier_dropout(config: Any, module_class: type[Classifier]) -> float:
    """Return the dropout of Hugging Face's heads on a checkpoint; 0.1 without a checkpoint."""
    of_sequences = ("seq_classif_dropout", "cls_dropout")  # DistilBERT's, DeBERTa's
    own = of_sequences if issubclass(module_class, SequenceClassifier) else ()
    for name in (*own, *DROPOUT_RATES, "hidden_dropout_prob", "dropout"):
        rate = getattr(config, name, None)
        if rate is not None:
            return float(rate)
    return 0.1


def head_to_files(module: nn.Module) -> Files:
    """Return the settings and weights of a head's module as files."""
    from safetensors.torch import save

    assert isinstance(module, Classifier)
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    settings = srsly.json_dumps(module.settings).encode("utf8")
    return {"config.json": settings, "model.safetensors": save(weights)}


def head_from_files(module_class: type[Classifier], files: Files) -> Classifier:
    """Make the module from what `head_to_files` returned."""
    from safetensors.torch import load

    module = module_class(**srsly.json_loads(files["config.json"]))
    module.load_state_dict(load(files["model.safetensors"]))
    return module


def forward(
    make_output: Callable[..., Any],
    model: Model,
    inputs: list[Doc] | PackedPairs,
    is_train: bool,
) -> tuple[Any, Callable[[Any], Any]]:
    """Run a head on the output of its listener, or of another tok2vec layer.

    Returns what `make_output` makes of logits (float32) and packed batch, and a callback for a
    gradient of the same structure.
    """
    if is_train and not isinstance(inputs, PackedPairs):
        inputs = DocSample(inputs, model.attrs.get("max_windows"))
    tok2vec = model.layers[0]
    vectors: Any
    backprop_tok2vec: Callable[[Any], Any]
    if lacks_tokens(tok2vec, inputs):
        vectors = [tok2vec.ops.alloc2f(0, tok2vec.get_dim("nO")) for _ in inputs]
        backprop_tok2vec = lambda gradient: inputs  # noqa: E731
    else:
        vectors, backprop_tok2vec = tok2vec(inputs, is_train)
    foreign, shim = not isinstance(vectors, HiddenStates), shim_of(model)
    hidden = pack_vectors(vectors, shim.device) if foreign else vectors
    how = {AGGREGATION: model.attrs[AGGREGATION]} if AGGREGATION in model.attrs else {}

    def run(module: nn.Module, states: torch.Tensor) -> Any:
        output = make_output(module(states, hidden.batch, **how), hidden.batch, **how)
        transitions = getattr(module, "transitions", None)
        return output if transitions is None else output._replace(transitions=transitions)

    if not is_train:
        module = shim.derive(lambda module, precision: copy_sharing(module).eval())
        output = without_graph(lambda: run(module, hidden.states))
        return map_tensors(output, torch.Tensor.detach), lambda gradient: inputs

    states = hidden.states.detach().requires_grad_()
    with shim.training():
        output = run(shim.module, states)

    def backprop(gradient: Any) -> Any:
        shim.backward(tensors_of(output), tensors_of(gradient))
        d_states = cast(torch.Tensor, states.grad)
        backprop_tok2vec(unpack_gradient(d_states, vectors) if foreign else d_states)
        return inputs

    return map_tensors(output, torch.Tensor.detach), backprop


def lacks_tokens(tok2vec: Model, inputs: Any) -> bool:
    """Return whether Docs have no token at all, which layers of spaCy with static vectors can't
    read."""
    is_foreign = isinstance(inputs, list) and not isinstance(tok2vec, BertListener)
    return is_foreign and not any(map(len, inputs))


def pack_vectors(vectors: list[Floats2d], device: torch.device) -> HiddenStates:
    """Turn the token vectors of any tok2vec layer, (num_tokens, width) for each Doc, into hidden
    states on a device with one position per token."""
    num_tokens = np.asarray([len(rows) for rows in vectors], dtype=np.int64)
    # thinc's default device is that of this thread, which may be another one.
    states = torch.cat([xp2torch(rows, device=device) for rows in vectors])
    return HiddenStates(states, batch_of_tokens(num_tokens))


def unpack_gradient(gradient: torch.Tensor, vectors: list[Floats2d]) -> list[Floats2d]:
    """Split the gradient of packed token vectors (num_tokens, width) by Doc."""
    parts = gradient.split([len(rows) for rows in vectors])
    return [cast(Floats2d, torch2xp(part)) for part in parts]
