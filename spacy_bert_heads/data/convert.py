"""Conversion of data files to spaCy's `.spacy`.

    files ──lines──▶ reader ──Doc | Refused──▶ shards of Docs + a report

`formats.py` names the readers; this module finds files and their formats, and writes shards and the
report.
"""

import codecs
import gzip
import json
import re
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import spacy
from spacy.tokens import Doc, DocBin

from ..files import check_folder, mark_folder, naming, read_mark
from ..heads.find import label_counters, pair_names, register_extensions
from ..text.user_data import copy_of_list
from .conll import TAG, split_columns
from .formats import READERS, WITH_CATEGORIES
from .nli import holds_pairs
from .records import Refused, Settings
from .tables import FASTTEXT, find_columns

MAX_SAMPLES = 5
SNIFFED_LINES = 200
EXTENSIONS = {
    **dict.fromkeys((".conll", ".conll03", ".bio", ".iob", ".iob2", ".ner"), "conll"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
}
SHARD = re.compile(r"shard-\d+\.spacy")
SQUAD = re.compile(r'"paragraphs"\s*:\s*\[')


@dataclass
class ConversionReport:
    """How many records were read, kept and rejected (`refused`), and why.

    `kept` counts Docs, `refused` counts records, and `read` is their sum. In formats of pairs a
    record is one pair or question, of which a Doc may have several. `reasons` are counted without
    their details. `labels` counts what heads learn: entities, positive categories, verdicts and so
    on. `pairs` counts second texts, hypotheses and questions. `mended` counts answers that were not
    at their offset but at exactly one other place.
    """

    format: str = ""
    read: int = 0
    kept: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    mended: int = 0

    @property
    def hypotheses(self) -> int:
        return self.pairs["hypotheses"]

    @property
    def questions(self) -> int:
        return self.pairs["questions"]


def convert(
    source: Path,
    output: Path,
    *,
    format: str | None = None,
    lang: str = "en",
    text_column: str = "text",
    label_column: str = "label",
    premise_column: str = "premise",
    hypothesis_column: str = "hypothesis",
    max_docs: int = 10_000,
    force: bool = False,
) -> ConversionReport:
    """Convert a file, or all files of a folder, to spaCy's binary format.

    Hidden and `.spacy` files of a source folder are skipped. An output that ends in `.spacy` is one
    file, held in memory as a whole; any other is a folder of shards with at most `max_docs` Docs,
    held in memory one at a time. The output appears when everything has been read. It replaces the
    output of an earlier conversion; other files in its folder are kept. With `force`, a folder that
    no conversion made is accepted too, and its shards are replaced.

    `format` is one of `READERS`, or None to detect it for each file. `lang` is the language of the
    tokenizer, for formats with texts instead of tokens. The columns are those of CSV and TSV or the
    keys of JSONL. The label is the category of a text or the label of a pair; the premise becomes
    the Doc.

    Raises FileNotFoundError if there is no such source, and ValueError if an option is wrong, a
    file can't be decompressed or no record could be kept.
    """
    source, output = Path(source), Path(output)
    paths = list_files(source)
    if format is not None and format not in READERS:
        raise ValueError(f"There is no format '{format}'. Formats: {', '.join(READERS)}.")
    if max_docs < 1:
        raise ValueError(f"max_docs must be at least 1, not {max_docs}.")
    one_file = output.suffix == ".spacy"
    if output.is_dir() if one_file else output.is_file():
        raise ValueError(f"{output} is in the way: only a name ending in .spacy is for a file.")
    if not one_file:
        check_folder(output, "convert", force=force)
    register_extensions()
    settings = Settings(
        spacy.blank(lang),
        text_column=text_column,
        label_column=label_column,
        premise_column=premise_column,
        hypothesis_column=hypothesis_column,
    )
    report = ConversionReport()
    docs = read_files(paths, settings, format=format, report=report)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, because a file is moved atomically only within one file system.
    with TemporaryDirectory(prefix=".convert-", dir=output.parent) as folder:
        shards = write_shards(docs, Path(folder), max_docs=None if one_file else max_docs)
        if not shards:
            faults = "\n".join(report.samples) or "There are no records."
            formats = f"Formats: {', '.join(READERS)}. Name one if the wrong one was found."
            raise ValueError(f"Nothing in {source} could be kept.\n{faults}\n{formats}")
        if one_file:
            shards[0].replace(output)
        else:
            replace_shards(output, shards, force=force)
    return report


def replace_shards(output: Path, shards: list[Path], *, force: bool) -> None:
    """Move shards into the output folder, where they replace those of an earlier conversion.

    Only shards that the folder's mark lists are deleted, with `force` all of them. Raises
    ValueError if another file has the name of a shard.
    """
    names = [shard.name for shard in shards]
    stale = set(read_mark(output).get("shards", ()))
    if force and output.is_dir():
        stale |= {path.name for path in output.glob("shard-*.spacy")}
    foreign = next((name for name in names if name not in stale and (output / name).exists()), None)
    if foreign is not None:
        raise ValueError(
            f"{output / foreign} was not made by `bert convert`. Move it elsewhere, or give "
            "--force to replace it."
        )
    mark_folder(output, "convert", shards=sorted(stale | set(names)))  # in case of an interrupt
    for name in stale:
        if SHARD.fullmatch(name):
            (output / name).unlink(missing_ok=True)
    for shard in shards:
        shard.replace(output / shard.name)
    mark_folder(output, "convert", shards=names)


def list_files(source: Path) -> list[Path]:
    """List the files of a source in the order in which they are read. Raises FileNotFoundError if
    it does not exist, and ValueError if it is a pipe: some formats are read twice."""
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: name a file, or a folder of files.")
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(
            f"{source} can be read only once, but some formats are read twice: save it to a file, "
            "and name that."
        )
    paths = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    hidden = {path for path in paths if any(part.startswith(".") for part in path.parts)}
    return [source / path for path in paths if path not in hidden and path.suffix != ".spacy"]


def write_shards(docs: Iterator[Doc], folder: Path, *, max_docs: int | None) -> list[Path]:
    """Write Docs to numbered files of at most `max_docs`, or all to one file if that is None."""
    shards: list[Path] = []
    for number in count(1):
        doc_bin = DocBin(docs=islice(docs, max_docs), store_user_data=True)  # has the pairs
        if len(doc_bin) == 0:
            break
        shards.append(folder / f"shard-{number:05}.spacy")
        with naming(folder.parent):
            doc_bin.to_disk(shards[-1])
    return shards


def read_files(
    paths: list[Path], settings: Settings, *, format: str | None, report: ConversionReport
) -> Iterator[Doc]:
    """Yield the Docs of one file after the other, and enter every record in the report."""
    formats: dict[str, None] = {}  # an ordered set
    for path in paths:
        settings = replace(settings, labels=set(), mended=0)
        records: Iterable[Doc | Refused] = [Refused(1, "empty file or unknown format")]
        if name := format or find_format(path, settings):
            formats[name] = None
            records = read_file(path, name, settings)
        report.format = ", ".join(formats)
        for record in records:
            report.read += 1
            if isinstance(record, Refused):
                report.refused += 1
                report.reasons[record.reason.partition(":")[0]] += 1
                if len(report.samples) < MAX_SAMPLES:
                    where = f"{path}:{record.line}" if record.line else f"{path}"
                    report.samples.append(f"{where}: {record.reason:.300}")
            else:
                count_annotations(record, report)
                yield record
        report.mended += settings.mended


def count_annotations(doc: Doc, report: ConversionReport) -> None:
    """Count a kept Doc and its annotations in the report."""
    report.kept += 1
    for count_labels in label_counters():
        report.labels.update(count_labels(doc))
    for name in pair_names():
        report.pairs[name] += len(copy_of_list(name, doc))


def read_file(path: Path, name: str, settings: Settings) -> Iterator[Doc | Refused]:
    """Read one file in the format of that name."""
    if name in WITH_CATEGORIES:
        # A Doc's cats name all categories of its file, so a first pass collects them: the copy
        # shares the set of labels with `settings`, but not the count of corrected offsets.
        deque(READERS[name](read_lines(path), replace(settings)), maxlen=0)
    return READERS[name](read_lines(path), settings)


def read_lines(path: Path) -> Iterator[str]:
    """Read a file as lines with their endings, decompressed if its name ends in `.gz`.

    Only newlines end a line; Unicode's other line separators are text. Undecodable bytes become
    lone surrogates, which `is_utf8` finds. Raises ValueError for UTF-16 and broken compression.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file_:
            for number, line in enumerate(file_):
                if number == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise ValueError(f"{path} is UTF-16: save it as UTF-8.")
                line = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
                yield line.decode("utf8", errors="surrogateescape")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked, fetch it again: {error}") from error


def find_format(path: Path, settings: Settings) -> str | None:
    """Detect the format by the extension where that is enough, else by the first lines."""
    extension = Path(path.name.removesuffix(".gz")).suffix.lower()
    known = EXTENSIONS.get(extension)
    head = [line.strip() for line in islice(read_lines(path), SNIFFED_LINES) if line.strip()]
    if known == "conll" or not head:
        return known
    if extension == ".json" and head[0].startswith("{") and SQUAD.search("\n".join(head)):
        return "squad"
    half = len(head) / 2  # a majority, so that a few bad lines don't hide the format of the rest
    if known or sum(line.startswith("{") and line.endswith("}") for line in head) > half:
        n_pairs = sum(holds_pairs(list_keys(line), settings) for line in head)
        return "nli-jsonl" if n_pairs > half else "jsonl"
    rows = [split_columns(line) for line in head]
    if sum(len(row) in (2, 3, 4) and bool(TAG.fullmatch(row[-1])) for row in rows) > half:
        return "conll"
    for name, delimiter in (("tsv", "\t"), ("csv", ","), ("csv", ";")):
        header = [column.strip('"') for column in head[0].split(delimiter)]
        if holds_pairs(header, settings):
            return f"nli-{name}"
        if min(find_columns(header, settings.text_names())) >= 0 or extension == f".{name}":
            return name
    if sum(line.startswith(FASTTEXT) for line in head) > half:
        return "labelled"
    # Plain text begins its lines with many different words, and other lists with punctuation.
    labels = {line.split()[0] for line in head}
    few = max(len(head) // 4, 2 if all(label.isdecimal() for label in labels) else 0)
    return "labelled" if len(labels) <= few and all(x[-1].isalnum() for x in labels) else None


def list_keys(line: str) -> list[str]:
    """List the keys of a line of JSONL, none if it is not an object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return list(record) if isinstance(record, dict) else []
