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

from ..data.annotations import read_labels
from ..data.records import Settings
from ..encoder.listener import DEFAULT_LISTENER
from .declared import HFClasses, Score, check_softmax, score_weights
from .head import BertHead
from .losses import cross_entropy, mean_over

DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.SequenceHead.v1",
    "pooling": "pooler",
    "dropout": None,
    "rate_factor": 1.0,
    "tok2vec": DEFAULT_LISTENER,
}
# Those without a title say at greater length what cats_score says.
SCORES = {
    "cats_score": Score("categories", 1.0),
    "cats_score_desc": Score(),
    "cats_micro_p": Score(),
    "cats_micro_r": Score(),
    "cats_micro_f": Score(),
    "cats_macro_p": Score(),
    "cats_macro_r": Score(),
    "cats_macro_f": Score(),
    "cats_macro_auc": Score(),
    "cats_f_per_type": Score("categories"),
    "cats_auc_per_type": Score("categories, ROC AUC"),
}


@Language.factory(
    "bert_textcat",
    assigns=["doc.cats"],
    default_config={
        "model": DEFAULT_MODEL,
        "class_weights": None,
        "scorer": {"@scorers": "spacy.textcat_scorer.v2"},
    },
    default_score_weights=score_weights(SCORES),
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
    default_score_weights=score_weights(SCORES),
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
    factory = "bert_textcat"
    scores = SCORES
    json_keys = ("label", "labels", "cats")
    hf_task = "text-classification"
    hf_problem_type = "single_label_classification"

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

    def labels_of(self, example: Example) -> Iterable[str]:
        return example.reference.cats

    @property
    def writes(self) -> set[str]:
        return {f"doc.cats[{label!r}]" for label in self.labels}

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Settings) -> None:
        doc.cats = read_labels(value, settings)

    @classmethod
    def count_labels(cls, doc: Doc) -> dict[str, int]:
        return {label: int(value >= 0.5) for label, value in doc.cats.items()}

    def data_checks(self) -> list:
        from ..checks.heads import check_category_values, check_exclusive

        checks = [*super().data_checks(), (check_category_values, "all values are 0 or 1")]
        one = (check_exclusive, "each annotated Doc has one category")
        return checks if self.multi_label else [*checks, one]

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        return int(config.problem_type in (None, cls.hf_problem_type) and len(names) > 1)

    @classmethod
    def read_hf(cls, config: Any, names: Sequence[str], checkpoint: str) -> HFClasses:
        if not cls.multi_label:
            check_softmax(names, checkpoint)
        return super().read_hf(config, names, checkpoint)

    def scorer_settings(self) -> dict[str, Any]:
        return {"labels": self.labels, "threshold": self.cfg["threshold"]}

    def check_labels(self) -> None:
        super().check_labels()
        if not self.multi_label and len(self.labels) < 2:
            raise ValueError(
                f"{self.name} chooses one of several categories, but has only "
                f"'{self.labels[0]}'. Name two at least, or use bert_textcat_multilabel."
            )

    def loss(self, examples: Sequence[Example], output: torch.Tensor) -> torch.Tensor:
        """Softmax cross-entropy in nats, a mean over the Docs that have a category, weighted as
        torch does. `output` has the logits (n_docs, n_labels)."""
        gold = np.nan_to_num(self.label_rows(eg.reference.cats for eg in examples), nan=0.0)
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
    factory = "bert_textcat_multilabel"
    hf_problem_type = "multi_label_classification"

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        return 2 if config.problem_type == cls.hf_problem_type else 0

    def loss(self, examples: Sequence[Example], output: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy in nats, a mean over the annotated values. `output` has the logits
        (n_docs, n_labels)."""
        rows = self.label_rows(eg.reference.cats for eg in examples)
        gold = torch.from_numpy(rows).to(output.device)
        known = ~gold.isnan()
        losses = F.binary_cross_entropy_with_logits(output, gold.nan_to_num(), reduction="none")
        return mean_over((losses * known * self._weights(output)).sum(), known.sum())

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()
