"""Compare scores and speed of a pipeline's precisions on a data set, and store the best one."""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import spacy
from spacy.util import load_config
from wasabi import table

from .encoder.inference import sensible_precisions
from .encoder.model import shim_of
from .evaluate import (
    annotate,
    as_spacy,
    check_scores,
    find_encoders,
    format_score,
    load_pipeline,
    read_examples,
    score,
    set_precision,
    shown_scores,
    tokenizer_of,
)
from .files import replace_file
from .heads.declared import Score

BASE = "fp32"  # the precision that others are compared with
WARM_UP = 8  # Docs before each measurement: the first batch makes the inference copy
ARCHITECTURE = "spacy_bert_heads.BertEncoder.v1"


class Measured(NamedTuple):
    """The measurements of one precision on a data set."""

    scores: dict[str, Any]  # 0 to 1
    speeds: list[float]  # words per second, round by round

    @property
    def speed(self) -> float:
        """Words per second, the median."""
        return statistics.median(self.speeds)


def measure_precisions(
    model: str, data: Path, *, gpu_id: int = -1, lang: str | None = None, rounds: int = 3
) -> dict[str, Measured]:
    """Measure scores and speed of a pipeline in every precision that is sensible on this machine,
    "fp32" first.

    The precisions alternate for `rounds` rounds, so that other load of the machine affects all of
    them. Raises ValueError as `evaluate.evaluate` does.
    """
    if gpu_id >= 0:
        spacy.require_gpu(gpu_id)
    nlp = load_pipeline(model, precision=BASE, **({} if lang is None else tokenizer_of(lang)))
    precisions = sensible_precisions(shim_of(find_encoders(nlp)[0]).device)
    measured: dict[str, Measured] = {}
    with TemporaryDirectory() as folder:
        corpus = as_spacy(data, Path(folder), nlp, lang)
        for _ in range(rounds):
            for precision in precisions:
                set_precision(nlp, precision)
                examples = read_examples(nlp, corpus)
                list(nlp.pipe([one.predicted.copy() for one in examples[:WARM_UP]]))
                seconds = annotate(nlp, examples)
                if precision not in measured:
                    scores = score(nlp, examples)
                    check_scores(scores, nlp, model, data)
                    measured[precision] = Measured(scores, [])
                words = sum(len(example.predicted) for example in examples)
                measured[precision].speeds.append(words / seconds)
    return measured


def main_scores(measured: dict[str, Measured]) -> dict[str, Score]:
    """Return the scores by which precisions are compared: those with a weight in training by their
    heads' defaults, or all that are shown if there are none."""
    shown = shown_scores(measured[BASE].scores)
    return {name: one for name, one in shown.items() if one.weight} or shown


def choose(measured: dict[str, Measured], margin: float) -> str:
    """Choose the fastest precision with main scores at most `margin` points (hundredths) below
    those of fp32."""
    base = measured[BASE].scores

    def is_close(found: dict[str, Any]) -> bool:
        # Rounded, because 0.873 - 0.870 is more than 0.003.
        losses = [base[name] - found.get(name, 0.0) for name in main_scores(measured)]
        return all(round(100 * loss, 6) <= margin for loss in losses)

    close = [name for name, one in measured.items() if is_close(one.scores)]
    return max(close, key=lambda name: measured[name].speed)


def format_precisions(measured: dict[str, Measured]) -> str:
    """Make a table with a row for each precision: the main scores, words per second (the median and
    the range over rounds), and the speed relative to fp32."""
    titles = main_scores(measured)
    rows = [
        (
            name,
            *(format_score(one.scores.get(key), score) for key, score in titles.items()),
            f"{one.speed:,.0f}",
            f"{min(one.speeds):,.0f} to {max(one.speeds):,.0f}",
            f"{one.speed / measured[BASE].speed:.2f}",
        )
        for name, one in measured.items()
    ]
    header = ("", *(score.title for score in titles.values()), "words/s", "range", f"x {BASE}")
    aligns: list[Any] = ["l", *("r" for _ in header[1:])]
    return table(rows, header=header, divider=True, aligns=aligns).strip("\n")


def as_report(measured: dict[str, Measured]) -> dict[str, Any]:
    """Return all measurements as plain data, by precision."""
    return {
        name: {**one.scores, "speed": one.speed, "speeds": one.speeds}
        for name, one in measured.items()
    }


def check_storable(model: str) -> Path:
    """Return the folder of a pipeline whose config may be changed. Raises ValueError for an
    installed package, whose files pip manages."""
    if not (Path(model) / "config.cfg").is_file():
        raise ValueError(
            f"'{model}' is not a folder with a config.cfg, so the precision can't be stored in it. "
            f'Save it first: spacy.load("{model}").to_disk(FOLDER).'
        )
    return Path(model)


def store_precision(folder: Path, precision: str) -> None:
    """Set the precision of all BERT encoders in the config of a saved pipeline. The file is
    replaced atomically; weights and digests don't change. Raises ValueError if there is no encoder,
    OSError if the folder can't be written to."""
    path = folder / "config.cfg"
    config = load_config(path, interpolate=False)
    if not _set(config["components"], precision):
        raise ValueError(f"{path} has no {ARCHITECTURE}, so there is no precision to store.")
    replace_file(path, config.to_str(interpolate=False).encode("utf8"))


def _set(block: Any, precision: str) -> int:
    """Set the precision of all encoders in a block of a config, and return their number. Heads have
    encoders of their own after `replace_listeners`."""
    if not isinstance(block, dict):
        return 0
    count = sum(_set(value, precision) for value in block.values())
    if block.get("@architectures") == ARCHITECTURE:
        block["precision"] = precision
        count += 1
    return count
