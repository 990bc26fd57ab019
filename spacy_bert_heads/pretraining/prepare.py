"""Tokenize raw text once, in several processes, for all epochs and runs.

    sources ──▶ records ──chunks──▶ Worker ──▶ parts ──▶ files ──mapped──▶ Corpus
    sources.py  records.py          text,      arrays    appended,         store.py
                                    sentences,           renamed when
                                    wordpieces           complete

Memory doesn't grow with the corpus: only some chunks and some parts are in memory at any time.
Chunks don't depend on the workers, so the result is the same for any number of workers.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from hashlib import blake2b
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import spacy
from spacy.attrs import IDX, SENT_START
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import filter_spans
from tokenizers import Tokenizer

from ..files import temporary_folder
from ..text.arrays import Bools1d, Ints1d, Ints2d
from ..text.wordpieces import WordpieceTokenizer
from .boundaries import NO_SPANS, begin_units, begin_words, cut_pieces
from .layouts import LAYOUTS, find_lines
from .records import AUTO, CHUNK, Format, Record, cut, read_records, read_text
from .sources import Reader, Source, list_sources
from .store import FORMAT, Corpus, Part, PreparationReport, open_corpus, write_corpus

MAX_LEXEMES = 1_000_000

T = TypeVar("T")


class Setup(NamedTuple):
    """Hold what a worker needs; can be pickled."""

    pipeline: Path
    max_length: int
    finds_spans: bool
    key: str  # see `Format`
    wordpieces: WordpieceTokenizer


class Text(NamedTuple):
    """Hold a text to tokenize and its origin."""

    where: str
    text: str
    sentences: Ints1d | None  # (n_sentences,) the first character of each, if known


class Annotation(NamedTuple):
    """Hold what a pipeline finds in a text, in characters."""

    sentences: Ints1d  # (n_sentences,) the first character of each
    spans: Ints2d  # (n_spans, 2) the start and end of each entity and noun chunk


def prepare(
    sources: Sequence[str | Path | Reader],
    cache: Path,
    *,
    wordpieces: WordpieceTokenizer,
    lang: str = "en",
    pipeline: Language | None = None,
    format: Format = AUTO,
    workers: int = 0,
    progress: bool = False,
) -> Corpus:
    """Tokenize raw text into a folder in `cache`, or open the existing folder for the same content,
    tokenizer and settings.

    A source is a file, a folder, a pattern, `-` for standard input, or a callable that yields
    texts. In a folder written by `datasets`, its rows are read; any other folder is searched
    recursively for files with the extensions below. Files of folders and patterns are sorted. A
    file with another extension is JSON Lines if its first line is an object, otherwise text. All
    formats except Parquet may be compressed (`.gz`, `.zst`).

    .jsonl .ndjson .json    the string under `format.key` of each object
    .parquet, `datasets`    the column `format.key`
    .spacy                  the texts of the Docs
    .txt .text              documents by `format.layout`, see layouts.py

    A text longer than the pipeline's `max_length` is split at white space into several documents;
    inside a word only if the second half of a part has no white space. A document of a text file is
    split at 64 MB; a longer line of JSON Lines is skipped as invalid JSON.

    `pipeline` finds sentences and, if it can, entities and noun chunks; without one, sentences end
    at the punctuation of `lang`. `workers` is the number of processes: 1 for only this process, 0
    for one per core. `progress` shows a progress bar in a terminal.

    Raises FileNotFoundError if a source doesn't exist, ValueError if the pipeline sets no sentence
    boundaries or all text was skipped, and ImportError if a source needs a package that is not
    installed.
    """
    cache = Path(cache)
    nlp = pipeline if pipeline is not None else make_sentencizer(lang)
    if not nlp("One. Two.").has_annotation("SENT_START"):
        raise ValueError(
            f"The pipeline ({', '.join(nlp.pipe_names) or 'empty'}) sets no sentence boundaries. "
            "Add a parser, a senter or a sentencizer."
        )
    cache.mkdir(parents=True, exist_ok=True)
    # In the cache, because a rename is atomic only within one file system.
    with temporary_folder(cache) as made:
        found = list_sources(sources, made)
        target = cache / make_fingerprint(found, format, nlp, wordpieces)
        if not target.exists():
            folder = made / "corpus"
            folder.mkdir()
            has_own = pipeline is not None
            # On disk, because spaCy's entity ruler loses phrases in `to_bytes` and `from_bytes`.
            nlp.to_disk(made / "pipeline")
            setup = Setup(made / "pipeline", nlp.max_length, has_own, format.key, wordpieces)
            records = read_records(found, format, progress=progress)
            chunks = group(records, lambda record: len(record.content) + len(record.where))
            write_corpus(tokenize_chunks(chunks, setup, workers or count_cores()), folder)
            try:
                folder.rename(target)
            except OSError:
                if not target.exists():  # otherwise another process created the same folder
                    raise
    return open_corpus(target)


def make_sentencizer(lang: str) -> Language:
    """Return the default pipeline, which splits sentences at the punctuation of the language."""
    nlp = spacy.blank(lang)
    nlp.add_pipe("sentencizer")
    return nlp


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rules_of(nlp: Language) -> bytes:
    """Return the rules of a pipeline's tokenizer, b"" if it has none that can be saved."""
    tokenizer: Any = nlp.tokenizer
    return tokenizer.to_bytes(exclude=["vocab"]) if hasattr(tokenizer, "to_bytes") else b""


