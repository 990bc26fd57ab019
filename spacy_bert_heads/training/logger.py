"""The training log in the terminal, with distinct headings."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from spacy.language import Language
from spacy.training.loggers import console_logger_v3

from ..encoder.component import BertEncoder

Log = Callable[[dict[str, Any] | None], None]
Setup = Callable[[Language, IO[str], IO[str]], tuple[Log, Callable[[], None]]]


def make_console_logger(output_file: str | Path | None = None) -> Setup:
    """Create a logger that prints a line for each evaluation, as `spacy.ConsoleLogger.v3` does.

    spaCy's logger cuts headings at 13 characters, so that the losses of `bert_textcat` and
    `bert_tagger` have the same heading. Here headings have the full names of components, without
    `bert_`, and that of an encoder says that the number is the norm of its gradient, not a loss.
    Scores are in percent.

    output_file (Optional[Union[str, Path]]): A file for the same data as JSON Lines; None for no
        file. An existing file is not changed.
    """
    file_logger = console_logger_v3(console_output=False, output_file=output_file)

    def setup(
        nlp: Language, stdout: IO[str] = sys.stdout, stderr: IO[str] = sys.stderr
    ) -> tuple[Log, Callable[[], None]]:
        log_to_file, finish = file_logger(nlp, stdout, stderr)
        pipes = [name for name, pipe in nlp.pipeline if getattr(pipe, "is_trainable", False)]
        weights = nlp.config["training"]["score_weights"]
        scores = [name for name, weight in weights.items() if weight is not None]
        headings = ["E", "#", *name_losses(nlp, pipes), *map(str.upper, scores), "SCORE"]
        widths = [3, 6, *(max(len(one), 6) for one in headings[2:])]

        def write(cells: Sequence[str]) -> None:
            line = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            print(line, file=stdout, flush=True)

        warm_up = describe_warm_up(nlp.config["training"]["optimizer"])
        if warm_up:
            print(warm_up, file=stdout)
        write(headings)
        write(["-" * width for width in widths])

        def log(info: dict[str, Any] | None) -> None:
            log_to_file(info)
            if info is None:
                return
            losses = [f"{float(info['losses'][pipe]):.2f}" for pipe in pipes]
            found = [float(info["other_scores"].get(name, 0.0)) for name in scores]
            shown = [
                f"{value if name == 'speed' else 100 * value:.2f}"
                for name, value in zip(scores, found, strict=True)
            ]
            place = [str(info["epoch"]), str(info["step"])]
            write([*place, *losses, *shown, f"{float(info['score']):.2f}"])

        return log, finish

    return setup


def name_losses(nlp: Language, pipes: Sequence[str]) -> list[str]:
    """Return the heading of each component that is trained. They are distinct."""
    short = [name.removeprefix("bert_") for name in pipes]
    twice = {name for name, count in Counter(short).items() if count > 1}
    whole = [name if one in twice else one for name, one in zip(pipes, short, strict=True)]
    kinds = ["GRAD" if isinstance(nlp.get_pipe(name), BertEncoder) else "LOSS" for name in pipes]
    return [f"{kind} {name.upper()}" for kind, name in zip(kinds, whole, strict=True)]


def describe_warm_up(optimizer: Mapping[str, Any]) -> str:
    """Describe the warm-up, because spaCy prints an initial learning rate of 0.0. Empty for a
    schedule without `warmup_steps`."""
    schedule = optimizer.get("learn_rate")
    if not isinstance(schedule, Mapping) or not schedule.get("warmup_steps"):
        return ""
    rate, steps = schedule.get("initial_rate"), schedule["warmup_steps"]
    return f"The learning rate rises from 0 to {rate} in {steps} steps (warm-up)."
