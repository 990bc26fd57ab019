"""Data files people have on disk -> spaCy's `.spacy`.

    files ──lines──▶ reader ──Doc | Refused──▶ shards of Docs + a report

A reader is a generator over lines and never holds a whole file. What it cannot read exactly it
refuses, with the line and the reason, and it goes on with the rest.
"""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import spacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span

MAX_SAMPLES = 5
SNIFFED_LINES = 200
MAX_SENTENCE = 100_000  # tokens; with more, a file just has no blank lines
EXTENSIONS = {
    **dict.fromkeys((".conll", ".conll03", ".bio", ".iob", ".iob2", ".ner"), "conll"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".csv": "csv",
}
# What a column is often called where its default name is missing.
COMMON_NAMES = {
    "text": ("sentence", "content", "review"),
    "label": ("category", "class", "sentiment"),
}
TAG = re.compile(r"O|[BILUES]-.+")
# CoNLL-U's "# key = value" and MultiCoNER's "# id …<tab>domain=…". A "#" alone may be a token.
COMMENT = re.compile(r"# .* = |# id .*\tdomain=")
FASTTEXT = "__label__"


class Refused(NamedTuple):
    """What could not be read. Details of the record follow the reason's first colon."""

    line: int
    reason: str


@dataclass
class Settings:
    """What a reader needs to know. To `labels`, the categories of its file, it adds those of every
    record it can read."""

    nlp: Language
    text_column: str = "text"
    label_column: str = "label"
    labels: set[str] = field(default_factory=set)


@dataclass
class ConversionReport:
    """What was read, kept and refused. Reasons are counted without their details; `labels` counts
    entities and positive categories."""

    format: str = ""
    read: int = 0
    kept: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)


