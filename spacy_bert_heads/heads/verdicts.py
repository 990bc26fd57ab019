"""Compare verdicts of `bert_nli` with gold ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from spacy.scorer import PRFScore
from spacy.training import Example

from .pair_head import match_predictions

NONE = "none"  # the label of a verdict if the head's only label does not hold
LEFT_OUT = ""  # the label if a pair was too long, or below its threshold


def score_nli(
    examples: Iterable[Example], *, labels: Sequence[str] = (), **kwargs: Any
) -> dict[str, Any]:
    """Compute `nli_acc`, the accuracy; `nli_f_per_type`, precision, recall and F of each label that
    occurs; and `nli_macro_f`, the mean of these F. All are None if nothing is annotated. `labels`
    are those of the head. Raises ValueError if a predicted Doc lacks hypotheses of its
    reference."""
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
    """Yield the gold and the predicted label of each annotated pair. `names` are those of input and
    output in `doc._`."""
    for gold, found in match_predictions(example, *names):
        yield gold_label(gold, labels), LEFT_OUT if found is None else found["label"]


def gold_label(gold: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Return the label of a gold verdict for a head with these labels: beside a single one, any
    other is NONE."""
    label: str = gold["label"]
    return label if len(labels) != 1 or label in labels else NONE


def with_none(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the probabilities of a verdict; for a single label also that of NONE."""
    if len(scores) > 1:
        return dict(scores)
    return {**scores, NONE: 1 - sum(scores.values())}
