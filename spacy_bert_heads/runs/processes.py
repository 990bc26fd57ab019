"""The processes of one run, started by torchrun, each with its part of every batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")

# The maximum time to wait for the first process, which can prepare text for hours. A process that
# has died is noticed by its connection.
PATIENCE = timedelta(days=7)


class Processes:
    """The processes of a run: those of torchrun, or just this one.

    `gpu_id` is the GPU, -1 for the CPU. Under torchrun each process uses the GPU with its local
    rank. Raises ValueError if there is no such GPU.
    """

    def __init__(self, gpu_id: int) -> None:
        # Environment variables that torchrun sets.
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        number = int(os.environ.get("LOCAL_RANK", 0)) if self.size > 1 else gpu_id
        self.gpu_id = number if gpu_id >= 0 else -1
        self.device = torch.device("cpu" if gpu_id < 0 else f"cuda:{number}")
        if gpu_id >= 0 and number >= torch.cuda.device_count():
            raise ValueError(
                f"There is no GPU {number}: torch sees {torch.cuda.device_count()} of them. "
                "Start one process for each, or leave out --gpu-id to use the CPU."
            )
        self._group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that evaluates and writes files."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Connect to the other processes. Raises ConnectionError if one of them ends before the run
        does."""
        if self.size == 1:
            yield
            return
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.set_device(self.device)
        # Gradients are exchanged between GPUs, single numbers between CPUs, so that no GPU waits.
        if gpu:
            dist.init_process_group("nccl")
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
            self._group = dist.group.WORLD
        try:
            yield
            self.wait()  # for the first process, which writes files at the end
        except RuntimeError as error:
            # Not all versions of torch have an error class for this.
            if "gloo" in str(error).lower() or "nccl" in str(error).lower():
                raise ConnectionError(
                    f"Process {self.rank} of {self.size} lost another one, so the run has ended. "
                    "Look above for its error; continue from the newest state with --resume."
                ) from error
            raise
        finally:
            dist.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier(self._group)

    def in_turn(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process, then in all others, which find what the first one wrote
        to the disk."""
        made = [make()] if self.is_first else []
        self.wait()
        return made[0] if made else make()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum numbers over all processes, elementwise."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return total.tolist()

    def begin_alike(self, module: nn.Module) -> None:
        """Copy the weights of a module from the first process to all others."""
        if self.size > 1:
            for parameter in module.parameters():
                dist.broadcast(parameter.data, 0)

    def tell(self, make: Callable[[], T]) -> T:
        """Compute something in the first process, and return it in all."""
        if self.size == 1:
            return make()
        told = [make() if self.is_first else None]
        dist.broadcast_object_list(told, 0, group=self._group)
        return cast(T, told[0])

    def sum_gradients(
        self, parameters: Iterable[nn.Parameter], *, num_items: float | None = None
    ) -> None:
        """Sum the gradients of parameters over all processes, in one call after the backward pass.
        With `num_items` they are means over that many items, and become the mean over the items of
        all processes. A parameter without a gradient in any process still has none.

        Unlike torch's DistributedDataParallel this does not overlap with the backward pass; with
        gradient accumulation only the last part could. It needs memory for one more set of
        gradients, when the memory of the graph is free already.
        """
        learning = [one for one in parameters if one.requires_grad]
        if self.size == 1 or not learning:
            return
        factor = 1.0 if num_items is None else num_items
        grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in learning]
        notes = grads[0].new_tensor([factor, *(float(one.grad is not None) for one in learning)])
        flat = torch.cat([notes, *(factor * grad.flatten() for grad in grads)])
        dist.all_reduce(flat)
        items, *numbers = flat[: len(notes)].tolist()  # at once, which waits for the GPU
        total = 1.0 if num_items is None else (items or 1.0)
        parts = flat[len(notes) :].split([one.numel() for one in learning])
        for one, part, n_grads in zip(learning, parts, numbers, strict=True):
            one.grad = (part / total).view_as(one) if n_grads else None
