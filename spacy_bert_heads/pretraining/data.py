"""Read batches by position: the batch at any position of a run is read without earlier batches."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from ..files import find_damage, write_digests
from ..text.arrays import Ints1d
from .documents import Side, hold_out
from .examples import PAIRS, Batch, Plan, make_batch, plan_epoch
from .masking import Vocabulary
from .schedule import divide_steps
from .settings import Settings
from .store import Corpus


@dataclass(frozen=True)
class Position:
    """Hold how far the data has been read. Everything else follows from the settings."""

    phase: int = 0
    epoch: int = 0
    done: int = 0  # examples of the epoch that were read


class Data:
    """Create batches by position, in any order and from any thread. The only state is open files.

    `folder` stores the plans of the epochs; processes don't share it. A batch is the same for any
    number of processes: each of the `n_parts` processes reads part number `rank` of it. `num_steps`
    is passed for a resumed run; for a new one it follows from the settings. `held_out` is the
    user's own text for evaluation; without it, documents of the corpus are held out.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        settings: Settings,
        folder: Path,
        *,
        held_out: Corpus | None = None,
        rank: int = 0,
        n_parts: int = 1,
        num_steps: int | None = None,
    ) -> None:
        self.vocabulary, self.settings = vocabulary, settings
        n_documents, seed = len(corpus.documents) - 1, settings.training.seed
        share = settings.text.held_out if held_out is None else 0.0
        # A random next segment comes from another document, so each side needs two documents.
        least = 2 if settings.objective.sentences == "nsp" else 1
        chosen = hold_out(n_documents, share, seed=seed, least=least)
        self.train = Side(corpus, ~chosen)
        self.held_out = Side(corpus, chosen)
        if held_out is not None:
            self.held_out = Side(held_out, np.ones(len(held_out.documents) - 1, dtype=np.bool_))
        self.folder, self.rank, self.n_parts = folder, rank, n_parts
        self._plans: dict[tuple[str, int, int], Plan] = {}
        self._lock = Lock()
        self.num_steps = num_steps or settings.training.max_steps or self._count_steps()

    @property
    def fingerprint(self) -> str:
        """Return a string that identifies the texts."""
        return f"{self.train.corpus.fingerprint}-{self.held_out.corpus.fingerprint}"

    # --- how long the run is

    def _count_steps(self) -> int:
        """Count the steps of `max_epochs`. Phases get their shares of the steps, because batches of
        all phases have about the same number of wordpieces."""
        t = self.settings.training
        assert t.max_epochs is not None
        total = sum(phase.share for phase in t.phases)
        per_epoch = (self._batches(i) * phase.share / total for i, phase in enumerate(t.phases))
        return max(round(t.max_epochs * sum(per_epoch)), 1)

    def count_epochs(self) -> float:
        """Return how often the run reads the training documents; below 1, it doesn't read all."""
        steps = divide_steps(self.settings.training.phases, self.num_steps)
        return sum(n / self._batches(phase) for phase, n in enumerate(steps))

    def _batches(self, phase: int) -> int:
        return max(len(self.plan(phase, 0)) // self.batch_size(phase), 1)

    # --- plans

    def plan(self, phase: int, epoch: int, *, evaluation: bool = False) -> Plan:
        """Open the plan of an epoch (of the held-out documents if `evaluation`). If it is missing
        or damaged, it is created first."""
        key = ("held-out" if evaluation else "train", phase, epoch)
        with self._lock:
            if key not in self._plans:
                self._plans[key] = self._open(*key)
            return self._plans[key]

    def _open(self, side: str, phase: int, epoch: int) -> Plan:
        path = self.folder / f"{side}-{phase}-{epoch}"
        if not find_damage(path):  # of this run, before it was resumed
            return Plan(path)
        shutil.rmtree(path, ignore_errors=True)
        s = self.settings
        plan = plan_epoch(
            *(self.held_out if side == "held-out" else self.train),
            path,
            objective=s.objective.sentences,
            max_length=s.training.phases[phase].max_length,
            short_seq_prob=s.objective.short_seq_prob,
            vocabulary=self.vocabulary,
            seed=s.training.seed,
            epoch=epoch,
        )
        write_digests(path, (file.name for file in path.iterdir()))
        return plan

    def forget_before(self, position: Position) -> None:
        """Delete plans that are no longer needed, also those of an earlier start of the run."""
        for path in self.folder.glob("*-*-*"):
            side, phase, epoch = path.name.rsplit("-", 2)
            key = (int(phase), 0 if side == "held-out" else int(epoch))
            now = (position.phase, 0 if side == "held-out" else position.epoch)
            if key < now:
                with self._lock:
                    self._plans.pop((side, int(phase), int(epoch)), None)
                shutil.rmtree(path, ignore_errors=True)

    # --- batches

    def train_batch(self, position: Position, step: int) -> tuple[Batch, Position]:
        """Return this process's part of the batch at a position, and the position of the next
        batch.

        `step`, counted from 1, determines the masking rate. Raises ValueError if the text is too
        short for an example.
        """
        plan = self.plan(position.phase, position.epoch)
        if not len(plan):
            raise ValueError(
                "The text contains no training example: every document is too short for a pair of "
                'segments. Add text, or set [objective] sentences = "doc-sentences".'
            )
        size = self.batch_size(position.phase)
        begin, end = position.done, min(position.done + size, len(plan))
        numbers = np.array_split(plan.order[begin:end], self.n_parts)[self.rank]
        batch = self._make(self.train.corpus, plan, numbers, step)
        if end + size <= len(plan):
            return batch, dataclasses.replace(position, done=end)
        # The rest of the epoch is dropped: in a smaller batch, its examples would weigh more.
        return batch, Position(position.phase, position.epoch + 1)

    def held_out_batches(self, phase: int) -> list[Batch]:
        """Return this process's held-out batches, with the sequence length of the phase. They are
        the same at every call, with the masking rate of the last step."""
        t = self.settings.training
        length = t.phases[phase].max_length
        plan = self.plan(phase, 0, evaluation=True)
        n = min(len(plan), max(t.eval_tokens // length // self.num_reads, 1))
        numbers = plan.order[:n]
        size = max(t.max_batch_tokens // length // self.num_reads, 1)
        starts = range(0, n, size)[self.rank :: self.n_parts]
        corpus = self.held_out.corpus
        return [self._make(corpus, plan, numbers[i : i + size], self.num_steps) for i in starts]

    def batch_size(self, phase: int) -> int:
        """Return the number of examples per batch, over all processes. Both examples of a pair of
        segments are in the same batch."""
        t = self.settings.training
        per_pair = 2 if self.settings.objective.sentences in PAIRS else 1
        length = self.num_reads * t.phases[phase].max_length
        return max(t.batch_tokens // length // per_pair, 1) * per_pair

    @property
    def is_masked(self) -> bool:
        """Whether examples are read masked: also beside a decoder, if masked words have a
        weight."""
        return self.settings.objective.mlm_weight > 0 or not self.settings.denoising.kinds

    @property
    def num_reads(self) -> int:
        """The copies of an example in a batch: masked, damaged for a decoder, or both."""
        return self.is_masked + bool(self.settings.denoising.kinds)

    def _make(self, corpus: Corpus, plan: Plan, numbers: Ints1d, step: int) -> Batch:
        masking, noise = self.settings.masking, self.settings.denoising
        rate = masking.rate_at(step, self.num_steps)
        return make_batch(
            corpus,
            plan,
            numbers,
            vocabulary=self.vocabulary,
            masking=dataclasses.replace(masking, rate=rate) if self.is_masked else None,
            noise=noise if noise.kinds else None,
        )
