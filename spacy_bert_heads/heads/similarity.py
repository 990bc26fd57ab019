"""Regression on pairs of texts: how similar they are, or how relevant one is to the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from ..data.records import Settings, check_list, check_text
from ..encoder.model import PackedPairs
from ..text.doc_data import drop_results
from ..text.user_data import copy_of_list, set_value
from .declared import Score, score_weights
from .families import IDENTITY, as_cross_encoder, cross_encoder_activation
from .free_text import read_text
from .nli import DEFAULT_MODEL
from .pair_head import BertPairHead, match_predictions
from .regression import Numbers, NumbersHead, finite, read_numbers, score_numbers

SCORES = {
    "similarity_pearson": Score("similarity, Pearson", 0.5, is_fraction=False),
    "similarity_spearman": Score("similarity, Spearman", 0.5, is_fraction=False),
    "similarity_mse": Score("similarity, mean squared error", is_fraction=False),
    "similarity_per_type": Score("similarity", is_fraction=False),
}


@Language.factory(
    "bert_similarity",
    assigns=["doc._.similarities", "doc._.others"],
    default_config={
        "model": DEFAULT_MODEL,
        "others": [],
        "scorer": {"@scorers": "spacy_bert_heads.similarity_scorer.v1"},
    },
    default_score_weights=score_weights(SCORES),
)
def make_bert_similarity(
    nlp: Language,
    name: str,
    model: Model[PackedPairs, torch.Tensor],
    others: list[str] | str,
    scorer: Callable | None,
) -> "BertSimilarity":
    """Create a component that predicts numbers for pairs of the Doc and each of `doc._.others`.

    others (List[str]): The second texts of Docs that have none in `doc._.others` or in a context of
        `as_tuples`.
    """
    (texts,) = read_text(nlp, name, others=others)
    return BertSimilarity(nlp.vocab, model, name, others=texts, scorer=scorer)


def make_similarity_scorer() -> Callable:
    return score_similarity


def score_similarity(examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
    """Compute the scores of `score_regression` over pairs, without those that were too long to be
    read. Raises ValueError if a predicted Doc lacks texts of its reference."""
    names = BertSimilarity.input_name, BertSimilarity.output_name
    matched = (pair for example in examples for pair in match_predictions(example, *names))
    return score_numbers(((gold, found or {}) for gold, found in matched), "similarity")


class BertSimilarity(NumbersHead, BertPairHead):
    """Write a dict of numbers by label for each of `doc._.others` to `doc._.similarities`; numbers
    of other components stay."""

    factory = "bert_similarity"
    scores = SCORES
    input_name, output_name = "others", "similarities"
    doc_first = True
    json_keys = ("similarities",)
    annotation = "similarities"
    made_by = 'a dict of numbers by label, such as {"score": 4.5}'
    hf_task = "text-classification"
    hf_problem_type = "regression"

    def __init__(
        self,
        vocab: Vocab,
        model: Model[PackedPairs, torch.Tensor],
        name: str = "bert_similarity",
        *,
        others: Sequence[str] = (),
        scorer: Callable | None = score_similarity,
    ) -> None:
        super().__init__(vocab, model, name, texts=others, scorer=scorer)

    @property
    def writes(self) -> set[str]:
        return {f"doc._.{self.output_name}[{label!r}]" for label in self.labels}

    def check_gold(self, example: Example) -> None:
        for text, entry in self.gold_pairs(example):
            where = f" in the gold similarity to '{text}'"
            if not isinstance(entry, dict):
                raise ValueError(f"no {self.made_by}: {entry!r}{where}.")
            for label, value in entry.items():
                finite(label, value, f"{where}. Correct it, or leave the label out.")

    def list_gold(self, examples: Iterable[Example]) -> Iterator[Numbers]:
        for example in examples:
            self.check_gold(example)
            for _, entry in self.training_pairs(example):
                yield {label: float(value) for label, value in entry.items()}

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Settings) -> None:
        """Read a list of `{"text": "…", "score": 4.5}`, or with "scores", by label."""
        texts, entries = [], []
        for one in check_list("similarities", value):
            if not isinstance(one, dict):
                raise ValueError(f"no text with a score: {one!r}")
            texts.append(check_text("text to compare", one.get("text")))
            numbers = one.get("scores", one.get("score"))
            entries.append(None if numbers is None else read_numbers(numbers))
        set_value(cls.input_name, doc, texts)
        set_value(cls.output_name, doc, entries)

    @classmethod
    def count_labels(cls, doc: Doc) -> dict[str, int]:
        counts: dict[str, int] = {}
        for entry in copy_of_list(cls.output_name, doc):
            for label in entry or ():
                counts[label] = counts.get(label, 0) + 1
        return counts

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        is_number = len(names) == 1 and cross_encoder_activation(config) == IDENTITY
        return 3 if is_number else 0

    def hf_settings(self) -> dict[str, Any]:
        return {**super().hf_settings(), **as_cross_encoder(IDENTITY)}

    def read_out(self, output: torch.Tensor) -> Iterator[dict[str, float]]:
        """Yield the numbers of each pair, which are its logits, from (num_pairs, num_labels)."""
        for row in output.tolist():
            yield dict(zip(self.labels, row, strict=True))

    def set_annotations(self, docs: Sequence[Doc], results: list) -> None:
        """Write the numbers; `results` is what `predict` returned."""
        for doc, (texts, numbers) in zip(docs, results, strict=True):
            if not texts:
                drop_results(doc, self.output_name)
                continue
            others = [self._others(one) for one in copy_of_list(self.output_name, doc)]
            if len(others) != len(texts):
                others = [{} for _ in texts]
            pairs = zip(others, numbers, strict=True)
            merged = [{**old, **(new or {})} or None for old, new in pairs]
            set_value(self.output_name, doc, merged)

    def _others(self, entry: dict[str, float] | None) -> dict[str, float]:
        """Return the numbers of an earlier entry that are not this head's."""
        return {label: n for label, n in (entry or {}).items() if label not in self.labels}
