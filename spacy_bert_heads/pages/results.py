"""Compare the predictions and the gold annotations of a Doc, task by task, as plain data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import nan
from typing import Any, NamedTuple

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example

from ..heads.answers import accepted, compare_answers
from ..heads.gold import without_negated
from ..heads.head import BertHead
from ..heads.nli import BertNLI
from ..heads.pair_head import key_of_asked
from ..heads.tallies import judge_entities, place_entities
from ..heads.verdicts import gold_label, with_none
from ..text.doc_data import get_abstained, get_ent_score
from ..text.user_data import copy_of_dict, get_list

# Each task with the attribute that its components assign.
TASKS = {
    "entities": "doc.ents",
    "categories": "doc.cats",
    "verdicts": "doc._.nli",
    "choices": "doc._.chosen",
    "answers": "doc._.answers",
    "similarities": "doc._.similarities",
    "numbers": "doc._.regression",
    "tags": "token.tag",
}
MEASURED = ("similarities", "numbers")  # have an error, but are not correct or wrong


class Entity(NamedTuple):
    """Hold an entity of one side; `is_right` says whether the other side has it too."""

    start: int  # characters
    end: int
    label: str
    score: float | None
    is_right: bool | None  # None without gold annotation


class Category(NamedTuple):
    """Hold a category, a label of a verdict, or an option."""

    label: str
    score: float  # NaN if it is not known, because a threshold left the prediction out
    is_given: bool
    is_gold: bool | None  # None if it is not annotated


class Judged(NamedTuple):
    """Hold the categories of one component, the verdict on one hypothesis, or a choice."""

    title: str
    categories: list[Category]  # most probable first; empty if the text was too long
    is_right: bool | None
    is_exclusive: bool = True


class Answer(NamedTuple):
    """Hold an answer to a question."""

    question: str
    text: str | None  # "" for no answer, None if the question was too long
    score: float
    place: tuple[int, int]  # characters
    gold: list[str] | None  # all correct answers, "" for no answer
    gold_places: list[tuple[int, int]]
    is_right: bool | None
    f1: float


class Measured(NamedTuple):
    """Hold numbers by label, of a text or of a comparison with another text."""

    title: str
    found: dict[str, float] | None  # None if the text was too long
    gold: dict[str, float]  # only annotated labels

    is_right: None = None

    @property
    def errors(self) -> list[float]:
        """Return the absolute error of each annotated number."""
        found = self.found or {}
        return [abs(found[label] - value) for label, value in self.gold.items() if label in found]


class Tag(NamedTuple):
    """Hold a token with its tag or part of speech."""

    text: str
    found: str
    gold: str  # "" if it is not annotated
    is_right: bool | None


@dataclass
class Result:
    """Hold the results of one Doc, for the tasks of the pipeline."""

    text: str
    name: str = ""  # the user's name for the Doc, shown with its number
    gold_entities: list[Entity] | None = None  # None if they are not annotated
    entities: list[Entity] | None = None
    categories: list[Judged] = field(default_factory=list)
    verdicts: list[Judged] = field(default_factory=list)
    choices: list[Judged] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    similarities: list[Measured] = field(default_factory=list)
    numbers: list[Measured] = field(default_factory=list)
    tags: list[Tag] = field(default_factory=list)

    def given(self, task: str) -> list[Any]:
        """Return the predictions of a task in a form that can be compared between pipelines:
        without probabilities and numbers, which are never exactly equal."""
        if task == "entities":
            return [(entity.start, entity.end, entity.label) for entity in self.entities or ()]
        if task == "answers":
            return [(answer.question, answer.text) for answer in self.answers]
        if task == "tags":
            return [(tag.text, tag.found) for tag in self.tags]
        if task in MEASURED:
            return []
        judged = getattr(self, task)
        labels = [[one.label for one in group.categories if one.is_given] for group in judged]
        if task == "categories":  # regardless of the component
            return sorted(label for group in labels for label in group)
        return [(group.title, given) for group, given in zip(judged, labels, strict=True)]

    def count_errors(self, task: str) -> int | None:
        """Return the number of errors in a task: wrong and missed entities, or other wrong
        predictions. None if the task is not annotated."""
        judged: list[bool | None]
        if task == "entities":
            both = [*(self.gold_entities or ()), *(self.entities or ())]
            return None if self.gold_entities is None else sum(e.is_right is False for e in both)
        judged = [one.is_right for one in getattr(self, task) if one.is_right is not None]
        return judged.count(False) if judged else None


def tasks_of(nlp: Language) -> list[str]:
    """Return the tasks of a pipeline."""
    assigned = {name for pipe in nlp.pipe_names for name in nlp.get_pipe_meta(pipe).assigns}
    return [task for task, name in TASKS.items() if name in assigned]


def make_result(nlp: Language, example: Example, tasks: Collection[str]) -> Result:
    """Compare a predicted Doc with its reference in the given tasks."""
    gold, predicted = example.reference, example.predicted
    result = Result(predicted.text)
    if "entities" in tasks:
        result.gold_entities, result.entities = compare_entities(nlp, example)
    if "categories" in tasks:
        result.categories = compare_categories(nlp, example)
    if "verdicts" in tasks:
        heads = [pipe.labels for _, pipe in nlp.pipeline if isinstance(pipe, BertNLI)]
        labels = next(iter(heads), ())
        result.verdicts = [
            compare_verdict(text, true and gold_label(true, labels), found)
            for text, true, found in match(gold, predicted, "hypotheses", "nli")
        ]
    if "choices" in tasks:
        left_out = {
            key_of_asked(entry["asked"]): entry
            for entry in get_abstained(predicted)
            if "answer" in entry
        }
        result.choices = [
            compare_choice(choice, true, found, left_out.get(key_of_asked(choice)))
            for choice, true, found in match(gold, predicted, "choices", "chosen")
        ]
    if "answers" in tasks:
        result.answers = [
            compare_answer(text, true, found, gold.lang_)
            for text, true, found in match(gold, predicted, "questions", "answers")
        ]
    if "similarities" in tasks:
        result.similarities = [
            Measured(text, found, true or {})
            for text, true, found in match(gold, predicted, "others", "similarities")
        ]
    if "numbers" in tasks:
        true, found = copy_of_dict("regression", gold), copy_of_dict("regression", predicted)
        result.numbers = [Measured("", found, true)] if found else []
    if "tags" in tasks:
        result.tags = compare_tags(gold, predicted)
    return result


def compare_tags(gold: Doc, predicted: Doc) -> list[Tag]:
    """Return the tags (or without tags, the parts of speech) of all tokens except white space. A
    token that the reference doesn't have is not annotated."""
    attribute = "tag_" if predicted.has_annotation("TAG") else "pos_"
    true = {(token.idx, len(token)): getattr(token, attribute) for token in gold}
    tags = []
    for token in predicted:
        if not token.is_space:
            found = getattr(token, attribute)
            right = true.get((token.idx, len(token)), "")
            tags.append(Tag(token.text, found, right, found == right if right else None))
    return tags


