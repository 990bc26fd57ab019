"""The registered architectures of heads."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from spacy.tokens import Doc
from thinc.api import Model

from ..deprecated import resolve_renamed
from ..encoder.hidden_states import HiddenStates
from ..encoder.model import PackedPairs
from ..encoder.shim import TorchShim
from ..text.arrays import sums
from ..text.batch import PackedBatch
from .model import forward, head_from_files, head_model, head_to_files, init_head
from .modules import (
    ChoiceClassifier,
    Classifier,
    PositionClassifier,
    SequenceClassifier,
    TokenClassifier,
)
from .outputs import SpanLogits, TokenLogits

POOLINGS = ("cls", "pooler", "mean")
MAX_WINDOWS = 16  # of 256 wordpieces: the encoder's default max_batch_tokens


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
