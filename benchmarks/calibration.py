"""What calibration and thresholds are worth (jobs.py has the command line).

train-TASK-SEED
    A pipeline with one head, `init-config`'s settings, kept in OUT/work. PolicyQA has no training
    set here: the last fifth of its dev articles is the dev set, the others are learned from.
measure-TASK-SEED
    Its probabilities on the test set, before and after it is calibrated on the dev set; the same on
    each half of the dev set by the other; and what thresholds for a precision of 0.95 on the dev
    set give on the test set.
"""

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import spacy
from jobs import SEEDS, Bench, Job, finetune, of, print_table, read_results, run_script
from quality import BATCH_SIZE, FIFTHS, TASKS, convert_task

from spacy_bert_heads.calibration.collect import Collected, collect
from spacy_bert_heads.calibration.fit import fit_temperature
from spacy_bert_heads.calibration.measures import measure
from spacy_bert_heads.calibration.thresholds import tune
from spacy_bert_heads.evaluate import load_pipeline, read_examples

NAMES = ("wnut17", "ncbi", "sst2", "sick", "policyqa")
EPOCHS = 2
# Docs that are learned from; those of PolicyQA have nine questions each.
N_TRAIN = 1500
N_POLICYQA = 160
PRECISION = 0.95


def list_jobs() -> list[Job]:
    """All jobs, seed after seed, so that what is done first is of everything."""
    jobs = []
    for seed in SEEDS:
        for task in NAMES:
            trained = f"train-{task}-{seed}"
            jobs.append(Job(trained, 6, partial(train, trained, task, seed)))
            name = f"measure-{task}-{seed}"
            jobs.append(Job(name, 2, partial(measure_head, name, task, seed), needs=trained))
    return jobs


def parts_of(task: str) -> str:
    return FIFTHS if task == "policyqa" else task


def train(name: str, task: str, seed: int, bench: Bench) -> dict[str, Any]:
    work = bench.work(name)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    def keep(nlp: spacy.Language) -> dict[str, Any]:
        nlp.to_disk(work / "model-last")
        return {}

    settings = {"n_train": N_POLICYQA if task == "policyqa" else N_TRAIN, "n_test": BATCH_SIZE}
    settings |= {"seed": seed, "epochs": EPOCHS}
    result = finetune(bench, work / "run", parts_of(task), bench.encoder, look=keep, **settings)
    del result["test"]  # of a few texts; `measure` reads them all
    return {"task": task, "seed": seed, **result}


def measure_head(name: str, task: str, seed: int, bench: Bench) -> dict[str, Any]:
    work = bench.work(name)
    shutil.rmtree(work, ignore_errors=True)
    convert_task(bench.data, parts_of(task), work)
    model = bench.work(f"train-{task}-{seed}") / "model-last"
    nlp = load_pipeline(model, precision=bench.precision)
    examples = read_examples(nlp, work / "dev.spacy")
    (test,) = collect(nlp, read_examples(nlp, work / "test.spacy")).values()
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


# --- tables


def print_tables(bench: Bench) -> None:
    done = read_results(bench)
    rows = {f"{task}, {TASKS[task].head}": f"measure-{task}" for task in NAMES}
    print_table(
        done,
        "test",
        {
            "seeds": len,
            "claims": of("after.claims", ".0f"),
            "wrong": of(lambda run: run["after"]["errors"] / run["after"]["claims"]),
            "temperature": of("fitted.temperature", ".2f"),
            **changes("before", "after"),
            "95 % of perfect": of("after.simulated_error_95"),
            "errors left at 80 %": of("after.errors_at_80", ".2f"),
            "oracle": of("after.oracle_errors_at_80", ".2f"),
        },
        rows,
    )
    columns = {"claims": of("dev_after.claims", ".0f"), **changes("dev_before", "dev_after")}
    columns["95 % of perfect"] = of("dev_after.simulated_error_95")
    print_table(done, "dev, each half by the other", columns, rows)
    goals = {name: partial(count_met, goal) for name, goal in GOALS.items()}
    print_table(done, "runs that reach the goal", goals, rows)
    kept = {"P without": "precision_without", "P with": "kept_precision", "kept": "kept"}
    columns = {name: of(key) for name, key in kept.items()}
    print_table(done, f"thresholds for P {PRECISION} on dev; test", columns, rows)


def changes(before: str, after: str) -> dict[str, Callable[[list[dict]], str]]:
    """Columns that show what calibration changes."""

    def column(key: str, runs: list[dict]) -> str:
        return f"{of(f'{before}.{key}')(runs)} → {of(f'{after}.{key}')(runs)}"

    names = {"NLL": "nll", "Brier": "brier", "calibration error": "calibration_error"}
    return {name: partial(column, key) for name, key in names.items()}


def count_met(goal: Callable[[dict], bool], runs: list[dict]) -> str:
    return f"{sum(map(goal, runs))} of {len(runs)}"


# What is asked of calibrated probabilities.
GOALS: dict[str, Callable[[dict], bool]] = {
    "lower NLL": lambda run: run["after"]["nll"] < run["before"]["nll"],
    "lower Brier score": lambda run: run["after"]["brier"] < run["before"]["brier"],
    "calibration error below 95 % of perfect": lambda run: (
        run["after"]["calibration_error"] < run["after"]["simulated_error_95"]
    ),
    "half of the errors at 80 %": lambda run: run["after"]["errors_at_80"] <= 0.5,
    "or the oracle has more": lambda run: run["after"]["oracle_errors_at_80"] > 0.5,
    "same decisions": lambda run: run["same_decisions"],
}


if __name__ == "__main__":
    run_script(list_jobs, print_tables, default_precision="bf16")