def compare_entities(nlp: Language, example: Example) -> tuple[list[Entity] | None, list[Entity]]:
    """Return the gold and the predicted entities, judged as in scoring; None for gold without
    annotation. Predictions on tokens without annotation are neither right nor wrong."""
    labels = {label for _, pipe in nlp.components for label in getattr(pipe, "labels", ())}
    example = without_negated(example, labels)
    judged = {ent.start: is_right for ent, is_right in judge_entities(example)}
    found = [
        Entity(ent.start_char, ent.end_char, ent.label_, get_ent_score(ent), judged.get(ent.start))
        for ent in example.predicted.ents
    ]
    gold = example.reference
    if not gold.has_annotation("ENT_IOB"):
        return None, found
    places = {place for _, place in place_entities(example)}
    true = [
        Entity(e.start_char, e.end_char, e.label_, None, (e.label_, e.start, e.end) in places)
        for e in gold.ents
    ]
    return true, found


def compare_categories(nlp: Language, example: Example) -> list[Judged]:
    """Return the categories by component, judged as in scoring: by its threshold, or the most
    probable one for exclusive categories. One that was left out counts as not predicted."""
    cats, gold = example.predicted.cats, example.reference.cats
    left_out: dict[str, dict[str, float]] = {}
    for entry in get_abstained(example.predicted):
        left_out.setdefault(entry["component"], {})[entry["label"]] = entry["score"]
    groups: list[Judged] = []
    seen: set[str] = set()
    for name, component in nlp.components:
        meta = nlp.get_pipe_meta(name)
        if "doc.cats" not in meta.assigns:
            continue
        # bert_nli has `categories`; its labels are those of verdicts.
        labels = getattr(component, "categories", getattr(component, "labels", ()))
        own = {label: cats[label] for label in labels if label in cats and label not in seen}
        seen.update(own)
        unsure = {label: p for label, p in left_out.get(name, {}).items() if label in labels}
        if not own and not unsure:
            continue
        if getattr(component, "multi_label", meta.factory != "textcat"):
            threshold = getattr(component, "cfg", {}).get("threshold", 0.5)
            groups.append(judge_each(name, own, unsure, gold, threshold))
        else:
            true = {label: value for label, value in gold.items() if label in labels and value > 0}
            best = max(true, key=true.__getitem__, default=None)
            if isinstance(component, BertHead):
                best = next((true for true, _ in component.decisions(example)), None)
            groups.append(judge_one(name, own, unsure, best))
    others = {label: p for label, p in cats.items() if label not in seen}
    return groups + ([judge_each("categories", others, {}, gold, 0.5)] if others else [])


