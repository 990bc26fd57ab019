"""Checkpoints: from the hub or a folder when training starts, from named files ever after.

transformers is imported inside the functions: it takes seconds, and a pipeline without BERT
must not wait for it.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from ..types import Layers
from ..wordpieces import Wordpieces
from .adapters import (
    AdapterSettings,
    add_adapter,
    assume_merged,
    digest_embeddings,
    merge_adapter,
    remove_adapter,
    trained_weights,
)
from .rows import Row, RowAttention, common_size
from .shim import Files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokenizer files are kept for those who take the folder back to Hugging Face; ours reads
# tokenizer.json alone.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_AGAIN = "Copy or download the pipeline again."
# Families whose pieces meet in attention alone. Not MPNet and DeBERTa, whose attention knows of
# positions, nor ModernBERT, in most of whose layers it is local.
READ_ROWS = ("bert", "roberta", "xlm-roberta", "camembert", "albert", "electra", "distilbert")


class Bert(nn.Module):
    """A checkpoint: the encoder and its tokenizer, as one module.

    encoder (PreTrainedModel): What `AutoModel` loads.
    wordpieces (Wordpieces): The tokenizer.
    tokenizer_files (Files): The tokenizer as Hugging Face saves it; its settings are in
        `tokenizer_settings`.
    """

    def __init__(
        self, encoder: PreTrainedModel, wordpieces: Wordpieces, tokenizer_files: Files
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter: AdapterSettings | None = None
        self.wordpieces = wordpieces
        self.tokenizer_files = tokenizer_files
        self.tokenizer_settings = _tokenizer_settings(tokenizer_files)
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
        return self._run(inputs, layers)

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
        with RowAttention(row) as attention:
            states = self._run(inputs, layers)[0, :n_slots]
        if attention.n_calls != self.n_layers:  # sequences have seen each other
            raise RuntimeError(
                f"This version of transformers ({version('transformers')}) computes the attention "
                f"of '{self.config.model_type}' in a way that is not known here. Install another."
            )
        return states

    def padding(self, n_rows: int) -> int:
        """n_rows (int): The rows of a matrix that linear layers are to read.
        RETURNS (int): How many to add, so that oneDNN, where it multiplies, meets few sizes.
        """
        by_onednn = self.is_packed or torch.is_autocast_enabled("cpu")
        return common_size(n_rows) - n_rows if by_onednn else 0

    def _run(self, inputs: dict[str, Any], layers: tuple[int, ...] | None) -> torch.Tensor:
        if layers is None or layers == (self.n_layers,):
            return self.encoder(**inputs).last_hidden_state
        # transformers 5 keeps the layers that are named, version 4 takes the list for "yes".
        output = self.encoder(**inputs, output_hidden_states=list(layers))
        # ModernBERT's last hidden state has gone through one more LayerNorm than the last in its
        # list of them: a head reads the same last layer whatever else is read.
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        return torch.cat([states[n] for n in layers], dim=-1)


def load_checkpoint(name: str) -> Bert:
    """Load a checkpoint of the BERT family by its hub name or from a folder.

    name (str): A name on the Hugging Face hub, or a folder.
    RETURNS (Bert): The encoder, in fp32, and its tokenizer.
    RAISES (ValueError): If it can't be found or read, lacks weights or a fast tokenizer, or has
        another shape than BERT's.
    """
    from transformers import AutoModel

    return load_model(name, lambda config: AutoModel)[1]


def load_model(
    name: str, choose_class: Callable[[Any], Any]
) -> tuple[PreTrainedModel, Bert, list[str]]:
    """Load a checkpoint with what Hugging Face's class puts on the encoder.

    name (str): A name on the Hugging Face hub, or a folder.
    choose_class (Callable[[Any], Any]): Gives the class by the checkpoint's configuration.
    RETURNS (Tuple[PreTrainedModel, Bert, List[str]]): The model, in fp32; the encoder in it, with
        its tokenizer; and the parameters that the checkpoint lacks: of heads, or of the pooler.
    RAISES (ValueError): As above.
    """
    source, config, files = _load_tokenizer(name)
    model, missing = _load_weights(source, choose_class(config))
    encoder = cast(Any, model.base_model)
    return model, Bert(encoder, _wordpieces(files, config), files), missing


def load_wordpieces(name: str) -> Wordpieces:
    """Load the tokenizer of a checkpoint alone.

    name (str): A name on the Hugging Face hub, or a folder.
    RETURNS (Wordpieces): The tokenizer.
    RAISES (ValueError): As above, but for the weights, which are not looked at.
    """
    _, config, files = _load_tokenizer(name)
    return _wordpieces(files, config)


def _load_tokenizer(name: str) -> tuple[str, Any, Files]:
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    if not folder.is_dir() and (folder.is_absolute() or name.startswith(".") or folder.exists()):
        raise ValueError(f"There is no checkpoint folder '{name}'. Check the path.")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False)
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ValueError("The tokenizer has no vocabulary.")  # transformers 5 makes it up
    except Exception as error:  # nothing less: the tokenizers library raises Exception itself
        where = "folder" if folder.is_dir() else "hub name, and no folder of that name,"
        raise ValueError(
            f"Can't read a checkpoint from the {where} '{name}': {error}\n"
            "It needs config.json, weights and tokenizer files as Hugging Face's "
            "save_pretrained writes them; a hub name needs access to the hub or its cache."
        ) from error
    has_shape = hasattr(config, "hidden_size") and hasattr(config, "vocab_size")
    if getattr(config, "is_encoder_decoder", False) or not has_shape:
        raise ValueError(
            f"'{name}' is a '{config.model_type}' model, not an encoder of BERT's shape. "
            "Use BERT, RoBERTa, DistilBERT, ALBERT, ELECTRA, XLM-R or the like."
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer of '{name}' has no fast version, so it gives no character offsets. "
            "Add a tokenizer.json: AutoTokenizer.from_pretrained(…, use_fast=True)"
            ".save_pretrained(…), with `pip install sentencepiece tiktoken` if it asks for them."
        )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer of '{name}' has {len(tokenizer)} pieces, its encoder embeds "
            f"{config.vocab_size}. Do the tokenizer files belong to the checkpoint?"
        )
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        files = _read_files(Path(saved), TOKENIZER_FILES)
    # What the tokenizer's class says, and its files perhaps don't.
    settings = _tokenizer_settings(files)
    settings["model_input_names"] = list(tokenizer.model_input_names)
    files["tokenizer_config.json"] = json.dumps(settings, indent=2).encode("utf8")
    return source, config, files


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


def _load_weights(source: str, auto_class: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model in fp32, and its parameters that the file lacks: of heads, or of the pooler."""
    try:
        with quiet():
            model, info = auto_class.from_pretrained(
                source, output_loading_info=True, weights_only=True, trust_remote_code=False
            )
    except Exception as error:  # torch, pickle, zip, json and safetensors have their own each
        raise ValueError(
            f"Can't load the weights of '{source}': {error}\n"
            "If the file is damaged, download it again; save a .bin again as safetensors."
        ) from error
    lacking = sorted(info["missing_keys"])
    is_bare = model.base_model is model
    prefix = "" if is_bare else f"{model.base_model_prefix}."
    missing = [k for k in lacking if k.startswith(prefix) and "pooler" not in k]
    if missing:
        raise ValueError(
            f"The weights of '{source}' lack {len(missing)} of the encoder's parameters "
            f"({', '.join(missing[:3])}, …). Does config.json belong to them?"
        )
    beyond = [key for key in info["unexpected_keys"] if re.search(r"\blayers?\.\d+\.", key)]
    if beyond:
        raise ValueError(
            f"The weights of '{source}' have {len(beyond)} parameters of layers that config.json "
            f"doesn't count ({', '.join(sorted(beyond)[:3])}, …). Does config.json belong to them?"
        )
    if is_bare and lacking:
        # Random weights must not pass for a pretrained pooler.
        model.pooler = None
    return model.float(), lacking


