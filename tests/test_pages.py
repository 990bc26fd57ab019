"""The page of an evaluation: what is on it, and how it looks in a browser."""

import re
from html.parser import HTMLParser
from itertools import product

import pytest
import spacy
from browser import look
from commands import run
from hypothesis import given
from hypothesis import strategies as st
from joint import make_examples
from spacy.tokens import DocBin
from spacy.training import Example

from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.evaluate import score
from spacy_bert_heads.files import OUTPUT_MARK
from spacy_bert_heads.html import TEXT
from spacy_bert_heads.pages import style
from spacy_bert_heads.pages.render import mark_answer, mark_entities
from spacy_bert_heads.pages.results import (
    Entity,
    compare_categories,
    judge_each,
    judge_one,
    make_result,
    tasks_of,
)
from spacy_bert_heads.pairs import make_answer, make_verdict

EVIL = "<script>alert('x')</script> & <img src=x onerror=alert(1)>"
pytestmark = pytest.mark.filterwarnings("ignore:.* leaves a pair out")
TASKS = ["entities", "categories", "verdicts", "answers"]


class Page(HTMLParser):
    """The tags of a page, its words, and the attributes by which files could be asked for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sections: dict[str, str] = {}
        self.words = ""
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        assert not [name for name in found if name.startswith("on")]
        self.addresses += [found[key] for key in ("src", "href", "action") if key in found]
        if tag == "section":
            self.sections[found["id"]] = found["data-kinds"]

    def handle_data(self, data):
        self.words += data


@pytest.fixture
def gold(joint, tmp_path):
    """The two Docs that the pipeline knows, each also with one error more of a kind; a Doc with
    markup in all that a user writes, and one without annotation."""
    nlp = spacy.load(joint)
    docs = [example.reference for example in make_examples(nlp)]
    docs += [example.reference for example in make_examples(nlp)]
    docs[2].ents = docs[2].ents[1:]
    docs[2]._.nli = [make_verdict("neutral"), *docs[2]._.nli[1:]]
    docs[3].cats = {"voyage": 1.0, "fire": 0.0}
    docs[3]._.answers = [make_answer(docs[3])]
    docs.append(nlp.make_doc(f"Anna {EVIL} {'x' * 600} " + "Hull burned. " * 300))
    docs[4]._.hypotheses, docs[4]._.nli = [EVIL, "a " * 60], [make_verdict(EVIL)] * 2
    docs[4]._.questions, docs[4]._.answers = [EVIL], [make_answer(docs[4], 5, 5 + len(EVIL))]
    docs[4].ents = [docs[4].char_span(0, 4, label=EVIL)]
    docs.append(nlp.make_doc("Grete"))
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "gold.spacy")
    return tmp_path / "gold.spacy"


@pytest.fixture
def page(joint, gold, tmp_path) -> str:
    result = run("evaluate", joint, gold, "--pages", tmp_path / "pages")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1].startswith(f"{tmp_path / 'pages' / 'index.html'}: open")
    assert {file.name for file in (tmp_path / "pages").iterdir()} == {"index.html", OUTPUT_MARK}
    return (tmp_path / "pages" / "index.html").read_text(encoding="utf8")


def test_what_is_right_and_what_is_wrong(page):
    found = Page(page)
    errors = {name: set(tasks.split()) for name, tasks in found.sections.items()}
    assert [errors[f"doc-{i}"] for i in (1, 2, 3, 4, 6)] == [
        set(),
        set(),
        {"entities", "verdicts"},
        {"categories", "answers"},
        set(),
    ]
    # Its first answer is markup, its second hypothesis is too long, its label is made up.
    assert errors["doc-5"] == {"entities", "verdicts", "answers"}
    words = " ".join(found.words.split())
    assert "All 6 evaluated Docs" in words
    # Of 3 + 2 + 3 + 2 + 2 verdicts and 3 + 1 + 3 + 1 + 1 answers.
    assert "Verdicts9 of 12 (75%)" in words
    assert "Answers7 of 9 (78%)" in words
    assert "Categories3 of 4 (75%)" in words
    assert "entities: 1 error" in words and "entities: no gold annotation" in words
    assert len(re.findall(r"Anna GreteVESSEL \d\.\d\d ✗ wrong", words)) == 1  # in Doc 3
    assert len(re.findall(r"Anna GreteVESSEL \d\.\d\d left", words)) == 1  # in Doc 1
    assert len(re.findall(r"Anna GreteVESSEL left", words)) == 1  # where it is gold
    assert "too long for a window, skipped" in words


def test_all_text_is_escaped_and_nothing_is_asked_for(page):
    found = Page(page)
    assert found.tags.count("script") == 1 and "img" not in found.tags
    assert found.words.count(EVIL) >= 5  # text twice, hypothesis, question, answer
    assert {address[:5] for address in found.addresses} == {"#doc-"}
    assert not re.search(r"url\(|@import|https?:", page)


def test_it_works_in_a_browser(page, tmp_path):
    views, console = look(page, tmp_path, (400, 1200))
    assert console == []
    for view, width in zip(views, (400, 1200), strict=True):
        assert width - 20 <= view["width"] <= width
        assert view["scrollWidth"] == view["width"] and view["wide"] == []
        assert (view["all"], view["any"], view["again"]) == (6, 3, 6)
        assert view["filtered"] == {"entities": 2, "categories": 1, "verdicts": 2, "answers": 2}
        assert view["status"] == "6 of 6 Docs shown" and view["labelled"]


def test_the_first_docs_alone(joint, gold, tmp_path):
    result = run("evaluate", joint, gold, "--pages", tmp_path / "pages", "--pages-limit", 2)
    assert result.exit_code == 0, result.output
    found = Page((tmp_path / "pages" / "index.html").read_text(encoding="utf8"))
    assert list(found.sections) == ["doc-1", "doc-2"]
    assert "The first 2 of 6 evaluated Docs" in found.words
    assert "Entities4 of 4 found, 0 predictions are wrong0" in found.words


def test_a_folder_of_somebody_else(joint, gold, tmp_path):
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "thesis.txt").write_text("three years")
    result = run("evaluate", joint, gold, "--pages", pages)
    assert result.exit_code == 1
    assert "was not made by `bert evaluate` and contains 'thesis.txt'" in result.output
    assert [file.name for file in pages.iterdir()] == ["thesis.txt"]
    for words in (["--force"], []):  # then it has our mark
        assert run("evaluate", joint, gold, "--pages", pages, *words).exit_code == 0
    assert (pages / "thesis.txt").read_text() == "three years"


def test_spacys_own_components(tmp_path):
    """Rules for entities: no probabilities, and tasks that no component has are not shown."""
    nlp = spacy.blank("xx")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "PLACE", "pattern": "Skagen"}])
    nlp.to_disk(tmp_path / "rules")
    docs = [example.reference for example in make_examples(spacy.blank("xx"))]
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "gold.spacy")
    result = run("evaluate", tmp_path / "rules", tmp_path / "gold.spacy", "--pages", tmp_path / "p")
    assert result.exit_code == 0, result.output
    found = Page((tmp_path / "p" / "index.html").read_text(encoding="utf8"))
    assert "Entities1 of 4 found, 0 predictions are wrong2" in found.words
    assert not any(task.capitalize() in found.words for task in TASKS[1:])


# --- texts


@given(st.text(max_size=30), st.data())
def test_marked_texts_are_the_texts(text, data):
    """Whatever is marked, the text that is read is the same."""
    at = st.integers(0, len(text))
    bounds = sorted(data.draw(st.lists(at, max_size=6)))
    places = [(a, b) for a, b in zip(bounds[::2], bounds[1::2], strict=False) if a < b]
    colours = {"<X>": "#fff"}
    entities = [Entity(a, b, "<X>", None, True) for a, b in places]
    marked = mark_entities(text, entities, colours, "wrong")
    label = '<span class="tag"><b>&lt;X&gt;</b></span>'
    assert marked.count(label) == len(places)
    assert Page(marked.replace(label, "")).words == Page(to_html(text)).words
    if places:
        marked = mark_answer(text, places[0], places)
        assert Page(marked).words == Page(to_html(text)).words


def to_html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def test_answers_far_apart_are_cut_out():
    text = "one " * 200 + "here " + "two " * 200 + "there " + "three " * 200
    first, second = text.index("here"), text.index("there")
    words = Page(mark_answer(text, (first, first + 4), [(second, second + 5)])).words
    parts = [part for part in words.split("…") if part.strip()]
    assert len(parts) == 2 and "here" in parts[0] and "there" in parts[1]
    assert words.startswith("…") and words.endswith("…") and len(words) < 500
    assert all(part.strip() in text for part in parts)


# --- colours


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_enough():
    """4.5 for text, by level AA; that of black on white is 21."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    pairs = [
        *product([TEXT, style.WRONG], style.COLOURS),  # labels, and "wrong" beside them
        *product([TEXT, style.MUTED, style.RIGHT, style.WRONG], ["#ffffff"]),
        *product([TEXT, style.MUTED], [style.PLAIN_GROUND]),
        (TEXT, style.WRONG_GROUND),
        (style.RIGHT, style.RIGHT_GROUND),
        (style.WRONG, style.WRONG_GROUND),
    ]
    assert [(pair, contrast(*pair)) for pair in pairs if contrast(*pair) < 4.5] == []
    assert contrast("#2f6db3", "#e3e8ee") >= 3  # bars


