"""The registered architectures of heads: thinc models around torch modules."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import srsly
import torch
from spacy.tokens import Doc
from thinc.api import Model, torch2xp, xp2torch
from thinc.types import Floats2d
from torch import nn

from ..deprecated import resolve_renamed
from ..encoder.checkpoint import Files
from ..encoder.hidden_states import HiddenStates
from ..encoder.listener import checkpoint_behind, reads_last_layer
from ..encoder.model import DocSample, PackedPairs, shim_of
from ..encoder.parameters import copy_sharing
from ..encoder.settings import Settings
from ..encoder.shim import TorchShim, without_graph
from ..text.arrays import sums
from ..text.batch import PackedBatch, batch_of_tokens
from .families import dense_settings
from .modules import (
    ChoiceClassifier,
    Classifier,
    PositionClassifier,
    SequenceClassifier,
    TokenClassifier,
)
from .outputs import SpanLogits, TokenLogits, map_tensors, tensors_of

POOLINGS = ("cls", "pooler", "mean")
MAX_WINDOWS = 16  # of 256 wordpieces: the encoder's default max_batch_tokens
# The names of a head's own dropout in configurations.
DROPOUT_RATES = ("classifier_dropout", "classifier_dropout_prob")
# Attributes of a token head's model that its component sets, see `TokenClassifier`.
AGGREGATION, CRF = "aggregation", "crf"


def build_token_head(
    tok2vec: Model[list[Doc], Any],
    *,
    dropout: float | None = None,
    lstm_width: int = 0,
    learning_rate_multiplier: float = 1.0,
    nO: int | None = None,
    rate_factor: float | None = None,
) -> Model[list[Doc], TokenLogits]:
    """Build a model that classifies every token (BERT, section 5.3).

    Its outputs are logits (num_tokens, num_classes) of all Docs of a batch. Raises ValueError if
    `lstm_width` is negative or the learning-rate multiplier is not above 0.

    tok2vec (Model[List[Doc], HiddenStates]): A listener, or any layer that returns one Floats2d
        per Doc.
    dropout (Optional[float]): The dropout probability before the classifier. None takes that of
        the checkpoint's configuration.
    lstm_width (int): Above 0, two bidirectional LSTM layers of this width per direction run between
        hidden states and classifier, for features of a frozen encoder (BERT, section 5.3).
    learning_rate_multiplier (float): The head learns at this times the optimizer's learning rate.
        A head is randomly initialised and the encoder is not, so `init-config` sets 10.
    nO (Optional[int]): The number of classes, which `initialize` sets.
    """
    if lstm_width < 0:
        raise ValueError(f"lstm_width is {lstm_width}; it must be 0, for no LSTM, or above.")
    settings = {"dropout": dropout, "lstm_width": lstm_width}
    multiplier = _resolve_multiplier(learning_rate_multiplier, rate_factor)
    return _build("token_head", token_output, TokenClassifier, tok2vec, settings, multiplier, nO)


def build_sequence_head(
    tok2vec: Model[list[Doc], HiddenStates],
    *,
    pooling: str = "pooler",
    dropout: float | None = None,
    max_windows: int | None = MAX_WINDOWS,
    learning_rate_multiplier: float = 1.0,
    nO: int | None = None,
    rate_factor: float | None = None,
) -> Model[list[Doc], torch.Tensor]:
    """Build a model that classifies every Doc (BERT, section 4.1). The logits of a long Doc are
    the mean over its windows.

    Its outputs are logits (num_docs, num_classes). Raises ValueError for an unknown `pooling`, or
    if `max_windows` is below 1.

    pooling (str): How a window becomes one vector: "cls" takes the hidden state of its first
        position, "mean" the mean over its positions, "pooler" what Hugging Face's class of the
        family takes: for BERT the first position through the checkpoint's pooler, for others
        through a dense layer of the head.
    dropout (Optional[float]): As in `TokenHead.v1`.
    max_windows (Optional[int]): An update reads at most this many windows of a Doc, drawn anew each
        time. None reads all, which takes minutes for a Doc of 50,000 tokens. Prediction always
        reads all windows.
    learning_rate_multiplier (float): As in `TokenHead.v1`.
    """
    settings = {"dropout": dropout, "pooling": check_pooling(pooling)}
    settings["max_windows"] = check_max_windows(max_windows)
    multiplier = _resolve_multiplier(learning_rate_multiplier, rate_factor)
    return _build(
        "sequence_head", sequence_output, SequenceClassifier, tok2vec, settings, multiplier, nO
    )


def build_pair_head(
    tok2vec: Model[PackedPairs, HiddenStates],
    *,
    pooling: str = "pooler",
    dropout: float | None = None,
    max_windows: int | None = MAX_WINDOWS,
    learning_rate_multiplier: float = 1.0,
    nO: int | None = None,
    rate_factor: float | None = None,
) -> Model[PackedPairs, torch.Tensor]:
    """Build a model that classifies pairs of texts (BERT, section 4.1). The logits of a pair are
    the mean over the windows of its Doc.

    Its outputs are logits (num_pairs, num_classes). Raises ValueError for an unknown `pooling`, or
    if `max_windows` is below 1.

    pooling (str): As in `SequenceHead.v1`.
    dropout (Optional[float]): As in `SequenceHead.v1`.
    max_windows (Optional[int]): As in `SequenceHead.v1`; the windows of each pair are counted.
    learning_rate_multiplier (float): As in `TokenHead.v1`.
    """
    settings = {"dropout": dropout, "pooling": check_pooling(pooling)}
    settings["max_windows"] = check_max_windows(max_windows)
    multiplier = _resolve_multiplier(learning_rate_multiplier, rate_factor)
    return _build(
        "pair_head", sequence_output, SequenceClassifier, tok2vec, settings, multiplier, nO
    )


def build_choice_head(
    tok2vec: Model[PackedPairs, HiddenStates],
    *,
    dropout: float | None = None,
    max_windows: int | None = MAX_WINDOWS,
    learning_rate_multiplier: float = 1.0,
    nO: int | None = None,
    rate_factor: float | None = None,
) -> Model[PackedPairs, torch.Tensor]:
    """Build a model that computes one logit for each pair of a text and an option (BERT, section
    4.4), as Hugging Face's classes for multiple choice do. Its outputs are logits (num_pairs, 1).
    The settings are those of `PairHead.v1`. Raises ValueError if `max_windows` is below 1."""
    settings = {"dropout": dropout, "pooling": "pooler"}
    settings["max_windows"] = check_max_windows(max_windows)
    multiplier = _resolve_multiplier(learning_rate_multiplier, rate_factor)
    return _build(
        "choice_head", sequence_output, ChoiceClassifier, tok2vec, settings, multiplier, nO
    )


def build_span_head(
    tok2vec: Model[PackedPairs, HiddenStates],
    *,
    dropout: float = 0.0,
    learning_rate_multiplier: float = 1.0,
    nO: int | None = None,
    rate_factor: float | None = None,
) -> Model[PackedPairs, SpanLogits]:
    """Build a model that finds where a span starts and ends (BERT, section 4.2). Its outputs are
    logits (num_positions, 2), with their packed batch.

    dropout (float): The dropout probability before the classifier; BERT uses none here.
    learning_rate_multiplier (float): As in `TokenHead.v1`.
    nO (Optional[int]): 2, for start and end.
    """
    settings = {"dropout": dropout}
    multiplier = _resolve_multiplier(learning_rate_multiplier, rate_factor)
    return _build("span_head", span_output, PositionClassifier, tok2vec, settings, multiplier, nO)


def _resolve_multiplier(multiplier: float, rate_factor: float | None) -> float:
    return resolve_renamed("rate_factor", old_value=rate_factor, new_value=multiplier, default=1.0)


def check_pooling(pooling: str) -> str:
    """Return `pooling`. Raises ValueError if there is no such pooling."""
    if pooling not in POOLINGS:
        raise ValueError(f"Unknown pooling '{pooling}'. Choose one of: {', '.join(POOLINGS)}.")
    return pooling


def check_max_windows(max_windows: int | None) -> int | None:
    """Return `max_windows`. Raises ValueError if it is below 1."""
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows is {max_windows}; it must be 1 or more, or None for all.")
    return max_windows


def _build(
    name: str,
    make_output: Callable[..., Any],
    module_class: type[Classifier],
    tok2vec: Model,
    settings: dict[str, Any],
    learning_rate_multiplier: float,
    nO: int | None,
) -> Model:
    shim = TorchShim(
        to_files=head_to_files,
        from_files=partial(head_from_files, module_class),
        learning_rate_multiplier=learning_rate_multiplier,
    )
    return head_model(
        name,
        partial(forward, make_output),
        partial(init_head, module_class),
        tok2vec,
        shim,
        settings,
        nO,
    )


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


def token_output(
    logits: torch.Tensor, batch: PackedBatch, aggregation: str = "first"
) -> TokenLogits:
    """Make the output from logits (num_tokens, num_classes), or from those of wordpieces with
    `aggregation` "simple"."""
    assert batch.tokens is not None
    if aggregation == "simple" and batch.offsets is not None:
        is_best = batch.offsets.is_best
        offsets = np.stack([batch.offsets.starts[is_best], batch.offsets.ends[is_best]], axis=1)
        lengths = sums(sums(is_best, batch.seqlens), batch.num_windows)
        return TokenLogits(logits, np.ones(len(logits), dtype=np.bool_), lengths, offsets)
    return TokenLogits(logits, batch.tokens.num_wordpieces > 0, batch.tokens.num_tokens)


def sequence_output(logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Return the logits (num_texts, num_classes)."""
    return logits


