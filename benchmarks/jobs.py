"""The runner of all benchmarks that train: named jobs, each with a line of OUT/SCRIPT.jsonl, from
which tables and plots are made. Jobs that have a line are not run again, and lines of several
machines may be put together.

    python benchmarks/SCRIPT.py DATA ENCODER OUT [--jobs "loss-*"] [--list | --table]
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import reduce
from operator import getitem, itemgetter
from pathlib import Path
from typing import Annotated, Any

import spacy
import torch
import typer
from spacy.tokens import DocBin
from spacy.vocab import Vocab
from tasks import BATCH_SIZE, TASKS, convert_task
from thinc.api import Config

from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.init_config import init_config

CONFIG = Path(__file__).parents[1] / "configs" / "pretrain.cfg"
RATE = 1e-4  # of fine-tuning: that of init-config
SEEDS = (0, 1, 2)
ALL = 10_000  # examples, more than any task has


@dataclass(frozen=True)
class Bench:
    """What all jobs share. scale: less than 1 to test a script, not the models."""

    data: Path
    encoder: str
    out: Path
    precision: str
    scale: float

    def scaled(self, number: float, least: int) -> int:
        return max(round(number * self.scale), least)

    @property
    def script(self) -> str:
        return Path(sys.argv[0]).stem

    @property
    def results(self) -> Path:
        return self.out / f"{self.script}.jsonl"

    def work(self, name: str) -> Path:
        return self.out / "work" / self.script / name


@dataclass(frozen=True)
class Job:
    name: str
    minutes: float  # of one core with AVX2
    run: Callable[[Bench], dict[str, Any]]
    needs: str | None = None  # the job whose pipeline it reads


def run_script(
    list_jobs: Callable[[], list[Job]],
    print_tables: Callable[[Bench], None],
    *,
    default_precision: str = "fp32",
) -> None:
    """Be the command line of a script with jobs."""

    def main(
        data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
        encoder: Annotated[str, typer.Argument(help="The checkpoint")],
        out: Annotated[Path, typer.Argument(help="The folder of the results")],
        jobs: Annotated[str, typer.Option(help="Which jobs to run, a pattern")] = "*",
        precision: str = default_precision,
        scale: Annotated[float, typer.Option(help="0.02: a test of this script")] = 1.0,
        show: Annotated[bool, typer.Option("--list", help="Show the jobs, run none")] = False,
        table: Annotated[bool, typer.Option("--table", help="Print and plot, run none")] = False,
    ) -> None:
        """Run the jobs that were not run yet."""
        bench = Bench(data, encoder, out.absolute(), precision, scale)
        named = {job.name: job for job in list_jobs()}
        chosen = [job for name, job in named.items() if fnmatch(name, jobs)]
        if table:
            scales = {result["scale"] for result in read_results(bench).values()}
            if scales - {1.0}:
                print(f"**A test of the script, scale {', '.join(map(str, sorted(scales)))}.**\n")
            print_tables(bench)
        elif show:
            show_jobs(bench, chosen)
        else:
            bench.out.mkdir(parents=True, exist_ok=True)
            for job in chosen:
                if job.name not in read_results(bench):  # another process may have added it
                    run_job(bench, job, named)

    typer.run(main)


def show_jobs(bench: Bench, jobs: list[Job]) -> None:
    done = read_results(bench)
    missing = [job for job in jobs if job.name not in done]
    for job in jobs:
        state = f"missing, about {job.minutes:.0f} min" if job in missing else "done"
        print(f"{job.name:32} {state}{f', needs {job.needs}' if job.needs else ''}")
    print(f"{sum(job.minutes for job in missing) / 60:.1f} hours are left, for one core.")


def run_job(bench: Bench, job: Job, jobs: dict[str, Job]) -> None:
    """Run a job, after the one that it needs if its pipeline is missing: results may come from
    another machine."""
    if job.needs and not (bench.work(job.needs) / "model-last").is_dir():
        run_job(bench, jobs[job.needs], jobs)
    print(f"{job.name}, about {job.minutes:.0f} min", flush=True)
    start, start_cpu = time.perf_counter(), sum(os.times()[:4])
    result = {
        "job": job.name,
        "precision": bench.precision,
        "scale": bench.scale,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        **job.run(bench),
    }
    result["seconds"] = round(time.perf_counter() - start)
    result["cpu_seconds"] = round(sum(os.times()[:4]) - start_cpu)
    with bench.results.open("a", encoding="utf8") as file:
        file.write(json.dumps(result) + "\n")


# --- what jobs do


def finetune(
    bench: Bench,
    folder: Path,
    task: str,
    encoder: str,
    *,
    seed: int,
    epochs: int,
    n_train: int = ALL,
    n_dev: int = 50,  # no checkpoint is chosen by it
    n_test: int = ALL,
    rate: float = RATE,
    change: Callable[[Config], None] = lambda config: None,
    look: Callable[[spacy.Language], dict[str, Any]] = lambda nlp: {},
) -> dict[str, Any]:
    """`spacy train` with the config of `init-config`, changed, if need be, by `change`; the last
    model's score, and what `look` finds in that model."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    convert_task(bench.data, task, folder / "data")
    for part, size in {"train": n_train, "dev": n_dev, "test": n_test}.items():
        (folder / part).mkdir()
        target = folder / part / f"{task}.spacy"
        take(folder / "data" / f"{part}.spacy", bench.scaled(size, least=BATCH_SIZE), target)
    # A batch is 32 pairs, as in the plain loop.
    corpus = BertCorpus(folder / "train", max_pairs=1)
    steps_per_epoch = -(-sum(1 for _ in corpus(spacy.blank("en"))) // BATCH_SIZE)
    steps = epochs * steps_per_epoch
    config = init_config([TASKS[task].head], name=encoder)
    config["paths"] |= {part: str(folder / part) for part in ("train", "dev")}
    config["system"]["seed"] = seed
    config["corpora"]["train"]["max_pairs"] = 1
    # Above any batch, so that none is checkpointed.
    more = {"precision": bench.precision, "max_batch_tokens": 16384}
    config["components"]["bert_encoder"]["model"] |= more
    training = config["training"]
    training |= {"max_steps": steps - 1, "eval_frequency": steps}  # spaCy counts from 0
    training["score_weights"] = {TASKS[task].metric: 1.0}  # so that the log has it
    training["batcher"]["size"] = BATCH_SIZE
    schedule = {"initial_rate": rate, "warmup_steps": steps // 10, "total_steps": steps}
    training["optimizer"]["learn_rate"] |= schedule
    change(config)
    config.to_disk(folder / "config.cfg")
    command = ["train", folder / "config.cfg", "--output", folder / "out"]
    subprocess.run([sys.executable, "-m", "spacy", *command], check=True)
    nlp = spacy.load(folder / "out" / "model-last")
    found = nlp.evaluate(list(BertCorpus(folder / "test")(nlp)))
    result = {
        "test": found[TASKS[task].metric],
        "metric": TASKS[task].metric,
        "steps": steps,
        "rate": rate,
        **look(nlp),
    }
    shutil.rmtree(folder)
    return result


def pretrain(bench: Bench, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`bert pretrain` into the folder of a job, resumed if it was interrupted; the last report of
    its log. A setting of None is written as null."""
    output = bench.work(name)
    given = {"paths.cache": bench.work("cache"), "text.workers": 1} | dict(settings)
    given["training.precision"] = bench.precision
    words = []
    for key, value in given.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value, default=str)]
    command = [sys.executable, "-m", "spacy", "bert", "pretrain", str(CONFIG), str(output)]
    resume = ["--resume"] if output.exists() else []
    subprocess.run([*command, *resume, *words], check=True)
    return json.loads((output / "log.jsonl").read_text("utf8").splitlines()[-1])


def take(source: Path, size: int, target: Path) -> None:
    """The first Docs of an order that is always the same."""
    docs = list(DocBin().from_disk(source).get_docs(Vocab()))
    random.Random(0).shuffle(docs)
    DocBin(docs=docs[:size], store_user_data=True).to_disk(target)


# --- tables and plots


def read_results(bench: Bench) -> dict[str, dict]:
    """The results by the names of their jobs."""
    lines = bench.results.read_text("utf8").splitlines() if bench.results.exists() else []
    results = sorted(map(json.loads, lines), key=itemgetter("job"))
    return {result["job"]: result for result in results}


def runs_of(done: dict[str, dict], prefix: str) -> list[dict]:
    """The results of a job with all seeds."""
    found = (done.get(f"{prefix}-{seed}") for seed in range(10))
    return [run for run in found if run is not None]


def spread(values: list[float], form: str = ".3f") -> str:
    """The mean, and from where to where."""
    if not values:
        return "–"
    low, mean, high = (format(f(values), form) for f in (min, statistics.mean, max))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def of(what: str | Callable[[dict], float], form: str = ".3f") -> Callable[[list[dict]], str]:
    """A column: a figure of each run that has it, by a function or by its keys with dots
    between."""
    get = what if callable(what) else lambda run: reduce(getitem, what.split("."), run)

    def column(runs: list[dict]) -> str:
        values = []
        for run in runs:
            with suppress(KeyError):
                values.append(get(run))
        return spread(values, form)

    return column


def print_table(
    done: dict[str, dict],
    title: str,
    columns: Mapping[str, Callable[[list[dict]], Any]],
    rows: Mapping[str, str | list[dict]],
) -> None:
    """A table of what columns say of the runs of each row, or of those of a job with all seeds;
    rows without any are left out."""
    print_head(title, *columns)
    for name, prefix in rows.items():
        if runs := runs_of(done, prefix) if isinstance(prefix, str) else prefix:
            print_row(name, *(column(runs) for column in columns.values()))
    print()


def print_row(*cells: Any) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def print_head(*cells: Any) -> None:
    print_row(*cells)
    print("|---" * len(cells) + "|")
