"""Attribute predictions to words by integrated gradients over the word embeddings (Sundararajan,
Taly & Yan 2017).

The explained quantity is a log-odds in nats. The baseline is the same text with [MASK] for each of
its wordpieces; special tokens, positions and token types are unchanged. The gradient by each
embedding is integrated along the straight line between both (Gauss-Legendre); its product with the
difference of the embeddings is the attribution of the wordpiece. All attributions add up to the
difference between the log-odds of text and baseline ("completeness"), up to the integration error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from spacy.language import Language
from spacy.tokens import Doc
from thinc.api import Model

from ..encoder.checkpoint import Checkpoint
from ..encoder.encoder import Encoder
from ..encoder.features import mix_of
from ..encoder.listener import BertListener, encoder_model_behind
from ..encoder.model import checkpoint_of, encoder_of, layers_of, pack, shim_of
from ..heads.cloze import PATTERN, pack_cloze
from ..heads.head import BertHead
from ..heads.model import AGGREGATION
from ..heads.pair_head import BertPairHead
from ..text.batch import PackedBatch
from ..text.pairs import Pairs
from .targets import Target, targets_of

STEPS = 50  # forward and backward passes; the paper finds 20 to 300 enough for 5 % (section 5)
Floats = NDArray[np.float64]


class Explanation(NamedTuple):
    """Hold the attributions of a log-odds to the words of a text and of its second text."""

    component: str
    title: str
    score: float  # the log-odds, in nats
    baseline: float  # the log-odds of the text of [MASK] tokens
    words: list[str]  # with trailing white space
    values: Floats  # (num_words,) in nats
    asked: list[str]  # the words of the second text
    asked_values: Floats

    @property
    def error(self) -> float:
        """Return the integration error, the difference to completeness, in nats."""
        total = float(self.values.sum() + self.asked_values.sum())
        return total - (self.score - self.baseline)


def explain(
    nlp: Language, doc: Doc, *, names: Sequence[str] = (), steps: int = STEPS
) -> list[Explanation]:
    """Explain the predictions of a pipeline's heads (or those with `names`) on a Doc that they have
    annotated.

    Raises ValueError if there is no entity, category, verdict or answer to explain.
    """
    found = []
    for name, head in nlp.pipeline:
        if isinstance(head, BertHead) and (not names or name in names):
            for target in targets_of(head, doc):
                found.append(_explain(nlp, head, doc, target, steps))
    if not found:
        raise ValueError(
            "There is no entity, category, verdict or answer of "
            f"{', '.join(names) or 'a head of the pipeline'} to explain. Pass a question or "
            "hypothesis, or another text."
        )
    return found


def _explain(nlp: Language, head: BertHead, doc: Doc, target: Target, steps: int) -> Explanation:
    tok2vec = head.model.layers[0]
    encoder_model = encoder_model_behind(tok2vec, [doc])
    if encoder_model is None:
        raise ValueError(
            f"{head.name} reads '{tok2vec.name}', which is not supported. Leave it out."
        )
    if isinstance(head, BertPairHead):
        batch = head.pack(Pairs([doc], [[target.asked]], head.doc_first)).batch
    elif PATTERN in head.model.attrs:
        batch = pack_cloze(head.model, [doc]).batch
    else:
        batch = pack(encoder_model, [doc])
    run = Run(head, encoder_model, batch)
    values, score, baseline = run.integrate(target, steps)
    words, asked = list(doc), list(nlp.make_doc(target.asked))
    word_of, asked_of = run.locate(words, asked, target.asked)
    return Explanation(
        head.name,
        target.title,
        score,
        baseline,
        [token.text_with_ws for token in words],
        _add_up(values, word_of, len(words)),
        [token.text_with_ws for token in asked],
        _add_up(values, asked_of, len(asked)),
    )


def _add_up(values: Floats, word_of: NDArray[np.int64], num_words: int) -> Floats:
    known = word_of >= 0
    total = np.zeros(num_words)
    np.add.at(total, word_of[known], values[known])
    return total


class Run:
    """Run a text window by window with other word embeddings."""

    def __init__(self, head: BertHead, encoder_model: Model, batch: PackedBatch) -> None:
        self.head, self.batch = head, batch
        self.tok2vec = head.model.layers[0]
        self.encoder: Encoder = encoder_of(encoder_model)
        self.checkpoint: Checkpoint = checkpoint_of(encoder_model)
        self.own_layers = layers_of(encoder_model)
        assert batch.offsets is not None
        self.is_special = batch.offsets.starts < 0
        if isinstance(head, BertPairHead):  # whose second texts have no offsets
            special = self.checkpoint.tokenizer
            ids = [special.prefix, special.suffix, *special.pair[:3]]
            self.is_special = np.isin(batch.input_ids, np.concatenate(ids))

    def integrate(self, target: Target, steps: int) -> tuple[Floats, float, float]:
        """Return the attribution of each position (num_positions,), and the log-odds of text and
        baseline."""
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        embedded, masked = self.embed()
        total = torch.zeros_like(embedded)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            point = (masked + float(node) * (embedded - masked)).requires_grad_()
            # cuDNN has no gradient of an LSTM in eval mode.
            with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
                score = target.score(self.logits(point), self.batch)
                total += float(weight) * torch.autograd.grad(score, point)[0]
        values = ((embedded - masked) * total).sum(1)
        with torch.no_grad():
            ends = [float(target.score(self.logits(at), self.batch)) for at in (embedded, masked)]
        return values.double().cpu().numpy(), ends[0], ends[1]

    def embed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the word embeddings of text and baseline (num_positions, embedding_size)."""
        table = self.encoder.model.get_input_embeddings()
        device = self.encoder.device
        ids = self.batch.input_ids
        blank = np.where(self.is_special, ids, mask_id(self.checkpoint))
        with torch.no_grad():
            embedded, masked = (table(torch.from_numpy(one).to(device)) for one in (ids, blank))
        return embedded.float(), masked.float()

    def logits(self, embedded: torch.Tensor) -> torch.Tensor:
        """Return the head's logits, at its temperature, for word embeddings."""
        bounds = self.batch.cu_seqlens
        one = np.ones(1, dtype=np.int64)
        hidden_states = []
        for window in range(len(bounds) - 1):
            own = embedded[int(bounds[window]) : int(bounds[window + 1])]
            part, _ = self.batch.take_windows(np.asarray([window]), one)
            hidden_states.append(self._encode(part, own))
        module = shim_of(self.head.model).module
        attrs = self.head.model.attrs
        how = {AGGREGATION: attrs[AGGREGATION]} if AGGREGATION in attrs else {}
        return module(torch.cat(hidden_states), self.batch, **how) / self.head.temperature

    def _encode(self, part: PackedBatch, embedded: torch.Tensor) -> torch.Tensor:
        """Return the hidden states of one window that the head reads."""

        def put(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            # After the window there is at most padding.
            return torch.cat([embedded, output[0, len(embedded) :]])[None].to(output.dtype)

        hook = self.encoder.model.get_input_embeddings().register_forward_hook(put)
        try:
            # The budget exceeds the window, so nothing is recomputed.
            budget = 2 * len(embedded) + 64
            return self._read(
                lambda layers: (
                    self.encoder.encode(part, layers, max_batch_tokens=budget, train=True).states
                ),
                self.tok2vec,
            )
        finally:
            hook.remove()

    def _read(
        self, encode: Callable[[tuple[int, ...]], torch.Tensor], tok2vec: Model
    ) -> torch.Tensor:
        """Return the output of the head's input layer for the encoder's hidden states."""
        if tok2vec.name == "layer_features":
            layers = self._layers(tok2vec.layers[0])
            hidden_states = encode(layers).unflatten(1, (len(layers), -1))
            return mix_of(tok2vec)(hidden_states) if tok2vec.shims else hidden_states.sum(1)
        return encode(self._layers(tok2vec))

    def _layers(self, tok2vec: Model) -> tuple[int, ...]:
        if isinstance(tok2vec, BertListener):
            return self.checkpoint.layer_numbers(tok2vec.reads)
        return self.own_layers

    def locate(
        self, words: Sequence[Any], asked: Sequence[Any], asked_text: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the word of each position, and the word of the second text, -1 if there is none
        (num_positions,)."""
        assert self.batch.offsets is not None
        starts = self.batch.offsets.starts
        of_doc = _covering(starts, words)
        of_asked = np.full_like(of_doc, -1)
        at = np.flatnonzero((starts < 0) & ~self.is_special)
        if len(at):
            pieces = self.checkpoint.tokenizer([asked_text])
            of_piece = _covering(pieces.starts, asked)
            of_asked[at] = np.tile(of_piece, len(at) // len(of_piece))
        return of_doc, of_asked


def _covering(starts: NDArray[np.int64], words: Sequence[Any]) -> NDArray[np.int64]:
    """Return the word of each character. White space belongs to the word after it, as in byte-level
    tokenizers; -1 stays -1."""
    begins = np.asarray([word.idx for word in words], dtype=np.int64)
    ends = begins + np.asarray([len(word) for word in words], dtype=np.int64)
    word_of = np.searchsorted(begins, starts, side="right") - 1
    is_between = (word_of >= 0) & (starts >= ends[word_of])
    return np.minimum(word_of + is_between, len(words) - 1)


def mask_id(checkpoint: Checkpoint) -> int:
    """Return the id of the baseline token: [MASK], otherwise the unknown token, otherwise
    padding."""
    for key in ("mask_token", "unk_token"):
        if (found := checkpoint.special_id(key)) is not None:
            return found
    return checkpoint.tokenizer.pad_id
