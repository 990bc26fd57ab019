"""Text classification with exactly one category for each text; `multilabel.py` has the head for any
number of them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example, validate_get_examples
from spacy.vocab import Vocab
from thinc.api import Model

from ..data.annotations import read_labels
from ..data.records import Settings
from ..encoder.listener import DEFAULT_LISTENER
from .calibrated import check_probability
from .categories import (
    EXCLUSIVE_SCORES,
    check_apart,
    check_positive,
    check_values,
    classifiers,
    decide,
    distribution_of,
    may_have,
    score_beside,
    score_exclusive,
)
from .claims import Claim, claim_category
from .cloze import labels_with_words
from .declared import HFClasses, check_softmax, score_weights
from .free_text import parse_labels
from .head import BertHead
from .imitation import binary_divergence, divergence
from .layers import MAX_WINDOWS
from .losses import mean_over
from .negations import check_label_smoothing
from .tallies import Counts, Floats, Tally, precision_recall_f, ratio

DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.SequenceHead.v1",
    "pooling": "pooler",
    "dropout": None,
    "max_windows": MAX_WINDOWS,
    "learning_rate_multiplier": 1.0,
    "tok2vec": DEFAULT_LISTENER,
}


@Language.factory(
    "bert_textcat",
    assigns=["doc.cats"],
    default_config={
        "model": DEFAULT_MODEL,
        "class_weights": None,
        "label_smoothing": 0.0,
        "temperature": None,
        "thresholds": None,
        "scorer": {"@scorers": "spacy.textcat_scorer.v2"},
    },
    default_score_weights=score_weights(EXCLUSIVE_SCORES),
)
def make_bert_textcat(
    nlp: Language,
    name: str,
    model: Model[list[Doc], torch.Tensor],
    class_weights: dict[str, float] | str | None,
    label_smoothing: float,
    temperature: float | None,
    thresholds: dict[str, float] | str | None,
    scorer: Callable | None,
) -> "BertTextCat":
    """Create a text classifier for mutually exclusive categories.

    [initialize.components] takes `positive_label`, one of two labels, as for spaCy's `textcat`:
    `cats_score` is then the F score of that label.

    class_weights (Optional[Dict[str, float]]): Weights in the loss by label, 1 by default. In a
        config file a dict whose keys have other characters than letters, digits, spaces, "_" and
        "-" must be JSON in a string, see `as_setting`.
    label_smoothing (float): The part of the target probability that is spread evenly over all
        categories, as in torch's cross_entropy; 0 for none.
    temperature (Optional[float]): Logits are divided by it. None takes that of `bert calibrate`.
    thresholds (Optional[Dict[str, float]]): By label: if the most probable category is less
        probable than its threshold, no category is written.
    """
    return BertTextCat.for_pipeline(
        nlp,
        name,
        model,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
        temperature=temperature,
        thresholds=thresholds,
        scorer=scorer,
    )


class BertTextCat(BertHead):
    """Write the probability of each category to `doc.cats`; they sum to 1. The settings are those
    of `make_bert_textcat`. Scoring counts a category as predicted from `threshold` on; with 0 it
    counts the most probable one. Raises ValueError if a setting is out of its range."""

    multi_label = False
    factory = "bert_textcat"
    scores = EXCLUSIVE_SCORES
    json_keys = ("label", "labels", "cats")
    annotation = "categories"
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
        label_smoothing: float = 0.0,
        scorer: Callable | None = None,
        **calibration: Any,
    ) -> None:
        check_probability("threshold", threshold)
        super().__init__(
            vocab,
            model,
            name,
            scorer=scorer,
            class_weights=class_weights,
            threshold=threshold,
            label_smoothing=check_label_smoothing(label_smoothing),
            **calibration,
        )

    def has_gold(self, example: Example) -> bool:
        """Return whether one of this head's categories is annotated, if they are exclusive whether
        one holds; any category, before the head has labels. Warns about categories that no text
        classifier of the pipeline has."""
        cats = example.reference.cats
        if not self.labels:
            return bool(cats)
        values = {label: cats[label] for label in self.labels if label in cats}
        for label in () if values else cats:
            self.warn_unknown(label)
        return bool(values if self.multi_label else distribution_of(values))

    def is_judged(self, example: Example) -> bool:
        return self.has_gold(example) or bool(self.decisions(example))

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
        from ..checks.heads import check_category_values, check_contradictions, check_exclusive

        checks = [
            *super().data_checks(),
            (check_category_values, "all values are 0 or 1"),
            (check_contradictions, "no text has different categories in several Docs"),
        ]
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

    def _check_values(self, example: Example, labels: Collection[str] | None) -> None:
        check_values(example.reference, labels, self.name, exclusive=not self.multi_label)

    def warn_unknown(self, label: str) -> None:
        if may_have(self, label):
            super().warn_unknown(label)

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        labels: Sequence[str] | str | None = None,
        positive_label: str | None = None,
    ) -> None:
        """Collect the labels and make the weights, as `BertHead.initialize` does.

        `positive_label` is for two exclusive categories: `cats_score` is then its F score instead
        of the macro F. Also raises ValueError if a value of `doc.cats` is not from 0 to 1, or if
        another text classifier has the same label.
        """
        validate_get_examples(get_examples, f"{type(self).__name__}.initialize")
        labels = labels_with_words(self, parse_labels(nlp, self.name, labels))
        known = None if labels is None else {*labels, *self.labels}
        for example in get_examples():
            self._check_values(example, known)
        super().initialize(get_examples, nlp=nlp, labels=labels)
        check_positive(positive_label, self.labels, self.name, exclusive=not self.multi_label)
        self.cfg["positive_label"] = positive_label

    def check_beside(self, nlp: Language) -> None:
        check_apart(self, classifiers(self))
        super().check_beside(nlp)

    def add_label(self, label: str) -> int:
        is_new = super().add_label(label)
        if is_new and self.cfg.get("positive_label") is not None:
            self.cfg["positive_label"] = None  # defined for two labels only
        return is_new

    def scorer_settings(self) -> dict[str, Any]:
        return {
            "labels": self.labels,
            "threshold": self.cfg["threshold"],
            "positive_label": self.cfg.get("positive_label"),
        }

    def decisions(self, example: Example) -> list[tuple[str, str]]:
        return [] if self.multi_label else decide(self, example)

    def tally(self, example: Example) -> Tally:
        """Count the decisions by label. Gold categories that the head does not have are "unknown",
        without a label."""
        own, others = {}, 0.0
        for label, row in super().tally(example).items():
            if label in self.labels:
                own[label] = row
            else:
                others += row["fn"]
        return own | ({"": {"tp": 0, "fp": 0, "fn": 0, "unknown": others}} if others else {})

    @classmethod
    def scores_of(cls, counts: Counts) -> dict[str, Floats]:
        tp, fp, fn = (counts[kind] for kind in ("tp", "fp", "fn"))
        f = precision_recall_f(tp, fp, fn)[2]
        # Labels that only this sample lacks are left out, others count as 0, as for spaCy's scorer.
        is_left_out = np.isnan(f) & counts["occurs"]
        total = tp + fn + counts.get("unknown", 0)
        return {
            "cats_score": ratio(np.nansum(f, axis=-1), (~is_left_out).sum(axis=-1)),
            "cats_acc": ratio(tp.sum(axis=-1), total.sum(axis=-1)),
        }

    def check_labels(self) -> None:
        super().check_labels()
        if not self.multi_label and len(self.labels) < 2:
            raise ValueError(
                f"{self.name} chooses one of several categories, but has only "
                f"'{self.labels[0]}'. Annotate at least two, or use bert_textcat_multilabel."
            )

    def _gold(self, examples: Sequence[Example]) -> np.ndarray:
        """Return the gold values (num_docs, num_labels), NaN where not annotated. Raises ValueError
        if one is not from 0 to 1."""
        for example in examples:
            self._check_values(example, self.labels)
        return self.label_rows(eg.reference.cats for eg in examples)

    def imitation_loss(self, output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (binary_divergence if self.multi_label else divergence)(output, wanted)

    def loss(self, examples: Sequence[Example], output: torch.Tensor) -> torch.Tensor:
        """Compute the softmax cross-entropy in nats from logits (num_docs, num_labels), a mean over
        the Docs that have a category; see `distribution_of` for gold values between 0 and 1. Class
        weights are applied as in torch's cross_entropy."""
        gold = [
            distribution_of({k: v for k, v in zip(self.labels, row, strict=True) if v == v})
            for row in self._gold(examples).tolist()
        ]
        known = torch.tensor([i for i, row in enumerate(gold) if row], device=output.device)
        rows = [[row.get(label, 0.0) for label in self.labels] for row in gold if row]
        targets = output.new_tensor(rows).reshape(-1, len(self.labels))
        weights, smoothing = self._weights(output), self.cfg["label_smoothing"]
        total = F.cross_entropy(
            output[known.long()], targets, weights, reduction="sum", label_smoothing=smoothing
        )
        return mean_over(total, (targets * weights).sum())

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1)

    def set_annotations(self, docs: Sequence[Doc], output: torch.Tensor) -> None:
        """Write the probabilities, from logits (num_docs, num_labels)."""
        check_apart(self, classifiers(self, docs[0].vocab if docs else None))
        rows = self._probabilities(output / self.temperature).tolist()
        for doc, row in zip(docs, rows, strict=True):
            doc.cats.update(zip(self.labels, row, strict=True))
            self._abstain(doc)

    def _abstain(self, doc: Doc) -> None:
        """Remove predicted categories below their thresholds; all, if they are exclusive."""
        given = self.given(doc.cats) if self.may_abstain else []
        unsure = [label for label in given if not self.reaches_threshold(label, doc.cats[label])]
        self.note_abstained(doc, [{"label": one, "score": doc.cats[one]} for one in unsure])
        for label in unsure if self.multi_label or not unsure else self.labels:
            del doc.cats[label]

    def given(self, cats: Mapping[str, float]) -> list[str]:
        """List the categories that count as predicted, from the probabilities of all."""
        return [max(self.labels, key=cats.__getitem__)]

    def claims(self, examples: Sequence[Example], output: torch.Tensor) -> Iterator[Claim]:
        for example in examples:
            for true, _ in self.decisions(example):
                yield claim_category(example, self.labels, true)

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Score the examples that are annotated for this head.

        Adds `cats_acc` to spaCy's scores if categories are exclusive: the accuracy over Docs with a
        gold category. With several text classifiers in the pipeline, `cats_…` are the means of
        their scores and `<component>_cats_…` the scores of this one. Raises ValueError if a gold
        value is not from 0 to 1.
        """
        examples = list(examples)
        for example in examples:
            self._check_values(example, self.labels)
        own = self.score_alone(examples, **kwargs)
        return score_beside(self, own, examples)

    def score_alone(self, examples: list[Example], **kwargs: Any) -> dict[str, Any]:
        """Score this head without the pipeline's other text classifiers."""
        score = super().score
        return score_exclusive(self, lambda decided: score(decided, **kwargs), examples)
