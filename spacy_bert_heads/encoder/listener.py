"""The layers by which heads and spaCy's components read the pipeline's shared encoder."""

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from spacy.tokens import Doc
from thinc.api import Model, torch2xp, xp2torch
from thinc.types import Floats2d

from ..text.batch import PackedBatch
from ..text.pairs import Pairs
from .checkpoint import Checkpoint
from .encoder import Encoder
from .features import combine_layers
from .hidden_states import HiddenStates, Layers
from .model import PackedPairs, checkpoint_of, pack, shim_of
from .settings import Settings
from .shim import TorchShim

if TYPE_CHECKING:
    from .component import BertEncoder

LAST: Layers = [-1]
# What a head's config has for `tok2vec`.
DEFAULT_LISTENER = {
    "@architectures": "spacy_bert_heads.BertListener.v1",
    "upstream": "*",
    "grad_factor": 1.0,
    "layers": [-1],
    "combine": "concat",
}


class BertListener(Model[list[Doc] | PackedPairs, HiddenStates]):
    """Read the hidden states of a batch from the pipeline's encoder.

    The layer has a weak reference to the encoder component, which the pipeline owns: copies of a
    head don't copy the encoder, and a head whose encoder was removed raises an error.

    `upstream_name` is the encoder component's name, or "*" for the nearest one before the head. The
    gradient that the encoder gets from this head is multiplied by `grad_factor`. `reads` are the
    layers whose hidden states it returns, concatenated.
    """

    def __init__(self, upstream_name: str, grad_factor: float, reads: Layers) -> None:
        dims: dict[str, int | None] = {"nO": None, "n_layers": None}
        given = {"layers": reads}
        attrs = {**given, "settings": Settings(given)}
        super().__init__("bert_listener", forward, init=init, dims=dims, attrs=attrs)
        self.upstream_name = upstream_name
        self.grad_factor = grad_factor
        self.reads = reads
        self.component_name = "this component"  # the head's name, set with the link
        # The encoder's id, and its number of updates when the head last learned; None for a new
        # head. The head sets them.
        self.trained_on: str | None = None
        self.trained_at: int | None = None
        # The maximum number of the encoder's updates between two updates of the head, in a joint
        # training.
        self.longest_gap = 1
        # For the next gradient: the number of items that the loss is a mean over (None if it is a
        # sum), and the factor by which the head has scaled it, for a part of a batch.
        self.num_items: float | None = None
        self.share = 1.0
        # Several if pipelines share the head, because sourcing a component does not copy it.
        self._upstreams: list[weakref.ref[BertEncoder]] = []

    @property
    def upstreams(self) -> "list[BertEncoder]":
        """The linked encoder components that still exist, the latest one last."""
        return [one for ref in self._upstreams if (one := ref()) is not None]

    @property
    def upstream(self) -> "BertEncoder | None":
        """The encoder component that was linked last, None if none exists."""
        return next(reversed(self.upstreams), None)

    def link(self, upstream: "BertEncoder", component_name: str) -> None:
        """Link this layer of the component `component_name` to an encoder."""
        self.unlink(upstream)
        self._upstreams.append(weakref.ref(upstream))
        self.component_name = component_name
        if shim_of(upstream.model).has_module:
            checkpoint = checkpoint_of(upstream.model)
            num_layers = len(checkpoint.layer_numbers(self.reads))
            self.set_dim("n_layers", num_layers, force=True)
            self.set_dim("nO", checkpoint.hidden_size * num_layers, force=True)

    def unlink(self, upstream: "BertEncoder") -> None:
        """Remove an encoder, and those that no longer exist."""
        self._upstreams = [weakref.ref(one) for one in self.upstreams if one is not upstream]

    def encoder_for(self, docs: Sequence[Doc] = (), *, is_train: bool = False) -> "BertEncoder":
        """Return the encoder for some Docs.

        In training that is the one with an open step for them. Otherwise it is the one that the
        head was trained on, or for a new head the one of the pipeline that made the Docs.

        Raises ValueError if there is none with the name in the config, or if a trained head would
        read another encoder than it was trained on; in training the latter is a warning.
        """
        upstreams = self.upstreams
        upstream = next(reversed(upstreams), None)
        if upstream is None or self.upstream_name not in ("*", upstream.name):
            wanted = "bert_encoder" if self.upstream_name == "*" else self.upstream_name
            raise ValueError(
                f"{self.component_name} reads the hidden states of an encoder, but no '{wanted}' "
                f"comes before it. Add one: nlp.add_pipe('bert_encoder', name='{wanted}', "
                "first=True), or load the pipeline without excluding it, and keep the pipeline as "
                "long as its heads are used. To read an encoder with another name, set upstream "
                'to "*" or to that name in the head\'s model.'
            )
        if is_train:
            upstream = next((one for one in upstreams if one.is_learning(docs)), upstream)
        elif len(upstreams) > 1:
            own = [one for one in upstreams if docs and one.vocab is docs[0].vocab]
            trained_on = [one for one in upstreams if self.trained_on and one.id == self.trained_on]
            both = [one for one in own if one in trained_on]
            upstream = (both or trained_on or own or upstreams)[-1]
        self._check(upstream, is_train=is_train)
        return upstream

    def _check(self, upstream: "BertEncoder", *, is_train: bool) -> None:
        if self.trained_on is None or upstream.id in (None, self.trained_on):
            if not is_train and self.trained_at is not None and upstream.id == self.trained_on:
                self._check_age(upstream)
            return
        message = (
            f"{self.component_name} was trained on another encoder than '{upstream.name}', which "
            "it reads now. "
        )
        if is_train:
            warnings.warn(f"{message}It continues to learn on that one.", stacklevel=2)
            self.trained_on = upstream.id
            return
        raise ValueError(
            f"{message}Source both from one pipeline: nlp.add_pipe('{upstream.name}', source=…), "
            f"then nlp.add_pipe('{self.component_name}', source=…); or call "
            f"nlp.replace_listeners on that pipeline first, or train the head on this encoder."
        )

    def _check_age(self, upstream: "BertEncoder") -> None:
        """Warn if the encoder was trained without this head: for more than a tenth of its updates,
        and for more than twice the longest gap between two updates of the head. In a joint training
        the last batches may have had no examples for it."""
        assert self.trained_at is not None
        missed = upstream.num_updates - self.trained_at
        if 10 * missed > upstream.num_updates and missed > 2 * self.longest_gap:
            warnings.warn(
                f"{self.component_name} last learned at update {self.trained_at} of "
                f"'{upstream.name}', which has been updated {missed} times since, so its hidden "
                "states are no longer those that the head has learned from. Train the two "
                "together, keep the encoder in [training] frozen_components, or give the head its "
                "own encoder: nlp."
                f"replace_listeners('{upstream.name}', '{self.component_name}', "
                "['model.tok2vec']).",
                stacklevel=2,
            )
            self.trained_at = upstream.num_updates  # warn once

    def warn_if_lost(self, upstream: "BertEncoder") -> None:
        """Warn if the encoder on which the head was trained is not saved with it: the head will
        read this one instead when it is loaded."""
        if self.trained_on is not None and self.trained_on != upstream.id:
            warnings.warn(
                f"{self.component_name} was trained on another encoder than '{upstream.name}', "
                "with which it is saved. It can't predict when the pipeline is loaded. Source its "
                "encoder too, or call nlp.replace_listeners on its pipeline before you source it.",
                stacklevel=3,
            )

    def skip(self) -> None:
        """Tell the encoder that this head has nothing to learn from the batch of the open step."""
        for encoder in self.upstreams:
            encoder.skip(self)

    def _copy(self, seen: dict[int, Any] | None = None) -> "BertListener":
        """Copy the layer. thinc's method would return a plain Model. The copy reads the same
        encoder until a pipeline links it to another one."""
        copied = BertListener(self.upstream_name, self.grad_factor, self.reads)
        copied.__setstate__(self._state())
        copied._upstreams = list(self._upstreams)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> "BertListener":
        # An encoder that is copied with its heads links the copies. A head that is copied alone
        # keeps its encoder.
        copied = BertListener(self.upstream_name, self.grad_factor, self.reads)
        copied.__setstate__(self._state())
        if not any(id(one) in memo for one in self.upstreams):
            copied._upstreams = list(self._upstreams)
        return copied

    def __reduce__(self) -> tuple:
        # An encoder that is pickled with its heads links them again.
        return BertListener, (self.upstream_name, self.grad_factor, self.reads), self._state()

    def _state(self) -> dict[str, Any]:
        names = ("component_name", "trained_on", "trained_at", "longest_gap")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def build_bert_listener(
    upstream: str = "*",
    grad_factor: float = 1.0,
    layers: Layers = LAST,
    combine: str = "concat",
) -> Model[Any, HiddenStates]:
    """Build the layer by which a head reads the pipeline's encoder.

    Raises ValueError if `grad_factor` is negative, `layers` is empty, or `combine` is unknown.

    upstream (str): The encoder component's name, or "*" for the nearest one before the head.
    grad_factor (float): The head's gradient is multiplied by this before it reaches the encoder, so
        that heads with large losses don't dominate the shared gradient. The head's own weights are
        not affected.
    layers (List[int]): The layers to read: [-1] is the last layer, [-2] the one below, [0] the
        embeddings, "all" the embeddings and every layer (BERT, section 5.3).
    combine (str): How several layers become one vector: "concat", "sum", or "weighted", a mean with
        weights that the head learns (Peters et al. 2018, eq. 1).
    """
    if grad_factor < 0:
        raise ValueError(f"grad_factor is {grad_factor}; it must be 0 or above.")
    return combine_layers(BertListener(upstream, grad_factor, layers), layers, combine)


