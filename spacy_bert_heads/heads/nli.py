"""Classification of pairs of texts: natural language inference, paraphrases, relevance, or any
other labels. With a single label: whether it holds."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from ..data.annotations import read_hypotheses
from ..data.records import Settings
from ..encoder.listener import DEFAULT_LISTENER
from ..encoder.model import PackedPairs, shim_of
from ..text.doc_data import drop_results, make_verdict
from ..text.pairs import Pairs
from ..text.user_data import copy_of_list, set_value
from .claims import Claim, claim_verdicts
from .declared import Score, score_weights
from .families import IDENTITY, SIGMOID, as_cross_encoder, cross_encoder_activation
from .free_text import read_text
from .imitation import binary_divergence, divergence
from .layers import MAX_WINDOWS
from .losses import cross_entropy, mean_over
from .pair_head import MAX_CHARS, BertPairHead
from .tallies import Counts, Floats, precision_recall_f, ratio
from .verdicts import LEFT_OUT, NONE, match_labels, score_nli, with_none

SOFTMAXES = ("labels", "contradiction", "categories")
DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.PairHead.v1",
    "pooling": "pooler",
    "dropout": None,
    "max_windows": MAX_WINDOWS,
    "learning_rate_multiplier": 1.0,
    "tok2vec": DEFAULT_LISTENER,
}
SCORES = {
    "nli_acc": Score("NLI accuracy", 1.0),
    "nli_macro_f": Score("NLI macro F"),
    "nli_f_per_type": Score("NLI"),
}


@Language.factory(
    "bert_nli",
    assigns=["doc._.nli", "doc._.hypotheses", "doc.cats"],
    default_config={
        "model": DEFAULT_MODEL,
        "hypotheses": [],
        "categories": {},
        "category_softmax": "labels",
        "class_weights": None,
        "temperature": None,
        "thresholds": None,
        "scorer": {"@scorers": "spacy_bert_heads.nli_scorer.v1"},
    },
    default_score_weights=score_weights(SCORES),
)
def make_bert_nli(
    nlp: Language,
    name: str,
    model: Model[PackedPairs, torch.Tensor],
    hypotheses: list[str] | str,
    categories: dict[str, str] | str,
    category_softmax: str,
    class_weights: dict[str, float] | str | None,
    temperature: float | None,
    thresholds: dict[str, float] | str | None,
    scorer: Callable | None,
) -> "BertNLI":
    """Create a component that classifies pairs of the Doc, the premise, and each hypothesis; or any
    second texts by any labels.

    Several labels have a softmax. A single one, such as the relevance of a passage in a
    cross-encoder, has a sigmoid: name it under [initialize.components]; gold verdicts with other
    labels then mean that it does not hold.

    hypotheses (List[str]): The hypotheses for Docs that have none in `doc._.hypotheses` or in a
        context of `as_tuples`.
    categories (Dict[str, str]): A hypothesis for each category. The probability that the Doc
        entails it is written to `doc.cats`.
    category_softmax (str): The softmax of that probability. "labels": entailment among all labels.
        "contradiction": entailment and contradiction, for each category alone, as Hugging Face's
        `multi_label=True`. "categories": the entailment logits of all categories, so that they sum
        to 1, as `multi_label=False`; a single category would always get 1, so it uses
        "contradiction". In a config file, texts and keys with special characters must be JSON in a
        string, see `as_setting`.
    class_weights (Optional[Dict[str, float]]): Weights in the loss by label, 1 by default.
    temperature (Optional[float]): Logits are divided by it. None takes that of `bert calibrate`.
    thresholds (Optional[Dict[str, float]]): By label: a verdict that is less probable than its
        threshold gets the label "".
    """
    own_texts, texts_of, weights, by_label = read_text(
        nlp,
        name,
        hypotheses=hypotheses,
        categories=categories,
        class_weights=class_weights,
        thresholds=thresholds,
    )
    return BertNLI(
        nlp.vocab,
        model,
        name,
        hypotheses=own_texts,
        categories=texts_of,
        category_softmax=category_softmax,
        class_weights=weights,
        temperature=temperature,
        thresholds=by_label,
        scorer=scorer,
    )


def is_entailment(label: str) -> bool:
    return label.lower().startswith("entail")


def make_nli_scorer() -> Callable:
    return score_nli


class Judged(NamedTuple):
    """The prediction for one pair."""

    verdict: dict[str, Any]
    logits: torch.Tensor  # (n_labels,)


class BertNLI(BertPairHead):
    """Write a verdict for each of `doc._.hypotheses` to `doc._.nli`. The settings are those of
    `make_bert_nli`; an invalid value raises ValueError."""

    factory = "bert_nli"
    scores = SCORES
    input_name, output_name = "hypotheses", "nli"
    doc_first = True
    json_keys = ("hypotheses",)
    annotation = "verdicts"
    made_by = "made with spacy_bert_heads.pairs.make_verdict"
    hf_task = "text-classification"
    hf_problem_type = "single_label_classification"

    def __init__(
        self,
        vocab: Vocab,
        model: Model[PackedPairs, torch.Tensor],
        name: str = "bert_nli",
        *,
        hypotheses: Sequence[str] = (),
        categories: dict[str, str] | None = None,
        category_softmax: str = "labels",
        class_weights: dict[str, float] | None = None,
        scorer: Callable | None = score_nli,
        **calibration: Any,
    ) -> None:
        if category_softmax not in SOFTMAXES:
            raise ValueError(
                f"category_softmax of {name} is {category_softmax!r}; choose one of: "
                f"{', '.join(SOFTMAXES)}."
            )
        self.categories = dict(categories or {})
        self.category_softmax = category_softmax
        super().__init__(
            vocab,
            model,
            name,
            texts=hypotheses,
            extra=self.check_asked(list(self.categories.values()), "the config's 'categories'"),
            class_weights=class_weights,
            scorer=scorer,
            **calibration,
        )

    @property
    def writes(self) -> set[str]:
        return super().writes | {f"doc.cats[{label!r}]" for label in self.categories}

    def add_label(self, label: str) -> int:
        if len(self.labels) == 1 and label not in self.labels and shim_of(self.model).has_module:
            raise ValueError(
                f"{self.name} has a single logit, which says whether '{self.labels[0]}' holds; "
                f"'{label}' can't be added to that. Train a new head with all labels."
            )
        return super().add_label(label)

    def check_gold(self, example: Example) -> None:
        for text, entry in self.gold_pairs(example):
            label = entry.get("label") if isinstance(entry, dict) else None
            if not label or not isinstance(label, str):
                raise ValueError(
                    f"The gold verdict on '{text}' has no label: {entry!r}. Make verdicts with "
                    "spacy_bert_heads.pairs.make_verdict(label)."
                )

    def labels_of(self, example: Example) -> Iterable[str]:
        self.check_gold(example)
        return {entry["label"] for _, entry in self.gold_pairs(example)}

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Settings) -> None:
        for name, entries in zip(("hypotheses", "nli"), read_hypotheses(value), strict=True):
            set_value(name, doc, entries)

    @classmethod
    def count_labels(cls, doc: Doc) -> dict[str, int]:
        verdicts = copy_of_list(cls.output_name, doc)
        return Counter(verdict["label"] for verdict in verdicts if verdict is not None)

    def start_from_data(self, examples: Iterable[Example]) -> None:
        """Raise ValueError if there is only one label and it holds for every pair."""
        labels = {label for example in examples for label in self.labels_of(example)}
        if len(self.labels) == 1 and labels == {*self.labels}:
            raise ValueError(
                f"{self.name} learns to tell labels apart, but the training data has only "
                f"'{self.labels[0]}'. Also annotate pairs for which it does not hold."
            )

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        activation = cross_encoder_activation(config)
        if activation is not None:
            return 3 if len(names) > 1 or activation == SIGMOID else 0
        single = config.problem_type in (None, cls.hf_problem_type)
        return 2 if single and any(map(is_entailment, names)) else 0

    def hf_settings(self) -> dict[str, Any]:
        if len(self.labels) > 1:
            return {**super().hf_settings(), **as_cross_encoder(IDENTITY)}
        # For this problem_type transformers uses a binary cross-entropy, as for a sigmoid.
        return {"problem_type": "multi_label_classification", **as_cross_encoder(SIGMOID)}

    def scorer_settings(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def decisions(self, example: Example) -> list[tuple[str, str]]:
        return [*match_labels(example, self.labels, (self.input_name, self.output_name))]

    @classmethod
    def scores_of(cls, counts: Counts) -> dict[str, Floats]:
        tp, fp, fn = counts["tp"], counts["fp"], counts["fn"]
        f = precision_recall_f(tp, fp, fn)[2]
        return {
            "nli_acc": ratio(tp.sum(axis=-1), (tp + fn).sum(axis=-1)),
            "nli_macro_f": ratio(np.nansum(f, axis=-1), (~np.isnan(f)).sum(axis=-1)),
        }

    def imitation_loss(self, output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (divergence if len(self.labels) > 1 else binary_divergence)(output, wanted)

    def loss(self, examples: Sequence[Example], output: torch.Tensor) -> torch.Tensor:
        """Compute the cross-entropy in nats from logits (num_pairs, num_labels): softmax, or binary
        for a single label. It is a mean over the annotated pairs; class weights are applied as in
        torch's cross_entropy."""
        number = {label: i for i, label in enumerate(self.labels)}
        labels = [entry["label"] for eg in examples for _, entry in self.training_pairs(eg)]
        if len(number) == 1:
            holds = output.new_tensor([float(label in number) for label in labels])
            losses = F.binary_cross_entropy_with_logits(output[:, 0], holds, reduction="sum")
            return mean_over(losses, len(labels))
        for label in labels:
            if label not in number:
                self.warn_unknown(label)
        classes = np.asarray([number.get(label, -1) for label in labels], dtype=np.int64)
        return cross_entropy(output, classes, weights=self._weights(output))

    def read_out(self, output: torch.Tensor) -> Iterable[Judged]:
        """Yield the prediction for each pair, from logits (num_pairs, num_labels)."""
        labels, output = self.labels, output / self.temperature
        p = output.sigmoid() if len(labels) == 1 else output.softmax(-1)
        for row, logits in zip(p.tolist(), output.float().cpu(), strict=True):
            probabilities = dict(zip(labels, row, strict=True))
            label = max(labels, key=probabilities.__getitem__)
            if len(labels) == 1 and row[0] < 0.5:
                label = NONE
            yield Judged(make_verdict(label, probabilities), logits)

    def set_annotations(self, docs: Sequence[Doc], results: list) -> None:
        """Write the verdicts and the probabilities of categories; `results` is what `predict`
        returned."""
        for doc, (texts, judged) in zip(docs, results, strict=True):
            n_own = len(texts) - len(self.extra)
            left_out: list[dict[str, Any]] = []
            if n_own:
                own = zip(texts[:n_own], judged, strict=False)
                verdicts = [one and self._decide(one, text, left_out) for text, one in own]
                set_value("nli", doc, verdicts)
            else:
                drop_results(doc, self.output_name)
            self.note_abstained(doc, left_out)
            if self.categories:
                logits = torch.stack([one.logits for one in judged[n_own:]])
                scores = self._category_scores(logits, self.category_softmax).tolist()
                doc.cats.update(zip(self.categories, scores, strict=True))

    def _decide(self, judged: Judged, asked: str, left_out: list) -> dict[str, Any]:
        """Return the verdict. If it is below its threshold, return one without a label and append
        the prediction to `left_out`."""
        label, scores = judged.verdict["label"], judged.verdict["scores"]
        p = with_none(scores)[label]
        if self.reaches_threshold(label, p):
            return judged.verdict
        left_out.append({"label": label, "score": p, "asked": asked})
        return make_verdict(LEFT_OUT, scores)

    def claims(self, examples: Sequence[Example], output: list) -> Iterator[Claim]:
        for example in examples:
            yield from claim_verdicts(example, self.labels, (self.input_name, self.output_name))

    def classify(
        self, docs: Sequence[Doc], asked: Sequence[tuple[Mapping[str, str], str | None]]
    ) -> list[dict[str, float]]:
        """Classify each Doc by categories of its own, without writing to it: zero-shot
        classification (Yin et al. 2019, section 5).

        `asked` has two things for each Doc: a dict from category to hypothesis, not empty, and a
        `category_softmax`, see `make_bert_nli`; None takes the component's. Returns the
        probabilities of each Doc by category. Raises TextTooLong if a hypothesis does not fit into
        a window.
        """
        texts = [list(categories.values()) for categories, _ in asked]
        parts = Pairs(list(docs), texts, self.doc_first).split(MAX_CHARS)
        judged = chain.from_iterable(
            self.read_out(self.model.predict(self.pack(part))) for part in parts
        )
        found = []
        for categories, softmax in asked:
            logits = torch.stack([one.logits for one in islice(judged, len(categories))])
            scores = self._category_scores(logits, softmax or self.category_softmax)
            found.append(dict(zip(categories, scores.tolist(), strict=True)))
        return found

    def _category_scores(self, logits: torch.Tensor, softmax: str) -> torch.Tensor:
        """Compute the probability of each category (num_categories,), from the logits of their
        hypotheses (num_categories, num_labels)."""
        entailment = self.labels.index(self.entailment)
        if len(self.labels) == 1:
            return logits[:, 0].sigmoid()
        if softmax == "labels":
            return logits.softmax(-1)[:, entailment]
        if softmax == "categories" and len(logits) > 1:
            return logits[:, entailment].softmax(0)
        both = [entailment, self.labels.index(self.contradiction)]
        return logits[:, both].softmax(-1)[:, 0]

    @property
    def entailment(self) -> str:
        """The label for hypotheses that follow from the premise. Raises ValueError if no label
        begins with "entail"."""
        return self._find_label("entail", "entailment")

    @property
    def contradiction(self) -> str:
        """The label for hypotheses that the premise contradicts; of two labels the one that is not
        entailment. Raises ValueError if there is none."""
        if len(self.labels) == 2:
            return next(label for label in self.labels if label != self.entailment)
        return self._find_label("contradict", "contradiction")

    def _find_label(self, beginning: str, name: str) -> str:
        for label in self.labels:
            if label.lower().startswith(beginning):
                return label
        raise ValueError(
            f"{self.name} has categories, but none of its labels is called {name}: "
            f"{', '.join(self.labels)}. Train it with that label, or leave categories out."
        )

    @property
    def threshold_labels(self) -> tuple[str, ...]:
        return (*self.labels, NONE) if len(self.labels) == 1 else self.labels

    def check_labels(self) -> None:
        super().check_labels()
        if len(self.labels) == 1 and self.cfg["class_weights"]:
            raise ValueError(
                f"{self.name} has class_weights, which weight labels against each other, but only "
                f"the label '{self.labels[0]}'. Remove class_weights."
            )
        if self.categories:
            _ = self.entailment  # raises
            if self.category_softmax != "labels" and len(self.labels) > 1:
                _ = self.contradiction
