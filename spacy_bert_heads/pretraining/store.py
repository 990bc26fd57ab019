"""Store the tokenized corpus on disk: arrays that are written by appending and read by memory
mapping."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.records import list_reasons
from ..files import find_damage, write_digests
from ..text.arrays import Bools1d, Ints1d
from .layouts import LAYOUTS

FORMAT = 2  # version of the files and of the rules that determine their content
ARRAYS = {
    "pieces": "<i4",
    "words": "|b1",
    "spans": "|b1",
    "sentences": "<i8",
    "documents": "<i8",
}
MAX_SAMPLES = 5
LONG_SENTENCES = 100  # wordpieces on average; running text has 25 to 40
KINDS = {  # of records
    "jsonl": "objects of JSON Lines",
    "csv": "rows of CSV",
    "parquet": "rows of Parquet",
    "dataset": "rows of a saved data set",
    "reader": "texts of a reader",
    "spacy": "Docs",
    **LAYOUTS,
}


@dataclass
class PreparationReport:
    """Count what was kept, and what was skipped for which reason.

    `bytes` is the size of the kept text in UTF-8. A skipped item is a record (a line of JSON Lines,
    a Doc, a document of a text file), a part of a long record, or the rest of a damaged file.
    Reasons are counted without their details.
    """

    documents: int = 0
    sentences: int = 0
    pieces: int = 0
    bytes: int = 0
    single: int = 0  # documents of one sentence
    spans: int = 0  # entities and noun chunks
    kinds: Counter[str] = field(default_factory=Counter)  # of the records of documents
    skipped: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)

    def skip(self, where: str, reason: str) -> None:
        """Count a skipped item; details follow the first colon of `reason`."""
        self.skipped[reason.partition(":")[0]] += 1
        if len(self.samples) < MAX_SAMPLES:
            self.samples.append(f"{where}: {reason:.300}")

    def add(self, other: PreparationReport) -> None:
        """Add the counts of another part of the same corpus."""
        self.documents += other.documents
        self.sentences += other.sentences
        self.pieces += other.pieces
        self.bytes += other.bytes
        self.single += other.single
        self.spans += other.spans
        self.kinds.update(other.kinds)
        self.skipped.update(other.skipped)
        self.samples = [*self.samples, *other.samples][:MAX_SAMPLES]

    def lines(self) -> list[str]:
        """Return lines to print: counts, how the text was read, warnings, and the reasons and
        samples of skipped items."""
        counts = (
            f"{self.documents:,} documents, {self.sentences:,} sentences, "
            f"{self.pieces:,} wordpieces of {self.bytes:,} bytes"
        )
        spans = f", {self.spans:,} entities and noun chunks" if self.spans else ""
        kinds = ", ".join(f"{n:,} {KINDS[kind]}" for kind, n in self.kinds.most_common())
        skipped = list_reasons("Skipped", self.skipped, self.samples)
        return [counts + spans, f"Read as documents: {kinds}", *self.warnings(), *skipped]

    def warnings(self) -> list[str]:
        """Return warnings about unlikely numbers of documents and sentences."""
        advice = ""
        if any(kind in LAYOUTS for kind in self.kinds):
            advice = f" If this is wrong, set text.format to one of: {', '.join(LAYOUTS)}."
        found = []
        if self.documents == 1:
            found.append(f"The text is a single document of {self.sentences:,} sentences.{advice}")
        elif self.single > self.documents / 2:
            found.append(
                f"{self.single:,} of {self.documents:,} documents have only one sentence; with "
                f'objective.sentences = "full-sentences" they are not skipped.{advice}'
            )
        if self.pieces > LONG_SENTENCES * self.sentences:
            found.append(
                f"Sentences have {self.pieces // self.sentences:,} wordpieces on average, so most "
                "sentence ends were missed. Set text.lang, or a pipeline in text.pipeline."
            )
        return [f"Warning: {one}" for one in found]


@dataclass(frozen=True)
class Corpus:
    """Hold tokenized raw text on disk. The arrays are memory-mapped and read-only."""

    pieces: NDArray[np.int32]  # (n_pieces,) wordpiece ids of all documents, no special tokens
    words: NDArray[np.bool_]  # (n_pieces,) whether a wordpiece starts a word, see `begin_words`
    # (n_pieces,) whether a wordpiece starts an entity, a noun chunk or a word outside of both.
    spans: NDArray[np.bool_]
    sentences: NDArray[np.int64]  # (n_sentences + 1,) first wordpiece of each, then the end
    documents: NDArray[np.int64]  # (n_documents + 1,) first sentence of each, then the end
    report: PreparationReport
    fingerprint: str = ""  # the name of its folder, unique to its content


class Part(NamedTuple):
    """Hold the arrays of one chunk of records."""

    pieces: Ints1d  # (n_pieces,)
    words: Bools1d  # (n_pieces,)
    spans: Bools1d  # (n_pieces,)
    sentences: Ints1d  # (n_sentences,) number of wordpieces of each
    documents: Ints1d  # (n_documents,) number of sentences of each
    report: PreparationReport


def open_corpus(folder: Path) -> Corpus:
    """Open a prepared corpus from its folder in the cache.

    Raises ValueError if there is none or its files are damaged; delete the folder and prepare
    again. All files are read to check their digests, at the speed of the disk.
    """
    damage = find_damage(folder)
    try:
        if damage is not None:
            raise ValueError(f"{damage[0].name} is {damage[1]}")
        info = json.loads((folder / "info.json").read_bytes())
        arrays: dict[str, Any] = {}
        for name, dtype in ARRAYS.items():
            array = np.memmap(folder / name, dtype=dtype, mode="r")
            # Every slice of a memmap is a new object of its class, which is slower than an ndarray.
            arrays[name] = array.view(np.ndarray)
        report = PreparationReport(**info["report"])
        report.skipped, report.kinds = Counter(report.skipped), Counter(report.kinds)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The corpus in {folder} is missing or damaged ({error}). Delete the folder and "
            "prepare again."
        ) from error
    return Corpus(**arrays, report=report, fingerprint=folder.name)


def write_corpus(parts: Iterable[Part], folder: Path) -> None:
    """Append parts to the arrays in `folder`, which must be empty. Digests are written last.

    Raises ValueError if nothing was kept.
    """
    report = PreparationReport()
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in ARRAYS}

        def append(name: str, values: Any) -> None:
            files[name].write(np.asarray(values, dtype=ARRAYS[name]).tobytes())

        append("sentences", [0])
        append("documents", [0])
        for part in parts:
            append("pieces", part.pieces)
            append("words", part.words)
            append("spans", part.spans)
            append("sentences", report.pieces + np.cumsum(part.sentences))
            append("documents", report.sentences + np.cumsum(part.documents))
            report.add(part.report)
    if not report.pieces:
        faults = "\n".join(report.samples) or "There are no documents."
        raise ValueError(
            f"All text in the sources was skipped. Fix it, or set other text.\n{faults}"
        )
    info = {"format": FORMAT, "report": vars(report)}
    (folder / "info.json").write_text(json.dumps(info, indent=2), encoding="utf8")
    write_digests(folder, [*ARRAYS, "info.json"])
