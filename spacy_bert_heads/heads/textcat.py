"""Categories of a whole text: one of them, or any number."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from ..encoder.listener import DEFAULT_LISTENER
from .head import BertHead, cross_entropy
from .means import mean_over

DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.SequenceHead.v1",
    "pooling": "pooler",
    "dropout": None,
    "rate_factor": 1.0,
    "tok2vec": DEFAULT_LISTENER,
}
SCORES = {
    "cats_score": 1.0,
    "cats_score_desc": None,
    "cats_micro_p": None,
    "cats_micro_r": None,
    "cats_micro_f": None,
    "cats_macro_p": None,
    "cats_macro_r": None,
    "cats_macro_f": None,
    "cats_macro_auc": None,
    "cats_f_per_type": None,
}


@Language.factory(
    "bert_textcat",
    assigns=["doc.cats"],
    default_config={
        "model": DEFAULT_MODEL,
        "class_weights": None,
        "scorer": {"@scorers": "spacy.textcat_scorer.v2"},
    },
    default_score_weights=SCORES,
)
def make_bert_textcat(
    nlp: Language,
    name: str,
    model: Model[list[Doc], torch.Tensor],
    class_weights: dict[str, float] | None,
    scorer: Callable | None,
) -> "BertTextCat":
    """Create a text classifier for categories of which exactly one holds.

    nlp (Language): The pipeline.
    name (str): The component's name.
    model (Model[List[Doc], Tensor]): The sequence head.
    class_weights (Optional[Dict[str, float]]): Weights in the loss, by label; 1 if not named.
    scorer (Optional[Callable]): The scorer.
    """
    return BertTextCat(nlp.vocab, model, name, class_weights=class_weights, scorer=scorer)


@Language.factory(
    "bert_textcat_multilabel",
    assigns=["doc.cats"],
    default_config={
        "model": DEFAULT_MODEL,
        "class_weights": None,
        "threshold": 0.5,
        "scorer": {"@scorers": "spacy.textcat_multilabel_scorer.v2"},
    },
    default_score_weights=SCORES,
)
def make_bert_textcat_multilabel(
    nlp: Language,
    name: str,
    model: Model[list[Doc], torch.Tensor],
    class_weights: dict[str, float] | None,
    threshold: float,
    scorer: Callable | None,
) -> "BertTextCatMultilabel":
    """Create a text classifier for categories of which any number may hold.

    nlp (Language): The pipeline.
    name (str): The component's name.
    model (Model[List[Doc], Tensor]): The sequence head.
    class_weights (Optional[Dict[str, float]]): Weights in the loss, by label; 1 if not named.
    threshold (float): From this probability on, scoring takes a category as given.
    scorer (Optional[Callable]): The scorer.
    """
    return BertTextCatMultilabel(
        nlp.vocab, model, name, class_weights=class_weights, threshold=threshold, scorer=scorer
    )


class BertTextCat(BertHead):
    """Write the probability of each category to `doc.cats`; they sum to 1.

    vocab (Vocab): The vocabulary.
    model (Model[List[Doc], Tensor]): The sequence head.
    name (str): The component's name.
    class_weights (Optional[Dict[str, float]]): Weights in the loss, by label.
    threshold (float): From this probability on, scoring takes a category as given; 0 takes the
        most probable one.
    scorer (Optional[Callable]): The scorer.
    RAISES (ValueError): If a weight or the threshold makes no sense.
    """

    multi_label = False

    def __init__(
        self,
        vocab: Vocab,
        model: Model[list[Doc], torch.Tensor],
        name: str = "bert_textcat",
        *,
        class_weights: dict[str, float] | None = None,
        threshold: float = 0.0,
        scorer: Callable | None = None,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it must be a probability, 0 to 1.")
        super().__init__(
            vocab, model, name, scorer=scorer, class_weights=class_weights, threshold=threshold
        )

    def has_gold(self, example: Example) -> bool:
        return bool(example.reference.cats)

    def labels_of(self, example: Example) -> Iterable[str]:
        return example.reference.cats

    def scorer_settings(self) -> dict[str, Any]:
        return {"labels": self.labels, "threshold": self.cfg["threshold"]}

    def _check_labels(self) -> None:
        super()._check_labels()
        if not self.multi_label and len(self.labels) < 2:
            raise ValueError(
                f"{self.name} chooses one of several categories, but has only "
                f"'{self.labels[0]}'. Name two at least, or use bert_textcat_multilabel."
            )

    def _gold(self, examples: Iterable[Example]) -> np.ndarray:
        """The gold values (n_docs, n_labels), NaN where not annotated."""
        known = set(self.labels)
        rows = []
        for example in examples:
            cats = example.reference.cats
            for label in cats:
                if label not in known:
                    self.warn_unknown(label)
            rows.append([cats.get(label, np.nan) for label in self.labels])
        return np.asarray(rows, dtype=np.float32)

    def loss(self, examples: Sequence[Example], output: torch.Tensor) -> torch.Tensor:
        """Softmax cross-entropy in nats, a mean over the Docs that have a category, weighted as
        torch does. `output` has the logits (n_docs, n_labels)."""
        gold = np.nan_to_num(self._gold(examples), nan=0.0)
        if ((gold > 0.5).sum(axis=1) > 1).any():
            raise ValueError(
                f"{self.name} chooses one category, but a training Doc has several. Fix the data, "
                "or use bert_textcat_multilabel."
            )
        classes = np.where(gold.max(axis=1) > 0, gold.argmax(axis=1), -1)
        return cross_entropy(output, classes, weights=self._weights(output))

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1)

    def set_annotations(self, docs: Sequence[Doc], output: torch.Tensor) -> None:
        """Write the probabilities. `output` has the logits (n_docs, n_labels)."""
        for doc, row in zip(docs, self._probabilities(output).tolist(), strict=True):
            doc.cats.update(zip(self.labels, row, strict=True))


class BertTextCatMultilabel(BertTextCat):
    """Write the probability of each category to `doc.cats`, each for itself.

    vocab (Vocab): The vocabulary.
    model (Model[List[Doc], Tensor]): The sequence head.
    name (str): The component's name.
    class_weights (Optional[Dict[str, float]]): Weights in the loss, by label.
    threshold (float): From this probability on, scoring takes a category as given.
    scorer (Optional[Callable]): The scorer.
    """

    multi_label = True

    def loss(self, examples: Sequence[Example], output: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy in nats, a mean over the annotated values. `output` has the logits
        (n_docs, n_labels)."""
        gold = torch.from_numpy(self._gold(examples)).to(output.device)
        known = ~gold.isnan()
        losses = F.binary_cross_entropy_with_logits(output, gold.nan_to_num(), reduction="none")
        return mean_over((losses * known * self._weights(output)).sum(), known.sum())

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()
