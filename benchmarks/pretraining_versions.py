"""Pretraining of one version of the package beside another: speed and memory.

Run it with the folder of each version first on PYTHONPATH, in turns; each prints a line of JSON.

    PYTHONPATH=OLD python benchmarks/pretraining_versions.py prepare RAW ENCODER
    PYTHONPATH=. python benchmarks/pretraining_versions.py pretrain RAW ENCODER --precision bf16
"""

import json
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

import spacy_bert_heads
from spacy_bert_heads.encoder.loading import load_wordpiece_tokenizer
from spacy_bert_heads.pretraining.data import Data, Position
from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.objectives import Pretrainer, load_pretrainer
from spacy_bert_heads.pretraining.prepare import prepare
from spacy_bert_heads.pretraining.settings import Settings, read_settings
from spacy_bert_heads.runs.states import find_newest, load_state, save_state

CONFIG = """
[text]
held_out = 0.1
workers = 1
[training]
batch_tokens = 4096
max_batch_tokens = 4096
precision = "fp32"
eval_frequency = 1000
eval_tokens = 1024
checkpoint_frequency = 1000
keep = 1
phases = [{"max_length": 128, "share": 1.0}]
"""
Found = dict[str, float]


def main(
    what: Annotated[str, typer.Argument(help="prepare, pretrain, examples, write or read")],
    raw: Annotated[str, typer.Argument(help="Raw text: a file, a folder or a pattern")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    precision: str = "fp32",
    steps: Annotated[int, typer.Option(help="Steps, or batches of examples")] = 10,
) -> None:
    """Measure one thing. write, read: of a training state."""
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    measure = {
        "prepare": measure_prepare,
        "pretrain": measure_steps,
        "examples": measure_examples,
        "write": measure_state,
        "read": measure_state,
    }[what]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.cfg"
        config.write_text(CONFIG)
        overrides = {
            "paths.raw": raw,
            "paths.encoder": encoder,
            "paths.cache": f"{folder}/cache",
            "training.precision": precision,
            "training.max_steps": steps,
            "training.optimizer.learn_rate.warmup_steps": 2,
        }
        found = measure(read_settings(config, overrides), Path(folder), what)
    version = str(Path(spacy_bert_heads.__file__).parents[1])
    print(json.dumps({"package": version, "what": what, "precision": precision, **found}))


def measure_prepare(settings: Settings, folder: Path, what: str) -> Found:
    """Wordpieces a second of `bert prepare`, in one process."""
    wordpieces = load_wordpiece_tokenizer(settings.paths.encoder)
    clock = start_clock()
    corpus = prepare_raw(settings, wordpieces)
    return per_second(len(corpus.pieces), clock()) | {"peak_MiB": peak()}


def measure_steps(settings: Settings, folder: Path, what: str) -> Found:
    """Wordpieces a second of the steps of `bert pretrain`, without the first two and without
    reports and states."""
    ticks: list[Found] = []
    clock = start_clock()
    report = pretrain(
        settings,
        folder / "out",
        say=lambda text: None,
        on_step=lambda step: ticks.append(clock()),
    )
    first, last, num_steps = ticks[1], ticks[-1], len(ticks)
    seconds = {kind: last[kind] - first[kind] for kind in last}
    tokens = report.tokens * (num_steps - 2) / num_steps
    return per_second(tokens, seconds) | {"peak_MiB": peak()}


def measure_examples(settings: Settings, folder: Path, what: str) -> Found:
    """Microseconds of the processor for an example: the median over batches of 32."""
    pretrainer = load(settings)
    wordpieces = pretrainer.encoder.checkpoint.tokenizer
    data = Data(prepare_raw(settings, wordpieces), pretrainer.vocabulary(), settings, folder / "p")
    position, times = Position(), []
    for step in range(1, settings.training.max_steps + 1):
        begin = time.process_time()
        batch, position = data.train_batch(position, step)
        times.append((time.process_time() - begin) / len(batch.labels) * 1e6)
    return {"us_per_example": round(statistics.median(times), 1), "min": round(min(times), 1)}


def measure_state(settings: Settings, folder: Path, what: str) -> Found:
    """How much resident memory grows while a state of weights and two moments is written, or is
    read and copied to its place, and the seconds."""
    weights = load(settings).model.state_dict()
    state = {name: {k: w.clone() for k, w in weights.items()} for name in ("model", "m", "v")}
    size = sum(w.nbytes for part in state.values() for w in part.values()) / 2**20
    if what == "read":
        in_child(lambda: save_state(folder, 1, state, keep=1))
    before, clock = peak(), start_clock()
    if what == "write":
        save_state(folder, 1, state, keep=1)
    else:
        found = load_state(find_newest(folder)[0])
        for name, part in state.items():
            for key, tensor in part.items():
                tensor.copy_(found[name][key])
    return {"state_MiB": round(size), "grown_MiB": peak() - before, **clock()}


# --- helpers


def load(settings: Settings) -> Pretrainer:
    return load_pretrainer(
        settings.paths.encoder, sentence_objective=settings.objective.sentences
    ).eval()


def prepare_raw(settings: Settings, wordpieces):
    raw = settings.paths.raw
    sources = raw if isinstance(raw, list) else [raw]
    return prepare(sources, Path(settings.paths.cache), wordpieces=wordpieces, workers=1)


def in_child(action: Callable[[], None]) -> None:
    """Do something whose memory is not measured."""
    if child := os.fork():
        os.waitpid(child, 0)
    else:
        action()
        os._exit(0)


def start_clock() -> Callable[[], Found]:
    wall, cpu = time.perf_counter(), time.process_time()
    return lambda: {
        "wall_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
    }


def per_second(count: float, seconds: Found) -> Found:
    return {
        "pieces_per_cpu_s": round(count / seconds["cpu_s"]),
        "pieces_per_s": round(count / seconds["wall_s"]),
    }


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    typer.run(main)
