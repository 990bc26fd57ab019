"""Verdicts of `bert_nli`, compared with true ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from spacy.scorer import PRFScore
from spacy.training import Example

from .pair_head import match_predictions

NONE = "none"  # the verdict where the only label does not hold
LEFT_OUT = ""  # of a pair that was too long, or below a threshold


def score_nli(
    examples: Iterable[Example], *, labels: Sequence[str] = (), **kwargs: Any
) -> dict[str, Any]:
    """Score verdicts: `nli_acc`, the accuracy; `nli_macro_f`, the mean over the labels that occur
    of `nli_f_per_type`, their precision, recall and F; None without any verdict. `labels` are those
    of the head. Raises ValueError if a reference has hypotheses that were not asked of the
    prediction."""
    per_type: dict[str, PRFScore] = {}
    right = total = 0
    for example in examples:
        for true, guess in match_labels(example, labels):
            total += 1
            right += true == guess
            for label in {true, guess} - {NONE, LEFT_OUT}:
                score = per_type.setdefault(label, PRFScore())
                score.tp += label == true == guess
                score.fp += label == guess != true
                score.fn += label == true != guess
    if not total:
        return {"nli_acc": None, "nli_macro_f": None, "nli_f_per_type": None}
    return {
        "nli_acc": right / total,
        "nli_macro_f": sum(score.fscore for score in per_type.values()) / max(len(per_type), 1),
        "nli_f_per_type": {label: per_type[label].to_dict() for label in sorted(per_type)},
    }


def match_labels(
    example: Example, labels: Sequence[str], names: tuple[str, str] = ("hypotheses", "nli")
) -> Iterator[tuple[str, str]]:
    """Yield the true and the predicted label of each annotated pair; `names` are those of the input
    and the output. Of a head with a single label it is that or NONE."""
    for gold, found in match_predictions(example, *names):
        true, guess = gold["label"], LEFT_OUT if found is None else found["label"]
        yield true if len(labels) != 1 or true in labels else NONE, guess


def with_none(scores: Mapping[str, float]) -> dict[str, float]:
    """Give the probabilities of a verdict; beside a single label, what it leaves."""
    if len(scores) > 1:
        return dict(scores)
    return {**scores, NONE: 1 - sum(scores.values())}
