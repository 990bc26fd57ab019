"""Which claims and labels calibration and thresholds count, and what they make of few."""

import pytest
import torch
from head_cases import NLP, make_head
from small_pipelines import build
from spacy.tokens import Doc
from spacy.training import Example

from spacy_bert_heads.calibration.collect import Collected, Part, collect
from spacy_bert_heads.calibration.run import format_tuned
from spacy_bert_heads.calibration.thresholds import Threshold, tune
from spacy_bert_heads.pairs import make_answer

UNKNOWN = pytest.mark.filterwarnings("ignore:.*(does not learn|does not have)")


def with_cats(cats: dict) -> Example:
    gold, found = (Doc(NLP.vocab, words=["a"]) for _ in range(2))
    gold.cats = cats
    return Example(found, gold)


def collected(kind: str, labels: str, rows: list[tuple[dict, list[float]]]) -> Collected:
    """What a head without weights has for gold categories and probabilities."""
    p = torch.tensor([row for _, row in rows])
    logits = p.logit() if kind == "textcat_multilabel" else p.log()
    head = make_head(kind, labels)
    return Collected(head, [Part([with_cats(gold) for gold, _ in rows], logits)])


class Answered(Collected):
    """Answers as they are, which a model doesn't write again."""

    def claims(self):
        return list(self.head.claims([eg for part in self.parts for eg in part.examples], None))


# --- gold labels that a head lacks


@UNKNOWN
def test_claims_about_docs_with_an_unknown_category_are_wrong():
    found = collected("textcat", "AB", [({"A": 1.0}, [0.75, 0.25]), ({"X": 1.0}, [0.75, 0.25])])
    right, wrong = found.claims()
    assert right == ("A", pytest.approx(0.75), True, pytest.approx(0.75))
    assert wrong == ("A", pytest.approx(0.75), False, pytest.approx(0.25))
    assert tune(found, "precision", 0.9)[0] == Threshold(
        "A", 1.0, False, 2, 0, None, 0.0, None, 0.5
    )


@UNKNOWN
@pytest.mark.parametrize("cats", [{"voyage": 0.0, "fire": 0.0, "new": 1.0}, {"new": 1.0}])
def test_docs_with_an_unknown_category_are_collected(checkpoint, cats):
    nlp = build(checkpoint, "textcat", settings=None)
    example = Example(nlp.make_doc("Anna left"), nlp.make_doc("Anna left"))
    example.reference.cats = cats
    assert [one.is_right for one in collect(nlp, [example])["bert_textcat"].claims()] == [False]


# --- labels without claims


@pytest.mark.parametrize("goal", ["precision", "recall", "f"])
@pytest.mark.parametrize("kind", ["textcat", "textcat_multilabel"])
def test_a_label_without_claims_has_the_threshold_0(kind, goal):
    labels = dict.fromkeys("ABC", 0.0)
    rows = [({**labels, "A": 1.0}, [0.75, 0.15, 0.1]), ({**labels, "B": 1.0}, [0.75, 0.15, 0.1])]
    first, *others = tune(collected(kind, "ABC", rows), goal, 0.5)
    assert (first.label, first.claims, first.kept) == ("A", 2, 2)
    assert others == [
        Threshold("B", 0.0, goal != "recall", 0, 0, None, 0.0, None, None),
        Threshold("C", 0.0, True, 0, 0, None, None, None, None),
    ]
    shown = format_tuned({"head": [first, *others]})
    assert "without any, the threshold is 0, which accepts all predictions" in " ".join(
        shown.split()
    )


# --- answers


def answered(*places: tuple[tuple[int, int], tuple[int, int]]) -> Answered:
    """The characters of gold and predicted answers in "The boat left", (0, 0) for none."""
    gold, found = (NLP.make_doc("The boat left") for _ in range(2))
    for doc in (gold, found):
        doc._.questions = [f"{i}?" for i in range(len(places))]
    gold._.answers = [make_answer(gold, *true) for true, _ in places]
    found._.answers = [make_answer(found, *guess, score=0.75) for _, guess in places]
    return Answered(make_head("qa", ""), [Part([Example(found, gold)], None)])


def test_no_answer_has_a_threshold_where_every_question_has_one():
    found = answered(((0, 8), (0, 0)), ((0, 8), (4, 8)))
    assert tune(found, "precision", 0.9) == [
        Threshold("answer", 0.0, True, 1, 1, 1.0, 0.5, pytest.approx(2 / 3), 1.0),
        Threshold("no answer", 1.0, False, 1, 0, None, 0.0, None, 0.0),
    ]


def test_an_answer_of_articles_is_none_and_its_f_is_1():
    answer, no_answer = tune(answered(((0, 0), (0, 3))), "f", 0.0)
    assert answer == Threshold("answer", 0.0, True, 1, 1, 1.0, 1.0, 1.0, 1.0)
    assert no_answer == Threshold("no answer", 0.0, True, 0, 0, None, 0.0, None, None)
