"""Ways of using a pretrained encoder: named jobs, a JSON file for each, tables and plots of those.

    python benchmarks/transfer.py DATA ENCODER OUT --list
    python benchmarks/transfer.py DATA ENCODER OUT --jobs "features-wnut17-*"
    python benchmarks/transfer.py DATA ENCODER OUT --table

features-TASK-WAY-SEED
    Table 7 of the BERT paper: entities from layers of a frozen encoder, read in several ways, each
    by a linear layer and by a BiLSTM of two layers; and from one that is fine-tuned. The states of
    a frozen encoder are computed once and kept on disk, for all epochs, seeds and ways that read
    the same layers.
parameters-TASK-WAY-SEED
    The plot of the adapter paper (Houlsby et al. 2019, figure 1): score against the number of
    trained parameters, of adapters, LoRA, the top layers, and everything; with the time, the memory
    and the size on disk of each.

Every setting is that of `init-config`, but for what a way is about. Nothing is chosen by a score
on a test set; the rate of layers' weights was chosen by one on a dev set.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import spacy
import typer
from jobs import (
    SEEDS,
    Bench,
    Job,
    draw_spread,
    finetune,
    print_head,
    print_row,
    read_results,
    run_or_show,
    runs_of,
    spread,
)
from thinc.api import Config

from spacy_bert_heads.encoder.features import mix_of
from spacy_bert_heads.encoder.model import encoder_of
from spacy_bert_heads.encoder.saved import encoder_to_files
from spacy_bert_heads.init_config import ADAPTED

N_LAYERS = 6
LAST_FOUR = [-4, -3, -2, -1]
ALL = list(range(1, N_LAYERS + 1))  # without the embeddings, as in the paper
# What a listener reads. None: the last layer of an encoder that learns too.
FEATURES: dict[str, dict[str, Any] | None] = {
    "fine-tuned": None,
    "embeddings": {"layers": [0]},
    "second-to-last": {"layers": [-2]},
    "last": {"layers": [-1]},
    "weighted-last-four": {"layers": LAST_FOUR, "combine": "weighted"},
    "concat-last-four": {"layers": LAST_FOUR},
    "weighted-all": {"layers": ALL, "combine": "weighted"},
}
# F1 on the dev set of CoNLL-2003, BERT base (table 7).
PAPER = {
    "fine-tuned": 96.4,
    "embeddings": 91.0,
    "second-to-last": 95.6,
    "last": 94.9,
    "weighted-last-four": 95.9,
    "concat-last-four": 96.1,
    "weighted-all": 95.5,
}
FEATURE_TASKS = {"wnut17": 3394, "ncbi": 2000}  # sentences to train on
FEATURE_EPOCHS = 6
TUNED_EPOCHS = 3
LSTM_WIDTH = 192  # of each direction: together as wide as the states

PARAMETER_TASKS = {"sst2": 2000, "sick": 2000}  # examples to train on
PARAMETER_TEST = 1500  # examples at most
PARAMETER_EPOCHS = 2
# The settings of the encoder.
PARAMETERS: dict[str, dict[str, Any]] = {
    **{
        f"adapter-{size}": {"adapter": "houlsby", "adapter_size": size, **ADAPTED}
        for size in (4, 16, 64, 128, 256)
    },
    **{f"lora-{rank}": {"adapter": "lora", "adapter_size": rank, **ADAPTED} for rank in (2, 8, 32)},
    **{f"top-{k}": {"frozen_layers": N_LAYERS - k} for k in range(N_LAYERS)},
    "everything": {},
}


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint, with six layers")],
    out: Annotated[Path, typer.Argument(help="The folder of the results")],
    jobs: Annotated[str, typer.Option(help="Which jobs to run, a pattern")] = "*",
    precision: str = "fp32",
    scale: Annotated[float, typer.Option(help="0.02: a test of this script")] = 1.0,
    show: Annotated[bool, typer.Option("--list", help="Show the jobs, run none")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print and plot, run none")] = False,
) -> None:
    """Run the jobs that were not run yet."""
    bench = Bench(data, encoder, out.absolute(), precision, scale)
    tables = print_tables if table else None
    run_or_show(bench, list_jobs(), jobs, show=show, print_tables=tables)


def list_jobs() -> list[Job]:
    """All jobs, seed after seed, so that what is done first is of everything."""
    jobs = []
    for seed in SEEDS:
        for task in FEATURE_TASKS:
            for way in FEATURES:
                run = partial(read_features, task, way, seed)
                jobs.append(Job(f"features-{task}-{way}-{seed}", 6, run))
        for task in PARAMETER_TASKS:
            for way in PARAMETERS:
                run = partial(train_parameters, task, way, seed)
                jobs.append(Job(f"parameters-{task}-{way}-{seed}", 3, run))
    return jobs


# --- features


def read_features(task: str, way: str, seed: int, bench: Bench) -> dict[str, Any]:
    reads = FEATURES[way]
    folder = bench.work(f"features-{task}-{way}-{seed}")
    result: dict[str, Any] = {"task": task, "way": way, "seed": seed}
    kinds = {"linear": 0} if reads is None else {"linear": 0, "lstm": LSTM_WIDTH}
    for kind, lstm_width in kinds.items():

        def change(config: Config, lstm_width: int = lstm_width) -> None:
            head = config["components"]["bert_ner"]["model"]
            head["lstm_width"] = lstm_width
            if reads is not None:
                head["tok2vec"].update(reads)
                config["training"]["frozen_components"] = ["bert_encoder"]
                config["initialize"]["after_init"] = {
                    "@callbacks": "spacy_bert_heads.cache_states.v1",
                    "folder": str(bench.work(f"states-{task}")),
                }

        result[kind] = finetune(
            bench,
            folder / kind,
            task,
            bench.encoder,
            n_train=FEATURE_TASKS[task],
            n_dev=50,
            seed=seed,
            epochs=TUNED_EPOCHS if reads is None else FEATURE_EPOCHS,
            change=change,
            look=layer_weights,
        )
    return result


def layer_weights(nlp: spacy.Language) -> dict[str, Any]:
    """What a head with "weighted" layers has learned."""
    tok2vec = nlp.get_pipe("bert_ner").model.get_ref("tok2vec")
    if tok2vec.name != "layer_features":
        return {}
    mix = mix_of(tok2vec)
    return {"layer_weights": mix.weights.softmax(0).tolist(), "layer_scale": mix.scale.item()}


# --- parameters


def train_parameters(task: str, way: str, seed: int, bench: Bench) -> dict[str, Any]:
    def change(config: Config) -> None:
        config["components"]["bert_encoder"]["model"].update(PARAMETERS[way])

    found = finetune(
        bench,
        bench.work(f"parameters-{task}-{way}-{seed}"),
        task,
        bench.encoder,
        n_train=PARAMETER_TASKS[task],
        n_dev=50,
        n_test=PARAMETER_TEST,
        seed=seed,
        epochs=PARAMETER_EPOCHS,
        change=change,
        look=count_trained,
    )
    return {"task": task, "way": way, "seed": seed, **found}


def count_trained(nlp: spacy.Language) -> dict[str, Any]:
    """How much of the encoder was trained, and what that is on disk."""
    encoder = nlp.get_pipe("bert_encoder")
    bert = encoder_of(encoder.model)
    files = encoder_to_files(bert, share=True)
    return {
        "trained": sum(p.numel() for p in bert.parameters() if p.requires_grad),
        "of": sum(p.numel() for p in bert.parameters()),
        "bytes": sum(map(len, files.values())),
    }


# --- tables and plots


def print_tables(bench: Bench) -> None:
    """All tables, as Markdown, and the plot, of what is done."""
    done = read_results(bench)
    print_features(done)
    print_parameters(done)
    draw(bench, done)


def print_features(done: dict[str, dict]) -> None:
    columns = [(task, kind) for task in FEATURE_TASKS for kind in ("linear", "lstm")]
    titles = [", ".join(column) for column in columns]
    found = {
        way: [
            [run[kind] for run in runs_of(done, f"features-{task}-{way}") if kind in run]
            for task, kind in columns
        ]
        for way in FEATURES
    }
    print("### Features of a frozen encoder: entity F1, test, mean (from, to) over seeds\n")
    print_head("", *titles, "the paper's (CoNLL, BiLSTM)")
    for way, cells in found.items():
        print_row(way, *(spread([run["test"] for run in runs]) for runs in cells), PAPER[way])
    # A seed may have had to compute the states, or had other programs beside it.
    print("\n### CPU seconds of the training, the quickest seed; the largest peak, MiB\n")
    print_head("", *titles)
    for way, cells in found.items():
        print_row(
            way,
            *(
                f"{min(run['train_cpu_seconds'] for run in runs):.0f}; "
                f"{max(run['train_peak_mib'] for run in runs):,}"
                if runs
                else "–"
                for runs in cells
            ),
        )
    print()


def print_parameters(done: dict[str, dict]) -> None:
    print("### Score against trained parameters of the encoder\n")
    costs = ("trained", "on disk, MB", "CPU s", "peak MiB")
    print_head("", *costs, *(f"{task}, accuracy" for task in PARAMETER_TASKS))
    for way in PARAMETERS:
        runs = {task: runs_of(done, f"parameters-{task}-{way}") for task in PARAMETER_TASKS}
        every = [run for found in runs.values() for run in found]
        if not every:
            continue
        one = every[0]
        print_row(
            way,
            f"{one['trained']:,} ({one['trained'] / one['of']:.1%})",
            f"{one['bytes'] / 1e6:.2f}",
            f"{statistics.mean(run['train_cpu_seconds'] for run in every):.0f}",
            f"{max(run['train_peak_mib'] for run in every):,}",
            *(spread([run["test"] for run in found]) for found in runs.values()),
        )
    print()


GROUPS: tuple[tuple[str, Callable[[str], bool], str, str], ...] = (
    ("adapters (Houlsby)", lambda way: way.startswith("adapter"), "#0072B2", "o"),
    ("LoRA", lambda way: way.startswith("lora"), "#D55E00", "s"),
    ("top layers", lambda way: way.startswith("top"), "#009E73", "^"),
    ("everything", lambda way: way == "everything", "#000000", "*"),
)


def draw(bench: Bench, done: dict[str, dict]) -> None:
    try:
        import matplotlib
    except ImportError:
        print("No plot: pip install matplotlib")
        return
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(1, len(PARAMETER_TASKS), figsize=(10, 4), squeeze=False)
    for task, axes in zip(PARAMETER_TASKS, grid[0], strict=True):
        for title, belongs, color, marker in GROUPS:
            found = (
                runs_of(done, f"parameters-{task}-{way}") for way in filter(belongs, PARAMETERS)
            )
            points = [(runs[0]["trained"], [run["test"] for run in runs]) for runs in found if runs]
            draw_spread(axes, points, label=title, color=color, marker=marker)
        axes.set(xscale="log", xlabel="trained parameters of the encoder", title=task)
        axes.set_ylabel("accuracy, test")
    grid[0][0].legend()
    figure.tight_layout()
    figure.savefig(bench.out / "parameters.png", dpi=120)
    plt.close(figure)
    print(bench.out / "parameters.png")


if __name__ == "__main__":
    typer.run(main)
