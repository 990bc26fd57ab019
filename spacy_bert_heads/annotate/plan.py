"""The plan of a run: which files, cut into which parts, by which pipeline and settings.

The output folder has the plan, so that whoever joins a run, or goes on with it, does the same:

    part-00000.jsonl …       the annotated documents; a part is there when it is whole
    .annotate/plan.json      digests of the input, the pipeline and the settings
    .annotate/claims/00000   who works on a part (claims.py)
    .annotate/done/00000.json  what the summary needs of a part
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from spacy.util import get_package_path

from ..compression import decompress
from ..evaluate import check_pipeline
from ..files import check_folder, mark_folder, read_mark, replace_file, sha256_of
from .claims import Claim, documents_at_work
from .outputs import INT64, check_format
from .source import (
    TEXT,
    SourceFile,
    check_first_line,
    checked,
    find_text,
    is_document,
    list_source,
    open_parquet,
    read_docbin,
    read_line,
    read_lines,
)

STATE = ".annotate"
WAIT = 1.0  # seconds between looks at what others are doing


@dataclass(frozen=True)
class Job:
    """What a user asked for. Every worker gets it, on whatever machine."""

    model: str
    source: str
    output: Path
    format: str = "jsonl"
    text_column: str = "text"
    docs_per_part: int = 1000
    precision: str | None = None
    gpu_id: int = -1
    num_threads: int | None = None  # of torch
    code: Path | None = None

    def settings(self) -> dict[str, Any]:
        """Give what decides on the annotations and their places, beside input and pipeline."""
        names = ("format", "text_column", "docs_per_part", "precision")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class PlannedFile:
    """A file as it was when the run began. `digest` is that of its content, decompressed where its
    lines are read; `offsets` are the bytes at which parts begin, [] if parts are found by
    counting."""

    name: str
    size: int
    mtime: int  # in nanoseconds
    digest: str
    num_docs: int
    text_column: str
    offsets: list[int] = field(default_factory=list)


class Part(NamedTuple):
    """Documents of one file: `num_docs` from number `first` on, which begins at byte `offset`."""

    number: int
    file: int
    first: int
    num_docs: int
    offset: int | None


@dataclass(frozen=True)
class Plan:
    """What all processes of a run agree on. `types` are those of the columns that go from JSON to
    Parquet."""

    model: str
    settings: dict[str, Any]
    files: list[PlannedFile]
    types: dict[str, str]

    @cached_property
    def parts(self) -> list[Part]:
        """The parts, in order."""
        size: int = self.settings["docs_per_part"]
        parts: list[Part] = []
        for number, file in enumerate(self.files):
            for i, first in enumerate(range(0, file.num_docs, size)):
                offset = file.offsets[i] if file.offsets else None
                part = Part(len(parts), number, first, min(size, file.num_docs - first), offset)
                parts.append(part)
        return parts


class Run:
    """A run in its output folder."""

    def __init__(self, job: Job, plan: Plan, files: list[SourceFile]) -> None:
        self.job, self.plan, self.files = job, plan, files
        self.parts = plan.parts
        self.digits = max(5, len(str(len(self.parts))))  # names in order of the parts
        self.state = job.output / STATE

    @property
    def num_docs(self) -> int:
        """The documents of the corpus."""
        return sum(file.num_docs for file in self.plan.files)

    def _name(self, part: Part) -> str:
        return f"{part.number:0{self.digits}}"

    def path(self, part: Part) -> Path:
        """Where the annotated documents of a part are, or will be."""
        return self.job.output / f"part-{self._name(part)}.{self.job.format}"

    def notes(self, part: Part) -> Path:
        """Where the figures of a part are, or will be."""
        return self.state / "done" / f"{self._name(part)}.json"

    def missing(self) -> list[Part]:
        """List the parts that are not there yet."""
        there = {path.name for path in self.job.output.iterdir()}
        return [part for part in self.parts if self.path(part).name not in there]

    def claim(self, part: Part) -> Claim | None:
        """Claim a part; None if somebody else works on it, or it has been done meanwhile."""
        claim = Claim.take(self.state / "claims" / self._name(part))
        if claim is not None and self.path(part).exists():
            with claim:
                return None
        return claim

    def count_done(self) -> int:
        """Count the documents that are done, by whomever, those of unfinished parts among them."""
        missing = self.missing()
        left = sum(part.num_docs for part in missing)
        names = {self._name(part) for part in missing}
        claims = (self.state / "claims").iterdir()
        begun = sum(documents_at_work(path) for path in claims if path.name in names)
        return self.num_docs - left + begun


def open_run(job: Job) -> Run:
    """Join the run in the output folder, or begin one.

    Raises ValueError if the folder has a run with another input, pipeline or other settings, or
    files that are none of ours; and what reading the input raises.
    """
    check_format(job.format)
    if job.docs_per_part < 1:
        raise ValueError(f"A part needs 1 document at least, not {job.docs_per_part}.")
    output = job.output
    if output.suffix in (".jsonl", ".parquet", ".spacy", ".json", ".txt"):
        raise ValueError(
            f"{output} is the name of a file. Name a folder, which gets a file for every "
            f"{job.docs_per_part:,} documents, and choose by --format what they are."
        )
    check_folder(output, "annotate")
    model = digest_pipeline(job.model)
    files = list_source(job.source, output)
    if read_mark(output).get("command") != "annotate":
        mark_folder(output, "annotate")
    for name in ("claims", "done"):
        (output / STATE / name).mkdir(parents=True, exist_ok=True)
    path = output / STATE / "plan.json"
    while True:
        if path.exists():
            plan = read_plan(path)
            check_same(plan, job, model, files)
            return Run(job, plan, files)
        claim = Claim.take(path.with_name("plan"))
        if claim is None:  # another process is reading the corpus
            time.sleep(WAIT)
            continue
        with claim:
            if left := next(output.glob("part-*"), None):
                raise ValueError(
                    f"{output} has parts, as '{left.name}', but no {STATE}/plan.json that says "
                    "what they are. Name another folder, or delete the parts."
                )
            plan = make_plan(job, model, files)
            replace_file(path, json.dumps(asdict(plan)).encode("utf8"))


def read_plan(path: Path) -> Plan:
    """Read a plan."""
    content = json.loads(path.read_bytes())
    return Plan(**content | {"files": [PlannedFile(**file) for file in content["files"]]})


def check_same(plan: Plan, job: Job, model: str, files: list[SourceFile]) -> None:
    """Raise ValueError if a run in the output folder is another one."""
    fault = ""
    if plan.settings != job.settings():
        different = {k: v for k, v in plan.settings.items() if v != job.settings()[k]}
        fault = f"was begun with {', '.join(f'{k} = {v}' for k, v in different.items())}"
    elif plan.model != model:
        fault = f"was begun with another pipeline than '{job.model}' is now"
    elif [one.name for one in plan.files] != [file.name for file in files]:
        fault = f"was begun with other files than those of {job.source}"
    else:
        for planned, file in zip(plan.files, files, strict=True):
            stat = file.path.stat()
            if stat.st_size == planned.size and stat.st_mtime_ns == planned.mtime:
                continue
            if stat.st_size != planned.size or digest_file(file) != planned.digest:
                fault = f"was begun before {file.path} changed"
                break
    if fault:
        raise ValueError(
            f"The run in {job.output} {fault}. Go on with what it was begun with, name another "
            f"folder, or delete {job.output} to start again."
        )


# --- making a plan


def digest_pipeline(name: str) -> str:
    """Digest all files of a pipeline. Raises ValueError if there is none."""
    check_pipeline(name)
    folder = Path(name)
    if not folder.is_dir():
        folder = get_package_path(name)
    digest = sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.relative_to(folder).as_posix().encode("utf8"))
            digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def digest_file(file: SourceFile) -> str:
    """Digest a file's content, as its plan has it."""
    digest = sha256()
    with file.path.open("rb") as opened:
        if file.kind in ("jsonl", "text"):
            with decompress(opened) as stream:
                for _ in read_lines(stream, digest.update):
                    pass
            return digest.hexdigest()
    return sha256_of(file.path)


