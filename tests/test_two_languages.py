"""The script that says how far two languages are apart."""

import re
import sys

import numpy as np
import pytest
import spacy
from spacy.tokens import DocBin
from test_report import PROJECT

sys.path.insert(0, str(PROJECT / "scripts"))
import two_languages  # noqa: E402


def test_reciprocal_ranks():
    texts = np.eye(4)
    assert two_languages.mean_reciprocal_rank(texts, 3 * texts) == 1
    # Each is second to the one that takes its place.
    moved = np.roll(texts, 1, axis=0) + 0.5 * texts
    assert two_languages.mean_reciprocal_rank(texts, moved) == 0.5
    assert two_languages.mean_reciprocal_rank(texts, np.ones((4, 4))) == 0.25  # ties
    assert two_languages.chance(3) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_a_shift_between_languages_is_found_and_undone():
    random = np.random.default_rng(0)
    first = random.normal(size=(50, 8))
    second = first + 100
    second[:, 0] -= 500  # the same for all, so all of them look alike
    assert two_languages.mean_reciprocal_rank(first, second) < 0.9
    centred = [side - side.mean(0) for side in (first, second)]
    assert two_languages.mean_reciprocal_rank(*centred) == 1
    spread = np.sqrt(((first - first.mean(0)) ** 2).sum(1).mean())
    distance = np.sqrt(7 * 100**2 + 400**2)
    assert two_languages.shift(first, second) == pytest.approx(distance / spread)


def test_the_table(checkpoint, tmp_path, capsys):
    texts = ["Grete sailed.", "The fire was out.", "Aground at dawn, off by noon."]
    for lang in ("en", "de"):
        nlp = spacy.blank(lang)
        DocBin(docs=map(nlp.make_doc, texts)).to_disk(tmp_path / f"{lang}.spacy")
    files = [tmp_path / "en.spacy", tmp_path / "de.spacy"]
    two_languages.main(checkpoint, *files, langs="en,de")
    shown = capsys.readouterr().out
    assert "3 texts; by chance the MRR is 0.611" in shown
    rows = re.findall(r"^ *(\d)  +([\d.]+)  +([\d.]+)  +([\d.]+)$", shown, re.MULTILINE)
    # The texts are the same, so each finds itself.
    assert rows and all(row[1:] == ("1.000", "1.000", "0.00") for row in rows)
    DocBin(docs=[spacy.blank("de")("Ein Brand.")]).to_disk(files[1])
    with pytest.raises(SystemExit, match="have 3 and 1 texts"):
        two_languages.main(checkpoint, *files, langs="en,de")
