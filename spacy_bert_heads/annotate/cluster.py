"""Annotate by the workers of a Ray cluster, whose machines share the folders.

Ray Data has one actor per worker, which loads the pipeline once, and restarts actors that die. Its
own checkpoints commit nothing before the end of a run; our checkpoints are the parts.
"""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace
from importlib.util import find_spec
from time import sleep
from typing import Any

from .plan import WAIT, Job, Run, open_run
from .processes import portable

SHARE = 0.8  # of the CPUs for all actors; the rest is for the tasks that feed them
STORE = 2**28  # bytes: only part numbers are transferred


def check_ray() -> None:
    """Raise ImportError if Ray is not installed."""
    if find_spec("ray") is None:
        raise ImportError("The engine ray needs Ray Data. Install it: pip install 'ray[data]'")


class Actor:
    """Annotate parts by number in a Ray actor. Errors are returned as values, because Ray's own
    errors lose the original class."""

    def __init__(self, job: Job) -> None:
        from .worker import Annotator

        self.error: Exception | None = None
        try:
            self.annotator = Annotator(open_run(job))
        except Exception as error:
            self.error = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Annotate the parts with these numbers, except those of other workers. Returns the pickled
        error of each part, b"" for none."""
        return {"error": [self._work(int(number)) for number in batch["item"]]}

    def _work(self, number: int) -> bytes:
        try:
            if self.error is not None:
                raise self.error
            self.annotator.try_part(self.annotator.run.parts[number])
        except Exception as error:
            return pickle.dumps(portable(error))
        return b""


def work_on_cluster(run: Run, workers: int, *, address: str | None, gpus_per_worker: float) -> None:
    """Annotate the missing parts with `workers` actors of the cluster at `address`. Without an
    address, a cluster is started on this machine. Raises the first error of a worker."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if not (was_there := ray.is_initialized()):
        start(address)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False  # we have our own
        cpus = ray.cluster_resources().get("CPU", 1)
        # If the actors reserved all CPUs, the tasks that feed them would never start.
        share = SHARE * max(cpus - 1, 0) / workers
        job = replace(
            run.job,
            gpu_id=0 if gpus_per_worker else -1,
            num_threads=max(1, int(cpus // workers)),
        )
        while missing := run.missing():
            numbers = [part.number for part in missing]
            done = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
                Actor,
                fn_constructor_args=(job,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers))),
                num_cpus=share,
                num_gpus=gpus_per_worker or None,
            )
            for batch in done.iter_batches(batch_size=None):
                for error in filter(None, batch["error"]):
                    raise pickle.loads(error)
            if len(run.missing()) == len(missing):
                sleep(WAIT)  # other workers have all remaining parts
    except ray.exceptions.RayError as error:
        raise ChildProcessError(f"Ray's workers died repeatedly: {error}") from error
    finally:
        if not was_there:
            ray.shutdown()


def start(address: str | None) -> None:
    """Connect to a cluster, or start one on this machine."""
    import ray

    settings: dict[str, Any] = {"address": address, "log_to_driver": False}
    if address is None:
        settings |= {
            "include_dashboard": False,
            "object_store_memory": STORE,
            # By default workers run at niceness 15; on a busy machine they failed to load a
            # pipeline within 300 s.
            "_system_config": {"worker_niceness": 0},
        }
    ray.init(logging_level=logging.WARNING, **settings)
