"""What is right on the page of an evaluation is what the scores of the same Docs count."""

import numpy as np
import pytest
import spacy
import torch
from small_pipelines import LANG
from spacy.language import Language
from spacy.tokens import Span
from spacy.training import Example

from spacy_bert_heads.evaluate import score
from spacy_bert_heads.pages.confusion import render_confusions
from spacy_bert_heads.pages.render import render_judged
from spacy_bert_heads.pages.results import Category, Result, make_result, tasks_of
from spacy_bert_heads.pages.write import sum_up
from spacy_bert_heads.pairs import make_choice, make_verdict

TEXT = "Anna left Hull"
UNKNOWN = pytest.mark.filterwarnings("ignore:.*(does not learn|does not have)")


def make_nlp(kind: str, labels: str = "", **config) -> Language:
    """A pipeline of one head without weights."""
    nlp = spacy.blank(LANG)
    head = nlp.add_pipe(f"bert_{kind}", config=config)
    for label in labels:
        head.add_label(label)
    return nlp


def make_examples(nlp: Language, number: int) -> list[Example]:
    return [Example(nlp.make_doc(TEXT), nlp.make_doc(TEXT)) for _ in range(number)]


def categorized(nlp: Language, rows: list[tuple[dict, list[float]]]) -> list[Example]:
    """Gold categories, and the probabilities of those that the head has."""
    (_, head), examples = nlp.pipeline[0], make_examples(nlp, len(rows))
    for example, (gold, _) in zip(examples, rows, strict=True):
        example.reference.cats = gold
    p = torch.tensor([row for _, row in rows])
    logits = p.logit() if head.multi_label else p.log()
    head.set_annotations([example.predicted for example in examples], logits)
    return examples


def results_of(nlp: Language, examples: list[Example]) -> list[Result]:
    return [make_result(nlp, example, tasks_of(nlp)) for example in examples]


def share(results: list[Result], task: str) -> float:
    judged = [one.is_right for result in results for one in getattr(result, task)]
    return float(np.mean([one for one in judged if one is not None]))


# --- exclusive categories

A, B = {"A": 1.0, "B": 0.0}, {"A": 0.0, "B": 1.0}
CATEGORIES = {
    "distributions": (
        None,
        [({"A": 0.8, "B": 0.2}, [0.6, 0.4]), ({"A": 0.4, "B": 0.6}, [0.6, 0.4])],
        "1 of 2 (50%)",
    ),
    "an unknown category": (
        None,
        [(B, [0.4, 0.6]), ({"A": 0.0, "B": 0.0, "X": 1.0}, [0.6, 0.4]), ({"X": 1.0}, [0.4, 0.6])],
        "1 of 3 (33%)",
    ),
    "below its threshold": ({"A": 0.9}, [(A, [0.6, 0.4]), (B, [0.4, 0.6])], "1 of 2 (50%)"),
    "no category": (None, [(A, [0.6, 0.4]), ({"A": 0.0, "B": 0.0}, [0.6, 0.4])], "1 of 1 (100%)"),
}


@UNKNOWN
@pytest.mark.parametrize("case", CATEGORIES)
def test_exclusive_categories(case):
    thresholds, rows, shown = CATEGORIES[case]
    nlp = make_nlp("textcat", "AB", thresholds=thresholds)
    examples = categorized(nlp, rows)
    results = results_of(nlp, examples)
    assert sum_up(results, "categories") == shown
    assert score(nlp, examples)["cats_acc"] == share(results, "categories")


@UNKNOWN
def test_a_category_that_the_head_lacks_is_shown_as_the_gold_one():
    nlp = make_nlp("textcat", "AB")
    (result,) = results_of(nlp, categorized(nlp, [({"A": 0.0, "X": 1.0}, [0.75, 0.25])]))
    (judged,) = result.categories
    assert judged.categories == [
        Category("A", pytest.approx(0.75), True, False),
        Category("B", pytest.approx(0.25), False, False),
        Category("X", 0.0, False, True),
    ]


def test_a_category_below_its_threshold_is_shown_but_not_given():
    nlp = make_nlp("textcat", "AB", thresholds={"A": 0.9})
    (result,) = results_of(nlp, categorized(nlp, [(A, [0.75, 0.25])]))
    (judged,) = result.categories
    assert judged.categories == [Category("A", pytest.approx(0.75), False, True)]
    assert "below its threshold, left out" in render_judged(judged)


def test_the_probability_of_the_gold_one_is_not_known_below_a_threshold():
    nlp = make_nlp("textcat", "AB", thresholds={"A": 0.9})
    (result,) = results_of(nlp, categorized(nlp, [(B, [0.75, 0.25])]))
    (judged,) = result.categories
    assert [(one.label, one.is_gold) for one in judged.categories] == [("A", False), ("B", True)]
    assert '<dd class="value">–</dd>' in render_judged(judged)


# --- any number of categories


