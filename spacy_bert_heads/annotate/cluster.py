"""Annotate by the workers of a Ray cluster, whose machines have the folders in common.

Ray Data keeps one actor for each worker, which loads the pipeline once, and starts anew those that
die. Its own checkpoints commit nothing before the end of a run; ours are the parts.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from time import sleep
from typing import Any

from .plan import WAIT, Job, Run, open_run

SHARE = 0.8  # of the processors that the actors take together; the rest is for who feeds them


def check_ray() -> None:
    """Raise ImportError if Ray is not installed."""
    if find_spec("ray") is None:
        raise ImportError("The engine ray needs Ray Data: pip install 'ray[data]'")


class Actor:
    """A worker that Ray gives the numbers of parts."""

    def __init__(self, job: Job) -> None:
        from .worker import Annotator

        self.annotator = Annotator(open_run(job))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Annotate the parts with these numbers, but those that others work on."""
        run = self.annotator.run
        for number in batch["item"]:
            self.annotator.try_part(run.parts[int(number)])
        return batch


def work_on_cluster(run: Run, workers: int, *, address: str | None, gpus_per_worker: float) -> None:
    """Annotate what is missing by `workers` actors of the cluster at `address`; without one, of a
    cluster on this machine, which is started for that. Raises what a worker raises."""
    import ray
    from ray.data import DataContext

    was_there = ray.is_initialized()
    if not was_there:
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level="warning",
        )
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        cpus = ray.cluster_resources().get("CPU", 1)
        # With all processors taken, whoever gives the actors their work would wait for one.
        share = SHARE * max(cpus - 1, 0) / workers
        job = run.job
        job = replace(
            job,
            source=str(job.source),
            gpu_id=0 if gpus_per_worker else -1,
            num_threads=max(1, int(cpus // workers)),
        )
        while missing := run.missing():
            numbers = [part.number for part in missing]
            done = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
                Actor,
                fn_constructor_args=(job,),
                batch_size=1,
                concurrency=min(workers, len(numbers)),
                num_cpus=share,
                num_gpus=gpus_per_worker or None,
            )
            for _ in done.iter_batches(batch_size=None):
                pass
            if len(run.missing()) == len(missing):
                sleep(WAIT)  # others work on all that is left
    except ray.exceptions.RayError as error:
        raise find_cause(error) from None
    finally:
        if not was_there:
            ray.shutdown()


def find_cause(error: BaseException) -> BaseException:
    """Find the error of our own behind one of Ray's."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None) or cause.__cause__
        if (
            isinstance(cause, ValueError | OSError | ImportError)
            and type(cause).__module__ == "builtins"
        ):
            return cause
        cause = inner
    return RuntimeError(f"Ray's workers failed: {error}")
