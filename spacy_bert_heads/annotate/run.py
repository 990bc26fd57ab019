"""Annotate a corpus with this process, several processes, or a cluster (cluster.py)."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from tqdm import tqdm

from .plan import Job, Run, open_run
from .processes import ended_by_sigterm, work_in_processes
from .worker import Annotator

LOOK = 1.0  # seconds between updates of the progress bar
LINE = 60.0  # seconds between lines of progress without a terminal


@dataclass
class Summary:
    """Hold the results of a run, and the work of this call."""

    docs: int = 0
    parts: int = 0
    words: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # documents by kind
    seconds: float = 0.0  # of all workers together, without loading
    memory: int = 0  # bytes, the most that a worker had
    own_docs: int = 0  # annotated during this call, by this call or others
    own_seconds: float = 0.0

    def lines(self) -> list[str]:
        """Format the summary."""
        failed = self.failures.total()
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.failures.most_common())
        speed = self.words / self.seconds if self.seconds else 0.0
        own = self.own_docs / self.own_seconds if self.own_seconds else 0.0
        return [
            f"{self.docs:,} documents in {self.parts:,} parts",
            f"failed: {failed:,}" + (f" ({kinds})" if failed else ""),
            f"{self.words:,} words, {speed:,.0f} a second by each worker; at most "
            f"{self.memory / 2**20:,.0f} MiB of memory in one",
            f"this call: {self.own_docs:,} documents in {self.own_seconds:,.0f} s, {own:,.1f} a "
            "second",
        ]


def annotate(
    job: Job,
    *,
    workers: int = 1,
    engine: str = "local",
    address: str | None = None,
    gpus_per_worker: float = 0,
    show: Callable[[str], None] | None = None,
) -> Summary:
    """Annotate a corpus, or continue a run; finished parts are kept.

    Several calls may share the output folder, on any machines with access to it; they need no other
    connection. Each returns when the whole corpus is annotated. `workers` is the number of
    processes on this machine (1: only this process), or with the engine "ray" on the cluster at
    `address`, each with `gpus_per_worker`. `show` receives lines of progress if there is no
    terminal.

    Raises ValueError if the input, the pipeline or a setting is invalid, or differs from the run in
    the folder; OSError if a file can't be read or written; ImportError if a package is missing;
    ChildProcessError if workers die repeatedly.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}. Set it to 1 or more.")
    if engine not in ("local", "ray"):
        raise ValueError(f"There is no engine '{engine}'. Choose local or ray.")
    if engine == "ray":
        from .cluster import check_ray

        check_ray()
    run = open_run(job)
    left, start = sum(part.num_docs for part in run.missing()), perf_counter()
    with shown_progress(run, show), ended_by_sigterm():
        if not left:
            pass  # nothing to do, so the pipeline is not loaded
        elif engine == "ray":
            from .cluster import work_on_cluster

            work_on_cluster(run, workers, address=address, gpus_per_worker=gpus_per_worker)
        elif workers == 1:
            Annotator(run).work()
        else:
            work_in_processes(run, workers)
    clean_up(run)
    summary = sum_up(run)
    summary.own_docs, summary.own_seconds = left, perf_counter() - start
    return summary


def clean_up(run: Run) -> None:
    """Delete the files of dead processes: unfinished parts of other machines, and claims whose
    process died after it had finished the part."""
    for path in (*run.job.output.glob(".part-*~*"), *(run.state / "claims").iterdir()):
        path.unlink(missing_ok=True)


def sum_up(run: Run) -> Summary:
    """Add up the figures of all parts."""
    summary = Summary(docs=run.num_docs, parts=len(run.parts))
    for part in run.parts:
        notes = json.loads(run.notes(part).read_bytes())
        summary.words += notes["words"]
        summary.seconds += notes["seconds"]
        summary.memory = max(summary.memory, notes["memory"])
        summary.failures.update(notes["failures"])
    return summary


# --- progress


@contextmanager
def shown_progress(run: Run, show: Callable[[str], None] | None) -> Iterator[None]:
    """Show the number of documents finished by all processes of the run, the speed and the
    remaining time: as a progress bar in a terminal, otherwise with `show` once a minute."""
    ended = threading.Event()
    total, start = run.num_docs, perf_counter()
    begun = run.count_done()
    has_terminal = sys.stderr.isatty()

    def look() -> None:
        last = start
        with tqdm(total=total, initial=begun, unit="doc", disable=not has_terminal) as bar:
            while not ended.wait(LOOK):
                now = perf_counter()
                if has_terminal:
                    bar.update(_count(run) - bar.n)
                elif show is not None and now - last >= LINE:
                    last = now
                    show(format_progress(begun, _count(run), total, now - start))
            if has_terminal:
                bar.update(_count(run) - bar.n)

    thread = threading.Thread(target=look, daemon=True)
    if show is not None:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if show is not None:
            thread.join()


def _count(run: Run) -> int:
    try:
        return run.count_done()
    except OSError:  # files come and go
        return 0


def format_progress(begun: int, done: int, total: int, seconds: float) -> str:
    """Format the progress of a run that had `begun` documents `seconds` ago."""
    speed = (done - begun) / seconds if seconds else 0.0
    left = f", {format_time((total - done) / speed)} left" if speed > 0 else ""
    return f"{done:,} of {total:,} documents, {speed:,.1f} a second{left}"


def format_time(seconds: float) -> str:
    """Format a length of time as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
