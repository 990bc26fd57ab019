"""Load the encoder to inspect from a pipeline or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import spacy
import torch
from numpy.typing import NDArray
from spacy.language import Language
from spacy.tokens import Doc

from ..encoder.component import BertEncoder
from ..encoder.encoder import Encoder
from ..encoder.loading import load_checkpoint
from ..encoder.model import encoder_of
from ..evaluate import is_pipeline, load_pipeline
from ..text.batch import PackedBatch
from ..text.packing import pack_docs

Floats1d = NDArray[np.float64]
Floats2d = NDArray[np.float64]
Floats3d = NDArray[np.float64]

MAX_BATCH_TOKENS = 4096  # wordpieces per forward pass, including padding


class Source(NamedTuple):
    """Hold an encoder with its tokenizer and windows."""

    name: str  # the user's argument
    nlp: Language  # the tokenizer
    encoder: Encoder
    window: int
    stride: int

    @property
    def depth(self) -> int:
        """Return the number of layers without the embeddings, which are layer 0."""
        return self.encoder.checkpoint.num_layers

    def pack(self, docs: Sequence[Doc]) -> PackedBatch:
        """Pack Docs of any length into windows."""
        tokenizer = self.encoder.checkpoint.tokenizer
        return pack_docs(docs, tokenizer, window=self.window, stride=self.stride)


def open_source(name: str, *, encoder: str | None = None, lang: str = "en") -> Source:
    """Load an encoder to inspect.

    `name` is a pipeline's folder or package, or a checkpoint's folder or hub name. `encoder` is a
    component's name, for a pipeline with several encoders. `lang` is the language of the tokenizer
    for a checkpoint. Raises ValueError if it can't be loaded, or the encoder is ambiguous.
    """
    if is_pipeline(name):
        nlp = load_pipeline(name)
        found = {key: one for key, one in nlp.components if isinstance(one, BertEncoder)}
        if encoder is None and len(found) == 1:
            (encoder,) = found
        if encoder is None or encoder not in found:
            has = f"has these encoders: {', '.join(found)}" if found else "has no bert_encoder"
            raise ValueError(f"'{name}' {has}. Choose one with --encoder NAME.")
        model = found[encoder].model
        return Source(name, nlp, encoder_of(model), model.attrs["window"], model.attrs["stride"])
    if encoder is not None:
        raise ValueError(f"'{name}' is a checkpoint, not a pipeline. Leave --encoder out.")
    checkpoint = load_checkpoint(name)
    window = min(256, checkpoint.max_window)
    return Source(name, spacy.blank(lang), Encoder(checkpoint), window, max(window * 3 // 4, 1))


def encode_layers(encoder: Encoder, batch: PackedBatch, layers: Sequence[int]) -> torch.Tensor:
    """Return the hidden states of the given layers (num_positions, num_layers, hidden_size),
    float32. Layer 0 is the embeddings, `checkpoint.num_layers` the last layer."""
    states = encoder.encode(batch, tuple(layers), max_batch_tokens=MAX_BATCH_TOKENS).states
    return states.unflatten(1, (len(layers), -1))
