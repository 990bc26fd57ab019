"""The encoder as a thinc model: Docs in, hidden states out."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from spacy.tokens import Doc
from thinc.api import Model

from ..deprecated import resolve_renamed
from ..text.arrays import Bools1d
from ..text.batch import PackedBatch
from ..text.packing import pack_docs, pack_pairs
from ..text.pairs import Pairs
from .adapters import AdapterSettings, make_settings, merge_adapter
from .checkpoint import Checkpoint
from .encoder import Encoder
from .hidden_states import HiddenStates, Layers
from .identity import assign_id
from .inference import Trimmer, check_device, for_inference
from .loading import load_checkpoint
from .parameters import find_layers
from .saved import add_identity, encoder_from_files, encoder_to_files
from .settings import Settings
from .shim import TorchShim


class DocSample(list[Doc]):
    """Docs of which only `max_windows` windows each are needed, drawn at random; None for all. A
    reader may return more."""

    def __init__(self, docs: Iterable[Doc], max_windows: int | None) -> None:
        super().__init__(docs)
        self.max_windows = max_windows


def max_windows_of(docs: Sequence[Doc]) -> int | None:
    """Return how many windows of each Doc are needed, None for all."""
    return docs.max_windows if isinstance(docs, DocSample) else None


def may_lack_windows(docs: Sequence[Doc], batch: PackedBatch) -> Bools1d:
    """Return for which Docs the batch may lack windows (num_docs,)."""
    limit = max_windows_of(docs)
    return batch.num_windows >= (np.inf if limit is None else limit)


class PackedPairs(NamedTuple):
    """Docs with second texts, packed by the head that asks for their hidden states."""

    docs: Sequence[Doc]
    batch: PackedBatch


EncoderModel = Model[list[Doc] | PackedPairs, HiddenStates]

_trimmer = Trimmer()  # one per process


def build_bert_encoder(
    name: str,
    *,
    revision: str | None = None,
    window: int = 256,
    stride: int = 192,
    max_batch_tokens: int = 4096,
    precision: str = "auto",
    frozen_layers: int = 0,
    adapter: str | None = None,
    adapter_size: int | None = None,
    share_checkpoint: bool = False,
    learning_rate_multiplier: float = 1.0,
    layer_decay: float = 1.0,
    rate_factor: float | None = None,
) -> EncoderModel:
    """Build the encoder's model: Docs in, hidden states out. `initialize` loads its weights.

    Raises ValueError if a setting is out of its range.

    name (str): A checkpoint of the BERT family: a Hugging Face hub name or a folder. Only
        `initialize` reads it; a saved pipeline has its weights.
    revision (Optional[str]): Branch, tag or commit of a hub name; None for the newest. The commit
        that was read is saved in the pipeline's origin.json.
    window (int): The maximum length of a sequence in wordpieces, special tokens included. Longer
        Docs are read in overlapping windows.
    stride (int): The step from one window to the next, in wordpieces.
    max_batch_tokens (int): The maximum number of positions that are run at once, padding included.
        A larger training batch is recomputed part by part in the backward pass, which takes half
        the memory and a third more time (gradient checkpointing, Chen et al. 2016).
    precision (str): "fp32", "bf16", "fp16", or "auto": bf16 on a GPU, fp32 on a CPU. "int8" is for
        prediction on a CPU and trains in fp32; GPUs, and CPUs with AMX in prediction, use bf16
        instead.
    frozen_layers (int): Above 0, the embeddings and this many of the lowest layers are not trained.
    adapter (Optional[str]): Small modules that are trained in place of the checkpoint's weights:
        "pfeiffer" adds a bottleneck after each feed-forward block (Pfeiffer et al. 2021),
        "houlsby" also one after each attention block (Houlsby et al. 2019), "lora" low-rank
        updates of the query and value weights (Hu et al. 2021). Frozen layers get none.
    adapter_size (Optional[int]): The width of a bottleneck (None: 64) or the rank (None: 32).
    share_checkpoint (bool): Save only what was trained. The pipeline reads the checkpoint `name`
        again when it is loaded.
    learning_rate_multiplier (float): The encoder learns at this times the optimizer's learning
        rate.
    layer_decay (float): Each layer learns at this times the learning rate of the layer above it
        (Howard & Ruder 2018, section 3.2).
    """
    if not 0 < stride <= window:
        raise ValueError(f"stride is {stride}; it must be between 1 and the window, {window}.")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; it must be above 0, 1 at the most.")
    settings = None if adapter is None else make_settings(adapter, adapter_size, frozen_layers)
    if share_checkpoint and settings is None and not frozen_layers:
        raise ValueError(
            "share_checkpoint is for pipelines that train a part of the checkpoint: also set "
            "adapter or frozen_layers."
        )
    shim = TorchShim(
        to_files=partial(encoder_to_files, share=share_checkpoint),
        from_files=partial(encoder_from_files, name=name, revision=revision),
        precision=precision,
        learning_rate_multiplier=resolve_renamed(
            "rate_factor",
            old_value=rate_factor,
            new_value=learning_rate_multiplier,
            default=1.0,
        ),
        layer_decay=layer_decay,
    )
    given = {
        "name": name,
        "revision": revision,
        "share_checkpoint": share_checkpoint,
        "window": window,
        "stride": stride,
        "max_batch_tokens": max_batch_tokens,
        "frozen_layers": frozen_layers,
        "adapter": settings,
    }
    return Model(
        "bert_encoder",
        forward,
        init=init,
        dims={"nO": None, "n_layers": None},
        shims=[shim],
        attrs={
            **given,
            "layers": [-1],  # those that are read; the component or `replace_listeners` sets them
            "replace_listener_cfg": own_encoder_config,
            "replace_listener": own_encoder,
            "settings": Settings(given),
        },
    )


def init(model: EncoderModel, X: Any = None, Y: Any = None) -> EncoderModel:
    """Load the checkpoint, unless the model has weights already, as in a pipeline that is trained
    further."""
    shim = shim_of(model)
    if not shim.has_module:
        checkpoint = load_checkpoint(model.attrs["name"], model.attrs["revision"])
        if model.attrs["share_checkpoint"]:
            add_identity(checkpoint)
        assign_id(checkpoint)
        shim.module = Encoder(checkpoint)
    prepare(model)
    prepare_adapter(model)
    return model


def prepare(model: EncoderModel) -> None:
    """Set the model's dimensions and frozen layers by its checkpoint. Raises ValueError if a
    setting does not fit the checkpoint, or this machine does not support the precision."""
    checkpoint, shim = checkpoint_of(model), shim_of(model)
    layers = layers_of(model)
    check_device(shim.precision, shim.device)
    model.set_dim("n_layers", len(layers), force=True)
    model.set_dim("nO", checkpoint.hidden_size * len(layers), force=True)
    window = model.attrs["window"]
    if window > checkpoint.max_window:
        raise ValueError(
            f"window is {window}, but '{model.attrs['name']}' has positions for "
            f"{checkpoint.max_window}. Set window = {checkpoint.max_window} or less in the "
            "encoder's model."
        )
    check_room(model, checkpoint.tokenizer.num_special)
    check_adapter(checkpoint.adapter, model.attrs["adapter"])
    if shim.optimization.layer_decay < 1 and find_layers(checkpoint.model) is None:
        raise ValueError(
            f"layer_decay is {shim.optimization.layer_decay}, but the layers of a "
            f"'{checkpoint.family}' checkpoint share their weights. Set layer_decay = 1.0 in the "
            "encoder's model."
        )
    checkpoint.freeze(model.attrs["frozen_layers"])


def check_room(model: EncoderModel, num_special: int) -> None:
    """Raise ValueError if window or stride leaves no room for a tokenizer's special tokens."""
    window, room = model.attrs["window"], model.attrs["window"] - num_special
    if room < 1:
        raise ValueError(
            f"window is {window}, but {num_special} of it are special tokens. Set window to 16 or "
            "more."
        )
    if not model.attrs["stride"] <= room:
        raise ValueError(
            f"stride is {model.attrs['stride']}, but a window of {window} has room for {room} "
            f"wordpieces besides the special tokens. Set stride to {room} or less."
        )


