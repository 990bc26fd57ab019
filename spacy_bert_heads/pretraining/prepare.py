"""Tokenize raw text once, in several processes, for all the epochs and runs that read it.

    sources ──▶ records ──chunks──▶ Worker ──▶ parts ──▶ files ──mapped──▶ Corpus
    sources.py  bytes               text,      arrays    appended,         store.py
                                    sentences,           renamed when
                                    wordpieces           complete

Memory doesn't grow with the corpus: at any time it holds some chunks on their way to the workers
and some parts on their way back. Chunks are cut independently of the workers, so the result is the
same for any number of them.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from hashlib import blake2b
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import spacy
from spacy.attrs import IDX, SENT_START
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import load_model_from_config
from thinc.api import Config
from tqdm import tqdm

from ..files import temporary_folder
from ..text.arrays import Bools1d, Ints1d
from ..text.wordpieces import WordpieceTokenizer
from .boundaries import begin_words, cut_pieces
from .sources import CHUNK, Reader, Record, Source, cut, list_sources, read_source, read_text
from .store import FORMAT, Corpus, Part, PreparationReport, open_corpus, write_corpus

MAX_LEXEMES = 1_000_000

T = TypeVar("T")


class Setup(NamedTuple):
    """What a worker needs, in a form that can be sent to another process."""

    config: str
    pipeline: bytes
    max_length: int
    wordpieces: WordpieceTokenizer


def prepare(
    sources: Sequence[str | Path | Reader],
    cache: Path,
    *,
    wordpieces: WordpieceTokenizer,
    lang: str = "en",
    sentences: Language | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Corpus:
    """Tokenize raw text into a folder in `cache`, or open the folder that was made from the same
    sources, tokenizer and settings before.

    A source is a file, a folder, a pattern, or `-` for standard input. `.spacy` files give the
    texts of their Docs; JSON Lines (`.jsonl`, `.ndjson`, `.json`) the string under `text`; text
    (`.txt`, `.text`) has blank lines between documents. A file with another name is JSON Lines if
    its first line is an object, otherwise text. All of them may be compressed, `.gz` or `.zst`. A
    folder is searched at any depth for files with these names. Files of folders and patterns are
    sorted.

    A text longer than the pipeline's `max_length` is cut at white space into several documents; in
    the middle of a word only where the second half of a part has no white space. A text file
    without blank lines is cut at 64 MB; a longer line of JSON Lines is skipped as invalid JSON.

    `sentences` is a pipeline that finds sentences; by default they are found by the punctuation of
    `lang`. `workers` is the number of processes: 1 for this process alone, 0 for one per core.
    `progress` shows a progress bar if there is a terminal.

    Raises FileNotFoundError if a source doesn't exist, ValueError if the pipeline sets no sentence
    boundaries or nothing could be kept, and ImportError if a file needs zstandard, which is not
    installed.
    """
    cache = Path(cache)
    nlp = sentences if sentences is not None else make_sentencizer(lang)
    if not nlp("One. Two.").has_annotation("SENT_START"):
        raise ValueError(
            f"The pipeline ({', '.join(nlp.pipe_names) or 'empty'}) finds no sentences. "
            "It needs a parser, a senter or a sentencizer."
        )
    cache.mkdir(parents=True, exist_ok=True)
    # In the cache, because a rename is atomic only within one file system.
    with temporary_folder(cache) as made:
        found = list_sources(sources, made)
        target = cache / make_fingerprint(found, nlp, wordpieces)
        if not target.exists():
            folder = made / "corpus"
            folder.mkdir()
            setup = Setup(nlp.config.to_str(), nlp.to_bytes(), nlp.max_length, wordpieces)
            size = sum(source.path.stat().st_size for source in found)
            with tqdm(
                total=size, unit="B", unit_scale=True, disable=None if progress else True
            ) as bar:
                records = chain.from_iterable(read_source(source, bar) for source in found)
                chunks = group(records, lambda record: len(record.content) + len(record.where))
                write_corpus(tokenize_chunks(chunks, setup, workers or count_cores()), folder)
            try:
                folder.rename(target)
            except OSError:
                if not target.exists():  # otherwise another process made the same meanwhile
                    raise
    return open_corpus(target)


def make_sentencizer(lang: str) -> Language:
    """Make the default pipeline, which ends sentences at the punctuation of the language."""
    nlp = spacy.blank(lang)
    nlp.add_pipe("sentencizer")
    return nlp


def count_cores() -> int:
    """Count the cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_fingerprint(sources: list[Source], nlp: Language, wordpieces: WordpieceTokenizer) -> str:
    """Return the folder name of a corpus, by everything its content depends on: the content of the
    sources, wherever they are, the pipeline and the tokenizer."""
    digest = blake2b(digest_size=12)
    settings = [FORMAT, [source.key() for source in sources], nlp.config.to_str(), nlp.max_length]
    digest.update(json.dumps(settings).encode("utf8"))
    digest.update(wordpieces.tokenizer.to_str().encode("utf8"))
    # Not `nlp.to_bytes()`: some components serialize sets, whose order changes from run to run.
    for _, component in nlp.pipeline:
        if hasattr(component, "model") and hasattr(component.model, "to_bytes"):
            digest.update(component.model.to_bytes())
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
    """Turns chunks of records into arrays, in any process."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.wordpieces = setup.wordpieces
        self.nlp = self._load()

    def _load(self) -> Language:
        # A copy of the user's pipeline even in this process, so that all workers are equal.
        config = Config().from_str(self.setup.config, interpolate=False)
        nlp = load_model_from_config(config).from_bytes(self.setup.pipeline)
        nlp.max_length = self.setup.max_length
        return nlp

    def __call__(self, records: list[Record]) -> Part:
        """Read, split and tokenize a chunk. Records that can't be read are in the report."""
        # After a memory zone, forgotten words keep their place in spaCy's hash tables.
        if len(self.nlp.vocab) > MAX_LEXEMES:
            self.nlp = self._load()
        report = PreparationReport()
        texts: list[tuple[str, str]] = []
        for record in records:
            try:
                text = read_text(record)
            except ValueError as error:
                report.skip(record.where, str(error))
            else:
                texts.extend((record.where, part) for part in cut(text, self.nlp.max_length))
        # A chunk is at least one record, which may be many texts, so they are grouped again.
        batches = list(group(texts, lambda text: len(text[1]))) or [[]]
        arrays = zip(*(self._tokenize(batch, report) for batch in batches), strict=True)
        pieces, words, sentences, documents = map(np.concatenate, arrays)
        report.documents, report.sentences = len(documents), len(sentences)
        report.pieces = len(pieces)
        return Part(pieces, words, sentences, documents, report)

    def _tokenize(
        self, batch: list[tuple[str, str]], report: PreparationReport
    ) -> tuple[Ints1d, Bools1d, Ints1d, Ints1d]:
        # The number of different strings in a corpus has no limit; in the zone spaCy forgets them.
        with self.nlp.memory_zone():
            found = find_sentences(self.nlp, [text for _, text in batch])
        texts, starts = [], []
        for (where, text), result in zip(batch, found, strict=True):
            if isinstance(result, str):
                report.skip(where, result)
            else:
                texts.append((where, text))
                starts.append(result)
        pieces = self.wordpieces([text for _, text in texts])
        for (where, text), length in zip(texts, pieces.lengths, strict=True):
            if length:
                report.bytes += len(text.encode("utf8"))
            else:  # only control characters
                report.skip(where, f"no wordpieces: {text!r}")
        kept = [text for _, text in texts]
        words = begin_words(pieces, kept)
        return pieces.ids, words, *cut_pieces(pieces, words, kept, starts)


