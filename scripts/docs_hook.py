"""MkDocs' hook of the documentation site: pages that are generated, links that leave docs/.

The pages of factories, functions and commands come from spaCy's registry and the command line, so
they can't differ from the code. benchmarks/ and the changelog are pages of the site as they are.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "spacy_bert_heads"
# Files outside of docs/ that are pages of the site, or pictures of these.
OUTSIDE = {
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
    "benchmarks/NOTES.md": "benchmarks/NOTES.md",
    "changelog.md": "CHANGELOG.md",
}
SETTING = re.compile(r"(?m)^(\w+) \((.+?)\): ")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for path, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf8")
        files.append(File.generated(config, path, content=text))
    for picture in sorted((ROOT / "benchmarks/plots").glob("*.png")):
        path = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to files of the repository into links of the site, or into plain text."""
    return relink(markdown, page.file.src_uri)


def relink(markdown: str, path: str) -> str:
    """Do that for the page at `path`. Source files are no pages: their names remain."""
    markdown = re.sub(rf"\[([^\]]+)\]\((?:\.\./)*{PACKAGE}/[^)]*\)", r"\1", markdown)
    if path.startswith("benchmarks/"):
        return markdown.replace("](../docs/", "](../")
    if path == "changelog.md":
        return markdown.replace("](docs/", "](")
    up = "../" * path.count("/")
    return markdown.replace(f"]({up}../benchmarks/", f"]({up}benchmarks/")


def pages() -> dict[str, str]:
    """Generate the reference: Markdown by path."""
    return {
        "reference/factories.md": "\n".join(factories()),
        "reference/functions.md": "\n".join(functions()),
        "reference/commands.md": "\n".join(commands()),
    }


def own_entry_points(group: str) -> list[Any]:
    """List what this package registers with spaCy in a group, by name."""
    found = {
        one.name: one for one in entry_points(group=group) if one.value.startswith(f"{PACKAGE}.")
    }
    return list(found.values())


def factories() -> Iterator[str]:
    """Write the page of the pipeline's components."""
    from spacy.language import Language

    yield "# Factories\n"
    yield "Generated from spaCy's registry: every component, its settings and their defaults.\n"
    for point in own_entry_points("spacy_factories"):
        make = point.load()
        meta = Language.get_factory_meta(point.name)
        text, settings = split_docstring(make)
        yield f"## `{point.name}`\n\n{text}\n"
        if meta.assigns:
            yield f"Sets: {', '.join(f'`{one}`' for one in meta.assigns)}\n"
        defaults = {key: value for key, value in meta.default_config.items() if key != "model"}
        yield from table(defaults, settings)
        scores = {key: value for key, value in meta.default_score_weights.items() if value}
        if scores:
            listed = ", ".join(f"`{key}` ({value:g})" for key, value in scores.items())
            yield f"\nScores that `model-best` follows, with their weights: {listed}\n"
        yield from model_section(meta.default_config.get("model"))


def model_section(model: Mapping[str, Any] | None) -> Iterator[str]:
    """Write the default model of a component, as in a config."""
    from thinc.api import Config

    if model:
        text = Config({"model": dict(model)}).to_str().strip()
        yield "\nIts default model ([architectures](functions.md#architectures)):\n"
        yield f"```ini\n{text}\n```\n"


def table(defaults: Mapping[str, Any], described: Mapping[str, str]) -> Iterator[str]:
    """Write a table of settings."""
    if defaults:
        yield "| setting | default |" + (" |" if described else "")
        yield "|---|---|" + ("---|" if described else "")
        for name, value in defaults.items():
            meaning = f" {described.get(name, '')} |" if described else ""
            yield f"| `{name}` | {show(value)} |{meaning}"


def functions() -> Iterator[str]:
    """Write the page of the registered functions."""
    yield "# Registered functions\n"
    yield "Generated from spaCy's registry: what a config can name by `@…`, with the defaults.\n"
    from spacy_bert_heads.deprecated import RENAMED

    groups = {
        "spacy_architectures": "Architectures",
        "spacy_readers": "Readers",
        "spacy_batchers": "Batchers",
        "spacy_callbacks": "Callbacks",
        "spacy_loggers": "Loggers",
        "thinc_schedules": "Schedules",
        "spacy_scorers": "Scorers",
    }
    for group, title in groups.items():
        found = own_entry_points(group)
        if found:
            yield f"## {title}\n"
        for point in found:
            function = point.load()
            text, settings = split_docstring(function)
            defaults = {
                name: one.default
                for name, one in inspect.signature(function).parameters.items()
                if name not in RENAMED
            }
            yield f"### `{point.name}`\n\n{text}\n"
            yield from table(defaults, settings)
            yield ""


def commands() -> Iterator[str]:
    """Write the page of the command line."""
    import typer

    from spacy_bert_heads.cli import bert_app

    yield "# Commands\n"
    yield "Generated from the command line. Settings of a config are overridden behind a command: "
    yield "`--section.key value`.\n"
    for words, command in walk(typer.main.get_command(bert_app), "python -m spacy bert"):
        parameters = [one for one in command.params if one.name != "help"]
        arguments = [one for one in parameters if one.param_type_name == "argument"]
        usage = " ".join([words, *(one.make_metavar_name() for one in map(Argument, arguments))])
        yield f"## `{words.removeprefix('python -m spacy ')}`\n\n{cell(command.help or '', True)}\n"
        yield f"```text\n{usage}\n```\n"
        yield "| option | default | |\n|---|---|---|"
        for one in parameters:
            if one.param_type_name == "option":
                names = ", ".join(f"`{name}`" for name in [*one.opts, *one.secondary_opts])
            else:
                names = f"`{Argument(one).make_metavar_name()}`"
            default = "required" if one.required else show(one.default)
            yield f"| {names} | {default} | {cell(getattr(one, 'help', None) or '')} |"
        yield ""


class Argument:
    """The name of a positional argument in a line of usage; click's own needs a context."""

    def __init__(self, parameter: Any) -> None:
        self.parameter = parameter

    def make_metavar_name(self) -> str:
        """Give the name as `--help` shows it."""
        return self.parameter.metavar or str(self.parameter.name).upper()


def walk(group: Any, words: str) -> Iterator[tuple[str, Any]]:
    """List the commands of a group and of the groups in it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk(command, f"{words} {name}")
        else:
            yield f"{words} {name}", command


def split_docstring(function: Any) -> tuple[str, dict[str, str]]:
    """Separate a docstring's text from its list of settings (`name (type): what it means`)."""
    text = inspect.getdoc(function) or ""
    parts = SETTING.split(text)
    names, described = parts[1::3], parts[3::3]
    # What follows the list is text again: it begins behind an empty line, not indented.
    rest = ""
    if described:
        last, _, rest = described[-1].partition("\n\n")
        described[-1] = last
    settings = {name: cell(one) for name, one in zip(names, described, strict=True)}
    return "\n\n".join(one.strip() for one in (parts[0], rest) if one.strip()), settings


def cell(text: str, keep_paragraphs: bool = False) -> str:
    """Make a text one line that can stand in a table."""
    text = text.replace("|", r"\|")
    if keep_paragraphs:
        return "\n\n".join(" ".join(one.split()) for one in text.split("\n\n"))
    return " ".join(text.split())


def show(value: Any) -> str:
    """Show a default as it stands in a config."""
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or value is Ellipsis:
        return "null" if value is None else "required"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, Mapping) and len(value) == 1:
        value = dict(value)
    try:
        return f"`{json.dumps(value, ensure_ascii=False)}`"
    except TypeError:
        return ""
