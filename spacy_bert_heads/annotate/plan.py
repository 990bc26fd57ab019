"""Plan a run: its files and parts, its pipeline and settings.

The plan is stored in the output folder, so that every process that joins or continues the run uses
the same one:

    part-00000.jsonl …       the annotated documents; an existing part is complete
    .annotate/plan.json      digests of the input, the pipeline and the settings
    .annotate/claims/00000   the process that works on a part (claims.py)
    .annotate/done/00000.json  the figures of a part for the summary
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
    checked,
    find_text,
    is_document,
    list_source,
    open_parquet,
    read_documents,
    read_line,
    read_lines,
)

STATE = ".annotate"
WAIT = 1.0  # seconds between checks of other processes
LOOKED_AT = 1000  # rows, to find the text column


@dataclass(frozen=True)
class Job:
    """Hold the arguments of a run; every worker on every machine gets them."""

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
        """Return the settings that determine the output, besides input and pipeline."""
        names = ("format", "text_column", "docs_per_part", "precision")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class PlannedFile:
    """Describe a file at the start of the run. `digest` is that of its content (decompressed for
    files of lines); `offsets` are the bytes at which parts start, [] if parts are found by
    counting."""

    name: str
    size: int
    mtime: int  # in nanoseconds
    digest: str
    num_docs: int
    text_column: str
    offsets: list[int] = field(default_factory=list)


class Part(NamedTuple):
    """Describe a part: `num_docs` documents of one file from number `first`, at byte `offset`."""

    number: int
    file: int
    first: int
    num_docs: int
    offset: int | None


@dataclass(frozen=True)
class Plan:
    """Hold what all processes of a run share. `types` are the Parquet types of JSON columns."""

    model: str
    settings: dict[str, Any]
    files: list[PlannedFile]
    types: dict[str, str]

    @cached_property
    def parts(self) -> list[Part]:
        """Return the parts in order."""
        size: int = self.settings["docs_per_part"]
        parts: list[Part] = []
        for number, file in enumerate(self.files):
            for i, first in enumerate(range(0, file.num_docs, size)):
                offset = file.offsets[i] if file.offsets else None
                part = Part(len(parts), number, first, min(size, file.num_docs - first), offset)
                parts.append(part)
        return parts


class Run:
    """Represent a run in its output folder."""

    def __init__(self, job: Job, plan: Plan, files: list[SourceFile]) -> None:
        self.job, self.plan, self.files = job, plan, files
        self.parts = plan.parts
        self.digits = max(5, len(str(len(self.parts))))  # names in order of the parts
        self.state = job.output / STATE

    @property
    def num_docs(self) -> int:
        """Return the number of documents in the corpus."""
        return sum(file.num_docs for file in self.plan.files)

    def _name(self, part: Part) -> str:
        return f"{part.number:0{self.digits}}"

    def path(self, part: Part) -> Path:
        """Return the path of a part's annotated documents."""
        return self.job.output / f"part-{self._name(part)}.{self.job.format}"

    def notes(self, part: Part) -> Path:
        """Return the path of a part's figures."""
        return self.state / "done" / f"{self._name(part)}.json"

    def missing(self) -> list[Part]:
        """Return the parts that don't exist yet."""
        there = {path.name for path in self.job.output.iterdir()}
        return [part for part in self.parts if self.path(part).name not in there]

    def claim(self, part: Part) -> Claim | None:
        """Claim a part. Returns None if another process works on it or has finished it."""
        claim = Claim.take(self.state / "claims" / self._name(part))
        if claim is not None and self.path(part).exists():
            with claim:
                return None
        return claim

    def count_done(self) -> int:
        """Count the finished documents of all processes, including those of unfinished parts."""
        missing = self.missing()
        left = sum(part.num_docs for part in missing)
        names = {self._name(part) for part in missing}
        claims = (self.state / "claims").iterdir()
        begun = sum(documents_at_work(path) for path in claims if path.name in names)
        return self.num_docs - left + begun


def open_run(job: Job) -> Run:
    """Join the run in the output folder, or start one.

    Raises ValueError if the folder has a run with another input, pipeline or settings, or other
    files; and the errors of reading the input.
    """
    check_format(job.format)
    if job.docs_per_part < 1:
        raise ValueError(f"docs_per_part is {job.docs_per_part}. Set it to 1 or more.")
    output = job.output
    if output.suffix in (".jsonl", ".parquet", ".spacy", ".json", ".txt"):
        raise ValueError(
            f"{output} is the name of a file, but the output is a folder with one file per "
            f"{job.docs_per_part:,} documents. Pass a folder, and choose the format with --format."
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
                    f"{output} has parts such as '{left.name}', but no {STATE}/plan.json. Choose "
                    "another folder, or delete the parts."
                )
            plan = make_plan(job, model, files)
            replace_file(path, json.dumps(asdict(plan)).encode("utf8"))


