"""Comparisons of classifiers with rare, unknown or different labels, and of several heads."""

import numpy as np
import pytest
import spacy
from small_pipelines import LANG
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example

from spacy_bert_heads.comparison import compare as comparison
from spacy_bert_heads.comparison import runs
from spacy_bert_heads.evaluate import Predicted, score

UNKNOWN = pytest.mark.filterwarnings("ignore:.*(does not learn|does not have)")


def make_nlp(kind: str, *labels_of_heads: str) -> Language:
    """A pipeline without weights, of a head for each string of labels."""
    nlp = spacy.blank(LANG)
    for i, labels in enumerate(labels_of_heads):
        head = nlp.add_pipe(f"bert_{kind}", name=f"{kind}_{i}")
        for label in labels:
            head.add_label(label)
    return nlp


def one_of(label: str, labels: str) -> dict[str, float]:
    return {one: float(one == label) for one in labels}


def predicted(nlp: Language, rows: list[tuple[dict, dict]]) -> Predicted:
    """Gold and predicted categories, as of a pipeline that was run."""
    examples = []
    for gold, found in rows:
        docs = [Doc(nlp.vocab, words=["a"]) for _ in range(2)]
        docs[0].cats, docs[1].cats = found, gold
        examples.append(Example(*docs))
    return Predicted(nlp, examples, score(nlp, examples), 1.0)


@pytest.fixture
def compare(monkeypatch):
    """Compare pipelines that were run already, without files."""

    def compare(**made: Predicted) -> dict:
        monkeypatch.setattr(comparison, "find_pipelines", lambda name: [name])
        monkeypatch.setattr(runs, "predict", lambda name, *_, **__: made[name])
        return comparison.compare([*made], "gold.spacy", n_resamples=200).report

    return compare


def scores_of(report: dict) -> dict[str, list[float]]:
    return {
        key: [row["score"] for row in each["pipelines"]] for key, each in report["scores"].items()
    }


# --- rare labels


@pytest.mark.parametrize("kind", ["textcat", "textcat_multilabel"])
def test_who_is_always_right_has_full_marks_in_every_resample(compare, kind):
    """One of twelve Docs has C, so a third of the resamples have none."""
    nlp = make_nlp(kind, "ABC")
    rows = [one_of(label, "ABC") for label in "AABABBABABAC"]
    made = predicted(nlp, [(cats, cats) for cats in rows])
    report = compare(one=made, two=made)
    for row in report["scores"]["cats_score"]["pipelines"]:
        assert (row["score"], *row["interval"]) == (1.0, 1.0, 1.0)


def test_the_macro_auc_is_of_categories_for_which_it_is_defined():
    """B never holds: it has no ROC curve."""
    nlp = make_nlp("textcat_multilabel", "ABC")
    rows = [
        ({"A": 1.0, "B": 0.0, "C": 1.0}, {"A": 0.9, "B": 0.5, "C": 0.5}),
        ({"A": 1.0, "B": 0.0, "C": 0.0}, {"A": 0.3, "B": 0.5, "C": 0.4}),
        ({"A": 0.0, "B": 0.0, "C": 0.0}, {"A": 0.6, "B": 0.5, "C": 0.3}),
    ]
    scores = predicted(nlp, rows).scores
    assert scores["cats_auc_per_type"] == {"A": 0.5, "B": None, "C": 1.0}
    assert scores["cats_macro_auc"] == scores["cats_score"] == 0.75


# --- labels that one lacks


@pytest.fixture
def with_and_without_c(compare):
    """The report on a pipeline that knows C, and one that doesn't, for Docs with A, B, C and C."""

    def made(labels: str, guesses: str) -> Predicted:
        gold = [one_of(label, "ABC") for label in "ABCC"]
        found = [one_of(label, labels) for label in guesses]
        return predicted(make_nlp("textcat", labels), list(zip(gold, found, strict=True)))

    return compare(three=made("ABC", "ABCA"), two=made("AB", "AAAB"))


@UNKNOWN
def test_scores_are_those_of_common_labels(with_and_without_c):
    # A prediction of A or B for a Doc with C is wrong: A has F 2 / 3 and 1 / 2, B has 1 and 0.
    assert scores_of(with_and_without_c) == {
        "cats_score": pytest.approx([5 / 6, 1 / 4]),
        "cats_acc": [1.0, 0.5],
    }
    assert [note for note in with_and_without_c["notes"] if "without the labels C" in note]


@UNKNOWN
def test_mcnemar_skips_docs_with_a_label_that_one_lacks(with_and_without_c):
    ((row,),) = (test["pipelines"] for test in with_and_without_c["mcnemar"])
    assert (row["decisions"], row["only_first_right"], row["only_this_right"]) == (2, 1, 0)


@UNKNOWN
def test_accuracy_is_counted_with_categories_that_the_head_lacks(monkeypatch):
    nlp = make_nlp("textcat", "AB")
    gold = [{"A": 1.0, "B": 0.0}, {"A": 0.0, "B": 1.0}, {"A": 0.0, "B": 0.0, "X": 1.0}, {"X": 1.0}]
    made = predicted(nlp, [(cats, one_of("A", "AB")) for cats in gold])
    monkeypatch.setattr(runs, "predict", lambda *_, **__: made)
    weights = np.asarray([[1, 1, 1, 1], [2, 1, 0, 1], [0, 0, 2, 2]])
    figures = runs.read_run("", "", -1, lambda scorer, n_docs: scorer(weights)).figures
    assert figures["cats_acc"].is_counted and figures["cats_score"].is_counted
    assert figures["cats_acc"].resampled.tolist() == [0.25, 0.5, 0.0]


# --- several heads


def test_two_recognizers_are_compared_with_one_that_has_all_labels(compare):
    made = []
    for labels_of_heads in (["A", "B"], ["AB"]):
        nlp = make_nlp("ner", *labels_of_heads)
        gold, found = (Doc(nlp.vocab, words=list("abcd")) for _ in range(2))
        gold.set_ents([gold.char_span(0, 1, "A"), gold.char_span(2, 3, "B")])
        found.set_ents([found.char_span(0, 1, "A"), found.char_span(2, 3, "A")])
        examples = [Example(found, gold)]
        made.append(Predicted(nlp, examples, score(nlp, examples), 1.0))
    report = compare(two=made[0], one=made[1])
    assert scores_of(report) == {key: [0.5, 0.5] for key in ("ents_p", "ents_r", "ents_f")}
    assert report["notes"] == ["Intervals from so few documents (1) are too narrow."]
