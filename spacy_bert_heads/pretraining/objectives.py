"""Pretraining objectives: masked-language modelling (MLM), and the order of two segments.

The modules are Hugging Face's own, so a checkpoint's heads are used if it has them, and the saved
checkpoint can be loaded by transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..encoder.buckets import BucketedBatch
from ..encoder.encoder import Encoder
from ..encoder.hidden_states import HiddenStates
from ..encoder.loading import load_model
from ..encoder.saved import save_model, write_files
from ..heads.decoder import Decoder
from ..heads.losses import summed_cross_entropy
from ..text.arrays import Ints1d
from .denoising import DECODER, DamagedPart, find_damaged
from .examples import PAIRS, Batch
from .masking import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Families whose Hugging Face class has a head for pairs of segments, with its objective.
SENTENCE_HEADS = {"bert": "nsp", "albert": "sop"}


class Totals(NamedTuple):
    """Hold sums over batches: losses in nats, and counts of correct predictions."""

    mlm_loss: float
    mlm_right: float
    n_masked: float
    sentence_loss: float
    sentence_right: float
    n_pairs: float
    denoising_loss: float
    denoising_right: float
    n_restored: float


def no_totals(device: torch.device) -> torch.Tensor:
    """Return zero sums in the order of `Totals`, float64 (6,)."""
    return torch.zeros(len(Totals._fields), dtype=torch.float64, device=device)


class Guess(NamedTuple):
    """Hold a predicted wordpiece and its probability."""

    text: str
    score: float


# Names of heads for messages, by the names of their parameters.
HEAD_PARTS = {
    "sentence head": ("seq_relationship", "sop_classifier"),
    "pooler": ("pooler",),
    "masked-LM head": ("predictions", "lm_head", "vocab_", "generator_", "head.", "decoder."),
}


class Pretrainer(nn.Module):
    """Combine a checkpoint with the heads that pretraining needs.

    `model` is an instance of Hugging Face's pretraining class, `encoder` the encoder in it with its
    tokenizer. If `has_pairs` is false, the head for pairs of segments, if there is one, is frozen,
    without `has_masks` the masked-LM head: it gets no gradient, and must not get weight decay
    either. `decoder` restores damaged texts. `new_parameters` are the names of the parameters that
    the checkpoint lacks, `untrained` those of them in a frozen head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        *,
        has_pairs: bool,
        has_masks: bool = True,
        decoder: Decoder | None = None,
        new_parameters: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.model, self.encoder, self.decoder = model, encoder, decoder
        self.has_pairs = has_pairs
        self.new_parameters = frozenset(new_parameters)
        for module in self.sentence_head():
            module.requires_grad_(has_pairs)
        if not has_masks:
            for name, parameter in model.named_parameters():
                if any(part in name for part in HEAD_PARTS["masked-LM head"]):
                    parameter.requires_grad_(False)
        named = model.named_parameters(remove_duplicate=False)  # all names of tied ones
        self.untrained = self.new_parameters & {k for k, one in named if not one.requires_grad}

    @property
    def new_heads(self) -> list[str]:
        """Return the names of the heads that the checkpoint lacks."""
        of_model = [key for key in self.new_parameters if not key.startswith("decoder.model.")]
        return [
            name
            for name, parts in HEAD_PARTS.items()
            if any(part in key for key in of_model for part in parts)
        ]

    @property
    def parts(self) -> nn.ModuleDict:
        """The modules whose weights are trained and saved; the encoder is in the model."""
        own = {"model": self.model}
        return nn.ModuleDict(own if self.decoder is None else own | {"decoder": self.decoder})

    def is_new(self, name: str) -> bool:
        """Return whether the checkpoint lacks the parameter of `parts` with this name."""
        return name.removeprefix("model.") in self.new_parameters

    def vocabulary(self) -> Vocabulary:
        """Return what the examples need from the tokenizer. Raises ValueError if it has no mask
        token."""
        checkpoint = self.encoder.checkpoint
        tokenizer, mask_id = checkpoint.tokenizer.tokenizer, checkpoint.mask_id
        if mask_id is None:
            raise ValueError(
                "The tokenizer has no mask token. Use a checkpoint with one for pretraining."
            )
        added = tokenizer.get_added_tokens_decoder()
        wordpieces = checkpoint.tokenizer
        around = [wordpieces.prefix, wordpieces.suffix, *wordpieces.pair[:3]]
        special = [number for number, token in added.items() if token.special]
        return Vocabulary(
            wordpieces,
            mask_id,
            max(tokenizer.get_vocab().values()) + 1,  # ids can have gaps
            np.unique(np.concatenate([*around, np.asarray(special, dtype=np.int64)])),
        )

    def mlm_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits over the vocabulary (n, vocab_size) for the hidden states of masked
        positions (n, hidden_size). Raises ValueError for an unknown model family."""
        model: Any = self.model
        match model.config.model_type:
            case "albert":
                return model.predictions(hidden_states)
            case "distilbert":
                hidden_states = model.activation(model.vocab_transform(hidden_states))
                return model.vocab_projector(model.vocab_layer_norm(hidden_states))
            case "electra":
                return model.generator_lm_head(model.generator_predictions(hidden_states))
            case "modernbert":
                return model.decoder(model.head(hidden_states))
            case _ if hasattr(model, "lm_head"):  # RoBERTa and similar
                return model.lm_head(hidden_states)
            case _ if hasattr(model, "cls"):  # BERT and similar
                return model.cls.predictions(hidden_states)
            case family:
                raise ValueError(
                    f'The masked-LM head of a "{family}" model is not supported. Use BERT, '
                    "RoBERTa, DistilBERT, ALBERT, ELECTRA, MPNet, DeBERTa, ModernBERT or similar."
                )

    def sentence_head(self) -> list[nn.Module]:
        """Return the pooler and the classifier of pairs, [] if the model has none."""
        model: Any = self.model
        match model.config.model_type:
            case "bert":
                return [model.bert.pooler, model.cls.seq_relationship]
            case "albert":
                return [model.albert.pooler, model.sop_classifier]
            case _:
                return []

    def renew_pooler(self) -> None:
        """Initialise the pooler randomly; it is then trained like a new head.

        The pooler is part of the head for pairs. In a checkpoint without the rest of that head it
        was never trained for it. MiniLM, for example, was trained with mean pooling: its pooler has
        weights with a standard deviation of 0.009, and passes half the gradient of a new pooler to
        the encoder.
        """
        pooler = self.sentence_head()[0]
        for name, parameter in pooler.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=self.model.config.initializer_range)
        renewed = {id(parameter) for parameter in pooler.parameters()}
        named = self.model.named_parameters()
        self.new_parameters |= {name for name, parameter in named if id(parameter) in renewed}

    def sentence_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits (n, 2), true or not, for the first hidden state of each pair
        (n, hidden_size)."""
        model: Any = self.model
        if model.config.model_type == "albert":
            pooled = model.albert.pooler_activation(model.albert.pooler(hidden_states))
            return model.sop_classifier(pooled)
        return model.cls.seq_relationship(model.bert.pooler(hidden_states.unsqueeze(1)))

    def forward(
        self,
        layout: BucketedBatch,
        masked: torch.Tensor,
        targets: torch.Tensor,
        paired: torch.Tensor,
        labels: torch.Tensor,
        damaged: DamagedPart | None = None,
    ) -> list[torch.Tensor]:
        """Return the summed loss and the number of correct predictions for masked positions, and
        the same for pairs and for restored wordpieces: six scalar tensors.

        `masked` (n_masked,) are the masked positions including padding, `targets` (n_masked,) their
        original ids. `paired` (n_pairs,) are the first positions of sequences with a label,
        `labels` (n_pairs,) these labels. All trainable modules take part even if nothing is masked
        or paired; their gradients are zero then. A decoder without damaged texts has none.
        """
        hidden_states = self.encoder.run(layout)
        # Logits only for predicted positions, one in seven.
        found = [*self._predict(self.mlm_logits, hidden_states, masked, targets)]
        none = [found[1].new_zeros(()), found[1].new_zeros(())]
        found += none
        if self.has_pairs:
            found[2:] = self._predict(self.sentence_logits, hidden_states, paired, labels)
        if damaged is None:
            return found + none
        assert self.decoder is not None
        states = hidden_states.index_select(0, damaged.places)
        logits, gold = self.decoder(HiddenStates(states, damaged.batch), damaged.restored)
        gold_ids = torch.from_numpy(gold).to(logits.device)
        return found + [*summed_cross_entropy(logits, gold_ids)]

    def _predict(
        self,
        head: Callable[[torch.Tensor], torch.Tensor],
        hidden_states: torch.Tensor,
        places: torch.Tensor,
        gold: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss and the number of correct predictions of a head at some
        positions."""
        beyond = self.encoder.num_padding(len(places))
        places, gold = F.pad(places, (0, beyond)), F.pad(gold, (0, beyond), value=-1)
        return summed_cross_entropy(head(hidden_states.index_select(0, places)), gold)

    def run(
        self,
        batch: Batch,
        *,
        max_batch_tokens: int,
        autocast: torch.autocast,
        scales: Sequence[float] | None,
    ) -> torch.Tensor:
        """Run a batch part by part, and return its sums in the order of `Totals`, float64 (9,).

        In training, each part's backward pass follows its forward pass, so only one part's graph is
        in memory. `max_batch_tokens` is the budget of a part in wordpieces, padding included.
        `scales` are the factors of the summed losses of masked positions, pairs and restored
        wordpieces before the backward pass; None for evaluation. The result stays on the
        device, so that a step doesn't wait for it.
        """
        device = next(self.parameters()).device
        packed = batch.packed
        target = np.full(len(packed.input_ids), -1, dtype=np.int64)
        target[batch.masked] = batch.targets
        totals = no_totals(device)
        for part in self.encoder.lay_out(packed, max_batch_tokens):
            masked = np.flatnonzero(target[part.positions] >= 0)
            lengths, labels = packed.seqlens[part.members], batch.labels[part.members]
            paired = (np.cumsum(lengths) - lengths)[labels >= 0]
            gold = target[part.positions[masked]], labels[labels >= 0]
            arrays = (part.places[masked], gold[0], part.places[paired], gold[1])
            rest = [torch.from_numpy(one).to(device, non_blocking=True) for one in arrays]
            with torch.set_grad_enabled(scales is not None), autocast:
                damaged = find_damaged(batch, part, device)
                sums = self(part.layout, *rest, damaged)
            if scales:
                losses = zip(sums[::2], scales, strict=True)
                sum(
                    (loss * scale for loss, scale in losses), torch.zeros((), device=device)
                ).backward()
            restored = damaged.restored if damaged else []
            counts = [*map(len, gold), sum(len(ids) + 1 for ids in restored)]
            rows = zip(sums[::2], sums[1::2], counts, strict=True)
            totals += torch.stack(
                [
                    one.detach().double()
                    for loss, right, count in rows
                    for one in (loss, right, loss.new_full((), count))
                ]
            )
        return totals


def fill_mask(pretrainer: Pretrainer, text: str, *, top: int = 5) -> list[list[Guess]]:
    """Return the `top` most probable wordpieces for each mask token of a text, best first.

    Raises ValueError if the text has no mask token, or is longer than the encoder's positions.
    """
    checkpoint, mask_id = pretrainer.encoder.checkpoint, pretrainer.vocabulary().mask_id
    tokenizer = checkpoint.tokenizer
    ids = np.concatenate([tokenizer.prefix, tokenizer([text]).ids, tokenizer.suffix])
    masked = np.flatnonzero(ids == mask_id)
    if not len(masked):
        token = tokenizer.tokenizer.id_to_token(mask_id)
        raise ValueError(f"The text has no {token}. Put it where a wordpiece is to be predicted.")
    if len(ids) > checkpoint.max_window:
        raise ValueError(
            f"The text has {len(ids)} wordpieces; the encoder has positions for "
            f"{checkpoint.max_window}. Shorten it."
        )
    return guess_masked(pretrainer, ids, masked, top=top)


def guess_masked(
    pretrainer: Pretrainer, ids: Ints1d, masked: Ints1d, *, top: int
) -> list[list[Guess]]:
    """Return the `top` most probable wordpieces for each masked position of a sequence, best first.

    `ids` (n_positions,) includes special tokens and mask tokens; `masked` (n_masked,) are the
    positions of the mask tokens.
    """
    row = torch.from_numpy(ids)[None].to(next(pretrainer.parameters()).device)
    with torch.no_grad():
        hidden_states = pretrainer.encoder(row, torch.zeros_like(row), torch.ones_like(row))[0]
        probabilities = pretrainer.mlm_logits(hidden_states[masked]).softmax(-1)
        best = probabilities.topk(min(top, probabilities.shape[1]))
    decode = pretrainer.encoder.checkpoint.tokenizer.tokenizer.decode
    return [
        [Guess(decode([number]).strip(), p) for number, p in zip(numbers, row_p, strict=True)]
        for numbers, row_p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def load_pretrainer(
    name: str, *, sentence_objective: str | None, has_masks: bool = True
) -> Pretrainer:
    """Load a checkpoint for pretraining, with new heads if the checkpoint lacks them.

    `name` is a hub name or a folder. `sentence_objective` is "nsp", "sop", or None if no head for
    pairs is needed; without `has_masks` none for masked words is trained. Raises ValueError if the
    checkpoint can't be loaded, or its family has no head for the objective.
    """
    from transformers import AlbertForPreTraining, AutoModelForMaskedLM, BertForPreTraining
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    def choose_class(config: Any, weights: dict[str, torch.Tensor]) -> Any:
        family = config.model_type
        check_objective(family, sentence_objective)
        if family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            raise ValueError(
                f"'{name}' is a '{family}' model, which has no masked-LM head. Use a BERT-like "
                "model."
            )
        own = {"bert": BertForPreTraining, "albert": AlbertForPreTraining}
        return own.get(family, AutoModelForMaskedLM)

    model, checkpoint, missing = load_model(name, choose_class)
    encoder = Encoder(checkpoint)
    has_pairs = sentence_objective in PAIRS
    pretrainer = Pretrainer(
        model, encoder, has_pairs=has_pairs, has_masks=has_masks, new_parameters=missing
    )
    if has_pairs and "sentence head" in pretrainer.new_heads:
        pretrainer.renew_pooler()
    # Report an unknown head now, not after all text has been tokenized.
    pretrainer.mlm_logits(torch.empty(0, checkpoint.hidden_size))
    return pretrainer


def check_objective(family: str, objective: str | None) -> None:
    """Raise ValueError if a model family has no head for the objective ("nsp" or "sop")."""
    has = SENTENCE_HEADS.get(family)
    if objective in PAIRS and has is None:
        raise ValueError(
            f'A "{family}" model has no head for pairs of segments, so it can\'t learn '
            f'"{objective}". Set [objective] sentences = "full-sentences" or "doc-sentences".'
        )


def save_pretrainer(pretrainer: Pretrainer, folder: Path) -> None:
    """Save a Hugging Face folder that `bert_encoder`, `AutoModelForMaskedLM` and
    `BertForPreTraining` can load. The folder is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    # A new head that was not trained must not be saved, or it would look like a trained one.
    state = pretrainer.model.state_dict()
    trained = {name: one for name, one in state.items() if name not in pretrainer.untrained}
    save_model(pretrainer.model, folder, trained)
    if pretrainer.decoder is not None:
        (folder / DECODER).mkdir(exist_ok=True)
        save_model(pretrainer.decoder.model, folder / DECODER)
    write_files(folder, pretrainer.encoder.checkpoint.tokenizer_files)
