"""Folders that commands fill: an empty one, or one of their own; anything else needs --force."""

import json
import os
from pathlib import Path

import pytest
import spacy
from joint import build, train
from pretraining_runs import write_config, write_raw
from typer.testing import CliRunner

from spacy_bert_heads import to_hf
from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.files import OUTPUT_MARK, check_folder, mark_folder, read_mark
from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.settings import read_settings


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_folder_is_taken_if_it_is_new_empty_or_of_the_same_command(tmp_path):
    for folder in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        check_folder(folder, "convert")
    (tmp_path / "empty" / ".gitkeep").touch()
    check_folder(tmp_path / "empty", "convert")
    mark_folder(tmp_path / "empty", "convert", shards=["a"])
    (tmp_path / "empty" / "shard-00001.spacy").touch()
    check_folder(tmp_path / "empty", "convert")
    assert read_mark(tmp_path / "empty")["shards"] == ["a"]
    with pytest.raises(ValueError, match="not made by `bert to-hf` and contains 'shard.*--force"):
        check_folder(tmp_path / "empty", "to-hf")
    check_folder(tmp_path / "empty", "to-hf", force=True)
    (tmp_path / "empty" / OUTPUT_MARK).write_text("[")
    with pytest.raises(ValueError, match="not made by"):
        check_folder(tmp_path / "empty", "convert")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, not a folder"):
        check_folder(tmp_path / "file", "convert", force=True)


# --- convert


def write_conll(file: Path, n: int) -> Path:
    file.write_text("".join(f"w{i} O\n\n" for i in range(n)))
    return file


def test_convert_deletes_its_own_shards_alone(tmp_path):
    source, output = write_conll(tmp_path / "a.conll", 25), tmp_path / "corpus"
    convert(source, output, max_docs=5)
    (output / "shard-00077.spacy").write_text("mine")
    (output / "notes.txt").write_text("mine")
    convert(source, output, max_docs=20)
    names = sorted(path.name for path in output.glob("[!.]*"))
    assert names == ["notes.txt", "shard-00001.spacy", "shard-00002.spacy", "shard-00077.spacy"]
    (output / "shard-00003.spacy").write_text("mine")
    before = contents(output)
    with pytest.raises(ValueError, match="shard-00003.spacy was not made by `bert convert`"):
        convert(source, output, max_docs=5)
    assert contents(output) == before


def test_convert_takes_no_folder_of_others(tmp_path):
    source, output = write_conll(tmp_path / "a.conll", 5), tmp_path / "corpus"
    output.mkdir()
    (output / "shard-00002.spacy").write_text("of version 0.1")
    before = contents(output)
    result = CliRunner().invoke(bert_app, ["convert", str(source), str(output)])
    assert result.exit_code == 1
    assert "contains 'shard-00002.spacy'" in result.output
    assert "--force" in result.output
    assert contents(output) == before
    result = CliRunner().invoke(bert_app, ["convert", str(source), str(output), "--force"])
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in output.glob("*.spacy"))
    assert names == ["shard-00001.spacy", "shard-00002.spacy"]
    assert (output / "shard-00002.spacy").read_text() == "of version 0.1"


def test_an_interrupted_conversion_leaves_no_shard_unmarked(tmp_path, monkeypatch):
    source, output = write_conll(tmp_path / "a.conll", 25), tmp_path / "corpus"
    convert(source, output, max_docs=10)
    plain, moved = Path.replace, []

    def stop(self, target):
        if self.suffix == ".spacy":
            moved.append(self)
            if len(moved) == 3:
                raise KeyboardInterrupt
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(source, output, max_docs=5)
    monkeypatch.undo()
    convert(source, output, max_docs=10)
    names = [path.name for path in sorted(output.glob("*.spacy"))]
    assert names == ["shard-00001.spacy", "shard-00002.spacy", "shard-00003.spacy"]


# --- pretrain


@pytest.fixture
def run_settings(tmp_path, checkpoint):
    raw = tmp_path / "raw.jsonl"
    write_raw(raw)
    config = write_config(tmp_path, raw, checkpoint)
    steps = {"max_steps": 2, "eval_frequency": 1, "checkpoint_frequency": 2}
    return read_settings(config, {f"training.{key}": value for key, value in steps.items()})


def quiet(text: str) -> None:
    pass


def test_pretraining_takes_no_folder_of_others(run_settings, tmp_path):
    """Such as what `spacy train --output` leaves."""
    output = tmp_path / "mine"
    for name in ("model-best", "model-last", "plans", "start"):
        (output / name).mkdir(parents=True)
        (output / name / "thesis.txt").write_text("mine")
    before = contents(output)
    for resume in (False, True):
        with pytest.raises(ValueError, match="not made by `bert pretrain` and contains.*--force"):
            pretrain(run_settings, output, resume=resume, say=quiet)
    assert contents(output) == before
    pretrain(run_settings, output, force=True, say=quiet)
    assert not list(output.rglob("thesis.txt"))
    assert (output / "model-best" / "model.safetensors").exists()


