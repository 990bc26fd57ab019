"""Run the pretraining loop, from the first step or from the newest training state."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ..files import check_folder, mark_folder
from ..runs.guard import Signals, lock_folder
from ..runs.processes import Processes
from ..runs.states import MODELS, find_state, list_states, remove_leftovers
from .data import Data
from .denoising import add_decoder
from .objectives import load_pretrainer
from .reports import Report, open_logger, repair_log
from .run import FORMAT, Run
from .settings import Paths, Settings
from .start import make_start, prepare_texts

# Settings that may change when a run is resumed. The text may have moved: its content is compared.
FREE = (
    "paths.raw",
    "paths.held_out",
    "paths.cache",
    "corpora",
    "text.workers",
    "training.max_batch_tokens",
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
    """Pretrain an encoder, and return the last report.

    `log.jsonl`, `model-best`, `model-last` and the training states are written to `output`, which
    must be new, empty, or the folder of a run. With `resume`, the run continues from the newest
    training state and ends with the same weights as an uninterrupted run. With `force`, a new run
    starts in any folder and overwrites the files of an earlier one. `gpu_id` -1 is the CPU. `say`
    receives messages for the user, `on_report` every report, `on_step` the number of every finished
    step.

    On SIGTERM or Ctrl-C the run finishes its step, saves a training state and raises
    `SystemExit(143)` or KeyboardInterrupt; a second Ctrl-C stops it at once.

    Raises ValueError if a setting is invalid, or the resumed run has other settings;
    BlockingIOError if another run uses the folder; FloatingPointError if a loss is infinite or NaN.
    """
    processes = Processes(gpu_id)
    if not processes.is_first:
        say, on_report = (lambda text: None), None
    t = settings.training
    with ExitStack() as stack:
        stack.enter_context(processes.joined())
        if processes.is_first:
            check_folder(output, "pretrain", force=force or bool(list_states(output / "states")))
            stack.enter_context(lock_folder(output))
        state = find_start(settings, output, resume=resume, force=force, say=say)
        processes.wait()  # no process writes before all have checked
        run = begin(settings, output, processes, state, force=force, say=say)
        # Only in the first process: each logger would start its own file or run.
        log = open_logger(settings) if processes.is_first else None
        signals = stack.enter_context(Signals(alone=processes.size == 1))
        loader = stack.enter_context(ThreadPoolExecutor(max_workers=1))

        def report() -> None:
            found = run.report()
            if log:
                log(found)
            if on_report:
                on_report(found)

        if run.last is None:
            report()
        coming = loader.submit(run.data.train_batch, run.position, run.step + 1)
        while not run.is_done:
            batch, after = coming.result()
            run.advance(after)
            if not run.is_done:
                # The next batch is created in the background during this step.
                coming = loader.submit(run.data.train_batch, run.position, run.step + 1)
            stop = run.learn(batch, stop=signals.received is not None)
            if on_step:
                on_step(run.step)
            if run.step % t.eval_frequency == 0 or run.is_done:
                report()
            if run.step % t.checkpoint_frequency == 0 or run.is_done or stop:
                run.save_state(say)
            if stop and not run.is_done:
                say(
                    f"Stopped after step {run.step}; the training state is saved. Continue with "
                    "--resume."
                )
                processes.wait()  # torchrun ends the others as soon as one has ended
                signals.end()
        run.save("model-last")
        if log:
            log(None)
    return run.last


def begin(
    settings: Settings,
    output: Path,
    processes: Processes,
    state: dict[str, Any] | None,
    *,
    force: bool,
    say: Callable[[str], None],
) -> Run:
    """Set up a run, from the training state if there is one. Raises ValueError if a setting is
    invalid, or the training state belongs to another text."""
    start, plans, log = output / "start", output / "plans", output / "log.jsonl"
    if processes.is_first:
        mark_folder(output, "pretrain")
        remove_leftovers(output, processes.size)
        if state is None:
            # Left by a run that stopped before its first training state; with force, by any run.
            names = ("start", "plans", "states", *(MODELS if force else ()))
            for name in names:
                shutil.rmtree(output / name, ignore_errors=True)
            log.unlink(missing_ok=True)
    encoder = processes.in_turn(lambda: make_start(settings, start, say=say))
    torch.manual_seed(settings.training.seed)
    o = settings.objective
    pretrainer = load_pretrainer(
        encoder, sentence_objective=o.sentences, has_masks=o.mlm_weight > 0
    )
    d = settings.denoising
    if d.kinds:
        add_decoder(pretrainer, encoder, d.decoder, d.num_layers)
    if pretrainer.new_heads:
        say(f"{encoder} has no {', no '.join(pretrainer.new_heads)}: initialised randomly.")
    max_length = max(phase.max_length for phase in settings.training.phases)
    if max_length > pretrainer.encoder.checkpoint.max_window:
        raise ValueError(
            f"max_length is {max_length}, but the encoder has positions for "
            f"{pretrainer.encoder.checkpoint.max_window}. Reduce it in training.phases."
        )
    pretrainer.to(processes.device).eval()
    wordpieces = pretrainer.encoder.checkpoint.tokenizer
    corpus, held_out = processes.in_turn(lambda: prepare_texts(settings, wordpieces))
    for line in corpus.report.lines():
        say(line)
    if held_out is not None:
        say(f"Held out: {held_out.report.lines()[0]}")
    data = Data(
        corpus,
        pretrainer.vocabulary(),
        settings,
        plans / str(processes.rank),
        held_out=held_out,
        rank=processes.rank,
        n_parts=processes.size,
        num_steps=None if state is None else state["num_steps"],
    )
    run = Run(pretrainer, data, output, processes)
    if state is not None:
        run.restore(state)
        if processes.is_first:
            repair_log(log, run.step, say)
        say(f"Continuing after step {run.step:,} of {data.num_steps:,}.")
    else:
        epochs = data.count_epochs()
        read = f"{epochs:.2g} of the corpus" if epochs < 1 else f"the corpus {epochs:.1f} times"
        say(f"Steps: {data.num_steps:,}. The run reads {read}.")
    if not data.held_out.chosen.any() and settings.text.held_out:
        say(
            "Warning: there are too few documents to hold one out, so the encoder is not evaluated "
            "on other text. Set some in paths.held_out."
        )
    elif data.held_out.chosen.any() and not len(data.plan(0, 0, evaluation=True)):
        say(
            "Warning: all held-out documents are too short for a pair of segments, so the encoder "
            'is not evaluated. Set [objective] sentences = "full-sentences", or other texts in '
            "paths.held_out."
        )
    data.forget_before(run.position)
    too_short = data.plan(run.position.phase, run.position.epoch).skipped
    if too_short:
        say(
            f"Skipped, too short for a pair of segments: {too_short:,} of the "
            f"{corpus.report.documents:,} documents. To read them, set [objective] sentences = "
            '"full-sentences".'
        )
    return run


def find_start(
    settings: Settings,
    output: Path,
    *,
    resume: bool,
    force: bool,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Return the training state to continue from, None for a new run. Raises ValueError if the
    folder has a run but neither `resume` nor `force` is set, or if it can't be resumed with these
    settings."""
    if resume:
        now = dataclasses.asdict(settings)
        defaults = dataclasses.asdict(Settings(Paths(["-"], None)))
        found = find_state(output, now, format=FORMAT, free=FREE, say=say, defaults=defaults)
        return None if found is None else found[1]
    if not force and (list_states(output / "states") or (output / "log.jsonl").exists()):
        raise ValueError(
            f"{output} already contains a run. Continue it with --resume, choose another folder, "
            "or add --force to start a new run there."
        )
    return None
