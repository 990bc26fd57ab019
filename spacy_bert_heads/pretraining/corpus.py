"""Raw text -> wordpieces on disk, once, for all the epochs and runs that read them.

    sources ──▶ records ──chunks──▶ Worker ──▶ parts ──▶ files ──mapped──▶ Corpus
    unpacked    bytes               text,      arrays    appended,
                                    sentences,           renamed when whole
                                    wordpieces

Memory does not grow with the corpus: of it all there are at any time some chunks on their way to
the workers, and some parts on their way back. (A `.spacy` file is one block by its nature.) Chunks
are cut before workers are chosen, so the result is the same for any number of them.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import sys
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from glob import glob
from hashlib import blake2b
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
import spacy
from numpy.typing import NDArray
from spacy.attrs import IDX, SENT_START
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.util import load_model_from_config
from spacy.vocab import Vocab
from thinc.api import Config
from tqdm import tqdm

from ..data.reader import DAMAGE
from ..data.records import check_text, list_reasons
from ..types import Bools1d, Ints1d, Pieces
from ..wordpieces import Wordpieces

FORMAT = 1  # of what is written, and of the rules by which it is made
ARRAYS = {"pieces": "<i4", "words": "|b1", "sentences": "<i8", "documents": "<i8"}
KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".txt", ".text"), "text"),
    ".spacy": "spacy",
}
PACKED = (".gz", ".zst")
CHUNK = 2**18  # bytes or characters: some tenths of a second for a worker
MAX_BYTES = 2**26  # of one record
MAX_LEXEMES = 1_000_000
MAX_SAMPLES = 5
# Scripts that are written without spaces between words: Thai and Lao, Tibetan, Burmese, Khmer,
# kana, ideographs (BERT's list, with those that Unicode got since), kana of half width.
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x0F00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x323AF),
)
SPACE, APART, LETTER, MARK, UNKNOWN = range(5)  # what a character is to the word around it
KINDS_OF_CODES = np.full(sys.maxunicode + 1, UNKNOWN, dtype=np.uint8)  # found when first met

T = TypeVar("T")


@dataclass
class PreparationReport:
    """What was kept and what was not. `bytes` is the kept text in UTF-8. What is skipped is a
    record (a line of JSONL, a Doc, a document of a text file), a part of one that was too long, or
    the rest of a damaged file. Reasons are counted without their details."""

    documents: int = 0
    sentences: int = 0
    pieces: int = 0
    bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)

    def skip(self, where: str, reason: str) -> None:
        """Enter what was skipped.

        where (str): Where it is.
        reason (str): Why, with details behind the first colon.
        """
        self.skipped[reason.partition(":")[0]] += 1
        if len(self.samples) < MAX_SAMPLES:
            self.samples.append(f"{where}: {reason:.300}")

    def add(self, other: PreparationReport) -> None:
        """Enter what became of more records.

        other (PreparationReport): Their report.
        """
        self.documents += other.documents
        self.sentences += other.sentences
        self.pieces += other.pieces
        self.bytes += other.bytes
        self.skipped.update(other.skipped)
        self.samples = [*self.samples, *other.samples][:MAX_SAMPLES]

    def lines(self) -> list[str]:
        """RETURNS (List[str]): What to tell a user, counts first, then reasons and samples."""
        counts = (
            f"{self.documents:,} documents, {self.sentences:,} sentences, "
            f"{self.pieces:,} wordpieces of {self.bytes:,} bytes"
        )
        return [counts, *list_reasons("Skipped", self.skipped, self.samples)]


@dataclass(frozen=True)
class Corpus:
    """Raw text, tokenized once, on disk. The arrays are mapped, and read-only."""

    pieces: NDArray[np.int32]  # (n_pieces,) wordpiece ids of all documents, no special tokens
    words: NDArray[np.bool_]  # (n_pieces,) whether a piece begins a word, see `begin_words`
    sentences: NDArray[np.int64]  # (n_sentences + 1,) first piece of each sentence, then the end
    documents: NDArray[np.int64]  # (n_documents + 1,) first sentence of each, then the end
    report: PreparationReport
    fingerprint: str = ""  # the name of its folder: another one is another corpus


class Source(NamedTuple):
    """A file to read, by the name that its user knows it by."""

    name: str
    path: Path
    key: tuple[str | int, ...]  # what changes if the content may have changed


class Record(NamedTuple):
    """What may be a document."""

    where: str
    kind: str  # jsonl, text, or refused if the bytes are the reason
    content: bytes


class Setup(NamedTuple):
    """What a worker needs, as it travels to another process."""

    config: str
    pipeline: bytes
    max_length: int
    wordpieces: Wordpieces


class Part(NamedTuple):
    """What became of a chunk of records."""

    pieces: Ints1d  # (n_pieces,)
    words: Bools1d  # (n_pieces,)
    sentences: Ints1d  # (n_sentences,) pieces of each
    documents: Ints1d  # (n_documents,) sentences of each
    report: PreparationReport


def prepare(
    sources: Sequence[str | Path],
    cache: Path,
    *,
    wordpieces: Wordpieces,
    lang: str = "en",
    sentences: Language | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Corpus:
    """Tokenize raw text, or open what was made of the same sources, tokenizer and settings before.

    A source is a file, a folder, a pattern, or `-` for standard input. `.spacy` files give the
    texts of their Docs; JSON Lines (`.jsonl`, `.ndjson`, `.json`) the string under `text`; text
    (`.txt`, `.text`) has blank lines between documents. A file of another name is JSON Lines if its
    first line is an object, else text. All may be packed, `.gz` or `.zst`. Of a folder the files of
    these names are read, at any depth; folders and patterns are sorted.

    A text longer than the pipeline's `max_length` is cut at white space into several documents, in
    the middle of a word only where the second half of a part has no white space at all. So is, at
    64 MB, a text file without blank lines; a longer line of JSON Lines is skipped as broken.

    sources (Sequence[str / Path]): What to read, in this order.
    cache (Path): The folder for all that is prepared; this goes to a folder in it.
    wordpieces (Wordpieces): The tokenizer.
    lang (str): The language of the default pipeline, which finds sentences by their punctuation.
    sentences (Language): Another pipeline that finds sentences.
    workers (int): Processes to use, 1 for this one alone, 0 for one on each core.
    progress (bool): Show a progress bar, if there is a terminal.
    RETURNS (Corpus): The corpus.
    RAISES (FileNotFoundError): If there is no such source.
    RAISES (ValueError): If the pipeline finds no sentences, or nothing could be kept.
    RAISES (ImportError): If a file needs zstandard, which is not installed.
    """
    cache = Path(cache)
    nlp = sentences if sentences is not None else make_sentencizer(lang)
    if not nlp("One. Two.").has_annotation("SENT_START"):
        raise ValueError(
            f"The pipeline ({', '.join(nlp.pipe_names) or 'empty'}) finds no sentences. "
            "It needs a parser, a senter or a sentencizer."
        )
    cache.mkdir(parents=True, exist_ok=True)
    # In the cache, because only within one disk is a folder moved in one step.
    with TemporaryDirectory(prefix=".prepare-", dir=cache) as made:
        found = list_sources(sources, Path(made))
        target = cache / make_fingerprint(found, nlp, wordpieces)
        if not target.exists():
            folder = Path(made) / "corpus"
            folder.mkdir()
            setup = Setup(nlp.config.to_str(), nlp.to_bytes(), nlp.max_length, wordpieces)
            size = sum(source.path.stat().st_size for source in found)
            with tqdm(
                total=size, unit="B", unit_scale=True, disable=None if progress else True
            ) as bar:
                records = chain.from_iterable(read_source(source, bar) for source in found)
                chunks = group(records, lambda record: len(record.content) + len(record.where))
                write(run(chunks, setup, workers or count_cores()), folder)
            try:
                folder.rename(target)
            except OSError:
                if not target.exists():  # else another process has made the same meanwhile
                    raise
    return open_corpus(target)


def read_texts(sources: Sequence[str | Path], *, progress: bool = False) -> Iterator[str]:
    """Read the texts of sources as `prepare` does, but as they are.

    sources (Sequence[str / Path]): What to read, in this order.
    progress (bool): Show a progress bar, if there is a terminal.
    YIELDS (str): The texts, long ones in parts; what `prepare` reports as skipped is left out.
    RAISES (FileNotFoundError): If there is no such source.
    RAISES (ImportError): If a file needs zstandard, which is not installed.
    """
    with TemporaryDirectory() as spool:
        found = list_sources(sources, Path(spool))
        size = sum(source.path.stat().st_size for source in found)
        with tqdm(total=size, unit="B", unit_scale=True, disable=None if progress else True) as bar:
            for record in chain.from_iterable(read_source(source, bar) for source in found):
                try:
                    text = read_text(record)
                except ValueError:
                    continue
                yield from cut(text, CHUNK)


def open_corpus(folder: Path) -> Corpus:
    """Open a prepared corpus.

    folder (Path): Its folder, in the cache.
    RETURNS (Corpus): The corpus.
    RAISES (ValueError): If there is none, or it is damaged.
    """
    try:
        info = json.loads((folder / "info.json").read_bytes())
        arrays: dict[str, Any] = {}
        for name, dtype in ARRAYS.items():
            array = np.memmap(folder / name, dtype=dtype, mode="r")
            if len(array) != info["sizes"][name]:
                raise ValueError(f"{name} has another size than was written")
            # A memmap makes a new object of its own class of every slice, which takes longer.
            arrays[name] = array.view(np.ndarray)
        report = PreparationReport(**info["report"])
        report.skipped = Counter(report.skipped)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"There is no whole corpus in {folder} ({error}). Delete the folder and prepare again."
        ) from error
    return Corpus(**arrays, report=report, fingerprint=folder.name)


def make_sentencizer(lang: str) -> Language:
    """lang (str): A language.
    RETURNS (Language): The pipeline that ends sentences at its full stops.
    """
    nlp = spacy.blank(lang)
    nlp.add_pipe("sentencizer")
    return nlp


def count_cores() -> int:
    """RETURNS (int): The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_fingerprint(sources: list[Source], nlp: Language, wordpieces: Wordpieces) -> str:
    """Name what will be made, without a look into the files.

    sources (List[Source]): The files.
    nlp (Language): The pipeline that finds sentences.
    wordpieces (Wordpieces): The tokenizer.
    RETURNS (str): The name.
    """
    digest = blake2b(digest_size=12)
    settings = [FORMAT, [source.key for source in sources], nlp.config.to_str(), nlp.max_length]
    digest.update(json.dumps(settings).encode("utf8"))
    digest.update(wordpieces.tokenizer.to_str().encode("utf8"))
    # Not the pipeline's own bytes: some of its components write sets, in any order.
    for _, component in nlp.pipeline:
        if hasattr(component, "model") and hasattr(component.model, "to_bytes"):
            digest.update(component.model.to_bytes())
    return digest.hexdigest()