def init(model: Model, X: Any = None, Y: Any = None) -> Model:
    """Link to the encoder, and initialize it if it has no weights: spaCy does not initialize
    components in frozen_components."""
    assert isinstance(model, BertListener)
    encoder = model.encoder_for()
    if not shim_of(encoder.model).has_module:
        encoder.initialize(lambda: [])
    model.link(encoder, model.component_name)
    return model


def forward(
    model: Model, inputs: list[Doc] | PackedPairs, is_train: bool
) -> tuple[HiddenStates, Callable[[torch.Tensor], Any]]:
    """Read the hidden states of a batch from the encoder. Returns them, and a callback for their
    gradient."""
    assert isinstance(model, BertListener)
    docs = inputs.docs if isinstance(inputs, PackedPairs) else inputs
    encoder = model.encoder_for(docs, is_train=is_train)
    hidden, answer = encoder.read(inputs, model if is_train else None)
    layers = checkpoint_of(encoder.model).layer_numbers(model.reads)
    if layers == hidden.layers:
        return hidden, lambda gradient: answer(gradient * (model.grad_factor / model.share))

    # The batch also has layers that only other listeners read.
    states = hidden.states.unflatten(1, (len(hidden.layers), -1))
    places = [hidden.layers.index(n) for n in layers]
    taken = states[:, places].flatten(1)

    def backprop(gradient: torch.Tensor) -> None:
        d_states = torch.zeros_like(states)
        parts = gradient.unflatten(1, (len(layers), -1)) * (model.grad_factor / model.share)
        at = torch.tensor(places, device=parts.device)
        answer(d_states.index_add_(1, at, parts).flatten(1))

    return HiddenStates(taken, hidden.batch, layers), backprop


