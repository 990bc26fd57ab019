"""The encoder as a thinc model: Docs in, packed states out."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from spacy.tokens import Doc
from thinc.api import Model
from torch.utils.checkpoint import checkpoint

from ..sequences import (
    choose_windows,
    fill_rows,
    make_buckets,
    make_pair_sequences,
    make_sequences,
)
from ..types import Encoded, Ints1d, Pairs, Sequences
from .adapters import (
    AdapterSettings,
    learning_parameters,
    make_settings,
    merge_adapter,
)
from .inference import Trimmer, check_device, for_inference
from .loading import Bert, load_checkpoint
from .parameters import find_layers
from .rows import pad
from .saved import add_identity, checkpoint_from_files, checkpoint_to_files
from .shim import TorchShim

EncoderModel = Model[list[Doc] | Pairs, Encoded]

_trimmer = Trimmer()  # of the process


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
    rate_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> EncoderModel:
    """Build the encoder. Its weights come with `initialize`, or from a saved pipeline.

    name (str): A checkpoint of the BERT family: a Hugging Face hub name or a folder.
    revision (Optional[str]): The branch, tag or commit of a hub name; None for the newest. The
        commit that was read is saved with the pipeline, in origin.json.
    window (int): The longest sequence that is run at once, in wordpieces, special tokens
        included. Longer Docs are read in overlapping windows.
    stride (int): The step from one window to the next, in wordpieces.
    max_batch_tokens (int): Sequences are grouped by length under this budget of wordpieces,
        padding included. A training batch above it is checkpointed (half the memory, a third
        more time; Chen et al. 2016).
    precision (str): "fp32", "bf16", "fp16", or "auto": bf16 on a GPU, else fp32. "int8" is for
        predicting on a CPU: it learns in fp32; a GPU takes bf16 instead, a CPU with AMX to predict.
    frozen_layers (int): Above 0 the embeddings and this many of the lowest layers don't learn.
    adapter (Optional[str]): Small modules that learn in place of the checkpoint's weights:
        "pfeiffer", a bottleneck after each feed-forward block; "houlsby", one after each
        attention too; "lora", low-rank changes of the weights of query and value. Frozen layers
        get none.
    adapter_size (Optional[int]): The width of a bottleneck (None: 64), or the rank (None: 32).
    share_checkpoint (bool): Whether a saved pipeline has only what was trained, and reads the
        checkpoint `name` again when it is loaded.
    rate_factor (float): The encoder learns at this times the optimizer's rate.
    layer_decay (float): Each layer learns at this times the rate of the layer above it
        (Howard & Ruder 2018, section 3.2).
    RETURNS (Model[List[Doc], Encoded]): The model.
    RAISES (ValueError): If a setting makes no sense.
    """
    if not 0 < stride <= window:
        raise ValueError(f"stride is {stride}; it must be between 1 and the window, {window}.")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; it must be above 0, 1 at the most.")
    settings = None if adapter is None else make_settings(adapter, adapter_size, frozen_layers)
    if share_checkpoint and settings is None and not frozen_layers:
        raise ValueError(
            "share_checkpoint is for pipelines that train a part of it: set adapter or "
            "frozen_layers beside it."
        )
    shim = TorchShim(
        to_files=partial(checkpoint_to_files, share=share_checkpoint),
        from_files=partial(checkpoint_from_files, name=name, revision=revision),
        precision=precision,
        rate_factor=rate_factor,
        layer_decay=layer_decay,
    )
    return Model(
        "bert_encoder",
        forward,
        init=init,
        dims={"nO": None, "n_layers": None},
        shims=[shim],
        attrs={
            "name": name,
            "revision": revision,
            "share_checkpoint": share_checkpoint,
            "window": window,
            "stride": stride,
            "max_batch_tokens": max_batch_tokens,
            "frozen_layers": frozen_layers,
            "adapter": settings,
            "layers": [-1],  # what is read, set by those who read it
            "replace_listener_cfg": own_encoder_config,
            "replace_listener": own_encoder,
        },
    )


def init(model: EncoderModel, X: Any = None, Y: Any = None) -> EncoderModel:
    """Load the checkpoint, unless there are weights already (in a pipeline trained further)."""
    shim = shim_of(model)
    if not shim.has_module:
        bert = load_checkpoint(model.attrs["name"], model.attrs["revision"])
        if model.attrs["share_checkpoint"]:
            add_identity(bert)
        shim.module = bert
    prepare(model)
    open_adapter(model)
    return model


def prepare(model: EncoderModel) -> None:
    """Fit the model's settings to the checkpoint that it has got.

    model (EncoderModel): A model with weights.
    RAISES (ValueError): If the two don't go together, or the precision doesn't exist here.
    """
    bert, shim = bert_of(model), shim_of(model)
    layers = layers_of(model)
    check_device(shim.precision, shim.device)
    model.set_dim("n_layers", len(layers), force=True)
    model.set_dim("nO", bert.width * len(layers), force=True)
    window, room = model.attrs["window"], model.attrs["window"] - bert.wordpieces.n_special
    if window > bert.max_window:
        raise ValueError(
            f"window is {window}, but '{model.attrs['name']}' has positions for "
            f"{bert.max_window}. Set window = {bert.max_window} or less in the encoder's model."
        )
    if room < 1:
        raise ValueError(
            f"window is {window}, but {bert.wordpieces.n_special} of it are special tokens. "
            "Set window to 16 or more."
        )
    if not model.attrs["stride"] <= room:
        raise ValueError(
            f"stride is {model.attrs['stride']}, but a window of {window} has room for {room} "
            f"wordpieces beside the special tokens. Set stride to {room} or less."
        )
    choose_what_learns(bert, model.attrs["frozen_layers"])


def choose_what_learns(bert: Bert, n_layers: int) -> None:
    """Freeze the embeddings and the lowest layers, or, where there is an adapter, all but that.

    bert (Bert): The checkpoint.
    n_layers (int): How many layers; 0 frees all.
    RAISES (ValueError): If there are not so many, or they are not apart.
    """
    stack = find_layers(bert)
    depth = 0 if stack is None else len(stack)
    if not 0 <= n_layers <= depth:
        raise ValueError(
            f"frozen_layers is {n_layers}, but a '{bert.config.model_type}' checkpoint has "
            f"{depth} layers that can be frozen one by one. To freeze the whole encoder, put "
            "its name into [training] frozen_components."
        )
    if bert.adapter is not None:
        bert.requires_grad_(False)
        for parameter in learning_parameters(bert.encoder, bert.adapter):
            parameter.requires_grad_(True)
        return
    bert.requires_grad_(True)
    if stack is not None and n_layers:
        free = {id(p) for layer in stack[n_layers:] for p in layer.parameters()}
        pooler = getattr(bert.encoder, "pooler", None)
        free.update(id(p) for p in pooler.parameters()) if pooler is not None else None
        for parameter in bert.parameters():
            parameter.requires_grad_(id(parameter) in free)


def own_encoder_config(encoder: dict[str, Any], listener: dict[str, Any]) -> dict[str, Any]:
    """What `nlp.replace_listeners` writes to a head's config.

    encoder (Dict[str, Any]): The config of the encoder's model.
    listener (Dict[str, Any]): The config of the listener.
    RETURNS (Dict[str, Any]): The config of an encoder that gives the head what the listener gave.
    """
    config: dict[str, Any] = encoder
    layers, combine = listener.get("layers", [-1]), listener.get("combine", "concat")
    if layers != [-1] or combine == "weighted":
        config = {"@architectures": "spacy_bert_heads.LayerFeatures.v1", "encoder": config}
        config |= {"layers": layers, "combine": combine}
    if "Tok2VecListener" in listener["@architectures"]:
        config = {"@architectures": "spacy_bert_heads.Tok2VecEncoder.v1", "encoder": config}
    return config


def own_encoder(encoder: EncoderModel, listener: Any, component: Any) -> EncoderModel:
    """What `nlp.replace_listeners` puts in the place of a listener.

    encoder (Model[List[Doc], Encoded]): A copy of the encoder's model.
    listener (BertListener): The listener.
    component (BertEncoder): Not used.
    RETURNS (Model[List[Doc], Encoded]): The copy, which gives the layers that the listener gave.
    """
    encoder.attrs["layers"] = listener.reads
    if shim_of(encoder).has_module:
        prepare(encoder)
    return encoder


def shim_of(model: Model) -> TorchShim:
    """RETURNS (TorchShim): The torch side of a model."""
    shim = model.shims[0]
    assert isinstance(shim, TorchShim)
    return shim


def bert_of(model: Model) -> Bert:
    """RETURNS (Bert): The checkpoint of an encoder model.
    RAISES (ValueError): If it has none yet.
    """
    bert = shim_of(model).module
    assert isinstance(bert, Bert)
    return bert


def layers_of(model: EncoderModel) -> tuple[int, ...]:
    """RETURNS (Tuple[int, ...]): The layers that are read, as `Bert.layer_numbers` counts them."""
    return bert_of(model).layer_numbers(model.attrs["layers"])


def forward(
    model: EncoderModel, inputs: list[Doc] | Pairs, is_train: bool
) -> tuple[Encoded, Callable[[torch.Tensor], list[Doc] | Pairs]]:
    """Encode a batch of Docs, or of Docs with second texts.

    inputs (List[Doc] / Pairs): The Docs or pairs.
    is_train (bool): Whether to use dropout and keep the graph.
    RETURNS (Tuple[Encoded, Callable]): The states, and the callback that takes their gradient
        (n_slots, n_layers * width).
    """
    sequences = lay_out(model, inputs)
    if not is_train:
        return encode(model, sequences), lambda gradient: inputs

    open_adapter(model)
    bert, shim, max_batch_tokens = bert_of(model), shim_of(model), model.attrs["max_batch_tokens"]
    layers = layers_of(model)
    with shim.training(), shim.autocast():
        states = run_with_graph(bert, sequences, max_batch_tokens, layers)

    def backprop(gradient: torch.Tensor) -> list[Doc] | Pairs:
        shim.backward([states], [gradient])
        return inputs

    return Encoded(states.detach(), sequences, layers), backprop


def lay_out(model: EncoderModel, inputs: list[Doc] | Pairs) -> Sequences:
    """Make the sequences that the encoder reads.

    model (EncoderModel): A model with weights.
    inputs (List[Doc] / Pairs): The Docs or pairs.
    RETURNS (Sequences): Their windows.
    """
    wordpieces = bert_of(model).wordpieces
    cut = {"window": model.attrs["window"], "stride": model.attrs["stride"]}
    if not isinstance(inputs, Pairs):
        return make_sequences(inputs, wordpieces, **cut)
    sequences = make_pair_sequences(inputs, wordpieces, **cut)
    if inputs.answers is not None:
        sequences = choose_windows(sequences, inputs.answers)
    return sequences


def encode(model: EncoderModel, sequences: Sequences) -> Encoded:
    """Run sequences without a graph, on the inference copy."""
    shim, max_batch_tokens = shim_of(model), model.attrs["max_batch_tokens"]
    layers = layers_of(model)
    fast = cast(Bert, shim.derive(for_inference))
    # What was made for another precision has its types already.
    with shim.autocast() if shim.precision == "fp16" else nullcontext():
        states = run(fast, sequences, max_batch_tokens, layers)
    if states.device.type == "cpu":
        _trimmer.count(len(sequences.ids))
    return Encoded(states, sequences, layers)


def open_adapter(model: EncoderModel) -> None:
    """Make an adapter ready to learn: put it in, or take what LoRA learned out of the weights.

    model (EncoderModel): A model with weights.
    """
    bert, settings = bert_of(model), model.attrs["adapter"]
    if settings is not None and bert.adapter is None:
        bert.add_adapter(AdapterSettings(*settings))
        choose_what_learns(bert, model.attrs["frozen_layers"])
    if merge_adapter(bert.encoder, False):
        shim_of(model).version += 1  # copies that share the weights would add LoRA twice


def run(
    bert: Bert,
    sequences: Sequences,
    max_batch_tokens: int,
    layers: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Run the sequences without a graph, those of like length side by side.

    `max_batch_tokens` is how many slots are run at once; `layers` are those whose hidden states to
    keep, as `Bert.layer_numbers` counts them, None for the last. Gives the hidden states in the
    order of the slots, layers side by side (n_slots, n_layers * width), float32.

    After an interrupt (Ctrl-C), at whatever moment, torch keeps graphs again: see `without_graph`.
    """
    device = next(bert.parameters()).device
    n_layers = 1 if layers is None else len(layers)
    was_enabled = torch.is_grad_enabled()
    try:
        torch._C._set_grad_enabled(False)
        packed = torch.empty(len(sequences.ids), bert.width * n_layers, device=device)
        for buckets in make_rows(bert, sequences, max_batch_tokens):
            row, at, present = pad(sequences, buckets, bert.wordpieces.pad_id, device)
            states = only_present(bert.read_row(row, layers), present)
            packed[torch.from_numpy(at).to(device)] = states.float()
        return packed
    finally:
        torch._C._set_grad_enabled(was_enabled)


