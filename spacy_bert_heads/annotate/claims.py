"""Divide parts among processes that share only a folder.

A claim is a file that only one process can create. Claims avoid duplicate work; correctness doesn't
depend on them: two processes on the same part write the same content, and the later file replaces
the earlier. So a claim may be taken over too early, but no part is lost or duplicated.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from ..files import is_alive, naming

BEAT = 15.0  # seconds between heartbeats of a claim's holder
STALE = 120.0  # seconds without a heartbeat, after which a claim is taken over

Range = tuple[int, int]  # documents of a part: first, and end (exclusive)


class Claim:
    """Claim a part for this process until the `with` block ends.

    The file lists the documents in progress. If the process dies, the next one finds there the
    documents that may have caused it (`died`).
    """

    def __init__(self, path: Path, died: list[Range]) -> None:
        """Create the file. Raises FileExistsError if another process has claimed the part."""
        self.path, self.died = path, died
        with naming(path):
            self.file = path.open("x+", encoding="utf8")
        self.inode = os.fstat(self.file.fileno()).st_ino
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        try:
            self.note(None)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    @classmethod
    def take(cls, path: Path) -> Claim | None:
        """Claim a part. Returns None if a living process has claimed it."""
        try:
            return cls(path, [])
        except FileExistsError:
            content = _read(path)
            if content is None or not _is_dead(path, content):
                return None
        grave = path.with_name(f".{path.name}~{_holder()}")
        try:
            path.rename(grave)  # only one process succeeds
        except OSError:
            return None
        content = _read(grave) or content
        grave.unlink(missing_ok=True)
        try:
            return cls(path, _read_died(content))
        except FileExistsError:
            return None

    def note(self, at: Range | None) -> None:
        """Write the documents in progress to the file. Raises OSError with the path."""
        content = {"holder": _holder(), "at": at, "died": self.died}
        with naming(self.path):
            self.file.seek(0)
            self.file.write(json.dumps(content))
            self.file.truncate()
            self.file.flush()

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self.file.close()
        finally:
            # Unless another process took it over.
            if self.path.exists() and self.path.stat().st_ino == self.inode:
                self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                os.utime(self.path)
            except OSError:
                return


def _holder() -> str:
    return f"{socket.gethostname()}~{os.getpid()}"


def documents_at_work(path: Path) -> int:
    """Return the number of finished documents of a claimed part, 0 if unknown."""
    at = (_read(path) or {}).get("at")
    return at[0] if at else 0


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a claim, {} while it is being written; None if it is gone."""
    try:
        content = json.loads(path.read_text("utf8"))
    except OSError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _read_died(content: dict[str, Any]) -> list[Range]:
    ranges = [*content.get("died", []), content.get("at")]
    return [(one[0], one[1]) for one in ranges if one]


def _is_dead(path: Path, content: dict[str, Any]) -> bool:
    host, _, pid = content.get("holder", "").rpartition("~")
    if host == socket.gethostname() and not is_alive(int(pid)):
        return True
    # By the clock of the file system, because the clocks of machines differ.
    clock = path.with_name(f".clock~{_holder()}")
    try:
        clock.touch()
        age = clock.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return False  # it was released meanwhile
    finally:
        clock.unlink(missing_ok=True)
    return age > STALE
