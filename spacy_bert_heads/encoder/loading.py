"""Load checkpoints from the hub or a folder.

transformers is imported inside of functions, because that takes seconds: pipelines without BERT
must not wait for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from ..text.wordpieces import WordpieceTokenizer
from .checkpoint import Checkpoint
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


def load_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Load a checkpoint of the BERT family in float32, by its hub name or from a folder.

    `revision` is a branch, tag or commit on the hub. Raises ValueError if the checkpoint can't be
    found or read, lacks weights or a fast tokenizer, or is not an encoder like BERT.
    """
    from transformers import AutoModel

    return load_model(name, lambda config, weights: AutoModel, revision)[1]


def load_model(
    name: str,
    choose_class: Callable[[Any, dict[str, torch.Tensor]], Any],
    revision: str | None = None,
) -> tuple[PreTrainedModel, Checkpoint, list[str]]:
    """Load a checkpoint as a Hugging Face class, which may have a head.

    `choose_class` returns the class for the checkpoint's configuration and weights. Returns the
    model in float32; its encoder as a `Checkpoint`; and the names of parameters of heads or the
    pooler that the checkpoint lacks. Raises ValueError as `load_checkpoint` does.
    """
    return load_from(open_source(name, revision), choose_class)


def load_from(
    source: Source, choose_class: Callable[[Any, dict[str, torch.Tensor]], Any]
) -> tuple[PreTrainedModel, Checkpoint, list[str]]:
    """Load a checkpoint from its files, as `load_model` does."""
    name, (config, tokenizer) = source.name, _read_tokenizer(source)
    _check_no_adapter(source)
    try:
        weights = read_weights(source)
    except NotBert:
        raise
    except Exception as error:  # torch, pickle, zip, json and safetensors raise different classes
        raise ValueError(
            f"Can't load the weights of '{name}': {error}\n"
            "If the file is damaged, download it again."
        ) from error
    model, missing = make_model(name, choose_class(config, weights), config, weights)
    base = cast(Any, model.base_model)
    checkpoint = Checkpoint(base, _fast(name, tokenizer, config), tokenizer_to_files(tokenizer))
    checkpoint.origin = {"name": name, "revision": source.revision}
    return model, checkpoint, missing


def _check_no_adapter(source: Source) -> None:
    """Raise ValueError for the encoder of a pipeline with a bottleneck adapter: its other weights
    are useless without it. LoRA is part of the saved weights."""
    about = source.read_json("trained.json") if source.revision is None else None
    kind = ((about or {}).get("adapter") or [None])[0]
    if kind not in (None, "lora"):
        raise ValueError(
            f"'{source.name}' is the encoder of a pipeline with a {kind} adapter, without which "
            "its weights are useless, and which a checkpoint can't have. Use the whole pipeline as "
            "a source (init-config --source), or train with LoRA or without an adapter."
        )


def load_wordpiece_tokenizer(name: str, revision: str | None = None) -> WordpieceTokenizer:
    """Load the tokenizer of a checkpoint without its weights. Raises ValueError as
    `load_checkpoint` does, except for missing or damaged weights."""
    config, tokenizer = _read_tokenizer(open_source(name, revision))
    return _fast(name, tokenizer, config)


def _read_tokenizer(source: Source) -> tuple[Any, FastTokenizer]:
    name = source.name
    try:
        config = read_config(source)
        tokenizer = read_tokenizer(source, config)
    except NotBert:
        raise
    except Exception as error:  # transformers, json, the disk and the hub raise different classes
        where = "folder" if source.revision is None else "hub name"
        raise ValueError(
            f"Can't read a checkpoint from the {where} '{name}': {error}\n"
            "It needs config.json, weights and tokenizer files as Hugging Face's "
            "save_pretrained writes them."
        ) from error
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer of '{name}' has {len(tokenizer)} wordpieces, but its encoder embeds "
            f"{config.vocab_size}. Do the tokenizer files belong to the checkpoint?"
        )
    return config, tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings about missing weights, because our callers report those that
    matter, and its progress bars."""
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
    """Make a model in float32. Also returns the names of parameters of heads or the pooler that the
    weights lack. Raises ValueError if the weights don't belong to the configuration."""
    try:
        with quiet():
            model: Any
            model, info = build_model(auto_class, config, weights)
    except Exception as error:  # torch and transformers raise different classes
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
            f"The weights of '{name}' have {len(beyond)} parameters of more layers than in "
            f"config.json ({', '.join(sorted(beyond)[:3])}, …). Does config.json belong to them?"
        )
    if is_bare and lacking:
        # A randomly initialised pooler must not be used as a pretrained one.
        model.pooler = None
    return model, lacking


def _fast(name: str, tokenizer: FastTokenizer, config: Any) -> WordpieceTokenizer:
    """Return the fast tokenizer. Raises ValueError if it adds no special token before a text: every
    wordpiece would be at another position than in pretraining, and an empty text would be an empty
    sequence."""
    from tokenizers import Tokenizer

    # A copy, because WordpieceTokenizer configures it in place.
    fast = WordpieceTokenizer(
        Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), pad_id=pad_id_of(config)
    )
    if not len(fast.prefix):
        cls = tokenizer.cls_token or "[CLS]"
        kind = "BertProcessing" if cls == "[CLS]" else "RobertaProcessing"
        raise ValueError(
            f"The tokenizer of '{name}' puts no special token ({cls}) before a text, so the "
            "encoder would read shifted input: its tokenizer.json has no post_processor that adds "
            "it. With t = AutoTokenizer.from_pretrained(…), set "
            f"t.backend_tokenizer.post_processor = tokenizers.processors.{kind}((t.sep_token, "
            "t.sep_token_id), (t.cls_token, t.cls_token_id)) and t.save_pretrained(…)."
        )
    return fast


def pad_id_of(config: Any) -> int:
    """Return the id for padding."""
    return getattr(config, "pad_token_id", None) or 0
