"""Raw text: find the files of a source, decompress them, split them into records, and read the
text of a record. Everything is a stream: memory doesn't grow with the size of a file, except for
`.spacy` files, which are one block.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from glob import glob
from hashlib import file_digest
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple, cast

from spacy.tokens import DocBin
from spacy.vocab import Vocab
from tqdm import tqdm

from ..data.reader import DAMAGE
from ..data.records import check_text

KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".txt", ".text"), "text"),
    ".spacy": "spacy",
}
COMPRESSED = (".gz", ".zst")
CHUNK = 2**18  # bytes or characters: some tenths of a second for a worker
MAX_BYTES = 2**26  # of one record


# Yields raw texts, as strings or as {"text": …}: what an entry of spaCy's `@readers` returns.
Reader = Callable[[], Iterable[str | dict[str, Any]]]


class Source(NamedTuple):
    """A file to read."""

    name: str  # as the user knows it
    path: Path

    def key(self) -> list[str | None]:
        """What its texts depend on: the kind and compression by its name, and the content."""
        kind = find_kind(self.path)
        with self.path.open("rb") as file_:
            return [
                kind,
                self.path.suffix if kind else None,
                file_digest(file_, "sha256").hexdigest(),
            ]


class Record(NamedTuple):
    """One candidate for a document."""

    where: str
    kind: str  # jsonl, text, or refused if the bytes are the reason
    content: bytes


def read_texts(sources: Sequence[str | Path | Reader], *, progress: bool = False) -> Iterator[str]:
    """Yield the texts of `sources`, in the order and by the rules of `prepare`, but untokenized.

    Texts longer than `CHUNK` characters come in parts. Records that `prepare` would report as
    skipped are left out silently.

    Raises FileNotFoundError if a source doesn't exist, and ImportError if a file needs zstandard,
    which is not installed.
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


# --- finding files


def list_sources(sources: Sequence[str | Path | Reader], spool: Path) -> list[Source]:
    """List the files to read, in order. Streams that can be read only once (standard input, pipes)
    and what readers yield are first copied into the folder `spool`.

    Raises FileNotFoundError if a source doesn't exist, and ImportError if a file needs zstandard,
    which is not installed.
    """
    found = []
    for number, source in enumerate(sources):
        if callable(source):
            found.append(copy_texts(source, spool / f"{number}.jsonl"))
            continue
        if str(source) == "-":
            found.append(copy_stream(sys.stdin.buffer, "standard input", spool / str(number)))
            continue
        for path in list_files(source):
            if path.is_file():
                found.append(Source(str(path), path))
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
    """List the files of a file name, folder or pattern, in reading order.

    Raises FileNotFoundError if there are none.
    """
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
                f"{' or '.join(COMPRESSED)}). Name others by a pattern: '{source}/*'."
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
    """Return one of `KINDS` by the file's name, or None if the name doesn't tell."""
    compressed = path.suffix.lower() in COMPRESSED
    return KINDS.get((Path(path.stem) if compressed else path).suffix.lower())


def copy_stream(stream: BinaryIO, name: str, path: Path) -> Source:
    """Copy a stream to a file."""
    with path.open("wb") as file_:
        shutil.copyfileobj(stream, file_, 2**20)
    return Source(name, path)


def copy_texts(reader: Reader, path: Path) -> Source:
    """Copy what a reader yields to JSON Lines. Raises ValueError if it yields anything else than
    texts."""
    with path.open("w", encoding="utf8") as file_:
        for number, text in enumerate(reader()):
            record = {"text": text} if isinstance(text, str) else text
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise ValueError(
                    f"[corpora.raw] yields {record!r:.80} as item {number}. It must yield texts, "
                    'as strings or as {"text": "…"}.'
                )
            file_.write(json.dumps({"text": record["text"]}) + "\n")
    return Source("corpora.raw", path)


# --- files to records


def read_source(source: Source, bar: tqdm) -> Iterator[Record]:
    """Yield the records of a file to its end, or to where it is damaged; the last record then
    carries the reason. The progress bar advances by the compressed bytes read."""
    with source.path.open("rb") as file_:
        done = 0
        try:
            for number, kind, content in read_records(decompress(file_), find_kind(source.path)):
                yield Record(f"{source.name}:{number}", kind, content)
                bar.update(file_.tell() - done)
                done = file_.tell()
        except (*DAMAGE, gzip.BadGzipFile) as error:
            yield Record(source.name, "refused", f"damaged file: {error}".encode())
        bar.update(source.path.stat().st_size - done)


def decompress(file_: BinaryIO) -> BinaryIO:
    """Open the decompressed stream of a file; its name tells the compression."""
    if file_.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file_))
    if file_.name.lower().endswith(".zst"):
        return io.BufferedReader(Unzstd(file_))
    return file_


class Unzstd(io.RawIOBase):
    """A stream that decompresses zstd. zstandard's own reader takes the middle of a frame for its
    end where a file is cut off; this one reports the damage."""

    def __init__(self, file_: BinaryIO) -> None:
        import zstandard

        self.file_ = file_
        self.decompressor = zstandard.ZstdDecompressor()
        self.error = zstandard.ZstdError
        self.frame: Any = None
        self.block = io.BytesIO()

    def readable(self) -> bool:
        """Tell `io` that this stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as that is possible at once, and return the number of bytes, 0 at
        the end. Raises ValueError if the file is damaged."""
        while not (size := self.block.readinto(buffer)):
            ended = self.frame is None or self.frame.eof
            compressed = (
                self.frame.unused_data if self.frame and ended else b""
            ) or self.file_.read(2**16)
            if not compressed:
                if not ended:
                    raise ValueError("it ends in the middle")
                return 0
            if ended:
                self.frame = self.decompressor.decompressobj()
            try:
                self.block = io.BytesIO(self.frame.decompress(compressed))
            except self.error as error:
                raise ValueError(str(error)) from error
        return size


def read_records(stream: BinaryIO, kind: str | None) -> Iterator[tuple[int, str, bytes]]:
    """Split a decompressed file into records.

    `kind` is a value of `KINDS`; if it is None, the first line that is not blank decides between
    JSON Lines and text. Yields the number of the first line (of a `.spacy` file: the number of the
    Doc), "jsonl" or "text", and the content.
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
    """Yield numbered lines with their line endings. A line longer than `MAX_BYTES` comes in parts
    with the same number, cut behind a space if there is one, and never inside a character."""
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
    """Join the lines between blank ones into documents. A document ends at the latest with the
    line that makes it `MAX_BYTES` long."""
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
    """Tell whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


# --- records to texts


def read_text(record: Record) -> str:
    """Read the text of a record. Raises ValueError, with the reason, if it has none."""
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
    """Cut a text into parts of at most `max_length` characters: at white space if the second half
    of a part has any, otherwise inside a word."""
    text = text.strip()
    while len(text) > max_length:
        middle = max_length // 2
        end = max(text.rfind(space, middle, max_length) for space in " \n\t")
        end = end if end > 0 else max_length
        yield text[:end]
        text = text[end:].lstrip()
    yield text
