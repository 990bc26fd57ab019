"""Checkpoints: from the hub or a folder when training starts, from named files ever after.

transformers is imported inside the functions: it takes seconds, and a pipeline without BERT
must not wait for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from ..types import Layers
from ..wordpieces import Wordpieces
from .adapters import (
    AdapterSettings,
    add_adapter,
)
from .rows import Row, RowAttention, common_size, drop_ended_modes
from .shim import Files
from .source import Source, open_source
from .untrusted import (
    NotBert,
    build_model,
    read_config,
    read_tokenizer,
    read_weights,
    tokenizer_to_files,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerFast as FastTokenizer

# Families whose pieces meet in attention alone. Not MPNet and DeBERTa, whose attention knows of
# positions, nor ModernBERT, in most of whose layers it is local.
READ_ROWS = ("bert", "roberta", "xlm-roberta", "camembert", "albert", "electra", "distilbert")


class Bert(nn.Module):
    """A checkpoint: the encoder and its tokenizer, as one module.

    `encoder` is what `AutoModel` builds. `tokenizer_files` is the tokenizer as Hugging Face saves
    it, `tokenizer_settings` what is in its tokenizer_config.json. `origin` says where the
    checkpoint came from ("name", and on the hub "revision"), and of one that is shared what tells
    it from others ("weights", "tokenizer", "config"); None in pipelines of version 0.1.
    """

    def __init__(
        self, encoder: PreTrainedModel, wordpieces: Wordpieces, tokenizer_files: Files
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter: AdapterSettings | None = None
        self.wordpieces = wordpieces
        self.tokenizer_files = tokenizer_files
        self.tokenizer_settings = json.loads(tokenizer_files.get("tokenizer_config.json", b"{}"))
        self.origin: dict[str, Any] | None = None
        # Of a family with one type there is nothing to tell apart; of others the tokenizer says
        # whether the checkpoint has learned from types.
        taken = self.tokenizer_settings.get("model_input_names", ["token_type_ids"])
        n_types = getattr(encoder.config, "type_vocab_size", None) or 0
        self.has_types = n_types > 1 and "token_type_ids" in taken
        arguments = signature(encoder.forward).parameters
        self.is_packed = False  # whether it was made to predict by oneDNN
        self._takes_positions = "position_ids" in arguments
        self._takes_types = "token_type_ids" in arguments
        # transformers 4 warns of padding without a mask; 5 would make a GPU wait to look at one.
        self._wants_mask = int(version("transformers").split(".")[0]) < 5

    @property
    def config(self) -> Any:
        """RETURNS (PretrainedConfig): The checkpoint's configuration."""
        return self.encoder.config

    @property
    def width(self) -> int:
        """RETURNS (int): The width of its states."""
        return int(self.config.hidden_size)

    @property
    def n_layers(self) -> int:
        """RETURNS (int): The layers above the embeddings."""
        return int(self.config.num_hidden_layers)

    def layer_numbers(self, layers: Layers) -> tuple[int, ...]:
        """Count layers from the embeddings, which are 0.

        layers (Layers): Numbers, those below 0 from the last one down; or "all".
        RETURNS (Tuple[int, ...]): The numbers, in the order given.
        RAISES (ValueError): If there is no such layer.
        """
        if isinstance(layers, str):  # "all"
            return tuple(range(self.n_layers + 1))
        beyond = [n for n in layers if not -self.n_layers - 1 <= n <= self.n_layers]
        if beyond:
            raise ValueError(
                f"There is no layer {beyond[0]}: '{self.config.model_type}' has 0, the embeddings, "
                f"to {self.n_layers}, and -1, the last, to {-self.n_layers - 1}. Set layers in the "
                "head's model.tok2vec to some of these."
            )
        return tuple(n if n >= 0 else self.n_layers + 1 + n for n in layers)

    @property
    def max_window(self) -> int:
        """RETURNS (int): The longest sequence that it has positions for."""
        positions = getattr(self.config, "max_position_embeddings", None) or 10**9
        return int(positions) - self.first_position

    @property
    def reads_rows(self) -> bool:
        """RETURNS (bool): Whether it can read buckets in one row: its positions can be told, and
        where a piece stands matters to nothing but the attention that torch has."""
        config = self.config
        return (
            config.model_type in READ_ROWS
            and self._takes_positions
            and config._attn_implementation == "sdpa"
            and getattr(config, "position_embedding_type", "absolute") == "absolute"
            and not getattr(config, "is_decoder", False)
            and getattr(config, "inner_group_num", 1) == 1
        )

    @property
    def first_position(self) -> int:
        """RETURNS (int): The position of a sequence's first wordpiece."""
        # RoBERTa and its kin count positions from behind the padding id.
        embeddings = getattr(self.encoder, "embeddings", None)
        offset = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        return 0 if offset is None else int(offset) + 1

    def add_adapter(self, settings: AdapterSettings) -> None:
        """Put an adapter in, where there is none.

        settings (AdapterSettings): Which.
        RAISES (ValueError): If it isn't known where one goes in the family.
        """
        add_adapter(self.encoder, settings)
        self.adapter = settings

    def forward(
        self,
        ids: torch.Tensor,
        type_ids: torch.Tensor,
        mask: torch.Tensor,
        layers: tuple[int, ...] | None = None,
    ) -> torch.Tensor:
        """Run a bucket of sequences.

        ids (Tensor): (n_sequences, length).
        type_ids (Tensor): (n_sequences, length); not used by families without them.
        mask (Tensor): 1 for a piece, 0 for padding, (n_sequences, length).
        layers (Optional[Tuple[int, ...]]): Whose states to give, as `layer_numbers` counts them;
            None for the last.
        RETURNS (Tensor): Those, side by side (n_sequences, length, n_layers * width).
        """
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.has_types:
            inputs["token_type_ids"] = type_ids
        return self._choose(self.encoder(**inputs, **self._ask_for(layers)), layers)

    def read_row(self, row: Row, layers: tuple[int, ...] | None = None) -> torch.Tensor:
        """Run buckets of sequences, all at once if the family allows it.

        row (Row): The buckets.
        layers (Optional[Tuple[int, ...]]): As in `forward`.
        RETURNS (Tensor): The states of all slots, padding included (n_slots, n_layers * width).
        RAISES (RuntimeError): If transformers computes attention in an unknown way.
        """
        if not self.reads_rows:
            buckets = zip(*map(row.split, (row.ids, row.type_ids, row.mask.long())), strict=True)
            return torch.cat([self(*bucket, layers).flatten(0, 1) for bucket in buckets])
        n_slots = len(row.ids)
        beyond = self.padding(n_slots)
        ids = F.pad(row.ids, (0, beyond), value=self.wordpieces.pad_id)[None]
        positions = F.pad(row.columns, (0, beyond))[None] + self.first_position
        inputs = {"input_ids": ids, "position_ids": positions}
        if self._takes_types:
            # Of a row of its own making, transformers has no more than there are positions.
            types = F.pad(row.type_ids, (0, beyond))[None]
            inputs["token_type_ids"] = types if self.has_types else torch.zeros_like(ids)
        if self._wants_mask:
            inputs["attention_mask"] = torch.ones_like(ids)
        mode = RowAttention(row)
        try:
            mode.__enter__()
            output = self.encoder(**inputs, **self._ask_for(layers))
        finally:  # after an interrupt too: see RowAttention
            mode.has_ended = True
            drop_ended_modes()
        if mode.n_calls != self.n_layers:  # sequences have seen each other
            raise RuntimeError(
                f"This version of transformers ({version('transformers')}) computes the attention "
                f"of '{self.config.model_type}' in a way that is not known here. Install another."
            )
        return self._choose(output, layers)[0, :n_slots]

    def padding(self, n_rows: int) -> int:
        """n_rows (int): The rows of a matrix that linear layers are to read.
        RETURNS (int): How many to add, so that oneDNN, where it multiplies, meets few sizes.
        """
        by_onednn = self.is_packed or torch.is_autocast_enabled("cpu")
        return common_size(n_rows) - n_rows if by_onednn else 0

    def _ask_for(self, layers: tuple[int, ...] | None) -> dict[str, Any]:
        """What to tell transformers so that its output has some layers."""
        if layers is None or layers == (self.n_layers,):
            return {}
        # transformers 5 keeps the layers that are named, version 4 takes the list for "yes".
        return {"output_hidden_states": list(layers)}

    def _choose(self, output: Any, layers: tuple[int, ...] | None) -> torch.Tensor:
        """The layers, side by side."""
        if layers is None or layers == (self.n_layers,):
            return output.last_hidden_state
        # ModernBERT's last hidden state has gone through one more LayerNorm than the last in its
        # list of them: a head reads the same last layer whatever else is read.
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        return torch.cat([states[n] for n in layers], dim=-1)


