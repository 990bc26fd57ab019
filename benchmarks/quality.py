"""A plain Hugging Face loop and `spacy train`, with the same settings (jobs.py has the command
line).

TASK-WAY-SEED
    The usual settings, those of BERT (5e-5, heads at the same learning rate, 3 epochs), by a plain
    loop (but for questions) and by `spacy train`; ours predicts the test set in every precision.

Nothing is chosen by a score on a test set.
"""

from functools import partial
from pathlib import Path
from typing import Any

import spacy
from jobs import Bench, Job, finetune, of, print_table, read_results, run_script
from plain_loops import run_plain
from tasks import TASKS
from thinc.api import Config

from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.evaluate import set_precision

NAMES = ("wnut17", "sst2", "sick", "xquad", "policyqa")
WAYS = ("plain", "ours")
PRECISIONS = ("fp32", "bf16", "int8")
SEEDS = (0, 1)
EPOCHS, RATE = 3, 5e-5


def list_jobs() -> list[Job]:
    """All jobs, seed after seed, so that what is done first is of everything."""
    return [
        Job(f"{task}-{way}-{seed}", 20, partial(train, task, way, seed))
        for seed in SEEDS
        for task in NAMES
        for way in WAYS
        if way == "ours" or TASKS[task].head != "qa"
    ]


def train(task: str, way: str, seed: int, bench: Bench) -> dict[str, Any]:
    settings: dict[str, Any] = {"seed": seed, "epochs": EPOCHS}
    if way == "plain":
        settings |= {"precision": bench.precision, "scale": bench.scale, "learn_rate": RATE}
        return {"test": run_plain(task, bench.data, bench.encoder, **settings)}
    folder = bench.work(f"{task}-{seed}")
    look = partial(score_precisions, task, folder)
    settings |= {"rate": RATE, "change": as_plain, "look": look}
    return finetune(bench, folder, task, bench.encoder, **settings)


def as_plain(config: Config) -> None:
    """The head learns at the same rate, and all questions have answers."""
    for name, component in config["components"].items():
        if name != "bert_encoder":
            component["model"]["learning_rate_multiplier"] = 1.0
    if "bert_qa" in config["components"]:
        config["components"]["bert_qa"]["no_answer_threshold"] = 1.0


def score_precisions(task: str, folder: Path, nlp: spacy.Language) -> dict[str, Any]:
    """The score on the test set in each precision, by the same weights."""
    found = {}
    for precision in PRECISIONS:
        set_precision(nlp, precision)
        scores = nlp.evaluate(list(BertCorpus(folder / "test")(nlp)))
        found[precision] = scores[TASKS[task].metric]
    return {"precisions": found}


def print_tables(bench: Bench) -> None:
    done = read_results(bench)
    rows = {f"{task}, {way}": f"{task}-{way}" for task in NAMES for way in WAYS}
    columns = {"score, test": of("test", ".4f")}
    columns |= {f"the same in {name}": of(f"precisions.{name}", ".4f") for name in PRECISIONS}
    print_table(done, "", columns, rows)


if __name__ == "__main__":
    run_script(list_jobs, print_tables)
