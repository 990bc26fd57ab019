"""The files of a source, and what is read from them."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..compression import COMPRESSED, decompress

SNIFFED_LINES = 200


@dataclass(frozen=True)
class File:
    """A file to convert. It is read as often as a format needs."""

    path: Path

    @property
    def extension(self) -> str:
        """The extension in lower case, without that of the compression."""
        name = self.path.name.lower()
        for suffix in COMPRESSED:
            name = name.removesuffix(suffix)
        return Path(name).suffix

    @property
    def annotations(self) -> Path:
        """The stand-off annotations of brat that belong to a text."""
        return self.path.with_suffix(".ann")

    def lines(self) -> Iterator[str]:
        """Yield the lines with their endings, decompressed if the name ends in `.gz` or `.zst`.

        Only newlines end a line; Unicode's other line separators are text. Undecodable bytes become
        lone surrogates, which `is_utf8` finds. Raises ValueError for UTF-16 and broken compression,
        ImportError if zstandard is missing.
        """
        try:
            with self.path.open("rb") as file_, decompress(file_) as stream:
                first = True
                for line in stream:
                    if first:
                        check_not_utf16(line)
                        line, first = line.removeprefix(codecs.BOM_UTF8), False
                    yield line.decode("utf8", errors="surrogateescape")
        except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
            raise ValueError(f"{self.path} cannot be read: {error}") from error
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{self.path} is compressed by zstd: pip install zstandard"
            ) from error

    def text(self) -> str:
        """Give the whole content."""
        return "".join(self.lines())

    def head(self) -> list[str]:
        """Give the first lines that are not blank, without white space around them."""
        return [line.strip() for line in islice(self.lines(), SNIFFED_LINES) if line.strip()]


def check_not_utf16(line: bytes) -> None:
    """Raise ValueError if the first line of a file begins as UTF-16 does."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16, save it as UTF-8")


def list_files(source: Path) -> list[File]:
    """List the files of a source in the order in which they are read. Hidden and `.spacy` files of
    a folder are skipped, and so are brat's settings, and the texts that are read with their
    annotations.

    Raises FileNotFoundError if the source does not exist, and ValueError if it is a pipe: some
    formats are read twice.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: name a file, or a folder of files.")
    if source.is_file():
        return [File(source)]
    if not source.is_dir():
        raise ValueError(
            f"{source} can be read only once, but some formats are read twice: save it to a file, "
            "and name that."
        )
    paths = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    seen = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    stand_off = {path.with_suffix(".txt") for path in seen if path.suffix == ".ann"}
    return [
        File(source / path)
        for path in seen
        if path.suffix not in (".spacy", *((".conf",) if stand_off else ()))
        and path not in stand_off
    ]
