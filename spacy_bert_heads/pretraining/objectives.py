"""What is learned from raw text: masked pieces, and how two segments belong together.

The modules are Hugging Face's own, so that a checkpoint's heads are used where it brings them, and
what is saved loads there again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..encoder.loading import Bert, load_checkpoint
from ..encoder.model import pad
from ..sequences import make_buckets
from .examples import Batch, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Families whose Hugging Face class has a head for pairs of segments, and which objective it is.
SENTENCE_HEADS = {"bert": "nsp", "albert": "sop"}


class Totals(NamedTuple):
    """Sums over a batch: losses in nats, and what was right."""

    mlm_loss: float
    mlm_right: int
    n_masked: int
    sentence_loss: float
    sentence_right: int
    n_pairs: int

    def plus(self, other: Totals) -> Totals:
        """RETURNS (Totals): The sums over both."""
        return Totals._make(a + b for a, b in zip(self, other, strict=True))


class Guess(NamedTuple):
    """A wordpiece, and its probability."""

    text: str
    score: float


NOTHING = Totals(0.0, 0, 0, 0.0, 0, 0)


class Pretrainer(nn.Module):
    """A checkpoint with the heads that pretraining needs.

    model (PreTrainedModel): Hugging Face's class for pretraining, the encoder in it.
    bert (Bert): The same encoder, with its tokenizer.
    """

    def __init__(self, model: PreTrainedModel, bert: Bert) -> None:
        super().__init__()
        self.model = model
        bert.encoder = cast(Any, model.base_model)
        self.bert = bert

    @property
    def sentence_objective(self) -> str | None:
        """RETURNS (Optional[str]): "nsp" or "sop", whichever it has a head for."""
        return SENTENCE_HEADS.get(self.model.config.model_type)

    def vocabulary(self) -> Vocabulary:
        """RETURNS (Vocabulary): What the examples need of the tokenizer.
        RAISES (ValueError): If it has no mask token.
        """
        wordpieces, files = self.bert.wordpieces, self.bert.tokenizer_files
        tokenizer = wordpieces.tokenizer
        mask = json.loads(files.get("tokenizer_config.json", b"{}")).get("mask_token")
        mask_id = tokenizer.token_to_id(mask["content"] if isinstance(mask, dict) else mask or "")
        if mask_id is None:
            raise ValueError("The tokenizer has no mask token, so no piece can be masked.")
        added = tokenizer.get_added_tokens_decoder()
        special = [number for number, token in added.items() if token.special]
        return Vocabulary(
            wordpieces, mask_id, tokenizer.get_vocab_size(), np.asarray(special, dtype=np.int64)
        )

    def mlm_logits(self, states: torch.Tensor) -> torch.Tensor:
        """states (Tensor): The states of masked pieces (n, width).
        RETURNS (Tensor): Logits over the vocabulary (n, n_pieces).
        """
        model: Any = self.model
        match model.config.model_type:
            case "bert":
                return model.cls.predictions(states)
            case "albert":
                return model.predictions(states)
            case "distilbert":
                states = model.activation(model.vocab_transform(states))
                return model.vocab_projector(model.vocab_layer_norm(states))
            case "electra":
                return model.generator_lm_head(model.generator_predictions(states))
            case _:
                return model.lm_head(states)

    def sentence_logits(self, states: torch.Tensor) -> torch.Tensor:
        """states (Tensor): The first state of each pair (n, width).
        RETURNS (Tensor): Logits (n, 2): in order or not.
        """
        model: Any = self.model
        if model.config.model_type == "albert":
            pooled = model.albert.pooler_activation(model.albert.pooler(states))
            return model.sop_classifier(pooled)
        return model.cls.seq_relationship(model.bert.pooler(states.unsqueeze(1)))

    def run(
        self,
        batch: Batch,
        *,
        max_batch_tokens: int,
        autocast: torch.autocast,
        scales: tuple[float, float] | None,
    ) -> Totals:
        """Run a batch bucket by bucket, and in training each bucket's backward pass, so that no
        more than a bucket's graph is alive.

        batch (Batch): The batch.
        max_batch_tokens (int): The budget of a bucket, padding included.
        autocast (torch.autocast): The precision.
        scales (Optional[Tuple[float, float]]): What the summed losses of masked pieces and of pairs
            are multiplied with before the backward pass; None to evaluate.
        RETURNS (Totals): The sums over the batch.
        """
        device = next(self.parameters()).device
        sequences = batch.sequences
        starts = np.cumsum(sequences.lengths) - sequences.lengths
        target = np.full(len(sequences.ids), -1, dtype=np.int64)
        target[batch.masked] = batch.targets
        totals = NOTHING
        for bucket in make_buckets(sequences.lengths, max_tokens=max_batch_tokens):
            lengths = sequences.lengths[bucket]
            inputs, slots, present = pad(sequences, starts[bucket], lengths, self.bert, device)
            places = np.arange(len(slots)) if present is None else present.cpu().numpy()
            masked = np.flatnonzero(target[slots] >= 0)
            labels = batch.labels[bucket]
            paired = np.flatnonzero(labels >= 0)

            def at(numbers: np.ndarray) -> torch.Tensor:
                return torch.from_numpy(numbers).to(device, non_blocking=True)

            with torch.set_grad_enabled(scales is not None), autocast:
                states = self.bert(*inputs)
                flat = states.reshape(-1, states.shape[-1])
                # Logits only where something is predicted: one in seven of the positions.
                logits = self.mlm_logits(flat.index_select(0, at(places[masked]))).float()
                gold = at(target[slots[masked]])
                loss = F.cross_entropy(logits, gold, reduction="sum")
                sums = [loss.detach(), (logits.argmax(-1) == gold).sum()]
                total = loss * scales[0] if scales else loss
                if len(paired):
                    logits = self.sentence_logits(states[at(paired), 0]).float()
                    gold = at(labels[paired])
                    loss = F.cross_entropy(logits, gold, reduction="sum")
                    sums += [loss.detach(), (logits.argmax(-1) == gold).sum()]
                    total = total + loss * scales[1] if scales else total
            if scales:
                total.backward()
            found = [*torch.stack([value.double() for value in sums]).tolist(), 0.0, 0.0]
            totals = totals.plus(
                Totals(found[0], int(found[1]), len(masked), found[2], int(found[3]), len(paired))
            )
        return totals


def fill_mask(pretrainer: Pretrainer, text: str, *, top: int = 5) -> list[list[Guess]]:
    """Guess what stands behind the mask tokens of a text.

    pretrainer (Pretrainer): The modules.
    text (str): A text with mask tokens.
    top (int): How many guesses for each.
    RETURNS (List[List[Guess]]): For each mask token the best guesses, best first.
    RAISES (ValueError): If the text has no mask token, or is longer than the encoder's positions.
    """
    bert, mask_id = pretrainer.bert, pretrainer.vocabulary().mask_id
    wordpieces = bert.wordpieces
    ids = np.concatenate([wordpieces.prefix, wordpieces([text]).ids, wordpieces.suffix])
    masked = np.flatnonzero(ids == mask_id)
    if not len(masked):
        token = wordpieces.tokenizer.id_to_token(mask_id)
        raise ValueError(f"The text has no {token}. Write it where a piece is to be guessed.")
    if len(ids) > bert.max_window:
        raise ValueError(
            f"The text has {len(ids)} wordpieces; the encoder has positions for {bert.max_window}. "
            "Shorten it."
        )
    row = torch.from_numpy(ids)[None].to(next(pretrainer.parameters()).device)
    with torch.no_grad():
        states = bert(row, torch.zeros_like(row), torch.ones_like(row))[0]
        best = pretrainer.mlm_logits(states[masked]).softmax(-1).topk(top)
    decode = wordpieces.tokenizer.decode
    return [
        [Guess(decode([number]).strip(), p) for number, p in zip(numbers, row_p, strict=True)]
        for numbers, row_p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def load_pretrainer(name: str, *, sentence_objective: str | None) -> tuple[Pretrainer, list[str]]:
    """Load a checkpoint to continue its pretraining.

    name (str): A hub name or a folder.
    sentence_objective (Optional[str]): "nsp", "sop", or None if no head for it is needed.
    RETURNS (Tuple[Pretrainer, List[str]]): The modules, and the names of those that the checkpoint
        lacks and that were made anew.
    RAISES (ValueError): If it can't be loaded, or its family has no head for the objective.
    """
    from transformers import AlbertForPreTraining, AutoModelForMaskedLM, BertForPreTraining

    bert = load_checkpoint(name)
    family = bert.config.model_type
    check_objective(family, sentence_objective)
    classes: dict[str, Any] = {"bert": BertForPreTraining, "albert": AlbertForPreTraining}
    model_class = classes.get(family, AutoModelForMaskedLM)
    source = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    try:
        model, info = model_class.from_pretrained(
            source, output_loading_info=True, weights_only=True, trust_remote_code=False
        )
    except ValueError as error:
        raise ValueError(
            f"'{name}' is a '{family}' model, which has no head for masked pieces: {error}"
        ) from error
    return Pretrainer(model.float(), bert), made_anew(info["missing_keys"])


def check_objective(family: str, objective: str | None) -> None:
    """family (str): The model's type, as its config calls it.
    objective (Optional[str]): "nsp", "sop" or None.
    RAISES (ValueError): If the family's class has no head for it.
    """
    has = SENTENCE_HEADS.get(family)
    if objective in ("nsp", "sop") and has is None:
        raise ValueError(
            f'A "{family}" model has no head for pairs of segments, so it can\'t learn '
            f'"{objective}". Set [objective] sentences = "full-sentences" or "doc-sentences".'
        )


def made_anew(missing: list[str]) -> list[str]:
    """missing (List[str]): The parameters that a checkpoint lacks.
    RETURNS (List[str]): What to call the heads that they belong to.
    """
    names = {
        "sentence head": ("seq_relationship", "sop_classifier"),
        "pooler": ("pooler",),
        "masked-piece head": ("predictions", "lm_head", "vocab_", "generator_"),
    }
    return [
        name
        for name, parts in names.items()
        if any(part in key for key in missing for part in parts)
    ]


def save_pretrainer(pretrainer: Pretrainer, folder: Path) -> None:
    """Save a Hugging Face folder that `bert_encoder`, `AutoModelForMaskedLM` and
    `BertForPreTraining` load.

    pretrainer (Pretrainer): The modules.
    folder (Path): Where to; it is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pretrainer.model.save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")
    for name, content in pretrainer.bert.tokenizer_files.items():
        (folder / name).write_bytes(content)