def convert(
    source: Path,
    output: Path,
    *,
    format: str | None = None,
    lang: str = "en",
    text_column: str = "text",
    label_column: str = "label",
    max_docs: int = 10_000,
) -> ConversionReport:
    """Convert a file, or all files of a folder, to spaCy's binary format. The output appears when
    all is read, and replaces that of an earlier conversion.

    source (Path): A file, or a folder whose hidden and `.spacy` files are passed over.
    output (Path): One file if it ends in `.spacy`, held in memory as a whole, else a folder for
        numbered shards, held in memory one by one.
    format (str): One of `READERS`, or None to find it for each file.
    lang (str): The language of the tokenizer, for formats that hold texts instead of tokens.
    text_column (str): The column (CSV, TSV) or key (JSONL) of the text.
    label_column (str): The column or key of the category.
    max_docs (int): The most Docs in one shard.
    RETURNS (ConversionReport): What was read, kept and refused.
    RAISES (FileNotFoundError): If there is no such source.
    RAISES (ValueError): If an option is wrong, a file cannot be unpacked or nothing could be kept.
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
    settings = Settings(spacy.blank(lang), text_column=text_column, label_column=label_column)
    report = ConversionReport()
    docs = read_files(paths, settings, format=format, report=report)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, because only within one disk is a file moved in one step.
    with TemporaryDirectory(prefix=".convert-", dir=output.parent) as folder:
        shards = write_shards(docs, Path(folder), max_docs=None if one_file else max_docs)
        if not shards:
            faults = "\n".join(report.samples) or "There are no records."
            formats = f"Formats: {', '.join(READERS)}. Name one if the wrong one was found."
            raise ValueError(f"Nothing in {source} could be kept.\n{faults}\n{formats}")
        if one_file:
            shards[0].replace(output)
        else:
            output.mkdir(exist_ok=True)
            for stale in output.glob("shard-*.spacy"):
                stale.unlink()
            for shard in shards:
                shard.replace(output / shard.name)
    return report


def list_files(source: Path) -> list[Path]:
    """List the files of a source in the order in which they are read."""
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: name a file, or a folder of files.")
    if not source.is_dir():
        return [source]
    paths = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    hidden = {path for path in paths if any(part.startswith(".") for part in path.parts)}
    return [source / path for path in paths if path not in hidden and path.suffix != ".spacy"]


def write_shards(docs: Iterator[Doc], folder: Path, *, max_docs: int | None) -> list[Path]:
    """Write Docs to numbered files of at most `max_docs`, or all to one if that is None."""
    shards: list[Path] = []
    for number in count(1):
        doc_bin = DocBin(docs=islice(docs, max_docs))
        if len(doc_bin) == 0:
            break
        shards.append(folder / f"shard-{number:05}.spacy")
        doc_bin.to_disk(shards[-1])
    return shards


def read_files(
    paths: list[Path], settings: Settings, *, format: str | None, report: ConversionReport
) -> Iterator[Doc]:
    """Read one file after the other and enter in the report what becomes of each record."""
    formats: dict[str, None] = {}  # an ordered set
    for path in paths:
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
                    report.samples.append(f"{path}:{record.line}: {record.reason:.300}")
            else:
                report.kept += 1
                report.labels.update(ent.label_ for ent in record.ents)
                for label, value in record.cats.items():
                    report.labels[label] += value >= 0.5
                yield record


def read_file(path: Path, name: str, settings: Settings) -> Iterator[Doc | Refused]:
    """Read one file in the format of that name."""
    settings = replace(settings, labels=set())
    if name != "conll":
        # A Doc's cats name all categories of its file: read it once to have them in `settings`.
        deque(READERS[name](read_lines(path), settings), maxlen=0)
    return READERS[name](read_lines(path), settings)


def read_lines(path: Path) -> Iterator[str]:
    """Read a file, unpacked if it ends in `.gz`, as lines with their endings. Unicode's other line
    separators are text. Undecodable bytes become what `is_utf8` finds."""
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
    """Find the format from the extension where that is clear, else from the first lines."""
    extension = Path(path.name.removesuffix(".gz")).suffix.lower()
    if extension in EXTENSIONS:
        return EXTENSIONS[extension]
    head = [line.strip() for line in islice(read_lines(path), SNIFFED_LINES) if line.strip()]
    if not head:
        return None
    half = len(head) / 2  # a bad line or two must not hide the format of the rest
    if sum(line.startswith("{") and line.endswith("}") for line in head) > half:
        return "jsonl"
    rows = [split_columns(line) for line in head]
    if sum(len(row) in (2, 3, 4) and bool(TAG.fullmatch(row[-1])) for row in rows) > half:
        return "conll"
    for name, delimiter in (("tsv", "\t"), ("csv", ",")):
        header = [column.strip('"') for column in head[0].split(delimiter)]
        if min(find_columns(header, settings)) >= 0 or extension == f".{name}":
            return name
    if sum(line.startswith(FASTTEXT) for line in head) > half:
        return "labelled"
    # Not plain text, whose lines begin with many words, nor another list, with its punctuation.
    labels = {line.split()[0] for line in head}
    few = max(len(head) // 4, 2 if all(label.isdecimal() for label in labels) else 0)
    return "labelled" if len(labels) <= few and all(x[-1].isalnum() for x in labels) else None


def read_conll(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read tokens in columns, the tag last, and blank lines between sentences: a Doc each. All have
    as many columns as the first that could be read."""
    width = 0
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(chain(lines, [""]), 1):  # the last sentence may not be closed
        line = line.rstrip(" \t\r\n")
        if line and not line.startswith("-DOCSTART-"):
            if not COMMENT.match(line) and len(rows) <= MAX_SENTENCE:
                rows.append((number, split_columns(line)))
        elif rows:
            record = read_sentence(rows, width or len(rows[0][1]), settings)
            width = width if isinstance(record, Refused) else len(rows[0][1])
            yield record
            rows = []


def split_columns(line: str) -> list[str]:
    """Split at tabs if there are any, else at spaces. A token between tabs may hold a space."""
    return line.split("\t") if "\t" in line else re.split(" +", line)


