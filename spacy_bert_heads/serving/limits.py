"""What a server accepts, and how long it works on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of a server. Times are in seconds, work is in wordpieces, as `Query.cost`
    estimates them: a text counts once, and again beside each second text."""

    max_wait: float = 0.005  # of a batch, for as many requests as the last one had
    batch_wordpieces: int = 2048  # more gain nothing on a CPU, and everybody waits for all of them
    queue_wordpieces: int = 65536  # that wait at most; more is 429
    timeout: float = 30.0  # from a request to its answer; later is 504
    max_body: int = 2**20  # bytes of a request; more is 413
    max_texts: int = 128  # of a request
    max_chars: int = 100_000  # of a text
    max_pairs: int = 256  # of a request: questions, hypotheses and categories times texts


class Rejected(Exception):
    """A request that is not answered, with an HTTP status and what to do about it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
