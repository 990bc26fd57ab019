"""What depends on the step alone: the learning rate, and the phase with its sequence length."""

from __future__ import annotations

from .settings import Phase, Training


def learning_rate(training: Training, step: int) -> float:
    """Return the learning rate of a step, counted from 1: linear warm-up, then linear decay to 0 at
    `max_steps` (BERT, section A.2)."""
    if training.warmup_steps and step <= training.warmup_steps:
        return training.learn_rate * step / training.warmup_steps
    decay_steps = max(training.max_steps - training.warmup_steps, 1)
    return training.learn_rate * (training.max_steps - step) / decay_steps


def phase_at(phases: list[Phase], step: int, max_steps: int) -> int:
    """Return the index of the phase that a step, counted from 0, belongs to. Phases divide
    `max_steps` in proportion to their shares."""
    total, done = sum(phase.share for phase in phases), 0.0
    for i, phase in enumerate(phases[:-1]):
        done += phase.share
        if step < round(max_steps * done / total):
            return i
    return len(phases) - 1
