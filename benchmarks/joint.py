"""Four tasks on one encoder: joint trainings by several methods beside a pipeline for each task.

Every task is read as often as alone, in batches of as many wordpieces, at the settings of
`init-config`. Each run is a JSON file, so that an interrupted series goes on where it was.

    python benchmarks/joint.py run DATA ENCODER OUT --methods task,mixed --seeds 0,1
    python benchmarks/joint.py table OUT
"""

import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import torch
import typer
from quality import HEADS, METRICS, convert_task
from spacy.language import Language
from spacy.training import Example
from spacy.util import fix_random_seed
from thinc.api import Adam
from thinc.schedules import warmup_linear

from spacy_bert_heads.comparison.bootstrap import interval, mean_over_seeds, resample
from spacy_bert_heads.data.batching import batch_by_pieces
from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.encoder import step
from spacy_bert_heads.encoder.loading import load_wordpiece_tokenizer
from spacy_bert_heads.encoder.model import checkpoint_of, shim_of

TASKS = ("wnut17", "sst2", "sick", "xquad")
# By what each loss is divided (Aghajanyan et al. 2021): an answer is one of as many positions as a
# window has.
NUM_CLASSES = {"wnut17": 13, "sst2": 2, "sick": 3, "xquad": 256}
RATE = 1e-4
BATCH_TOKENS = 512
WINDOW, STRIDE = 384, 256
RESAMPLES = 10_000

Batches = Callable[[dict[str, list[Example]], random.Random], list[list[Example]]]
app = typer.Typer()


# --- what a batch holds


def by_task(cut: Callable, train: dict[str, list[Example]], order: random.Random) -> list:
    """Batches of one task each, in random order."""
    batches = [batch for examples in train.values() for batch in cut(shuffled(examples, order))]
    return shuffled(batches, order)


def mixed(cut: Callable, train: dict[str, list[Example]], order: random.Random) -> list:
    """Batches of whatever comes."""
    return list(cut(shuffled([eg for examples in train.values() for eg in examples], order)))


def annealed(cut: Callable, train: dict[str, list[Example]], order: random.Random) -> list:
    """Batches of one task each, drawn by the size of the task to the power of a, which falls from 1
    to 0.2 (Stickland and Murray 2019, section 4)."""
    batches = {task: list(cut(shuffled(examples, order))) for task, examples in train.items()}
    sizes = [len(own) for own in batches.values()]
    drawn = []
    for i in range(sum(sizes)):
        weights = [size ** (1 - 0.8 * i / sum(sizes)) for size in sizes]
        task = order.choices(list(batches), weights)[0]
        if not batches[task]:
            batches[task] = list(cut(shuffled(train[task], order)))
        drawn.append(batches[task].pop())
    return drawn


def shuffled(items: list, order: random.Random) -> list:
    return order.sample(items, len(items))


# --- what reaches the encoder


def divide_by_log(nlp: Language, tasks: list[str]) -> None:
    """Divide each loss, as the encoder sees it, by the logarithm of the number of classes."""
    for task in tasks:
        for listener in nlp.get_pipe(f"bert_{HEADS[task]}")._listeners():
            listener.grad_factor = 1 / math.log(NUM_CLASSES[task])


def divide_by_norm(nlp: Language, tasks: list[str]) -> None:
    """Divide each head's gradient by the hidden states by its running norm."""
    norms: dict[int, float] = {}
    plain = step.Read.sum

    def scaled(self: step.Read, weights: Any = None) -> torch.Tensor:
        if not weights:
            return plain(self)
        weights = dict(weights)
        for key, gradient in self.gradients.items():
            norm = float(gradient.norm())
            norms[key] = norms.get(key, norm) + 0.05 * (norm - norms.get(key, norm))
            weights[key] = weights.get(key, 1.0) / max(norms[key], 1e-12)
        return plain(self, weights)

    step.Read.sum = scaled  # type: ignore[method-assign]


class TopLayers:
    """The top layers of the encoder, a copy for each task above a shared trunk."""

    def __init__(self, num_layers: int, nlp: Language, tasks: list[str]) -> None:
        encoder = nlp.get_pipe("bert_encoder").model
        self.shim, model = shim_of(encoder), checkpoint_of(encoder).model
        self.layers, self.first = model.encoder.layer, len(model.encoder.layer) - num_layers
        self.own = {task: copy.deepcopy(list(self.layers)[self.first :]) for task in tasks}
        model.own = torch.nn.ModuleDict(
            {t: torch.nn.ModuleList(own) for t, own in self.own.items()}
        )

    def use(self, task: str) -> None:
        for i, layer in enumerate(self.own[task]):
            self.layers[self.first + i] = layer
        self.shim.version += 1