def test_no_label_looks_like_a_judgement():
    """Red and green are for wrong and right."""
    for colour in style.COLOURS:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        assert not (red > green + 30 and abs(green - blue) < 12)
        assert not (green > red + 12 and green > blue + 12)


# --- what is right


def test_what_is_right_is_what_is_scored(joint, gold):
    """The counts of the page are those behind the scores of the same Docs."""
    nlp = spacy.load(joint)
    examples = list(BertCorpus(gold)(nlp))
    for example, doc in zip(examples, nlp.pipe([eg.predicted for eg in examples]), strict=True):
        example.predicted = doc
    scores = score(nlp, examples)
    tasks = tasks_of(nlp)
    assert tasks == TASKS
    results = [make_result(nlp, example, tasks) for example in examples]

    def share(values: list[bool | None]) -> float:
        judged = [value for value in values if value is not None]
        return judged.count(True) / len(judged)

    found = [one.is_right for result in results for one in result.entities]
    true = [one.is_right for result in results for one in result.gold_entities or ()]
    assert share(found) == pytest.approx(scores["ents_p"])
    assert share(true) == pytest.approx(scores["ents_r"])
    for task, key in (("categories", "cats_micro_f"), ("verdicts", "nli_acc")):
        judged = [one.is_right for result in results for one in getattr(result, task)]
        assert share(judged) == pytest.approx(scores[key])
    answers = [answer for result in results for answer in result.answers]
    assert share([answer.is_right for answer in answers]) == pytest.approx(scores["qa_exact"])
    f1 = [answer.f1 for answer in answers if answer.gold is not None]
    assert sum(f1) / len(f1) == pytest.approx(scores["qa_f1"])