# Sources to records


def list_sources(sources: Sequence[str | Path], spool: Path) -> list[Source]:
    """List the files to read. What can be read only once is written to a file first.

    sources (Sequence[str / Path]): Files, folders, patterns, `-` for standard input.
    spool (Path): A folder for copies.
    RETURNS (List[Source]): The files, in order.
    RAISES (FileNotFoundError): If there is no such file.
    RAISES (ImportError): If one needs zstandard, which is not installed.
    """
    found = []
    for number, source in enumerate(sources):
        if str(source) == "-":
            found.append(copy_stream(sys.stdin.buffer, "standard input", spool / str(number)))
            continue
        for path in list_files(source):
            if path.is_file():
                stat = path.stat()
                key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
                found.append(Source(str(path), path, key))
            else:  # a pipe, as the shell makes it of <(command)
                with path.open("rb") as stream:
                    found.append(copy_stream(stream, str(path), spool / str(number)))
    if any(source.path.suffix == ".zst" for source in found):
        try:
            import zstandard  # noqa: F401
        except ImportError as error:
            raise ImportError("A source is packed with zstd: pip install zstandard") from error
    return found


def list_files(source: str | Path) -> list[Path]:
    """List the files of a source, in the order in which they are read."""
    path = Path(source).expanduser()
    if path.is_dir():
        inside = (found for found in path.rglob("*") if found.is_file() and find_kind(found))
        files = sorted(
            found
            for found in inside
            if not any(part.startswith(".") for part in found.relative_to(path).parts)
        )
        if not files:
            raise FileNotFoundError(
                f"{source} has no files of raw text ({', '.join(KINDS)}, or these with "
                f"{' or '.join(PACKED)}). Name others by a pattern: '{source}/*'."
            )
        return files
    if path.exists():
        return [path]
    files = sorted(found for found in map(Path, glob(str(path), recursive=True)) if found.is_file())
    if not files:
        raise FileNotFoundError(
            f"{source} does not exist: name a file, a folder, a pattern like 'shards/*.jsonl.gz', "
            "or - for standard input."
        )
    return files


