"""The torch modules of heads: what stands between hidden states and logits."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ..encoder.loading import Bert
from ..types import DocSequences, Ints1d, Sequences, ranges


class Dense(nn.Module):
    """What a family has between states and classifier: a linear layer, an activation, and in
    ModernBERT a LayerNorm.

    width (int): The width of the states.
    activation (str): Its name in Hugging Face's configurations.
    dropout (float): The rate before the linear layer.
    bias (bool): Whether that has a bias.
    norm_eps (Optional[float]): Of the LayerNorm; None for none.
    norm_bias (bool): Whether that has a bias.
    """

    def __init__(
        self,
        width: int,
        *,
        activation: str,
        dropout: float = 0.0,
        bias: bool = True,
        norm_eps: float | None = None,
        norm_bias: bool = True,
    ) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, width, bias=bias)
        self.activation = ACT2FN[activation]
        self.norm = None
        if norm_eps is not None:
            self.norm = nn.LayerNorm(width, eps=norm_eps, bias=norm_bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """states (Tensor): (n, width).
        RETURNS (Tensor): (n, width).
        """
        states = self.activation(self.linear(self.dropout(states)))
        return states if self.norm is None else self.norm(states)


class Classifier(nn.Module):
    """Perhaps a dense layer, then dropout and a linear layer, over every state.

    width (int): The width of the states.
    n_classes (int): The number of classes.
    dropout (float): The rate before the linear layer.
    dense (Optional[Dict[str, Any]]): The settings of a `Dense`; None for none.
    settings (Any): Of a subclass, by name.
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
        self.classifier = nn.Linear(width, n_classes)

    def classify(self, states: torch.Tensor) -> torch.Tensor:
        """states (Tensor): (n, width).
        RETURNS (Tensor): Logits (n, n_classes).
        """
        if self.dense is not None:
            states = self.dense(states)
        return self.classifier(self.dropout(states))


class SlotClassifier(Classifier):
    """Classify every slot of the sequences."""

    def forward(self, states: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        """states (Tensor): (n_slots, width).
        sequences (Sequences): Not used.
        RETURNS (Tensor): Logits (n_slots, n_classes).
        """
        return self.classify(states)


class TokenClassifier(Classifier):
    """Classify every token by the state of its first piece, perhaps in the light of those around.

    width (int): The width of the states.
    n_classes (int): The number of classes.
    lstm_width (int): The width, in each direction, of two LSTM layers over the tokens of a Doc;
        0 for none.
    settings (Any): As in `Classifier`.
    """

    def __init__(self, width: int, n_classes: int, *, lstm_width: int = 0, **settings: Any) -> None:
        super().__init__(2 * lstm_width or width, n_classes, **settings)
        self.settings |= {"width": width, "lstm_width": lstm_width}
        self.lstm = None
        if lstm_width:
            self.lstm = nn.LSTM(
                width, lstm_width, num_layers=2, bidirectional=True, batch_first=True
            )

    def forward(self, states: torch.Tensor, sequences: DocSequences) -> torch.Tensor:
        """states (Tensor): (n_slots, width).
        sequences (DocSequences): What they are states of.
        RETURNS (Tensor): Logits (n_tokens, n_classes); of a token without pieces, those of zeros.
        """
        rows = sequences.first_rows()
        tokens = states.index_select(0, _to(np.maximum(rows, 0), states))
        if (rows < 0).any():
            tokens = tokens * _to(rows >= 0, states).unsqueeze(1)
        if self.lstm is not None and len(tokens):
            tokens = self._read_around(tokens, sequences.tokens)
        return self.classify(tokens)

    def _read_around(self, tokens: torch.Tensor, lengths: Ints1d) -> torch.Tensor:
        """Run the LSTM over each Doc: (n_tokens, width) to (n_tokens, 2 * lstm_width)."""
        assert self.lstm is not None
        # Packed by hand: torch's own functions pad every Doc to the longest on the way. Row after
        # row are the first tokens of all Docs, longest first, then the second ones, and so on.
        place = np.argsort(np.argsort(-lengths, kind="stable"))  # of each Doc
        number = ranges(np.zeros_like(lengths), lengths)  # of each token in its Doc
        sizes = np.bincount(number)  # Docs that have a token of that number
        rows = (np.cumsum(sizes) - sizes)[number] + np.repeat(place, lengths)
        data = self.dropout(tokens).index_select(0, _to(np.argsort(rows), tokens))
        packed, _ = self.lstm(PackedSequence(data, torch.from_numpy(sizes)))
        return packed.data.index_select(0, _to(rows, tokens))


class SequenceClassifier(Classifier):
    """Pool the windows of each Doc or pair, and classify those.

    width (int): The width of the states.
    n_classes (int): The number of classes.
    pooling (str): "cls" or "mean".
    settings (Any): As in `Classifier`.
    """

    def __init__(self, width: int, n_classes: int, *, pooling: str, **settings: Any) -> None:
        super().__init__(width, n_classes, pooling=pooling, **settings)
        self.pooling = pooling

    def start_from(self, bert: Bert) -> None:
        """Begin with the checkpoint's pooler, if it has one and this pools so.

        bert (Bert): The checkpoint.
        """
        pooler = getattr(bert.encoder, "pooler", None)
        layer = getattr(pooler, "dense", pooler)  # ALBERT's is the linear layer itself
        if self.dense is None or not isinstance(layer, nn.Linear):
            return
        if isinstance(self.dense.activation, nn.Tanh):
            self.dense.linear.load_state_dict(layer.state_dict())

    def forward(self, states: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        """states (Tensor): (n_slots, width).
        sequences (Sequences): What they are states of.
        RETURNS (Tensor): Logits (n_docs, n_classes), or (n_pairs, n_classes).
        """
        if self.pooling == "mean":
            vectors = mean_by_group(states, sequences.lengths)
        else:
            first = np.cumsum(sequences.lengths) - sequences.lengths
            vectors = states.index_select(0, _to(first, states))
        return mean_by_group(self.classify(vectors), sequences.windows)


def mean_by_group(rows: torch.Tensor, sizes: Ints1d) -> torch.Tensor:
    """Average rows that stand together.

    rows (Tensor): (sum(sizes), width).
    sizes (Ints1d): Rows of each group, at least one (n_groups,).
    RETURNS (Tensor): (n_groups, width).
    """
    if (sizes == 1).all():
        return rows
    groups = _to(np.repeat(np.arange(len(sizes)), sizes), rows)
    sums = torch.zeros(len(sizes), rows.shape[1], device=rows.device, dtype=rows.dtype)
    return sums.index_add(0, groups, rows) / _to(sizes, rows).unsqueeze(1)


def _to(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(array).to(like.device)