def test_pretraining_takes_its_own_folder(run_settings, tmp_path):
    output = tmp_path / "run"
    pretrain(run_settings, output, say=quiet)
    with pytest.raises(
        ValueError, match="already contains a run. Continue it with --resume.*--force"
    ):
        pretrain(run_settings, output, say=quiet)
    (output / OUTPUT_MARK).unlink()  # as version 0.1 left it
    pretrain(run_settings, output, resume=True, say=quiet)
    assert read_mark(output)["command"] == "pretrain"
    log = (output / "log.jsonl").read_text()
    pretrain(run_settings, output, force=True, say=quiet)
    assert len((output / "log.jsonl").read_text().splitlines()) == len(log.splitlines())


# --- Hugging Face


def test_exports_and_imports_take_no_folder_of_others(joint, tmp_path):
    nlp = spacy.load(joint)
    output = tmp_path / "mine"
    output.mkdir()
    (output / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="not made by `bert to-hf` and contains 'README.md'"):
        to_hf(nlp, "bert_ner", output)
    assert contents(output) == {"README.md": b"mine"}
    result = CliRunner().invoke(bert_app, ["from-hf", "somewhere", str(output)])
    assert result.exit_code == 1
    assert "not made by `bert from-hf` and contains 'README.md'" in result.output
    to_hf(nlp, "bert_ner", tmp_path / "new")
    to_hf(nlp, "bert_textcat", tmp_path / "new")  # over an earlier export
    to_hf(nlp, "bert_textcat", output, force=True)
    assert (output / "README.md").read_bytes() != b"mine"


def test_what_is_written_has_the_permissions_of_other_files(joint, tmp_path):
    old = os.umask(0o027)
    try:
        to_hf(spacy.load(joint), "bert_ner", tmp_path / "out")
        spacy.load(joint).to_disk(tmp_path / "pipeline")
    finally:
        os.umask(old)
    for folder in ("out", "pipeline"):
        files = (path for path in (tmp_path / folder).rglob("*") if path.is_file())
        assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
            path.name: "0o640" for path in (tmp_path / folder).rglob("*") if path.is_file()
        }


def test_init_config_replaces_no_file(tmp_path):
    file = tmp_path / "config.cfg"
    file.write_text("mine")
    run = CliRunner().invoke
    result = run(bert_app, ["init-config", str(file)])
    assert result.exit_code == 1
    assert "config.cfg exists" in result.output
    assert file.read_text() == "mine"
    assert run(bert_app, ["init-config", str(file), "--force"]).exit_code == 0
    assert file.read_text() != "mine"


# --- model cards


NASTY = ["`code`", "a|b", "<script>alert(1)</script>", "[x](http://y)", "two\nlines", "`", "---"]


def test_a_model_card_shows_what_users_wrote_as_text(checkpoint, tmp_path):
    nlp = build(checkpoint, ["textcat"])
    for label in NASTY:
        nlp.get_pipe("bert_textcat").add_label(label)
    nlp.meta["description"] = "---\nlicense: stolen\n---\n# <img src=x onerror=alert(1)>"
    nlp.meta["name"] = "x`y"
    examples = [
        spacy.training.Example.from_dict(
            nlp.make_doc("Anna"), {"cats": {label: float(label == "`") for label in NASTY}}
        )
    ]
    nlp.initialize(lambda: examples)
    to_hf(nlp, "bert_textcat", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    header, body = card.split("---\n")[1:3] if card.count("---\n") == 2 else ("", "")
    assert "license" not in header
    assert "\n#" not in body.replace("\n# ", "", 1).replace("\n## ", "")
    outside = "".join(part for i, part in enumerate(split_code(body)) if i % 2 == 0)
    assert not any(f"\\{c}" not in outside and c in outside for c in "<|`[")
    labels = [part for i, part in enumerate(split_code(body)) if i % 2]
    for label in NASTY:
        assert " ".join(label.split()) in labels
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert set(config["id2label"].values()) == set(NASTY)


def split_code(text: str) -> list[str]:
    """Text, code span, text and so on, by CommonMark's rules."""
    import re

    parts, rest = [], text
    while match := re.search(r"(?<![`\\])(`+)(?!`)(.+?)(?<!`)\1(?!`)", rest, re.DOTALL):
        code = match[2]
        if code.startswith(" ") and code.endswith(" ") and code.strip():
            code = code[1:-1]
        parts += [rest[: match.start()], code]
        rest = rest[match.end() :]
    return [*parts, rest]


def test_training_leaves_a_pipeline_that_loads(checkpoint, tmp_path):
    train(build(checkpoint, ["ner"]), steps=2).to_disk(tmp_path)
    assert spacy.load(tmp_path).pipe_names == ["bert_encoder", "bert_ner"]
