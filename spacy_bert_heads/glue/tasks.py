"""Define the tasks: files, columns, heads, measures (Wang et al. 2019, table 1)."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..heads.regression import compare


class Item(NamedTuple):
    """Hold a text or a pair of texts with its label; None in a test set. For NER tasks, the label
    is a JSON string with all entities."""

    text: str
    second: str | None
    label: str | None


Measure = Callable[[Sequence[str], Sequence[str]], float]


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the share of correct labels."""
    return float(np.mean([a == b for a, b in zip(gold, predicted, strict=True)]))


def f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the F1 of the label "1"."""
    right = sum(a == b == "1" for a, b in zip(gold, predicted, strict=True))
    return 2 * right / max(list(gold).count("1") + list(predicted).count("1"), 1)


def matthews(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the Matthews correlation (1975) of two labels; 0 if one side has a single label."""
    a, b = (np.asarray([label == "1" for label in side], dtype=float) for side in (gold, predicted))
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0


def pearson(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Return Pearson's correlation; 0 if one side is constant."""
    return compare(*_numbers(gold, predicted))["pearson"] or 0.0


def spearman(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Return Spearman's rank correlation; 0 if one side is constant."""
    return compare(*_numbers(gold, predicted))["spearman"] or 0.0


def _numbers(*sides: Sequence[str]) -> list[np.ndarray]:
    return [np.asarray([float(value) for value in side]) for side in sides]


@dataclass(frozen=True)
class Task:
    """Define a task. `columns` are the columns of the text, of a second text if there is one, and
    of the label: names of the header, or numbers if `has_header` is false. `submissions` are the
    file names for GLUE's server by test set. `group` is the share of texts or pairs of a batch."""

    name: str
    columns: tuple[str | int, ...]
    measures: dict[str, Measure]
    head: str = "nli"
    has_header: bool = True
    train: str = "train.tsv"
    dev: tuple[str, ...] = ("dev.tsv",)
    test: tuple[str, ...] = ("test.tsv",)
    submissions: tuple[str, ...] = ()
    lang: str = "en"

    @property
    def is_regression(self) -> bool:
        """Return whether the labels are numbers."""
        return self.head == "similarity"

    def read(self, path: Path) -> Iterator[Item]:
        """Read a file. Rows of training and dev sets that are cut off, as some of QQP are, are
        skipped with a warning. Raises ValueError with the line if a column is missing."""
        with path.open(encoding="utf-8-sig", newline="") as file_:
            if path.suffix == ".json":
                yield from map(read_cluener, file_)
                return
            # GLUE's files are not quoted: quotation marks are text.
            rows = csv.reader(file_, delimiter="\t", quoting=csv.QUOTE_NONE)
            # In a task without header, the test set has one.
            is_test = path.name.startswith("test")
            names = next(rows) if self.has_header or is_test else []
            last = max((names.index(str(one)) for one in self.columns if one in names), default=-1)
            num_short = 0
            for number, row in enumerate(rows, 1 + bool(names)):
                if 0 < len(row) <= last and not is_test:
                    num_short += 1
                elif row:
                    yield self._item(row, names, f"{path}:{number}")
            if num_short:
                warnings.warn(
                    f"Skipped {num_short:,} rows of {path} that end before column '{names[last]}'.",
                    stacklevel=2,
                )

    def _item(self, row: list[str], names: list[str], where: str) -> Item:
        *texts, label = self.columns
        if names and not self.has_header:
            texts, label = ["sentence"], "label"  # CoLA's test set
        cells = [_cell(row, names, column) for column in texts]
        if any(cell is None for cell in cells):
            raise ValueError(
                f"{where}: {self.name} has its texts in {', '.join(map(str, texts))}, but this row "
                f"has {len(row)} columns"
                + (f" of the header {', '.join(names)}." if names else ".")
                + " Give GLUE's own files, unchanged."
            )
        second = cells[1] if len(cells) > 1 else None
        return Item(cells[0] or "", second, _cell(row, names, label))


def _cell(row: list[str], names: list[str], column: str | int) -> str | None:
    if isinstance(column, str):
        if column not in names:
            return None
        column = names.index(column)
    return row[column] if column < len(row) else None


def read_cluener(line: str) -> Item:
    """Read a line of CLUENER (Xu et al. 2020): places of entities by label and text, with inclusive
    ends."""
    record = json.loads(line)
    spans = [
        [start, last + 1, label]
        for label, names in (record.get("label") or {}).items()
        for places in names.values()
        for start, last in places
    ]
    return Item(record["text"], None, json.dumps(sorted(spans)))


PAIR = ("sentence1", "sentence2", "label")
BOTH: dict[str, Measure] = {"accuracy": accuracy, "F1": f1}
ACCURACY: dict[str, Measure] = {"accuracy": accuracy}
TASKS = {
    task.name: task
    for task in (
        Task("CoLA", (3, 1), {"Matthews": matthews}, "textcat", False, submissions=("CoLA",)),
        Task("SST-2", ("sentence", "label"), ACCURACY, "textcat", submissions=("SST-2",)),
        Task("MRPC", ("#1 String", "#2 String", "Quality"), BOTH, submissions=("MRPC",)),
        Task(
            "STS-B",
            ("sentence1", "sentence2", "score"),
            {"Pearson": pearson, "Spearman": spearman},
            "similarity",
            submissions=("STS-B",),
        ),
        Task("QQP", ("question1", "question2", "is_duplicate"), BOTH, submissions=("QQP",)),
        Task(
            "MNLI",
            ("sentence1", "sentence2", "gold_label"),
            ACCURACY,
            dev=("dev_matched.tsv", "dev_mismatched.tsv"),
            test=("test_matched.tsv", "test_mismatched.tsv"),
            submissions=("MNLI-m", "MNLI-mm"),
        ),
        Task("QNLI", ("question", "sentence", "label"), ACCURACY, submissions=("QNLI",)),
        Task("RTE", PAIR, ACCURACY, submissions=("RTE",)),
        Task("WNLI", PAIR, ACCURACY, submissions=("WNLI",)),
        Task("ChnSentiCorp", ("text_a", "label"), ACCURACY, "textcat", lang="zh"),
        Task("CLUENER", (), {}, "ner", train="train.json", dev=("dev.json",), test=(), lang="zh"),
    )
}
# What folders may be called, beside the names of the tasks in any case.
FOLDERS = {"chnsenticorp": "zh_chnsenticorp", "cluener": "zh_cluener"}


def find_tasks(folder: Path) -> dict[str, Path]:
    """Return the task folders in a folder. Raises ValueError if there is none."""
    there = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    found = {}
    for name, task in TASKS.items():
        key = name.lower()
        for path in (there.get(key), there.get(FOLDERS.get(key, ""))):
            if path is not None and (path / task.train).is_file():
                found[name] = path
    if not found:
        raise ValueError(
            f"There is no task in {folder}. Pass the folder with GLUE's task folders, each with "
            f"its train.tsv: {', '.join(TASKS)}."
        )
    return found
