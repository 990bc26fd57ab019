"""Combine concurrent requests into micro-batches.

    requests ──▶ queue ──▶ one thread: a batch within a budget of wordpieces ──▶ answers

A batch waits a few milliseconds until it has as many queries as the previous batch. So a single
client never waits, and if many clients send a new request after each response, every batch has all.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

from .annotator import FAILED, Query, Record, log_error
from .limits import Limits, Rejected


class Job(NamedTuple):
    """Hold a query that waits for its answer."""

    query: Query
    cost: int
    answer: asyncio.Future[Record]


class Batcher:
    """Run `annotate` on batches of queries in a thread.

    `note` is called for each batch with its number of queries, its cost and its time in seconds;
    `begin` once in the thread, before the first batch.
    """

    def __init__(
        self,
        annotate: Callable[[Sequence[Query]], list[Record]],
        limits: Limits,
        note: Callable[[int, int, float], None] = lambda *batch: None,
        begin: Callable[[], object] = lambda: None,
    ) -> None:
        self._annotate, self._limits, self._note, self._begin = annotate, limits, note, begin
        self._waiting: deque[Job] = deque()
        self._cost = 0  # of the queries in the queue
        self._last = 1  # the queries of the last batch
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="pipeline", daemon=True)

    @property
    def queue_cost(self) -> int:
        """Return the wordpieces in the queue."""
        return self._cost

    @property
    def is_ready(self) -> bool:
        """Return whether queries are accepted."""
        return self._thread.is_alive() and not self._is_closing

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Answer the queries in the queue, then end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    async def submit(self, queries: Sequence[Query]) -> list[Record]:
        """Return the answers to queries. Raises Rejected if the queue is full, if the server is
        shutting down, or on a timeout."""
        loop = asyncio.get_running_loop()
        jobs = [Job(query, query.cost, loop.create_future()) for query in queries]
        self._put(jobs)
        answers = asyncio.gather(*(job.answer for job in jobs))
        try:
            return await asyncio.wait_for(answers, self._limits.timeout)
        except TimeoutError:  # the jobs are cancelled, so they are not processed
            raise Rejected(
                504,
                f"No answer within {self._limits.timeout:g} seconds. Send fewer texts per request, "
                "or try again later.",
            ) from None

    def _put(self, jobs: list[Job]) -> None:
        cost, room = sum(job.cost for job in jobs), self._limits.queue_wordpieces
        if cost > room:
            raise Rejected(
                413,
                f"The request has about {cost:,} wordpieces (a text counts again for each "
                f"question, hypothesis and category); at most {room:,} are allowed. Split it.",
            )
        with self._changed:
            if not self.is_ready:
                raise Rejected(503, "The server is shutting down. Use another one.")
            if self._cost + cost > room:
                raise Rejected(429, "Too many requests are waiting. Try again in a few seconds.")
            self._waiting.extend(jobs)
            self._cost += cost
            self._changed.notify()

    # --- the thread

    def _work(self) -> None:
        self._begin()
        while jobs := self._next_batch():
            start = monotonic()
            records: list[Record] | None = None
            try:
                records = self._annotate([job.query for job in jobs])
            except Exception as error:  # the thread must live on
                log_error(error)
            self._note(len(jobs), sum(job.cost for job in jobs), monotonic() - start)
            with suppress(RuntimeError):  # the loop may be closed
                jobs[0].answer.get_loop().call_soon_threadsafe(deliver, jobs, records)

    def _next_batch(self) -> list[Job]:
        """Wait for a batch and return it; [] if the server stops."""
        with self._changed:
            jobs: list[Job] = []
            while not jobs:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    return []
                self._changed.wait_for(self._is_batch_full, self._limits.max_wait)
                jobs = self._take()
            self._last = len(jobs)
            return jobs

    def _is_batch_full(self) -> bool:
        is_enough = len(self._waiting) >= self._last or self._is_closing
        return is_enough or self._cost >= self._limits.batch_wordpieces

    def _take(self) -> list[Job]:
        """Return the oldest jobs that fit into the budget, at least one, without cancelled jobs."""
        jobs: list[Job] = []
        room = self._limits.batch_wordpieces
        while self._waiting and (not jobs or self._waiting[0].cost <= room):
            job = self._waiting.popleft()
            self._cost -= job.cost
            if not job.answer.done():
                jobs.append(job)
                room -= job.cost
        return jobs


def deliver(jobs: list[Job], records: list[Record] | None) -> None:
    """Set the answers of jobs, in the thread of the event loop; `records` is None if the pipeline
    failed."""
    for i, job in enumerate(jobs):
        if job.answer.done():  # cancelled
            continue
        if records is None:
            job.answer.set_exception(Rejected(500, FAILED))
        else:
            job.answer.set_result(records[i])
