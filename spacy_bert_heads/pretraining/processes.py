"""Several processes as one run, each with its part of the data, as torchrun starts them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

# How long the others wait while the first prepares the text, which can take hours. One that has
# died is noticed by its connection.
PATIENCE = timedelta(days=7)


class Processes:
    """The processes of a run; a run of one process is the case without any of torchrun's.

    gpu_id (int): The GPU, -1 for the CPU. Under torchrun each process takes the GPU of its own
        number on the machine.
    RAISES (ValueError): If there is no such GPU.
    """

    def __init__(self, gpu_id: int) -> None:
        # The names are torchrun's.
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        number = int(os.environ.get("LOCAL_RANK", 0)) if self.size > 1 else gpu_id
        self.device = torch.device("cpu" if gpu_id < 0 else f"cuda:{number}")
        if gpu_id >= 0 and number >= torch.cuda.device_count():
            raise ValueError(
                f"There is no GPU {number}: torch sees {torch.cuda.device_count()} of them. "
                "Start one process for each, or leave out --gpu-id to use the CPU."
            )
        self._group: Any = None

    @property
    def is_first(self) -> bool:
        """RETURNS (bool): Whether this process writes what all share."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Hold the connection to the other processes.

        RAISES (ConnectionError): If one of them ends before the run does.
        """
        if self.size == 1:
            yield
            return
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.set_device(self.device)
        # Gradients travel between GPUs; a few numbers, between CPUs, so that no GPU waits for them.
        if gpu:
            dist.init_process_group("nccl")
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
            self._group = dist.group.WORLD
        try:
            yield
            self.wait()  # the first process writes longest
        except RuntimeError as error:
            # Neither backend has an error class for this in all of torch's versions.
            if "gloo" in str(error).lower() or "nccl" in str(error).lower():
                raise ConnectionError(
                    f"Process {self.rank} of {self.size} lost another one, so the run has ended. "
                    "Look above for what happened to it; go on from the newest state by --resume."
                ) from error
            raise
        finally:
            # Destroying a group joins gloo's threads while it has Python's lock, and a thread that
            # is about to free the tensor of the last call waits for that lock. Without a pause one
            # run in five hung here (torch 2.13).
            time.sleep(0.1)
            dist.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier(self._group)

    def in_turn(self, make: Callable[[], T]) -> T:
        """Have the first process make something on the disk, before the others open it.

        make (Callable[[], T]): Makes or opens it.
        RETURNS (T): What it returns in this process.
        """
        made = [make()] if self.is_first else []
        self.wait()
        return made[0] if made else make()

    def sum(self, values: Sequence[float]) -> list[float]:
        """values (Sequence[float]): Numbers of this process.
        RETURNS (List[float]): Their sums over all processes.
        """
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """value (Any): Plain data or tensors on the CPU.
        RETURNS (List[Any]): Those of all processes, by rank.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def share(self, module: nn.Module) -> nn.Module:
        """Have the gradients of a module averaged over the processes, and its weights begin alike.

        module (nn.Module): The module. All that learns of it takes part in every forward pass.
        RETURNS (nn.Module): What to call instead of it.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
        )
