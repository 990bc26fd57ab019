"""The page to try a pipeline on, in a browser that types, clicks and reads."""

import json
import re

import pytest
import spacy
from conftest import TRAIN_DATA
from devtools import CTRL, open_browser
from served import offline, serve

from spacy_bert_heads.serving.app import make_app

SAILED = TRAIN_DATA[0][0]
WIDTHS = (400, 1200)
CLIPBOARD = ["clipboardReadWrite", "clipboardSanitizedWrite"]
DONE = "document.getElementById('run').ariaBusy === 'false'"
MARKED = "document.getElementById('marked').textContent"
# Elements that reach over the edge; pairs of colours with too little contrast (WCAG 2, AA).
WIDE = """[...document.querySelectorAll('body *')].filter(one =>
  one.getBoundingClientRect().right > document.documentElement.clientWidth + 1
).map(one => one.outerHTML.slice(0, 80))"""
FAINT = """(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = [r, g, b].map(v => v / 255).map(
      v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * part[0] + .7152 * part[1] + .0722 * part[2];
  };
  const ground = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour[3] !== 0) return colour;
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll('body *')].filter(one => one.offsetHeight &&
    [...one.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()));
  return texts.map(one => {
    const pair = [light(parse(getComputedStyle(one).color)), light(ground(one))].sort();
    return [one.outerHTML.slice(0, 80), (pair[1] + .05) / (pair[0] + .05)];
  }).filter(one => one[1] < 4.5);
})()"""


@pytest.fixture(scope="module")
def served(joint):
    with serve(make_app(spacy.load(joint), name="Ships & <boats>")) as (client, _):
        yield client, spacy.load(joint)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(browser, served):
    """The page, freshly opened, which writes nothing to the console."""
    browser.console.clear()
    browser.open(served[0].url + "/")
    yield browser
    assert browser.console == []


def ask(page, kind: str, text: str) -> None:
    page.click(f"#{kind} input")
    page.type(text)
    page.press("Enter")
    page.wait(DONE)


def annotate(page, text: str = SAILED) -> None:
    page.click("#text")
    page.type(text)
    page.press("Enter", CTRL)
    page.wait("!document.getElementById('results').hidden && " + DONE)


def texts(page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({selector!r})].map(one => one.textContent)")


def test_it_asks_for_nothing_else(served):
    status, html = served[0].get("/")
    assert status == 200
    assert not re.search(r"(src|href)=(?!\"data:)", html) and "//" not in html.replace("// ", "")
    assert "<h1>Ships &amp; &lt;boats&gt;</h1>" in html


def test_entities_categories_and_json(page, served):
    annotate(page)
    expected = offline(served[1], SAILED)
    assert texts(page, "mark.entity b, .tag") == [
        f"{one['label']} {one['score']:.2f}" for one in expected["entities"]
    ]
    assert page.run(MARKED).startswith("Anna Grete" + texts(page, ".tag")[0] + " left")
    best = max(expected["categories"], key=expected["categories"].get)
    assert texts(page, ".bars .is-best") == [best]
    assert texts(page, ".bars .value")[0] == f"{expected['categories'][best]:.2f}"
    page.click("#raw summary")
    shown = json.loads(page.run("document.getElementById('json').textContent"))
    assert [one["text"] for one in shown["entities"]] == ["Anna Grete", "Skagen", "Tuesday"]
    page.call("Browser.grantPermissions", permissions=CLIPBOARD)
    page.click("#copy")
    page.wait("document.getElementById('copy').textContent === 'Copied'")
    assert json.loads(page.run("navigator.clipboard.readText()")) == shown


def test_labels_and_threshold(page):
    annotate(page)
    page.click("#labels input[value='PLACE']")
    assert [one.split()[0] for one in texts(page, ".tag")] == ["VESSEL", "DATE"]
    page.click("#labels input[value='PLACE']")
    assert len(texts(page, ".tag")) == 3
    page.run("document.getElementById('threshold').focus()")
    page.run("document.getElementById('threshold').value = 0.99")
    page.press("Right")
    assert texts(page, "output") == ["1.00"]
    assert texts(page, ".tag") == []


def test_questions_are_answered_in_the_text(page):
    annotate(page)
    ask(page, "questions", "Who left?")
    ask(page, "questions", "What burned?")
    assert texts(page, "mark.answer") == ["Anna Grete1"]
    assert [text[2:14] for text in texts(page, ".found")] == ["Who left?Ann", "What burned?"]
    page.click(".found")
    assert texts(page, "mark.chosen") == ["Anna Grete1"]
    assert page.run("document.querySelector('.found').ariaPressed") == "true"
    page.click("#questions .chips button")
    page.wait("document.querySelectorAll('.found').length === 1")
    assert texts(page, "mark.answer") == []


def test_hypotheses_and_categories_of_ones_own(page, served):
    annotate(page)
    ask(page, "hypotheses", "She left.")
    ask(page, "categories", "ships")
    ask(page, "categories", "rain")
    assert texts(page, ".card h2") == ["Categories", "Your own categories", "Hypotheses"]
    assert texts(page, ".card:last-child .is-best") == ["entailment"]
    page.click("#exclusive")
    page.wait(DONE)
    names = ["ships", "rain"]
    (record,) = served[0].annotate(SAILED, categories=names, category_softmax="categories")
    own = texts(page, ".card:nth-child(2) .value")
    assert own == [f"{value:.2f}" for value in sorted(record["zero_shot"].values())[::-1]]


def test_by_keyboard_alone(page):
    page.press("Tab")
    page.type(SAILED)
    page.press("Tab")
    page.type("Who left?")
    page.press("Enter")
    page.wait("document.querySelector('mark.answer') !== null")
    page.run("document.querySelector('.found').focus()")
    page.press("Space")
    assert texts(page, "mark.chosen") == ["Anna Grete1"]
    outline = page.run("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_places_count_characters(page):
    ship = "\U0001f6a2"  # two units of UTF-16
    annotate(page, f"{ship}{ship} {SAILED}")
    ask(page, "questions", "Who left?")
    assert page.run(MARKED).startswith(f"{ship}{ship} ")
    for tag, mark in zip(texts(page, ".tag"), texts(page, "mark.entity"), strict=True):
        assert mark.endswith(tag)
        assert mark.removesuffix(tag).rstrip("12") in SAILED


def test_errors_are_shown(page):
    page.run("document.getElementById('text').removeAttribute('maxlength')")
    page.run(f"document.getElementById('text').value = 'x '.repeat({60_000})")
    page.click("#run")
    page.wait("!document.getElementById('error').hidden")
    assert "120,000 characters" in texts(page, "#error")[0]
    page.run("document.getElementById('text').value = ''")
    annotate(page)
    assert page.run("document.getElementById('error').hidden")


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_can_be_read(page, width):
    page.resize(width)
    assert page.run(WIDE) == [] and page.run(FAINT) == []
    annotate(page, f"{SAILED}. {'long' * 60}")
    ask(page, "questions", "Who left? " + "x" * 120)
    ask(page, "questions", "Who left?")
    ask(page, "hypotheses", "y" * 120)
    ask(page, "categories", "z" * 120)
    page.click("#raw summary")
    page.click(".found:not([disabled])")
    assert page.run(WIDE) == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(FAINT) == []


def test_a_text_is_never_html(page):
    annotate(page, "<img src=x onerror=alert(1)> <b>Anna Grete</b> left Skagen")
    ask(page, "questions", "<i>Who left?</i>")
    assert page.run("document.querySelectorAll('#results img, #results i').length") == 0
    assert "<img src=x" in page.run(MARKED)
