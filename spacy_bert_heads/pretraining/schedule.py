"""Compute the values that depend only on the step: optimizer settings and the phase."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from spacy.util import registry
from thinc.api import Optimizer

from ..encoder.optimization import AdamSettings, adam_settings

if TYPE_CHECKING:
    from .settings import Phase


@registry.schedules("spacy_bert_heads.warmup_cosine.v1")
def warmup_cosine(
    initial_rate: float, warmup_steps: int, total_steps: int, final_rate: float = 0.0
) -> Iterator[float]:
    """Yield learning rates with a linear warm-up to `initial_rate`, then half a cosine down to
    `final_rate` (Loshchilov & Hutter 2017, section 3, without restarts), then `final_rate`."""
    step = 0
    while True:
        if step < warmup_steps:
            yield initial_rate * step / warmup_steps
        else:
            done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
            height = (1 + math.cos(math.pi * done)) / 2
            yield final_rate + (initial_rate - final_rate) * height
        step += 1


@registry.schedules("spacy_bert_heads.warmup_stable_decay.v1")
def warmup_stable_decay(
    initial_rate: float, warmup_steps: int, decay_steps: int, total_steps: int
) -> Iterator[float]:
    """Yield learning rates with a linear warm-up to `initial_rate`, a constant phase, and a linear
    decay to 0 over the last `decay_steps` (Hägele et al. 2024, section 3).

    With `decay_steps` 0 the rate stays constant after the warm-up.

    Raises ValueError if warm-up and decay together are longer than the run.
    """
    if warmup_steps + decay_steps > total_steps:
        raise ValueError(
            f"warmup_steps ({warmup_steps}) and decay_steps ({decay_steps}) together exceed "
            f"total_steps ({total_steps}). Reduce one of them."
        )
    step = 0
    while True:
        up = step / warmup_steps if step < warmup_steps else 1.0
        down = (total_steps - step) / decay_steps if step > total_steps - decay_steps else 1.0
        yield initial_rate * min(up, max(down, 0.0))
        step += 1


class AdamValues:
    """Evaluate the optimizer's settings at each step of a run with `num_steps` steps.

    Raises ValueError if the block is not thinc's Adam.v1 with decoupled weight decay, or if a
    warm-up is longer than the run.
    """

    def __init__(self, block: dict[str, Any], num_steps: int) -> None:
        _check_warm_up(block, "training.optimizer", num_steps)
        filled = _fill(block, num_steps)
        self._optimizer: Optimizer = registry.resolve({"optimizer": filled})["optimizer"]
        if self._optimizer.averages is not None or adam_settings(self._optimizer) is None:
            raise ValueError(
                "[training.optimizer] must be Adam.v1 with use_averages = false and "
                "L2_is_weight_decay = true, because torch's AdamW uses its values."
            )
        self.step = 0

    def at(self, step: int) -> AdamSettings:
        """Return the settings of a step, counted from 1. Steps must not decrease between calls."""
        # The first value of a schedule belongs to step 0, before the first step.
        for _ in range(step - self.step):
            self._optimizer.step_schedules()
        self.step = step
        settings = adam_settings(self._optimizer)
        assert settings is not None  # checked above, and no schedule changes it
        return settings


def _check_warm_up(block: dict[str, Any], name: str, num_steps: int) -> None:
    warm_up = block.get("warmup_steps")
    if isinstance(warm_up, int) and warm_up > num_steps:
        raise ValueError(
            f"{name}.warmup_steps is {warm_up}, but the run has {num_steps} steps. Set it to about "
            "a tenth of the steps."
        )
    for key, value in block.items():
        if isinstance(value, dict):
            _check_warm_up(value, f"{name}.{key}", num_steps)


def _fill(block: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """Replace null total_steps by the step after the last one, so that the last one still learns,
    and null warmup_steps by a tenth of the run."""
    filled = {k: _fill(v, num_steps) if isinstance(v, dict) else v for k, v in block.items()}
    for key, value in (("total_steps", num_steps + 1), ("warmup_steps", num_steps // 10)):
        if filled.get(key, 0) is None:
            filled[key] = value
    return filled


def phase_at(phases: list[Phase], step: int, num_steps: int) -> int:
    """Return the index of the phase that a step, counted from 0, belongs to."""
    ends = accumulate(divide_steps(phases, num_steps))
    return next((i for i, end in enumerate(ends) if step < end), len(phases) - 1)


def divide_steps(phases: list[Phase], num_steps: int) -> list[int]:
    """Divide the steps of a run among its phases, in proportion to their shares."""
    shares = [phase.share for phase in phases]
    ends = [round(num_steps * end / sum(shares)) for end in accumulate(shares)]
    return [end - begin for begin, end in pairwise([0, *ends])]


def adam(
    learn_rate: float | dict[str, Any] = 1e-4,
    *,
    warmup_steps: int | None = None,
    **arguments: float,
) -> dict[str, Any]:
    """Return an optimizer block: AdamW with BERT's settings, a linear warm-up (by default over a
    tenth of the run) and linear decay to 0 (Devlin et al. 2019, section A.2), unless `learn_rate`
    is the block of another schedule. `arguments` are further arguments of thinc's Adam.v1."""
    if not isinstance(learn_rate, dict):
        learn_rate = {
            "@schedules": "spacy_bert_heads.warmup_linear.v1",
            "initial_rate": learn_rate,
            "warmup_steps": warmup_steps,
            "total_steps": None,
        }
    return {
        "@optimizers": "Adam.v1",
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-6,
        "L2": 0.01,
        "L2_is_weight_decay": True,
        "grad_clip": 1.0,
        "use_averages": False,
        **arguments,
        "learn_rate": learn_rate,
    }
