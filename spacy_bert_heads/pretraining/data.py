"""Batches by position: the batch at any position of a run is read directly, without reading those
before it."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..text.arrays import Ints1d
from .draws import shuffled
from .examples import Batch, Plan, make_batch, plan_epoch
from .masking import Vocabulary
from .settings import Settings
from .store import Corpus


@dataclass(frozen=True)
class Position:
    """How far the data has been read. All else follows from the settings."""

    phase: int = 0
    epoch: int = 0
    done: int = 0  # examples of the epoch


class Data:
    """Batches by position, in any order. The only state is open files.

    `folder` holds the plans of the epochs. Each of `n_parts` processes reads one part of every
    batch, which is `rank`.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        settings: Settings,
        folder: Path,
        *,
        rank: int = 0,
        n_parts: int = 1,
    ) -> None:
        self.corpus, self.vocabulary, self.settings = corpus, vocabulary, settings
        self.folder, self.rank, self.n_parts = folder, rank, n_parts
        self.plans: dict[tuple[int, int, bool], Plan] = {}

    def plan(self, phase: int, epoch: int, *, evaluation: bool = False) -> Plan:
        """Open or write the plan of an epoch, of the held-out documents if `evaluation`. The plan
        that was open before on the same side is deleted."""
        key = (phase, epoch, evaluation)
        if key in self.plans:
            return self.plans[key]
        side = "held-out" if evaluation else "train"
        path = self.folder / f"{side}-{phase}-{epoch}"
        s = self.settings
        if (path / "plan.json").exists():  # of this run, before it was resumed
            plan = Plan(path)
        else:
            plan = plan_epoch(
                self.corpus,
                path,
                objective=s.objective.sentences,
                max_length=s.training.phases[phase].max_length,
                short_seq_prob=s.objective.short_seq_prob,
                vocabulary=self.vocabulary,
                seed=s.training.seed,
                epoch=epoch,
                held_out=s.text.held_out,
                evaluation=evaluation,
            )
        for old in [one for one in self.plans if one[2] == evaluation]:
            del self.plans[old]
            remove_plan(self.folder / f"{side}-{old[0]}-{old[1]}")
        self.plans[key] = plan
        return plan

    def train_batch(self, position: Position) -> tuple[Batch, Position]:
        """Read this process's part of the batch at a position. Returns it with the position of the
        next batch.

        Raises ValueError if the text is too short for one example per process.
        """
        size = self.batch_size(position.phase) * self.n_parts
        plan = self.plan(position.phase, position.epoch)
        if not len(plan):
            raise ValueError(
                "The text has no example to train on: every document is too short for a pair of "
                'segments. Add text, or set [objective] sentences = "doc-sentences".'
            )
        if len(plan) < self.n_parts:
            raise ValueError(
                f"The text has {len(plan)} examples, too few for {self.n_parts} processes. "
                "Add text, or start fewer."
            )
        begin, end = position.done, min(position.done + size, len(plan))
        seed = self.settings.training.seed
        places = np.array_split(np.arange(begin, end), self.n_parts)[self.rank]
        numbers = shuffled(places, len(plan), seed=seed, epoch=position.epoch)
        batch = self._make(plan, numbers, position.epoch)
        if end + size <= len(plan):
            return batch, dataclasses.replace(position, done=end)
        # The rest of the epoch would make a smaller batch, whose examples weigh more.
        return batch, Position(position.phase, position.epoch + 1)

    def held_out_batches(self, phase: int) -> list[Batch]:
        """Read this process's held-out batches, with the sequence length of the phase. They are the
        same at every call, masked in the same way."""
        plan = self.plan(phase, 0, evaluation=True)
        length = self.settings.training.phases[phase].max_length
        n = min(len(plan), max(self.settings.training.eval_pieces // length, 1))
        numbers = shuffled(np.arange(n), len(plan), seed=0, epoch=0)
        size = self.batch_size(phase)
        starts = range(0, n, size)[self.rank :: self.n_parts]
        return [self._make(plan, numbers[i : i + size], 0) for i in starts]

    def batch_size(self, phase: int) -> int:
        """Return the number of examples in a batch of one process."""
        t = self.settings.training
        return max(t.batch_pieces // t.phases[phase].max_length, 1)

    def _make(self, plan: Plan, numbers: Ints1d, epoch: int) -> Batch:
        return make_batch(
            self.corpus,
            plan,
            numbers,
            vocabulary=self.vocabulary,
            masking=self.settings.masking,
            seed=self.settings.training.seed,
            epoch=epoch,
        )


def remove_plan(folder: Path) -> None:
    """Delete a plan that is no longer needed."""
    # plan.json first, which marks the plan as complete: if this is interrupted, it is made again.
    (folder / "plan.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
