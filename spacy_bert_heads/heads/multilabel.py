"""Text classification with any number of categories for each text."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Model

from ..text.doc_data import get_abstained
from .calibrated import rescale
from .categories import SCORES
from .claims import Claim, claim_categories
from .declared import score_weights
from .head import BertHead
from .losses import mean_over
from .textcat import DEFAULT_MODEL, BertTextCat


@Language.factory(
    "bert_textcat_multilabel",
    assigns=["doc.cats"],
    default_config={
        "model": DEFAULT_MODEL,
        "class_weights": None,
        "threshold": 0.5,
        "temperature": None,
        "thresholds": None,
        "scorer": {"@scorers": "spacy.textcat_multilabel_scorer.v2"},
    },
    default_score_weights=score_weights(SCORES),
)
def make_bert_textcat_multilabel(
    nlp: Language,
    name: str,
    model: Model[list[Doc], torch.Tensor],
    class_weights: dict[str, float] | str | None,
    threshold: float,
    temperature: float | None,
    thresholds: dict[str, float] | str | None,
    scorer: Callable | None,
) -> "BertTextCatMultilabel":
    """Create a text classifier for categories that don't exclude each other.

    class_weights (Optional[Dict[str, float]]): Weights in the loss by label, 1 by default.
    threshold (float): Scoring counts a category as predicted from this probability on.
    temperature (Optional[float]): Logits are divided by it. None takes that of `bert calibrate`.
    thresholds (Optional[Dict[str, float]]): By label: predicted categories that are less probable
        than this are removed from `doc.cats`.
    """
    return BertTextCatMultilabel.for_pipeline(
        nlp,
        name,
        model,
        class_weights=class_weights,
        threshold=threshold,
        temperature=temperature,
        thresholds=thresholds,
        scorer=scorer,
    )


class BertTextCatMultilabel(BertTextCat):
    """Write the probability of each category to `doc.cats`, independent of the others. The settings
    are those of `make_bert_textcat_multilabel`."""

    multi_label = True
    factory = "bert_textcat_multilabel"
    scores = SCORES
    hf_problem_type = "multi_label_classification"

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        return 2 if config.problem_type == cls.hf_problem_type else 0

    def loss(self, examples: Sequence[Example], output: torch.Tensor) -> torch.Tensor:
        """Compute the binary cross-entropy in nats, a mean over the annotated values."""
        gold = torch.from_numpy(self._gold(examples)).to(output.device)
        known = ~gold.isnan()
        losses = F.binary_cross_entropy_with_logits(output, gold.nan_to_num(), reduction="none")
        return mean_over((losses * known * self._weights(output)).sum(), known.sum())

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()

    def given(self, cats: Mapping[str, float]) -> list[str]:
        return [label for label in self.labels if cats[label] >= self.cfg["threshold"]]

    def set_temperature(self, temperature: float) -> None:
        factor = self.temperature / temperature
        super().set_temperature(temperature)
        self.cfg["threshold"] = rescale(self.cfg["threshold"], factor)

    def claims(self, examples: Sequence[Example], output: torch.Tensor) -> Iterator[Claim]:
        for example in examples:
            yield from claim_categories(example, self.labels, self.cfg["threshold"])

    def score_alone(self, examples: list[Example], **kwargs: Any) -> dict[str, Any]:
        """Score this head without the pipeline's other text classifiers. A gold value counts from
        0.5 on. The areas under curves are of all probabilities, also of predictions that were left
        out because they are below their thresholds. Their mean is over the categories for which
        they are defined: those that hold for some Docs and not for others."""
        score, gold = BertHead.score, {id(example.reference) for example in examples}

        def read(doc: Doc, attr: str, *, with_abstained: bool = False) -> dict[str, float]:
            if id(doc) in gold:
                return {label: float(value >= 0.5) for label, value in doc.cats.items()}
            own = [entry for entry in get_abstained(doc) if entry["component"] == self.name]
            left_out = {entry["label"]: entry["score"] for entry in own if with_abstained}
            return {**doc.cats, **left_out}

        found = score(self, examples, getter=read, **kwargs)
        if found and self.may_abstain:
            whole = score(self, examples, getter=partial(read, with_abstained=True), **kwargs)
            found |= {key: value for key, value in whole.items() if "auc" in key}
        if by_label := found.get("cats_auc_per_type"):
            known = [value for value in by_label.values() if value is not None]
            macro = sum(known) / len(known) if known else None
            found |= {"cats_macro_auc": macro, "cats_score": macro}
        return found

    def truths(self, example: Example) -> Mapping[str, float]:
        cats = example.reference.cats
        return Counter(label for label in self.labels if cats.get(label, 0.0) >= 0.5)