BATCHES: dict[str, Callable] = {"mixed": mixed, "annealed": annealed}
BALANCES = {"log": divide_by_log, "norm": divide_by_norm}


# --- runs


@app.command()
def run(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    out: Annotated[Path, typer.Argument(help="A folder for the results")],
    methods: Annotated[
        str, typer.Option(help="single, task, mixed, annealed, task+log, task+norm, task+top1 …")
    ] = "single,task",
    seeds: str = "0,1,2,3,4",
    precision: str = "bf16",
) -> None:
    """Run what is missing."""
    for seed in map(int, seeds.split(",")):
        for method in methods.split(","):
            for tasks in [[task] for task in TASKS] if method == "single" else [list(TASKS)]:
                file = out / f"{'-'.join(tasks)}.{method}.{seed}.json"
                if not file.exists():
                    result = train(data, encoder, out, tasks, method, seed, precision)
                    partly = file.with_suffix(".partly")
                    partly.write_text(json.dumps(result))
                    partly.replace(file)
                    print(file.stem, {task: round(v, 4) for task, v in result["scores"].items()})


def train(
    data: Path, encoder: str, out: Path, tasks: list[str], method: str, seed: int, precision: str
) -> dict[str, Any]:
    """One epoch of the tasks, and the last model's score of each item of the test sets."""
    parts = method.split("+")
    fix_random_seed(seed)
    nlp = make_pipeline(encoder, tasks, precision)
    examples = {
        task: list(BertCorpus(corpus(data, out, task, "train"), max_pairs=1)(nlp)) for task in tasks
    }
    nlp.initialize(lambda: [eg for own in examples.values() for eg in own])
    for part in parts:
        BALANCES.get(part, lambda nlp, tasks: None)(nlp, tasks)
    top = next((TopLayers(int(p[3:]), nlp, tasks) for p in parts if p.startswith("top")), None)
    tokenizer = load_wordpiece_tokenizer(encoder)
    cut = partial(batch_by_pieces, size=BATCH_TOKENS, load=lambda: tokenizer)
    batches = BATCHES.get(parts[0], by_task)(cut, examples, random.Random(seed))
    steps = len(batches)
    optimizer = Adam(
        learn_rate=warmup_linear(RATE, steps // 10, steps),
        L2=0.01,
        L2_is_weight_decay=True,
        grad_clip=1.0,
        use_averages=False,
        eps=1e-8,
    )
    task_of = {id(eg): task for task, own in examples.items() for eg in own}
    start, start_cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        if top:
            top.use(task_of[id(batch[0])])
        nlp.update(batch, sgd=False)
        for _, pipe in nlp.pipeline:
            pipe.finish_update(optimizer)
        optimizer.step_schedules()
    result: dict[str, Any] = {
        "precision": precision,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time() - start_cpu),
        "scores": {},
        "items": {},
    }
    for task in tasks:
        if top:
            top.use(task)
        score_test_set(nlp, task, corpus(data, out, task, "test"), result)
    return result


def corpus(data: Path, out: Path, task: str, part: str) -> Path:
    folder = out / "data" / task
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert_task(data, task, folder)
    return folder / f"{part}.spacy"


def make_pipeline(encoder: str, tasks: list[str], precision: str) -> Language:
    nlp = spacy.blank("en")
    model = {"name": encoder, "precision": precision, "window": WINDOW, "stride": STRIDE}
    nlp.add_pipe("bert_encoder", config={"model": model})
    for task in tasks:
        config: dict[str, Any] = {"model": {"learning_rate_multiplier": 10.0}}
        if HEADS[task] == "qa":
            config["no_answer_threshold"] = 1.0  # all questions have answers
        nlp.add_pipe(f"bert_{HEADS[task]}", config=config)
    return nlp


