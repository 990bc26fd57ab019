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
from ..encoder.loading import Bert, load_checkpoint
from ..encoder.model import bert_of, run
from ..evaluate import is_pipeline
from ..sequences import make_sequences
from ..types import DocSequences, Sequences

Floats1d = NDArray[np.float64]
Floats2d = NDArray[np.float64]
Floats3d = NDArray[np.float64]

MAX_BATCH_TOKENS = 4096  # wordpieces that are run at once, including padding


class Source(NamedTuple):
    """An encoder, and how it reads Docs."""

    name: str  # as the user gave it
    nlp: Language  # the tokenizer
    bert: Bert
    window: int
    stride: int

    @property
    def depth(self) -> int:
        """The number of layers, without that of the embeddings, which is layer 0."""
        return self.bert.n_layers

    def read(self, docs: Sequence[Doc]) -> DocSequences:
        """Make the windows of Docs of any length."""
        return make_sequences(docs, self.bert.wordpieces, window=self.window, stride=self.stride)


def open_source(name: str, *, encoder: str | None = None, lang: str = "en") -> Source:
    """Load an encoder to look into.

    `name` is a pipeline's folder or package, or a checkpoint's folder or hub name. `encoder` is a
    component's name, for a pipeline with several encoders. `lang` is the language of the tokenizer
    for a checkpoint. Raises ValueError if it can't be loaded, or the encoder is not clear.
    """
    if is_pipeline(name):
        nlp = spacy.load(name)
        found = {key: one for key, one in nlp.components if isinstance(one, BertEncoder)}
        if encoder is None and len(found) == 1:
            (encoder,) = found
        if encoder is None or encoder not in found:
            has = f"has these encoders: {', '.join(found)}" if found else "has no bert_encoder"
            raise ValueError(f"'{name}' {has}. Name one of its own: --encoder NAME.")
        model = found[encoder].model
        return Source(name, nlp, bert_of(model), model.attrs["window"], model.attrs["stride"])
    if encoder is not None:
        raise ValueError(f"'{name}' is no pipeline but a checkpoint: leave --encoder out.")
    bert = load_checkpoint(name)
    window = min(256, bert.max_window)
    return Source(name, spacy.blank(lang), bert, window, max(window * 3 // 4, 1))


def encode_layers(bert: Bert, sequences: Sequences, layers: Sequence[int]) -> torch.Tensor:
    """Return the hidden states of some layers (n_slots, n_layers, width), float32.

    Layer 0 is that of the embeddings, `bert.n_layers` the last one.
    """
    with torch.no_grad():
        states = run(bert, sequences, MAX_BATCH_TOKENS, tuple(layers))
    return states.unflatten(1, (len(layers), bert.width))
