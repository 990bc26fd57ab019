"""Whether a text entails a hypothesis, contradicts it, or neither."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from spacy.language import Language
from spacy.scorer import PRFScore
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from ..data.annotations import read_hypotheses
from ..data.records import Settings
from ..encoder.listener import DEFAULT_LISTENER
from ..encoder.model import PackedPairs
from ..text.doc_data import check_texts, drop_results, make_verdict
from ..text.pairs import Pairs
from ..text.user_data import copy_of_list, set_value
from .declared import HFClasses, Score, check_softmax, score_weights
from .free_text import read_text
from .layers import MAX_WINDOWS
from .losses import cross_entropy
from .pair_head import MAX_CHARS, BertPairHead, match_predictions
from .tallies import Counts, Floats, precision_recall_f, ratio

SOFTMAXES = ("labels", "contradiction", "categories")
DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.PairHead.v1",
    "pooling": "pooler",
    "dropout": None,
    "max_windows": MAX_WINDOWS,
    "rate_factor": 1.0,
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
    scorer: Callable | None,
) -> "BertNLI":
    """Create a component that judges hypotheses by the Doc, their premise.

    nlp (Language): The pipeline.
    name (str): The component's name.
    model (Model[Pairs, Tensor]): The pair head.
    hypotheses (List[str]): What to ask of Docs that bring no hypotheses of their own, in
        `doc._.hypotheses` or in a context of `as_tuples`.
    categories (Dict[str, str]): A hypothesis for each category; the probability that the Doc
        entails it is written to `doc.cats`.
    category_softmax (str): What that probability is among. "labels": entailment among all labels.
        "contradiction": entailment against contradiction, each category by itself, as with
        Hugging Face's `multi_label=True`. "categories": the logits of entailment of all categories,
        so that they add up to 1, as with `multi_label=False`; of one category alone that would
        always be 1, so it is weighed against contradiction.
        In a config file these settings stand as JSON in a string if they have characters that mean
        something there, see `as_setting`.
    class_weights (Optional[Dict[str, float]]): Weights in the loss, by label; 1 if not named.
    scorer (Optional[Callable]): The scorer.
    """
    own_texts, texts_of, weights = read_text(
        nlp, name, hypotheses=hypotheses, categories=categories, class_weights=class_weights
    )
    return BertNLI(
        nlp.vocab,
        model,
        name,
        hypotheses=own_texts,
        categories=texts_of,
        category_softmax=category_softmax,
        class_weights=weights,
        scorer=scorer,
    )


def is_entailment(label: str) -> bool:
    return label.lower().startswith("entail")


def make_nli_scorer() -> Callable:
    """RETURNS (Callable): The scorer."""
    return score_nli


def score_nli(examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
    """Score verdicts.

    examples (Iterable[Example]): The examples.
    RETURNS (Dict[str, Any]): `nli_acc`, the accuracy; `nli_macro_f`, the mean over the labels that
        occur of `nli_f_per_type`, their precision, recall and F; None without any verdict.
    RAISES (ValueError): If a reference has hypotheses that were not asked of the prediction.
    """
    per_type: dict[str, PRFScore] = {}
    right = total = 0
    for example in examples:
        for gold, predicted in match_predictions(example, "hypotheses", "nli"):
            total += 1
            true, guess = gold["label"], predicted["label"] if predicted else None
            right += true == guess
            for label in {true, guess} - {None}:
                score = per_type.setdefault(label, PRFScore())
                score.tp += label == true == guess
                score.fp += label == guess != true
                score.fn += label == true != guess
    if not total:
        return {"nli_acc": None, "nli_macro_f": None, "nli_f_per_type": None}
    return {
        "nli_acc": right / total,
        "nli_macro_f": sum(score.fscore for score in per_type.values()) / len(per_type),
        "nli_f_per_type": {label: per_type[label].to_dict() for label in sorted(per_type)},
    }


class Judged(NamedTuple):
    """What a pair came to."""

    verdict: dict[str, Any]
    logits: torch.Tensor  # (n_labels,)


class BertNLI(BertPairHead):
    """Write a verdict for each of `doc._.hypotheses` to `doc._.nli`.

    vocab (Vocab): The vocabulary.
    model (Model[Pairs, Tensor]): The pair head.
    name (str): The component's name.
    hypotheses (Sequence[str]): What to ask of Docs that bring no hypotheses of their own.
    categories (Optional[Dict[str, str]]): A hypothesis for each category of `doc.cats`.
    category_softmax (str): "labels", "contradiction" or "categories", see `make_bert_nli`.
    class_weights (Optional[Dict[str, float]]): Weights in the loss, by label; 1 if not named.
    scorer (Optional[Callable]): The scorer.
    RAISES (ValueError): If a setting makes no sense.
    """

    factory = "bert_nli"
    scores = SCORES
    input_name, output_name = "hypotheses", "nli"
    doc_first = True
    json_keys = ("hypotheses",)
    annotation = "verdicts"
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
            extra=check_texts(list(self.categories.values()), "the config's 'categories'"),
            class_weights=class_weights,
            scorer=scorer,
        )

    def check_gold(self, example: Example) -> None:
        for text, entry in self.gold_pairs(example):
            label = entry.get("label") if isinstance(entry, dict) else None
            if not label or not isinstance(label, str):
                raise ValueError(
                    f"The true verdict on '{text}' has no label: {entry!r}. Make verdicts with "
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

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        single = config.problem_type in (None, cls.hf_problem_type)
        return 2 if single and any(map(is_entailment, names)) else 0

    @classmethod
    def read_hf(cls, config: Any, names: Sequence[str], checkpoint: str) -> HFClasses:
        check_softmax(names, checkpoint)
        return super().read_hf(config, names, checkpoint)

    def decisions(self, example: Example) -> list[tuple[str, str]]:
        matched = match_predictions(example, self.input_name, self.output_name)
        return [(gold["label"], guess["label"] if guess else "") for gold, guess in matched]

    @classmethod
    def scores_of(cls, counts: Counts) -> dict[str, Floats]:
        tp, fp, fn = counts["tp"], counts["fp"], counts["fn"]
        f = precision_recall_f(tp, fp, fn)[2]
        return {
            "nli_acc": ratio(tp.sum(axis=-1), (tp + fn).sum(axis=-1)),
            "nli_macro_f": ratio(np.nansum(f, axis=-1), (~np.isnan(f)).sum(axis=-1)),
        }

    def loss(self, examples: Sequence[Example], output: torch.Tensor) -> torch.Tensor:
        """Softmax cross-entropy in nats, a mean over the annotated pairs, weighted as torch does.
        `output` has the logits (n_pairs, n_labels)."""
        number = {label: i for i, label in enumerate(self.labels)}
        classes = []
        for example in examples:
            for _, entry in self.taught_pairs(example):
                if entry["label"] not in number:
                    self.warn_unknown(entry["label"])
                classes.append(number.get(entry["label"], -1))
        return cross_entropy(output, np.asarray(classes), weights=self._weights(output))

    def read_out(self, output: torch.Tensor) -> Iterable[Judged]:
        """Give a verdict for each pair, from the logits (n_pairs, n_labels)."""
        labels = self.labels
        for row, logits in zip(output.softmax(-1).tolist(), output.float().cpu(), strict=True):
            probabilities = dict(zip(labels, row, strict=True))
            label = max(labels, key=probabilities.__getitem__)
            yield Judged(make_verdict(label, probabilities), logits)

    def set_annotations(self, docs: Sequence[Doc], results: list) -> None:
        """Write the verdicts, and what the categories' hypotheses came to.

        docs (Sequence[Doc]): The Docs.
        results (list): What `predict` gave.
        """
        for doc, (texts, judged) in zip(docs, results, strict=True):
            n_own = len(texts) - len(self.extra)
            if n_own:
                set_value("nli", doc, [one and one.verdict for one in judged[:n_own]])
            else:
                drop_results(doc, self.output_name)
            if self.categories:
                logits = torch.stack([one.logits for one in judged[n_own:]])
                scores = self._category_scores(logits, self.category_softmax).tolist()
                doc.cats.update(zip(self.categories, scores, strict=True))

    def classify(
        self, docs: Sequence[Doc], asked: Sequence[tuple[Mapping[str, str], str | None]]
    ) -> list[dict[str, float]]:
        """Give each Doc the probabilities of categories of its own, and write nothing: zero-shot
        classification (Yin et al. 2019, section 5).

        `asked` has for each Doc a hypothesis by category, at least one, and what their
        probabilities are among, see `make_bert_nli`; None for the component's own
        `category_softmax`. Raises TextTooLong for a hypothesis that doesn't fit into a window.
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
        """The probability of each category (n_categories,), from logits (n_categories, n_labels)
        of its hypothesis."""
        entailment = self.labels.index(self.entailment)
        if softmax == "labels":
            return logits.softmax(-1)[:, entailment]
        if softmax == "categories" and len(logits) > 1:
            return logits[:, entailment].softmax(0)
        both = [entailment, self.labels.index(self.contradiction)]
        return logits[:, both].softmax(-1)[:, 0]

    @property
    def entailment(self) -> str:
        """The label that says that the hypothesis follows. Raises ValueError if none is called
        so."""
        return self._find_label("entail", "entailment")

    @property
    def contradiction(self) -> str:
        """The label that says that the hypothesis is false; of two labels the one that is not
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

    def check_labels(self) -> None:
        super().check_labels()
        if len(self.labels) < 2:
            raise ValueError(
                f"{self.name} tells verdicts apart, but the training data has only "
                f"'{self.labels[0]}'. It needs two labels at least."
            )
        if self.categories:
            _ = self.entailment  # raises
            if self.category_softmax != "labels":
                _ = self.contradiction
