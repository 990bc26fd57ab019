"""Define the limits of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Hold the limits of a server. Times are in seconds. Work is measured in wordpieces, as
    estimated by `Query.cost`: a text counts once, and again for each second text."""

    max_wait: float = (
        0.005  # the longest wait of a batch, for as many requests as the previous one had
    )
    batch_wordpieces: int = 2048  # more don't help on a CPU, and all requests wait for the batch
    queue_wordpieces: int = 65536  # the most in the queue, otherwise status 429
    timeout: float = 30.0  # from request to response, otherwise status 504
    max_body: int = 2**20  # bytes per request, otherwise status 413
    max_texts: int = 128  # per request
    max_chars: int = 100_000  # per text
    max_pairs: int = (
        256  # per request: questions, hypotheses, categories and other second texts, times texts
    )


class Rejected(Exception):
    """Reject a request with an HTTP status and a message that says what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
