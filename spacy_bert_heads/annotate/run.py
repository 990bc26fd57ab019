"""Annotate a corpus: by this process, by several on this machine, or by a cluster (cluster.py)."""

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

LOOK = 1.0  # seconds between looks at the progress; where there is no terminal, a line a minute
LINE = 60.0


@dataclass
class Summary:
    """What became of a corpus, and what this call has done for it."""

    docs: int = 0
    parts: int = 0
    words: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # documents by kind
    seconds: float = 0.0  # of all workers together, without loading
    memory: int = 0  # bytes, the most that a worker had
    own_docs: int = 0  # that came while this call ran, by this call or others
    own_seconds: float = 0.0

    def lines(self) -> list[str]:
        """Format it."""
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
    """Annotate a corpus, or go on with it: what is there already is left alone.

    Several calls may share the output folder, on any machines that have it, with nothing else in
    common. Each returns when the whole corpus is annotated. `workers` are processes of this
    machine, 1 for this process alone, or with the engine "ray" those of a cluster, `address`, each
    with `gpus_per_worker`. `show` gets lines of progress where there is no terminal.

    Raises ValueError if the input, the pipeline or a setting is wrong, or differs from what the run
    in the folder was begun with; OSError if something can't be read or written; ImportError if a
    package is missing; ChildProcessError if workers die again and again.
    """
    if workers < 1:
        raise ValueError(f"There must be 1 worker at least, not {workers}.")
    if engine not in ("local", "ray"):
        raise ValueError(f"There is no engine '{engine}'. Choose local or ray.")
    if engine == "ray":
        from .cluster import check_ray

        check_ray()
    run = open_run(job)
    left, start = sum(part.num_docs for part in run.missing()), perf_counter()
    with shown_progress(run, show), ended_by_sigterm():
        if not left:
            pass  # without loading the pipeline
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
    """Delete what processes that died have left: unfinished parts of those on other machines, and
    claims of those that died between the end of a part and the end of its claim."""
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
    """Show how many documents are done by all who share the run, how many a second, and the time
    left: as a bar where there is a terminal, else by `show` once a minute."""
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
    """Say how far it is, as of a run that had `begun` documents `seconds` ago."""
    speed = (done - begun) / seconds if seconds else 0.0
    left = f", {format_time((total - done) / speed)} left" if speed > 0 else ""
    return f"{done:,} of {total:,} documents, {speed:,.1f} a second{left}"


def format_time(seconds: float) -> str:
    """Format a length of time as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
