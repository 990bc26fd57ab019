"""What is annotated in `doc.cats`, and several text classifiers in one pipeline."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab

from .declared import Score
from .pair_head import start_of

if TYPE_CHECKING:
    from .textcat import BertTextCat


# Those without a title say at greater length what cats_score says.
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
# Shown in training, and model-best follows it if it is given a weight.
EXCLUSIVE_SCORES = SCORES | {"cats_acc": Score("categories, accuracy", 0.0)}


class PipelineRef(weakref.ref):
    """A weak reference to the pipeline that a component was made for. A copy or pickle of the
    component has none."""

    def __reduce__(self) -> tuple:
        return nowhere, ()


def nowhere() -> type[None]:
    """Give what takes the place of the reference: called, it gives None."""
    return type(None)


def check_values(doc: Doc, labels: Collection[str] | None, name: str, *, exclusive: bool) -> None:
    """Raise ValueError if a category of a Doc is no number from 0 to 1, or several hold where one
    must. 1 says that a category holds, 0 that it doesn't; a loss can be made of values in between.

    Only `labels` are looked at, None for all of the Doc's; `name` is the component that learns
    them.
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


def check_positive(
    label: str | None, labels: Collection[str], name: str, *, exclusive: bool
) -> None:
    """Raise ValueError if a `positive_label` is not one of two exclusive categories."""
    if label is not None and not (exclusive and len(labels) == 2 and label in labels):
        raise ValueError(
            f"positive_label of {name} is '{label}', but must be one of two categories of which "
            f"one holds. Its labels are {', '.join(labels)}"
            f"{'' if exclusive else ' (any number holds)'}."
        )


def accuracy(examples: Iterable[Example], labels: Collection[str]) -> float | None:
    """Give the share of Docs with a gold category that got it; None if there are none. A Doc
    without categories, because the head is not sure of any, got none."""
    right = []
    for example in examples:
        both = (example.reference.cats, example.predicted.cats)
        gold, found = ([cats.get(label, 0.0) for label in labels] for cats in both)
        if any(gold):
            right.append(any(found) and np.argmax(gold) == np.argmax(found))
    return float(np.mean(right)) if right else None


def pipelines_of(head: BertTextCat, vocab: Vocab | None) -> list[Language]:
    """The pipelines with a head in them, of Docs of a vocabulary (None for any): the one that it
    was made for, and those whose encoders it reads."""
    refs = [head.nlp, *(one.nlp for node in head._listeners() for one in node.upstreams)]
    found = {id(nlp): nlp for ref in refs if (nlp := ref()) is not None}
    return [
        nlp
        for nlp in found.values()
        if vocab in (None, nlp.vocab) and any(pipe is head for _, pipe in nlp.components)
    ]


def classifiers(
    head: BertTextCat, vocab: Vocab | None = None, *, active: bool = True
) -> dict[str, Any]:
    """The text classifiers of a head's pipelines by name, itself and spaCy's own among them; with
    `active` without those that are disabled."""
    return {
        name: pipe
        for nlp in pipelines_of(head, vocab)
        for name, pipe in (nlp.pipeline if active else nlp.components)
        if "doc.cats" in nlp.get_pipe_meta(name).assigns
        and hasattr(pipe, "labels")
        and not hasattr(pipe, "categories")  # bert_nli, whose labels are no categories
    }


def check_apart(head: BertTextCat, beside: Mapping[str, Any]) -> None:
    """Raise ValueError if another text classifier of the pipeline has one of a head's labels: of
    two probabilities for a category only the later would be in doc.cats."""
    for name, pipe in beside.items():
        shared = sorted(set(head.labels) & set(pipe.labels)) if pipe is not head else []
        if shared:
            raise ValueError(
                f"{head.name} and {name} both have the category '{shared[0]}', and doc.cats has "
                "room for one probability of it. Name different labels for them, under "
                f"[initialize.components.{head.name}.labels] and [initialize.components.{name}"
                ".labels], and train anew; or take one of the two out of the pipeline."
            )


def score_beside(head: BertTextCat, own: dict[str, Any], examples: list[Example]) -> dict[str, Any]:
    """Sum up the scores of a head with those of the text classifiers beside it."""
    beside = classifiers(head, examples[0].predicted.vocab if examples else None)
    if len(beside) < 2 or not own:
        return own
    scores = {}
    for name, pipe in beside.items():
        if any(not eg.reference.cats.keys().isdisjoint(pipe.labels) for eg in examples):
            # One of ours would sum up those beside it, too.
            score = getattr(pipe, "score_alone", pipe.score)
            scores[name] = own if pipe is head else score(examples)
    if head.name not in scores:
        return merge_scores(scores) or own
    by_name = {f"{head.name}_{k}": v for k, v in own.items() if not isinstance(v, dict)}
    return {**merge_scores(scores), **by_name}


def merge_scores(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up the scores of several text classifiers, given by component: the mean of each figure,
    and all labels of what is scored by label."""
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