def _wordpieces(files: Files, config: Any) -> Wordpieces:
    from tokenizers import Tokenizer

    pad_id = getattr(config, "pad_token_id", None)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode("utf8"))
    return Wordpieces(tokenizer, pad_id=pad_id or 0)


def _tokenizer_settings(files: Files) -> dict[str, Any]:
    """What Hugging Face's tokenizer class is made with."""
    return json.loads(files.get("tokenizer_config.json", b"{}"))


def _read_files(folder: Path, names: tuple[str, ...]) -> Files:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def plain_encoder(bert: Bert) -> PreTrainedModel:
    """bert (Bert): A checkpoint, perhaps with an adapter.
    RETURNS (PreTrainedModel): Hugging Face's model as its class builds it: with LoRA in the
        weights, without bottlenecks. It is a copy if there is an adapter.
    """
    if bert.adapter is None:
        return bert.encoder
    encoder = copy.deepcopy(bert.encoder)
    remove_adapter(encoder)
    return encoder


def checkpoint_to_files(bert: nn.Module, *, share: bool = False) -> Files:
    """Turn a checkpoint into the files of a Hugging Face folder, and what learns in it, if that is
    an adapter or if the rest is shared, into two more.

    bert (Bert): The checkpoint.
    share (bool): Whether to leave out what is not trained.
    RETURNS (Files): config.json, model.safetensors and the tokenizer's files; trained.json and
        trained.safetensors.
    """
    from safetensors.torch import save

    assert isinstance(bert, Bert)
    trained: Files = {}
    if share or bert.adapter is not None:
        weights = {n: p.cpu().contiguous() for n, p in trained_weights(bert.encoder).items()}
        adapter = None if bert.adapter is None else list(bert.adapter)
        about = {"adapter": adapter, "embeddings": digest_embeddings(bert.encoder)}
        trained["trained.json"] = json.dumps(about).encode("utf8")
        trained["trained.safetensors"] = save(weights)
    if share:
        return trained
    with tempfile.TemporaryDirectory() as folder:
        encoder = plain_encoder(bert)
        with quiet():
            encoder.save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")
        files = _read_files(Path(folder), ("config.json", "model.safetensors"))
    return {**files, **bert.tokenizer_files, **trained}


