"""What the commands say of wrong input: one line, no traceback, and nothing written."""

import shutil
import traceback
from pathlib import Path

import click
import pytest
import spacy
import typer
from checkpoints import make_checkpoint
from commands import run
from conftest import make_examples
from spacy.language import Language
from spacy.tokens import DocBin
from transformers import AutoModelForMaskedLM

from spacy_bert_heads.cli.common import check_file, describe, exits_on_error

PAIR = ("the boat", "a boat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoint, joint) -> Path:
    """Checkpoints, pipelines, data and configs, sound and damaged."""
    folder = tmp_path_factory.mktemp("wrong")
    shutil.copytree(checkpoint, folder / "bert")
    make_checkpoint(folder / "mlm", auto_class=AutoModelForMaskedLM)
    shutil.copytree(folder / "mlm", folder / "cut")
    weights = (folder / "mlm" / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    shutil.copytree(joint, folder / "pipe")
    shutil.copytree(joint, folder / "bad_meta")
    (folder / "bad_meta" / "meta.json").write_text("{")
    references = [eg.reference for eg in make_examples(spacy.blank("xx"))]
    DocBin(docs=references, store_user_data=True).to_disk(folder / "data.spacy")
    (folder / "junk.spacy").write_bytes(b"junk")
    (folder / "full").mkdir()
    (folder / "full" / "mine").write_text("mine")
    (folder / "file").write_text("a file")
    (folder / "a.csv").write_text("text,label\nhello,a\nbye,b\n")
    (folder / "raw.txt").write_text("A boat sank.\n\nIt burned.\n")
    (folder / "binary.cfg").write_bytes(bytes(range(256)))
    (folder / "broken.cfg").write_text("[nlp\nlang")
    result = run("init-config", folder / "ner.cfg", "--name", folder / "bert", "--lang", "xx",
                 "--train", folder / "data.spacy", "--dev", folder / "data.spacy")  # fmt: skip
    assert result.exit_code == 0, result.output
    config = (folder / "ner.cfg").read_text()
    (folder / "type.cfg").write_text(config.replace("max_steps = 200", 'max_steps = "many"'))
    (folder / "variable.cfg").write_text(config.replace("dev = ", "dev = ${no.such}\nother = "))
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    "command, said",
    [
        ("convert a.csv o.spacy --lang ja", "Japanese support requires SudachiPy"),
        ("convert a.csv o.spacy --lang zz", "Can't import language zz"),
        ("convert a.csv o.txt", "o.txt would be a folder. Choose a file that ends in .spacy"),
        ("convert a.csv file/o.spacy", "file is a file, so file/o.spacy can't be in it."),
        ("prepare raw.txt -e mlm -c cache --lang ja", "Japanese support requires SudachiPy"),
        ("init-config n.cfg --lang ja", "Japanese support requires SudachiPy"),
        ("init-config n.cfg --heads nre", "Unknown head 'nre'. Choose from: "),
        ("init-config n.cfg --train junk.spacy", "junk.spacy is damaged or not a .spacy file"),
        (
            "init-config n.cfg --train a.csv",
            "Convert it with: python -m spacy bert convert a.csv a.",
        ),
        ("init-config n.cfg --source nowhere", "There is no pipeline 'nowhere'"),
        ("init-config n.cfg --source bad_meta", "The pipeline 'bad_meta' can't be loaded: "),
        ("init-config full --force", "full is a folder. Pass the path of a file."),
        ("init-config file/n.cfg", "file is a file, so file/n.cfg can't be in it."),
        ("init-config n.cfg --adapt nowhere.cfg", "Could not read config file from nowhere.cfg"),
        ("init-config n.cfg --adapt broken.cfg", "File contains no section headers"),
        ("init-config n.cfg --adapt ner.cfg", "ner.cfg has a bert_encoder already"),
        ("init-config n.cfg --adapt ner.cfg --heads ner", "--adapt keeps the components"),
        ("debug-data type.cfg", "max_steps: Input should be a valid integer"),
        ("debug-data variable.cfg", "'no.such' which is not a valid option name"),
        ("debug-data binary.cfg", "'utf-8' codec can't decode byte"),
        ("debug-data ner.cfg --paths.train no.spacy", "There is no 'no.spacy'. Create it with: "),
        ("debug-data ner.cfg --paths.train a.csv", "'a.csv' is not a .spacy file. Convert"),
        (
            "debug-data ner.cfg --paths.train full",
            "There is no .spacy file in 'full'. Create one with: ",
        ),
        ("debug-data ner.cfg --json file/o.json", "file is a file"),
        ("evaluate nowhere data.spacy", "There is no pipeline 'nowhere'"),
        ("evaluate bad_meta data.spacy", "The pipeline 'bad_meta' can't be loaded: "),
        ("evaluate pipe junk.spacy", "junk.spacy is damaged"),
        ("evaluate pipe data.spacy --lang ja", "spaCy has no tokenizer for 'ja'"),
        ("evaluate pipe data.spacy -o full", "full is a folder. Pass the path of a file."),
        ("evaluate pipe data.spacy -o file/o.json", "file is a file"),
        ("evaluate pipe data.spacy --pages full", "was not made by `bert evaluate`"),
        ("compare pipe bad_meta data.spacy -o file/o.json", "file is a file"),
        ("fill-mask nowhere a", "'nowhere'"),
        ("fill-mask cut a", "Can't load the weights of 'cut': "),
        ("fill-mask bert a", "'bert' has no masked-LM head"),
        ("from-hf cut o", "Can't load the weights of 'cut': "),
        ("from-hf bert full", "was not made by `bert from-hf`"),
        ("to-hf nowhere bert_ner o", "There is no pipeline 'nowhere'"),
        ("to-hf pipe bert_ner o --precision int8", "Unknown precision 'int8'"),
        ("inspect word cut boat", "Can't load the weights of 'cut': "),
        ("inspect word bert boat -f nowhere", "No such file or directory: 'nowhere'"),
        ("inspect word bert boat -o file/o", "file is a file"),
        ("inspect weights bad_meta", "The pipeline 'bad_meta' can't be loaded: "),
        ("inspect map pipe data.spacy --limit 1", "limit is 1, but a map needs two documents"),
        ("inspect map pipe data.spacy --layer 99", "There is no layer 99"),
        ("inspect map data.spacy", "Pass one or two, then the data"),
    ],
)
def test_one_line_and_nothing_written(command, said, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = contents(folder)
    result = run(*command.split())
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ") and said in line
    assert contents(folder) == before


def test_a_pipeline_is_written_as_a_whole(tmp_path, folder, monkeypatch):
    """What is written replaces its like in a folder of the command; or, if it fails, nothing."""
    monkeypatch.setattr("spacy_bert_heads.hf.from_hf", lambda *_, **__: spacy.load(folder / "pipe"))
    assert run("from-hf", "some", tmp_path / "o").exit_code == 0
    (tmp_path / "o" / "mine").write_text("mine")
    before = contents(tmp_path)

    def fill(self, path: Path) -> None:
        (path / "meta.json").write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Language, "to_disk", fill)
    for output in ("o", "new"):
        assert run("from-hf", "some", tmp_path / output).output == "Error: the disk is full\n"
    assert contents(tmp_path) == before
    monkeypatch.undo()
    monkeypatch.setattr("spacy_bert_heads.hf.from_hf", lambda *_, **__: spacy.load(folder / "pipe"))
    assert run("from-hf", "some", tmp_path / "o").exit_code == 0
    assert contents(tmp_path).keys() == before.keys()


@pytest.mark.parametrize(
    "command, said",
    [
        ("init-config n.cfg --haeds ner", "--haeds"),
        (
            "debug-data ner.cfg --limt 3",
            "No such option '--limt'. To override a config setting, use",
        ),
        ("evaluate pipe data.spacy --pages-limit 99999999999999999999", "--pages-limit"),
        ("fill-mask mlm a --top 0", "--top"),
        ("inspect map pipe data.spacy --limit -1", "--limit"),
    ],
)
def test_a_mistyped_option_is_named(command, said, folder, monkeypatch):
    monkeypatch.chdir(folder)
    result = run(*command.split())
    assert result.exit_code == 1
    assert result.output.count("\n") == 1 and said in result.output


@pytest.mark.parametrize("top", [10**6, 10**30])
def test_more_guesses_than_there_are_wordpieces(top, folder):
    result = run("fill-mask", folder / "mlm", "The [MASK] sank.", "--top", top)
    assert result.exit_code == 0, result.output
    assert len(result.output.split("  ")) > 100


def test_debug_shows_the_traceback(folder, monkeypatch):
    monkeypatch.chdir(folder)
    result = run("init-config", "n.cfg", "--heads", "nre", "--debug")
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)
    assert "_name_heads" in "".join(traceback.format_tb(result.exception.__traceback__))
    assert "--debug" in run("inspect", "map", "--help").output


