"""Define the command `debug-data`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from spacy.cli._util import import_code, parse_config_overrides

from .common import check_file, exits_on_error

if TYPE_CHECKING:
    from wasabi import Printer

    from ..checks.findings import Finding
    from ..debug_data import Section

NUM_LABELS = 20  # listed per section


@exits_on_error
def debug_data_command(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(help="The config for `spacy train`")],
    json: Annotated[
        Path | None, typer.Option("--json", help="A JSON file for all findings")
    ] = None,
    code: Annotated[
        Path | None, typer.Option("--code", "-c", help="A Python file to import first")
    ] = None,
) -> None:
    """Check the data of a config before training. Override settings with --section.key VALUE.
    Exits with status 1 for errors, with 0 for warnings."""
    import srsly
    from wasabi import msg

    from ..debug_data import debug_data
    from ..files import replace_file

    check_file(json)
    overrides = parse_config_overrides(ctx.args)
    import_code(code)
    report = debug_data(config, overrides)
    if json is not None:
        replace_file(json, srsly.json_dumps(report.to_dict(), indent=2).encode())
    for section in report.sections:
        show_section(msg, section)
    msg.divider("Summary")
    errors, warnings = report.count("error"), report.count("warning")
    passed = sum(len(section.passed) for section in report.sections)
    if passed:
        msg.good(f"{passed} {'check' if passed == 1 else 'checks'} passed")
    if warnings:
        msg.warn(f"{warnings} {'warning' if warnings == 1 else 'warnings'}")
    if errors:
        msg.fail(f"{errors} {'error' if errors == 1 else 'errors'}")
        raise typer.Exit(1)


def show_section(msg: Printer, section: Section) -> None:
    """Print a section: its counts, the passed checks, and the findings with their fixes."""
    msg.divider(section.title)
    for line in fact_lines(section.facts):
        msg.text(line)
    for passed in section.passed:
        msg.good(f"{passed[0].upper()}{passed[1:]}")
    for finding in section.findings:
        title, text = f"{finding.where}: {finding.message}", finding_text(finding)
        if finding.level == "error":
            msg.fail(title, text)
        else:
            msg.warn(title, text)


def finding_text(finding: Finding) -> str:
    """Return the fix of a finding and the examples that it refers to."""
    # Quoted as in JSON, so that white space is visible.
    from json import dumps

    shown = ", ".join(dumps(text, ensure_ascii=False) for text in finding.examples)
    return f"{finding.fix}." + (f" Here: {shown}" if shown else "")


def fact_lines(facts: dict[str, Any]) -> list[str]:
    """Format the counts of a section, one line or more per corpus."""
    lines = ["Frozen: not trained, so it is not checked"] if facts.get("frozen") else []
    for name in ("train", "dev"):
        seen = facts[name]
        if "wordpieces" in seen:
            lines.append(_encoder_line(name, seen, facts["window"]))
        elif "annotated" in seen:
            pairs = f", {seen['pairs']:,} pairs" if "pairs" in seen else ""
            lines.append(f"{name}: {seen['annotated']:,} of {seen['docs']:,} Docs annotated{pairs}")
            if labels := seen.get("labels"):
                shown = [f"{label} {labels[label]:,}" for label in list(labels)[:NUM_LABELS]]
                more = f", and {len(labels) - NUM_LABELS} more" if len(labels) > NUM_LABELS else ""
                lines.append(f"  labels: {', '.join(shown)}{more}")
        else:
            lines.append(f"{name}: {seen['docs']:,} Docs, {seen['tokens']:,} tokens")
    return lines


def _encoder_line(name: str, seen: dict[str, Any], window: int) -> str:
    share = seen["unknown"] / max(seen["wordpieces"], 1)
    windows = seen["windows_of_longest"]
    return (
        f"{name}: {seen['wordpieces']:,} wordpieces, {seen['unknown']:,} unknown ({share:.2%}); "
        f"longest Doc {seen['longest']:,}, {windows} {'window' if windows == 1 else 'windows'} of "
        f"{window}; Docs of several windows: {seen['several_windows']:,}"
    )