@cache  # English takes half a second
def default_rules(language: type[Language]) -> bytes:
    """Return the rules of a language's own tokenizer."""
    return rules_of(language())


def make_fingerprint(
    sources: list[Source], format: Format, nlp: Language, wordpieces: WordpieceTokenizer
) -> str:
    """Return the folder name of a corpus: a digest of everything that determines its content. Paths
    and modification times are not included."""
    digest = blake2b(digest_size=12)
    settings = [
        FORMAT,
        [source.digest for source in sources],
        format,
        nlp.config.to_str(),
        nlp.max_length,
    ]
    digest.update(json.dumps(settings).encode("utf8"))
    digest.update(wordpieces.tokenizer.to_str().encode("utf8"))
    rules = rules_of(nlp)
    if rules != default_rules(type(nlp)):  # type: ignore[arg-type]
        digest.update(rules)
    # Not `nlp.to_bytes()`: some components serialize sets, whose order changes from run to run.
    for _, component in nlp.pipeline:
        if hasattr(component, "model") and hasattr(component.model, "to_bytes"):
            digest.update(component.model.to_bytes())
        if hasattr(component, "patterns"):  # of rulers
            digest.update(json.dumps(component.patterns, default=str).encode("utf8"))
    return digest.hexdigest()


def group(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Group items in order; a group ends with the item that makes it as large as `CHUNK`."""
    members: list[T] = []
    room = CHUNK
    for item in items:
        members.append(item)
        room -= size(item)
        if room <= 0:
            yield members
            members, room = [], CHUNK
    if members:
        yield members


# --- one chunk


class Worker:
    """Convert chunks of records to arrays, in any process."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.wordpieces = read_as_text(setup.wordpieces)
        self.nlp = self._load()

    def _load(self) -> Language:
        # A copy of the user's pipeline even in this process, so that all workers are equal.
        nlp = spacy.load(self.setup.pipeline)
        nlp.max_length = self.setup.max_length
        return nlp

    def __call__(self, records: list[Record]) -> Part:
        """Read, split and tokenize a chunk; unreadable records are added to the report."""
        # Even after a memory zone, freed words occupy space in spaCy's hash tables.
        if len(self.nlp.vocab) > MAX_LEXEMES:
            self.nlp = self._load()
        report = PreparationReport()
        texts: list[Text] = []
        for record in records:
            try:
                text = read_text(record, self.setup.key)
            except ValueError as error:
                report.skip(record.where, str(error))
                continue
            report.kinds[record.kind] += 1
            for part in cut(text, self.nlp.max_length):
                starts = find_lines(part) if record.kind == "sentences" else None
                # Lines of a text file are running text; for some tokenizers "\n" is a wordpiece.
                part = part.replace("\n", " ") if record.kind in LAYOUTS else part
                texts.append(Text(record.where, part, starts))
        # One record of a chunk may be split into many texts, so they are grouped again.
        batches = list(group(texts, lambda text: len(text.text))) or [[]]
        arrays = zip(*(self._tokenize(batch, report) for batch in batches), strict=True)
        pieces, words, spans, sentences, documents = map(np.concatenate, arrays)
        report.documents, report.sentences = len(documents), len(sentences)
        report.pieces, report.single = len(pieces), int((documents == 1).sum())
        return Part(pieces, words, spans, sentences, documents, report)

    def _tokenize(
        self, batch: list[Text], report: PreparationReport
    ) -> tuple[Ints1d, Bools1d, Bools1d, Ints1d, Ints1d]:
        # The number of different strings in a corpus is unlimited; the zone frees them.
        with self.nlp.memory_zone():
            found = annotate(self.nlp, batch, finds_spans=self.setup.finds_spans)
        kept, annotations = [], []
        for text, result in zip(batch, found, strict=True):
            if isinstance(result, str):
                report.skip(text.where, result)
            else:
                kept.append(text)
                annotations.append(result)
        texts = [text.text for text in kept]
        pieces = self.wordpieces(texts)
        for text, length in zip(kept, pieces.lengths, strict=True):
            if length:
                report.bytes += len(text.text.encode("utf8"))
            else:  # only control characters
                report.skip(text.where, f"no wordpieces: {text.text!r}")
        words = begin_words(pieces, texts)
        spans = begin_units(pieces, words, texts, [one.spans for one in annotations])
        report.spans += sum(len(one.spans) for one in annotations)
        starts = [one.sentences for one in annotations]
        return pieces.ids, words, spans, *cut_pieces(pieces, words, texts, starts)


def read_as_text(wordpieces: WordpieceTokenizer) -> WordpieceTokenizer:
    """Return a copy of a tokenizer that treats special tokens in a text ("[MASK]", "</s>") as
    ordinary text."""
    content = json.loads(wordpieces.tokenizer.to_str())
    if content["model"].get("type") == "Unigram":
        # The model matches every entry of its vocabulary, also special tokens.
        special = {token["id"] for token in content["added_tokens"] if token["special"]}
        vocab = content["model"]["vocab"]
        for number in special:
            if number < len(vocab):
                vocab[number][0] = f"\U0010ffff{vocab[number][0]}"  # no character at all
    copy = WordpieceTokenizer(Tokenizer.from_str(json.dumps(content)), pad_id=wordpieces.pad_id)
    copy.tokenizer.encode_special_tokens = True
    return copy


def annotate(nlp: Language, texts: list[Text], *, finds_spans: bool) -> list[Annotation | str]:
    """Return the annotation of each text by the pipeline, or the reason why it failed. For texts
    with known sentences, the pipeline runs only if spans are needed."""
    todo = [text.text for text in texts if finds_spans or text.sentences is None]
    found = iter(_run(nlp, todo, finds_spans=finds_spans))
    annotations: list[Annotation | str] = []
    for text in texts:
        if text.sentences is None:
            annotations.append(next(found))
            continue
        one = next(found) if finds_spans else Annotation(text.sentences, NO_SPANS)
        if isinstance(one, Annotation):
            one = one._replace(sentences=text.sentences)
        annotations.append(one)
    return annotations


def _run(nlp: Language, texts: list[str], *, finds_spans: bool) -> list[Annotation | str]:
    # Exception, because a component may raise anything, and no text may end the run.
    try:
        return [_read_doc(doc, finds_spans=finds_spans) for doc in nlp.pipe(texts)]
    except Exception:
        found: list[Annotation | str] = []
    for text in texts:  # one by one, to find the text that failed
        try:
            found.append(_read_doc(nlp(text), finds_spans=finds_spans))
        except Exception as error:
            found.append(f"pipeline failed: {error}")
    return found


def _read_doc(doc: Doc, *, finds_spans: bool) -> Annotation:
    tokens = doc.to_array([IDX, SENT_START])
    starts = tokens[tokens[:, 1] == 1, 0].astype(np.int64)
    if not finds_spans:
        return Annotation(starts, NO_SPANS)
    has_chunks = doc.has_annotation("DEP") and doc.vocab.get_noun_chunks is not None
    # Of overlapping spans, keep the longest.
    spans = filter_spans([*doc.ents, *(doc.noun_chunks if has_chunks else ())])
    offsets = [(span.start_char, span.end_char) for span in spans]
    return Annotation(starts, np.array(offsets, dtype=np.int64).reshape(-1, 2))


# --- several processes


def tokenize_chunks(chunks: Iterator[list[Record]], setup: Setup, workers: int) -> Iterator[Part]:
    """Yield the part of each chunk in order, computed by at most `workers` processes.

    Raises ChildProcessError if a process died; if memory was too small, use fewer workers.
    """
    head = list(islice(chunks, workers))
    workers = len(head)  # starting a process takes longer than a chunk
    chunks = chain(head, chunks)
    if workers <= 1:
        yield from map(Worker(setup), chunks)
        return
    # Spawned, because a forked process hangs if torch was used in its parent.
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start, initargs=(setup,)
    )
    pending: deque[Future[Part]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(_work, chunk))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"One of {workers} worker processes died. If memory was too small, set text.workers to "
            "a smaller number."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: Worker


def _start(setup: Setup) -> None:
    """Create the worker of a process. There is one process per core, so each uses one thread."""
    import torch

    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    _worker = Worker(setup)


def _work(records: list[Record]) -> Part:
    return _worker(records)