@pytest.mark.parametrize(
    "scores, true, is_right, given",
    [
        ({"a": 0.6, "b": 0.4}, "a", True, ["a"]),
        ({"a": 0.3, "b": 0.3, "c": 0.4}, "a", False, ["c"]),
        ({"a": 0.6, "b": 0.4}, None, None, ["a"]),
    ],
)
def test_of_exclusive_categories_the_most_probable_one_is_judged(scores, true, is_right, given):
    judged = judge_one("head", scores, {}, true)
    assert judged.is_right is is_right and judged.is_exclusive
    assert [one.label for one in judged.categories if one.is_given] == given
    assert [one.score for one in judged.categories] == sorted(scores.values(), reverse=True)


@pytest.mark.parametrize(
    "scores, gold, threshold, is_right, given",
    [
        ({"a": 0.6, "b": 0.7}, {"a": 1.0, "b": 1.0}, 0.5, True, ["b", "a"]),
        ({"a": 0.6, "b": 0.7}, {"a": 1.0}, 0.5, True, ["b", "a"]),  # b is not annotated
        ({"a": 0.6, "b": 0.7}, {"b": 0.0}, 0.5, False, ["b", "a"]),
        ({"a": 0.6, "b": 0.4}, {"a": 1.0, "b": 0.0}, 0.3, False, ["a", "b"]),
        ({"a": 0.1, "b": 0.2}, {"a": 0.0, "b": 0.0}, 0.5, True, []),
        ({"a": 0.1, "b": 0.2}, {}, 0.5, None, []),
    ],
)
def test_categories_are_judged_by_their_threshold(scores, gold, threshold, is_right, given):
    judged = judge_each("head", scores, {}, gold, threshold)
    assert judged.is_right is is_right and not judged.is_exclusive
    assert [one.label for one in judged.categories if one.is_given] == given
    assert [one.score for one in judged.categories] == sorted(scores.values(), reverse=True)


def test_each_component_has_its_own_categories():
    """spaCy's: one chooses, the other doesn't; what no component has a label for comes last."""
    nlp = spacy.blank("xx")
    for name, factory, labels in (
        ("one", "textcat", ["a", "b"]),
        ("many", "textcat_multilabel", ["c", "d"]),
    ):
        pipe = nlp.add_pipe(factory, name=name, config={"threshold": 0.3})
        for label in labels:
            pipe.add_label(label)
    true, found = nlp.make_doc("Anna"), nlp.make_doc("Anna")
    found.cats = {"a": 0.6, "b": 0.4, "c": 0.35, "d": 0.4, "e": 0.45}
    true.cats = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0, "e": 0.0}
    judged = compare_categories(nlp, Example(found, true))
    rows = [(j.title, j.is_right, [c.label for c in j.categories if c.is_given]) for j in judged]
    assert rows == [
        ("one", True, ["a"]),
        ("many", False, ["d", "c"]),
        ("categories", True, []),
    ]