def run_with_graph(
    bert: Bert,
    sequences: Sequences,
    max_batch_tokens: int,
    layers: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Run the sequences as `run` does, but with a graph. A batch over the budget is checkpointed,
    row by row (Chen et al. 2016)."""
    device = next(bert.parameters()).device
    over_budget = len(sequences.ids) > max_batch_tokens
    parts, slots = [], []
    for buckets in make_rows(bert, sequences, max_batch_tokens):
        row, at, present = pad(sequences, buckets, bert.wordpieces.pad_id, device)
        if over_budget:
            states = checkpoint(bert.read_row, row, layers, use_reentrant=False)
        else:
            states = bert.read_row(row, layers)
        parts.append(only_present(states, present).float())
        slots.append(at)
    order = np.empty(len(sequences.ids), dtype=np.int64)
    order[np.concatenate(slots)] = np.arange(len(order))
    return torch.cat(parts).index_select(0, torch.from_numpy(order).to(device))


def only_present(states: torch.Tensor, present: Ints1d) -> torch.Tensor:
    """Leave out the hidden states of padding: `present` are the slots of wordpieces."""
    if len(present) == len(states):
        return states
    return states.index_select(0, torch.from_numpy(present).to(states.device))


def make_rows(bert: Bert, sequences: Sequences, max_batch_tokens: int) -> list[list[Ints1d]]:
    """Choose what is run at once.

    bert (Bert): The checkpoint.
    sequences (Sequences): The sequences.
    max_batch_tokens (int): The most slots of a row, padding included.
    RETURNS (List[List[Ints1d]]): For each row the sequences of each bucket.
    """
    lengths, overhead = sequences.lengths, bucket_overhead(bert)
    buckets = make_buckets(lengths, max_tokens=max_batch_tokens, overhead=overhead)
    return list(fill_rows(buckets, lengths, max_batch_tokens))


def bucket_overhead(bert: Bert) -> int:
    """bert (Bert): The checkpoint.
    RETURNS (int): What a bucket costs by itself, in slots of padding.
    """
    is_cpu = next(bert.parameters()).device.type == "cpu"
    # In a row a bucket costs no more than its calls of attention: 2, 8 or 16 slots make no
    # difference on a CPU. By itself it costs 8 ms beside 0.3 for a slot there when predicting, 60
    # beside 1 when learning (MiniLM, fp32, one core). On a GPU its launches last as long as
    # thousands of slots, those of attention alone a tenth of that: by arithmetic, not measured yet.
    if bert.reads_rows:
        return 8 if is_cpu else 512
    return 64 if is_cpu else 4096