def find_sentences(nlp: Language, texts: list[str]) -> list[Ints1d | str]:
    """Find, for each text, the first character of each sentence (n_sentences,), or the reason why
    the pipeline failed on it."""
    # Exception, because a component may raise anything, and no text may end the run.
    try:
        return [_sentence_starts(doc) for doc in nlp.pipe(texts)]
    except Exception:
        found: list[Ints1d | str] = []
    for text in texts:  # one by one, to find the text that failed
        try:
            found.append(_sentence_starts(nlp(text)))
        except Exception as error:
            found.append(f"pipeline failed: {error}")
    return found


def _sentence_starts(doc: Doc) -> Ints1d:
    tokens = doc.to_array([IDX, SENT_START])
    return tokens[tokens[:, 1] == 1, 0].astype(np.int64)


# --- several processes


def tokenize_chunks(chunks: Iterator[list[Record]], setup: Setup, workers: int) -> Iterator[Part]:
    """Yield the part of each chunk, in order, made by at most so many processes.

    Raises ChildProcessError if a process died; if memory was short, take fewer workers.
    """
    head = list(islice(chunks, workers))
    workers = len(head)  # starting a process takes longer than a chunk
    chunks = chain(head, chunks)
    if workers <= 1:
        yield from map(Worker(setup), chunks)
        return
    # Spawned, because a forked process hangs if torch has run in its parent.
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
            f"One of {workers} worker processes died. If memory was short, take fewer."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: Worker


def _start(setup: Setup) -> None:
    """Make the worker of a process. One process runs on each core, so none needs threads."""
    import torch

    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    _worker = Worker(setup)


def _work(records: list[Record]) -> Part:
    return _worker(records)
