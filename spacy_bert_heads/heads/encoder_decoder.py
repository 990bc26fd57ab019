"""Hugging Face's EncoderDecoderModel: a pipeline's encoder with the decoder of a `bert_seq2seq`."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..encoder.checkpoint import Checkpoint
from ..encoder.loading import quiet
from ..encoder.parameters import copy_sharing
from ..encoder.source import CONFIG, TOKENIZER, Source, open_files
from ..encoder.untrusted import read_weights
from .decoder import Decoder
from .generation import text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TYPE = "encoder-decoder"
SETTINGS = ("max_length", "num_beams")  # of generation, which our component has too


class Parts(NamedTuple):
    """An EncoderDecoderModel as two checkpoints: the encoder with the tokenizer, and the
    decoder."""

    encoder: Source
    decoder: Source
    start_id: int | None
    end_id: int | None
    settings: dict[str, Any]  # of the component


def split(source: Source) -> Parts | None:
    """Split the folder of an EncoderDecoderModel; None if it holds another model. Raises ValueError
    if it is damaged."""
    config = source.read_json(CONFIG) or {}
    if config.get("model_type") != TYPE:
        return None
    from safetensors.torch import save

    weights = read_weights(source)
    found = {}
    for part in ("encoder", "decoder"):
        if not isinstance(config.get(part), dict):
            raise ValueError(f"config.json of '{source.name}' has no {part}.")
        own = {
            k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")
        }
        found[part] = {
            CONFIG: json.dumps(config[part]).encode("utf8"),
            "model.safetensors": save(own),
        }
    for name in TOKENIZER:
        if (content := source.read(name)) is not None:
            found["encoder"][name] = content
    generation = {**config, **(source.read_json("generation_config.json") or {})}
    settings = {
        key: value for key in SETTINGS if type(value := generation.get(key)) is int and value > 1
    }
    if type(new := generation.get("max_new_tokens")) is int:
        settings["max_length"] = new
    return Parts(
        open_files(found["encoder"], source.name),
        open_files(found["decoder"], source.name),
        _id(generation, "decoder_start_token_id"),
        _id(generation, "eos_token_id"),
        settings,
    )


def _id(config: dict[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int else None


def join(checkpoint: Checkpoint, decoder: Decoder, settings: dict[str, Any]) -> PreTrainedModel:
    """Build the EncoderDecoderModel of a copy of an encoder and a decoder. `settings` are those of
    its generation."""
    from transformers import EncoderDecoderModel, GenerationConfig

    encoder: Any = copy.deepcopy(checkpoint.without_adapter())
    with quiet():
        model: Any = EncoderDecoderModel(
            encoder=encoder,
            decoder=cast(Any, copy_sharing(decoder.model, copy.deepcopy)),
        )
    ids: dict[str, Any] = text_ids(decoder.model.config)
    for key, value in {**ids, "vocab_size": decoder.model.config.vocab_size}.items():
        setattr(model.config, key, value)
    model.generation_config = GenerationConfig(**ids, **settings)
    return model
