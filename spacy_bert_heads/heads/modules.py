"""The torch modules of heads: hidden states in, logits out."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ..encoder.checkpoint import Checkpoint
from ..text.arrays import Ints1d, ranges
from ..text.batch import PackedBatch


class Dense(nn.Module):
    """The dense layer of a model family between hidden states and classifier: a linear layer, an
    activation, and in ModernBERT a LayerNorm.

    `activation` is the name in Hugging Face's configurations. `width_out` is the width of the
    output, None for that of the input. `dropout` is the probability before the linear layer, `bias`
    whether that has a bias. With `norm_eps` None there is no LayerNorm.
    """

    def __init__(
        self,
        width: int,
        *,
        activation: str,
        width_out: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        norm_eps: float | None = None,
        norm_bias: bool = True,
    ) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, width_out or width, bias=bias)
        self.activation = ACT2FN[activation]
        self.norm = None
        if norm_eps is not None:
            self.norm = nn.LayerNorm(width_out or width, eps=norm_eps, bias=norm_bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map hidden states (n, width) to (n, width_out)."""
        states = self.activation(self.linear(self.dropout(states)))
        return states if self.norm is None else self.norm(states)


class Classifier(nn.Module):
    """The base class of the heads' modules: an optional dense layer, dropout and a linear layer.

    `width` is that of hidden states, `dropout` the probability before the linear layer. `dense` has
    the settings of a `Dense`, None for no dense layer. `settings` of subclasses are saved with the
    weights.
    """

    def __init__(
        self,
        width: int,
        n_classes: int,
        *,
        dropout: float,
        dense: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.settings = {
            "width": width,
            "n_classes": n_classes,
            "dropout": dropout,
            "dense": dense,
            **settings,
        }
        self.dense = None if dense is None else Dense(width, **dense)
        self.dropout = nn.Dropout(dropout)
        read = width if self.dense is None else self.dense.linear.out_features
        self.classifier = nn.Linear(read, n_classes)

    def add_classes(self, number: int, *, std: float) -> None:
        """Append classes. The weights of existing classes stay; those of new ones are initialised
        as in a new head, with standard deviation `std`."""
        old = self.classifier
        new = nn.Linear(old.in_features, old.out_features + number)
        nn.init.normal_(new.weight, std=std)
        nn.init.zeros_(new.bias)
        self.classifier = new.to(old.weight.device)
        copy_corner(old.weight, self.classifier.weight)
        copy_corner(old.bias, self.classifier.bias)
        self.settings["n_classes"] += number

    def classify(self, states: torch.Tensor) -> torch.Tensor:
        """Map hidden states (n, width) to logits (n, num_classes)."""
        if self.dense is not None:
            states = self.dense(states)
        return self.classifier(self.dropout(states))


def copy_corner(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy a tensor into the beginning of a larger one, in each dimension."""
    with torch.no_grad():
        target[tuple(map(slice, source.shape))] = source


class PositionClassifier(Classifier):
    """Classify every position of the batch."""

    def forward(self, states: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Map hidden states (num_positions, width) to logits (num_positions, num_classes)."""
        return self.classify(states)


AGGREGATIONS = ("first", "average", "max", "simple")


class TokenClassifier(Classifier):
    """Classify every token by the hidden state of its first wordpiece.

    With `lstm_width` above 0, two bidirectional LSTM layers of that width per direction run over
    the tokens of each Doc. With `crf` the module has a table of transitions between classes, see
    `heads/crf.py`.
    """

    def __init__(
        self,
        width: int,
        n_classes: int,
        *,
        lstm_width: int = 0,
        crf: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(2 * lstm_width or width, n_classes, **settings)
        self.settings |= {"width": width, "lstm_width": lstm_width}
        self.transitions = None
        if crf:
            self.settings["crf"] = True
            self.transitions = nn.Parameter(torch.zeros(n_classes + 1, n_classes + 1))
        self.lstm = None
        if lstm_width:
            self.lstm = nn.LSTM(
                width, lstm_width, num_layers=2, bidirectional=True, batch_first=True
            )

    def add_classes(self, number: int, *, std: float) -> None:
        super().add_classes(number, std=std)
        if self.transitions is not None:
            old, size = self.transitions, self.settings["n_classes"] + 1
            self.transitions = nn.Parameter(old.new_zeros(size, size))
            copy_corner(old, self.transitions)

    def forward(
        self, states: torch.Tensor, batch: PackedBatch, aggregation: str = "first"
    ) -> torch.Tensor:
        """Map hidden states (num_positions, width) to logits (num_tokens, num_classes). A token
        without wordpieces is classified by zeros.

        `aggregation` is named as in transformers' pipelines: the logits of a token are those of its
        "first" wordpiece, the logarithm of the "average" of its wordpieces' probabilities, or the
        logits of the wordpiece whose best class has the "max" probability. "simple" returns the
        logits of every wordpiece (num_wordpieces, num_classes).
        """
        assert batch.tokens is not None
        if aggregation == "simple" and batch.offsets is not None:
            positions = np.flatnonzero(batch.offsets.is_best)
            return self.classify(states.index_select(0, _to(positions, states)))
        if aggregation in ("average", "max"):
            logits = self.classify(states.index_select(0, _to(batch.tokens.positions, states)))
            return aggregate(logits, batch.tokens.num_wordpieces, aggregation)
        first = batch.tokens.first_positions()
        tokens = states.index_select(0, _to(np.maximum(first, 0), states))
        if (first < 0).any():
            tokens = tokens * _to(first >= 0, states).unsqueeze(1)
        if self.lstm is not None:
            tokens = self._run_lstm(tokens, batch.tokens.num_tokens)
        return self.classify(tokens)

    def _run_lstm(self, tokens: torch.Tensor, lengths: Ints1d) -> torch.Tensor:
        """Run the LSTM over each Doc: (num_tokens, width) to (num_tokens, 2 * lstm_width)."""
        assert self.lstm is not None
        if not len(tokens):  # torch's LSTM needs a row
            return tokens[:, :1].expand(-1, 2 * self.lstm.hidden_size)
        # torch's own functions would first pad every Doc to the longest. A PackedSequence has the
        # first tokens of all Docs, longest Doc first, then the second tokens, and so on.
        place = np.argsort(np.argsort(-lengths, kind="stable"))  # of each Doc
        number = ranges(np.zeros_like(lengths), lengths)  # of each token in its Doc
        sizes = np.bincount(number)  # Docs that have a token of that number
        rows = (np.cumsum(sizes) - sizes)[number] + np.repeat(place, lengths)
        data = self.dropout(tokens).index_select(0, _to(np.argsort(rows), tokens))
        packed, _ = self.lstm(PackedSequence(data, torch.from_numpy(sizes)))
        return packed.data.index_select(0, _to(rows, tokens))


def aggregate(logits: torch.Tensor, num_wordpieces: Ints1d, aggregation: str) -> torch.Tensor:
    """Compute the logits of tokens (num_tokens, num_classes) from those of their wordpieces
    (num_wordpieces, num_classes), token after token; see `TokenClassifier.forward`."""
    number = np.repeat(np.arange(len(num_wordpieces)), num_wordpieces)
    token, n = _to(number, logits), len(num_wordpieces)
    p = logits.softmax(-1)
    if aggregation == "average":
        sums = logits.new_zeros(n, logits.shape[1]).index_add(0, token, p)
        means = sums / _to(np.maximum(num_wordpieces, 1), logits).unsqueeze(1)
        return means.clamp(min=torch.finfo(means.dtype).tiny).log()
    best = p.detach().amax(dim=1)
    of_token = best.new_zeros(n).scatter_reduce(0, token, best, "amax")
    place = torch.arange(len(best), device=best.device)
    place = place.masked_fill(best < of_token[token], len(best))
    first = place.new_full((n,), len(best)).scatter_reduce(0, token, place, "amin")
    padded = torch.cat([logits, logits.new_zeros(1, logits.shape[1])])  # for tokens without any
    return padded.index_select(0, first)


class SequenceClassifier(Classifier):
    """Classify each Doc or pair: the mean logits of its windows, each pooled by `pooling`, which is
    "cls" or "mean"."""

    def __init__(self, width: int, n_classes: int, *, pooling: str, **settings: Any) -> None:
        super().__init__(width, n_classes, pooling=pooling, **settings)
        self.pooling = pooling

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Copy the weights of the checkpoint's pooler, if it has one with the same layers."""
        pooler = getattr(checkpoint.model, "pooler", None)
        layer = getattr(pooler, "dense", pooler)  # ALBERT's is the linear layer itself
        if self.dense is None or not isinstance(layer, nn.Linear):
            return
        if isinstance(self.dense.activation, nn.Tanh):
            self.dense.linear.load_state_dict(layer.state_dict())

    def forward(self, states: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Map hidden states (num_positions, width) to logits (num_texts, num_classes)."""
        if self.pooling == "mean":
            vectors = mean_by_group(states, batch.seqlens)
        elif batch.seqlens.all():
            vectors = states.index_select(0, _to(batch.cu_seqlens[:-1], states))
        else:  # zeros for a Doc without tokens, of which another tok2vec has no vectors
            first = np.where(batch.seqlens > 0, batch.cu_seqlens[:-1], len(states))
            vectors = F.pad(states, (0, 0, 0, 1)).index_select(0, _to(first, states))
        return mean_by_group(self.classify(vectors), batch.num_windows)


class ChoiceClassifier(SequenceClassifier):
    """Classify each pair of a text and an option, with the layers of the family's class for
    multiple choice. It uses the encoder's pooler also where the class for sequences does not."""


class ClozeClassifier(SequenceClassifier):
    """Compare the labels' words where each window of a Doc has the pattern's mask: a head for
    masked words, with a row of its decoder for each label. `mask_id` is the mask's wordpiece;
    `pooling` is "mask", which no head of Hugging Face's has."""

    def __init__(self, width: int, n_classes: int, *, mask_id: int, **settings: Any) -> None:
        super().__init__(width, n_classes, mask_id=mask_id, **settings)
        self.mask_id = mask_id

    def add_classes(self, number: int, *, std: float) -> None:
        raise ValueError(
            "A label of a ClozeHead needs a word. Add it to words of the head's model, and "
            "initialize the pipeline again."
        )

    def forward(self, states: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Hidden states (num_positions, width) to logits (num_texts, n_classes)."""
        assert batch.offsets is not None
        # A mask that is written in the Doc itself has an offset.
        is_mask = (batch.input_ids == self.mask_id) & (batch.offsets.starts < 0)
        vectors = states.index_select(0, _to(np.flatnonzero(is_mask), states))
        return mean_by_group(self.classify(vectors), batch.num_windows)


def mean_by_group(rows: torch.Tensor, sizes: Ints1d) -> torch.Tensor:
    """Average consecutive rows (sum(sizes), width) by group. `sizes` are the numbers of rows of
    each group (num_groups,). Returns (num_groups, width), zeros for a group without rows."""
    if (sizes == 1).all():
        return rows
    groups = _to(np.repeat(np.arange(len(sizes)), sizes), rows)
    sums = torch.zeros(len(sizes), rows.shape[1], device=rows.device, dtype=rows.dtype)
    return sums.index_add(0, groups, rows) / _to(np.maximum(sizes, 1), rows).unsqueeze(1)


def _to(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(array).to(like.device)