def find_kind(path: Path) -> str | None:
    """Find what a file is by its name, None if that says nothing."""
    packed = path.suffix.lower() in PACKED
    return KINDS.get((Path(path.stem) if packed else path).suffix.lower())


def copy_stream(stream: BinaryIO, name: str, path: Path) -> Source:
    """Write a stream to a file, which goes by its content."""
    digest = blake2b(digest_size=12)
    with path.open("wb") as file_:
        while block := stream.read(2**20):
            digest.update(block)
            file_.write(block)
    return Source(name, path, (digest.hexdigest(),))


def read_source(source: Source, bar: tqdm) -> Iterator[Record]:
    """Read a file to its end, or to where it is damaged.

    source (Source): The file.
    bar (tqdm): The progress bar, which is moved on by the bytes read.
    YIELDS (Record): Its records.
    """
    with source.path.open("rb") as packed:
        done = 0
        try:
            for number, kind, content in read_records(unpack(packed), find_kind(source.path)):
                yield Record(f"{source.name}:{number}", kind, content)
                bar.update(packed.tell() - done)
                done = packed.tell()
        except (*DAMAGE, gzip.BadGzipFile) as error:
            yield Record(source.name, "refused", f"damaged file: {error}".encode())
        bar.update(source.path.stat().st_size - done)


