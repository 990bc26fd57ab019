"""The end of the demo: baselines, intervals, and the page in a browser."""

import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import spacy
import srsly
from browser import look
from joint import make_examples
from spacy.tokens import DocBin
from test_pages import Page, contrast

from spacy_bert_heads.html import TEXT
from spacy_bert_heads.pages.confusion import MAX_LABELS, count_confusions, render_confusion
from spacy_bert_heads.pages.results import Category, Judged
from spacy_bert_heads.pages.style import MUTED, SHADES

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT / "scripts"))
import overview  # noqa: E402
import report  # noqa: E402

KEYS = {"ents_f": 1.5, "cats_micro_f": 20.0, "nli_acc": 33.0, "qa_f1": 0.0}


@pytest.fixture
def data(joint, tmp_path):
    docs = [example.reference for example in make_examples(spacy.load(joint))]
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "data.spacy")
    return tmp_path / "data.spacy"


@pytest.fixture
def page(joint, data, tmp_path, monkeypatch, capsys) -> str:
    shutil.copytree(joint, tmp_path / "training" / "joint" / "model-best")
    log = [{"step": 0, "scores": KEYS}, {"step": 50, "scores": dict.fromkeys(KEYS, 100.0)}]
    srsly.write_jsonl(tmp_path / "training" / "joint.jsonl", log)
    monkeypatch.setattr(report, "PIPELINES", ("joint",))
    report.main(tmp_path / "training", data, data, tmp_path / "report.html")
    words = capsys.readouterr().out.split()
    # It knows both Docs by heart: of 4 names, 2 categories, 5 verdicts and 4 answers.
    assert words.count("100.0") >= 4
    return (tmp_path / "report.html").read_text(encoding="utf8")


def test_the_page(page):
    found = Page(page)
    assert found.tags.count("script") == 1 and found.tags.count("svg") == 4
    assert found.tags.count("polyline") == 4 and found.tags.count("figcaption") == 4
    assert {address[:5] for address in found.addresses} == {"#doc-"}
    assert not re.search(r"url\(|@import|https?:", page)
    words = " ".join(found.words.split())
    assert "Verdicts accuracy 100.0 %" in words.replace("accuracy100", "accuracy 100")
    assert "1 · Anna Grete" in words


def test_it_works_in_a_browser(page, tmp_path):
    views, console = look(page, tmp_path, (400, 1200))
    assert console == []
    for view in views:
        assert view["scrollWidth"] == view["width"] and view["wide"] == []
        assert (view["all"], view["any"], view["again"]) == (2, 0, 2)
        assert view["labelled"]


def test_contrast_is_enough():
    """4.5 for text and 3 for what is drawn, by level AA of WCAG 2.2."""
    assert min(contrast(TEXT, shade) for shade in SHADES) >= 4.5
    assert contrast(MUTED, "#ffffff") >= 4.5
    assert contrast(overview.BAR, overview.TRACK) >= 3
    assert contrast(overview.BAR, "#ffffff") >= 3
    assert contrast(overview.MARK, overview.TRACK) >= 3


# --- figures


def test_the_baseline_knows_the_training_data_alone(data):
    nlp = spacy.blank("xx")
    guessed = report.guess(make_examples(nlp), make_examples(nlp))
    docs = [example.predicted for example in guessed]
    for example in guessed:
        names = [(ent.text, ent.label_) for ent in example.reference.ents]
        assert [(ent.text, ent.label_) for ent in example.predicted.ents] == names
    # Of each category one Doc: the first by name. Of the verdicts two are entailed, two neutral.
    assert [max(doc.cats, key=doc.cats.get) for doc in docs] == ["fire", "fire"]
    assert {verdict["label"] for doc in docs for verdict in doc._.nli} == {"entailment"}
    assert {answer["text"] for doc in docs for answer in doc._.answers} == {""}


def test_intervals():
    half, whole, none = [(1, 2)] * 8, [(2, 2)] * 8, [(0, 2)] * 8
    assert report.paired_bootstrap(half, half, report.share) == (0.5, 0.5, 0, 0, 0)
    assert report.paired_bootstrap(none, whole, report.share) == (0, 1, 1, 1, 1)
    # Right in one of two documents: resamples have none, one or both of them, 1/4, 1/2 and 1/4.
    found = report.paired_bootstrap([(0, 1)] * 2, [(0, 1), (1, 1)], report.share)
    assert found == (0, 0.5, 0.5, 0, 1)
    # Documents count by their items.
    found = report.paired_bootstrap([(0, 1), (0, 3)], [(0, 1), (3, 3)], report.share)
    assert found.second == 0.75


def judged(gold: str, given: str, labels: str = "ab") -> Judged:
    return Judged("", [Category(x, 0.5, x == given, x == gold) for x in labels], gold == given)


def test_confusions():
    counts = count_confusions(
        [judged("a", "a"), judged("a", "b"), judged("b", "b"), judged("", "a")]
    )
    assert counts == Counter({("a", "a"): 1, ("a", "b"): 1, ("b", "b"): 1})
    found = Page(render_confusion("Letters", counts))
    assert " ".join(found.words.split()) == "Lettersaba11b01"
    many = "abcdefghi"[: MAX_LABELS + 1]
    assert render_confusion("Many", count_confusions([judged(x, "a", many) for x in many])) == ""


def test_all_that_the_project_names_is_there():
    commands = srsly.read_yaml(PROJECT / "project.yml")["commands"]
    text = " ".join(line for command in commands for line in command["script"])
    made = {"configs/public.cfg", "configs/languages.cfg"}
    files = set(re.findall(r"\b(?:configs|scripts)/\w+\.(?:cfg|py)\b", text)) - made
    assert files and all((PROJECT / file).is_file() for file in files)
    shipped = {f"configs/{file.name}" for file in (PROJECT / "configs").glob("*.cfg")}
    assert shipped - made <= files
