"""Report the result of a conversion: counts, rejected records, annotations."""

from collections import Counter
from dataclasses import dataclass, field

from ..heads.find import label_counters, pair_names
from ..text.user_data import copy_of_list
from .annotations import NOT_TOKENS, Made
from .records import Notes, Record, Rejected, list_reasons

MAX_SAMPLES = 5
FEW = 10  # examples of a label
MANY = 100  # documents; also the most labels in a line
SEPARATORS = ",;|#"


@dataclass
class ConversionReport:
    """Count the records that were read, kept and rejected, and the annotations of the Docs.

    Records are counted in the user's `unit`; several pairs or questions can become one Doc
    (`docs`). `reasons` are counted without their details. `kinds` counts the Docs with entities,
    categories and so on; `labels` counts entities, positive categories and verdicts. `pairs` counts
    second texts. `unread` counts the records with a value in a column that was not read. `longest`
    is the number of tokens of the longest Doc, and its place.
    """

    format: str = ""
    unit: str = "records"
    read: int = 0
    kept: int = 0
    rejected: int = 0
    docs: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    notes: Notes = field(default_factory=Notes)
    longest: tuple[int, str] = (0, "")
    parts: dict[str, int] = field(default_factory=dict)

    def add_rejected(self, path: str, rejected: Rejected) -> None:
        """Count a rejected record."""
        self.read += rejected.size
        self.rejected += rejected.size
        self.reasons[rejected.reason.partition(":")[0]] += rejected.size
        if len(self.samples) < MAX_SAMPLES:
            self.samples.append(f"{path}{rejected.where}: {rejected.reason:.300}")

    def add_kept(self, path: str, record: Record, made: Made) -> None:
        """Count a kept record and its annotations."""
        self.read += record.size
        self.kept += record.size
        self.docs += 1
        self.kinds.update(made.kinds)
        self.unread.update(record.unread)
        for count_labels in label_counters():
            self.labels.update(count_labels(made.doc))
        for name in pair_names():
            self.pairs[name] += len(copy_of_list(name, made.doc))
        if len(made.doc) > self.longest[0]:
            self.longest = len(made.doc), f"{path}{record.where}"

    def lines(self) -> list[str]:
        """Format the report; the first line is meant to follow the name of the output."""
        docs = f", {count_of(self.docs, 'document')}" if self.docs != self.kept else ""
        lines = [f"{self.kept:,} of {self.read:,} {self.unit} ({self.format}){docs}"]
        lines += [f"{name}: {count_of(n, 'document')}" for name, n in self.parts.items()]
        for kind, n in self.kinds.most_common():
            lines.append(f"{kind}: {n:,} of {count_of(self.docs, 'document')}")
        known = {label: n for label, n in self.labels.most_common() if n}
        if known:
            shown = [f"{label} {n:,}" for label, n in list(known.items())[:MANY]]
            more = f", and {len(known) - MANY} more" if len(known) > MANY else ""
            lines.append(f"Labels: {', '.join(shown)}{more}")
        few = [f"{label} {n}" for label, n in self.labels.items() if n < FEW]
        if few and len(few) < len(self.labels):
            lines.append(f"Labels with fewer than {FEW} examples: {', '.join(sorted(few)[:MANY])}")
        if self.pairs.total():
            counts = ", ".join(f"{n:,} {name}" for name, n in self.pairs.items() if n)
            lines.append(f"Pairs: {counts}")
        num_tokens, where = self.longest
        lines.append(f"Longest document: {count_of(num_tokens, 'token')}, {where}")
        if self.unread:
            lines.append(f"Not read: {show_counts(self.unread, self.docs)}")
        for kind, n in self.notes.counts.most_common():
            example = self.notes.examples.get(kind)
            lines.append(f"{n:,} {kind}" + (f": {example:.80}" if example else ""))
        lines += list_reasons("Rejected", self.reasons, self.samples)
        if any("is not UTF-8" in reason for reason in self.reasons):
            lines.append(
                "To keep these, save the file as UTF-8: mostly texts with accents are lost."
            )
        return lines


def count_of(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def show_counts(counts: Counter[str], total: int) -> str:
    """List what was counted, with the number if it is below the total."""
    shown = [(name.strip() or repr(name), n) for name, n in counts.most_common(20)]
    names = [name if n == total else f"{name} ({n:,})" for name, n in shown]
    more = f", and {len(counts) - 20} more" if len(counts) > 20 else ""
    return f"{', '.join(names)}{more}"


def check_annotated(report: ConversionReport, source: str, *, lang: str) -> None:
    """Raise ValueError if no Doc has annotations, or if most entities were skipped."""
    lost, example = report.notes.counts[NOT_TOKENS], report.notes.examples.get(NOT_TOKENS)
    if lost > report.labels.total():
        raise ValueError(
            f"{lost:,} entities in {source} are not whole tokens of the language '{lang}', such as "
            f"{example}; that is most of them. Set the language of the texts with --lang."
        )
    has_labels = report.labels or report.pairs.total()
    if report.kinds and not has_labels and report.rejected > report.kept:
        raise ValueError(
            f"No labels are left: {report.rejected:,} {report.unit} in {source} were rejected, and "
            f"the other {report.kept:,} have no label. Fix the first one: {report.samples[0]}"
        )
    if report.kinds:
        return
    keys = show_counts(report.unread, report.kept) if report.unread else "none except the text"
    raise ValueError(
        f"Nothing in {source} is annotated: {report.kept:,} {report.unit} have only a text. "
        f"Columns or keys that were not read: {keys}. Name the label column with --label-column, "
        "several columns with 0 and 1 with --label-columns, or those of tokens and tags with "
        "--token-column and --tag-column. Entities are lists of "
        '{"start": 0, "end": 4, "label": "PER"}.'
    )


def check_categories(labels: set[str], docs: int, *, separator: str | None) -> None:
    """Raise ValueError if categories look like lists of categories, or like texts or numbers."""
    if docs >= MANY and len(labels) > docs / 2:
        shown = ", ".join(map(repr, sorted(labels)[:3]))
        raise ValueError(
            f"There are {len(labels):,} different categories in {docs:,} documents, such as "
            f"{shown:.300}. They look like texts or numbers. Name another column with "
            "--label-column; for numbers, use the key 'regression'."
        )
    for mark in SEPARATORS if separator is None else ():
        parts = {x: [p.strip() for p in x.split(mark)] for x in labels if mark in x.strip(mark)}
        counts = Counter(part for own in parts.values() for part in set(own))
        for label, own in parts.items():
            if any(part in labels or counts[part] > 1 for part in own if part):
                raise ValueError(
                    f"The category {label!r} looks like several. Add --label-separator '{mark}' "
                    "to separate them, or --label-separator '' if it is one category."
                )