def load_checkpoint(name: str, revision: str | None = None) -> Bert:
    """Load a checkpoint of the BERT family, in float32, by its hub name or from a folder.

    Raises ValueError if it can't be found or read, lacks weights or a fast tokenizer, or has
    another shape than BERT's. `revision` is a branch, tag or commit on the hub.
    """
    from transformers import AutoModel

    return load_model(name, lambda config: AutoModel, revision)[1]


def load_model(
    name: str, choose_class: Callable[[Any], Any], revision: str | None = None
) -> tuple[PreTrainedModel, Bert, list[str]]:
    """Load a checkpoint with what Hugging Face's class puts on the encoder.

    `choose_class` gives the class by the checkpoint's configuration. Gives the model, in float32;
    the encoder in it, with its tokenizer; and the parameters that the checkpoint lacks, of heads or
    of the pooler. Raises ValueError as `load_checkpoint` does.
    """
    source, config, tokenizer = _read_tokenizer(name, revision)
    try:
        weights = read_weights(source)
    except Exception as error:  # torch, pickle, zip, json and safetensors have their own each
        raise ValueError(
            f"Can't load the weights of '{name}': {error}\n"
            "If the file is damaged, download it again."
        ) from error
    model, missing = make_model(name, choose_class(config), config, weights)
    encoder = cast(Any, model.base_model)
    bert = Bert(encoder, _wordpieces(tokenizer, config), tokenizer_to_files(tokenizer))
    bert.origin = {"name": name, "revision": source.revision}
    return model, bert, missing


