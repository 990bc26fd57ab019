"""The files of the views into an encoder, and the commands that write them."""

import json
import re
import sys
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
import spacy
from commands import run
from devtools import open_browser
from inspected import SENTENCES, write_docs
from matplotlib.image import imread

from spacy_bert_heads.inspection.html import save_map, save_weights, save_word, to_cells
from spacy_bert_heads.inspection.map import Labelled, MapView
from spacy_bert_heads.inspection.source import open_source
from spacy_bert_heads.inspection.weights import LayerWeights
from spacy_bert_heads.inspection.word import WordView, compare_word


class Page(HTMLParser):
    """Read a page, and check that tags are closed and nothing is loaded from elsewhere."""

    VOID = ("meta", "img", "br")

    def __init__(self, file) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[bytes] = []
        self.tags: list[tuple[str, dict]] = []
        self.words, self.data = "", ""
        self.feed(file.read_text(encoding="utf8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert not {"href", "src"} & set(found) or tag == "img"
        assert tag not in ("link", "iframe")
        self.tags.append((tag, found))
        if tag == "img":
            head, data = found["src"].split(",")
            assert head == "data:image/png;base64" and found["alt"]
            self.images.append(b64decode(data))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.data = self.data or data
        elif self.open[-1:] != ["style"]:
            self.words += data


def check_files(files, name) -> tuple[np.ndarray, Page]:
    picture, page = files
    assert (picture.name, page.name) == (f"{name}.png", f"{name}.html")
    pixels, read = imread(picture), Page(page)
    assert [tag for tag, _ in read.tags].count("h1") == 1  # a title once
    assert min(pixels.shape[:2]) > 200 and len(np.unique(pixels[..., :3])) > 20
    return pixels, read


NASTY = 'They paid $5 and $6 <b>&amp;</b>\n\tto the bank\'s "friends" {picture}.'


@pytest.mark.parametrize("n, depth", [(2, 1), (6, 12), (20, 6)])
def test_files_of_a_word(tmp_path, n, depth):
    doc = spacy.blank("en")(NASTY)
    (place,) = [token.i for token in doc if token.text == "bank"]
    cosines = np.full((depth + 1, n, n), -0.123)
    cosines[:, range(n), range(n)] = 1
    view = WordView("some/folder", "bank", [doc[place : place + 1]] * n, cosines)
    files = save_word(view, tmp_path / "new" / "bank.html")
    _, page = check_files(files, "bank")
    assert page.images == []  # its figures are there as text
    assert page.words.count('They paid $5 and $6 <b>&amp;</b> to the bank\'s "friends"') == n
    assert page.words.count("-0.12") == n * (n - 1) * (depth + 1) + depth + 1
    assert f"layer {depth} (last)" in page.words
    scrolled = [found for _, found in page.tags if found.get("class") == "scroll"]
    assert len(scrolled) == depth + 1  # each can be reached and scrolled by keyboard
    assert all(one["tabindex"] == "0" and one["aria-labelledby"] for one in scrolled)


def test_files_of_weights(tmp_path):
    views = [
        LayerWeights("bert_ner", (0, 1, 2), np.asarray([0.5, 0.25, 0.25]), 1.125, 2),
        LayerWeights("bert_<qa>", (1, 2), np.asarray([0.125, 0.875]), 2.0, 2),
        LayerWeights("bert_nli", (2,), np.asarray([1.0]), 1.0, 2),
    ]
    _, page = check_files(save_weights("a/$b$/c", views, tmp_path / "v1.2"), "v1.2")
    assert page.images == []
    words = " ".join(page.words.split())
    assert "bert_ner · mean layer 0.75 · scale 1.125" in words
    assert "embeddings0.500 layer 10.250 layer 2 (last)0.250" in words
    assert "bert_<qa> · mean layer 1.88 · scale 2.000 layer 10.125 layer 2 (last)0.875" in words


@pytest.mark.parametrize("n_views, n_categories", [(1, 2), (2, 9)])
def test_where_a_map_has_its_documents(tmp_path, n_views, n_categories):
    rng = np.random.default_rng(0)
    nlp = spacy.blank("en")
    names = [f"$c{i}$" for i in range(n_categories)]
    categories = [names[i % n_categories] for i in range(40)]
    docs = [nlp.make_doc(f'{i} "<b>"') for i in range(40)]
    points = [rng.normal(size=(40, 2)) for _ in range(n_views)]
    views = [MapView("a", 1, 2, one, ("x", "y"), 0.5, 0.25) for one in points]
    files = save_map(views, Labelled(docs, categories, 0), tmp_path / "map")
    _, page = check_files(files, "map")
    data = json.loads(page.data)
    assert data["docs"] == [[category, f'{i} "<b>"'] for i, category in enumerate(categories)]
    assert len(data["points"]) == len(page.images) == n_views
    # Where one points there is something to be seen, and in between hardly ever.
    for places, image in zip(data["points"], page.images, strict=True):
        (tmp_path / "one.png").write_bytes(image)
        pixels = imread(tmp_path / "one.png")
        height, width = pixels.shape[:2]
        centres = [(round(x * width), round(y * height)) for x, y in places]
        seen = [pixels[y, x, :3].min() < 0.85 for x, y in centres]
        assert len(seen) == 40 and all(seen)
        beside = [pixels[y + 9, x + 9, :3].min() < 0.85 for x, y in centres]
        assert np.mean(beside) < 0.3


@pytest.mark.parametrize("lowest", [-0.2, 0.0, 0.9])
def test_contrast_of_cells(lowest):
    """4.5 at the least (WCAG 2.2, level AA), by the definition of the relative luminance."""

    def luminance(colour: str) -> float:
        rgb = np.asarray([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    cells = to_cells(list(np.linspace(lowest, 1, 200)), lowest)
    found = re.findall(r"background:(#\w{6});color:(#\w{6})", cells)
    assert len(found) == 200 and len({text for _, text in found}) == 2
    for pair in found:
        dark, light = sorted(map(luminance, pair))
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_a_map_in_a_browser(tmp_path):
    """At 400 pixels, by keyboard, by touch and by pointer."""
    nlp = spacy.blank("en")
    docs = [nlp.make_doc(f"document {i}") for i in range(5)]
    # The last one is in the middle of the others.
    points = np.asarray([[-1.0, 0], [1, 0], [0, -1], [0, 1], [0, 0]])
    views = [MapView(name, 1, 2, points, ("x", "y"), 0.5, 0.25) for name in ("a", "b")]
    _, file = save_map(views, Labelled(docs, [*"ABABA"], 0), tmp_path / "map")
    with open_browser(tmp_path) as page:
        page.call("Emulation.setTouchEmulationEnabled", enabled=True)
        page.open(file.as_uri(), 400, 800)
        shown = "document.getElementById('shown').textContent"
        assert page.run("document.documentElement.scrollWidth") <= 400
        page.run("document.querySelector('.plot').focus()")
        assert page.run(shown) == "A (1 of 5): document 0"
        assert page.run("[...document.querySelectorAll('.ring')].every(one => !one.hidden)")
        for number in (4, 1):  # on the way, and the last one in this direction
            page.press("Right")
            assert page.run(shown).endswith(f"document {number}")
        # A finger on the third document of the second map.
        x, y = page.run(
            "(() => {const plot = document.querySelectorAll('.plot')[1];"
            "plot.scrollIntoView({block: 'center'});"
            "const box = plot.getBoundingClientRect(), [x, y] = data.points[1][2];"
            "return [box.left + x * box.width + 5, box.top + y * box.height - 5];})()"
        )
        for kind, touches in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            page.call("Input.dispatchTouchEvent", type=kind, touchPoints=touches)
        page.wait(f"{shown}.endsWith('document 2')")
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
        assert page.run(shown).endswith("document 2")  # what is far from all points changes nothing
        assert page.console == []


# --- the commands


def test_the_commands(checkpoint, make_nlp, tmp_path):
    make_nlp("textcat").to_disk(tmp_path / "pipeline")
    (tmp_path / "more.txt").write_text("\nA coaster\n\n", encoding="utf8")
    out = tmp_path / "out"
    more = ("--file", tmp_path / "more.txt", "--output", out / "word")
    result = run("inspect", "word", checkpoint, "coaster", *SENTENCES, *more)
    assert result.exit_code == 0, result.output
    view = compare_word(open_source(checkpoint), "coaster", [*SENTENCES, "A coaster"])
    means = " ".join(f"{mean:.2f}" for mean in view.self_similarity)
    assert result.output.splitlines() == [
        f"Mean similarity, embeddings to last layer: {means}",
        str(out / "word.png"),
        str(out / "word.html"),
    ]
    rows = [(f"Anna {i}", {"x": float(i % 2), "y": float(1 - i % 2)}) for i in range(8)]
    data = write_docs(tmp_path / "a.spacy", [*rows, ("none", {})])
    args = ("inspect", "map", checkpoint, tmp_path / "pipeline", data, "--output", out / "map")
    result = run(*args, "--encoder", "bert_encoder", "--layer", 1)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "Skipped, without a category: 1"
    assert [line.partition(": nearest")[0] for line in lines[1:3]] == [
        checkpoint,
        str(tmp_path / "pipeline"),
    ]
    assert sorted(file.name for file in out.iterdir()) == [
        "map.html",
        "map.png",
        "word.html",
        "word.png",
    ]


@pytest.mark.parametrize(
    "args, message",
    [
        (("word", "nowhere/x/y", "bank", "a bank"), "Can't read a checkpoint"),
        (("weights", "nowhere"), "There is no pipeline 'nowhere'"),
        (("map", "a.spacy"), "0 models are given. Pass one or two, then the data"),
        (("map", "x", "a.spacy"), "There is no 'a.spacy'. Create it with"),
    ],
)
def test_errors_are_one_sentence_and_no_traceback(args, message):
    result = run("inspect", *args)
    assert result.exit_code == 1
    assert f"Error: {message}" in result.output and "Traceback" not in result.output


def test_without_matplotlib(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("inspect", "word", checkpoint, "coaster", *SENTENCES, "-o", tmp_path / "word")
    assert result.exit_code == 1
    assert "pip install matplotlib" in result.output
