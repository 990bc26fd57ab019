"""A decoder behind the encoder: the torch module, the thinc model around it, and generation."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from spacy.tokens import Doc
from thinc.api import Model
from torch import nn

from ..encoder.buckets import common_size
from ..encoder.checkpoint import Checkpoint, Files
from ..encoder.dropout import use_fast_dropout
from ..encoder.hidden_states import HiddenStates
from ..encoder.listener import checkpoint_behind, encoder_model_behind, reads_last_layer
from ..encoder.loading import pad_id_of, quiet
from ..encoder.model import DocSample, shim_of
from ..encoder.saved import save_model
from ..encoder.shim import TorchShim, resolve_precision, without_graph
from ..encoder.source import Source, open_files, open_source
from ..encoder.untrusted import build_model, read_config, read_weights
from ..text.arrays import Ints1d
from ..text.wordpieces import WordpieceTokenizer
from .generation import generate, make_generator, pad_states, padded_index
from .layers import MAX_WINDOWS, check_max_windows
from .model import head_model
from .outputs import tensors_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Model types whose causal language models have cross-attention; tests/test_decoder.py has each. Not
# BigBird, whose decoder takes no cache, and Megatron-BERT, whose cross-attention fails in
# transformers 5.24 where both sequences differ in length.
FAMILIES = (
    *("bert", "camembert", "data2vec-text", "electra", "ernie", "rembert", "roberta"),
    *("roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl"),
)
# Where a decoder's weights come from, beside checkpoints.
RANDOM, ENCODER = "random", "encoder"


class Sources(NamedTuple):
    """Docs to write a text for. In training `targets` are the wordpiece ids of each, without
    special tokens; in prediction `generation` are settings of transformers' GenerationConfig."""

    docs: list[Doc]
    targets: list[Ints1d] = []
    generation: Mapping[str, Any] = {}


class TargetLogits(NamedTuple):
    """The output of a decoder in training, Doc after Doc."""

    logits: torch.Tensor  # (num_target_wordpieces, vocab_size), in the encoder's precision
    targets: Ints1d  # (num_target_wordpieces,) the ids, the end of the text included


class Decoder(nn.Module):
    """Hugging Face's causal language model of a family, which attends to hidden states. A text
    starts with `start_id` and ends with `end_id`, and has at most `max_length` wordpieces, the end
    included."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        use_fast_dropout(model)

    @property
    def start_id(self) -> int:
        return int(cast(int, self.model.config.bos_token_id))

    @property
    def end_id(self) -> int:
        return int(cast(int, self.model.config.eos_token_id))

    @property
    def max_length(self) -> int:
        embeddings = getattr(self.model.base_model, "embeddings", None)
        offset = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        first = 0 if offset is None else offset + 1  # RoBERTa counts from behind the padding id
        return int(self.model.config.max_position_embeddings) - first

    def forward(self, hidden: HiddenStates, targets: list[Ints1d]) -> TargetLogits:
        """Compute the logits of each target wordpiece by those before it (teacher forcing)."""
        wanted = [np.append(ids, self.end_id) for ids in targets]
        given = [np.append(self.start_id, ids) for ids in targets]
        lengths = np.asarray([len(ids) for ids in wanted], dtype=np.int64)
        states = hidden.states
        places = padded_index(lengths)
        index = torch.from_numpy(places).to(states.device)
        ids = torch.from_numpy(np.append(np.concatenate(given), pad_id_of(self.model.config)))
        memory, memory_mask = pad_states(states, hidden.batch)
        present = np.flatnonzero(places >= 0)
        # oneDNN compiles a program for each number of rows; MKL and GPUs don't.
        by_onednn = torch.is_autocast_enabled("cpu")
        beyond = common_size(len(present)) - len(present) if by_onednn else 0
        rows = torch.from_numpy(np.append(present, present[:1].repeat(beyond))).to(states.device)
        # Logits over the vocabulary are half of the work: not for padding.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(
            lambda _, args: (args[0].flatten(0, 1)[rows],)
        )
        with hook:
            logits = self.model(
                input_ids=ids.to(states.device)[index],
                attention_mask=(index >= 0).long(),
                encoder_hidden_states=memory,
                encoder_attention_mask=memory_mask,
                use_cache=False,
            ).logits
        return TargetLogits(logits[: len(present)], np.concatenate(wanted))


# --- weights


def make_decoder(checkpoint: Checkpoint, decoder: str, num_layers: int | None) -> Decoder:
    """Make the decoder for an encoder; see `build_seq2seq_head` for the arguments."""
    if decoder not in (RANDOM, ENCODER):
        model = load_decoder(open_source(decoder))
        check_fit(model, checkpoint, decoder)
        return Decoder(with_ids(model, checkpoint.tokenizer))
    family, depth = checkpoint.family, checkpoint.num_layers
    if decoder == ENCODER and family not in FAMILIES:
        raise ValueError(
            f"A decoder can't be initialised from a '{family}' encoder, whose family has none with "
            f'cross-attention. Set decoder = "{RANDOM}" in the head\'s model, or take one of: '
            f"{', '.join(FAMILIES)}."
        )
    num_layers = num_layers or depth
    if decoder == ENCODER and num_layers > depth:
        raise ValueError(
            f"num_layers is {num_layers}, but the encoder that the decoder is initialised from has "
            f"{depth} layers. Set num_layers to {depth} or less."
        )
    from transformers import AutoModelForCausalLM

    config = read_config(open_files(decoder_config(checkpoint, num_layers), "the decoder"))
    with quiet():
        model = AutoModelForCausalLM.from_config(config).float()
    if decoder == ENCODER:
        chosen = np.linspace(0, depth - 1, num_layers).round().astype(int).tolist()
        weights = take_layers(checkpoint, chosen)
        missing, unexpected = model.base_model.load_state_dict(weights, strict=False)
        unknown = [name for name in missing if "crossattention" not in name]
        assert not unknown and all("pooler" in name for name in unexpected), (unknown, unexpected)
    return Decoder(with_ids(model, checkpoint.tokenizer))


def take_layers(checkpoint: Checkpoint, numbers: list[int]) -> dict[str, torch.Tensor]:
    """Select an encoder's weights, of its layers those with these numbers, from 0, in order."""
    kept = Checkpoint(
        copy.deepcopy(checkpoint.without_adapter()),
        checkpoint.tokenizer,
        checkpoint.tokenizer_files,
    )
    if numbers != list(range(checkpoint.num_layers)):
        kept.keep_layers(numbers)
    return kept.model.state_dict()


