"""Compressed files, which their names tell: `.gz`, and `.zst` where zstandard is installed."""

from __future__ import annotations

import gzip
import io
from typing import Any, BinaryIO, cast

COMPRESSED = (".gz", ".zst")


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
