"""Protect a run from a second run in its folder, and let signals end it between two steps."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

LOCK = ".lock"


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run's folder, which is created if needed.

    The operating system releases the lock when this process ends in any way. The file stays and
    names the latest process with the lock. Raises BlockingIOError if another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+b") as file_:
        try:
            _lock(file_)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise BlockingIOError(
                    f"{folder} is in use by another run ({_read_holder(file_)}). Wait for its end, "
                    "stop it, or set another folder."
                ) from None
            warnings.warn(
                f"The file system of {folder} has no locks ({error}), so a second run could write "
                "to this folder.",
                stacklevel=2,
            )
        file_.truncate(0)
        file_.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode("utf8"))
        file_.flush()
        yield


def _lock(file_: BinaryIO) -> None:
    if os.name == "posix":
        import fcntl

        fcntl.flock(file_, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        # Locked bytes can't be read, so a byte is locked that is never written.
        file_.seek(2**20)
        msvcrt.locking(file_.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]


def _read_holder(file_: BinaryIO) -> str:
    file_.seek(0)
    try:
        holder = json.loads(file_.read())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


class Signals:
    """Record SIGTERM and Ctrl-C in a `with` block, so that a run can end between two steps.

    If `alone`, a second Ctrl-C ends the process at once. Under torchrun each signal comes twice,
    from the terminal and from torchrun.
    """

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # other threads can't set them
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.alone and self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def end(self) -> None:
        """End this process as the signal would that this or another process has received."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)