def load_wordpieces(name: str, revision: str | None = None) -> Wordpieces:
    """Load the tokenizer of a checkpoint alone. Raises ValueError as `load_checkpoint` does, but
    for the weights, which are not looked at."""
    _, config, tokenizer = _read_tokenizer(name, revision)
    return _wordpieces(tokenizer, config)


def _read_tokenizer(name: str, revision: str | None) -> tuple[Source, Any, FastTokenizer]:
    source = open_source(name, revision)
    try:
        config = read_config(source)
        tokenizer = read_tokenizer(source, config)
    except NotBert:
        raise
    except Exception as error:  # transformers, json, the disk and the hub have their own each
        where = "folder" if source.revision is None else "hub name"
        raise ValueError(
            f"Can't read a checkpoint from the {where} '{name}': {error}\n"
            "It needs config.json, weights and tokenizer files as Hugging Face's "
            "save_pretrained writes them."
        ) from error
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer of '{name}' has {len(tokenizer)} pieces, its encoder embeds "
            f"{config.vocab_size}. Do the tokenizer files belong to the checkpoint?"
        )
    return source, config, tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from warning of missing weights, which our callers do where it matters, and
    from progress bars, which are gone before anyone reads them."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def make_model(
    name: str, auto_class: Any, config: Any, weights: dict[str, torch.Tensor]
) -> tuple[PreTrainedModel, list[str]]:
    """Give a model in float32, and its parameters that the weights lack: of heads, or of the
    pooler. Raises ValueError if the weights don't belong to the configuration."""
    try:
        with quiet():
            model: Any
            model, info = build_model(auto_class, config, weights)
    except Exception as error:  # torch and transformers have their own each
        raise ValueError(
            f"Can't load the weights of '{name}': {error}\nDoes config.json belong to them?"
        ) from error
    lacking = sorted(info["missing_keys"])
    is_bare = model.base_model is model
    prefix = "" if is_bare else f"{model.base_model_prefix}."
    missing = [k for k in lacking if k.startswith(prefix) and "pooler" not in k]
    if missing:
        raise ValueError(
            f"The weights of '{name}' lack {len(missing)} of the encoder's parameters "
            f"({', '.join(missing[:3])}, …). Does config.json belong to them?"
        )
    beyond = [key for key in info["unexpected_keys"] if re.search(r"\blayers?\.\d+\.", key)]
    if beyond:
        raise ValueError(
            f"The weights of '{name}' have {len(beyond)} parameters of layers that config.json "
            f"doesn't count ({', '.join(sorted(beyond)[:3])}, …). Does config.json belong to them?"
        )
    if is_bare and lacking:
        # Random weights must not pass for a pretrained pooler.
        model.pooler = None
    return model, lacking


def _wordpieces(tokenizer: FastTokenizer, config: Any) -> Wordpieces:
    from tokenizers import Tokenizer

    # A copy, because it is configured in place.
    return Wordpieces(
        Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), pad_id=pad_id_of(config)
    )


def pad_id_of(config: Any) -> int:
    """Give the id that fills the slots behind a short sequence."""
    return getattr(config, "pad_token_id", None) or 0
