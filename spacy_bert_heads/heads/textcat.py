"""Categories of a whole text: one of them, or any number."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model, get_array_module
from thinc.types import Floats2d

from ..encoder.listener import DEFAULT_LISTENER
from .head import BertHead, cross_entropy, softmax

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
    model: Model[list[Doc], Floats2d],
    class_weights: dict[str, float] | None,
    scorer: Callable | None,
) -> "BertTextCat":
    """Create a text classifier for categories of which exactly one holds.

    nlp (Language): The pipeline.
    name (str): The component's name.
    model (Model[List[Doc], Floats2d]): The sequence head.
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
    model: Model[list[Doc], Floats2d],
    class_weights: dict[str, float] | None,
    threshold: float,
    scorer: Callable | None,
) -> "BertTextCatMultilabel":
    """Create a text classifier for categories of which any number may hold.

    nlp (Language): The pipeline.
    name (str): The component's name.
    model (Model[List[Doc], Floats2d]): The sequence head.
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
    model (Model[List[Doc], Floats2d]): The sequence head.
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
        model: Model[list[Doc], Floats2d],
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

    def get_loss(self, examples: Iterable[Example], scores: Floats2d) -> tuple[float, Any]:
        """Softmax cross-entropy over the Docs that have a category, weighted as torch does.

        examples (Iterable[Example]): The batch.
        scores (Floats2d): Logits (n_docs, n_labels).
        RETURNS (Tuple[float, Floats2d]): The loss in nats, and its gradient by the logits.
        """
        gold = np.nan_to_num(self._gold(examples), nan=0.0)
        if ((gold > 0.5).sum(axis=1) > 1).any():
            raise ValueError(
                f"{self.name} chooses one category, but a training Doc has several. Mend the data, "
                "or use bert_textcat_multilabel."
            )
        classes = np.where(gold.max(axis=1) > 0, gold.argmax(axis=1), -1)
        return cross_entropy(scores, classes, weights=self._weights(scores))

    def _probabilities(self, logits: Any) -> Any:
        return softmax(logits)

    def set_annotations(self, docs: Sequence[Doc], scores: Floats2d) -> None:
        """Write the probabilities.

        docs (Sequence[Doc]): The Docs.
        scores (Floats2d): Logits (n_docs, n_labels).
        """
        for doc, row in zip(docs, self._probabilities(scores).tolist(), strict=True):
            doc.cats.update(zip(self.labels, row, strict=True))


class BertTextCatMultilabel(BertTextCat):
    """Write the probability of each category to `doc.cats`, each for itself.

    vocab (Vocab): The vocabulary.
    model (Model[List[Doc], Floats2d]): The sequence head.
    name (str): The component's name.
    class_weights (Optional[Dict[str, float]]): Weights in the loss, by label.
    threshold (float): From this probability on, scoring takes a category as given.
    scorer (Optional[Callable]): The scorer.
    """

    multi_label = True

    def get_loss(self, examples: Iterable[Example], scores: Floats2d) -> tuple[float, Any]:
        """Binary cross-entropy, averaged over the annotated values as torch does.

        examples (Iterable[Example]): The batch.
        scores (Floats2d): Logits (n_docs, n_labels).
        RETURNS (Tuple[float, Floats2d]): The loss in nats, and its gradient by the logits.
        """
        xp = get_array_module(scores)
        gold = xp.asarray(self._gold(examples))
        known = ~xp.isnan(gold)
        share = known * self._weights(scores) / max(int(known.sum()), 1)
        gold = xp.nan_to_num(gold)
        # log(1 + e^x) - x·gold, in a form that can't overflow
        losses = xp.maximum(scores, 0) - scores * gold + xp.log1p(xp.exp(-xp.abs(scores)))
        return float((share * losses).sum()), share * (self._probabilities(scores) - gold)

    def _probabilities(self, logits: Any) -> Any:
        xp = get_array_module(logits)
        return 1 / (1 + xp.exp(-xp.clip(logits, -80, 80)))
