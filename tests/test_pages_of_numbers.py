"""Similarities, choices, numbers and tags on the page of an evaluation."""

import pytest
import spacy
from all_kinds import OTHERS, TEXT, build, make_examples
from browser import look
from test_report import report

from spacy_bert_heads.heads.find import register_extensions
from spacy_bert_heads.pages.results import Measured, Result, Tag, make_result, tasks_of
from spacy_bert_heads.pages.write import render_page, sum_up

KINDS = ["choices", "similarities", "numbers", "tags"]
EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def result(checkpoint) -> Result:
    nlp = build(checkpoint)
    assert tasks_of(nlp) == KINDS
    (example,) = make_examples(nlp)
    example.reference[1].tag_ = EVIL
    example.predicted = nlp(example.predicted)
    return make_result(nlp, example, KINDS)


def test_gold_stands_beside_what_is_predicted(result):
    assert [one.title for one in result.similarities] == OTHERS
    assert [one.gold for one in result.similarities] == [{"score": 4.5}, {"score": 1.0}]
    assert all(one.found.keys() == {"score"} for one in result.similarities)
    (numbers,) = result.numbers
    assert numbers.gold == {"rating": 3.5} and numbers.found.keys() == {"rating"}
    assert [tag.text for tag in result.tags] == TEXT.split()
    assert [tag.gold for tag in result.tags] == ["NNP", EVIL, "NNP", "IN", "NNP"]
    assert [tag.is_right for tag in result.tags] == [t.found == t.gold for t in result.tags]
    assert result.count_errors("tags") == sum(tag.found != tag.gold for tag in result.tags) > 0
    assert result.count_errors("numbers") is result.count_errors("similarities") is None
    assert result.given("tags") == [(tag.text, tag.found) for tag in result.tags]
    assert result.given("numbers") == []  # by numbers no two pipelines would be the same


def test_scores():
    one, other = Result(""), Result("")
    one.numbers = [Measured("", {"a": 1.0, "b": 2.0}, {"a": 3.0})]
    other.numbers = [Measured("", {"a": 1.0}, {"a": 0.5, "c": 9.0}), Measured("", None, {"a": 1.0})]
    assert sum_up([one, other], "numbers") == "mean absolute error 1.25, 2 annotated"
    assert sum_up([one], "similarities") == "no gold annotation"
    one.tags = [Tag("a", "X", "X", True), Tag("b", "X", "Y", False), Tag("c", "X", "", None)]
    assert sum_up([one], "tags") == "1 of 2 (50%)"


def test_the_page_shows_them(result, tmp_path):
    page = render_page([result], KINDS, made="", total=1, lang="xx")
    assert EVIL not in page and "gold 4.5" in page and "gold 3.5" in page
    assert all(title in page for title in ("Similarities", "Numbers", "Tags", "Multiple choice"))
    seen, console = look(page, tmp_path, (400, 1200))
    assert console == []
    for frame in seen:
        assert frame["wide"] == [] and frame["scrollWidth"] <= frame["width"]
        assert frame["filtered"]["tags"] == 1 and frame["filtered"]["numbers"] == 0


@pytest.mark.filterwarnings("ignore:.W036.")  # no entities are annotated
def test_the_report_has_baselines_for_choices_and_tags():
    nlp = spacy.blank("xx")
    register_extensions()
    known = make_examples(nlp)
    (guessed,) = report.guess(known, make_examples(nlp))
    result = make_result(nlp, guessed, ["choices", "tags"])
    assert [report.count(result, task) for task in ("choices", "tags")] == [(1, 2), (3, 5)]
    assert {"choices", "tags"} <= report.MEASURES.keys()
