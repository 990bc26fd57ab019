"""spaCy's training loop with several processes and with training states to resume from."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import numpy as np
from spacy.language import Language
from spacy.schemas import ConfigSchemaTraining
from spacy.training.initialize import init_nlp
from spacy.training.loop import (
    create_before_to_disk_callback,
    create_evaluation_callback,
    update_meta,
)
from spacy.util import load_model, registry, resolve_dot_names
from thinc.api import Config, constant, fix_random_seed, require_gpu, set_gpu_allocator

from ..encoder.step import MeanLoss
from ..files import check_folder, mark_folder, read_mark
from ..runs.guard import Signals, lock_folder
from ..runs.processes import Processes
from ..runs.states import (
    MODELS,
    find_state,
    flatten,
    list_states,
    remove_leftovers,
    replace_folder,
    save_state,
)
from .batches import Batches
from .state import (
    FORMAT,
    FREE,
    PIPELINE,
    optimizer_state,
    pack_losses,
    restore_optimizer,
    unpack_losses,
)
from .update import Updater

Log = Callable[[dict[str, Any] | None], None]
BeginWith = Callable[[Language, bool], None]


def train(
    config: Config,
    output: Path,
    *,
    resume: bool = False,
    force: bool = False,
    gpu_id: int = -1,
    begin_with: BeginWith = lambda nlp, is_resumed: None,
    stdout: IO[str] = sys.stdout,
    stderr: IO[str] = sys.stderr,
) -> Language:
    """Train a pipeline as `spacy train` does, and return it.

    At each evaluation `model-best`, `model-last` and a training state are written to `output`.
    `resume` continues from the newest state and ends with the same weights as an uninterrupted run,
    bitwise equal on a CPU. `force` starts again in a folder that has a run.

    Under torchrun each process has a part of every batch, and together they take the same steps as
    one process would. The first one evaluates and writes.

    The random numbers of an update (dropout, samples of windows) depend on the seed, the step and
    the process. The order of the examples is spaCy's.

    `begin_with` is called before the first step, with the pipeline and whether it is resumed.

    At SIGTERM or Ctrl-C the run finishes its step, saves a state and raises `SystemExit(143)` or
    KeyboardInterrupt.

    Raises ValueError if a setting is invalid, the run to resume has other settings, or the pipeline
    can't be trained by several processes; BlockingIOError if another run uses the folder;
    FloatingPointError if a loss is not finite, before anything is saved; ConnectionError if another
    process of the run has ended.
    """
    check_settings(config)
    processes = Processes(gpu_id)
    if gpu_id >= 0:
        require_gpu(processes.gpu_id)
    with ExitStack() as stack:
        stack.enter_context(processes.joined())
        if processes.is_first:
            check_folder(output, "train", force=force or bool(list_states(output / "states")))
            stack.enter_context(lock_folder(output))

        def say(text: str) -> None:
            if processes.is_first:
                print(text, file=stdout, flush=True)

        run = begin(
            config, output, processes, resume=resume, force=force, begin_with=begin_with, say=say
        )
        signals = stack.enter_context(Signals(alone=processes.size == 1))
        log = stack.enter_context(run.logger(stdout, stderr))
        for info in run.steps():
            stop = processes.sum([signals.received is not None])[0] > 0
            if info is not None or stop:
                run.save(info, log)
            else:
                log(None)
            if stop and not run.is_done:
                say(f"Stopped after step {run.step}, which is saved. Continue with --resume.")
                processes.wait()  # torchrun ends the others as soon as one has ended
                signals.end()
        run.save_pipeline()
        say(f"Saved pipeline to output directory: {output / 'model-last'}")
    return run.nlp


def check_settings(config: Config) -> None:
    """Raise ValueError if [training] has an unknown setting, which spaCy ignores."""
    schema: Any = ConfigSchemaTraining
    known = getattr(schema, "model_fields", None) or schema.__fields__  # pydantic 2, or 1
    for key in config.get("training", {}):
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"[training] has no setting '{key}'.{hint} It has {', '.join(sorted(known))}."
            )


def begin(
    config: Config,
    output: Path,
    processes: Processes,
    *,
    resume: bool,
    force: bool,
    begin_with: BeginWith,
    say: Callable[[str], None],
) -> Run:
    """Set up a run, from its newest training state with `resume`. The arguments are those of
    `train`."""
    given, found = config.interpolate(), None
    if resume:
        free = (*FREE, *following(config, FREE))
        found = find_state(output, given, format=FORMAT, free=free, say=say)
    if found is None and not force:
        check_empty(output, resume=resume)
    processes.wait()  # no process writes before all have checked the folder
    if processes.is_first:
        if read_mark(output).get("command") != "train":
            mark_folder(output, "train")
        remove_leftovers(output, processes.size)
    if found is None:
        # The first process may download the checkpoint; the others then find it.
        nlp = processes.in_turn(lambda: init_nlp(config, use_gpu=processes.gpu_id))
        begin_with(nlp, False)
        run = Run(nlp, given, output, processes)
        if processes.is_first:  # only now, when nothing in the config can fail any more
            shutil.rmtree(output / "states", ignore_errors=True)
            mark_folder(output, "train")  # no state any more
        return run
    path, state = found
    nlp = load_model(path / PIPELINE)
    nlp.config = nlp.config.merge(config)
    resolved = registry.resolve({"after_init": given["initialize"].get("after_init")})
    if getattr(resolved["after_init"], "is_of_run", False):
        resolved["after_init"](nlp)
    begin_with(nlp, True)
    run = Run(nlp, given, output, processes)
    run.restore(state)
    say(f"Continuing after step {run.step}.")
    return run


def check_empty(output: Path, *, resume: bool) -> None:
    """Raise ValueError if a new run would replace the models of another one. With `resume` these
    may be of a run that was killed before it had saved its first state."""
    if resume and read_mark(output).get("has_state"):
        raise ValueError(
            f"The training states of the run in {output} are gone, so it can't be resumed. Set "
            "another folder, or give --force, without --resume, to start again there."
        )
    if not resume and any((output / name).exists() for name in ("states", *MODELS)):
        raise ValueError(
            f"{output} has a run already. Continue it with --resume, set another folder, or give "
            "--force to start again there."
        )


def following(config: Config, free: tuple[str, ...]) -> list[str]:
    """Return the settings whose values are those of settings that may change."""
    return [
        key
        for key, value in flatten(config).items()
        if isinstance(value, str) and value.removeprefix("${").startswith(free) and "${" in value
    ]


class Run:
    """A training run: the pipeline, its optimizer and its progress."""

    def __init__(
        self, nlp: Language, given: dict[str, Any], output: Path, processes: Processes
    ) -> None:
        self.nlp, self.given, self.output, self.processes = nlp, given, output, processes
        config = nlp.config.interpolate()
        seed = config["training"]["seed"]
        self.seed = processes.tell(lambda: np.random.randint(2**31) if seed is None else seed)
        fix_random_seed(self.seed)
        allocator = config["training"]["gpu_allocator"]
        if processes.gpu_id >= 0 and allocator:
            set_gpu_allocator(allocator)
        t = self.settings = registry.resolve(config["training"], schema=ConfigSchemaTraining)
        train_corpus, dev_corpus = resolve_dot_names(config, [t["train_corpus"], t["dev_corpus"]])
        self.batches = Batches(nlp, train_corpus, t["batcher"], t["max_epochs"])
        self.evaluate = create_evaluation_callback(nlp, dev_corpus, t["score_weights"])
        self.optimizer = t["optimizer"]
        self.updater = Updater(
            nlp,
            self.optimizer,
            processes,
            exclude=t["frozen_components"],
            annotates=t["annotating_components"],
            accumulate_gradient=t["accumulate_gradient"],
        )
        is_number = isinstance(t["dropout"], float)
        self.dropouts: Iterator[float] = iter(constant(t["dropout"]) if is_number else t["dropout"])
        self.step = -1  # the last step that was taken; spaCy counts from 0
        self.results: list[tuple[float, int]] = []  # score and step
        self.losses: dict[str, float] = {}
        self.words, self.seconds = 0, 0.0
        self.before_to_disk = create_before_to_disk_callback(t["before_to_disk"])

    @property
    def is_done(self) -> bool:
        """Whether `max_steps` were taken, or the score has not improved for `patience` steps."""
        t = self.settings
        best = max(self.results, key=lambda one: (one[0], -one[1]), default=(0.0, self.step))
        waited = self.step - best[1]
        return bool(
            (t["patience"] and waited >= t["patience"])
            or (t["max_steps"] and self.step >= t["max_steps"])
        )

    def steps(self) -> Iterator[dict[str, Any] | None]:
        """Take one step at a time. Yields the logger's argument after an evaluation, else None."""
        if self.step >= 0 and self.is_done:
            return
        t, begun = self.settings, time.perf_counter() - self.seconds
        for epoch, batch in self.batches:
            self.step += 1
            if t["before_update"]:
                t["before_update"](self.nlp, {"step": self.step, "epoch": epoch})
            numbers = np.random.SeedSequence([self.seed, self.step, self.processes.rank])
            fix_random_seed(int(numbers.generate_state(1)[0]))
            self.losses = self.updater(batch, dropout=next(self.dropouts), losses=self.losses)
            self.optimizer.step_schedules()
            self.words += sum(len(eg) for eg in batch)
            self.seconds = time.perf_counter() - begun
            if self.step % t["eval_frequency"]:
                yield None
            else:
                yield self._evaluate(epoch)
                self.losses = {}
            if self.is_done:
                return

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        """Score the development data. Raises FloatingPointError if a loss is not finite."""
        losses = mean_losses(self.losses, self.processes)
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"The loss of {name} is {loss} at step {self.step}, so nothing is saved. Lower "
                    "the learning rate (training.optimizer.learn_rate.initial_rate) or check the "
                    'data with `bert debug-data`; instead of precision "fp16", use "bf16". '
                    "--resume continues from the last evaluation."
                )

        def score() -> tuple[float, dict[str, Any]]:
            with self.nlp.use_params(self.optimizer.averages or {}):
                return self.evaluate()

        score_, others = self.processes.tell(score)
        self.results.append((float(score_), self.step))
        return {
            "epoch": epoch,
            "step": self.step,
            "score": score_,
            "other_scores": others,
            "losses": losses,
            "checkpoints": self.results,
            "seconds": int(self.seconds),
            "words": self.words,
        }

    @contextmanager
    def logger(self, stdout: IO[str], stderr: IO[str]) -> Iterator[Log]:
        """Open the logger of the config, in the first process only."""
        if not self.processes.is_first:
            yield lambda info: None
            return
        with self.nlp.select_pipes(disable=self.updater.exclude):
            log, end = self.settings["logger"](self.nlp, stdout, stderr)
        try:
            yield log
        finally:
            end()

    # --- files

    def save(self, info: dict[str, Any] | None, log: Log) -> None:
        """Save a training state; after an evaluation also the pipeline, and as `model-best` if its
        score is the best."""
        if info is not None:
            with self.nlp.select_pipes(disable=self.updater.exclude):
                update_meta(self.settings, self.nlp, info)
            is_best = info["score"] == max(self.results)[0]
            self.save_pipeline(is_best=is_best)
            info["output_path"] = str(self.output / "model-last")
            log(info)
        if self.processes.is_first:
            losses = {} if info is not None else self.losses
            state = {
                "format": FORMAT,
                "settings": flatten(self.given),
                "seed": self.seed,
                "step": self.step,
                "place": self.batches.place(),
                "results": [list(result) for result in self.results],
                "losses": pack_losses(losses),
                "words": self.words,
                "seconds": self.seconds,
                "accumulate_gradient": self.updater.accumulate_gradient,
                "optimizer": optimizer_state(self.nlp, self.optimizer),
            }

            def write(folder: Path) -> None:
                self.nlp.to_disk(folder / PIPELINE)

            save_state(self.output / "states", self.step, state, keep=1, write=write)
            mark_folder(self.output, "train", has_state=True)

    def save_pipeline(self, *, is_best: bool = False) -> None:
        """Save the pipeline as `model-last`, and with `is_best` as `model-best`, each folder
        atomically."""
        if not self.processes.is_first:
            return
        new = self.output / ".new-model"
        shutil.rmtree(new, ignore_errors=True)
        with self.nlp.use_params(self.optimizer.averages or {}):
            self.before_to_disk(self.nlp).to_disk(new)
        if is_best:
            best = self.output / ".new-model-best"
            shutil.rmtree(best, ignore_errors=True)
            shutil.copytree(new, best)
            replace_folder(best, self.output / "model-best")
        replace_folder(new, self.output / "model-last")

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state that `save` wrote. Raises ValueError if the texts have changed."""
        self.batches.go_to(state["place"])
        self.seed, self.step = state["seed"], state["step"]
        self.results = [(score, step) for score, step in state["results"]]
        self.losses = unpack_losses(state["losses"])
        self.words, self.seconds = state["words"], state["seconds"]
        self.updater.accumulate_gradient = state["accumulate_gradient"]
        restore_optimizer(self.nlp, self.optimizer, state["optimizer"])
        for _ in range(self.step + 1):
            self.optimizer.step_schedules()
            next(self.dropouts)


def mean_losses(losses: dict[str, float], processes: Processes) -> dict[str, float]:
    """Return the mean losses over the updates of all processes."""
    names = sorted(losses)
    counts = [getattr(losses[name], "count", 0) for name in names]
    sums = [losses[name] * (count or 1) for name, count in zip(names, counts, strict=True)]
    totals = processes.sum([*sums, *counts])
    return {
        name: MeanLoss(total / count, int(count)) if count else total
        for name, total, count in zip(names, totals, totals[len(names) :], strict=False)
    }