def unpack(file_: BinaryIO) -> BinaryIO:
    """Read through the packing that a file's name tells of."""
    if file_.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file_))
    if file_.name.lower().endswith(".zst"):
        return io.BufferedReader(Unzstd(file_))
    return file_


class Unzstd(io.RawIOBase):
    """Read a file packed with zstd. zstandard's own reader takes the middle of a frame for its end
    where a file is cut off.

    file_ (BinaryIO): The file.
    """

    def __init__(self, file_: BinaryIO) -> None:
        import zstandard

        self.file_ = file_
        self.decompressor = zstandard.ZstdDecompressor()
        self.error = zstandard.ZstdError
        self.frame: Any = None
        self.block = io.BytesIO()

    def readable(self) -> bool:
        """RETURNS (bool): True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as that is possible at once.

        buffer (Any): The buffer.
        RETURNS (int): Bytes written, 0 at the end.
        RAISES (ValueError): If the file is damaged.
        """
        while not (size := self.block.readinto(buffer)):
            ended = self.frame is None or self.frame.eof
            packed = (self.frame.unused_data if self.frame and ended else b"") or self.file_.read(
                2**16
            )
            if not packed:
                if not ended:
                    raise ValueError("it ends in the middle")
                return 0
            if ended:
                self.frame = self.decompressor.decompressobj()
            try:
                self.block = io.BytesIO(self.frame.decompress(packed))
            except self.error as error:
                raise ValueError(str(error)) from error
        return size


