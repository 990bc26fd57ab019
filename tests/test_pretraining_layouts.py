"""Text files of every layout: found out, split into documents, and told to the user."""

from pathlib import Path

import numpy as np
import pytest
from raw_text import BY_KIND, read, run, write

from spacy_bert_heads.pretraining.documents import hold_out
from spacy_bert_heads.pretraining.layouts import find_layout, split_documents
from spacy_bert_heads.pretraining.records import Format

WIKITEXT = """ 
 = Anna = 
 
 Anna left Berlin . The crew swim . 
 
 = = Early life = = 
 
 A fire in New York . 
 = The crew = 
 
 The crew left . 
"""
PROSE = (
    "Anna left Berlin and the crew\nof the boat. A fire\nbroke out at night, when\nnobody saw it.\n"
)
LINES = 'Anna left Berlin.\nThe crew swim!\n"A fire in New York."\n'
BOTH = f"{LINES}\n{LINES}"


@pytest.mark.parametrize(
    "text, layout",
    [
        (WIKITEXT, "wikitext"),
        (PROSE, "paragraphs"),
        (f"{PROSE}\n{PROSE}", "paragraphs"),
        (LINES, "lines"),
        (f"\n\n{LINES}\n\n", "lines"),
        (BOTH, "sentences"),
        (BOTH.replace("\n", "\r\n"), "sentences"),
        # A paragraph on each line, with and without blank lines between all of them
        ("Anna left. The crew swim.\n\nA fire. It was night.\n", "paragraphs"),
        ("Anna left. They swim.\nA fire. It was night.\n\nAnna left. Dr. No.\n", "paragraphs"),
        ("one two three", "paragraphs"),
        ("", "paragraphs"),
        # Scripts without capitals
        ("船在港口外搁浅了。\n船员都活着。\n", "lines"),
        ("船在港口外\n搁浅了。船员\n都活着。\n", "paragraphs"),
        # Not WikiText: reStructuredText, AsciiDoc, code
        ("= Title\n\nAnna left.\n", "paragraphs"),
        ("====\nAnna\n====\n", "lines"),
        ("a == b\n\nc = d\n", "paragraphs"),
    ],
)
def test_the_layout_is_found(text, layout):
    assert find_layout(text) == layout


def split(text: str, layout: str) -> list[tuple[int, str]]:
    lines = enumerate(text.encode().splitlines(keepends=True), 1)
    return [(number, content.decode()) for number, _, content in split_documents(lines, layout)]


def test_documents_of_each_layout():
    text = "Anna left.\nThe crew swim.\n\n \nA fire.\n"
    assert split(text, "paragraphs") == split(text, "sentences")
    assert split(text, "paragraphs") == [(1, "Anna left.\nThe crew swim.\n"), (5, "A fire.\n")]
    assert split(text, "lines") == [(1, "Anna left.\n"), (2, "The crew swim.\n"), (5, "A fire.\n")]
    assert [(n, " ".join(t.split())) for n, t in split(WIKITEXT, "wikitext")] == [
        (4, "Anna left Berlin . The crew swim . A fire in New York ."),
        (11, "The crew left ."),
    ]
    assert split(WIKITEXT, "wikitext") == split(WIKITEXT, "auto")


def prepare_text(tmp_path: Path, text: str, layout: str = "auto", **options):
    file = write(tmp_path / "a.txt", text.encode())
    return run(tmp_path, file, format=Format(layout), **options)


def test_each_line_is_a_sentence(tmp_path):
    # Also without punctuation, and with several sentences in a line
    text = "Anna left\nThe crew swim. A fire\n\nNew York\n"
    corpus = prepare_text(tmp_path, text, "sentences")
    assert read(corpus) == [["anna left", "the crew swim . a fire"], ["new york"]]
    assert corpus.report.kinds == {"sentences": 2}
    assert read(prepare_text(tmp_path, text, "lines")) == [
        ["anna left"],
        ["the crew swim .", "a fire"],
        ["new york"],
    ]


def test_line_breaks_are_no_wordpieces(tmp_path):
    for layout in ("paragraphs", "sentences"):
        corpus = prepare_text(
            tmp_path, "Anna\r\nleft.\r\nA fire.\n", layout, wordpieces=BY_KIND["bytes"]
        )
        whole = BY_KIND["bytes"](["Anna left. A fire."])
        assert corpus.pieces.tolist() == whole.ids.tolist()


def test_what_was_understood_is_told(tmp_path):
    told = prepare_text(tmp_path, LINES * 50).report.lines()
    assert told[0].startswith("150 documents, 150 sentences, ")
    assert told[1] == "Read as documents: 150 lines"
    assert told[2].startswith("Warning: 150 of 150 documents have only one sentence")
    told = prepare_text(tmp_path, LINES * 50, "sentences").report.lines()
    assert told[2].startswith("Warning: The text is a single document of 150 sentences. If this")
    told = prepare_text(tmp_path, BOTH * 9).report.lines()
    assert told[1:] == ["Read as documents: 10 sentences on lines between blank lines"]
    told = prepare_text(tmp_path, f"{'anna ' * 150}\n\nAnna").report.lines()
    assert any("Sentences have 75 wordpieces" in line for line in told) is False
    told = prepare_text(tmp_path, f"{'anna ' * 300}\n\nAnna").report.lines()
    assert any("Sentences have 150 wordpieces on average" in line for line in told)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 10, 1000])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("least", [1, 2])
def test_held_out_is_never_none_and_never_all(n, share, least):
    held_out = hold_out(n, share, seed=3, least=least)
    if share == 0 or n < 2 * least:
        assert not held_out.any()
        return
    assert held_out.sum() == min(max(round(n * share), least), n - least)
    assert held_out.tolist() == hold_out(n, share, seed=3, least=least).tolist()


def test_every_document_is_as_likely_to_be_held_out():
    times = sum(hold_out(20, 0.1, seed=seed).astype(int) for seed in range(2000))
    assert times.sum() == 4000
    assert np.abs(times - 200).max() < 5 * (2000 * 0.1 * 0.9) ** 0.5
