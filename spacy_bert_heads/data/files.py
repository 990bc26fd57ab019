"""List and read the files of a source."""

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
    """Represent a file to convert; a format may read it more than once."""

    path: Path

    @property
    def extension(self) -> str:
        """Return the extension in lower case, without that of the compression."""
        name = self.path.name.lower()
        for suffix in COMPRESSED:
            name = name.removesuffix(suffix)
        return Path(name).suffix

    @property
    def annotations(self) -> Path:
        """Return the path of brat's stand-off annotations for a text."""
        return self.path.with_suffix(".ann")

    def lines(self) -> Iterator[str]:
        """Yield the lines with their endings, decompressed if the name ends in `.gz` or `.zst`.

        Only newlines end a line; other line separators of Unicode are text. Undecodable bytes
        become lone surrogates, which `is_utf8` detects. Raises ValueError for UTF-16 and damaged
        compression, and ImportError if zstandard is missing.
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
            raise ValueError(f"{self.path} can't be read: {error}") from error
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{self.path} is compressed with zstd. Install zstandard: pip install zstandard"
            ) from error

    def text(self) -> str:
        """Return the whole content."""
        return "".join(self.lines())

    def head(self) -> list[str]:
        """Return the first non-blank lines, stripped of white space."""
        return [line.strip() for line in islice(self.lines(), SNIFFED_LINES) if line.strip()]


def check_not_utf16(line: bytes) -> None:
    """Raise ValueError if the first line starts with a byte order mark of UTF-16."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16, save it as UTF-8")


def list_files(source: Path) -> list[File]:
    """Return the files of a source in reading order.

    In a folder, hidden and `.spacy` files are skipped, and so are brat's settings and the texts
    that are read together with their annotations.

    Raises FileNotFoundError if the source does not exist, and ValueError if it is a pipe: some
    formats are read twice.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist. Pass a file or a folder of files.")
    if source.is_file():
        return [File(source)]
    if not source.is_dir():
        raise ValueError(
            f"{source} is not a regular file. Some formats are read twice, so save it to a file "
            "and pass that."
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