def read_records(stream: BinaryIO, kind: str | None) -> Iterator[tuple[int, str, bytes]]:
    """Split an unpacked file into records.

    stream (BinaryIO): The file.
    kind (Optional[str]): One of `KINDS`; if not given, the first line with text tells it.
    YIELDS (Tuple[int, str, bytes]): The line of each, or the number of the Doc; jsonl or text; and
        what is there.
    """
    if kind == "spacy":
        docs = DocBin().from_bytes(stream.read()).get_docs(Vocab())
        for number, doc in enumerate(docs, 1):
            yield number, "text", doc.text.encode("utf8")
        return
    lines = read_lines(stream)
    head = []
    for line in lines:  # up to the first that is not blank
        head.append(line)
        if line[1].strip():
            break
    kind = kind or ("jsonl" if head and holds_object(head[-1][1]) else "text")
    records = chain(head, lines)
    for number, content in records if kind == "jsonl" else join_lines(records):
        yield number, kind, content


def read_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines with their endings. One longer than `MAX_BYTES` comes in parts of one
    number, cut behind a space if there is one, and never inside of a character."""
    number, whole, rest = 0, True, b""
    while line := stream.readline(MAX_BYTES):
        if number == 0:
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise ValueError("it is UTF-16, save it as UTF-8")
            line = line.removeprefix(codecs.BOM_UTF8)
        number += whole
        line, rest = rest + line, b""
        whole = line.endswith(b"\n")
        if not whole and len(line) >= MAX_BYTES:
            end = line.rfind(b" ") + 1
            if end == 0:
                end = len(line) - 1
                while end > 1 and line[end] & 0xC0 == 0x80:
                    end -= 1
            line, rest = line[:end], line[end:]
        yield number, line
    if rest:
        yield number, rest


def join_lines(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Join the lines between blank ones. A document without end is cut where it is too long."""
    first, size = 0, 0
    document: list[bytes] = []
    for number, line in lines:
        if line.strip():
            first = first if document else number
            document.append(line)
            size += len(line)
        if document and (size >= MAX_BYTES or not line.strip()):
            yield first, b"".join(document)
            document, size = [], 0
    if document:
        yield first, b"".join(document)


def holds_object(line: bytes) -> bool:
    """Tell a line of JSON Lines from text."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


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


# Records to arrays


class Worker:
    """What makes arrays of records, in any process.

    setup (Setup): The pipeline and the tokenizer.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.wordpieces = setup.wordpieces
        self.nlp = self._load()

    def _load(self) -> Language:
        # Not the user's own object even in this process, so that all workers are equal.
        config = Config().from_str(self.setup.config, interpolate=False)
        nlp = load_model_from_config(config).from_bytes(self.setup.pipeline)
        nlp.max_length = self.setup.max_length
        return nlp

    def __call__(self, records: list[Record]) -> Part:
        """Tokenize a chunk.

        records (List[Record]): The chunk.
        RETURNS (Part): What became of it.
        """
        # A word forgotten at the end of a memory zone still takes its place in spaCy's hash tables.
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
        # A chunk is one record at least, and that may be many texts: so they are grouped again.
        batches = list(group(texts, lambda text: len(text[1]))) or [[]]
        arrays = zip(*(self._tokenize(batch, report) for batch in batches), strict=True)
        pieces, words, sentences, documents = map(np.concatenate, arrays)
        report.documents, report.sentences = len(documents), len(sentences)
        report.pieces = len(pieces)
        return Part(pieces, words, sentences, documents, report)

    def _tokenize(
        self, batch: list[tuple[str, str]], report: PreparationReport
    ) -> tuple[Ints1d, Bools1d, Ints1d, Ints1d]:
        # The strings of a corpus have no end; in the zone spaCy forgets them.
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
            else:  # control characters alone
                report.skip(where, f"no wordpieces: {text!r}")
        kept = [text for _, text in texts]
        words = begin_words(pieces, kept)
        return pieces.ids, words, *cut_pieces(pieces, words, kept, starts)


