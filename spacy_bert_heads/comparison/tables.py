"""Format a report as tables, for the terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from wasabi import table

SCORES = ("", "pipeline", "score", "95 %", "difference", "95 %")
TESTS = ("McNemar", "pipeline", "decisions", "only first right", "only this right", "p")
ALIGNS: Any = ("l", "l", "r", "r", "r", "r")


def format_comparison(report: dict[str, Any], *, markdown: bool = False) -> str:
    """Format a report as tables (fractions in percent) with its notes."""
    make = markdown_table if markdown else partial(table, divider=True)
    scores = [row for score in report["scores"].values() for row in score_rows(score)]
    tests = [row for test in report["mcnemar"] for row in test_rows(test)]
    parts = [make(scores, header=SCORES, aligns=ALIGNS)]
    parts += [make(tests, header=TESTS, aligns=ALIGNS)] if tests else []
    differing = ", ".join(f"{n:,} in {task}" for task, n in report["differing"].items())
    parts.append(
        f"{report['documents']:,} documents, {report['resamples']:,} resamples. Documents with "
        f"different predictions: {differing or 'not determined'}."
    )
    return "\n\n".join(part.strip("\n") for part in (*parts, *report["notes"]))


def score_rows(score: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return rows with the score of each pipeline, its standard deviation over seeds, its interval,
    and the difference to the first pipeline with its interval."""
    factor, digits = (100, 2) if score["is_fraction"] else (1, 4)

    def show(*values: float, sign: str = "") -> str:
        return " to ".join(f"{factor * value:{sign},.{digits}f}" for value in values)

    rows: list[tuple[str, ...]] = []
    for row in score["pipelines"]:
        seeds, difference = row["seeds"], ("", "")
        spread = f" ± {show(np.std(seeds, ddof=1))} ({len(seeds)})" if len(seeds) > 1 else ""
        if rows:
            low_high = show(*row["difference_interval"], sign="+")
            difference = show(row["difference"], sign="+"), low_high
        title = "" if rows else score["title"]
        value = show(row["score"]) + spread
        rows.append((title, row["pipeline"], value, show(*row["interval"]), *difference))
    return rows


def test_rows(test: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return rows with McNemar's test of each pipeline against the first."""
    return [
        (
            "" if i else test["component"],
            row["pipeline"],
            *(f"{row[key]:,}" for key in ("decisions", "only_first_right", "only_this_right")),
            f"{row['p']:.4f}" if row["p"] >= 0.0001 else "< 0.0001",
        )
        for i, row in enumerate(test["pipelines"])
    ]


def markdown_table(
    rows: Sequence[Sequence[str]], *, header: Sequence[str], aligns: Sequence[str]
) -> str:
    """Return a Markdown table."""
    marks = ["---" if align == "l" else "---:" for align in aligns]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, marks, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