def own_encoder_config(encoder: dict[str, Any], listener: dict[str, Any]) -> dict[str, Any]:
    """Make the config with which `nlp.replace_listeners` replaces a listener's: an encoder that
    reads the same layers. The arguments are the configs of the two models."""
    config: dict[str, Any] = deepcopy(encoder)  # the pipeline's encoder keeps its own
    layers, combine = listener.get("layers", [-1]), listener.get("combine", "concat")
    if layers != [-1] or combine == "weighted":
        config = {"@architectures": "spacy_bert_heads.LayerFeatures.v1", "encoder": config}
        config |= {"layers": layers, "combine": combine}
    if "Tok2VecListener" in listener["@architectures"]:
        config = {"@architectures": "spacy_bert_heads.Tok2VecEncoder.v1", "encoder": config}
    return config


def own_encoder(encoder: EncoderModel, listener: Any, component: Any) -> EncoderModel:
    """Prepare a copy of the encoder's model to replace a listener, for `nlp.replace_listeners`."""
    encoder.attrs["layers"] = listener.reads
    if shim_of(encoder).has_module:
        prepare(encoder)
    return encoder


def reading_layers(encoder: EncoderModel, layers: Layers) -> EncoderModel:
    """Return a model that shares the weights of `encoder` and reads these layers."""
    model: EncoderModel = Model(
        encoder.name,
        forward,
        dims={"nO": None, "n_layers": None},
        shims=encoder.shims,
        attrs={**encoder.attrs, "layers": layers},
    )
    prepare(model)
    return model


