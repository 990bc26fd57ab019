"""The torch side of a thinc model: precision, gradients, AdamW and weights on disk."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import srsly
import torch
from thinc.api import Optimizer, get_torch_default_device, torch2xp, xp2torch
from thinc.shims import Shim
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES, "int8")
Files = dict[str, bytes]


def after_fork() -> None:
    """Make a forked worker of nlp.pipe(…, n_process=2) ready. It inherits the thread pools of torch
    and of tokenizers without their threads, and would wait for them for ever. One thread needs no
    pool, and the workers share the cores anyway."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@cache
def prepare_for_forks() -> None:
    """Have workers that are forked from now on made ready. Called by the first component that has
    a torch module: being installed changes nothing for other code."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=after_fork)


def without_graph(run: Callable[[], Any]) -> Any:
    """Give what `run` gives, computed without a graph.

    After an interrupt (Ctrl-C), at whatever moment, torch keeps graphs again. `torch.no_grad` does
    not promise that: its methods are Python code, which an interrupt can end before they are done.
    """
    was_enabled = torch.is_grad_enabled()
    try:
        torch._C._set_grad_enabled(False)
        return run()
    finally:
        torch._C._set_grad_enabled(was_enabled)


class AdamSettings(NamedTuple):
    """The values that a thinc optimizer's schedules have at one moment."""

    learn_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    grad_clip: float


def adam_settings(optimizer: Optimizer) -> AdamSettings | None:
    """Read the settings off thinc's `Adam.v1`.

    optimizer (Optimizer): A thinc optimizer.
    RETURNS (Optional[AdamSettings]): None if it is another one.
    """
    o = optimizer
    is_adam = not o.use_radam and o.b1 > 0 and o.b2 > 0 and (o.L2_is_weight_decay or not o.L2)
    if not is_adam:
        return None
    return AdamSettings(o.learn_rate, (o.b1, o.b2), o.eps, o.L2, o.grad_clip)


def autocast_for(precision: str, device: torch.device) -> torch.autocast:
    """The context in which modules with weights in fp32 compute in a precision.

    precision (str): "fp32", "bf16", "fp16", or "auto": bf16 on a GPU, else fp32. What predicts in
        "int8" learns in fp32.
    device (torch.device): Where they are.
    RETURNS (torch.autocast): The context.
    """
    dtype = DTYPES.get(resolve_precision(precision, device), torch.float32)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def resolve_precision(precision: str, device: torch.device) -> str:
    """precision (str): A precision, or "auto".
    device (torch.device): Where it is to be in force.
    RETURNS (str): The precision. A GPU takes bf16 for int8.
    """
    if device.type == "cuda":
        return "bf16" if precision in ("auto", "int8") else precision
    return "fp32" if precision == "auto" else precision


def group_parameters(module: nn.Module, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Group what learns as torch's optimizers take it: "params", whether the group "decays", and
    its "rate". Vectors, which are biases and LayerNorms, don't decay (BERT, optimization.py).

    module (nn.Module): The module.
    rates (Dict[str, float]): By what the learning rate of each parameter is multiplied.
    RETURNS (List[Dict[str, Any]]): The groups.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim > 1, rates[name]), []).append(parameter)
    return [
        {"params": parameters, "decays": decays, "rate": rate}
        for (decays, rate), parameters in groups.items()
    ]


def check_precision(precision: str, options: Iterable[str] = PRECISIONS) -> None:
    """precision (str): What was asked for.
    options (Iterable[str]): What there is.
    RAISES (ValueError): If there is no such precision.
    """
    if precision not in options:
        raise ValueError(f"Unknown precision '{precision}'. Choose one of: {', '.join(options)}.")


