"""Run pretraining: steps, reports, and the training state to resume from."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..encoder.parameters import group_parameters
from ..encoder.shim import autocast_for
from ..runs.processes import Processes
from ..runs.states import list_states, replace_folder, save_state
from .data import Data, Position
from .examples import Batch
from .objectives import Guess, Pretrainer, Totals, guess_masked, no_totals, save_pretrainer
from .reports import Report, Sample, draw_curves, log_report, pick_samples
from .schedule import AdamValues, phase_at

N_SAMPLES, N_GUESSES = 3, 5
FORMAT = 4  # version of the training state and of the plans that it refers to


class Run:
    """Hold everything that changes from step to step. Only the first process writes files, to the
    folder `output`."""

    def __init__(
        self, pretrainer: Pretrainer, data: Data, output: Path, processes: Processes
    ) -> None:
        self.pretrainer, self.data, self.output = pretrainer, data, output
        self.processes, self.settings = processes, data.settings
        t = data.settings.training
        processes.begin_alike(pretrainer)
        side = data.held_out if data.held_out.chosen.any() else data.train
        self.samples = pick_samples(side, data.vocabulary, n=N_SAMPLES)
        self.adam_values = AdamValues(t.optimizer, data.num_steps)
        self.optimizer = make_optimizer(pretrainer, t.new_head_lr_multiplier)
        self.step = 0
        self.position = Position()
        self.sums = no_totals(processes.device)  # since the last report
        self.tokens = 0
        self.best = math.inf
        self.last: Report | None = None
        self._drawn: Report | None = None  # the last report in the curves
        self._can_draw = True
        self._timer = (time.perf_counter(), 0)

    # --- steps

    @property
    def is_done(self) -> bool:
        """Return whether all steps have been taken."""
        return self.step >= self.data.num_steps

    def advance(self, after: Position) -> None:
        """Count a step. `after` is the position after the batch of this step."""
        self.step += 1
        phase = phase_at(self.settings.training.phases, self.step, self.data.num_steps)
        if after.phase != phase:
            after = Position(phase)
            # Held-out examples have another length now, so losses can't be compared with earlier
            # ones.
            self.best = math.inf
        if after.done == 0:
            self.data.forget_before(after)
        self.position = after

    def learn(self, batch: Batch, *, stop: bool = False) -> bool:
        """Take one optimizer step, and return whether any process passed `stop`.

        Raises FloatingPointError, before the weights change, if the gradient is infinite or NaN.
        """
        s = self.settings
        counts = (
            len(batch.masked),
            (batch.labels >= 0).sum(),
            sum(len(ids) + 1 for ids in batch.restored.values()),
            len(batch.packed.input_ids),
            stop,
        )
        *predicted, n_tokens, n_stops = map(int, self.processes.sum(counts))
        # Each loss is a mean over all processes, whose gradients are summed.
        weights = zip(self.weights, predicted, strict=True)
        scales = tuple(weight / max(number, 1) for weight, number in weights)
        values = self.adam_values.at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = values.learn_rate * group["rate"]
            group["betas"], group["eps"] = values.betas, values.eps
            group["weight_decay"] = values.weight_decay if group["decays"] else 0.0
        # Dropout is seeded by step and process, so no generator state must be saved.
        seeds = np.random.SeedSequence([s.training.seed, self.step, self.processes.rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        self.pretrainer.train()
        sums = self._run(batch, scales)
        self.pretrainer.eval()
        self.processes.sum_gradients(self.pretrainer.parameters())
        parameters = self.pretrainer.parameters()
        norm = nn.utils.clip_grad_norm_(parameters, values.grad_clip or math.inf).item()
        if not math.isfinite(norm):
            self._fail("gradient", norm, self._summed(sums))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.sums += sums
        self.tokens += n_tokens
        return n_stops > 0

    def _fail(self, what: str, value: float, totals: Totals) -> None:
        """Raise FloatingPointError for a number that is infinite or NaN in all processes."""
        states = list_states(self.output / "states")
        raise FloatingPointError(
            f"The {what} of step {self.step} is {value}: the run has diverged. The loss is "
            f"{self._loss(totals)}, the learning rate "
            f"{self.adam_values.at(self.step).learn_rate:.3g}. This step was not saved; the last "
            f"good training state is {states[0] if states else 'none'}. Start a new run with a "
            "lower training.optimizer.learn_rate, a longer warm-up or a lower grad_clip."
        )

    def _loss(self, totals: Totals) -> float:
        """Return the loss: the weighted sum of the means over masked wordpieces, pairs and
        restored wordpieces."""
        means = [
            total / max(number, 1) for total, number in zip(totals[::3], totals[2::3], strict=True)
        ]
        return sum(weight * mean for weight, mean in zip(self.weights, means, strict=True))

    @property
    def weights(self) -> tuple[float, float, float]:
        """The weights of the losses, in the order of `Totals`."""
        o = self.settings.objective
        return o.mlm_weight, o.sentence_weight, self.settings.denoising.weight

    def _run(self, batch: Batch, scales: Sequence[float] | None) -> torch.Tensor:
        if not len(batch.labels):  # more processes than examples
            return no_totals(self.processes.device)
        t = self.settings.training
        return self.pretrainer.run(
            batch,
            max_batch_tokens=t.max_batch_tokens,
            autocast=autocast_for(t.precision, self.processes.device),
            scales=scales,
        )

    # --- reports

    def report(self) -> Report:
        """Report the losses since the last report and on the held-out documents.

        The report is appended to the log, and the checkpoint is saved if it is the best one of the
        phase so far. Raises FloatingPointError, before anything is saved, if a loss is infinite or
        NaN.
        """
        now = self._summed(self.sums)
        seconds = time.perf_counter() - self._timer[0]
        held_out = no_totals(self.processes.device)
        for batch in self.data.held_out_batches(self.position.phase):
            held_out += self._run(batch, None)
        then = self._summed(held_out)
        for what, totals in (("training loss", now), ("held-out loss", then)):
            if not math.isfinite(self._loss(totals)):
                self._fail(what, self._loss(totals), now)
        mlm = _share(now.mlm_loss, now.n_masked)
        held_out_mlm = _share(then.mlm_loss, then.n_masked)
        self.last = Report(
            step=self.step,
            loss=self._loss(now) if self.step else None,
            mlm_loss=mlm,
            nsp_loss=_share(now.sentence_loss, now.n_pairs),
            held_out_mlm_loss=held_out_mlm,
            held_out_perplexity=None if held_out_mlm is None else math.exp(min(held_out_mlm, 700)),
            held_out_mlm_accuracy=_share(then.mlm_right, then.n_masked),
            held_out_nsp_loss=_share(then.sentence_loss, then.n_pairs),
            held_out_nsp_accuracy=_share(then.sentence_right, then.n_pairs),
            lr=self.adam_values.at(self.step).learn_rate,
            epoch=self.position.epoch,
            tokens=self.tokens,
            tokens_per_second=(self.tokens - self._timer[1]) / seconds if self.step else None,
            samples=[
                {
                    "text": sample.text,
                    "word": sample.word,
                    "guesses": [list(one) for one in self._guess(sample)],
                }
                for sample in self.samples
            ],
            denoising_loss=_share(now.denoising_loss, now.n_restored),
            held_out_denoising_loss=_share(then.denoising_loss, then.n_restored),
            held_out_denoising_accuracy=_share(then.denoising_right, then.n_restored),
        )
        self.sums = no_totals(self.processes.device)
        if self.processes.is_first:
            log_report(self.output / "log.jsonl", self.last)
        last = self.last
        of_mlm, of_pairs, of_decoder = self.weights
        scores = (
            (held_out_mlm, of_mlm),
            (last.held_out_denoising_loss, of_decoder),
            (last.held_out_nsp_loss, of_pairs),
            (mlm, of_mlm),
            (last.denoising_loss, of_decoder),
            (last.nsp_loss, of_pairs),
        )
        learned = (score for score, weight in scores if weight and score is not None)
        score = next(learned, None)
        if score is not None and score < self.best:
            self.best = score
            self.save("model-best")
        self._timer = (time.perf_counter(), self.tokens)
        return self.last

    def _guess(self, sample: Sample) -> list[Guess]:
        return guess_masked(self.pretrainer, sample.ids, sample.masked, top=N_GUESSES)[0]

    def _summed(self, totals: torch.Tensor) -> Totals:
        """Sum over all processes. This waits until the device has finished the steps."""
        return Totals(*self.processes.sum(totals.tolist()))

    def save(self, name: str) -> None:
        """Save a Hugging Face checkpoint to the subfolder `name` of the output."""
        self._check_weights()
        if self.processes.is_first:
            new = self.output / f".new-{name}"
            save_pretrainer(self.pretrainer, new)
            replace_folder(new, self.output / name)

    def _check_weights(self) -> None:
        """Raise FloatingPointError for infinite weights; finite gradients can lead to them."""
        for name, weights in self.pretrainer.parts.named_parameters():
            largest = weights.detach().abs().max().item()
            if not math.isfinite(largest):
                self._fail(f"weight {name}", largest, self._summed(self.sums))

    # --- training state

    def save_state(self, say: Callable[[str], None]) -> None:
        """Save the training state, and draw the curves. `say` receives a message if matplotlib is
        missing."""
        self._check_weights()
        state = self.state()
        if self.processes.is_first:
            save_state(self.output / "states", self.step, state, keep=self.settings.training.keep)
            if self._can_draw and self.last is not self._drawn:
                self._drawn = self.last
                try:
                    draw_curves(self.output / "log.jsonl", self.output / "curves.png")
                except ImportError:
                    self._can_draw = False
                    say("No curves are drawn. Install matplotlib: pip install matplotlib")
                except (OSError, ValueError) as error:  # another program has changed the log
                    say(f"No curves are drawn: {error}")

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on."""
        return {
            "format": FORMAT,
            "settings": dataclasses.asdict(self.settings),
            "num_steps": self.data.num_steps,
            "corpus": self.data.fingerprint,
            "model": self.pretrainer.parts.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "position": dataclasses.asdict(self.position),
            "sums": list(self._summed(self.sums)),
            "tokens": self.tokens,
            "best": self.best,
            "last": None if self.last is None else dataclasses.asdict(self.last),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a training state that `state` returned. Its tensors are copied, so its file may
        be deleted. Raises ValueError if the text or its tokenizer has changed since."""
        if state["corpus"] != self.data.fingerprint:
            raise ValueError(
                "The raw text or its tokenizer has changed since the run began. Restore it, or "
                "start a new run in another folder."
            )
        self.pretrainer.parts.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for moments in self.optimizer.state.values():
            moments.update({name: moment.clone() for name, moment in moments.items()})
        self.step, self.tokens, self.best = state["step"], state["tokens"], state["best"]
        self.position = Position(**state["position"])
        sums = torch.tensor(state["sums"], dtype=torch.float64)
        self.sums = (sums if self.processes.is_first else 0 * sums).to(self.processes.device)
        self.last = None if state["last"] is None else Report(**state["last"])
        self._timer = (time.perf_counter(), self.tokens)


def make_optimizer(pretrainer: Pretrainer, new_head_lr_multiplier: float) -> torch.optim.AdamW:
    """Create the optimizer; its values are set before every step. "rate" in a parameter group is
    its learning-rate multiplier."""
    parts = pretrainer.parts
    rates = {
        name: new_head_lr_multiplier if pretrainer.is_new(name) else 1.0
        for name, _ in parts.named_parameters()
    }
    return torch.optim.AdamW(group_parameters(parts, rates), fused=True)


def _share(total: float, n: float) -> float | None:
    return total / n if n else None
