"""Annotate parts with a pipeline, in batches, and handle documents that fail."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import spacy
import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import import_file

from ..data.records import is_utf8, parse_cell
from ..evaluate import load_pipeline
from ..files import naming, replace_file
from ..heads.find import check_asked, pair_names, register_extensions
from ..text.user_data import set_value
from .claims import Claim, Range
from .outputs import WRITERS, Row, Writer
from .plan import WAIT, Part, Run
from .records import Columns
from .source import Document, read_documents

# The size of a batch (about 30,000 wordpieces). The encoder splits it into batches of
# `max_batch_tokens` wordpieces; with more texts it can pad less.
BATCH_DOCS = 512
BATCH_CHARS = 2**17
MAX_NEW_WORDS = 2_000_000  # 70 MB
LONGEST_ERROR = 500  # characters
DEATHS = 2  # deaths of a process while processing only one document, until it is skipped


class Unfit(ValueError):
    """Report a document that can't be annotated. The text before the first colon is the kind of
    failure."""


class Annotator:
    """Load a pipeline once, and annotate one part after the other.

    Raises ValueError if the pipeline can't be loaded or sets no annotations.
    """

    def __init__(self, run: Run) -> None:
        job = run.job
        self.run = run
        if job.code is not None:
            import_code(job.code)
        register_extensions()
        if job.num_threads is not None:
            torch.set_num_threads(job.num_threads)
            os.environ["RAYON_NUM_THREADS"] = str(job.num_threads)  # threads of the tokenizer
        if job.gpu_id >= 0:
            spacy.require_gpu(job.gpu_id)
        self._load()
        self.columns = Columns.of(self.nlp)
        self._errors: dict[int, str] = {}
        self._open: tuple[int, int, Iterator[Document]] | None = None

    def _load(self) -> None:
        self.nlp = load_pipeline(self.run.job.model, precision=self.run.job.precision)
        self.nlp.set_error_handler(self._note_error)  # type: ignore[arg-type]
        self._num_lexemes = len(self.nlp.vocab)

    def _free_words(self) -> None:
        """Reload the pipeline after many new words. A memory zone frees their lexemes, but not
        their entries in the vocabulary's table, which `len` still counts."""
        if len(self.nlp.vocab) > self._num_lexemes + MAX_NEW_WORDS:
            del self.nlp
            gc.collect()
            self._load()

    def work(self) -> None:
        """Annotate parts until all parts of the run exist. Waits for parts of other processes, and
        takes them over if the process dies."""
        while missing := self.run.missing():
            if not any([self.try_part(part) for part in missing]):
                sleep(WAIT)

    def try_part(self, part: Part) -> bool:
        """Annotate a part, unless it exists or another process works on it. Returns whether it
        did."""
        if self.run.path(part).exists():
            return False
        claim = self.run.claim(part)
        if claim is None:
            return False
        with claim:
            self.annotate(part, claim)
        self._free_words()
        return True

    def annotate(self, part: Part, claim: Claim) -> None:
        """Write a part, which is published atomically. Raises OSError with the path if it can't be
        written."""
        run, start = self.run, perf_counter()
        path = run.path(part)
        left = f".{path.name}~{socket.gethostname()}~"
        for unfinished in path.parent.glob(f"{left}*"):
            unfinished.unlink(missing_ok=True)  # of a process that died or gave up the part
        written = path.with_name(f"{left}{os.getpid()}")
        figures: dict[str, float] = {"docs": 0, "words": 0}
        failures: Counter[str] = Counter()
        try:
            with (
                naming(path),
                closing(self._make_writer(written)) as writer,
                self.nlp.memory_zone(),  # strings and lexemes of a part are freed with it
            ):
                for rows in self._rows(part, claim):
                    writer.write(rows)
                    figures["docs"] += len(rows)
                    figures["words"] += sum(len(row.doc) for row in rows if not row.error)
                    failures.update(kind_of(row.error) for row in rows if row.error)
            if figures["docs"] != part.num_docs:
                raise ValueError(
                    f"{run.files[part.file].path} has changed since the run began: a part has "
                    f"{figures['docs']:,} documents instead of {part.num_docs:,}. Restore the "
                    "file, or start a new run in another folder."
                )
            figures |= {"seconds": perf_counter() - start, "memory": peak_memory()}
            notes = json.dumps(figures | {"failures": failures}).encode("utf8")
            replace_file(run.notes(part), notes)
            # A process that took over this part has deleted the unfinished file.
            with suppress(FileNotFoundError):
                written.replace(path)
        finally:
            written.unlink(missing_ok=True)

    def _make_writer(self, path: Path) -> Writer:
        return WRITERS[self.run.job.format](path, self.columns, self.run.plan.types)

    # --- the documents of a part

    def _rows(self, part: Part, claim: Claim) -> Iterator[list[Row]]:
        deaths = Deaths(claim.died)
        for first, batch in make_batches(self._read(part), deaths.alone):
            claim.note((first, first + len(batch)))
            if deaths.gave_up(first) and len(batch) == 1:
                reason = f"killed the process: {DEATHS} times, while only it was annotated"
                yield [self._failed(batch[0], reason)]
            else:
                yield self.annotate_batch(batch)

    def _read(self, part: Part) -> Iterator[Document]:
        """Read the documents of a part. For files that can only be read from the start, reading
        continues after the previous part."""
        number, at, documents = self._open or (-1, 0, iter(()))
        if number != part.file or at > part.first or part.offset is not None:
            at = part.first
            documents = read_documents(
                self.run.files[part.file],
                self.run.plan.files[part.file].text_column,
                first=part.first,
                offset=part.offset,
                carry=self.run.job.format == "parquet",
            )
        self._open = None
        end = part.first + part.num_docs
        for number, document in enumerate(documents, at):
            if number >= part.first:
                yield document
            if number + 1 == end:
                break
        if part.offset is None:
            self._open = (part.file, end, documents)

    def annotate_batch(self, batch: Sequence[Document]) -> list[Row]:
        """Annotate documents together; documents that fail individually get an error."""
        self._errors = {}
        docs = [self._make_doc(number, document) for number, document in enumerate(batch)]
        asked = [(doc, number) for number, doc in enumerate(docs) if doc is not None]
        found = self._pipe(asked)
        for number, document in enumerate(batch):
            # A component that failed on several documents may have failed on only one of them.
            if number not in found and self._errors.get(number, "") == "":
                doc = self._make_doc(number, document)
                found |= self._pipe([(doc, number)]) if doc is not None else {}
        return [
            Row(document, found[number], self.columns.read(found[number]), None)
            if number in found
            else self._failed(
                document, self._errors.get(number) or "lost: no component reported why"
            )
            for number, document in enumerate(batch)
        ]

    def _pipe(self, asked: Sequence[tuple[Doc, int]]) -> dict[int, Doc]:
        annotated = self.nlp.pipe(asked, as_tuples=True, batch_size=max(len(asked), 1))
        return {number: doc for doc, number in annotated}

    def _make_doc(self, number: int, document: Document) -> Doc | None:
        """Tokenize a text and set its second texts. Returns None, and notes the error, if that
        fails."""
        try:
            text = self._check_text(document)
            doc = self.nlp.make_doc(text)
            set_asked(doc, document, self.nlp)
        except Unfit as error:
            self._errors[number] = str(error)
            return None
        except Exception as error:  # of a custom tokenizer
            self._errors[number] = f"{type(error).__name__} in tokenizer: {error}"
            return None
        return doc

    def _check_text(self, document: Document) -> str:
        text, where = document.text, document.where
        if document.error is not None:
            raise Unfit(document.error)
        if text is None:
            raise Unfit(f"no text: it is null or missing ({where})")
        if not isinstance(text, str):
            raise Unfit(f"no text: it is {type(text).__name__}, not a string ({where})")
        if not is_utf8(text):
            raise Unfit(f"not UTF-8: the text ({where})")
        if len(text) > self.nlp.max_length:
            raise Unfit(
                f"too long: {len(text):,} characters, split it into texts of at most "
                f"{self.nlp.max_length:,} ({where})"
            )
        return text

    def _note_error(self, name: str, component: Any, docs: Sequence[Doc], error: Exception) -> None:
        for doc in docs:
            alone = len(docs) == 1
            message = f"{type(error).__name__} in {name}: {error}"
            self._errors[doc._context] = message if alone else ""

    def _failed(self, document: Document, error: str) -> Row:
        """Create the row of a document that failed, with its text as a Doc if possible."""
        doc = Doc(self.nlp.vocab)
        text = document.text
        if isinstance(text, str) and is_utf8(text) and len(text) <= self.nlp.max_length:
            try:
                doc = self.nlp.make_doc(text)
            except Exception:
                doc = Doc(self.nlp.vocab, [text], [False])
        error = " ".join(error.split())
        shown = error if len(error) <= LONGEST_ERROR else f"{error[: LONGEST_ERROR - 1]}…"
        return Row(document, doc, None, shown)