# --- the decorator


def throw(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [ValueError("x\n  y"), OSError("x y"), ImportError("x y")])
def test_errors_of_the_user_end_a_command(capsys, error):
    with pytest.raises(typer.Exit) as raised:
        exits_on_error(throw)(error)
    assert raised.value.exit_code == 1 and raised.value.__cause__ is error
    assert capsys.readouterr() == ("", "Error: x y\n")
    with pytest.raises(type(error)):
        exits_on_error(throw)(error, debug=True)


@pytest.mark.parametrize("error", [KeyError("a bug"), BrokenPipeError("| head")])
def test_other_errors_are_left_to_python_and_click(capsys, error):
    with pytest.raises(type(error)):
        exits_on_error(throw)(error)
    assert capsys.readouterr() == ("", "")


def test_options_that_spacy_does_not_know(capsys):
    with pytest.raises(typer.Exit) as raised:
        exits_on_error(throw)(click.NoSuchOption("--stesp"))
    assert raised.value.exit_code == 1
    assert "--stesp" in capsys.readouterr().err


def test_what_is_said_of_an_error(tmp_path):
    assert describe(ValueError()) == "ValueError"
    with pytest.raises(OSError) as raised:
        (tmp_path / "no" / "file").write_text("x")
    assert describe(raised.value) == f"No such file or directory: '{tmp_path / 'no' / 'file'}'"


def test_outputs_that_can_be_files(tmp_path):
    check_file(None)
    check_file(Path("-"))
    check_file(tmp_path / "new" / "folder" / "file")
    (tmp_path / "old").write_text("x")
    check_file(tmp_path / "old")
