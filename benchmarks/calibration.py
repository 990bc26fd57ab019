"""What calibration and thresholds are worth: named jobs, a JSON file for each, tables of those.

    python benchmarks/calibration.py DATA ENCODER OUT --list
    python benchmarks/calibration.py DATA ENCODER OUT --jobs "train-*"
    python benchmarks/calibration.py DATA ENCODER OUT --table

train-TASK-SEED
    A pipeline with one head, `init-config`'s settings, kept in OUT/work. PolicyQA has no training
    set here: the last fifth of its dev articles is the dev set, the others are learned from.
"""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import spacy
import typer
from jobs import SEEDS, Bench, Job, finetune, run_or_show
from quality import BATCH_SIZE

TASKS = ("wnut17", "ncbi", "sst2", "sick", "policyqa")
EPOCHS = 2
# Docs that are learned from; those of PolicyQA have nine questions each.
N_TRAIN = 1500
N_POLICYQA = 160


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    out: Annotated[Path, typer.Argument(help="The folder of the results")],
    jobs: Annotated[str, typer.Option(help="Which jobs to run, a pattern")] = "*",
    precision: str = "bf16",
    scale: Annotated[float, typer.Option(help="0.02: a test of this script")] = 1.0,
    show: Annotated[bool, typer.Option("--list", help="Show the jobs, run none")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print, run none")] = False,
) -> None:
    """Run the jobs that were not run yet."""
    bench = Bench(data, encoder, out.absolute(), precision, scale)
    run_or_show(bench, list_jobs(), jobs, show=show, print_tables=None)


def list_jobs() -> list[Job]:
    """All jobs, seed after seed, so that what is done first is of everything."""
    jobs = []
    for seed in SEEDS:
        for task in TASKS:
            name = f"train-{task}-{seed}"
            jobs.append(Job(name, 6, partial(train, name, task, seed)))
    return jobs


def train(name: str, task: str, seed: int, bench: Bench) -> dict[str, Any]:
    work = bench.work(name)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    def keep(nlp: spacy.Language) -> dict[str, Any]:
        nlp.to_disk(work / "model-last")
        return {}

    result = finetune(
        replace(bench, data=own_data(bench.data, work / "data")),
        work / "run",
        task,
        bench.encoder,
        n_train=N_POLICYQA if task == "policyqa" else N_TRAIN,
        n_dev=BATCH_SIZE,
        n_test=BATCH_SIZE,
        seed=seed,
        epochs=EPOCHS,
        look=keep,
    )
    del result["test"]  # of a few texts; `measure` reads them all
    return {"task": task, "seed": seed, **result}


def own_data(data: Path, folder: Path) -> Path:
    """Give a folder with the data sets, in which PolicyQA's dev set has lost its last fifth."""
    folder.mkdir(exist_ok=True)
    for source in data.iterdir():
        if source.name != "qa_policyqa" and not (folder / source.name).exists():
            (folder / source.name).symlink_to(source)
    policyqa = folder / "qa_policyqa"
    policyqa.mkdir(exist_ok=True)
    shutil.copy(data / "qa_policyqa" / "test.json", policyqa / "test.json")
    for part, name in (("train", "dev.json"), ("dev", "held_out.json")):
        articles = split_policyqa(data)[part]
        squad = {"version": "1.1", "data": articles}
        (policyqa / name).write_text(json.dumps(squad), encoding="utf8")
    return folder


def split_policyqa(data: Path) -> dict[str, list[dict]]:
    """Part the articles of PolicyQA's dev set into four fifths to learn from, and one for dev."""
    articles = json.loads((data / "qa_policyqa" / "dev.json").read_bytes())["data"]
    at = len(articles) * 4 // 5
    return {"train": articles[:at], "dev": articles[at:]}


if __name__ == "__main__":
    typer.run(main)
