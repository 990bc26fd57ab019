"""The documentation: commands, snippets and error messages are those of the code, and the generated
reference is complete."""

import ast
import importlib.util
import re
import shlex
from typing import Any

import click
import pytest
from snippets import ROOT, blocks_of, commands_of
from typer.main import get_command

from spacy_bert_heads.cli import bert_app

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BERT = "-m spacy bert "


def load_hook() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hook", ROOT / "scripts" / "docs_hook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hook() -> Any:
    return load_hook()


def parse(line: str) -> None:
    """Raise if there is no such command, or if it lacks an option."""
    command: Any = get_command(bert_app)
    context = click.Context(command)
    words = shlex.split(line.partition(" > ")[0], comments=True)
    while isinstance(command, click.Group):
        command = command.get_command(context, words.pop(0))
        assert command is not None, line
    command.make_context("bert", words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands(page):
    """Each is there, with the options that it is given."""
    text = page.read_text(encoding="utf8")
    inline = [one.partition(BERT)[2] for one in re.findall(r"`((?:python|torchrun) [^`…]*)`", text)]
    blocks = [one.partition(BERT)[2] for one in commands_of(text)]
    for line in [*blocks, *inline]:
        if line and "…" not in line:
            parse(line)


def test_there_are_commands():
    lines = [one for page in PAGES for one in commands_of(page.read_text(encoding="utf8"))]
    assert sum(BERT in line for line in lines) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_are_python(page):
    for block in blocks_of(page.read_text(encoding="utf8")):
        if block.kind == "python":
            assert ast.parse(block.text).body


def messages() -> list[str]:
    """All strings of the package, with `…` for what is filled in."""
    found = []
    for path in (ROOT / "spacy_bert_heads").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_error_messages_of_troubleshooting():
    """Each is one of the package's, so that a search for it ends there."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf8")
    quoted = re.findall(r"(?m)^### `(.+?)`?$", text)
    spacys = {"Initial learn rate: 0.0"}
    assert len(quoted) > 30 and spacys <= set(quoted)
    known = messages()
    for one in quoted:
        pattern = ".*".join(re.escape(part.strip(" '")) for part in one.split("…"))
        assert one in spacys or any(re.search(pattern, text, re.DOTALL) for text in known), one


def test_every_factory_setting_and_command_is_in_the_reference(hook):
    from spacy.language import Language

    pages = hook.pages()
    factories, functions, commands = (
        pages[f"reference/{name}.md"] for name in ("factories", "functions", "commands")
    )
    points = hook.own_entry_points("spacy_factories")
    assert len(points) >= 10
    for point in points:
        section = factories.split(f"## `{point.name}`\n")[1].split("\n## ")[0]
        meta = Language.get_factory_meta(point.name)
        for name in meta.default_config:
            assert f"| `{name}` |" in section or (name == "model" and "[model]" in section)
    assert "| `threshold` | `0.0` | Entities with a lower probability" in factories
    assert "| `stride` | `192` |" in functions and "batch_by_pieces.v1" in functions
    listed = [words for words, _ in hook.walk(get_command(bert_app), "bert")]
    assert [f"## `{words}`" in commands for words in listed] == [True] * len(listed)
    assert "| `--workers`" in commands


def test_links_of_the_site(hook):
    relink = hook.relink
    code = "see [`step.py`](../spacy_bert_heads/encoder/step.py)."
    assert relink(code, "architecture.md") == "see `step.py`."
    assert relink("[r](../benchmarks/RESULTS.md#a)", "train.md") == "[r](benchmarks/RESULTS.md#a)"
    nested = relink("[r](../../benchmarks/RESULTS.md)", "tutorials/csv.md")
    assert nested == "[r](../benchmarks/RESULTS.md)"
    assert relink("[s](../docs/serve.md)", "benchmarks/NOTES.md") == "[s](../serve.md)"
    assert relink("[t](docs/training.md)", "changelog.md") == "[t](training.md)"


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf8").partition("\nnav:")[2]
    named = set(re.findall(r": (\S+\.md)$", nav, re.MULTILINE))
    docs = (ROOT / "docs").rglob("*.md")
    there = {page.relative_to(ROOT / "docs").as_posix() for page in docs}
    assert there <= named