class TorchShim(Shim):
    """Hold a torch module inside a thinc model, and train it with torch's own means.

    The module rests in eval mode. Predictions run on an inference copy that shares its weights
    (`derive`), so that a thread that predicts never meets the dropout of one that trains.

    to_files (Callable[[nn.Module], Files]): Turn the module into named files.
    from_files (Callable[[Files], nn.Module]): Build the module again from those.
    precision (str): "fp32", "bf16", "fp16", "int8", or "auto": bf16 on a GPU, else fp32. To
        learn below fp32, matrix products run in that type (autocast; not int8) and weights stay
        in fp32; fp16 gradients are scaled.
    rate_factor (float): The module learns at this times the optimizer's rate.
    layer_decay (float): Each layer learns at this times the rate of the layer above it.
    RAISES (ValueError): If there is no such precision, or the factor isn't above 0.
    """

    def __init__(
        self,
        *,
        to_files: Callable[[nn.Module], Files],
        from_files: Callable[[Files], nn.Module],
        precision: str = "fp32",
        rate_factor: float = 1.0,
        layer_decay: float = 1.0,
    ) -> None:
        check_precision(precision)
        if not rate_factor > 0:
            raise ValueError(
                f"rate_factor is {rate_factor}; it must be above 0. To keep a component from "
                "learning, put its name into [training] frozen_components."
            )
        super().__init__(None)
        self._to_files, self._from_files = to_files, from_files
        self._precision = precision
        self.rate_factor, self._layer_decay = rate_factor, layer_decay
        # Counts the changes of weights and precision: states computed from older ones are stale.
        self.version = 0
        prepare_for_forks()
        self._derived: tuple[int, nn.Module] | None = None
        self._lock = threading.Lock()
        self._pid = 0  # of the process that put the module where it is
        self._forget_training()

    def _forget_training(self) -> None:
        self._adam: torch.optim.AdamW | None = None
        self._driver: Optimizer | None = None
        self._scaler: torch.amp.GradScaler | None = None

    @property
    def has_module(self) -> bool:
        """RETURNS (bool): Whether there are weights yet."""
        return self._model is not None

    @property
    def module(self) -> nn.Module:
        """RETURNS (nn.Module): The torch module, in eval mode.
        RAISES (ValueError): If there is none yet, or it is on a GPU and the process was forked.
        """
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
        self._model = module.to(get_torch_default_device()).eval()
        self._pid = os.getpid()
        self.version += 1
        self._forget_training()

    def clear(self) -> None:
        """Forget the module, so that initialization makes a new one."""
        self._model = self._derived = None

    @property
    def device(self) -> torch.device:
        """RETURNS (torch.device): Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def precision(self) -> str:
        """RETURNS (str): The precision in force on the module's device."""
        return resolve_precision(self._precision, self.device)

    @precision.setter
    def precision(self, precision: str) -> None:
        check_precision(precision)
        self._precision = precision
        self._scaler = None  # of fp16 alone
        self.version += 1  # states are others now

    def autocast(self) -> torch.autocast:
        """RETURNS (torch.autocast): The context in which the module itself computes."""
        return autocast_for(self._precision, self.device)

    def derive(self, make: Callable[[nn.Module, str], nn.Module]) -> nn.Module:
        """What is made of the module to predict with, made again when the weights have changed.

        make (Callable[[nn.Module, str], nn.Module]): Makes it, for the precision in force.
        RETURNS (nn.Module): It.
        """
        derived = self._derived
        if derived is None or derived[0] != self.version:
            with self._lock:  # of threads that ask at once, one makes it
                derived = self._derived
                if derived is None or derived[0] != self.version:
                    self._derived = None  # so that there are never two
                    derived = self.version, make(self.module, self.precision)
                    self._derived = derived
        return derived[1]

    @contextmanager
    def training(self) -> Iterator[None]:
        """Switch dropout on; to be held around the forward pass, and around a backward pass
        that computes checkpointed parts again."""
        try:
            self.module.train()
            yield
        finally:
            self.module.eval()

    # --- gradients and updates

    def backward(self, outputs: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """Add to the gradients of the weights (and of leaf inputs): `outputs` is what the module
        computed in training, `gradients` has those of the loss by each, of the same shapes."""
        learning = [i for i, output in enumerate(outputs) if output.requires_grad]
        if learning:  # none if every layer is frozen
            with self.training():
                torch.autograd.backward(
                    [outputs[i] for i in learning], [self._scale(gradients[i]) for i in learning]
                )

    def _scale(self, gradient: torch.Tensor) -> torch.Tensor:
        if self.precision != "fp16":
            return gradient
        if self._scaler is None:
            self._scaler = torch.amp.GradScaler(self.device.type)
        # The scale changes only in `step`, so all gradients that add up share it.
        return self._scaler.scale(gradient)

    def finish_update(self, optimizer: Optimizer, settings: AdamSettings | None = None) -> None:
        """Step the weights: with torch's AdamW if the optimizer is thinc's `Adam.v1`, with the
        optimizer itself if it is another. Without any gradient this does nothing.

        optimizer (Optimizer): The thinc optimizer; with another one the moments start anew.
        settings (Optional[AdamSettings]): The rates and so on to use instead of its present ones.
        RAISES (ValueError): If it averages parameters, or if fp16 meets another than Adam.
        """
        if optimizer.averages is not None:
            raise ValueError(
                "The optimizer averages parameters, which does not reach torch's. "
                "Set use_averages = false in [training.optimizer]."
            )
        if all(parameter.grad is None for parameter in self.module.parameters()):
            return
        settings = settings or adam_settings(optimizer)
        if settings is not None:
            self._step_adam(optimizer, settings)
        else:
            self._step_thinc(optimizer)
        self.module.zero_grad(set_to_none=True)
        self.version += 1

    def _step_adam(self, optimizer: Optimizer, settings: AdamSettings) -> None:
        if self._adam is None or self._driver is not optimizer:
            self._adam, self._driver = self._make_adam(), optimizer
        for group in self._adam.param_groups:
            group["lr"] = settings.learn_rate * group["rate"]
            group["betas"], group["eps"] = settings.betas, settings.eps
            group["weight_decay"] = settings.weight_decay if group["decays"] else 0.0
        if self._scaler is not None:
            self._scaler.unscale_(self._adam)
        if settings.grad_clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), settings.grad_clip)
        if self._scaler is not None:
            self._scaler.step(self._adam)
            self._scaler.update()
        else:
            self._adam.step()

    def _step_thinc(self, optimizer: Optimizer) -> None:
        if self.precision == "fp16":
            raise ValueError(
                'precision = "fp16" needs the Adam.v1 optimizer. Use that one, or "bf16".'
            )
        rates = self._rates()
        for name, parameter in self.module.named_parameters():
            if parameter.grad is not None:
                arrays: list[Any] = [torch2xp(parameter.data), torch2xp(parameter.grad)]
                weights, _ = optimizer((self.id, name), *arrays, lr_scale=rates[name])
                parameter.data = xp2torch(weights, device=parameter.device)

    def _make_adam(self) -> torch.optim.AdamW:
        groups = group_parameters(self.module, self._rates())
        return torch.optim.AdamW(groups, fused=self.device.type in ("cpu", "cuda"))

    def _rates(self) -> dict[str, float]:
        """By what the optimizer's rate is multiplied for each parameter."""
        depths = layer_depths(self.module)
        top = max(depths.values(), default=0)
        return {
            name: self.rate_factor * self._layer_decay ** (top - depth)
            for name, depth in depths.items()
        }

    # --- devices, copies and files

    def to_device(self, device_type: str, device_id: int) -> None:
        """Move the module, as thinc asks when a pipeline moves.

        device_type (str): "cpu" or "gpu".
        device_id (int): The GPU's number.
        """
        if self.has_module:
            device = "cpu" if device_type == "cpu" else f"cuda:{device_id}"
            self._model.to(device)
            self._pid = os.getpid()
            self.version += 1
            self._forget_training()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.update(_adam=None, _driver=None, _scaler=None, _derived=None)
        del state["_lock"]
        if self._model is not None:
            state["_model"] = copy_sharing(self._model)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pid=os.getpid(), _lock=threading.Lock())

    def copy(self) -> TorchShim:
        """RETURNS (TorchShim): A deep copy under an id of its own, so that a thinc optimizer
        keeps the two apart."""
        copied = copy.deepcopy(self)
        with Shim.global_id_lock:
            Shim.global_id += 1
            copied.id = Shim.global_id
        return copied

    def to_files(self) -> Files:
        """RETURNS (Files): The module as named files; none if there is no module yet."""
        return self._to_files(self._model) if self.has_module else {}

    def from_files(self, files: Files) -> TorchShim:
        """Build the module from what `to_files` gave.

        files (Files): The named files.
        RETURNS (TorchShim): This shim.
        """
        if files:
            self.module = self._from_files(files)
        return self

    def to_bytes(self) -> bytes:
        """RETURNS (bytes): The module's files, packed by msgpack."""
        return srsly.msgpack_dumps(self.to_files())

    def from_bytes(self, data: bytes) -> TorchShim:
        """data (bytes): What `to_bytes` gave.
        RETURNS (TorchShim): This shim.
        """
        return self.from_files(srsly.msgpack_loads(data))


