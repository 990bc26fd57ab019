"""Read compressed files by their extension: `.gz`, and `.zst` if zstandard is installed."""

from __future__ import annotations

import gzip
import io
from typing import Any, BinaryIO, cast

COMPRESSED = (".gz", ".zst")


def decompress(file_: BinaryIO) -> BinaryIO:
    """Return the decompressed stream of a file; its extension determines the compression."""
    if file_.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file_))
    if file_.name.lower().endswith(".zst"):
        return io.BufferedReader(Unzstd(file_))
    return file_


class Unzstd(io.RawIOBase):
    """Decompress a zstd stream.

    zstandard's own reader treats a truncated file as complete; this one raises an error.
    """

    def __init__(self, file_: BinaryIO) -> None:
        import zstandard

        self.file_ = file_
        self.decompressor = zstandard.ZstdDecompressor()
        self.error = zstandard.ZstdError
        self.frame: Any = None
        self.block = io.BytesIO()

    def readable(self) -> bool:
        """Return True: `io` requires this method."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to `len(buffer)` bytes into `buffer` and return their number, 0 at the end.
        Raises ValueError if the file is damaged."""
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
