"""A checkpoint of the BERT family: Hugging Face's model, its tokenizer, and the differences between
model families."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch

from ..text.wordpieces import WordpieceTokenizer
from .adapters import AdapterSettings, add_adapter, learning_parameters, remove_adapter
from .hidden_states import Layers
from .parameters import find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Files = dict[str, bytes]


class Checkpoint:
    """The content of a Hugging Face folder.

    `model` is built by `AutoModel`. `tokenizer_files` are the files that Hugging Face's tokenizers
    save. `origin` says where the checkpoint is from: "name" and, on the hub, "revision"; an "id"
    and the number of "updates" if it is in a pipeline; for a shared checkpoint the digests of its
    "weights", "tokenizer" and "config". It is empty in pipelines of version 0.1.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: WordpieceTokenizer, tokenizer_files: Files
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.tokenizer_files = tokenizer_files
        self.tokenizer_settings = json.loads(tokenizer_files.get("tokenizer_config.json", b"{}"))
        self.adapter: AdapterSettings | None = None
        self.origin: dict[str, Any] = {}
        self.learned: set[str] = set()

    # --- differences between model families

    @property
    def config(self) -> Any:
        """The checkpoint's configuration, a PretrainedConfig."""
        return self.model.config

    @property
    def family(self) -> str:
        """Hugging Face's `model_type`."""
        return self.config.model_type

    @property
    def hidden_size(self) -> int:
        """The size of a hidden state."""
        return int(self.config.hidden_size)

    @property
    def num_layers(self) -> int:
        """The number of layers, without the embeddings."""
        return int(self.config.num_hidden_layers)

    @property
    def uses_token_types(self) -> bool:
        """Whether the checkpoint was trained with token types. A model with a single type was not;
        for other models this is read from the tokenizer's settings."""
        num_types = getattr(self.config, "type_vocab_size", None) or 0
        given = self.tokenizer_settings.get("model_input_names", ["token_type_ids"])
        return num_types > 1 and "token_type_ids" in given

    @property
    def mask_id(self) -> int | None:
        """The id of the mask token; None if the tokenizer has none."""
        return self.special_id("mask_token")

    def special_id(self, key: str) -> int | None:
        """Return the id of the special token that the tokenizer's settings have under a key, such
        as "unk_token"; None if there is none."""
        token = self.tokenizer_settings.get(key)
        content = token["content"] if isinstance(token, dict) else token or ""
        return self.tokenizer.tokenizer.token_to_id(content)

    @property
    def max_window(self) -> int:
        """The maximum length of a sequence, by the model's position embeddings."""
        positions = getattr(self.config, "max_position_embeddings", None) or 10**9
        return int(positions) - self.first_position

    @property
    def first_position(self) -> int:
        """The position id of a sequence's first wordpiece. RoBERTa and related families count from
        the padding id + 1."""
        embeddings = getattr(self.model, "embeddings", None)
        offset = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        return 0 if offset is None else int(offset) + 1

    def takes(self, argument: str) -> bool:
        """Return whether the model's `forward` has an argument with this name."""
        return argument in signature(self.model.forward).parameters

    def layer_numbers(self, layers: Layers) -> tuple[int, ...]:
        """Return the numbers of layers, counted from the embeddings, which are 0, in the same
        order.

        `layers` are numbers, negative ones counted down from the last layer, or "all". Raises
        ValueError if there is no such layer.
        """
        if isinstance(layers, str):  # "all"
            return tuple(range(self.num_layers + 1))
        beyond = [n for n in layers if not -self.num_layers - 1 <= n <= self.num_layers]
        if beyond:
            raise ValueError(
                f"There is no layer {beyond[0]}: '{self.family}' has 0, the embeddings, to "
                f"{self.num_layers}, and -1, the last, to {-self.num_layers - 1}. Set layers in "
                "the head's model.tok2vec to some of these."
            )
        return tuple(n if n >= 0 else self.num_layers + 1 + n for n in layers)

    def keep_layers(self, numbers: Sequence[int]) -> None:
        """Remove all layers except these, counted from 0, the lowest. Raises ValueError if there is
        no such layer or it is named twice, if some layers are frozen below an adapter, or if layers
        of the family can't be selected: ALBERT's share their weights; whether one of ModernBERT's
        is local depends on its number."""
        is_alike = getattr(self.config, "global_attn_every_n_layers", None) is None
        stack = find_layers(self.model) if is_alike else None
        depth = 0 if stack is None else len(stack)
        is_known = all(0 <= number < depth for number in numbers)
        if stack is None or not numbers or not is_known or len({*numbers}) < len(numbers):
            raise ValueError(
                f"Layers {', '.join(map(str, numbers))} can't be kept: this '{self.family}' "
                f"checkpoint has {depth} layers that can be selected once, counted from 0."
            )
        if self.adapter is not None and self.adapter.first_layer > 0:
            raise ValueError(
                "Layers can't be selected while an adapter begins above frozen ones. Set "
                "frozen_layers = 0 in the encoder's model."
            )
        self.origin.pop("weights", None)
        kept = [stack[number] for number in numbers]
        del stack[:]
        stack.extend(kept)
        self.config.num_hidden_layers = len(kept)

    # --- adapters

    def add_adapter(self, settings: AdapterSettings) -> None:
        """Add an adapter to a model without one. Raises ValueError if the family is not
        supported."""
        add_adapter(self.model, settings)
        self.adapter = settings

    def without_adapter(self) -> PreTrainedModel:
        """Return the model with the layers of its Hugging Face class: LoRA is merged into the
        weights, bottlenecks are removed. It is a copy if there is an adapter."""
        if self.adapter is None:
            return self.model
        model = copy.deepcopy(self.model)
        remove_adapter(model)
        return model

    def freeze(self, num_layers: int) -> None:
        """Freeze the embeddings and the lowest `num_layers` layers, 0 for none; with an adapter,
        everything except the adapter. Raises ValueError if the model does not have that many layers
        that can be frozen one by one."""
        stack = find_layers(self.model)
        depth = 0 if stack is None else len(stack)
        if not 0 <= num_layers <= depth:
            raise ValueError(
                f"frozen_layers is {num_layers}, but a '{self.family}' checkpoint has {depth} "
                "layers that can be frozen one by one. To freeze the whole encoder, add its name "
                "to [training] frozen_components."
            )
        if self.adapter is not None:
            self.model.requires_grad_(False)
            for parameter in learning_parameters(self.model, self.adapter):
                parameter.requires_grad_(True)
            return
        self.model.requires_grad_(True)
        if stack is not None and num_layers:
            free = {id(p) for layer in stack[num_layers:] for p in layer.parameters()}
            pooler = getattr(self.model, "pooler", None)
            free.update(id(p) for p in pooler.parameters()) if pooler is not None else None
            for parameter in self.model.parameters():
                parameter.requires_grad_(id(parameter) in free)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device