def shim_of(model: Model) -> TorchShim:
    """Return the shim with a model's torch module."""
    shim = model.shims[0]
    assert isinstance(shim, TorchShim)
    return shim


def encoder_of(model: Model) -> Encoder:
    """Return the torch module of an encoder model. Raises ValueError if it has no weights yet."""
    encoder = shim_of(model).module
    assert isinstance(encoder, Encoder)
    return encoder


def checkpoint_of(model: Model) -> Checkpoint:
    """Return the checkpoint of an encoder model. Raises ValueError if it has none yet."""
    return encoder_of(model).checkpoint


def layers_of(model: EncoderModel) -> tuple[int, ...]:
    """Return the layers that are read, as `Checkpoint.layer_numbers` counts them."""
    return checkpoint_of(model).layer_numbers(model.attrs["layers"])


def forward(
    model: EncoderModel, inputs: list[Doc] | PackedPairs, is_train: bool
) -> tuple[HiddenStates, Callable[[torch.Tensor], list[Doc] | PackedPairs]]:
    """Encode Docs, or Docs with second texts. Returns the hidden states, and a callback for their
    gradient (num_positions, num_layers * hidden_size)."""
    batch = inputs.batch if isinstance(inputs, PackedPairs) else pack(model, inputs)
    if not is_train:
        return encode(model, batch), lambda gradient: inputs

    prepare_adapter(model)
    encoder, shim = encoder_of(model), shim_of(model)
    with shim.training(), shim.autocast():
        hidden = encoder.encode(
            batch,
            layers_of(model),
            max_batch_tokens=model.attrs["max_batch_tokens"],
            train=True,
        )

    def backprop(gradient: torch.Tensor) -> list[Doc] | PackedPairs:
        shim.backward([hidden.states], [gradient])
        return inputs

    return replace(hidden, states=hidden.states.detach()), backprop


def pack(model: EncoderModel, inputs: Sequence[Doc] | Pairs) -> PackedBatch:
    """Pack the windows of Docs, of a `DocSample` only some, or of Docs with second texts. Raises
    TextTooLong if a second text is too long."""
    tokenizer = checkpoint_of(model).tokenizer
    window, stride = model.attrs["window"], model.attrs["stride"]
    if isinstance(inputs, Pairs):
        return pack_pairs(inputs, tokenizer, window=window, stride=stride)
    batch = pack_docs(inputs, tokenizer, window=window, stride=stride)
    return batch.sample(max_windows_of(inputs))


def encode(model: EncoderModel, batch: PackedBatch) -> HiddenStates:
    """Compute hidden states on the inference copy, without a graph."""
    shim = shim_of(model)
    fast = cast(Encoder, shim.derive(for_inference))
    # Copies for other precisions have their types already.
    with shim.autocast() if shim.precision == "fp16" else nullcontext():
        hidden = fast.encode(
            batch, layers_of(model), max_batch_tokens=model.attrs["max_batch_tokens"]
        )
    if hidden.states.device.type == "cpu":
        _trimmer.count(len(batch.input_ids))
    return hidden


def check_adapter(found: AdapterSettings | None, settings: Sequence[Any] | None) -> None:
    """Raise ValueError if trained weights have another adapter than the settings."""
    if found is not None and (settings is None or found != AdapterSettings(*settings)):
        raise ValueError(
            f'The encoder was trained with adapter = "{found.kind}", adapter_size = {found.size} '
            f"and frozen_layers = {found.first_layer}, which can't be changed in the config. "
            "Restore these in [components.bert_encoder.model]."
        )


def prepare_adapter(model: EncoderModel) -> None:
    """Prepare an adapter for training: add it, or unmerge LoRA from the weights."""
    checkpoint, settings = checkpoint_of(model), model.attrs["adapter"]
    if settings is not None and checkpoint.adapter is None:
        checkpoint.add_adapter(AdapterSettings(*settings))
        checkpoint.freeze(model.attrs["frozen_layers"])
    if merge_adapter(checkpoint.model, False):
        shim_of(model).version += 1  # inference copies that share the weights would add LoRA twice
