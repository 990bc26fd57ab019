"""Compare the predictions and the gold annotations of a Doc, task by task, as plain data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example

from ..heads.answers import accepted, compare_answers
from ..heads.pair_head import key_of_asked
from ..text.doc_data import get_ent_score
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
    score: float
    is_given: bool
    is_gold: bool | None  # None if it is not annotated


class Judged(NamedTuple):
    """Hold the categories of one component, the verdict on one hypothesis, or a choice."""

    title: str
    categories: list[Category]  # most probable first; empty if the text was too long
    is_right: bool | None


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
            return None if self.gold_entities is None else sum(not one.is_right for one in both)
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
        result.gold_entities, result.entities = compare_entities(gold, predicted)
    if "categories" in tasks:
        result.categories = compare_categories(nlp, gold, predicted)
    if "verdicts" in tasks:
        result.verdicts = [
            compare_verdict(text, true, found)
            for text, true, found in match(gold, predicted, "hypotheses", "nli")
        ]
    if "choices" in tasks:
        result.choices = [
            compare_choice(choice, true, found)
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


def compare_entities(gold: Doc, predicted: Doc) -> tuple[list[Entity] | None, list[Entity]]:
    """Return the gold and the predicted entities; None for gold without annotation."""
    sides = [{(e.start_char, e.end_char, e.label_) for e in doc.ents} for doc in (gold, predicted)]
    is_annotated = gold.has_annotation("ENT_IOB")
    found = [
        Entity(
            ent.start_char,
            ent.end_char,
            ent.label_,
            get_ent_score(ent),
            (ent.start_char, ent.end_char, ent.label_) in sides[0] if is_annotated else None,
        )
        for ent in predicted.ents
    ]
    true = [Entity(*place, None, place in sides[1]) for place in sorted(sides[0])]
    return (true if is_annotated else None), found


def compare_categories(nlp: Language, gold: Doc, predicted: Doc) -> list[Judged]:
    """Return the categories by component, judged as in scoring: by its threshold, or the most
    probable one for exclusive categories."""
    groups, seen = [], set()
    for name, component in nlp.components:
        meta = nlp.get_pipe_meta(name)
        if "doc.cats" not in meta.assigns:
            continue
        # bert_nli has `categories`; its labels are those of verdicts.
        labels = getattr(component, "categories", getattr(component, "labels", ()))
        labels = [label for label in labels if label in predicted.cats and label not in seen]
        seen.update(labels)
        chooses_one = not getattr(component, "multi_label", meta.factory != "textcat")
        threshold = getattr(component, "cfg", {}).get("threshold", 0.5)
        groups.append((name, labels, None if chooses_one else threshold))
    others = [label for label in predicted.cats if label not in seen]
    groups.append(("categories", others, 0.5))
    return [
        compare_group(name, {x: predicted.cats[x] for x in labels}, gold.cats, threshold)
        for name, labels, threshold in groups
        if labels
    ]


def compare_group(
    title: str, scores: dict[str, float], gold: dict[str, float], threshold: float | None
) -> Judged:
    """Judge categories. `threshold` is None for exclusive categories."""
    true = {label: gold[label] > 0 for label in scores if label in gold}
    if threshold is None:
        given = {max(scores, key=scores.__getitem__)}
        true = {label: bool(true.get(label)) for label in scores} if any(true.values()) else {}
    else:
        given = {label for label, score in scores.items() if score >= threshold}
    categories = [
        Category(label, scores[label], label in given, true.get(label))
        for label in sorted(scores, key=lambda label: -scores[label])
    ]
    is_right = all((label in given) == holds for label, holds in true.items()) if true else None
    return Judged(title, categories, is_right)


def match(gold: Doc, predicted: Doc, inputs: str, outputs: str) -> list[tuple[Any, Any, Any]]:
    """Return each second text with its gold entry (None without one) and its predicted entry (None
    if the text was too long)."""
    keys = map(key_of_asked, get_list(inputs, gold))
    true = dict(zip(keys, get_list(outputs, gold), strict=False))
    asked = zip(get_list(inputs, predicted), get_list(outputs, predicted), strict=False)
    return [(one, true.get(key_of_asked(one)), found) for one, found in asked]


def compare_verdict(hypothesis: str, gold: Any, found: Any) -> Judged:
    """Judge the verdict on a hypothesis."""
    true = None if gold is None else gold["label"]
    scores = {} if found is None else found["scores"]
    categories = [
        Category(label, score, label == found["label"], None if true is None else label == true)
        for label, score in sorted(scores.items(), key=lambda item: -item[1])
    ]
    is_right = None if true is None else found is not None and found["label"] == true
    return Judged(hypothesis, categories, is_right)


def compare_choice(choice: dict[str, Any], gold: Any, found: Any) -> Judged:
    """Judge the chosen option; the options are used as labels."""
    title = choice.get("question") or "Which one?"
    scores = [] if found is None else found["scores"]
    categories = [
        Category(option, score, i == found["answer"], None if gold is None else i == gold["answer"])
        for i, (option, score) in enumerate(zip(choice["options"], scores, strict=False))
    ]
    categories.sort(key=lambda one: -one.score)
    is_right = None if gold is None else found is not None and found["answer"] == gold["answer"]
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