def span_output(logits: torch.Tensor, batch: PackedBatch) -> SpanLogits:
    """Return the logits (num_positions, 2) with their batch. Raises ValueError if the model was
    called with Docs only, as in the last step of `spacy debug model`."""
    if batch.tokens is not None:
        raise ValueError(
            "This model reads Docs with questions, but was called with Docs only. Call the "
            "component, which knows the questions of a Doc: nlp.get_pipe(…).predict(docs)."
        )
    return SpanLogits(logits, batch)


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
    vectors, backprop_tok2vec = model.layers[0](inputs, is_train)
    foreign = not isinstance(vectors, HiddenStates)
    hidden = pack_vectors(vectors) if foreign else vectors
    shim = shim_of(model)
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


def pack_vectors(vectors: list[Floats2d]) -> HiddenStates:
    """Turn the token vectors of any tok2vec layer, (num_tokens, width) for each Doc, into hidden
    states with one position per token."""
    num_tokens = np.asarray([len(rows) for rows in vectors], dtype=np.int64)
    states = torch.cat([xp2torch(rows) for rows in vectors])
    return HiddenStates(states, batch_of_tokens(num_tokens))


def unpack_gradient(gradient: torch.Tensor, vectors: list[Floats2d]) -> list[Floats2d]:
    """Split the gradient of packed token vectors (num_tokens, width) by Doc."""
    parts = gradient.split([len(rows) for rows in vectors])
    return [cast(Floats2d, torch2xp(part)) for part in parts]