# --- token vectors, for spaCy's own components


def build_tok2vec_listener(
    upstream: str = "*",
    grad_factor: float = 1.0,
    layers: Layers = LAST,
    combine: str = "concat",
) -> Model[list[Doc], list[Floats2d]]:
    """Build a `tok2vec` layer for spaCy's own components (parser, tagger, ner, textcat, spancat and
    so on) that reads the pipeline's encoder.

    A token's vector is the mean of the hidden states of its wordpieces; the output is (num_tokens,
    width) for each Doc. The settings are those of `BertListener.v1`.
    """
    return build_tok2vec_encoder(build_bert_listener(upstream, grad_factor, layers, combine))


def build_tok2vec_encoder(
    encoder: Model[Any, HiddenStates],
) -> Model[list[Doc], list[Floats2d]]:
    """Build the layer of `Tok2VecListener.v1` with an encoder of its own instead of a listener, for
    `nlp.replace_listeners`."""
    return Model(
        "bert_tok2vec", forward_tokens, init=init_tok2vec, dims={"nO": None}, layers=[encoder]
    )


def init_tok2vec(model: Model, X: Any = None, Y: Any = None) -> Model:
    """Initialize the layer below, which knows the width."""
    model.set_dim("nO", model.layers[0].initialize().get_dim("nO"), force=True)
    return model


