"""A run: training steps, reports, and the state to resume from."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..encoder.parameters import group_parameters
from ..encoder.shim import autocast_for
from .checkpoint import replace_folder, save_state
from .data import Data, Position
from .examples import Batch
from .objectives import Guess, Pretrainer, Totals, guess_masked, no_totals, save_pretrainer
from .processes import Processes
from .reports import Report, Sample, draw_curves, pick_samples
from .schedule import learning_rate, phase_at
from .settings import Training

N_SAMPLES, N_GUESSES = 3, 5


class Run:
    """All that changes from step to step. Files are written to the folder `output`, by the first
    process only."""

    def __init__(
        self, pretrainer: Pretrainer, data: Data, output: Path, processes: Processes
    ) -> None:
        self.pretrainer, self.data, self.output = pretrainer, data, output
        self.processes, self.settings = processes, data.settings
        s, t = data.settings, data.settings.training
        self.shared = processes.share(pretrainer)
        self.samples = pick_samples(
            data.corpus, data.vocabulary, seed=t.seed, held_out=s.text.held_out, n=N_SAMPLES
        )
        self.optimizer = make_optimizer(pretrainer, t)
        self.step = 0
        self.position = Position()
        self.sums = no_totals(processes.device)  # since the last report
        self.tokens = 0
        self.best = math.inf
        self.last: Report | None = None
        self._drawn: Report | None = None  # the last one that the curves show
        self._can_draw = True
        self._timer = (time.perf_counter(), 0)

    # --- steps

    def advance(self, after: Position) -> None:
        """Count a step. `after` is the position behind the batch of this step."""
        self.step += 1
        t = self.settings.training
        phase = phase_at(t.phases, self.step, t.max_steps)
        self.position = after if after.phase == phase else Position(phase)
        if after.phase != phase:
            # Held-out examples have another length now, so losses can't be compared with earlier
            # ones.
            self.best = math.inf

    def learn(self, batch: Batch) -> None:
        """Take one optimizer step."""
        s = self.settings
        counts = (len(batch.masked), (batch.labels >= 0).sum(), len(batch.packed.input_ids))
        n_masked, n_pairs, n_tokens = map(int, self.processes.sum(counts))
        # Gradients are averaged over the processes, but each loss is a mean over all of them.
        scales = (
            s.objective.mlm_weight / max(n_masked, 1) * self.processes.size,
            s.objective.sentence_weight / max(n_pairs, 1) * self.processes.size,
        )
        rate = learning_rate(s.training, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.pretrainer.train()
        self.sums += self._run(batch, scales)
        self.pretrainer.eval()
        if s.training.grad_clip:
            nn.utils.clip_grad_norm_(self.pretrainer.parameters(), s.training.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tokens += n_tokens

    def _run(self, batch: Batch, scales: tuple[float, float] | None) -> torch.Tensor:
        t = self.settings.training
        return self.pretrainer.run(
            batch,
            max_batch_tokens=t.max_batch_tokens,
            autocast=autocast_for(t.precision, self.processes.device),
            scales=scales,
            step=None if scales is None else self.shared,
        )

    # --- reports

    def report(self) -> Report:
        """Report the losses since the last report and those on the held-out documents, append the
        report to the log, and save the checkpoint if it is the best one of the phase so far."""
        o = self.settings.objective
        now = self._summed(self.sums)
        seconds = time.perf_counter() - self._timer[0]
        held_out = no_totals(self.processes.device)
        for batch in self.data.held_out_batches(self.position.phase):
            held_out += self._run(batch, None)
        then = self._summed(held_out)
        mlm = _share(now.mlm_loss, now.n_masked)
        sentence = _share(now.sentence_loss, now.n_pairs)
        loss = o.mlm_weight * (mlm or 0.0) + o.sentence_weight * (sentence or 0.0)
        held_out_mlm = _share(then.mlm_loss, then.n_masked)
        self.last = Report(
            step=self.step,
            loss=loss if self.step else None,
            mlm_loss=mlm,
            nsp_loss=sentence,
            held_out_mlm_loss=held_out_mlm,
            held_out_perplexity=None if held_out_mlm is None else math.exp(min(held_out_mlm, 700)),
            held_out_mlm_accuracy=_share(then.mlm_right, then.n_masked),
            held_out_nsp_loss=_share(then.sentence_loss, then.n_pairs),
            held_out_nsp_accuracy=_share(then.sentence_right, then.n_pairs),
            lr=learning_rate(self.settings.training, self.step),
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
        )
        self.sums = no_totals(self.processes.device)
        if self.processes.is_first:
            with (self.output / "log.jsonl").open("a", encoding="utf8") as file_:
                file_.write(json.dumps(dataclasses.asdict(self.last)) + "\n")
        score = mlm if held_out_mlm is None else held_out_mlm
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
        if self.processes.is_first:
            new = self.output / f".new-{name}"
            save_pretrainer(self.pretrainer, new)
            replace_folder(new, self.output / name)

    # --- training state

    def save_state(self, say: Callable[[str], None]) -> None:
        """Save the training state, and draw the curves so far. `say` gets a message if matplotlib
        is missing."""
        state = self.state()
        if self.processes.is_first:
            save_state(self.output / "states", self.step, state, keep=self.settings.training.keep)
            if self._can_draw and self.last is not self._drawn:
                self._drawn = self.last
                try:
                    draw_curves(self.output / "log.jsonl", self.output / "curves.png")
                except ImportError:
                    self._can_draw = False
                    say("No curves are drawn. They need matplotlib: pip install matplotlib")

    def state(self) -> dict[str, Any]:
        """Return everything that the coming steps depend on."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "corpus": self.data.corpus.fingerprint,
            "model": self.pretrainer.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.processes.gather(_random_state(self.processes.device)),
            "processes": self.processes.size,
            "step": self.step,
            "position": dataclasses.asdict(self.position),
            "sums": list(self._summed(self.sums)),
            "tokens": self.tokens,
            "best": self.best,
            "last": None if self.last is None else dataclasses.asdict(self.last),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned, and remove later reports from the log.

        Raises ValueError if the text or its tokenizer has changed since.
        """
        if state["corpus"] != self.data.corpus.fingerprint:
            raise ValueError(
                "The raw text or its tokenizer has changed since the run began. Put it back, or "
                "start a new run in another folder."
            )
        self.pretrainer.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens, self.best = state["step"], state["tokens"], state["best"]
        self.position = Position(**state["position"])
        sums = torch.tensor(state["sums"], dtype=torch.float64)
        self.sums = (sums if self.processes.is_first else 0 * sums).to(self.processes.device)
        self.last = None if state["last"] is None else Report(**state["last"])
        self._timer = (time.perf_counter(), self.tokens)
        random = state["random"][self.processes.rank]
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.processes.device)
        if self.processes.is_first:
            self._cut_log()

    def _cut_log(self) -> None:
        """Remove the reports of steps that will be taken again."""
        log = self.output / "log.jsonl"
        if log.exists():
            kept = []
            for line in log.read_text(encoding="utf8").splitlines():
                try:
                    done = json.loads(line)["step"] <= self.step
                except ValueError:  # cut off when the run was
                    continue
                kept += [line + "\n"] if done else []
            log.write_text("".join(kept), encoding="utf8")


def make_optimizer(pretrainer: Pretrainer, training: Training) -> torch.optim.AdamW:
    """Make the optimizer. "rate" in its parameter groups is their learning-rate multiplier."""
    names = (name for name, _ in pretrainer.model.named_parameters())
    rates = {name: training.rate_factor if name in pretrainer.made else 1.0 for name in names}
    groups = group_parameters(pretrainer.model, rates)
    for group in groups:
        group["weight_decay"] = training.weight_decay if group["decays"] else 0.0
    return torch.optim.AdamW(groups, lr=training.learn_rate, eps=1e-6, fused=True)


def _share(total: float, n: float) -> float | None:
    return total / n if n else None


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
