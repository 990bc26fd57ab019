"""What calibration and thresholds are worth: named jobs, a JSON file for each, tables of those.

    python benchmarks/calibration.py DATA ENCODER OUT --list
    python benchmarks/calibration.py DATA ENCODER OUT --jobs "train-*"
    python benchmarks/calibration.py DATA ENCODER OUT --table

train-TASK-SEED
    A pipeline with one head, `init-config`'s settings, kept in OUT/work. PolicyQA has no training
    set here: the last fifth of its dev articles is the dev set, the others are learned from.
measure-TASK-SEED
    Its probabilities on the test set, before and after it is calibrated on the dev set; the same on
    each half of the dev set by the other; and what thresholds for a precision of 0.95 on the dev
    set give on the test set.
"""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import spacy
from jobs import (
    SEEDS,
    Bench,
    Job,
    finetune,
    print_head,
    print_row,
    read_results,
    run_script,
    runs_of,
    spread,
)
from quality import BATCH_SIZE, HEADS, convert_task

from spacy_bert_heads.calibration.collect import Collected, collect
from spacy_bert_heads.calibration.fit import fit_temperature
from spacy_bert_heads.calibration.measures import measure
from spacy_bert_heads.calibration.thresholds import tune
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.evaluate import load_pipeline, read_examples

TASKS = ("wnut17", "ncbi", "sst2", "sick", "policyqa")
EPOCHS = 2
# Docs that are learned from; those of PolicyQA have nine questions each.
N_TRAIN = 1500
N_POLICYQA = 160
PRECISION = 0.95


def list_jobs() -> list[Job]:
    """All jobs, seed after seed, so that what is done first is of everything."""
    jobs = []
    for seed in SEEDS:
        for task in TASKS:
            trained = f"train-{task}-{seed}"
            jobs.append(Job(trained, 6, partial(train, trained, task, seed)))
            name = f"measure-{task}-{seed}"
            jobs.append(Job(name, 2, partial(measure_head, name, task, seed), needs=trained))
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


def measure_head(name: str, task: str, seed: int, bench: Bench) -> dict[str, Any]:
    work = bench.work(name)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    own = own_data(bench.data, work / "data")
    convert_task(own, task, work / "parts")
    if task == "policyqa":
        convert(own / "qa_policyqa" / "held_out.json", work / "parts" / "dev.spacy")
    nlp = load_pipeline(
        bench.work(f"train-{task}-{seed}") / "model-last", precision=bench.precision
    )
    examples = read_examples(nlp, work / "parts" / "dev.spacy")
    (test,) = collect(nlp, read_examples(nlp, work / "parts" / "test.spacy")).values()
    halves = [one for start in (0, 1) for one in collect(nlp, examples[start::2]).values()]
    dev = Collected(test.head, [part for half in halves for part in half.parts])
    claims = test.claims()
    crossed = cross_halves(dev, halves)
    fitted = fit_temperature(dev)
    test.head.set_temperature(fitted.temperature)
    after = test.claims()
    thresholds = {row.label: row.threshold for row in tune(dev, "precision", PRECISION)}
    kept = [one for one in after if one.probability >= thresholds.get(one.label, 0.0)]
    shutil.rmtree(work)
    return {
        "task": task,
        "seed": seed,
        "dev_before": crossed[0],
        "dev_after": crossed[1],
        "before": measure(claims),
        "after": measure(after),
        "fitted": fitted._asdict(),
        "same_decisions": [one[:3:2] for one in claims] == [one[:3:2] for one in after],
        "kept": len(kept) / len(after),
        "kept_precision": sum(one.is_right for one in kept) / max(len(kept), 1),
        "precision_without": 1 - sum(not one.is_right for one in after) / len(after),
    }


def cross_halves(dev: Collected, halves: list[Collected]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the dev set before and after each half of it is calibrated by the other: what a
    temperature does to data that is like that of the calibration, which the test sets may not
    be."""
    after = []
    for one, other in (halves, halves[::-1]):
        with dev.head.trying():
            dev.head.set_temperature(fit_temperature(one).temperature)
            after += other.claims()
    return measure(dev.claims()), measure(after)


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


# --- tables


def print_tables(bench: Bench) -> None:
    done = read_results(bench)
    figures = ("nll", "brier", "calibration_error")
    print_head(
        "test", "seeds", "claims", "wrong", "temperature", "NLL", "Brier", "calibration error",
        "95 % of perfect", "errors left at 80 %", "oracle",
    )  # fmt: skip
    for task in TASKS:
        runs = runs_of(done, f"measure-{task}")
        if not runs:
            continue
        after = [run["after"] for run in runs]
        print_row(
            f"{task}, {HEADS[task]}",
            len(runs),
            spread([one["claims"] for one in after], ".0f"),
            spread([one["errors"] / one["claims"] for one in after]),
            spread([run["fitted"]["temperature"] for run in runs], ".2f"),
            *(
                f"{spread([run['before'][key] for run in runs])} → "
                + spread([one[key] for one in after])
                for key in figures
            ),
            spread([one["simulated_error_95"] for one in after]),
            spread([one["errors_at_80"] for one in after], ".2f"),
            spread([one["oracle_errors_at_80"] for one in after], ".2f"),
        )
    print()
    print_head("dev, each half by the other", "claims", "NLL", "Brier", "calibration error", "95 %")
    for task in TASKS:
        runs = runs_of(done, f"measure-{task}")
        if runs:
            before, after = ([run[f"dev_{when}"] for run in runs] for when in ("before", "after"))
            print_row(
                task,
                spread([one["claims"] for one in after], ".0f"),
                *(
                    f"{spread([one[key] for one in before])} → {spread([x[key] for x in after])}"
                    for key in figures
                ),
                spread([one["simulated_error_95"] for one in after]),
            )
    print()
    print_head("runs that reach the goal", *GOALS, "same decisions")
    for task in TASKS:
        runs = runs_of(done, f"measure-{task}")
        if runs:
            met = ([goal(run["before"], run["after"]) for run in runs] for goal in GOALS.values())
            same = sum(run["same_decisions"] for run in runs)
            print_row(
                task, *(f"{sum(one)} of {len(runs)}" for one in met), f"{same} of {len(runs)}"
            )
    print()
    print_head(f"thresholds for P {PRECISION} on dev; test", "P without", "P with", "kept")
    for task in TASKS:
        runs = runs_of(done, f"measure-{task}")
        if runs:
            keys = ("precision_without", "kept_precision", "kept")
            print_row(task, *(spread([run[key] for run in runs]) for key in keys))


# By what is asked of calibrated probabilities, of the figures before and after.
GOALS = {
    "lower NLL": lambda before, after: after["nll"] < before["nll"],
    "lower Brier score": lambda before, after: after["brier"] < before["brier"],
    "calibration error below 95 % of perfect": lambda before, after: (
        after["calibration_error"] < after["simulated_error_95"]
    ),
    "half of the errors at 80 %": lambda before, after: after["errors_at_80"] <= 0.5,
    "or the oracle has more": lambda before, after: after["oracle_errors_at_80"] > 0.5,
}


if __name__ == "__main__":
    run_script(list_jobs, print_tables, default_precision="bf16")