def decoder_config(checkpoint: Checkpoint, num_layers: int) -> Files:
    """Write the configuration of a decoder of the encoder's shape and, if that has decoders, of its
    family; else of BERT's."""
    config = checkpoint.config
    settings = config.to_dict()
    if checkpoint.family not in FAMILIES:
        settings = {"model_type": "bert", "pad_token_id": config.pad_token_id}
        for key in ("vocab_size", "hidden_size", "num_attention_heads", "initializer_range"):
            settings[key] = getattr(config, key)  # DistilBERT has other names beside these
        # ModernBERT's is smaller, because its layers are gated.
        settings["intermediate_size"] = 4 * config.hidden_size
    for key in ("id2label", "label2id", "num_labels", "problem_type", "architectures"):
        settings.pop(key, None)
    settings |= {"is_decoder": True, "add_cross_attention": True, "num_hidden_layers": num_layers}
    return {"config.json": json.dumps(settings, default=str).encode("utf8")}


def with_ids(
    model: PreTrainedModel,
    tokenizer: WordpieceTokenizer,
    *,
    start: int | None = None,
    end: int | None = None,
) -> PreTrainedModel:
    """Set the ids by which a text begins and ends, by default those that the tokenizer puts around
    one. Raises ValueError if it puts none behind."""
    if end is None and not len(tokenizer.suffix):
        raise ValueError(
            "The tokenizer puts no special token behind a text, so a decoder can't learn where its "
            "text ends. Choose another checkpoint."
        )
    model.config.bos_token_id = int(tokenizer.prefix[0]) if start is None else start
    model.config.eos_token_id = int(tokenizer.suffix[-1]) if end is None else end
    model.config.pad_token_id = int(tokenizer.pad_id)
    return model


def check_fit(model: PreTrainedModel, checkpoint: Checkpoint, name: str) -> None:
    """Raise ValueError if a decoder can't read an encoder's hidden states, or writes in other
    wordpieces than those of its tokenizer."""
    for what in ("vocab_size", "hidden_size"):
        own, wanted = getattr(model.config, what), getattr(checkpoint.config, what)
        if own != wanted:
            raise ValueError(
                f"The decoder '{name}' has {what} = {own}, but the encoder {wanted}. Take a "
                "decoder that was trained with this encoder."
            )


def load_decoder(source: Source) -> PreTrainedModel:
    """Load a decoder from a Hugging Face folder. Raises ValueError if it is none, or damaged."""
    from transformers import AutoModelForCausalLM

    config = read_config(source)
    if not (config.is_decoder and getattr(config, "add_cross_attention", False)):
        raise ValueError(
            f"'{source.name}' is no decoder: its config.json needs is_decoder and "
            "add_cross_attention. `bert pretrain` with [denoising] writes one to the folder "
            "'decoder' of its encoder."
        )
    with quiet():
        model, info = build_model(AutoModelForCausalLM, config, read_weights(source))
    missing = [name for name in info["missing_keys"] if "pooler" not in name]
    if missing:
        raise ValueError(
            f"The weights of the decoder '{source.name}' lack {len(missing)} parameters "
            f"({', '.join(missing[:3])}, …). Does config.json belong to them?"
        )
    return model


