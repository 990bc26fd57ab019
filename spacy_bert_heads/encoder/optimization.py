"""Updates of a torch module with the settings of a thinc optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import torch
from thinc.api import Optimizer, torch2xp, xp2torch
from torch import nn

from .parameters import group_parameters, layer_depths


def make_warmup_linear(
    initial_rate: float, warmup_steps: int, total_steps: int | str
) -> Iterator[float]:
    """Yield learning rates that increase linearly to `initial_rate` for `warmup_steps`, then
    decrease linearly to 0 at `total_steps`, as thinc's `warmup_linear.v1` does.

    With `total_steps` 0, training has no end, as for `[training] max_steps`, and the learning rate
    does not decrease. The same holds for a string: `nlp.create_optimizer` and `nlp.resume_training`
    resolve [training.optimizer] alone and pass "${training.max_steps}" uninterpolated.
    """
    end = 0 if isinstance(total_steps, str) else total_steps
    for step in count():
        if step < warmup_steps:
            yield initial_rate * step / warmup_steps
        elif end:
            yield initial_rate * max(end - step, 0) / max(end - warmup_steps, 1)
        else:
            yield initial_rate


class AdamSettings(NamedTuple):
    """The present values of a thinc optimizer's schedules."""

    learn_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    grad_clip: float


def adam_settings(optimizer: Optimizer) -> AdamSettings | None:
    """Return the settings of thinc's `Adam.v1`; None for another optimizer."""
    o = optimizer
    is_adam = not o.use_radam and o.b1 > 0 and o.b2 > 0 and (o.L2_is_weight_decay or not o.L2)
    if not is_adam:
        return None
    return AdamSettings(o.learn_rate, (o.b1, o.b2), o.eps, o.L2, o.grad_clip)


class Optimization:
    """Parameter groups, AdamW, gradient scaling and gradient clipping of one module.

    The module learns at `learning_rate_multiplier` times the optimizer's learning rate, each layer
    at `layer_decay` times that of the layer above it. Gradients that are `scaled`, for fp16, are
    unscaled before the update.
    """

    def __init__(self, *, learning_rate_multiplier: float = 1.0, layer_decay: float = 1.0) -> None:
        if not learning_rate_multiplier > 0:
            raise ValueError(
                f"learning_rate_multiplier is {learning_rate_multiplier}; it must be above 0. To "
                "keep a component from learning, add its name to [training] frozen_components."
            )
        self.learning_rate_multiplier, self.layer_decay = learning_rate_multiplier, layer_decay
        self.reset()

    def reset(self) -> None:
        """Reset the moments and the gradient scale, for new weights."""
        self._adam: torch.optim.AdamW | None = None
        self._driver: Optimizer | None = None
        self._scaler: torch.amp.GradScaler | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the moments and the gradient scale, for a training state."""
        parts = {"adam": self._adam, "scaler": self._scaler}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(
        self, module: nn.Module, optimizer: Optimizer, state: dict[str, Any]
    ) -> None:
        """Restore what `state_dict` returned, for the same module and an equal optimizer."""
        if "adam" in state:
            self._adam, self._driver = self._make_adam(module), optimizer
            self._adam.load_state_dict(state["adam"])
            for moments in self._adam.state.values():  # may be memory-mapped from a file
                moments.update({name: moment.clone() for name, moment in moments.items()})
        if "scaler" in state:
            self._scaler = torch.amp.GradScaler(next(module.parameters()).device.type)
            self._scaler.load_state_dict(state["scaler"])

    @property
    def gradient_scale(self) -> float:
        """By what the gradients of `backward` are multiplied if they are scaled."""
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    def backward(
        self, outputs: list[torch.Tensor], gradients: list[torch.Tensor], *, scaled: bool
    ) -> None:
        """Accumulate the gradients of the weights and of leaf inputs. `outputs` are those of the
        module in training, `gradients` those of the loss with respect to each, of the same
        shapes."""
        if scaled:
            if self._scaler is None:
                self._scaler = torch.amp.GradScaler(outputs[0].device.type)
            # The scale changes in `step` only, so it is the same for all accumulated gradients.
            gradients = [self._scaler.scale(gradient) for gradient in gradients]
        torch.autograd.backward(outputs, gradients)

    def step(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        settings: AdamSettings | None = None,
        *,
        key: int,
        scaled: bool,
    ) -> bool:
        """Update the weights and clear the gradients: with torch's AdamW if the optimizer is
        thinc's `Adam.v1`, otherwise with the optimizer itself, which identifies the module by
        `key`. A different optimizer than before resets the moments.

        `settings` override the present ones of the optimizer. Returns whether there was any
        gradient. Raises ValueError if the optimizer averages parameters, or if gradients are scaled
        and it is not Adam.
        """
        if optimizer.averages is not None:
            raise ValueError(
                "The optimizer averages parameters, which does not reach torch's. "
                "Set use_averages = false in [training.optimizer]."
            )
        if all(parameter.grad is None for parameter in module.parameters()):
            return False
        settings = settings or adam_settings(optimizer)
        if settings is not None:
            self._step_adam(module, optimizer, settings, self._scaler if scaled else None)
        elif scaled:
            raise ValueError(
                'precision = "fp16" needs the Adam.v1 optimizer. Use that one, or "bf16".'
            )
        else:
            self._step_thinc(module, optimizer, key)
        module.zero_grad(set_to_none=True)
        return True

    def _step_adam(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        settings: AdamSettings,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        if self._adam is None or self._driver is not optimizer:
            self._adam, self._driver = self._make_adam(module), optimizer
        for group in self._adam.param_groups:
            group["lr"] = settings.learn_rate * group["rate"]
            group["betas"], group["eps"] = settings.betas, settings.eps
            group["weight_decay"] = settings.weight_decay if group["decays"] else 0.0
        if scaler is not None:
            scaler.unscale_(self._adam)
        if settings.grad_clip:
            nn.utils.clip_grad_norm_(module.parameters(), settings.grad_clip)
        if scaler is not None:
            scaler.step(self._adam)
            scaler.update()
        else:
            self._adam.step()

    def _step_thinc(self, module: nn.Module, optimizer: Optimizer, key: int) -> None:
        rates = self._rates(module)
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                arrays: list[Any] = [torch2xp(parameter.data), torch2xp(parameter.grad)]
                weights, _ = optimizer((key, name), *arrays, lr_scale=rates[name])
                parameter.data = xp2torch(weights, device=parameter.device)

    def _make_adam(self, module: nn.Module) -> torch.optim.AdamW:
        device = next(module.parameters()).device
        groups = group_parameters(module, self._rates(module))
        return torch.optim.AdamW(groups, fused=device.type in ("cpu", "cuda"))

    def _rates(self, module: nn.Module) -> dict[str, float]:
        """Return the learning-rate multiplier of each parameter."""
        depths = layer_depths(module)
        top = max(depths.values(), default=0)
        return {
            name: self.learning_rate_multiplier * self.layer_decay ** (top - depth)
            for name, depth in depths.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_adam": None, "_driver": None, "_scaler": None}