def copy_sharing(
    module: nn.Module, change: Callable[[nn.Parameter], nn.Parameter] = lambda weight: weight
) -> nn.Module:
    """Copy a module, but not its weights, nor its forward hooks: transformers 5 puts some into a
    model whose lower layers are read, which can't be pickled, and a mark that they are there. It
    makes them again where that is missing.

    module (nn.Module): The module.
    change (Callable[[nn.Parameter], nn.Parameter]): What the copy has for a weight: the same one.
    RETURNS (nn.Module): The copy.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    memo |= {id(weight): change(weight) for weight in module.parameters()}
    bare = copy.deepcopy(module, memo)
    for part in bare.modules():
        part._forward_hooks.clear()
        part.__dict__.pop("_output_capturing_hooks_installed", None)
    return bare


def find_layers(module: nn.Module) -> nn.ModuleList | None:
    """Find the stack of a transformer's layers, whatever its family calls it.

    module (nn.Module): A Hugging Face model with a `config`.
    RETURNS (Optional[nn.ModuleList]): The layers from the bottom up, or None for a module
        without such a stack (ALBERT's layers are one and the same).
    """
    config = getattr(module, "config", None)
    if config is None or config.model_type == "albert":
        return None
    depth = config.num_hidden_layers
    stacks = (m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    return next(stacks, None)


def layer_depths(module: nn.Module) -> dict[str, int]:
    """How far from the input each parameter stands: 0 for embeddings, 1 for the lowest layer.

    module (nn.Module): Any module.
    RETURNS (Dict[str, int]): Depths by parameter name; all 0 for a module without layers.
    """
    names = [name for name, _ in module.named_parameters()]
    stack = find_layers(module)
    if stack is None:
        return dict.fromkeys(names, 0)
    prefix = next(name for name, m in module.named_modules() if m is stack) + "."
    before_stack = True
    depths = {}
    for name in names:
        inside = name.startswith(prefix)
        before_stack = before_stack and not inside
        if inside:
            depths[name] = int(name[len(prefix) :].split(".")[0]) + 1
        else:
            depths[name] = 0 if before_stack else len(stack)
    return depths