def read_sentence(
    rows: list[tuple[int, list[str]]], width: int, settings: Settings
) -> Doc | Refused:
    """Make a Doc of a sentence's numbered rows, or refuse it for the first one at fault."""
    if len(rows) > MAX_SENTENCE:
        return Refused(rows[0][0], f"no blank line for {MAX_SENTENCE} lines")
    for line, row in rows:
        if not is_utf8("".join(row)):
            return Refused(line, "not UTF-8")
        if len(row) != width or width not in (2, 3, 4):
            wanted = min(max(width, 2), 4)
            return Refused(line, f"wrong number of columns: {len(row)} instead of {wanted}")
        if not row[0]:
            return Refused(line, "empty token")
        if not TAG.fullmatch(row[-1]):
            return Refused(line, f"not a tag of BIO or BILOU: {row[-1]!r}")
    words = [row[0] for _, row in rows]
    # Without spaces: the file doesn't tell them, and readers then predict on these same tokens.
    doc = Doc(settings.nlp.vocab, words=words)
    entities = tags_to_entities([row[-1] for _, row in rows])
    doc.ents = [Span(doc, start, end, label=label) for start, end, label in entities]
    return doc


def tags_to_entities(tags: list[str]) -> list[tuple[int, int, str]]:
    """Read BIO, IOB1, BILOU and BIOES by one rule: I, L and E go on with an open entity of their
    label, every other tag but O begins one, and only B and I leave it open. So a stray I begins an
    entity, as IOB1 means it and the CoNLL scorer takes it.

    RETURNS (list[tuple[int, int, str]]): First token, the one after the last, and the label.
    """
    entities: list[tuple[int, int, str]] = []
    open_label = None
    for i, tag in enumerate(tags):
        prefix, _, label = tag.partition("-")
        if prefix in "ILE" and label == open_label:
            entities[-1] = (entities[-1][0], i + 1, label)
        elif prefix != "O":
            entities.append((i, i + 1, label))
        open_label = label if prefix in "BI" else None
    return entities