def judge_one(
    title: str, scores: dict[str, float], left_out: dict[str, float], true: str | None
) -> Judged:
    """Judge exclusive categories. `true` is the gold one, which the component may not have; None if
    it is not known."""
    given = max(scores, key=scores.__getitem__, default=None)
    shown = {**left_out, **scores}
    if true is not None:
        shown.setdefault(true, nan if left_out else 0.0)  # the component gives it no probability
    categories = [
        Category(label, p, label == given, None if true is None else label == true)
        for label, p in sorted(shown.items(), key=lambda item: -np.nan_to_num(item[1]))
    ]
    return Judged(title, categories, None if true is None else given == true)


def judge_each(
    title: str,
    scores: dict[str, float],
    left_out: dict[str, float],
    gold: dict[str, float],
    threshold: float,
) -> Judged:
    """Judge categories of which any number may hold."""
    shown = {**left_out, **scores}
    categories = [
        Category(
            label,
            p,
            label in scores and p >= threshold,
            gold[label] >= 0.5 if label in gold else None,
        )
        for label, p in sorted(shown.items(), key=lambda item: -item[1])
    ]
    known = [one.is_given == one.is_gold for one in categories if one.is_gold is not None]
    return Judged(title, categories, all(known) if known else None, is_exclusive=False)


def match(gold: Doc, predicted: Doc, inputs: str, outputs: str) -> list[tuple[Any, Any, Any]]:
    """Return each second text with its gold entry (None without one) and its predicted entry (None
    if the text was too long)."""
    keys = map(key_of_asked, get_list(inputs, gold))
    true = dict(zip(keys, get_list(outputs, gold), strict=False))
    asked = zip(get_list(inputs, predicted), get_list(outputs, predicted), strict=False)
    return [(one, true.get(key_of_asked(one)), found) for one, found in asked]


def compare_verdict(hypothesis: str, true: str | None, found: Any) -> Judged:
    """Judge the verdict on a hypothesis."""
    scores = {} if found is None else with_none(found["scores"])
    categories = [
        Category(label, score, label == found["label"], None if true is None else label == true)
        for label, score in sorted(scores.items(), key=lambda item: -item[1])
    ]
    is_right = None if true is None else found is not None and found["label"] == true
    return Judged(hypothesis, categories, is_right)


def compare_choice(choice: dict[str, Any], gold: Any, found: Any, left_out: Any) -> Judged:
    """Judge the chosen option; the options are used as labels. `left_out` is what is known of one
    that is not given, because it is not sure."""
    title = choice.get("question") or "Which one?"
    scores = dict(enumerate(found["scores"])) if found is not None else {}
    if left_out is not None:
        scores = {left_out["answer"]: left_out["score"]}
        if gold is not None:
            scores.setdefault(gold["answer"], nan)
    given = None if found is None else found["answer"]
    categories = [
        Category(choice["options"][i], p, i == given, None if gold is None else i == gold["answer"])
        for i, p in sorted(scores.items(), key=lambda item: -np.nan_to_num(item[1]))
    ]
    is_right = None if gold is None else found is not None and given == gold["answer"]
    return Judged(title, categories, is_right)


def compare_answer(question: str, gold: Any, found: Any, lang: str) -> Answer:
    """Judge the answer to a question as in scoring."""
    text = None if found is None else found["text"]
    true, places, is_right, f1 = None, [], None, 0.0
    if gold is not None:
        true = list(dict.fromkeys(accepted(gold)))
        places = [
            (one["start_char"], one["end_char"])
            for one in (gold, *gold.get("alternatives", ()))
            if one["text"] and "start_char" in one
        ]
        exact, f1 = (0.0, 0.0) if text is None else compare_answers(text, true, lang)
        is_right = bool(exact)
    place = (found["start_char"], found["end_char"]) if text else (0, 0)
    score = 0.0 if found is None else found["score"]
    return Answer(question, text, score, place, true, places, is_right, f1)
