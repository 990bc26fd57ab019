"""Four tasks on one encoder, in batches of one task each, beside a pipeline for each task (jobs.py
has the command line; run it with --precision bf16).

All settings are those of `init-config` for several heads, for one epoch, so each task is read as
often as alone.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jobs import (
    ALL,
    Bench,
    Job,
    print_head,
    print_row,
    read_results,
    run_script,
    runs_of,
    spread,
    take,
)
from spacy.language import Language
from spacy.training import Example
from tasks import BATCH_SIZE, TASKS, convert_task
from thinc.api import Config

from spacy_bert_heads.comparison.bootstrap import paired_bootstrap
from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.training.loop import train

# Batches of 512 wordpieces in an epoch.
STEPS = {"wnut17": 215, "sst2": 351, "sick": 208, "xquad": 411}
SEEDS = range(5)
RESAMPLES = 10_000


def list_jobs() -> list[Job]:
    """All jobs, seed after seed."""
    sets = {task: (task,) for task in STEPS} | {"joint": tuple(STEPS)}
    return [
        Job(f"{name}-{seed}", 2 * len(tasks), partial(learn, name, tasks, seed))
        for seed in SEEDS
        for name, tasks in sets.items()
    ]


def learn(name: str, tasks: tuple[str, ...], seed: int, bench: Bench) -> dict[str, Any]:
    folder, files = bench.work(f"{name}-{seed}"), gather(bench, tasks)
    steps = sum(STEPS[task] for task in tasks)
    nlp = train(make_config(bench, tasks, files, seed, steps), folder, force=True)
    shutil.rmtree(folder)
    return {"items": {task: score_items(nlp, task, files[task]) for task in tasks}}


def gather(bench: Bench, tasks: tuple[str, ...]) -> dict[str, Path]:
    """A folder with the training data of tasks, one with their development data, and by task the
    file of its test set."""
    folder = bench.work("-".join(tasks))
    shutil.rmtree(folder, ignore_errors=True)
    files = {part: folder / part for part in ("train", "dev")}
    for task in tasks:
        convert_task(bench.data, task, folder / "data" / task)
        for part in ("train", "dev", "test"):
            (folder / part).mkdir(exist_ok=True)
            source, target = folder / "data" / task / f"{part}.spacy", folder / part / task
            take(source, bench.scaled(ALL, BATCH_SIZE), target.with_suffix(".spacy"))
        files[task] = folder / "test" / f"{task}.spacy"
    return files


def make_config(
    bench: Bench,
    tasks: tuple[str, ...],
    files: dict[str, Path],
    seed: int,
    steps: int,
    *,
    encoder: str | None = None,
    by_task: bool = True,
) -> Config:
    """The config of `init-config` for several heads, of a single one too."""
    encoder = encoder or bench.encoder
    config = init_config([TASKS[task].head for task in tasks], name=encoder)
    steps = bench.scaled(steps, least=4)
    config["paths"] |= {part: str(files[part]) for part in ("train", "dev")}
    model = {"precision": bench.precision, "window": 384, "stride": 256}
    config["components"]["bert_encoder"]["model"] |= model
    if "bert_qa" in config["components"]:
        config["components"]["bert_qa"]["no_answer_threshold"] = 1.0  # all questions have answers
    config["corpora"]["train"]["max_pairs"] = 1
    training = config["training"]
    training |= {"seed": seed, "max_steps": steps, "eval_frequency": steps, "patience": 0}
    training["batcher"] = {"@batchers": "spacy_bert_heads.batch_by_pieces.v1", "size": 512}
    training["batcher"] |= {"name": encoder, "by_task": by_task, "temperature": 1.0}
    learn_rate = training["optimizer"]["learn_rate"]
    learn_rate |= {"warmup_steps": steps // 10, "total_steps": steps}
    return config


def predict(nlp: Language, task: str, path: Path) -> tuple[Any, list[Example]]:
    """The head of a task, and a test set that it has predicted, a second text at a time."""
    name = f"bert_{TASKS[task].head}"
    examples = list(BertCorpus(path, max_pairs=1)(nlp))
    with nlp.select_pipes(enable=["bert_encoder", name]):
        docs = nlp.pipe([eg.predicted for eg in examples])
        examples = [Example(doc, eg.reference) for doc, eg in zip(docs, examples, strict=True)]
    return nlp.get_pipe(name), examples


def score_items(nlp: Language, task: str, path: Path) -> list[list[float]]:
    """True positives, false positives and misses of each Doc's entities; else the score of each
    item, and 1."""
    head, examples = predict(nlp, task, path)
    if TASKS[task].head != "ner":
        return [[head.score([item])[TASKS[task].metric], 1] for item in examples]
    rows = [list(head.tally(item).values()) for item in examples]
    return [[sum(row[kind] for row in own) for kind in ("tp", "fp", "fn")] for own in rows]


def metric(sums: np.ndarray) -> np.ndarray:
    """The score of sums of items (…, 2 or 3): a mean, or F."""
    if sums.shape[-1] == 2:
        return sums[..., 0] / sums[..., 1]
    right, wrong, missed = np.moveaxis(sums, -1, 0)
    return 2 * right / np.maximum(2 * right + wrong + missed, 1)


def print_tables(bench: Bench) -> None:
    """Means over seeds, and their difference in points, with the interval that holds 95 % of
    bootstrap samples of seeds and test items."""
    done = read_results(bench)
    print_head("", "a pipeline for each", "one for all", "difference, points", "CPU s")
    both = runs_of(done, "joint")
    for task in STEPS:
        alone = runs_of(done, task)
        if alone and both:
            sides = [[run["items"][task] for run in runs] for runs in (alone, both)]
            found = paired_bootstrap(*sides, metric, n_resamples=RESAMPLES)
            change, low, high = (100 * x for x in (found.difference, found.low, found.high))
            print_row(
                task,
                f"{found.first:.3f}",
                f"{found.second:.3f}",
                f"{change:+.1f} ({low:+.1f} to {high:+.1f})",
                spread([run["cpu_seconds"] for run in alone], ".0f"),
            )
    print_row("all", *("",) * 3, spread([run["cpu_seconds"] for run in both], ".0f"))


if __name__ == "__main__":
    run_script(list_jobs, print_tables)
