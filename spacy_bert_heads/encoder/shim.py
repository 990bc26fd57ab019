"""A torch module in a thinc model: its inference copy, precision, updates and files."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import srsly
import torch
from thinc.api import Optimizer, get_torch_default_device
from thinc.shims import Shim
from torch import nn

from .checkpoint import Files
from .devices import check_device, is_ampere
from .optimization import AdamSettings, Optimization
from .parameters import copy_sharing

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES, "int8")


def after_fork() -> None:
    """Set up a forked worker of nlp.pipe(…, n_process=2). It inherits the thread pools of torch and
    tokenizers without their threads, and would wait for them forever. A single thread needs no
    pool, and the workers share the cores anyway."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@cache
def prepare_for_forks() -> None:
    """Register `after_fork` for workers that are forked from now on. The first component with a
    torch module calls it, so that installing the package does not affect other code."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=after_fork)


def without_graph(run: Callable[[], Any]) -> Any:
    """Call `run` without a graph and return its result.

    If an interrupt (Ctrl-C) comes at any moment, gradients are enabled again afterwards.
    `torch.no_grad` does not guarantee that: its methods are Python code, which an interrupt can
    stop halfway.
    """
    was_enabled = torch.is_grad_enabled()
    try:
        torch._C._set_grad_enabled(False)
        return run()
    finally:
        torch._C._set_grad_enabled(was_enabled)


def autocast_for(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context for modules with fp32 weights and a `precision`: "fp32", "bf16",
    "fp16", "auto" (see `resolve_precision`), or "int8", which trains in fp32."""
    dtype = DTYPES.get(resolve_precision(precision, device), torch.float32)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return the precision that is used on a device. On a GPU "auto" and "int8" become bf16, fp32
    before Ampere; on a CPU "auto" becomes fp32."""
    if device.type == "cuda" and precision in ("auto", "int8"):
        return "bf16" if is_ampere(device) else "fp32"
    return "fp32" if precision == "auto" else precision


def check_precision(precision: str, options: Iterable[str] = PRECISIONS) -> None:
    """Raise ValueError if there is no such precision."""
    if precision not in options:
        raise ValueError(f"Unknown precision '{precision}'. Choose one of: {', '.join(options)}.")


class TorchShim(Shim):
    """A torch module in a thinc model, trained by torch's optimizer.

    The module is in eval mode except during training. Prediction runs on an inference copy that
    shares its weights (`derive`), so that a thread that predicts never sees the dropout of one that
    trains.

    `to_files` serializes the module to named files, `from_files` makes it from them. With a
    `precision` below fp32 ("bf16", "fp16") the matrix products of training use that type
    (autocast), and weights stay in fp32. `learning_rate_multiplier` and `layer_decay` are passed to
    `Optimization`.
    """

    def __init__(
        self,
        *,
        to_files: Callable[[nn.Module], Files],
        from_files: Callable[[Files], nn.Module],
        precision: str = "fp32",
        learning_rate_multiplier: float = 1.0,
        layer_decay: float = 1.0,
    ) -> None:
        check_precision(precision)
        super().__init__(None)
        self._to_files, self._from_files = to_files, from_files
        self._precision = precision
        self.optimization = Optimization(
            learning_rate_multiplier=learning_rate_multiplier, layer_decay=layer_decay
        )
        # Counts changes of weights and precision; hidden states of an older version are stale.
        self.version = 0
        prepare_for_forks()
        self._derived: tuple[int, nn.Module] | None = None
        self._lock = threading.Lock()
        self._pid = 0  # of the process that moved the module to its device

    @property
    def has_module(self) -> bool:
        """Whether there are weights yet."""
        return self._model is not None

    @property
    def module(self) -> nn.Module:
        """The torch module, in eval mode. Raises ValueError if there is none yet, or if it is on a
        GPU and this process was forked."""
        if self._model is None:
            raise ValueError(
                "This component has no weights yet. Call nlp.initialize() to make them, "
                "or load a trained pipeline with spacy.load()."
            )
        forked = self._pid != os.getpid()
        if forked and next(self._model.parameters()).device.type == "cuda":
            raise ValueError(
                "A worker of nlp.pipe(…, n_process=…) can't use the GPU of the process that it was "
                "forked from. Leave n_process at 1: one process keeps a GPU busy."
            )
        return self._model

    @module.setter
    def module(self, module: nn.Module) -> None:
        device = get_torch_default_device()
        check_device(device)
        self._model = module.to(device).eval()
        self._pid = os.getpid()
        self.version += 1
        self.optimization.reset()

    def clear(self) -> None:
        """Remove the module, so that `initialize` makes a new one."""
        self._model = self._derived = None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.module.parameters()).device

    @property
    def precision(self) -> str:
        """The precision that is used on the module's device, never "auto"."""
        return resolve_precision(self._precision, self.device)

    @precision.setter
    def precision(self, precision: str) -> None:
        check_precision(precision)
        self._precision = precision
        self.version += 1  # the hidden states change

    def autocast(self) -> torch.autocast:
        """Return the autocast context for training."""
        return autocast_for(self._precision, self.device)

    def derive(self, make: Callable[[nn.Module, str], nn.Module]) -> nn.Module:
        """Return the inference copy, which `make` makes from the module and its precision. It is
        made at the first call, and again after the weights have changed."""
        derived = self._derived
        if derived is None or derived[0] != self.version:
            with self._lock:  # if several threads call it at once, one of them makes the copy
                derived = self._derived
                if derived is None or derived[0] != self.version:
                    self._derived = None  # so that there are never two copies in memory
                    derived = self.version, make(self.module, self.precision)
                    self._derived = derived
        return derived[1]

    @property
    def gradient_scale(self) -> float:
        """By what the gradients are multiplied that `backward` accumulates: 1 except in fp16."""
        return self.optimization.gradient_scale if self.precision == "fp16" else 1.0

    @contextmanager
    def training(self) -> Iterator[None]:
        """Enable dropout. Use it around the forward pass, and around the backward pass, which may
        recompute checkpointed parts."""
        try:
            self.module.train()
            yield
        finally:
            self.module.eval()

    # --- gradients and updates

    def backward(self, outputs: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """Accumulate the gradients of the weights and of leaf inputs. `outputs` are those of the
        module in training, `gradients` those of the loss with respect to each, of the same
        shapes."""
        learning = [i for i, output in enumerate(outputs) if output.requires_grad]
        if learning:  # none if every layer is frozen
            with self.training():
                self.optimization.backward(
                    [outputs[i] for i in learning],
                    [gradients[i] for i in learning],
                    scaled=self.precision == "fp16",
                )

    def finish_update(self, optimizer: Optimizer, settings: AdamSettings | None = None) -> None:
        """Update the weights, see `Optimization.step`. Without gradients it does nothing."""
        is_changed = self.optimization.step(
            self.module, optimizer, settings, key=self.id, scaled=self.precision == "fp16"
        )
        self.version += is_changed

    # --- devices, copies and files

    def to_device(self, device_type: str, device_id: int) -> None:
        """Move the module to the "cpu", or to a "gpu" by its number. thinc calls it when a pipeline
        is moved."""
        if self.has_module:
            check_device(get_torch_default_device())
            device = "cpu" if device_type == "cpu" else f"cuda:{device_id}"
            self._model.to(device)
            self._pid = os.getpid()
            self.version += 1
            self.optimization.reset()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_derived"] = None
        del state["_lock"]
        if self._model is not None:
            state["_model"] = copy_sharing(self._model)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pid=os.getpid(), _lock=threading.Lock())

    def copy(self) -> TorchShim:
        """Make a deep copy with a new id, by which a thinc optimizer distinguishes the two."""
        copied = copy.deepcopy(self)
        with Shim.global_id_lock:
            Shim.global_id += 1
            copied.id = Shim.global_id
        return copied

    def to_files(self) -> Files:
        """Serialize the module to named files; none if there is no module yet."""
        return self._to_files(self._model) if self.has_module else {}

    def from_files(self, files: Files) -> TorchShim:
        """Make the module from what `to_files` returned."""
        if files:
            self.module = self._from_files(files)
        return self

    def to_bytes(self) -> bytes:
        """Serialize the module's files to msgpack."""
        return srsly.msgpack_dumps(self.to_files())

    def from_bytes(self, data: bytes) -> TorchShim:
        """Make the module from what `to_bytes` returned."""
        return self.from_files(srsly.msgpack_loads(data))
