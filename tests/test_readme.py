"""The README: its length, links, commands and snippets."""

import ast
import re
from configparser import ConfigParser

import pytest
from snippets import ROOT, blocks_of, commands_of, run_page

README = (ROOT / "README.md").read_text(encoding="utf8")


def test_length():
    assert len(README.split()) <= 1200


def test_links():
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README)
    assert len(targets) > 15
    # result.png and others; nothing of the web
    assert [one for one in targets if not (ROOT / one).exists()] == []


def test_what_runs_elsewhere():
    """`make` and `pip` name targets and extras that are there."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf8")
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf8")
    commands = commands_of(README)
    made = [one.split()[1] for one in commands if one.startswith("make ")]
    assert made == ["demo", "test"]
    assert all(f"\n{one}:" in makefile for one in made)
    extras = {
        extra
        for one in commands
        if one.startswith("pip ")
        for group in re.findall(r"\.\[([\w,-]+)\]", one)
        for extra in group.split(",")
    }
    assert "serve" in extras and extras <= set(setup["options.extras_require"])


def test_blocks():
    commands = "a\n\n    python -m x  # y\n    mkdir z\n\n    pipeline  1\n\n"
    text = f"{commands}```python\nimport a\n```\n\n```bash\nmake b\n```\n"
    assert blocks_of(text) == [
        ("bash", "python -m x  # y\nmkdir z\n"),
        ("python", "import a\n"),
        ("bash", "make b\n"),
    ]
    assert commands_of(text) == ["python -m x", "mkdir z", "make b"]


def test_ten_lines():
    (snippet,) = (block.text for block in blocks_of(README) if block.kind == "python")
    ast.parse(snippet)
    assert len(snippet.strip().splitlines()) <= 10


@pytest.mark.long
def test_every_command_and_snippet(tmp_path):
    """As they are pasted, in an empty folder, by this environment."""
    pytest.importorskip("uvicorn", reason="needs the extra `serve`")
    pytest.importorskip("build", reason="`spacy package` needs it")
    printed = run_page(ROOT / "README.md", tmp_path)
    assert len(printed) == 13
    assert (tmp_path / "my-pipeline" / "config.cfg").exists()
    assert any("categories" in text for text in printed)
    rows = (tmp_path / "annotated" / "part-00000.jsonl").read_text().splitlines()
    assert len(rows) == 110
    assert (tmp_path / "my-checkpoint" / "model.safetensors").exists()
    assert (tmp_path / "training" / "adapted" / "model-best").is_dir()
    assert list(tmp_path.glob("packages/*/dist/*.whl"))
