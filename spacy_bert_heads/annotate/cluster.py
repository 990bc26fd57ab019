"""Annotate by the workers of a Ray cluster, whose machines have the folders in common.

Ray Data keeps one actor for each worker, which loads the pipeline once, and starts those again that
die. Its own checkpoints commit nothing before the end of a run; ours are the parts.
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

SHARE = 0.8  # of the processors that the actors take together; the rest is for who feeds them
STORE = 2**28  # bytes: numbers of parts are all that travels


def check_ray() -> None:
    """Raise ImportError if Ray is not installed."""
    if find_spec("ray") is None:
        raise ImportError("The engine ray needs Ray Data: pip install 'ray[data]'")


class Actor:
    """A worker that Ray gives the numbers of parts. Its errors are values, because Ray's own errors
    have lost what they were."""

    def __init__(self, job: Job) -> None:
        from .worker import Annotator

        self.error: Exception | None = None
        try:
            self.annotator = Annotator(open_run(job))
        except Exception as error:
            self.error = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Annotate the parts with these numbers, but those that others work on. Gives the pickled
        error of each, b"" for none."""
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
    """Annotate what is missing by `workers` actors of the cluster at `address`; without one, of a
    cluster on this machine, which is started for that. Raises what a worker raises."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if not (was_there := ray.is_initialized()):
        start(address)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False  # we have our own
        cpus = ray.cluster_resources().get("CPU", 1)
        # With all processors taken, whoever gives the actors their work would wait for one.
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
                sleep(WAIT)  # others work on all that is left
    except ray.exceptions.RayError as error:
        raise ChildProcessError(f"Ray can't keep the workers alive: {error}") from error
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
            # By default workers are so nice that on a busy machine they don't get to load a
            # pipeline.
            "_system_config": {"worker_niceness": 0},
        }
    ray.init(logging_level=logging.WARNING, **settings)