def read_plan(path: Path) -> Plan:
    """Read a plan from its file."""
    content = json.loads(path.read_bytes())
    return Plan(**content | {"files": [PlannedFile(**file) for file in content["files"]]})


def check_same(plan: Plan, job: Job, model: str, files: list[SourceFile]) -> None:
    """Raise ValueError if the run in the output folder has another input, pipeline or settings."""
    fault = ""
    if plan.settings != job.settings():
        different = {k: v for k, v in plan.settings.items() if v != job.settings()[k]}
        fault = f"was started with {', '.join(f'{k} = {v}' for k, v in different.items())}"
    elif plan.model != model:
        fault = f"was started with another pipeline than '{job.model}' is now"
    elif [one.name for one in plan.files] != [file.name for file in files]:
        fault = f"was started with other files than those of {job.source}"
    else:
        for planned, file in zip(plan.files, files, strict=True):
            stat = file.path.stat()
            if stat.st_size == planned.size and stat.st_mtime_ns == planned.mtime:
                continue
            if stat.st_size != planned.size or digest_file(file) != planned.digest:
                fault = f"was started before {file.path} changed"
                break
    if fault:
        raise ValueError(
            f"The run in {job.output} {fault}. Continue it with the original input and settings, "
            f"choose another folder, or delete {job.output} to start over."
        )


# --- making a plan


def digest_pipeline(name: str) -> str:
    """Return a digest of all files of a pipeline. Raises ValueError if there is none."""
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
    """Return the digest of a file's content, as stored in the plan."""
    digest = sha256()
    with file.path.open("rb") as opened:
        if file.kind in ("jsonl", "text"):
            with decompress(opened) as stream:
                for _ in read_lines(stream, digest.update):
                    pass
            return digest.hexdigest()
    return sha256_of(file.path)


def make_plan(job: Job, model: str, files: list[SourceFile]) -> Plan:
    """Read a corpus once to count its documents, find the starts of parts, and compute digests.
    Raises ValueError if a file can't be read or has no text column, or the corpus has no
    documents."""
    types = Types() if job.format == "parquet" else None
    planned = [plan_file(file, job, types) for file in files]
    if not any(file.num_docs for file in planned):
        raise ValueError(f"{job.source} has no documents. Pass other files.")
    return Plan(model, job.settings(), planned, {} if types is None else types.found)


class Types:
    """Determine the Parquet types of JSON columns from all of their values. A column with several
    types, lists or objects becomes a column of strings, with JSON for values that are not
    strings."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def add(self, columns: dict[str, Any]) -> None:
        """Add the types of a row."""
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
    """Read a file and describe it for the plan."""
    stat = file.path.stat()
    column, offsets = TEXT, list[int]()
    if file.kind == "parquet":
        digest = digest_file(file)
        with open_parquet(file) as table:
            num_docs = table.metadata.num_rows
            column = find_text(file, table.schema_arrow.names, job.text_column)
    elif file.kind in ("spacy", "csv"):
        digest, num_docs = digest_file(file), 0
        column = TEXT if file.kind == "spacy" else ""
        for document in read_documents(file, TEXT):
            num_docs += 1  # noqa: SIM113 (of an empty file it is 0)
            if document.columns and not column:
                column = find_text(file, list(document.columns), job.text_column)
            if types is not None:
                types.add(document.columns)
        column = column or TEXT
    else:
        digest, num_docs, column, offsets = _plan_lines(file, job, types)
    return PlannedFile(file.name, stat.st_size, stat.st_mtime_ns, digest, num_docs, column, offsets)


def _plan_lines(file: SourceFile, job: Job, types: Types | None) -> tuple[str, int, str, list[int]]:
    """Rows of JSON have columns of their own: those of the first ones are put together, until one
    has the column that was asked for."""
    digest = sha256()
    wanted = TEXT if file.kind == "text" else job.text_column
    column, names, offsets, number, position = "", dict[str, None](), list[int](), 0, 0
    with file.path.open("rb") as opened, decompress(opened) as stream:
        for size, line in checked(file, read_lines(stream, digest.update)):
            if is_document(file.kind, line):
                if file.has_offsets and number % job.docs_per_part == 0:
                    offsets.append(position)
                if types is not None or not column:
                    columns = read_line(file, number, line, TEXT).columns
                    if not column:
                        names |= dict.fromkeys(columns)
                        if wanted in names or (names and number >= LOOKED_AT):
                            column = find_text(file, list(names), wanted)
                    if types is not None:
                        types.add(columns)
                number += 1
            position += size
    if names and not column:
        column = find_text(file, list(names), wanted)
    return digest.hexdigest(), number, column or job.text_column, offsets