@pytest.mark.parametrize(
    "thresholds, rows, precision, recall",
    [
        (None, [({"A": 0.9, "B": 0.2}, [0.8, 0.7])], 1 / 2, 1.0),
        ({"A": 0.9}, [(A, [0.8, 0.1]), ({"A": 1.0, "B": 1.0}, [0.95, 0.7])], 1.0, 2 / 3),
    ],
)
def test_categories_of_which_any_number_holds(thresholds, rows, precision, recall):
    nlp = make_nlp("textcat_multilabel", "AB", thresholds=thresholds)
    examples = categorized(nlp, rows)
    shown = [one for result in results_of(nlp, examples) for one in result.categories[0].categories]
    right = sum(one.is_given and one.is_gold for one in shown)
    given, true = (sum(getattr(one, name) for one in shown) for name in ("is_given", "is_gold"))
    scores = score(nlp, examples)
    assert scores["cats_micro_p"] == right / given == precision
    assert scores["cats_micro_r"] == right / true == recall


def test_a_confusion_matrix_has_only_exclusive_categories():
    tables = {}
    for kind in ("textcat", "textcat_multilabel"):
        nlp = make_nlp(kind, "AB")
        results = results_of(nlp, categorized(nlp, [(A, [0.4, 0.6]), (B, [0.4, 0.6])]))
        tables[kind] = render_confusions(results, ["categories"])
    assert tables["textcat"].count("<caption>Categories</caption>") == 1
    assert tables["textcat_multilabel"] == ""


# --- verdicts and choices


def test_other_verdicts_beside_a_single_label():
    """A gold label that the head doesn't have says that its only one does not hold."""
    nlp = make_nlp("nli", "A")
    (example,) = make_examples(nlp, 1)
    for doc in (example.predicted, example.reference):
        doc._.hypotheses = ["1", "2", "3", "4"]
    example.reference._.nli = [make_verdict(label) for label in ("A", "B", "none", "B")]
    found = [("A", 0.75), ("none", 0.25), ("none", 0.25), ("A", 0.75)]
    example.predicted._.nli = [make_verdict(label, {"A": p}) for label, p in found]
    results = results_of(nlp, [example])
    assert score(nlp, [example])["nli_acc"] == share(results, "verdicts") == 0.75
    assert results[0].verdicts[1].categories == [
        Category("none", 0.75, True, True),
        Category("A", 0.25, False, False),
    ]


def test_a_choice_below_its_threshold_is_wrong_and_not_too_long():
    nlp = make_nlp("choice", thresholds={"option": 0.7})
    (example,) = make_examples(nlp, 1)
    choices = [{"question": name, "options": ["Anna", "Hull"]} for name in ("Who?", "Where?")]
    for doc in (example.predicted, example.reference):
        doc._.choices = choices
    example.reference._.chosen = [make_choice(0), make_choice(1)]
    found = [make_choice(0, [0.6, 0.4]), make_choice(1, [0.2, 0.8])]
    nlp.get_pipe("bert_choice").set_annotations([example.predicted], [(choices, found)])
    results = results_of(nlp, [example])
    assert score(nlp, [example])["choice_acc"] == share(results, "choices") == 0.5
    unsure, _ = results[0].choices
    assert unsure.categories == [Category("Anna", 0.6, False, True)]
    assert "below its threshold, left out" in render_judged(unsure)


# --- entities

WHERE = {"who": (0, 1), "did": (1, 2), "where": (2, 3)}


def with_entities(nlp, gold: dict, found: dict, *, missing: tuple = ()) -> Example:
    """Entities by their word of "Anna left Hull"; words that are `missing` are not annotated."""
    (example,) = make_examples(nlp, 1)
    for doc, labels in ((example.reference, gold), (example.predicted, found)):
        doc.set_ents([Span(doc, *WHERE[word], label=label) for word, label in labels.items()])
    unknown = [Span(example.reference, *WHERE[word]) for word in missing]
    example.reference.set_ents(example.reference.ents, missing=unknown)
    return example


ENTITIES = {
    "all annotated": ({"who": "A"}, {"who": "A", "where": "B"}, (), [True, False], [True]),
    "some annotated": ({"who": "A"}, {"who": "A", "where": "B"}, ("where",), [True, None], [True]),
    "none right": ({"who": "A"}, {"did": "A", "where": "B"}, ("where",), [False, None], [False]),
    "negated": ({"who": "A", "where": "!B"}, {"who": "A", "where": "B"}, (), [True, None], [True]),
    "negated and found": ({"who": "!A"}, {"who": "A", "did": "B"}, (), [None, False], []),
}


@pytest.mark.parametrize("case", ENTITIES)
def test_entities(case):
    gold, found, missing, judged, reached = ENTITIES[case]
    nlp = make_nlp("ner", "AB")
    example = with_entities(nlp, gold, found, missing=missing)
    (result,) = results_of(nlp, [example])
    assert [one.is_right for one in result.entities] == judged
    assert [one.is_right for one in result.gold_entities] == reached
    scores = score(nlp, [example])
    known = [one for one in judged if one is not None]
    assert scores["ents_p"] == known.count(True) / len(known)
    assert scores["ents_r"] == (reached.count(True) / len(reached) if reached else 0)
    assert result.count_errors("entities") == judged.count(False) + reached.count(False)
