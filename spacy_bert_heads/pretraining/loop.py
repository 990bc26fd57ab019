"""The loop over steps, and how a run begins: anew, or from its newest training state."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import spacy
import torch

from ..files import check_folder, mark_folder
from .checkpoint import list_states, load_state, mend_folder
from .data import Data
from .objectives import load_pretrainer
from .prepare import prepare
from .processes import Processes
from .reports import Report, open_logger
from .run import Run
from .settings import Settings
from .start import make_start

# What may differ between a run and its continuation: where and how often, but not what.
FREE = (
    "paths.cache",
    "text.workers",
    "training.keep",
    "training.checkpoint_frequency",
    "training.logger",  # and its settings
)


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
    """Pretrain an encoder. Returns the last report.

    `output` gets `log.jsonl`, `model-best`, `model-last` and the training states. It must be new,
    empty, or the folder of a run. `resume` continues from the newest training state in `output`
    and ends with the same weights as a run without a break. `force` starts anew in any folder and
    replaces what a run writes there. `gpu_id` -1 is the CPU. `say` gets messages for the user,
    `on_report` every report, `on_step` the number of every finished step.

    Raises ValueError if a setting is invalid, or the run to resume has other settings.
    """
    processes = Processes(gpu_id)
    if not processes.is_first:
        say, on_report = (lambda text: None), None
    t = settings.training
    with processes.joined(), ThreadPoolExecutor(max_workers=1) as loader:
        run = begin(settings, output, processes, resume=resume, force=force, say=say)
        # Only in the first process: each logger would begin a file or a run of its own.
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
                # The next batch is made in the background during this step.
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
    """Set up a run, from its newest training state if it is resumed. The arguments are those of
    `pretrain`.

    Raises ValueError if a setting is invalid, or the run to resume has other settings, another
    text or another number of processes.
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
    processes.wait()  # no process writes before all have checked

    start, plans = output / "start", output / "plans"
    if processes.is_first:
        mark_folder(output, "pretrain")
        if state is None:
            # Left by a run that was stopped before its first state; with force, by any run.
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
    if max_length > pretrainer.encoder.checkpoint.max_window:
        raise ValueError(
            f"max_length is {max_length}, but the encoder has positions for "
            f"{pretrainer.encoder.checkpoint.max_window}. Shorten it in training.phases."
        )
    pretrainer.to(processes.device).eval()
    corpus = processes.in_turn(
        lambda: prepare(
            settings.paths.raw,
            Path(settings.paths.cache),
            wordpieces=pretrainer.encoder.checkpoint.tokenizer,
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
        torch.manual_seed(t.seed + processes.rank)  # other dropout in each process
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


def check_same(before: dict[str, Any], settings: Settings) -> None:
    """Check that a run is resumed with the settings that it began with. Raises ValueError if one
    differs that is not in `FREE`."""
    old, new = _flatten(before), _flatten(dataclasses.asdict(settings))
    for name in sorted(set(old) | set(new)):
        if not name.startswith(FREE) and old.get(name) != new.get(name):
            raise ValueError(
                f"The run began with {name} = {old.get(name)!r}; now it is {new.get(name)!r}. Put "
                "it back to resume, or start a new run in another folder."
            )


def check_processes(before: int, processes: Processes) -> None:
    """Check that a run is resumed by as many processes as it began with. Raises ValueError if not,
    because each step would read another batch."""
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
