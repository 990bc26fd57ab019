"""Regression: one or several numbers for a whole text, such as ratings, by label."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Model

from ..data.records import check_text
from ..encoder.model import shim_of
from ..pipe_configs import pipe_configs_of
from ..text.doc_data import register_extension
from ..text.user_data import copy_of_dict, get_dict, set_value
from .declared import Score, score_weights
from .head import BertHead
from .losses import mean_over
from .pair_head import start_of
from .pipelines import heads_alike
from .textcat import DEFAULT_MODEL

SCORER = {"@scorers": "spacy_bert_heads.regression_scorer.v1"}
FIGURES = ("mse", "pearson", "spearman")
SCORES = {
    "regression_pearson": Score("regression, Pearson", 0.5, is_fraction=False),
    "regression_spearman": Score("regression, Spearman", 0.5, is_fraction=False),
    "regression_mse": Score("regression, mean squared error", is_fraction=False),
    "regression_per_type": Score("regression", is_fraction=False),
}


@Language.factory(
    "bert_regression",
    assigns=["doc._.regression"],
    default_config={"model": DEFAULT_MODEL, "scorer": SCORER},
    default_score_weights=score_weights(SCORES),
)
def make_bert_regression(
    nlp: Language, name: str, model: Model, scorer: Callable | None
) -> "BertRegression":
    """Create a component that predicts a number for each label."""
    pipe_configs_of(nlp)
    return BertRegression(nlp.vocab, model, name, scorer=scorer)


def make_regression_scorer() -> Callable:
    return score_regression


def score_regression(examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
    """Compute the mean squared error and both correlations of each label, and their means over
    labels. A correlation is None if the gold or the predicted values of the label are all equal."""
    matched = ((gold_values(eg), copy_of_dict("regression", eg.predicted)) for eg in examples)
    return score_numbers(matched, "regression")


Numbers = Mapping[str, float]  # by label


def score_numbers(matched: Iterable[tuple[Numbers, Numbers]], prefix: str) -> dict[str, Any]:
    """Compute the scores of `score_regression` from pairs of gold and predicted numbers. Names of
    scores begin with `prefix`."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for gold, predicted in matched:
        for label, value in gold.items():
            if label in predicted:
                rows.setdefault(label, []).append((value, predicted[label]))
    per_type = {label: compare(*np.asarray(rows[label]).T) for label in sorted(rows)}
    scores: dict[str, Any] = {f"{prefix}_per_type": per_type or None}
    for name in FIGURES:
        known = [figure for row in per_type.values() if (figure := row[name]) is not None]
        scores[f"{prefix}_{name}"] = sum(known) / len(known) if known else None
    return scores


def compare(gold: np.ndarray, guess: np.ndarray) -> dict[str, float | None]:
    figures = dict.fromkeys(FIGURES) | {"mse": float(np.mean((gold - guess) ** 2))}
    if np.ptp(gold) > 0 and np.ptp(guess) > 0:
        figures["pearson"] = float(np.corrcoef(gold, guess)[0, 1])
        figures["spearman"] = float(np.corrcoef(ranks(gold), ranks(guess))[0, 1])
    return figures


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank values from 1; equal ones share the mean of their ranks."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


def gold_values(example: Example) -> dict[str, float]:
    """Return the values of the reference. Raises ValueError if one is not a finite number."""
    doc = example.reference
    where = f" in doc._.regression of {start_of(doc)}. Correct it, or leave the label out."
    return {k: finite(k, v, where) for k, v in copy_of_dict("regression", doc).items()}


def finite(label: str, value: Any, where: str = "") -> float:
    # Values of doc._ can be numpy scalars; bool is a subclass of int, hence type().
    is_number = type(value) in (int, float) or isinstance(value, np.integer | np.floating)
    if is_number and abs(value) < 3.4e38:  # what float32 can hold
        return float(value)
    raise ValueError(f"not a finite number: {label!r} is {value!r}{where}")


