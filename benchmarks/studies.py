"""Ways of using an encoder (jobs.py has the command line). OUT has to be below the current folder,
as kept hidden states must be.

quality-TASK-WAY-SEED
    The usual settings, by `spacy train` and by a plain Hugging Face loop (but for questions); ours
    predicts the test set in every precision.
features-TASK-WAY-SEED
    Table 7 of the BERT paper: entities from layers of a frozen encoder (of six layers), read in
    several ways by a linear layer, or by a BiLSTM of two layers. The hidden states are computed
    once and kept on disk for all jobs that read the same layers.
parameters-TASK-WAY-SEED
    The adapter paper (Houlsby et al. 2019, figure 1): score against the number of trained
    parameters, of adapters, LoRA, the top layers, and everything.

Every setting is that of `init-config`, but for what a way is about; those of quality are BERT's
(5e-5, heads at the same learning rate, 3 epochs). Nothing is chosen by a score on
a test set.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import spacy
from jobs import (
    ALL,
    RATE,
    SEEDS,
    Bench,
    Job,
    finetune,
    of,
    print_table,
    read_results,
    run_script,
    runs_of,
)
from plain_loops import run_plain
from quality import TASKS
from thinc.api import Config

from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.encoder.model import encoder_of
from spacy_bert_heads.encoder.saved import encoder_to_files
from spacy_bert_heads.evaluate import set_precision
from spacy_bert_heads.init_config import ADAPTED

PRECISIONS = ("fp32", "bf16", "int8")
NUM_LAYERS = 6
LSTM_WIDTH = 192  # of each direction: together as wide as MiniLM's hidden states
LAST_FOUR = [-4, -3, -2, -1]
EVERY = list(range(1, NUM_LAYERS + 1))  # without the embeddings, as in the paper
READS: dict[str, dict[str, Any]] = {
    "embeddings": {"layers": [0]},
    "second-to-last": {"layers": [-2]},
    "last": {"layers": [-1]},
    "weighted-last-four": {"layers": LAST_FOUR, "combine": "weighted"},
    "concat-last-four": {"layers": LAST_FOUR},
    "weighted-all": {"layers": EVERY, "combine": "weighted"},
}
ENCODERS: dict[str, dict[str, Any]] = {  # settings
    **{
        f"adapter-{size}": {"adapter": "houlsby", "adapter_size": size, **ADAPTED}
        for size in (4, 16, 64, 128, 256)
    },
    **{f"lora-{rank}": {"adapter": "lora", "adapter_size": rank, **ADAPTED} for rank in (2, 8, 32)},
    **{f"top-{k}": {"frozen_layers": NUM_LAYERS - k} for k in range(NUM_LAYERS)},
    "everything": {},
}


class Way(NamedTuple):
    """A row of a study. change: the config, in place; it gets a folder for kept hidden states."""

    epochs: int = 3
    change: Callable[[Config, Path], None] = lambda config, states: None
    rate: float = RATE


class Study(NamedTuple):
    """A table: ways, tasks with the number of examples to train on, and minutes of a job."""

    title: str
    minutes: float
    tasks: dict[str, int]
    ways: dict[str, Way]
    num_test: int = ALL


def freeze(reads: dict[str, Any], lstm_width: int, config: Config, states: Path) -> None:
    head = config["components"]["bert_ner"]["model"]
    head["lstm_width"] = lstm_width
    head["tok2vec"].update(reads)
    config["training"]["frozen_components"] = ["bert_encoder"]
    cache = {"@callbacks": "spacy_bert_heads.cache_states.v1", "folder": str(states)}
    config["initialize"]["after_init"] = cache


def set_encoder(settings: dict[str, Any], config: Config, states: Path) -> None:
    config["components"]["bert_encoder"]["model"].update(settings)


def as_plain(config: Config, states: Path) -> None:
    for name, component in config["components"].items():
        if name != "bert_encoder":
            component["model"]["learning_rate_multiplier"] = 1.0
    if "bert_qa" in config["components"]:
        config["components"]["bert_qa"]["no_answer_threshold"] = 1.0  # all questions have answers


STUDIES = {
    "quality": Study(
        "A plain loop and `spacy train`: score, test",
        20,
        dict.fromkeys(("wnut17", "sst2", "sick", "xquad", "policyqa"), ALL),
        {"plain": Way(rate=5e-5), "ours": Way(change=as_plain, rate=5e-5)},
    ),
    "features": Study(
        "Features of a frozen encoder: entity F1, test",
        4,
        {"wnut17": 3394, "ncbi": 2000},
        {"fine-tuned": Way(3)}
        | {
            f"{name}{suffix}": Way(6, partial(freeze, reads, width))
            for suffix, width in (("", 0), ("-lstm", LSTM_WIDTH))
            for name, reads in READS.items()
        },
    ),
    "parameters": Study(
        "Score against trained parameters: accuracy, test",
        3,
        {"sst2": 2000, "sick": 2000},
        {name: Way(2, partial(set_encoder, settings)) for name, settings in ENCODERS.items()},
        num_test=1500,
    ),
}


def list_jobs() -> list[Job]:
    """All jobs, seed after seed, so that what is done first is of everything."""
    jobs = []
    for seed in SEEDS:
        for name, study in STUDIES.items():
            for task, way in product(study.tasks, study.ways):
                if way == "plain" and TASKS[task].head == "qa":
                    continue
                run = partial(train, name, task, way, seed)
                jobs.append(Job(f"{name}-{task}-{way}-{seed}", study.minutes, run))
    return jobs


def train(name: str, task: str, way: str, seed: int, bench: Bench) -> dict[str, Any]:
    study = STUDIES[name]
    epochs, change, rate = study.ways[way]
    states, folder = bench.work(f"states-{task}"), bench.work(f"{name}-{task}-{way}-{seed}")
    settings: dict[str, Any] = {"seed": seed, "epochs": epochs}
    if way == "plain":
        settings |= {"precision": bench.precision, "scale": bench.scale, "learn_rate": rate}
        return {"test": run_plain(task, bench.data, bench.encoder, **settings)}

    def look(nlp: spacy.Language) -> dict[str, Any]:
        more = score_precisions(nlp, task, folder) if name == "quality" else {}
        return count_trained(nlp) | more

    settings |= {"n_train": study.tasks[task], "n_test": study.num_test, "rate": rate}
    settings |= {"change": partial(change, states=states), "look": look}
    return finetune(bench, folder, task, bench.encoder, **settings)


def score_precisions(nlp: spacy.Language, task: str, folder: Path) -> dict[str, Any]:
    """The score on the test set in each precision, by the same weights."""
    found = {}
    for precision in PRECISIONS:
        set_precision(nlp, precision)
        scores = nlp.evaluate(list(BertCorpus(folder / "test")(nlp)))
        found[precision] = scores[TASKS[task].metric]
    return {"precisions": found}


def count_trained(nlp: spacy.Language) -> dict[str, Any]:
    """How much of the encoder was trained, and what that is on disk."""
    bert = encoder_of(nlp.get_pipe("bert_encoder").model)
    return {
        "trained": sum(p.numel() for p in bert.parameters() if p.requires_grad),
        "bytes": sum(map(len, encoder_to_files(bert, share=True).values())),
    }


# --- tables and plots


def print_tables(bench: Bench) -> None:
    """All tables, as Markdown, and the plot, of what is done."""
    done = read_results(bench)
    costs = {
        "trained parameters": of("trained", ",.0f"),
        "MB on disk": of(lambda run: run["bytes"] / 1e6, ".2f"),
        "CPU s": of("train_cpu_seconds", ".0f"),
        "peak MiB": of("train_peak_mib", ",.0f"),
    }
    for name, study in STUDIES.items():
        rows = {
            way: [run for task in study.tasks for run in runs_of(done, f"{name}-{task}-{way}")]
            for way in study.ways
        }
        scores = {task: partial(score_of, f"{name}-{task}-") for task in study.tasks}
        print_table(done, study.title, costs | scores, rows)
    columns = {precision: of(f"precisions.{precision}", ".4f") for precision in PRECISIONS}
    trained = {task: f"quality-{task}-ours" for task in STUDIES["quality"].tasks}
    print_table(done, "Precisions: score, test, by the same weights", columns, trained)
    draw(bench, done)


def score_of(prefix: str, runs: list[dict]) -> str:
    """Those of a task, among the runs of a way."""
    return of("test")([run for run in runs if run["job"].startswith(prefix)])


def draw(bench: Bench, done: dict[str, dict]) -> None:
    """Accuracy over the trained parameters: means, with marks from where to where."""
    from matplotlib.figure import Figure

    study = STUDIES["parameters"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    grid = figure.subplots(1, len(study.tasks), squeeze=False)[0]
    for task, axes in zip(study.tasks, grid, strict=True):
        for kind in ("adapter", "lora", "top", "everything"):
            ways = [way for way in study.ways if way.startswith(kind)]
            found = [runs for w in ways if (runs := runs_of(done, f"parameters-{task}-{w}"))]
            scores = [[run["test"] for run in runs] for runs in found]
            means = np.asarray([np.mean(row) for row in scores])
            ranges = (means - [min(row) for row in scores], [max(row) for row in scores] - means)
            places = [runs[0]["trained"] for runs in found]
            axes.errorbar(places, means, yerr=ranges, capsize=3, label=kind, marker="o")
        axes.set(xscale="log", xlabel="trained parameters of the encoder", title=task)
        axes.set_ylabel("accuracy, test")
    grid[0].legend()
    figure.savefig(bench.out / "parameters.png", dpi=120)


if __name__ == "__main__":
    run_script(list_jobs, print_tables)