def decoder_to_files(module: nn.Module) -> Files:
    """Turn a decoder into the files of a Hugging Face folder."""
    assert isinstance(module, Decoder)
    with tempfile.TemporaryDirectory() as folder:
        save_model(module.model, Path(folder))
        names = ("config.json", "model.safetensors")
        return {name: (Path(folder) / name).read_bytes() for name in names}


def decoder_from_files(files: Files) -> Decoder:
    """Build the decoder from what `decoder_to_files` returned."""
    return Decoder(load_decoder(open_files(files, "the saved decoder")))


# --- the thinc model


def build_seq2seq_head(
    tok2vec: Model[list[Doc], HiddenStates],
    *,
    decoder: str = ENCODER,
    num_layers: int | None = None,
    max_windows: int | None = MAX_WINDOWS,
    learning_rate_multiplier: float = 1.0,
    nO: int | None = None,
) -> Model[Any, Any]:
    """Build a head that writes a text for every Doc: a Transformer decoder with cross-attention
    (Vaswani et al. 2017, section 3) to the hidden states of all windows of the Doc.

    `tok2vec` is a listener that reads the last layer. `decoder` says where the decoder's weights
    come from: "encoder", those of the encoder, with new cross-attention (Rothe et al. 2020, section
    3.2); "random"; or the folder or hub name of a decoder, such as the one that `bert pretrain`
    wrote. `num_layers` are those of a new decoder, None for as many as the encoder has; from a
    deeper encoder layers are taken at equal distances. An update reads at most `max_windows`
    windows of a Doc, drawn at random; None for all. The decoder learns at
    `learning_rate_multiplier` times the optimizer's learning rate, and computes in the precision of
    its encoder. nO becomes the size of the vocabulary.

    The model maps `Sources` to `TargetLogits` in training, and to a list with the wordpiece ids of
    each text in prediction.

    Raises ValueError if a number is out of range.
    """
    if num_layers is not None and num_layers < 1:
        raise ValueError(f"num_layers is {num_layers}; it must be 1 or more, or null.")
    settings = {"decoder": decoder, "num_layers": num_layers}
    settings["max_windows"] = check_max_windows(max_windows)
    shim = TorchShim(
        to_files=decoder_to_files,
        from_files=decoder_from_files,
        learning_rate_multiplier=learning_rate_multiplier,
    )
    return head_model("seq2seq_head", forward, init, tok2vec, shim, settings, nO)


def init(model: Model, X: Any = None, Y: Any = None) -> Model:
    """Make the decoder. Raises ValueError if the listener reads other layers than the last, or the
    decoder can't be made for this encoder."""
    tok2vec = model.layers[0].initialize(X=X)
    checkpoint = checkpoint_behind(tok2vec)
    if checkpoint is None or not reads_last_layer(tok2vec):
        raise ValueError(
            "A decoder reads the last layer of an encoder. Use spacy_bert_heads.BertListener.v1 "
            "with layers = [-1] in its model, behind a bert_encoder."
        )
    decoder = make_decoder(checkpoint, model.attrs["decoder"], model.attrs["num_layers"])
    shim_of(model).module = decoder
    model.set_dim("nO", int(decoder.model.config.vocab_size), force=True)
    return model


def forward(
    model: Model, inputs: list[Doc] | Sources, is_train: bool
) -> tuple[Any, Callable[[Any], Any]]:
    """Generate texts for Docs; or, in training, compute logits for their targets. Returns them, and
    the callback that takes the gradient of these. Raises ValueError if the model was given Docs
    alone, as by `spacy debug model` in its last step."""
    if not isinstance(inputs, Sources):
        raise ValueError(
            "This model reads Docs with targets or settings, but was given Docs alone. Call the "
            "component, which knows these: nlp.get_pipe(…).predict(docs)."
        )
    docs, shim = inputs.docs, shim_of(model)
    encoder = encoder_model_behind(model.layers[0], docs, is_train=is_train)
    precision = "fp32" if encoder is None else shim_of(encoder).precision
    if shim.precision != resolve_precision(precision, shim.device):
        shim.precision = precision
    if not is_train:
        hidden, _ = model.layers[0](docs, False)
        generator = cast(Any, shim.derive(make_generator))
        found = without_graph(lambda: generate(generator, hidden, inputs.generation))
        return found, lambda gradient: inputs

    hidden, backprop_tok2vec = model.layers[0](DocSample(docs, model.attrs["max_windows"]), True)
    states = hidden.states.detach().requires_grad_()
    with shim.training(), shim.autocast():
        output = shim.module(HiddenStates(states, hidden.batch), inputs.targets)
        if shim.precision == "fp16":  # small gradients would become 0 before they are scaled
            output = output._replace(logits=output.logits.float())

    def backprop(gradient: TargetLogits) -> Any:
        shim.backward(tensors_of(output), tensors_of(gradient))
        # The encoder scales its gradients itself.
        backprop_tok2vec(cast(torch.Tensor, states.grad) / shim.gradient_scale)
        return inputs

    return output._replace(logits=output.logits.detach()), backprop