def checkpoint_from_files(files: Files, *, name: str = "") -> Bert:
    """Build a checkpoint from what `checkpoint_to_files` gave. Needs no network, unless the
    checkpoint is shared and its name one of the hub.

    files (Files): The named files.
    name (str): The shared checkpoint, where there is one.
    RETURNS (Bert): The checkpoint, with LoRA in its weights.
    RAISES (ValueError): If a file is missing or damaged, or the shared checkpoint is another one.
    """
    shared = "trained.json" in files and "model.safetensors" not in files
    bert = load_checkpoint(name) if shared else _whole_from_files(files)
    if "trained.json" in files:
        _add_trained(bert, files, name if shared else None)
    return bert


def _add_trained(bert: Bert, files: Files, shared: str | None) -> None:
    """Put into a checkpoint what was trained of it."""
    from safetensors.torch import load

    if "trained.safetensors" not in files:
        raise ValueError(f"The saved encoder has no trained.safetensors. {_AGAIN}")
    try:
        about = json.loads(files["trained.json"])
        embeddings = about["embeddings"]
        adapter = about["adapter"] and AdapterSettings(*about["adapter"])
        weights = load(files["trained.safetensors"])
    except Exception as error:  # json and safetensors have their own each
        message = f"The encoder's trained.json or trained.safetensors is damaged: {error!r}"
        raise ValueError(f"{message}\n{_AGAIN}") from error
    if shared is not None and embeddings != digest_embeddings(bert.encoder):
        raise ValueError(
            f"The pipeline was trained on another checkpoint than '{shared}' is now. Set the "
            "encoder's name to that one: spacy.load(…, config={'components': {'bert_encoder': "
            "{'model': {'name': …}}}})."
        )
    if adapter is not None:
        bert.add_adapter(adapter)
        if shared is None:
            assume_merged(bert.encoder)
    try:
        _, unexpected = bert.encoder.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"The saved encoder is damaged: {error}\n{_AGAIN}") from error
    if unexpected:
        raise ValueError(f"The checkpoint has no {unexpected[0]}. {_AGAIN}")
    merge_adapter(bert.encoder, True)


def _whole_from_files(files: Files) -> Bert:
    from transformers import AutoModel

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if name not in files:
            raise ValueError(f"The saved encoder has no {name}. {_AGAIN}")
    tokenizer_files = {name: files[name] for name in TOKENIZER_FILES if name in files}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("config.json", "model.safetensors"):
                (Path(folder) / name).write_bytes(files[name])
            encoder, _ = _load_weights(folder, AutoModel)
        return Bert(encoder, _wordpieces(tokenizer_files, encoder.config), tokenizer_files)
    except Exception as error:  # as above
        raise ValueError(f"The saved encoder is damaged: {error}\n{_AGAIN}") from error