def forward_tokens(
    model: Model, docs: list[Doc], is_train: bool
) -> tuple[list[Floats2d], Callable[[list[Floats2d]], list[Doc]]]:
    """Compute token vectors (num_tokens, width) for each Doc, zeros for tokens without wordpieces.
    Returns them, and a callback for their gradients."""
    hidden, backprop_states = model.layers[0](docs, is_train)
    states, tokens = hidden.states, hidden.batch.tokens
    assert tokens is not None
    positions = torch.from_numpy(tokens.positions).to(states.device)
    owners = np.repeat(np.arange(len(tokens.num_wordpieces)), tokens.num_wordpieces)
    token_of = torch.from_numpy(owners).to(states.device)
    counts = torch.from_numpy(tokens.num_wordpieces).to(states.device).clamp(min=1).unsqueeze(1)
    sizes = tokens.num_tokens.tolist()
    vectors = states.new_zeros(len(counts), states.shape[1])
    vectors = vectors.index_add_(0, token_of, states.detach()[positions]) / counts

    def backprop(gradients: list[Floats2d]) -> list[Doc]:
        parts = [xp2torch(part, device=states.device) for part in gradients]
        gradient = torch.cat([states.new_zeros(0, states.shape[1]), *parts]) / counts
        backprop_states(torch.zeros_like(states).index_add_(0, positions, gradient[token_of]))
        return docs

    return [cast(Floats2d, torch2xp(part)) for part in vectors.split(sizes)], backprop


def encoder_model_behind(
    tok2vec: Model, docs: Sequence[Doc] = (), *, is_train: bool = False
) -> Model | None:
    """Return the encoder's model that a layer reads for some Docs: that of a listener's encoder, or
    the layer itself after `nlp.replace_listeners`; None for any other layer."""
    if tok2vec.name == "layer_features":
        return encoder_model_behind(tok2vec.layers[0], docs, is_train=is_train)
    if isinstance(tok2vec, BertListener):
        return tok2vec.encoder_for(docs, is_train=is_train).model
    is_encoder = any(
        isinstance(shim, TorchShim) and shim.has_module and isinstance(shim.module, Encoder)
        for shim in tok2vec.shims
    )
    return tok2vec if is_encoder else None


def checkpoint_behind(tok2vec: Model) -> Checkpoint | None:
    """Return the checkpoint that a layer reads; None if the layer is not ours, or has no weights
    yet."""
    model = encoder_model_behind(tok2vec)
    return None if model is None or not shim_of(model).has_module else checkpoint_of(model)


def pack_for(tok2vec: Model, pairs: Pairs, *, is_train: bool) -> PackedBatch:
    """Pack Docs with second texts for the encoder that a layer reads. Raises ValueError if the
    layer does not read an encoder of ours, TextTooLong if a text is too long."""
    model = encoder_model_behind(tok2vec, pairs.docs, is_train=is_train)
    if model is None:
        raise ValueError(f"'{tok2vec.name}' does not encode pairs of texts.")
    return pack(model, pairs)


def reads_last_layer(tok2vec: Model) -> bool:
    """Return whether a layer reads just the last layer of a checkpoint, as Hugging Face's heads
    do."""
    checkpoint = checkpoint_behind(tok2vec)
    if checkpoint is None or tok2vec.name == "layer_features":
        return False
    reads = tok2vec.reads if isinstance(tok2vec, BertListener) else tok2vec.attrs["layers"]
    return checkpoint.layer_numbers(reads) == (checkpoint.num_layers,)