def read_text(record: Record) -> str:
    """Read a record.

    record (Record): The record.
    RETURNS (str): Its text.
    RAISES (ValueError): If it has none, with the reason.
    """
    if record.kind == "refused":
        raise ValueError(record.content.decode("utf8"))
    try:
        text = record.content.decode("utf8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    if record.kind == "jsonl":
        if not text.strip():
            raise ValueError("empty line")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        return check_text("text", value.get("text") if isinstance(value, dict) else None)
    return check_text("text", text)


def cut(text: str, max_length: int) -> Iterator[str]:
    """Cut a text that is too long for the pipeline, at white space if the second half of the part
    has any."""
    text = text.strip()
    while len(text) > max_length:
        middle = max_length // 2
        end = max(text.rfind(space, middle, max_length) for space in " \n\t")
        end = end if end > 0 else max_length
        yield text[:end]
        text = text[end:].lstrip()
    yield text


def find_sentences(nlp: Language, texts: list[str]) -> list[Ints1d | str]:
    """Find where sentences start.

    nlp (Language): The pipeline.
    texts (List[str]): The texts.
    RETURNS (List[Union[Ints1d, str]]): For each text the first character of each sentence, or the
        reason why the pipeline could not read it.
    """
    # Exception, because a component raises what it likes, and no text may end the run.
    try:
        return [_sentence_starts(doc) for doc in nlp.pipe(texts)]
    except Exception:
        found: list[Ints1d | str] = []
    for text in texts:  # now to find whose fault it was
        try:
            found.append(_sentence_starts(nlp(text)))
        except Exception as error:
            found.append(f"pipeline failed: {error}")
    return found


def _sentence_starts(doc: Doc) -> Ints1d:
    tokens = doc.to_array([IDX, SENT_START])
    return tokens[tokens[:, 1] == 1, 0].astype(np.int64)


def cut_pieces(
    pieces: Pieces, words: Bools1d, texts: list[str], starts: list[Ints1d]
) -> tuple[Ints1d, Ints1d]:
    """Cut running texts into sentences and documents. A sentence begins with the first word that
    is not whole before it; what is left without a piece is no sentence, and no document.

    pieces (Pieces): The wordpieces of the texts.
    words (Bools1d): Whether a piece begins a word (n_pieces,).
    texts (List[str]): The texts.
    starts (List[Ints1d]): For each text the first character of each sentence.
    RETURNS (Tuple[Ints1d, Ints1d]): The pieces of each sentence (n_sentences,), and the sentences
        of each document (n_documents,).
    """
    shift = _shifts(texts)
    # A text is a sentence from its first character on, whatever the pipeline says of that.
    sentence_starts = np.concatenate(
        [shift, *(begin + of_text for begin, of_text in zip(shift, starts, strict=True))]
    )
    piece_starts = pieces.starts + np.repeat(shift, pieces.lengths)
    first = np.searchsorted(piece_starts, sentence_starts)
    # Back to the start of a word, of which a space alone may be the first piece.
    word_first = np.maximum.accumulate(np.where(words, np.arange(len(words)), 0))
    first = np.unique(word_first[first[first < len(words)]])
    text_first = (np.cumsum(pieces.lengths) - pieces.lengths)[pieces.lengths > 0]
    documents = np.append(np.searchsorted(first, text_first), len(first))
    return np.diff(np.append(first, len(words))), np.diff(documents)


def _shifts(texts: list[str]) -> Ints1d:
    """Where each text begins if all are joined by one character."""
    sizes = np.fromiter((len(text) + 1 for text in texts), dtype=np.int64, count=len(texts))
    return np.cumsum(sizes) - sizes


def begin_words(pieces: Pieces, texts: list[str]) -> Bools1d:
    """Find the pieces that begin a word, of any tokenizer, by what is at their edges.

    A word is what BERT's own tokenizer cuts from a text before it makes wordpieces: letters,
    digits and symbols without white space or punctuation between them. A mark (an accent, a vowel
    sign, a soft hyphen, the joiner inside an emoji) belongs to what it follows. In scripts without
    spaces, where no such rule finds words, each piece is one. Where a tokenizer makes a piece of a
    space alone, that begins the word behind it. Pieces of one character (bytes of an emoji) stay
    together.

    text      un|sink|able  ,  don|'|t  ▁|(|CO|2|)  船|在|港口   <f0><9f><98><80>
    begins    1  0    0     1  1   1 1  1 0 1  0 1  1  1  1       1   0   0   0

    pieces (Pieces): The wordpieces of some texts.
    texts (List[str]): The texts.
    RETURNS (Bools1d): Whether a piece begins a word (n_pieces,).
    """
    words = np.ones(len(pieces.ids), dtype=np.bool_)
    if len(words) < 2:
        return words
    codes = np.frombuffer("\n".join(texts).encode("utf-32-le"), dtype=np.uint32)
    for code in np.unique(codes[KINDS_OF_CODES[codes] == UNKNOWN]).tolist():
        KINDS_OF_CODES[code] = _kind(code)
    kinds = KINDS_OF_CODES[codes]
    shift = np.repeat(_shifts(texts), pieces.lengths)
    starts, ends = (pieces.starts + shift)[1:], (pieces.ends + shift)[:-1]
    before, after = kinds[ends - 1], kinds[np.minimum(starts, len(kinds) - 1)]
    before[(pieces.starts == pieces.ends)[:-1]] = SPACE  # one that is not in the text
    # Marks that a tokenizer leaves out don't part what is around them.
    solid = np.append(0, np.cumsum(kinds != MARK, dtype=np.int32))
    touching = solid[np.maximum(starts, ends)] == solid[ends]
    joined = (
        (after == MARK)
        | (after == LETTER) & ((before == LETTER) | (before == MARK))
        | (before == SPACE) & (after != SPACE)
    )
    words[1:] = ~((touching & joined) | (starts < ends))
    return words


def _kind(code: int) -> int:
    character = chr(code)
    category = unicodedata.category(character)
    if character == " ":
        return SPACE
    if character.isspace() or category[0] == "P" or code == 0x200B:
        return APART
    if category[0] == "M" or category == "Cf":
        return MARK
    if code < 128 and not character.isalnum():
        return APART
    return APART if any(low <= code <= high for low, high in UNSPACED) else LETTER


# Chunks to workers, and what they make to files


def run(chunks: Iterator[list[Record]], setup: Setup, workers: int) -> Iterator[Part]:
    """Have chunks tokenized.

    chunks (Iterator[List[Record]]): The chunks.
    setup (Setup): What a worker needs.
    workers (int): The most processes.
    YIELDS (Part): What became of each, in the order of the chunks.
    RAISES (ChildProcessError): If a process died.
    """
    head = list(islice(chunks, workers))
    workers = len(head)  # starting a process takes longer than a chunk
    chunks = chain(head, chunks)
    if workers <= 1:
        yield from map(Worker(setup), chunks)
        return
    # Spawned, because a fork of a process whose torch has run hangs.
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
    """Make the worker of a process. There is one on each core, so none needs threads."""
    import torch

    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    _worker = Worker(setup)


def _work(records: list[Record]) -> Part:
    return _worker(records)


def write(parts: Iterable[Part], folder: Path) -> None:
    """Write a corpus.

    parts (Iterable[Part]): What became of each chunk.
    folder (Path): An empty folder.
    RAISES (ValueError): If nothing was kept.
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
            append("sentences", report.pieces + np.cumsum(part.sentences))
            append("documents", report.sentences + np.cumsum(part.documents))
            report.add(part.report)
    if not report.pieces:
        faults = "\n".join(report.samples) or "There are no documents."
        raise ValueError(f"Nothing in the sources could be kept.\n{faults}")
    sizes = {
        "pieces": report.pieces,
        "words": report.pieces,
        "sentences": report.sentences + 1,
        "documents": report.documents + 1,
    }
    info = {"format": FORMAT, "sizes": sizes, "report": vars(report)}
    (folder / "info.json").write_text(json.dumps(info, indent=2), encoding="utf8")
