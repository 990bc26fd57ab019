"""Collect the server's metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
WORDPIECES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """Hold the metrics of one server. `queue_cost` returns the wordpieces in the queue."""

    def __init__(self, queue_cost: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        name = "spacy_bert"
        self.requests = Counter(
            f"{name}_requests", "Requests", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            f"{name}_request_seconds",
            "Time from request to response",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.failed = Counter(
            f"{name}_failed_texts", "Texts that could not be annotated", registry=self.registry
        )
        self.batch_texts = Histogram(
            f"{name}_batch_texts", "Texts per batch", buckets=TEXTS, registry=self.registry
        )
        self.batch_wordpieces = Histogram(
            f"{name}_batch_wordpieces",
            "Estimated wordpieces per batch",
            buckets=WORDPIECES,
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            f"{name}_batch_seconds",
            "Time to process a batch",
            buckets=SECONDS,
            registry=self.registry,
        )
        waiting = Gauge(
            f"{name}_queue_wordpieces", "Estimated wordpieces in the queue", registry=self.registry
        )
        waiting.set_function(queue_cost)

    def note_batch(self, num_texts: int, wordpieces: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_texts.observe(num_texts)
        self.batch_wordpieces.observe(wordpieces)
        self.batch_seconds.observe(seconds)

    def note_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)
