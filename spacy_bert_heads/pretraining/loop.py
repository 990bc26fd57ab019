"""The run: steps, reports, states to resume from, the best checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import spacy
import torch
from torch import nn

from ..encoder.shim import autocast_for, group_parameters
from ..files import check_folder, mark_folder
from .checkpoint import list_states, load_state, mend_folder, replace_folder, save_state
from .corpus import Corpus, prepare
from .examples import Batch, Plan, Vocabulary, make_batch, plan_epoch, shuffled
from .objectives import (
    Guess,
    Pretrainer,
    Totals,
    guess_masked,
    load_pretrainer,
    no_totals,
    save_pretrainer,
)
from .processes import Processes
from .reports import Report, Sample, draw_curves, open_logger, pick_samples
from .settings import Settings, Training, phase_at
from .start import make_start

# What may differ between a run and its continuation: where and how often, but not what.
FREE = (
    "paths.cache",
    "text.workers",
    "training.keep",
    "training.checkpoint_frequency",
    "training.logger",  # and its settings
)
N_SAMPLES, N_GUESSES = 3, 5


@dataclass(frozen=True)
class Position:
    """How far the data has been read. The rest follows from the settings."""

    phase: int = 0
    epoch: int = 0
    done: int = 0  # examples of the epoch


class Data:
    """Batches by position, in any order, with no state but open files.

    corpus (Corpus): The text.
    vocabulary (Vocabulary): The tokenizer.
    settings (Settings): The run's.
    folder (Path): For the epochs' plans.
    rank (int): Which part of each batch is this process's.
    n_parts (int): In how many parts a batch is read, by as many processes.
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
        """phase (int): The phase.
        epoch (int): The epoch.
        evaluation (bool): Whether of the held-out documents.
        RETURNS (Plan): The epoch's examples.
        """
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
        """position (Position): Where to read.
        RETURNS (Tuple[Batch, Position]): This process's part of the batch there, and where the
            next one begins.
        RAISES (ValueError): If the text is too short for a single example of each process.
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
        # What is left would make a smaller batch, of another weight.
        return batch, Position(position.phase, position.epoch + 1)

    def held_out_batches(self, phase: int) -> list[Batch]:
        """phase (int): The phase, which sets the length.
        RETURNS (List[Batch]): This process's; the same at every call, masked in the same way.
        """
        plan = self.plan(phase, 0, evaluation=True)
        length = self.settings.training.phases[phase].max_length
        n = min(len(plan), max(self.settings.training.eval_pieces // length, 1))
        numbers = shuffled(np.arange(n), len(plan), seed=0, epoch=0)
        size = self.batch_size(phase)
        starts = range(0, n, size)[self.rank :: self.n_parts]
        return [self._make(plan, numbers[i : i + size], 0) for i in starts]

    def batch_size(self, phase: int) -> int:
        """RETURNS (int): The examples of a batch, of each process."""
        t = self.settings.training
        return max(t.batch_pieces // t.phases[phase].max_length, 1)

    def _make(self, plan: Plan, numbers: np.ndarray, epoch: int) -> Batch:
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
    """folder (Path): Of a plan that is not needed any more."""
    # First what says that it is whole: if this is stopped in the middle, it is made again.
    (folder / "plan.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def pretrain(
    settings: Settings,
    output: Path,
    *,
    resume: bool = False,
    force: bool = False,
    gpu_id: int = -1,
    say: Callable[[str], None] = print,
    on_report: Callable[[Report], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Report | None:
    """Pretrain an encoder.

    settings (Settings): The run's settings.
    output (Path): Gets `log.jsonl`, `model-best`, `model-last` and the states to resume from. It
        must be new, empty, or the folder of a run.
    resume (bool): Go on from the newest state in the output, to the same end as without a break.
    force (bool): Start anew in any folder, and replace there what a run writes.
    gpu_id (int): The GPU, -1 for the CPU.
    say (Callable[[str], None]): Takes what is worth knowing.
    on_report (Optional[Callable[[Report], None]]): Called with every report.
    on_step (Optional[Callable[[int], None]]): Called after every step.
    RETURNS (Optional[Report]): The last report.
    RAISES (ValueError): If a setting makes no sense, or the run to resume has other settings.
    """
    processes = Processes(gpu_id)
    if not processes.is_first:
        say, on_report = (lambda text: None), None
    t = settings.training
    with processes.joined(), ThreadPoolExecutor(max_workers=1) as loader:
        run = begin(settings, output, processes, resume=resume, force=force, say=say)
        # Of several processes one speaks: each logger would begin a file or a run of its own.
        log = open_logger(settings) if processes.is_first else None

        def report() -> None:
            found = run.report()
            if log:
                log(found)
            if on_report:
                on_report(found)

        if run.last is None:
            report()
        coming = loader.submit(run.data.train_batch, run.position)
        while run.step < t.max_steps:
            batch, after = coming.result()
            run.advance(after)
            if run.step < t.max_steps:
                # The next batch is made while this one is learned.
                coming = loader.submit(run.data.train_batch, run.position)
            run.learn(batch)
            if on_step:
                on_step(run.step)
            if run.step % t.eval_frequency == 0 or run.step == t.max_steps:
                report()
            if run.step % t.checkpoint_frequency == 0 or run.step == t.max_steps:
                run.save_state(say)
        run.save("model-last")
        if log:
            log(None)
    return run.last


def begin(
    settings: Settings,
    output: Path,
    processes: Processes,
    *,
    resume: bool,
    force: bool,
    say: Callable[[str], None],
) -> Run:
    """Set up a run, from its newest state if it is resumed.

    settings (Settings): The run's settings.
    output (Path): The run's folder.
    processes (Processes): Those that share the run.
    resume (bool): Whether to go on.
    force (bool): Whether to start anew in any folder.
    say (Callable[[str], None]): Takes what is worth knowing.
    RETURNS (Run): The run.
    RAISES (ValueError): If a setting makes no sense, or the run to resume was another.
    """
    t = settings.training
    states = output / "states"
    state = None
    if resume:
        if processes.is_first:
            mend_folder(output / "model-best")
        processes.wait()
        state, faults = load_state(states)
        for fault in faults:
            say(f"{fault} Going back to the state before.")
        if state is None:
            say(f"There is nothing to resume in {output}: starting anew.")
        else:
            check_same(state["settings"], settings)
            check_processes(state["processes"], processes)
    elif not force and (list_states(states) or (output / "log.jsonl").exists()):
        raise ValueError(
            f"{output} holds a run already. Go on with it by --resume, name another folder, or "
            "give --force to start anew there."
        )
    check_folder(output, "pretrain", force=force or state is not None)
    processes.wait()  # nobody writes before all have looked

    start, plans = output / "start", output / "plans"
    if processes.is_first:
        mark_folder(output, "pretrain")
        if state is None:
            # What a run left that was stopped before its first state, or all of one by force.
            names = ("start", "plans", "states", *(("model-best", "model-last") if force else ()))
            for name in names:
                shutil.rmtree(output / name, ignore_errors=True)
            (output / "log.jsonl").unlink(missing_ok=True)
    encoder = processes.in_turn(lambda: make_start(settings, start, say=say))
    torch.manual_seed(t.seed)
    pretrainer = load_pretrainer(encoder, sentence_objective=settings.objective.sentences)
    if pretrainer.new_heads:
        say(f"{encoder} has no {', no '.join(pretrainer.new_heads)}: made anew.")
    max_length = max(phase.max_length for phase in t.phases)
    if max_length > pretrainer.bert.max_window:
        raise ValueError(
            f"max_length is {max_length}, but the encoder has positions for "
            f"{pretrainer.bert.max_window}. Shorten it in training.phases."
        )
    pretrainer.to(processes.device).eval()
    corpus = processes.in_turn(
        lambda: prepare(
            settings.paths.raw,
            Path(settings.paths.cache),
            wordpieces=pretrainer.bert.wordpieces,
            lang=settings.text.lang,
            sentences=spacy.load(settings.text.sentences) if settings.text.sentences else None,
            workers=settings.text.workers,
            progress=True,
        )
    )
    for line in corpus.report.lines():
        say(line)
    output.mkdir(parents=True, exist_ok=True)
    data = Data(
        corpus,
        pretrainer.vocabulary(),
        settings,
        plans / str(processes.rank),
        rank=processes.rank,
        n_parts=processes.size,
    )
    run = Run(pretrainer, data, output, processes)
    if processes.size > 1:
        torch.manual_seed(t.seed + processes.rank)  # not the same dropout everywhere
    if state is not None:
        run.restore(state)
        say(f"Going on after step {run.step} of {t.max_steps}.")
    too_short = data.plan(run.position.phase, run.position.epoch).skipped
    if too_short:
        say(
            f"Too short for a pair of segments, and not read: {too_short:,} of the "
            f"{corpus.report.documents:,} documents. [objective] sentences = "
            '"full-sentences" reads them.'
        )
    return run


class Run:
    """What changes from step to step.

    pretrainer (Pretrainer): The modules.
    data (Data): The batches.
    output (Path): The run's folder.
    processes (Processes): Those that share the run.
    """

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
        """after (Position): Where the batch that is learned now ends."""
        self.step += 1
        t = self.settings.training
        phase = phase_at(t.phases, self.step, t.max_steps)
        self.position = after if after.phase == phase else Position(phase)
        if after.phase != phase:
            # Held-out examples have another length now, so their loss is another measure.
            self.best = math.inf

    def learn(self, batch: Batch) -> None:
        """Take one step.

        batch (Batch): The batch.
        """
        s = self.settings
        counts = (len(batch.masked), (batch.labels >= 0).sum(), len(batch.sequences.ids))
        n_masked, n_pairs, n_tokens = map(int, self.processes.sum(counts))
        # Gradients are averaged over the processes, but each loss is a mean over all of them.
        scales = (
            s.objective.mlm_weight / max(n_masked, 1) * self.processes.size,
            s.objective.sentence_weight / max(n_pairs, 1) * self.processes.size,
        )
        rate = self.rate(self.step)
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

    def rate(self, step: int) -> float:
        """step (int): A step, the first is 1.
        RETURNS (float): Its learning rate: a linear rise, then a linear fall to 0 (BERT, A.2).
        """
        t = self.settings.training
        if t.warmup_steps and step <= t.warmup_steps:
            return t.learn_rate * step / t.warmup_steps
        return t.learn_rate * (t.max_steps - step) / max(t.max_steps - t.warmup_steps, 1)

    # --- reports

    def report(self) -> Report:
        """RETURNS (Report): What the steps since the last one came to, and what the held-out
        documents say; also written to the log. The best checkpoint of the phase so far is saved.
        """
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
            lr=self.rate(self.step),
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
        """Over all processes. It waits until the device has taken the steps."""
        return Totals(*self.processes.sum(totals.tolist()))

    def save(self, name: str) -> None:
        """name (str): The folder in the output for a checkpoint as Hugging Face has them."""
        if self.processes.is_first:
            new = self.output / f".new-{name}"
            save_pretrainer(self.pretrainer, new)
            replace_folder(new, self.output / name)

    # --- states

    def save_state(self, say: Callable[[str], None]) -> None:
        """Save what a resumed run needs, and draw the curves so far.

        say (Callable[[str], None]): Takes what is worth knowing.
        """
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
        """RETURNS (Dict[str, Any]): All that the steps to come depend on."""
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
        """state (Dict[str, Any]): What `state` gave.
        RAISES (ValueError): If the text is another now.
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
        """Take back what the log says of steps that will be taken again."""
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
    """pretrainer (Pretrainer): The modules.
    training (Training): The run's settings.
    RETURNS (AdamW): The optimizer, whose groups have "rate", by what the rate is multiplied.
    """
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


def check_same(before: dict[str, Any], settings: Settings) -> None:
    """Make sure that a run goes on as it began.

    before (Dict[str, Any]): The settings that it began with.
    settings (Settings): Those of now.
    RAISES (ValueError): If one differs that matters.
    """
    old, new = _flatten(before), _flatten(dataclasses.asdict(settings))
    for name in sorted(set(old) | set(new)):
        if not name.startswith(FREE) and old.get(name) != new.get(name):
            raise ValueError(
                f"The run began with {name} = {old.get(name)!r}; now it is {new.get(name)!r}. Put "
                "it back to resume, or start a new run in another folder."
            )


def check_processes(before: int, processes: Processes) -> None:
    """before (int): How many processes a run began with.
    processes (Processes): Those of now.
    RAISES (ValueError): If there are more or fewer: each step would read another batch.
    """
    if before != processes.size:
        raise ValueError(
            f"The run began with {before} processes; now there are {processes.size}. Each brings "
            "its part of a batch, so start as many, or start a new run in another folder."
        )


def _flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
