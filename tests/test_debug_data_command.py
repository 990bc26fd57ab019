"""`bert debug-data` as it is typed: what it prints, writes and returns."""

import json
import re

import pytest
from commands import command, run
from faulty_data import NLP, make_splits, save, word, write_config
from spacy.tokens import Span


@pytest.fixture
def clean(checkpoint, tmp_path):
    """The config of a pipeline with clean data."""
    return write_config(tmp_path, checkpoint, "ner,qa", *make_splits())


def lines_of(output: str) -> list[str]:
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    return [" ".join(line.split()) for line in plain.splitlines() if line.strip()]


def test_clean_data(clean):
    result = run("debug-data", clean)
    assert result.exit_code == 0, result.output
    lines = lines_of(result.output)
    assert "train: 20 of 20 Docs annotated, 40 pairs" in lines
    assert "labels: VESSEL 10, PLACE 10" in lines
    assert "✔ No text is in train and in dev" in lines
    assert lines[-1] == "✔ 12 checks passed"
    assert not [line for line in lines if line.startswith(("⚠", "✘"))]


def test_warnings_and_errors(clean, tmp_path):
    """Overrides name other data. Warnings alone end with status 0."""
    train, dev = make_splits()
    save(tmp_path / "overlap.spacy", [*dev, *train])
    result = run("debug-data", clean, "--paths.train", tmp_path / "overlap.spacy")
    assert result.exit_code == 0, result.output
    lines = lines_of(result.output)
    (warning,) = [i for i, line in enumerate(lines) if line.startswith("⚠ train: 4 Docs (16.7%)")]
    assert "Split the data again, with each text in only one" in " ".join(lines[warning:])
    assert "⚠ 1 warning" in lines
    train.append(NLP.make_doc(f"Anna  {word(1)}"))
    train[-1].ents = [Span(train[-1], 0, 2, label="VESSEL")]
    report = tmp_path / "new" / "report.json"
    save(tmp_path / "spaces.spacy", train)
    result = run("debug-data", clean, "--paths.train", tmp_path / "spaces.spacy", "--json", report)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
    lines = lines_of(result.output)
    assert "✘ train: 1 entity with white space at a border" in lines
    assert "✘ 1 error" in lines and '"Anna  "' in result.output
    found = json.loads(report.read_text(encoding="utf8"))
    assert (found["errors"], found["warnings"]) == (1, 0)
    (finding,) = [one for section in found["sections"] for one in section["findings"]]
    assert finding == {
        "check": "entity_spaces",
        "level": "error",
        "where": "train",
        "count": 1,
        "message": "1 entity with white space at a border",
        "fix": "Move the offsets so that the entity starts and ends with a word",
        "examples": ["Anna  "],
    }
    ner = next(section for section in found["sections"] if section["title"] == "bert_ner")
    assert ner["facts"]["train"]["annotated"] == 21 and "all entities" in str(ner["passed"])


@pytest.mark.parametrize("reader", ["spacy_bert_heads.Corpus.v1", "spacy.Corpus.v1"])
@pytest.mark.parametrize(
    "path, message",
    [
        ("nowhere.spacy", "There is no 'nowhere.spacy'. Create it with: python -m spacy bert"),
        ("damaged.spacy", "damaged.spacy is damaged or not a .spacy file"),
        ("text.spacy", "text.spacy is damaged or not a .spacy file"),
        (
            "no dir/a.spacy",
            "There is no 'no dir/a.spacy'. Create it with: python -m spacy bert convert SOURCE "
            "'no dir/a.spacy'",
        ),
    ],
)
def test_data_that_cannot_be_read(clean, tmp_path, monkeypatch, reader, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.spacy").write_bytes((tmp_path / "train.spacy").read_bytes()[:200])
    (tmp_path / "text.spacy").write_text("Anna left.")
    config = clean.read_text().replace("spacy_bert_heads.Corpus.v1", reader)
    if reader == "spacy.Corpus.v1":
        config = "\n".join(line for line in config.splitlines() if "max_pairs" not in line)
    clean.write_text(config)
    result = run("debug-data", clean, "--paths.dev", path)
    assert result.exit_code == 1
    assert f"Error: {message}" in result.output and "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_other_errors(clean, tmp_path):
    result = run("debug-data", tmp_path / "nowhere.cfg")
    assert result.exit_code == 1 and "nowhere.cfg" in result.output
    result = run("debug-data", clean, "--components.bert_encoder.model.name", str(tmp_path))
    assert result.exit_code == 1 and f"folder '{tmp_path}'" in result.output
    config = clean.read_text().replace("[training]", "[training]\npatience = many", 1)
    (tmp_path / "bad.cfg").write_text(config.replace("\npatience = 0", ""))
    result = run("debug-data", tmp_path / "bad.cfg")
    assert result.exit_code == 1 and "patience" in result.output


@pytest.mark.parametrize("content", [b"\xff\xfe\x00x", b"[nlp", b"[nlp]\n[nlp]\n"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["debug-data", "CONFIG"],
        ["debug-data", "CONFIG", "--paths.train", "a.spacy"],
        ["train", "CONFIG", "--output", "out"],
        ["distill", "teacher", "CONFIG", "out"],
        ["init-config", "out.cfg", "--adapt", "CONFIG"],
    ],
)
def test_a_config_that_cannot_be_read_is_named(tmp_path, monkeypatch, arguments, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.cfg").write_bytes(content)
    result = run(*("bad.cfg" if word == "CONFIG" else word for word in arguments))
    assert result.exit_code == 1 and len(result.output.splitlines()) == 1
    assert result.output.startswith("Error: bad.cfg can't be read as a config. Fix it, or")


def test_an_override_that_does_not_exist(clean):
    result = run("debug-data", clean, "--nope.a", "1")
    assert result.exit_code == 1 and "config overrides: nope.a" in result.output


def test_spacy_calls_it(clean):
    assert "checks passed" in command("bert", "debug-data", clean)