def import_code(path: Path) -> None:
    """Import a file of the user. Raises ValueError if that fails; spaCy's own function would exit
    the process."""
    try:
        import_file("python_code", path)
    except Exception as error:
        raise ValueError(f"'{path}' can't be imported: {error!r}") from error


def kind_of(error: str) -> str:
    """Return the kind of a failure: the error up to its first colon."""
    return error.partition(":")[0]


def set_asked(doc: Doc, document: Document, nlp: Language) -> None:
    """Set the second texts that heads of a pipeline read. Raises Unfit if they are malformed."""
    read = {getattr(pipe, "input_name", "") for _, pipe in nlp.pipeline}
    for name in pair_names():
        if name in read and (texts := read_asked(document.columns.get(name), name)):
            set_value(name, doc, texts)


def read_asked(value: Any, name: str) -> list[Any]:
    """Return the second texts of a row: a list of texts, of objects with a text (as for `convert`),
    or of choices; in a table written as JSON. Raises Unfit for any other value."""
    value = parse_cell(value)
    if value in (None, ""):
        return []
    if isinstance(value, list):
        keys = (name.removesuffix("s"), "text")
        value = [
            next((one[key] for key in keys if key in one), one) if isinstance(one, dict) else one
            for one in value
        ]
    try:
        return check_asked(name, value, f"the column '{name}'")
    except ValueError as error:
        raise Unfit(f"wrong {name}: {error}") from None