def read_numbers(value: Any) -> dict[str, float]:
    """Read the numbers of a JSONL record: a dict by label, or a single number, which gets the label
    "score". null means not annotated. Raises ValueError if one is not a finite number."""
    values = value if isinstance(value, dict) else {"score": value}
    known = {check_text("label", k): v for k, v in values.items() if v is not None}
    return {label: finite(label, v) for label, v in known.items()}


class NumbersHead(BertHead):
    """The base class of heads that predict a number for each label, which is its logit. A subclass
    defines `list_gold`."""

    def list_gold(self, examples: Iterable[Example]) -> Iterable[Numbers]:
        """Yield the gold numbers for each row of the logits."""
        raise NotImplementedError

    def labels_of(self, example: Example) -> Iterable[str]:
        return {label for numbers in self.list_gold([example]) for label in numbers}

    def warn_unknown(self, label: str) -> None:
        """Warn once about a label that no head of this kind in the pipeline has, or may get when it
        is initialized."""
        if not any(label in head.labels or not head.labels for head in heads_alike(self)):
            super().warn_unknown(label)

    def start_from_data(self, examples: Iterable[Example]) -> None:
        gold = self.label_rows(self.list_gold(examples)).astype(np.float64)
        means = np.nansum(gold, axis=0) / np.maximum((~np.isnan(gold)).sum(axis=0), 1)
        # Starting from 0, the first updates would change the encoder just to reach the mean.
        module = shim_of(self.model).module
        module.get_parameter("classifier.bias").data.copy_(torch.from_numpy(means))

    def loss(self, examples: Sequence[Example], output: torch.Tensor) -> torch.Tensor:
        """Compute the mean squared error over the annotated values, from logits (n, num_labels)."""
        gold = torch.from_numpy(self.label_rows(self.list_gold(examples))).to(output.device)
        known = ~gold.isnan()
        return mean_over(((output - gold.nan_to_num()).square() * known).sum(), known.sum())


class BertRegression(NumbersHead):
    """Write a number for each label to `doc._.regression`, a dict."""

    factory = "bert_regression"
    scores = SCORES
    json_keys = ("regression",)
    annotation = "numbers"
    hf_task = "text-classification"
    hf_problem_type = "regression"

    def list_gold(self, examples: Iterable[Example]) -> Iterable[Numbers]:
        return map(gold_values, examples)

    def has_gold(self, example: Example) -> bool:
        """Return whether one of this head's labels has a number; any label, before it has some."""
        found = {*self.labels_of(example)}
        if not self.labels or not found.isdisjoint(self.labels):
            return bool(found)
        for label in found:
            self.warn_unknown(label)
        return False

    def is_judged(self, example: Example) -> bool:
        """Return whether there is any number: heads of this kind share their scores, which are of
        all labels."""
        return self.has_gold(example) or bool(gold_values(example))

    @property
    def writes(self) -> set[str]:
        return {f"doc._.regression[{label!r}]" for label in self.labels}

    @classmethod
    def set_extensions(cls) -> None:
        getter, setter = (partial(function, "regression") for function in (get_dict, set_value))
        register_extension(Doc, "regression", getter=getter, setter=setter)

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Any) -> None:
        set_value("regression", doc, read_numbers(value))

    @classmethod
    def count_labels(cls, doc: Doc) -> dict[str, int]:
        return dict.fromkeys(copy_of_dict("regression", doc), 1)

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        # Hugging Face's loss also treats a single logit without a problem_type as a number.
        single = config.problem_type is None and len(names) == 1
        return 2 if single or config.problem_type == cls.hf_problem_type else 0

    def set_annotations(self, docs: Sequence[Doc], output: torch.Tensor) -> None:
        """Write the logits (num_docs, num_labels); values of other components stay."""
        for doc, row in zip(docs, output.tolist(), strict=True):
            get_dict("regression", doc).update(zip(self.labels, row, strict=True))
