"""The commands, as spaCy's own command line calls them."""

import subprocess
import sys

import pytest
from spacy.tokens import DocBin
from spacy.vocab import Vocab
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.init_config import fit_steps

CONLL = "Anna\tB-VESSEL\nleft\tO\n\nHull\tFOO\n\nSkagen\tB-PLACE\n"


def run(*args):
    return CliRunner().invoke(bert_app, [str(arg) for arg in args])


@pytest.fixture
def conll(tmp_path):
    file = tmp_path / "a.conll"
    file.write_text(CONLL)
    return file


def test_convert_says_what_it_kept_and_what_not(conll, tmp_path):
    result = run("convert", conll, tmp_path / "a.spacy")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"{tmp_path / 'a.spacy'}: 2 of 3 records (conll)",
        "Labels: VESSEL 1, PLACE 1",
        "Refused: 1",
        "       1  not a tag of BIO or BILOU",
        f"  {conll}:4: not a tag of BIO or BILOU: 'FOO'",
    ]
    docs = list(DocBin().from_disk(tmp_path / "a.spacy").get_docs(Vocab()))
    assert [[(e.text, e.label_) for e in doc.ents] for doc in docs] == [
        [("Anna", "VESSEL")],
        [("Skagen", "PLACE")],
    ]


@pytest.mark.parametrize(
    "args, message",
    [
        (("convert", "nowhere.conll", "a.spacy"), "nowhere.conll does not exist"),
        (("init-config", "a.cfg", "--heads", "nre"), "Unknown head 'nre'. Choose from: ner,"),
        (("init-config", "a.cfg", "--train", "no.spacy"), "There is no 'no.spacy'. Make it first"),
    ],
)
def test_errors_are_one_sentence_and_no_traceback(args, message):
    result = run(*args)
    assert result.exit_code == 1
    assert f"Error: {message}" in result.output
    assert "Traceback" not in result.output


def test_init_config_fits_the_steps_to_the_data(tmp_path):
    lines = "".join(f"w{i}\tO\n\n" for i in range(320))
    (tmp_path / "a.conll").write_text(lines + CONLL[:22])
    run("convert", tmp_path / "a.conll", tmp_path / "a.spacy")
    result = run("init-config", "-", "--train", tmp_path / "a.spacy")
    assert result.exit_code == 0
    settings = dict(line.split(" = ") for line in result.output.splitlines() if " = " in line)
    # 321 Docs are 41 batches of 8, and five epochs of them 205 steps.
    assert (settings["max_steps"], settings["total_steps"]) == ("205", "205")
    assert (settings["warmup_steps"], settings["size"]) == ("20", "8")


@pytest.mark.parametrize(
    "n_docs, expected", [(10, (200, 8)), (321, (205, 8)), (1281, (205, 32)), (6400, (1000, 32))]
)
def test_steps_for_a_number_of_docs(n_docs, expected):
    assert fit_steps(n_docs) == expected


def test_spacy_finds_the_commands():
    command = [sys.executable, "-m", "spacy", "bert", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "convert" in output and "init-config" in output
