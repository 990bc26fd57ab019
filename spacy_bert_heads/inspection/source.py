"""The encoder to look into, from a pipeline or a checkpoint."""

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

MAX_BATCH_TOKENS = 4096  # wordpieces that are run at once, including padding


class Source(NamedTuple):
    """An encoder, and how it reads Docs."""

    name: str  # as the user gave it
    nlp: Language  # the tokenizer
    encoder: Encoder
    window: int
    stride: int

    @property
    def depth(self) -> int:
        """The number of layers, without that of the embeddings, which is layer 0."""
        return self.encoder.checkpoint.num_layers

    def pack(self, docs: Sequence[Doc]) -> PackedBatch:
        """Pack Docs of any length."""
        tokenizer = self.encoder.checkpoint.tokenizer
        return pack_docs(docs, tokenizer, window=self.window, stride=self.stride)


def open_source(name: str, *, encoder: str | None = None, lang: str = "en") -> Source:
    """Load an encoder to look into.

    `name` is a pipeline's folder or package, or a checkpoint's folder or hub name. `encoder` is a
    component's name, for a pipeline with several encoders. `lang` is the language of the tokenizer
    for a checkpoint. Raises ValueError if it can't be loaded, or the encoder is not clear.
    """
    if is_pipeline(name):
        nlp = load_pipeline(name)
        found = {key: one for key, one in nlp.components if isinstance(one, BertEncoder)}
        if encoder is None and len(found) == 1:
            (encoder,) = found
        if encoder is None or encoder not in found:
            has = f"has these encoders: {', '.join(found)}" if found else "has no bert_encoder"
            raise ValueError(f"'{name}' {has}. Name one of its own: --encoder NAME.")
        model = found[encoder].model
        return Source(name, nlp, encoder_of(model), model.attrs["window"], model.attrs["stride"])
    if encoder is not None:
        raise ValueError(f"'{name}' is no pipeline but a checkpoint: leave --encoder out.")
    checkpoint = load_checkpoint(name)
    window = min(256, checkpoint.max_window)
    return Source(name, spacy.blank(lang), Encoder(checkpoint), window, max(window * 3 // 4, 1))


def encode_layers(encoder: Encoder, batch: PackedBatch, layers: Sequence[int]) -> torch.Tensor:
    """Compute the hidden states of some layers (num_positions, num_layers, hidden_size), float32.
    Layer 0 is that of the embeddings, `checkpoint.num_layers` the last one."""
    states = encoder.encode(batch, tuple(layers), max_batch_tokens=MAX_BATCH_TOKENS).states
    return states.unflatten(1, (len(layers), -1))
