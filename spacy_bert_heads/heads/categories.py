"""Gold values in `doc.cats`, and several text classifiers in one pipeline."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from spacy.scorer import PRFScore
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab

from .declared import Score
from .pair_head import start_of
from .pipelines import pipelines_of
from .tallies import count_decisions

if TYPE_CHECKING:
    from .textcat import BertTextCat


# Scores without a title are details of cats_score.
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
# Weight 0: shown in training, and used to select model-best if a config raises it.
EXCLUSIVE_SCORES = SCORES | {"cats_acc": Score("categories, accuracy", 0.0)}


def check_values(doc: Doc, labels: Collection[str] | None, name: str, *, exclusive: bool) -> None:
    """Raise ValueError if a value of `doc.cats` is not a number from 0 to 1, or several exclusive
    categories hold. 1 means that a category holds, 0 that it doesn't; values in between are
    probabilities.

    Only `labels` are checked, all categories of the Doc if it is None. `name` is the component that
    learns them.
    """
    cats = {key: value for key, value in doc.cats.items() if labels is None or key in labels}
    for label, value in cats.items():
        if not (isinstance(value, (Real, np.bool_)) and 0 <= value <= 1):
            raise ValueError(
                f"{name} needs 1 for a category that holds and 0 for one that does not, but "
                f"'{label}' is {value!r} in {start_of(doc)}. Fix doc.cats there, and leave out "
                "categories that are not annotated."
            )
    held = [label for label, value in cats.items() if value > 0.5]
    if exclusive and len(held) > 1:
        raise ValueError(
            f"{name} chooses one category, but several hold in {start_of(doc)}: {', '.join(held)}. "
            "Fix doc.cats there, or use bert_textcat_multilabel."
        )


def distribution_of(values: Mapping[str, float]) -> dict[str, float]:
    """Return the gold probabilities of exclusive categories: values that sum to 1, else 1 for the
    category above 0.5. Empty if there is none: then it is not known which one holds."""
    total = sum(values.values())
    if abs(total - 1) < 0.01:
        return {label: value / total for label, value in values.items()}
    return {label: 1.0 for label, value in values.items() if value > 0.5}


def check_positive(
    label: str | None, labels: Collection[str], name: str, *, exclusive: bool
) -> None:
    """Raise ValueError if a `positive_label` is not one of two exclusive categories."""
    if label is not None and not (exclusive and len(labels) == 2 and label in labels):
        raise ValueError(
            f"positive_label of {name} is '{label}', but must be one of two exclusive categories. "
            f"Its labels are {', '.join(labels)}{'' if exclusive else ' (not exclusive)'}."
        )


def may_have(head: BertTextCat, label: str) -> bool:
    """Return whether a category is a head's, or of no text classifier of its pipeline."""
    if label in head.labels:
        return True
    return not any(label in pipe.labels for pipe in classifiers(head, active=False).values())


def decide(head: BertTextCat, example: Example) -> list[tuple[str, str]]:
    """Return the gold and the predicted one of exclusive categories, [] without a gold one. A gold
    category that no text classifier of the pipeline has is one that the head can't predict; beside
    other text classifiers only if the Doc is annotated for this one."""
    cats = example.reference.cats
    if cats.keys().isdisjoint(head.labels) and len(classifiers(head, active=False)) > 1:
        return []
    gold = distribution_of({k: value for k, value in cats.items() if may_have(head, k)})
    guess = {k: v for k, v in example.predicted.cats.items() if k in head.labels}
    if not gold:
        return []
    return [(max(gold, key=gold.__getitem__), max(guess, key=guess.__getitem__, default=""))]


def score_exclusive(
    head: BertTextCat,
    score: Callable[[list[Example]], dict[str, Any]],
    examples: list[Example],
) -> dict[str, Any]:
    """Score exclusive categories by `score`, and add `cats_acc`, the accuracy over Docs with a gold
    category. Wrong are also Docs whose prediction was left out, and those with a category that the
    head doesn't have."""
    # spaCy's scorer fails for a Doc whose prediction was left out, because it is unsure.
    annotated = [eg for eg in examples if head.has_gold(eg)]
    decided = [eg for eg in annotated if not eg.predicted.cats.keys().isdisjoint(head.labels)]
    found = score(decided)
    if not found:
        return {}
    choices = [choice for eg in examples for choice in head.decisions(eg)]
    unknown = Counter(gold for gold, _ in choices if gold not in head.labels)
    if unknown:
        names = ", ".join(f"{label} ({count:,})" for label, count in unknown.most_common(9))
        warnings.warn(
            f"{unknown.total():,} Docs have categories that {head.name} does not have, and count "
            f"as wrong: {names}. Its labels are {', '.join(head.labels)}.",
            stacklevel=2,
        )
    if unknown or len(decided) < len(annotated):
        found |= score_choices(choices, head.labels, head.cfg.get("positive_label"))
    right = [gold == guess for gold, guess in choices]
    return {**found, "cats_acc": float(np.mean(right)) if right else None}