def read_labelled(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read a label and a text in each line, or fastText's `__label__a __label__b text`."""
    fasttext = False
    for number, line in enumerate(lines, 1):
        labels: list[str] = []
        text = line.strip()
        fasttext = fasttext or text.startswith(FASTTEXT)
        while text.startswith(FASTTEXT) if fasttext else text and not labels:
            label, text = [*text.split(maxsplit=1), ""][:2]
            labels.append(label.removeprefix(FASTTEXT))
        if labels or text:
            yield attempt(number, make_doc, text, settings, labels=labels or "")


def read_csv(
    lines: Iterable[str], settings: Settings, *, delimiter: str
) -> Iterator[Doc | Refused]:
    """Read a table with a header. A quoted field may hold newlines: a record goes by the number of
    its first line."""
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        number = table.line_num + 1
        try:
            row = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            yield Refused(number, f"broken quotes: {error}, in line {table.line_num}")
            continue
        if not row:
            continue
        if not header:
            header = row
            text, label = find_columns(header, settings)
            if min(text, label) < 0:
                yield Refused(number, f"no columns for text and label: {header}")
                return
        elif len(row) != len(header):
            wanted = len(header)
            yield Refused(number, f"wrong number of columns: {len(row)} instead of {wanted}")
        else:
            yield attempt(number, make_doc, row[text], settings, labels=row[label])


def find_columns(header: list[str], settings: Settings) -> list[int]:
    """Find the columns of text and label by their names, or, if a default name is missing, by a
    common one. A column is -1 unless there is exactly one."""
    columns = []
    for name in (settings.text_column, settings.label_column):
        common = (name, *COMMON_NAMES.get(name, ()))
        exact = [i for i, column in enumerate(header) if column == name]
        similar = [i for i, column in enumerate(header) if column.strip().lower() in common]
        found = exact or similar
        columns.append(found[0] if len(found) == 1 else -1)
    return columns


def read_jsonl(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read one object a line: a text, and perhaps categories (`label`, `labels` or `cats`) and
    entities (`spans` or `entities`). Without the latter, entities stay unannotated; an empty list
    says that there are none. Other keys are left to other tasks."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield attempt(number, read_object, line, settings)


def read_object(line: str, settings: Settings) -> Doc:
    """Make a Doc of one line of JSONL."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict) or not is_utf8(line):
        raise ValueError("not a JSON object in UTF-8")
    if record.get("answer") in ("reject", "ignore"):
        raise ValueError("rejected or ignored in Prodigy")
    labels = only_one(record, settings.label_column, "labels", "cats")
    spans = only_one(record, "spans", "entities")
    return make_doc(record.get(settings.text_column), settings, labels=labels, spans=spans)


def only_one(record: dict[str, Any], *keys: str) -> Any:
    """Get the value of whichever key is there. Null is as good as absent."""
    values = [record[key] for key in dict.fromkeys(keys) if record.get(key) is not None]
    if len(values) > 1:
        raise ValueError(f"more than one of {', '.join(keys)}")
    return values[0] if values else None


def make_doc(text: Any, settings: Settings, *, labels: Any, spans: Any = None) -> Doc:
    """Tokenize a text and annotate what is not None.

    text (str): The text.
    settings (Settings): Learns the labels, unless something is refused.
    labels (str | list[str] | dict[str, float]): The positive categories, the file's others being
        negative, or cats as they are.
    spans (list): What `read_spans` takes.
    RETURNS (Doc): The Doc.
    RAISES (ValueError): If something is not what it should be.
    """
    text = check_text("text", text)
    if len(text) > settings.nlp.max_length:
        raise ValueError(f"too long for spaCy: {len(text)} characters")
    doc = settings.nlp.make_doc(text)
    if spans is not None:
        doc.ents = read_spans(spans, doc)
    if isinstance(labels, dict):
        doc.cats = {check_text("label", label): value for label, value in labels.items()}
        if not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in labels.values()):
            raise ValueError(f"cats are not between 0 and 1: {labels}")
    elif labels is not None:
        labels = labels if isinstance(labels, list) else [labels]
        positive = {check_text("label", label).strip() for label in labels}
        settings.labels.update(positive)
        doc.cats = {label: float(label in positive) for label in sorted(settings.labels)}
    return doc


def read_spans(values: Any, doc: Doc) -> list[Span]:
    """Read `{"start": 0, "end": 4, "label": "X"}`, doccano's `start_offset` and `end_offset`, or
    `[0, 4, "X"]`, in any order. Spans must hold whole tokens and not overlap."""
    spans: list[Span] = []
    for value in values if isinstance(values, list) else [values]:
        match value:
            case (
                {"start": int(start), "end": int(end), "label": label}
                | {"start_offset": int(start), "end_offset": int(end), "label": label}
                | [int(start), int(end), label]
            ) if 0 <= start < end <= len(doc.text):
                span = doc.char_span(start, end, label=check_text("label", label).strip())
            case _:
                raise ValueError(f"not a span of the text with a label: {value!r}")
        if span is None:
            raise ValueError(f"span is not whole tokens: {doc.text[start:end]!r}")
        spans.append(span)
    spans.sort()
    for left, right in zip(spans, spans[1:], strict=False):
        if right.start < left.end:
            raise ValueError(f"overlapping spans: {left.text!r} and {right.text!r}")
    return spans


def check_text(kind: str, value: Any) -> str:
    """Make sure of a text or label. A whole number is taken as it is written."""
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no {kind}: {value!r}")
    if not is_utf8(text):
        raise ValueError(f"{kind} is not UTF-8: {value!r}")
    return text


def is_utf8(text: str) -> bool:
    """Find lone surrogates: they stand for undecodable bytes, and JSON can write them out."""
    try:
        text.encode("utf8")
    except UnicodeEncodeError:
        return False
    return True


def attempt(line: int, make: Callable[..., Doc], *args: Any, **kwargs: Any) -> Doc | Refused:
    """Make a Doc, or refuse what it would be made of."""
    try:
        return make(*args, **kwargs)
    except ValueError as error:
        return Refused(line, str(error))


Reader = Callable[[Iterable[str], Settings], Iterator[Doc | Refused]]
READERS: dict[str, Reader] = {
    "conll": read_conll,
    "labelled": read_labelled,
    "csv": partial(read_csv, delimiter=","),
    "tsv": partial(read_csv, delimiter="\t"),
    "jsonl": read_jsonl,
}