def score_test_set(nlp: Language, task: str, path: Path, result: dict[str, Any]) -> None:
    head = f"bert_{HEADS[task]}"
    examples = list(BertCorpus(path)(nlp))
    with nlp.select_pipes(enable=["bert_encoder", head]):
        docs = nlp.pipe([eg.predicted for eg in examples])
        examples = [Example(doc, eg.reference) for doc, eg in zip(docs, examples, strict=True)]
    key = METRICS[HEADS[task]]["score"]
    result["scores"][task] = nlp.get_pipe(head).score(examples)[key]
    score = partial(score_item, nlp.get_pipe(head), key)
    result["items"][task] = [score(item) for eg in examples for item in items_of(eg)]


def items_of(example: Example) -> Iterator[Example]:
    """An example for each second text; a Doc without any is one item."""
    asked = [
        (name, output, i)
        for name, output in (("hypotheses", "nli"), ("questions", "answers"))
        for i in range(len(example.reference._.get(name)))
    ]
    for name, output, i in asked:
        docs = example.predicted.copy(), example.reference.copy()
        for doc in docs:
            for key in (name, output):
                doc._.set(key, [doc._.get(key)[i]])
        yield Example(*docs)
    if not asked:
        yield example


def score_item(head: Any, key: str, example: Example) -> list[float]:
    """True positives, false positives and misses of entities; else the score of the item."""
    if key != "ents_f":
        return [head.score([example])[key]]
    found, true = (
        {(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents}
        for doc in (example.predicted, example.reference)
    )
    return [len(found & true), len(found - true), len(true - found)]


# --- the table


@app.command()
def table(out: Path) -> None:
    """Print the mean score of each method over the seeds, and its difference to the single
    pipelines with the same seeds, in points: the mean, and the interval that holds 95 % of
    bootstrap samples of seeds and test items."""
    runs: dict[str, dict[int, dict[str, list]]] = {}
    for file in sorted(out.glob("*.json")):
        _, method, seed = file.stem.split(".")
        items = json.loads(file.read_text())["items"]
        runs.setdefault(method, {}).setdefault(int(seed), {}).update(items)
    single = runs.pop("single")
    print(f"| | seeds | {' | '.join(TASKS)} | mean |")
    print("|---" * (len(TASKS) + 3) + "|")
    means = [np.mean([score(own[task]) for own in single.values()]) for task in TASKS]
    cells = [f"{mean:.3f}" for mean in means]
    print(f"| a pipeline for each | {len(single)} | {' | '.join(cells)} | {np.mean(means):.3f} |")
    for method, own in runs.items():
        seeds = sorted(own.keys() & single.keys())
        drawn = {task: differences(single, own, seeds, task) for task in TASKS}
        cells = [
            f"{np.mean([score(own[seed][task]) for seed in seeds]):.3f} ({show(*drawn[task])})"
            for task in TASKS
        ]
        mean = [np.mean(parts, axis=0) for parts in zip(*drawn.values(), strict=True)]
        print(f"| {method} | {len(seeds)} | {' | '.join(cells)} | {show(*mean)} |")


def score(counts: Any) -> Any:
    """F of true positives, false positives and misses (…, num_items, 3); of anything else the mean
    of the items (…, num_items, 1)."""
    counts = np.asarray(counts, dtype=np.float64)
    return metric(np.concatenate([counts, np.ones_like(counts[..., :1])], axis=-1).sum(-2))


def metric(sums: Any) -> Any:
    """The score, of sums (…, 4 or 2) of which the last is the number of items."""
    if sums.shape[-1] == 2:
        return sums[..., 0] / sums[..., 1]
    right, wrong, missed, _ = np.moveaxis(sums, -1, 0)
    return 2 * right / np.maximum(2 * right + wrong + missed, 1)


def differences(single: dict, joint: dict, seeds: list[int], task: str) -> tuple[float, Any]:
    """The difference in points, and those of bootstrap samples of test items and seeds."""
    both = np.asarray([[runs[seed][task] for seed in seeds] for runs in (single, joint)], float)
    counts = np.concatenate([both, np.ones_like(both[..., :1])], axis=-1)
    by_side = resample(
        lambda weights: {i: metric(weights @ side) for i, side in enumerate(counts)},
        counts.shape[2],
        n_resamples=RESAMPLES,
        seed=0,
    )
    first, second = (mean_over_seeds(by_side[i], 0, i) for i in range(2))
    alone, together = score(both).mean(1)
    return 100 * (together - alone), 100 * (second - first)


def show(difference: float, drawn: Any) -> str:
    low, high = interval(drawn)
    return f"{difference:+.1f}, {low:+.1f} to {high:+.1f}"


if __name__ == "__main__":
    app()
