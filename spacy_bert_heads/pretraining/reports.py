"""Report a run to the user: a table, example sentences, curves, spaCy's loggers."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import sys
import time
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import spacy
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from spacy.util import registry
from thinc.api import Config

from ..files import replace_file
from ..text.arrays import Ints1d
from .documents import Side
from .masking import Vocabulary
from .settings import Settings
from .store import Corpus

SCORES = (
    "held_out_mlm_loss",
    "held_out_perplexity",
    "held_out_mlm_accuracy",
    "held_out_nsp_loss",
    "held_out_nsp_accuracy",
    "held_out_denoising_loss",
    "held_out_denoising_accuracy",
)
LENGTHS = range(8, 41)  # wordpieces of a sentence that can be read at a glance
MAX_DOCUMENTS = 10_000  # documents that are searched for such sentences
BLUE, ORANGE, GREEN = "#1f5fa8", "#d0641e", "#2b7a4b"
# Curves by panel: label, colour, and line (solid for held-out text, dotted for training).
PANELS = {
    "loss in nats": {
        "held_out_mlm_loss": ("masked pieces, held out", BLUE, "-"),
        "mlm_loss": ("masked pieces, training", BLUE, ":"),
        "held_out_nsp_loss": ("pairs, held out", ORANGE, "-"),
        "nsp_loss": ("pairs, training", ORANGE, ":"),
        "held_out_denoising_loss": ("restored pieces, held out", GREEN, "-"),
        "denoising_loss": ("restored pieces, training", GREEN, ":"),
    },
    "share right": {
        "held_out_mlm_accuracy": ("masked pieces, held out", BLUE, "-"),
        "held_out_nsp_accuracy": ("pairs, held out", ORANGE, "-"),
        "held_out_denoising_accuracy": ("restored pieces, held out", GREEN, "-"),
    },
}


@dataclass(config=ConfigDict(allow_inf_nan=False))
class Report:
    """Hold one line of the log. The first one is about the unadapted encoder."""

    step: int
    loss: float | None  # None before the first step
    mlm_loss: float | None
    nsp_loss: float | None  # of the sentence objective, whichever it is
    held_out_mlm_loss: float | None  # None without held-out documents
    held_out_perplexity: float | None
    held_out_mlm_accuracy: float | None
    held_out_nsp_loss: float | None
    held_out_nsp_accuracy: float | None
    lr: float
    epoch: int
    tokens: int  # wordpieces read so far, special tokens included, padding not
    tokens_per_second: float | None
    samples: list[dict[str, Any]]  # text, masked word, predictions with probabilities
    # None without a decoder.
    denoising_loss: float | None = None
    held_out_denoising_loss: float | None = None
    held_out_denoising_accuracy: float | None = None


READER = TypeAdapter(Report)

COLUMNS = (
    f"{'step':>8} {'loss':>7} {'MLM':>7} {'pairs':>7} │ {'MLM':>7} {'perpl.':>9} {'acc.':>6} "
    f"{'pairs':>6} │ {'pieces/s':>9}"
)


def format_row(report: Report) -> str:
    """Format a report as a row below `COLUMNS` (training data, held-out documents, speed), followed
    by the figures of a decoder, and by sentences with a masked word and the encoder's
    predictions."""

    def show(value: float | None, form: str) -> str:
        width = int(form.partition(".")[0].rstrip(",") or 0)
        return f"{'–':>{width}}" if value is None else f"{value:{form}}"

    r = report
    row = (
        f"{r.step:8,} {show(r.loss, '7.3f')} {show(r.mlm_loss, '7.3f')} "
        f"{show(r.nsp_loss, '7.3f')} │ {show(r.held_out_mlm_loss, '7.3f')} "
        f"{show(r.held_out_perplexity, '9.1f')} {show(r.held_out_mlm_accuracy, '6.3f')} "
        f"{show(r.held_out_nsp_accuracy, '6.3f')} │ {show(r.tokens_per_second, '9,.0f')}"
    )
    if r.held_out_denoising_loss is not None or r.denoising_loss is not None:
        row += (
            f"\n{'':8} decoder: loss {show(r.denoising_loss, '.3f')}, held out "
            f"{show(r.held_out_denoising_loss, '.3f')}, accuracy "
            f"{show(r.held_out_denoising_accuracy, '.3f')}"
        )
    for sample in r.samples:
        guesses = " · ".join(f"{text} {score:.2f}" for text, score in sample["guesses"])
        row += f"\n{'':8} {sample['text']}\n{'':8} {sample['word']}: {guesses}"
    return row


# --- sentences with a masked word


class Sample(NamedTuple):
    """Hold a sentence with one masked word."""

    text: str
    word: str  # the masked word
    ids: Ints1d  # (n_pieces,) masked, with special tokens
    masked: Ints1d  # (1,) the masked position


def pick_samples(side: Side, vocabulary: Vocabulary, *, n: int) -> list[Sample]:
    """Return at most `n` sentences from different documents, the same at every call. In each, the
    longest word that is one wordpiece is masked, because long words carry the content."""
    corpus = side.corpus
    samples: list[Sample] = []
    for document in np.flatnonzero(side.chosen[:MAX_DOCUMENTS]):
        first, behind = corpus.documents[document : document + 2]
        bounds = corpus.sentences[first : behind + 1].tolist()
        found = (_mask_longest(corpus, vocabulary, *ends) for ends in pairwise(bounds))
        samples += islice((one for one in found if one is not None), 1)
        if len(samples) == n:
            break
    return samples


def _mask_longest(corpus: Corpus, vocabulary: Vocabulary, start: int, end: int) -> Sample | None:
    if end - start not in LENGTHS:
        return None
    wordpieces = vocabulary.tokenizer
    tokenizer = wordpieces.tokenizer
    ids = corpus.pieces[start:end].astype(np.int64)
    begins = np.append(corpus.words[start:end], True)
    whole = np.flatnonzero(begins[:-1] & begins[1:])
    words = {place: tokenizer.decode([int(ids[place])]).strip() for place in whole.tolist()}
    words = {place: word for place, word in words.items() if word.isalpha()}
    if not words:
        return None
    place = max(words, key=lambda place: len(words[place]))
    ids[place] = vocabulary.mask_id
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    return Sample(
        text,
        words[place],
        np.concatenate([wordpieces.prefix, ids, wordpieces.suffix]),
        np.asarray([len(wordpieces.prefix) + place]),
    )


# --- the log


def log_report(log: Path, report: Report) -> None:
    """Append a report to the log in one write, so that the log always consists of complete JSON
    lines. Raises OSError if the disk is full."""
    line = json.dumps(dataclasses.asdict(report), allow_nan=False).encode("utf8") + b"\n"
    with log.open("ab", buffering=0) as file_:
        size = file_.tell()
        if file_.write(line) != len(line):
            file_.truncate(size)
            raise OSError(errno.ENOSPC, "The disk is full", str(log))


def repair_log(log: Path, step: int, say: Callable[[str], None]) -> None:
    """Remove the reports after `step`, because these steps will be repeated. If the log has lines
    that are not reports, it is first copied to another file; `say` receives a message about that,
    or about a missing log."""
    if not log.exists():
        say(f"{log} is missing. A new log starts after step {step}.")
        return
    kept, faults = [], 0
    for line in log.read_bytes().splitlines(keepends=True):
        try:
            report = READER.validate_json(line)
        except ValidationError:
            faults += 1
        else:
            kept += [line] if report.step <= step and line.endswith(b"\n") else []
    if faults:
        aside = log.with_name(f"{log.stem}-damaged{log.suffix}")
        replace_file(aside, log.read_bytes())
        say(
            f"{log} has {faults} damaged lines. They are removed; the old log is saved as "
            f"{aside.name}."
        )
    replace_file(log, b"".join(kept))


# --- pictures and loggers


def draw_curves(log: Path, picture: Path) -> None:
    """Draw the losses and accuracies of a run's log.jsonl as a PNG. Raises ImportError if
    matplotlib is not installed."""
    from matplotlib.figure import Figure  # not pyplot, which has windows and global state

    reports = [json.loads(line) for line in log.read_text(encoding="utf8").splitlines()]
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for key, (label, colour, line) in curves.items():
            points = [(r["step"], r[key]) for r in reports if r.get(key) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                marker = "." if len(points) < 30 else None  # a single point draws no line
                axes.plot(steps, values, line, label=label, color=colour, marker=marker)
        axes.set(title=title, xlabel="step", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    replace_file(picture, drawn.getvalue())  # atomic: viewers never see a partial file


def open_logger(settings: Settings) -> Callable[[Report | None], None]:
    """Return a function that logs reports with the logger of [training.logger] in spaCy's registry;
    call it with None at the end."""
    if settings.training.logger is None:
        return lambda report: None
    make = registry.resolve({"logger": settings.training.logger})["logger"]
    nlp = spacy.blank(settings.text.lang)
    # Loggers store the pipeline's config, which has a section for pretraining.
    nlp.config = Config(nlp.config).merge({"pretraining": dataclasses.asdict(settings)})
    log_step, finalize = make(nlp, sys.stdout, sys.stderr)
    start = time.perf_counter()

    def log(report: Report | None) -> None:
        if report is None:
            finalize()
            return
        found = dataclasses.asdict(report)
        scores = {name: found[name] for name in SCORES if found[name] is not None}
        log_step(
            {
                "epoch": report.epoch,
                "step": report.step,
                "score": scores.get("held_out_mlm_accuracy", 0.0),
                "other_scores": scores,
                "losses": {"mlm": report.mlm_loss or 0.0, "nsp": report.nsp_loss or 0.0},
                "checkpoints": [],
                "seconds": int(time.perf_counter() - start),
                "words": report.tokens,
            }
        )

    return log
