"""What is learned from raw text: masked pieces, and how two segments belong together.

The modules are Hugging Face's own, so that a checkpoint's heads are used where it brings them, and
what is saved loads there again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..encoder.buckets import BucketedBatch
from ..encoder.encoder import Encoder
from ..encoder.loading import load_model
from ..encoder.saved import save_model, write_files
from ..text.arrays import Ints1d
from .examples import PAIRS, Batch
from .masking import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100  # no target
# Families whose Hugging Face class has a head for pairs of segments, and which objective it is.
SENTENCE_HEADS = {"bert": "nsp", "albert": "sop"}


class Totals(NamedTuple):
    """Sums over batches: losses in nats, and what was right."""

    mlm_loss: float
    mlm_right: float
    n_masked: float
    sentence_loss: float
    sentence_right: float
    n_pairs: float


def no_totals(device: torch.device) -> torch.Tensor:
    """RETURNS (Tensor): Sums over nothing, in the order of `Totals`, float64 (6,)."""
    return torch.zeros(len(Totals._fields), dtype=torch.float64, device=device)


class Guess(NamedTuple):
    """A wordpiece, and its probability."""

    text: str
    score: float


# What to call heads by the names of their parameters.
HEAD_PARTS = {
    "sentence head": ("seq_relationship", "sop_classifier"),
    "pooler": ("pooler",),
    "masked-piece head": ("predictions", "lm_head", "vocab_", "generator_", "head.", "decoder."),
}


class Pretrainer(nn.Module):
    """A checkpoint with the heads that pretraining needs.

    model (PreTrainedModel): Hugging Face's class for pretraining, the encoder in it.
    encoder (Encoder): The encoder in it, with its tokenizer.
    has_pairs (bool): Whether pairs of segments are learned. Otherwise the head for them, if the
        class has one, is frozen: it gets no gradient, and must not decay either.
    made (Iterable[str]): The model's parameters that the checkpoint lacks.
    """

    def __init__(
        self, model: PreTrainedModel, encoder: Encoder, *, has_pairs: bool, made: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.model, self.encoder = model, encoder
        self.has_pairs = has_pairs
        self.made = frozenset(made)
        for module in self.sentence_head():
            module.requires_grad_(has_pairs)

    @property
    def new_heads(self) -> list[str]:
        """RETURNS (List[str]): What to call the heads that the checkpoint lacks."""
        return [
            name
            for name, parts in HEAD_PARTS.items()
            if any(part in key for key in self.made for part in parts)
        ]

    def vocabulary(self) -> Vocabulary:
        """RETURNS (Vocabulary): What the examples need of the tokenizer.
        RAISES (ValueError): If it has no mask token.
        """
        checkpoint = self.encoder.checkpoint
        tokenizer, mask_id = checkpoint.tokenizer.tokenizer, checkpoint.mask_id
        if mask_id is None:
            raise ValueError("The tokenizer has no mask token, so no piece can be masked.")
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

    def mlm_logits(self, states: torch.Tensor) -> torch.Tensor:
        """states (Tensor): The states of masked pieces (n, width).
        RETURNS (Tensor): Logits over the vocabulary (n, n_pieces).
        RAISES (ValueError): If the family's head is not known.
        """
        model: Any = self.model
        match model.config.model_type:
            case "albert":
                return model.predictions(states)
            case "distilbert":
                states = model.activation(model.vocab_transform(states))
                return model.vocab_projector(model.vocab_layer_norm(states))
            case "electra":
                return model.generator_lm_head(model.generator_predictions(states))
            case "modernbert":
                return model.decoder(model.head(states))
            case _ if hasattr(model, "lm_head"):  # RoBERTa and its like
                return model.lm_head(states)
            case _ if hasattr(model, "cls"):  # BERT and its like
                return model.cls.predictions(states)
            case family:
                raise ValueError(
                    f'How a "{family}" model predicts masked pieces is not known here. Use BERT, '
                    "RoBERTa, DistilBERT, ALBERT, ELECTRA, MPNet, DeBERTa, ModernBERT or the like."
                )

    def sentence_head(self) -> list[nn.Module]:
        """RETURNS (List[Module]): The pooler and the classifier of pairs, if there are any."""
        model: Any = self.model
        match model.config.model_type:
            case "bert":
                return [model.bert.pooler, model.cls.seq_relationship]
            case "albert":
                return [model.albert.pooler, model.sop_classifier]
            case _:
                return []

    def renew_pooler(self) -> None:
        """Initialise the pooler, which then learns as a new head does.

        It is a part of the head for pairs. A checkpoint without the rest of that head has a pooler
        that was never trained for it; MiniLM's, whose training pooled by the mean, has weights with
        a standard deviation of 0.009, and passes half the gradient of a new one to the encoder.
        """
        pooler = self.sentence_head()[0]
        for name, parameter in pooler.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=self.model.config.initializer_range)
        renewed = {id(parameter) for parameter in pooler.parameters()}
        named = self.model.named_parameters()
        self.made |= {name for name, parameter in named if id(parameter) in renewed}

    def sentence_logits(self, states: torch.Tensor) -> torch.Tensor:
        """states (Tensor): The first state of each pair (n, width).
        RETURNS (Tensor): Logits (n, 2): in order or not.
        """
        model: Any = self.model
        if model.config.model_type == "albert":
            pooled = model.albert.pooler_activation(model.albert.pooler(states))
            return model.sop_classifier(pooled)
        return model.cls.seq_relationship(model.bert.pooler(states.unsqueeze(1)))

    def forward(
        self,
        layout: BucketedBatch,
        masked: torch.Tensor,
        targets: torch.Tensor,
        paired: torch.Tensor,
        labels: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run some buckets. All that learns takes part in it, even where nothing is masked or
        paired: then its gradients are zero.

        layout (BucketedBatch): The sequences.
        masked (Tensor): Where the masked pieces stand, padding counted (n_masked,).
        targets (Tensor): What stood there (n_masked,).
        paired (Tensor): Where the sequences begin that have a label (n_pairs,).
        labels (Tensor): Those (n_pairs,).
        RETURNS: For masked pieces the summed loss and how many are guessed right; the same for
            pairs. Tensors without a shape.
        """
        states = self.encoder.run(layout)
        # Logits only where something is predicted: one in seven of the positions.
        mlm = self._predict(self.mlm_logits, states, masked, targets)
        if not self.has_pairs:
            return *mlm, mlm[1].new_zeros(()), mlm[1].new_zeros(())
        return *mlm, *self._predict(self.sentence_logits, states, paired, labels)

    def _predict(
        self,
        head: Callable[[torch.Tensor], torch.Tensor],
        states: torch.Tensor,
        places: torch.Tensor,
        gold: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of what a head makes of some states, and how many are guessed right."""
        beyond = self.encoder.num_padding(len(places))
        places, gold = F.pad(places, (0, beyond)), F.pad(gold, (0, beyond), value=IGNORED)
        logits = head(states.index_select(0, places))
        loss = F.cross_entropy(logits.float(), gold, reduction="sum", ignore_index=IGNORED)
        return loss, (logits.detach().argmax(-1) == gold).sum()

    def run(
        self,
        batch: Batch,
        *,
        max_batch_tokens: int,
        autocast: torch.autocast,
        scales: tuple[float, float] | None,
    ) -> torch.Tensor:
        """Run a batch part by part, and in training each part's backward pass, so that no more than
        the graph of one part is alive.

        batch (Batch): The batch.
        max_batch_tokens (int): The budget of a part in wordpieces, padding included.
        autocast (torch.autocast): The precision.
        scales (Optional[Tuple[float, float]]): What the summed losses of masked pieces and of pairs
            are multiplied with before the backward pass; None to evaluate.
        RETURNS (Tensor): The sums over the batch in the order of `Totals`, float64 (6,). They stay
            on the device, lest every step wait for it.
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
                mlm_loss, mlm_right, sentence_loss, sentence_right = self(part.layout, *rest)
            if scales:
                (mlm_loss * scales[0] + sentence_loss * scales[1]).backward()
            counts = [mlm_loss.new_full((), len(one)) for one in gold]
            sums = (mlm_loss, mlm_right, counts[0], sentence_loss, sentence_right, counts[1])
            totals += torch.stack([one.detach().double() for one in sums])
        return totals


def fill_mask(pretrainer: Pretrainer, text: str, *, top: int = 5) -> list[list[Guess]]:
    """Guess what stands behind the mask tokens of a text.

    pretrainer (Pretrainer): The modules.
    text (str): A text with mask tokens.
    top (int): How many guesses for each.
    RETURNS (List[List[Guess]]): For each mask token the best guesses, best first.
    RAISES (ValueError): If the text has no mask token, or is longer than the encoder's positions.
    """
    checkpoint, mask_id = pretrainer.encoder.checkpoint, pretrainer.vocabulary().mask_id
    tokenizer = checkpoint.tokenizer
    ids = np.concatenate([tokenizer.prefix, tokenizer([text]).ids, tokenizer.suffix])
    masked = np.flatnonzero(ids == mask_id)
    if not len(masked):
        token = tokenizer.tokenizer.id_to_token(mask_id)
        raise ValueError(f"The text has no {token}. Write it where a piece is to be guessed.")
    if len(ids) > checkpoint.max_window:
        raise ValueError(
            f"The text has {len(ids)} wordpieces; the encoder has positions for "
            f"{checkpoint.max_window}. Shorten it."
        )
    return guess_masked(pretrainer, ids, masked, top=top)


def guess_masked(
    pretrainer: Pretrainer, ids: Ints1d, masked: Ints1d, *, top: int
) -> list[list[Guess]]:
    """Guess the masked pieces of a sequence.

    pretrainer (Pretrainer): The modules.
    ids (Ints1d): The sequence, with special tokens and mask tokens (n_pieces,).
    masked (Ints1d): Where those stand (n_masked,).
    top (int): How many guesses for each.
    RETURNS (List[List[Guess]]): For each mask token the best guesses, best first.
    """
    row = torch.from_numpy(ids)[None].to(next(pretrainer.parameters()).device)
    with torch.no_grad():
        states = pretrainer.encoder(row, torch.zeros_like(row), torch.ones_like(row))[0]
        probabilities = pretrainer.mlm_logits(states[masked]).softmax(-1)
        best = probabilities.topk(min(top, probabilities.shape[1]))
    decode = pretrainer.encoder.checkpoint.tokenizer.tokenizer.decode
    return [
        [Guess(decode([number]).strip(), p) for number, p in zip(numbers, row_p, strict=True)]
        for numbers, row_p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def load_pretrainer(name: str, *, sentence_objective: str | None) -> Pretrainer:
    """Load a checkpoint to continue its pretraining.

    name (str): A hub name or a folder.
    sentence_objective (Optional[str]): "nsp", "sop", or None if no head for it is needed.
    RETURNS (Pretrainer): The modules, with new heads where the checkpoint lacks them.
    RAISES (ValueError): If it can't be loaded, or its family has no head for the objective.
    """
    from transformers import AlbertForPreTraining, AutoModelForMaskedLM, BertForPreTraining
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    def choose_class(config: Any, weights: dict[str, torch.Tensor]) -> Any:
        family = config.model_type
        check_objective(family, sentence_objective)
        if family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            raise ValueError(
                f"'{name}' is a '{family}' model, which has no head for masked pieces."
            )
        own = {"bert": BertForPreTraining, "albert": AlbertForPreTraining}
        return own.get(family, AutoModelForMaskedLM)

    model, checkpoint, missing = load_model(name, choose_class)
    encoder = Encoder(checkpoint)
    has_pairs = sentence_objective in PAIRS
    pretrainer = Pretrainer(model, encoder, has_pairs=has_pairs, made=missing)
    if has_pairs and "sentence head" in pretrainer.new_heads:
        pretrainer.renew_pooler()
    # An unknown head is an error here, not after all text has been tokenized.
    pretrainer.mlm_logits(torch.empty(0, checkpoint.hidden_size))
    return pretrainer


def check_objective(family: str, objective: str | None) -> None:
    """family (str): The model's type, as its config calls it.
    objective (Optional[str]): "nsp", "sop" or None.
    RAISES (ValueError): If the family's class has no head for it.
    """
    has = SENTENCE_HEADS.get(family)
    if objective in PAIRS and has is None:
        raise ValueError(
            f'A "{family}" model has no head for pairs of segments, so it can\'t learn '
            f'"{objective}". Set [objective] sentences = "full-sentences" or "doc-sentences".'
        )


def save_pretrainer(pretrainer: Pretrainer, folder: Path) -> None:
    """Save a Hugging Face folder that `bert_encoder`, `AutoModelForMaskedLM` and
    `BertForPreTraining` load.

    pretrainer (Pretrainer): The modules.
    folder (Path): Where to; it is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_model(pretrainer.model, folder)
    write_files(folder, pretrainer.encoder.checkpoint.tokenizer_files)