def score_choices(
    choices: Iterable[tuple[str, str]], labels: Collection[str], positive_label: str | None
) -> dict[str, Any]:
    """Compute the precision, recall and F scores of spaCy's `Scorer.score_cats` for exclusive
    categories from gold and predicted labels. Others than `labels` don't count: gold ones that are
    unknown, and "" for a prediction that was left out."""
    tally = count_decisions(choices)
    counts = {
        label: PRFScore(**{kind: int(n) for kind, n in tally.get(label, {}).items()})
        for label in labels
    }
    total = sum(counts.values(), PRFScore())
    by_label = {label: count.to_dict() for label, count in counts.items()}
    macro = {k: sum(one[k] for one in by_label.values()) / len(by_label) for k in "prf"}
    score, name = macro["f"], "macro F"
    if positive_label and len(by_label) == 2:
        score, name = by_label[positive_label]["f"], f"F ({positive_label})"
    return {
        "cats_score": score,
        "cats_score_desc": name,
        **{f"cats_micro_{key}": value for key, value in total.to_dict().items()},
        **{f"cats_macro_{key}": value for key, value in macro.items()},
        "cats_f_per_type": by_label,
    }


def classifiers(
    head: BertTextCat, vocab: Vocab | None = None, *, active: bool = True
) -> dict[str, Any]:
    """Return the text classifiers of a head's pipelines by name, including itself and spaCy's own;
    with `active` without disabled ones."""
    return {
        name: pipe
        for nlp in pipelines_of(head, vocab)
        for name, pipe in (nlp.pipeline if active else nlp.components)
        if "doc.cats" in nlp.get_pipe_meta(name).assigns
        and hasattr(pipe, "labels")
        and not hasattr(pipe, "categories")  # bert_nli, whose labels are not categories
    }


def check_apart(head: BertTextCat, beside: Mapping[str, Any]) -> None:
    """Raise ValueError if another text classifier of the pipeline has one of a head's labels: it
    would overwrite the head's probability in doc.cats."""
    for name, pipe in beside.items():
        shared = sorted(set(head.labels) & set(pipe.labels)) if pipe is not head else []
        if shared:
            raise ValueError(
                f"{head.name} and {name} both have the category '{shared[0]}', but doc.cats can "
                "have only one probability for it. Set different labels for them, under "
                f"[initialize.components.{head.name}.labels] and [initialize.components.{name}"
                ".labels], and train again; or remove one of the two from the pipeline."
            )


def score_beside(head: BertTextCat, own: dict[str, Any], examples: list[Example]) -> dict[str, Any]:
    """Combine the scores of a head with those of the pipeline's other text classifiers."""
    beside = classifiers(head, examples[0].predicted.vocab if examples else None)
    if len(beside) < 2 or not own:
        return own
    scores = {}
    for name, pipe in beside.items():
        if any(not eg.reference.cats.keys().isdisjoint(pipe.labels) for eg in examples):
            # `score` of one of ours would combine the scores of all classifiers again.
            score = getattr(pipe, "score_alone", pipe.score)
            scores[name] = own if pipe is head else score(examples)
    if head.name not in scores:
        return merge_scores(scores) or own
    by_name = {f"{head.name}_{k}": v for k, v in own.items() if not isinstance(v, dict)}
    return {**merge_scores(scores), **by_name}


def merge_scores(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Combine the scores of several text classifiers, given by component: the mean of each number,
    and the union of scores by label."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for own in scores.values() for key in own):
        values = {name: own[key] for name, own in scores.items() if own.get(key) is not None}
        if not values:
            merged[key] = None
        elif all(isinstance(value, dict) for value in values.values()):
            merged[key] = {k: v for by_label in values.values() for k, v in by_label.items()}
        elif all(isinstance(value, str) for value in values.values()):
            merged[key] = "mean of " + ", ".join(f"{v} of {name}" for name, v in values.items())
        else:
            merged[key] = sum(values.values()) / len(values)
    return merged
