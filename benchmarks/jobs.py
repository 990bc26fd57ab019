"""Benchmarks that take hours, as named jobs: a JSON file for each, so that what is done is not run
again, work can be done in pieces, and files of several machines can be put into one folder."""

import json
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import spacy
import torch
import typer
from quality import BATCH_SIZE, HEADS, METRICS, convert_task, run_training
from spacy.tokens import DocBin
from spacy.vocab import Vocab
from thinc.api import Config

from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.init_config import init_config

RATE = 1e-4  # of fine-tuning: that of init-config
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Bench:
    """What all jobs share. scale: less than 1 to test this script, not the models."""

    data: Path
    encoder: str
    out: Path
    precision: str
    scale: float

    def scaled(self, number: float, least: int) -> int:
        return max(round(number * self.scale), least)

    def work(self, name: str) -> Path:
        return self.out / "work" / name

    def file(self, name: str) -> Path:
        return self.out / f"{name}.json"


@dataclass(frozen=True)
class Job:
    name: str
    minutes: float
    run: Callable[[Bench], dict[str, Any]]
    needs: str | None = None  # the job that makes its encoder


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
        chosen = [job for job in list_jobs() if fnmatch(job.name, jobs)]
        if table:
            print_tables(bench)
        elif show:
            show_jobs(bench, chosen)
        else:
            bench.out.mkdir(parents=True, exist_ok=True)
            run_jobs(bench, chosen)

    typer.run(main)


def show_jobs(bench: Bench, jobs: list[Job]) -> None:
    left = 0.0
    for job in jobs:
        if bench.file(job.name).exists():
            result = json.loads(bench.file(job.name).read_bytes())
            minutes, cpu = result["seconds"] / 60, result["cpu_seconds"] / 60
            print(f"{job.name:32} done in {minutes:.0f} min, {cpu:.0f} min of CPU time")
            continue
        left += job.minutes
        state = "begun" if bench.work(job.name).exists() else "missing"
        if job.needs and not bench.file(job.needs).exists():
            state += f", needs {job.needs}"
        print(f"{job.name:32} about {job.minutes:3.0f} min  {state}")
    print(f"{left / 60:.1f} hours are left, for one core.")


def run_jobs(bench: Bench, jobs: list[Job]) -> None:
    for job in jobs:
        if bench.file(job.name).exists():
            continue
        if job.needs and not (bench.work(job.needs) / "model-last").is_dir():
            model = bench.work(job.needs) / "model-last"
            print(f"{job.name} is left out: it needs {model}. Run {job.needs}.", flush=True)
            continue
        print(f"{job.name}, about {job.minutes:.0f} min", flush=True)
        start, start_cpu = time.perf_counter(), sum(os.times()[:4])
        result = {
            "job": job.name,
            "precision": bench.precision,
            "scale": bench.scale,
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "torch": torch.__version__,
            **job.run(bench),
        }
        result["seconds"] = round(time.perf_counter() - start)
        result["cpu_seconds"] = round(sum(os.times()[:4]) - start_cpu)
        partly = bench.file(job.name).with_suffix(".partly")
        partly.write_text(json.dumps(result, indent=1), encoding="utf8")
        partly.replace(bench.file(job.name))


def finetune(
    bench: Bench,
    folder: Path,
    task: str,
    encoder: str,
    *,
    n_train: int,
    n_dev: int,
    seed: int,
    epochs: int,
    n_test: int = 10_000,
    rate: float = RATE,
    change: Callable[[Config], None] = lambda config: None,
    look: Callable[[spacy.Language], dict[str, Any]] = lambda nlp: {},
) -> dict[str, Any]:
    """`spacy train` with the config of `init-config`, changed, if need be, by `change`; the last
    model's score, and what `look` finds in that model."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    folder.mkdir(parents=True)
    convert_task(bench.data, task, folder / "data")
    sizes = {"train": n_train, "dev": n_dev, "test": n_test}
    for part, size in sizes.items():
        (folder / part).mkdir()
        target = folder / part / f"{task}.spacy"
        take(folder / "data" / f"{part}.spacy", bench.scaled(size, least=BATCH_SIZE), target)
    key = METRICS[HEADS[task]]["score"]
    config = init_config([HEADS[task]], name=encoder)
    config["training"]["score_weights"] = {key: 1.0}  # so that the log has it
    steps = epochs * -(-bench.scaled(n_train, least=BATCH_SIZE) // BATCH_SIZE)
    overrides = {
        # Above any batch, so that none is checkpointed.
        "components.bert_encoder.model.max_batch_tokens": 16384,
        "training.eval_frequency": steps,
    }
    change(config)
    spent = run_training(folder, config, seed, epochs, rate, bench.precision, overrides)
    nlp = spacy.load(folder / "out" / "model-last")
    found = nlp.evaluate(list(BertCorpus(folder / "test")(nlp)))
    looked = look(nlp)
    shutil.rmtree(folder)
    return {
        "test": found[key],
        "metric": key,
        "steps": steps,
        "rate": rate,
        "train_seconds": round(spent["seconds"]),
        "train_cpu_seconds": round(spent["cpu_seconds"], 1),
        "train_peak_mib": round(spent["peak_mib"]),
        **looked,
    }


def make_random(encoder: str, folder: Path, *, seed: int = 0) -> None:
    """An encoder of the same shape, with the same tokenizer, that has learned nothing."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    torch.manual_seed(seed)
    AutoModel.from_config(AutoConfig.from_pretrained(encoder)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)


def take(source: Path, size: int, target: Path) -> None:
    """The first Docs of an order that is always the same."""
    docs = list(DocBin().from_disk(source).get_docs(Vocab()))
    random.Random(0).shuffle(docs)
    DocBin(docs=docs[:size], store_user_data=True).to_disk(target)


def read_results(bench: Bench) -> dict[str, dict]:
    """What is done, by the names of the jobs; it says so if some of it is a test of a script."""
    done = {path.stem: json.loads(path.read_bytes()) for path in sorted(bench.out.glob("*.json"))}
    scales = {result["scale"] for result in done.values()}
    if scales - {1.0}:
        print(f"**A test of the script, scale {', '.join(map(str, sorted(scales)))}.**\n")
    return done


def runs_of(done: dict[str, dict], prefix: str) -> list[dict]:
    """The results of a job with all seeds."""
    return [done[f"{prefix}-{seed}"] for seed in SEEDS if f"{prefix}-{seed}" in done]


def spread(values: list[float], form: str = ".3f") -> str:
    """The mean, and from where to where."""
    if not values:
        return "–"
    low, mean, high = (format(f(values), form) for f in (min, statistics.mean, max))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def draw_spread(axes: Any, points: list[tuple[float, list[float]]], **style: Any) -> None:
    """A line through the means of some values at each place, with marks from where to where;
    nothing where there are no values."""
    points = [(x, values) for x, values in points if values]
    if not points:
        return
    means = [statistics.mean(values) for _, values in points]
    low = [mean - min(values) for mean, (_, values) in zip(means, points, strict=True)]
    high = [max(values) - mean for mean, (_, values) in zip(means, points, strict=True)]
    axes.errorbar([x for x, _ in points], means, yerr=(low, high), capsize=3, **style)


def print_row(*cells: Any) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def print_head(*cells: Any) -> None:
    print_row(*cells)
    print("|---" * len(cells) + "|")