class Deaths:
    """Hold the documents that were in progress when earlier processes of a part died."""

    def __init__(self, died: Iterable[Range]) -> None:
        self.died = [tuple(one) for one in died]

    def alone(self, number: int) -> bool:
        """Return whether a document must be annotated alone, because a process died with it."""
        return any(first <= number < stop for first, stop in self.died)

    def gave_up(self, number: int) -> bool:
        """Return whether a document has killed `DEATHS` processes while it was annotated alone."""
        return self.died.count((number, number + 1)) >= DEATHS


def make_batches(
    documents: Iterable[Document], alone: Callable[[int], bool]
) -> Iterator[tuple[int, list[Document]]]:
    """Yield batches of documents, each with the number of its first document; documents for which
    `alone` is true get a batch of their own. Batches depend only on the documents, so every run has
    the same batches."""
    batch: list[Document] = []
    first, chars = 0, 0
    for number, document in enumerate(documents):
        size = len(document.text) if isinstance(document.text, str) else 0
        full = len(batch) == BATCH_DOCS or chars + size > BATCH_CHARS
        if batch and (full or alone(number) or alone(number - 1)):
            yield first, batch
            batch, first, chars = [], number, 0
        batch.append(document)
        chars += size
    if batch:
        yield first, batch


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes, 0 if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