def make_plan(job: Job, model: str, files: list[SourceFile]) -> Plan:
    """Read a corpus once: count its documents, find where parts begin, and digest it. Raises
    ValueError if a file has no text, or the corpus no document."""
    types = Types() if job.format == "parquet" else None
    planned = [plan_file(file, job, types) for file in files]
    if not any(file.num_docs for file in planned):
        raise ValueError(f"There is no document in {job.source}. Name files that have some.")
    return Plan(model, job.settings(), planned, {} if types is None else types.found)


class Types:
    """The types of JSON's columns as Parquet needs them, from all of their values. What has several
    types, lists or objects becomes a string, with JSON for all that is none."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def add(self, columns: dict[str, Any]) -> None:
        """Add a row."""
        for name, value in columns.items():
            before, kind = self.found.get(name, "null"), _type_of(value)
            if kind not in (before, "null"):
                numbers = {before, kind} == {"int64", "double"}
                self.found[name] = kind if before == "null" else "double" if numbers else "string"
            else:
                self.found.setdefault(name, kind)


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int() if -INT64 <= value < INT64:
            return "int64"
        case float():
            return "double"
    return "string"


def plan_file(file: SourceFile, job: Job, types: Types | None) -> PlannedFile:
    """Read a file for the plan."""
    stat = file.path.stat()
    column, offsets = TEXT, list[int]()
    if file.kind == "parquet":
        digest = digest_file(file)
        with open_parquet(file) as table:
            num_docs = table.metadata.num_rows
            column = find_text(file, table.schema_arrow.names, job.text_column)
    elif file.kind == "spacy":
        digest, rows = digest_file(file), checked(file, read_docbin(file))
        num_docs = 0
        for _, columns in rows:
            num_docs += 1  # noqa: SIM113 (of an empty file it is 0)
            if types is not None:
                types.add(columns)
    else:
        digest, num_docs, column, offsets = _plan_lines(file, job, types)
    return PlannedFile(file.name, stat.st_size, stat.st_mtime_ns, digest, num_docs, column, offsets)


def _plan_lines(file: SourceFile, job: Job, types: Types | None) -> tuple[str, int, str, list[int]]:
    digest = sha256()
    column, offsets, number, position = "", [], 0, 0
    with file.path.open("rb") as opened, decompress(opened) as stream:
        for size, line in checked(file, read_lines(stream, digest.update)):
            if position == 0:
                check_first_line(file, line)
            if is_document(file.kind, line):
                if file.has_offsets and number % job.docs_per_part == 0:
                    offsets.append(position)
                if types is not None or not column:
                    columns = read_line(file, number, line, TEXT).columns
                    if columns and not column:
                        wanted = TEXT if file.kind == "text" else job.text_column
                        column = find_text(file, list(columns), wanted)
                    if types is not None:
                        types.add(columns)
                number += 1
            position += size
    return digest.hexdigest(), number, column or job.text_column, offsets
