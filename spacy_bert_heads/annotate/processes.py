"""Annotate with several processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from .plan import Job, Run, open_run
from .worker import Annotator

MAX_DEATHS = 12  # consecutive deaths without a finished part; one bad document causes up to four


def work_in_processes(run: Run, workers: int) -> None:
    """Annotate with several processes, which divide torch's threads. A killed process is restarted;
    an error in one ends all.

    Raises the first error of a worker, and ChildProcessError if workers die repeatedly.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, (run.job.num_threads or torch.get_num_threads()) // workers)
    deaths, missing = 0, len(run.missing())
    jobs = [replace(run.job, num_threads=threads) for _ in range(min(workers, missing))]
    if run.job.gpu_id >= 0:
        jobs = [replace(job, gpu_id=job.gpu_id + i) for i, job in enumerate(jobs)]
    running: dict[BaseProcess, tuple[Job, Connection]] = {}

    def start(job: Job) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=work_alone, args=(job, theirs), daemon=True)
        process.start()
        theirs.close()
        running[process] = (job, ours)

    try:
        for job in jobs:
            start(job)
        while running:
            wait([process.sentinel for process in running])
            for process in [one for one in running if one.exitcode is not None]:
                process.join()
                job, connection = running.pop(process)
                if connection.poll() and (error := _receive(connection)) is not None:
                    raise error
                if process.exitcode == 0:
                    continue
                left = len(run.missing())
                deaths, missing = deaths + 1 if left == missing else 1, left
                if deaths > MAX_DEATHS:
                    raise ChildProcessError(
                        f"Workers have died {deaths} times without annotating a part, the last "
                        f"one with exit code {process.exitcode} (-9: out of memory). Use fewer "
                        "workers."
                    )
                start(job)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _receive(connection: Connection) -> BaseException | None:
    try:
        return connection.recv()
    except EOFError:  # it was killed
        return None


def work_alone(job: Job, connection: Connection) -> None:
    """Annotate in a child process; errors are sent to the parent, and the process ends with it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        with ended_by_sigterm():
            Annotator(open_run(job)).work()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        connection.send(portable(error))
        sys.exit(1)


def portable(error: Exception) -> Exception:
    """Return an error that can be pickled: the error itself, or a RuntimeError with its message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM, by which clusters end jobs, into SystemExit, so that claims are released at
    once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
