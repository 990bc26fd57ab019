"""Speed and memory beside what a spaCy user can pick today: from text to annotated Docs, and of
training. Every contender works in a process of its own, all take turns, and get the same encoder,
texts and threads. Heads are not trained: only time is measured, and whether those with the same
weights find the same. (Entities can't all be: a token of spaCy's may be two words of BERT's.)

    python benchmarks/speed.py DATA ENCODER --tasks ner,textcat --json speed.json --plot speed.png

The `contenders` have names that begin with their system: `ours-bf16`, `hf-pipeline-b8` (batches of
8), `by-hand-fp32`; `--contenders ours,by-hand-fp32` takes some of them. What needs another
environment names a command for it, which is split as in a shell:

    --python "spacy-transformers=env PYTHONPATH=/opt/old /usr/bin/python3"
"""

import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import torch
import torch.nn.functional as F
import transformers
import typer
from adaptation import read_wikitext
from contenders import BATCH_SIZE, HEADS, MAX_ANSWER, TOKEN_BUDGET
from plain_loops import FILES, list_questions, load_squad, read_conll, read_sick
from spacy.language import Language
from spacy.tokens import Doc
from transformers import AutoConfig

from spacy_bert_heads import to_hf
from spacy_bert_heads.encoder.model import checkpoint_of, shim_of
from spacy_bert_heads.text.packing import pack_docs

OURS = ("ours-fp32", "ours-bf16", "ours-int8")
SPACY = ("spacy-transformers", "spacy-curated-transformers")
HUGGING_FACE = tuple(f"hf-pipeline-b{size}" for size in (1, 8, 16))
BY_HAND = ("by-hand-fp32", "by-hand-bf16")
TRAINERS = ("hf-trainer", "hf-trainer-grouped", "hf-trainer-bf16")
CONTENDERS = {
    "ner": (*OURS, *SPACY, *HUGGING_FACE, *BY_HAND),
    "textcat": (*OURS, *SPACY, *HUGGING_FACE, *BY_HAND),
    "nli": (*OURS, *HUGGING_FACE, *BY_HAND),
    "qa": (*OURS, *HUGGING_FACE, *BY_HAND),
    "qa-long": (*OURS, *HUGGING_FACE, *BY_HAND),
    "train": (*OURS[:2], *TRAINERS, *SPACY),
    "joint": OURS,
    "overhead": OURS,
    "growth": OURS,  # the first that is chosen
}
# What others are compared with: the fastest of these.
BASES = {
    "ner": ("spacy-transformers",),
    "textcat": HUGGING_FACE,
    "nli": HUGGING_FACE,
    "qa": HUGGING_FACE,
    "qa-long": HUGGING_FACE,
    "train": ("hf-trainer",),
}
UNITS = {"nli": "pairs/s", "qa": "questions/s", "qa-long": "questions/s", "train": "steps/s"}
# Documents, pairs, contexts, papers, steps.
SIZES = {"ner": 1000, "nli": 1000, "qa": 80, "qa-long": 2, "train": 20}
QUICK_SIZES = {"ner": 120, "nli": 60, "qa": 4, "qa-long": 1, "train": 3}
LABELS = {
    "ner": ["corporation", "creative-work", "group", "location", "person", "product"],
    "textcat": ["negative", "positive"],
    "nli": ["contradiction", "entailment", "neutral"],
    "qa": [],
}
# A recognizer of random numbers finds entities everywhere, and no user's decoder has so much to do.
# This one learns from so many sentences, and tags this share of the words that are timed.
FITTED = 300
TAGGED = 0.1
QUESTIONS = [
    "What was studied?",
    "Who was examined?",
    "Where was the study made?",
    "Which method was used?",
    "How many patients were there?",
    "What causes the disease?",
    "How is it transmitted?",
    "Which treatment is recommended?",
]
CPU_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
BATCH = 64  # documents of a stream that are annotated at once
SHOWN = 50  # inputs whose results are compared


@dataclass
class Bench:
    """What all jobs share. amounts: of each file of inputs, its words, pairs, questions, steps."""

    data: Path
    encoder: str
    work: Path
    device: str
    threads: int
    cpu_time: bool
    quick: bool
    full: bool
    rounds: int
    chosen: list[str]
    pythons: dict[str, list[str]]
    nlp: Language = field(default_factory=lambda: spacy.blank("en"))
    amounts: dict[str, float] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def size(self, task: str) -> int:
        return (QUICK_SIZES if self.quick else SIZES)[task]

    def takes(self, contender: str) -> bool:
        all_names = {name for names in CONTENDERS.values() for name in names}
        return not self.chosen or any(
            contender == name or (name not in all_names and contender.startswith(f"{name}-"))
            for name in self.chosen
        )


@dataclass
class Job:
    """What one process measures. task: the table. kind: what is done. inputs: the name of a file.
    amount: of work in a round, in the unit. detail: behind the contender's name in the table."""

    task: str
    contender: str
    kind: str
    inputs: str
    amount: float
    rounds: int
    detail: str = ""
    warm_up: int = 16
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.contender}, {self.detail}" if self.detail else self.contender

    @property
    def unit(self) -> str:
        return UNITS.get(self.task, "words/s")


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    tasks: str = ",".join(CONTENDERS),
    contenders: Annotated[str, typer.Option(help="Names or what they begin with")] = "",
    rounds: Annotated[int, typer.Option(help="0: 5, or 3 with --quick")] = 0,
    threads: Annotated[int, typer.Option(help="On a CPU; 0 for all")] = 0,
    device: str = "cpu",
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="Seconds of the processor: for a busy machine")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few inputs, 3 rounds")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="100,000 documents, a million words")
    ] = False,
    python: Annotated[list[str] | None, typer.Option(help="NAME=COMMAND of a contender")] = None,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    plot: Annotated[Path | None, typer.Option(help="A PNG file")] = None,
) -> None:
    """Measure the contenders of each task in turns, print a table a task."""
    pythons = {
        name: shlex.split(command) for name, command in (p.split("=", 1) for p in python or ())
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            data=data,
            encoder=encoder,
            work=Path(folder),
            device=device,
            threads=threads,
            cpu_time=cpu_time,
            quick=quick,
            full=full,
            rounds=rounds or (3 if quick else 5),
            chosen=[name for name in contenders.split(",") if name],
            pythons=pythons,
        )
        if threads:
            torch.set_num_threads(threads)
        prepare(bench)
        report: dict[str, Any] = {"machine": describe_machine(bench), "rows": []}
        for task in tasks.split(","):
            rows = measure(bench, list(MAKE_JOBS.get(task, task_jobs)(bench, task)))
            show(task, rows)
            report["rows"] += rows
            if json_file:
                report["machine"]["versions"] = bench.versions
                json_file.write_text(json.dumps(report, indent=1))
    if plot:
        draw(report, plot)


# --- what is measured


def prepare(bench: Bench) -> None:
    """Write our pipeline, the same heads for Hugging Face's classes, and the inputs."""
    texts = read_texts(bench)
    sick = read_sick(bench.data / FILES["sick"][0] / FILES["sick"][3])
    contexts: dict[str, list[str]] = {}
    for question in list_questions(load_squad(bench.data / "qa_xquad" / "xquad.en.json")):
        contexts.setdefault(question["context"], []).append(question["question"])
    papers = (bench.data / "raw_covid_papers" / "papers.jsonl").read_text(encoding="utf8")
    by_length = sorted((json.loads(line)["text"] for line in papers.splitlines()), key=len)
    middle = len(by_length) // 2
    wnut = read_conll(bench.data / FILES["wnut17"][0] / FILES["wnut17"][1])
    inputs: dict[str, list[Any]] = {
        "texts": texts,
        "pairs": [(first, [second]) for (first, second), _ in sick[: bench.size("nli")]],
        "questions": list(contexts.items())[: bench.size("qa")],
        "papers": [(paper, QUESTIONS) for paper in by_length[middle:][: bench.size("qa-long")]],
        "sentences": wnut[: bench.size("train") * BATCH_SIZE],
    }
    for name, items in inputs.items():
        amount = sum(len(second) for _, second in items) if name in PAIRED else len(items)
        write_inputs(bench, name, items, amount)
    bench.amounts["texts"] = count_words(bench, texts)
    bench.amounts["sentences"] = bench.size("train")

    nlp = make_pipeline(bench.encoder)
    fit_recognizer(nlp, wnut[:FITTED], texts[:SHOWN])
    count_flops(bench, nlp, texts)
    nlp.to_disk(bench.work / "pipeline")
    for task, head in HEADS.items():
        to_hf(nlp, head, bench.work / task)


PAIRED = ("pairs", "questions", "papers")


def write_inputs(bench: Bench, name: str, items: list[Any], amount: float) -> None:
    (bench.work / f"{name}.json").write_text(json.dumps(items), encoding="utf8")
    bench.amounts[name] = amount


def read_texts(bench: Bench) -> list[str]:
    """Tweets and paragraphs, as many of each."""
    folder, *files = FILES["wnut17"]
    tweets = [
        " ".join(words) for file in files for words, _ in read_conll(bench.data / folder / file)
    ]
    paragraphs = [p for article in read_wikitext(bench.data) for p in article.split("\n")]
    chance, half = random.Random(0), bench.size("ner") // 2
    texts = chance.sample(tweets, half) + chance.sample(paragraphs, half)
    chance.shuffle(texts)
    return texts


def count_words(bench: Bench, texts: list[str]) -> int:
    return sum(len(doc) for doc in bench.nlp.pipe(texts))


def make_pipeline(encoder: str) -> Language:
    """All heads on one encoder, as a user puts it together."""
    nlp = spacy.blank("en")
    nlp.batch_size = 128  # as in the configs of `init-config`, spaCy's and ours
    nlp.add_pipe("bert_encoder", config={"model": {"name": encoder}})
    settings = {"bert_qa": {"no_answer_threshold": 1.0, "max_answer_length": MAX_ANSWER}}
    for task, head in HEADS.items():
        pipe: Any = nlp.add_pipe(head, config=settings.get(head, {}))
        for label in LABELS[task]:
            pipe.add_label(label)
    torch.manual_seed(0)
    nlp.initialize()
    return nlp


def fit_recognizer(
    nlp: Language, sentences: list[tuple[list[str], list[str]]], texts: list[str]
) -> None:
    """Give the recognizer the tags of sentences, by least squares on the encoder's states, and move
    the bias of "O" until it tags as many words of the texts as a trained one."""
    encoder, ner = (nlp.get_pipe(name) for name in ("bert_encoder", "bert_ner"))
    module: Any = shim_of(ner.model).module
    encoded = encoder.predict([Doc(nlp.vocab, words=words) for words, _ in sentences])
    states = encoded.states[torch.from_numpy(encoded.batch.tokens.first_positions())]
    targets = torch.tensor([ner.tags.index(tag) for _, tags in sentences for tag in tags])
    with torch.no_grad():
        if module.dense is not None:
            states = module.dense(states)
        inputs = torch.cat([states, torch.ones(len(states), 1)], dim=1)
        weights = torch.linalg.lstsq(inputs, F.one_hot(targets).float()).solution
        module.classifier.weight.copy_(weights[:-1].T)
        module.classifier.bias.copy_(weights[-1])
        logits = ner.predict([nlp.make_doc(text) for text in texts]).logits
        lead = logits[:, 1:].amax(dim=1) - logits[:, 0]
        module.classifier.bias[0] += float(np.quantile(lead.cpu(), 1 - TAGGED))


def count_flops(bench: Bench, nlp: Language, texts: list[str]) -> None:
    """Of the products of a layer over a full batch, and of the whole encoder over the texts: of the
    linear layers and of attention, padding not counted."""
    model: Any = nlp.get_pipe("bert_encoder").model
    config, cut = (
        checkpoint_of(model).config,
        {key: model.attrs[key] for key in ("window", "stride")},
    )
    width = config.hidden_size
    per_piece = 2 * (4 * width**2 + 2 * width * config.intermediate_size)
    docs = list(bench.nlp.pipe(texts))
    lengths = pack_docs(docs, checkpoint_of(model).tokenizer, **cut).seqlens
    attention = 4 * width * (lengths**2).sum()
    flops = config.num_hidden_layers * (per_piece * lengths.sum() + attention)
    bench.amounts["flops"] = float(flops)
    write_inputs(bench, "times", [0] * 3, 3.0 * TOKEN_BUDGET * per_piece)


def task_jobs(bench: Bench, task: str) -> Iterator[Job]:
    """A job for each contender."""
    kind = task.removesuffix("-long")
    files = {"nli": "pairs", "qa": "questions", "qa-long": "papers", "train": "sentences"}
    inputs = files.get(task, "texts")
    options = {"labels": LABELS.get(kind, LABELS["ner"]), "folder": str(bench.work / "trainer")}
    warm_up = {"train": 2 * BATCH_SIZE, "qa": 2, "qa-long": 1}.get(task, 16)
    for contender in filter(bench.takes, CONTENDERS[task]):
        amount = bench.amounts[inputs]
        job = Job(task, contender, kind, inputs, amount, bench.rounds)
        yield replace(job, warm_up=warm_up, options=options)


def joint_jobs(bench: Bench, task: str) -> Iterator[Job]:
    """Each head alone, and both on one encoder."""
    for contender in filter(bench.takes, CONTENDERS[task]):
        job = Job(task, contender, task, "texts", bench.amounts["texts"], bench.rounds)
        for heads in (["ner"], ["textcat"], ["ner", "textcat"]):
            yield replace(job, detail=" + ".join(heads), options={"heads": heads})


def overhead_jobs(bench: Bench, task: str) -> Iterator[Job]:
    """Ours, and what the machine could do in each precision."""
    ours = list(filter(bench.takes, CONTENDERS[task]))
    products = [f"products-{name.removeprefix('ours-')}" for name in ours]
    if "products-fp32" in products and bench.device == "cpu":
        products.append("products-onednn")
    for contender in (*ours, *products):
        inputs = "texts" if contender in ours else "times"
        yield Job(task, contender, task, inputs, bench.amounts[inputs], bench.rounds, warm_up=1)


def growth_jobs(bench: Bench, task: str) -> Iterator[Job]:
    """Streams of more and more documents, large and small batches, longer and longer texts."""
    texts = json.loads((bench.work / "texts.json").read_text(encoding="utf8"))
    words = [len(doc) for doc in bench.nlp.pipe(texts)]
    scale = 10 if bench.quick else 1
    streams, sizes = [1_000 // scale, 10_000 // scale], [10_000 // scale, 100_000 // scale]
    if bench.full:
        streams, sizes = [*streams, 100_000], [*sizes, 1_000_000]
    for contender in list(filter(bench.takes, CONTENDERS[task]))[:1]:
        job = Job(task, contender, "ner", "texts", sum(words), bench.rounds)
        for batch in (64, 1_000):
            yield replace(job, detail=f"batches of {batch:,}", options={"batch_size": batch})
        job.rounds = 1
        for count in streams:
            rounds, last = divmod(count, len(texts))
            yield replace(
                job,
                amount=rounds * sum(words) + sum(words[:last]),
                detail=f"{count:,} documents",
                options={"repeat": count, "batch_size": BATCH},
            )
        for size in sizes:
            times = -(-size // sum(words))
            ends = np.cumsum(words * times)
            last = int(np.searchsorted(ends, size))
            write_inputs(bench, f"text-{size}", [" ".join((texts * times)[: last + 1])], ends[last])
            amount = bench.amounts[f"text-{size}"]
            detail = f"a text of {size:,} words"
            yield replace(job, inputs=f"text-{size}", amount=amount, detail=detail, warm_up=1)


MAKE_JOBS = {"joint": joint_jobs, "overhead": overhead_jobs, "growth": growth_jobs}


# --- measuring


class LeftOut(Exception):
    """A contender can't be measured."""


class Process:
    """A process with a contender that is ready, and what it has answered."""

    def __init__(self, bench: Bench, job: Job) -> None:
        self.job = job
        self.rounds: list[dict[str, Any]] = []
        self.shown: list[Any] | None = None
        system = next(name for name in SYSTEMS if job.contender.startswith(name))
        command = bench.pythons.get(job.contender) or bench.pythons.get(system) or [sys.executable]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        if bench.threads:
            names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
            environment |= dict.fromkeys(names, str(bench.threads))
        self.log = bench.work / f"{job.task}, {job.title}.log"
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [*command, str(Path(__file__).with_name("contenders.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        versions = self.ask(
            "setup",
            task=job.kind,
            system=system,
            variant=job.contender.removeprefix(system).removeprefix("-"),
            inputs=str(bench.work / f"{job.inputs}.json"),
            encoder=bench.encoder,
            pipeline=str(bench.work / "pipeline"),
            checkpoint=str(bench.work / job.kind),
            data=str(bench.data),
            device=bench.device,
            options=job.options,
            warm_up=job.warm_up,
            threads=bench.threads,
            cpu_time=bench.cpu_time,
        )
        bench.versions.setdefault(job.contender, versions)

    def ask(self, what: str, **options: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps({"do": what, **options}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise LeftOut(" ".join([f"its process ended with {self.process.wait()}", *last]))
        reply = json.loads(line)
        if "error" in reply:
            self.close()
            raise LeftOut(reply["error"])
        return reply["answer"]

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


SYSTEMS = ("ours", "hf-pipeline", "hf-trainer", "by-hand", "products", *SPACY)
# These get the same weights, so they should find the same.
COMPARED = ("ours", "hf-pipeline", "by-hand")


def attempt(job: Job, function: Callable, *args: Any, **options: Any) -> Any:
    """What the function gives, or None and a line that says why the job is left out."""
    try:
        return function(*args, **options)
    except LeftOut as reason:
        print(f"{job.task}: {job.title} is left out: {reason}", flush=True)


def measure(bench: Bench, jobs: list[Job]) -> list[dict[str, Any]]:
    """Rounds in turns, one process at work at a time; rows for each job."""
    started = [attempt(job, Process, bench, job) for job in jobs]
    processes: list[Process] = [process for process in started if process]
    for turn in range(bench.rounds):
        for process in list(processes):
            if turn < process.job.rounds:
                result = attempt(process.job, process.ask, "round")
                process.rounds.append(result) if result else processes.remove(process)
    for process in processes:
        if process.job.task in HEADS and process.job.contender.startswith(COMPARED):
            count = 10 if process.job.task == "qa" else SHOWN
            process.shown = attempt(process.job, process.ask, "show", count=count)
    for process in processes:
        process.close()
    reference = next((process.shown for process in processes if process.shown), [])
    rows = []
    for process in processes:
        job, results = process.job, process.rounds
        if job.task == "overhead":
            rows += overhead_rows(bench, job, results)
            continue
        row = make_row(job, job.unit, [job.amount / r["seconds"] for r in results], results)
        if "repeat" in job.options and (fit := fit_line(results[0]["times"])):
            row["r2"] = fit
        if process.shown and process.shown is not reference:
            row["same"] = round(same_share(job.task, reference, process.shown), 3)
        rows.append(row)
    if bench.cpu_time:
        for row in rows:
            row["unit"] = row["unit"].replace("/s", "/CPU s")
    return rows


def make_row(
    job: Job, unit: str, values: list[float], results: list[dict[str, Any]]
) -> dict[str, Any]:
    row = {
        "task": job.task,
        "contender": job.title,
        "unit": unit,
        "median": significant(statistics.median(values)),
        "min": significant(min(values)),
        "max": significant(max(values)),
        "peak_rss_mib": round(max(result["rss"] for result in results)),
    }
    if "gpu" in results[0]:
        row["peak_gpu_mib"] = round(max(result["gpu"] for result in results))
    return row


def significant(value: float) -> float:
    """Four digits are more than the spread."""
    return float(f"{value:.4g}")


def readable(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def fit_line(times: list[float]) -> float | None:
    """How well documents that are done, at the ends of batches, grow in a line with time: R²."""
    ends = np.asarray(times)[BATCH - 1 :: BATCH]
    if len(ends) < 5:
        return None
    return round(float(np.corrcoef(ends, np.arange(len(ends)))[0, 1] ** 2), 5)


def same_share(task: str, ours: list[Any], theirs: list[Any]) -> float:
    """The share of results that are the same: of entities, of all that either has found."""
    if task == "ner":
        a, b = ({(i, *e) for i, row in enumerate(rows) for e in row} for rows in (ours, theirs))
        return len(a & b) / max(len(a | b), 1)
    pairs = list(zip(flatten(ours), flatten(theirs), strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def flatten(results: list[Any]) -> Iterator[Any]:
    for result in results:
        yield from result if isinstance(result, list) else [result]


def overhead_rows(bench: Bench, job: Job, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of ours the shares of the time and the FLOP/s of the encoder, of products the FLOP/s."""
    if job.contender.startswith("products"):
        speeds = [job.amount / r["seconds"] / 1e9 for r in results]
        return [make_row(job, "GFLOP/s", speeds, results)]
    encoder, tokenizer, rest = [], [], []
    for r in results:
        encoder.append(r["spent"]["encoder"] / r["seconds"])
        tokenizer.append(r["spent"]["tokenizer"] / r["seconds"])
        rest.append(1 - encoder[-1] - tokenizer[-1])
    speeds = [bench.amounts["flops"] / r["spent"]["encoder"] / 1e9 for r in results]
    return [
        make_row(job, "words/s", [job.amount / r["seconds"] for r in results], results),
        make_row(job, "of it the encoder", encoder, results),
        make_row(job, "of it spaCy's tokenizer", tokenizer, results),
        make_row(job, "of it the rest", rest, results),
        make_row(job, "GFLOP/s", speeds, results),
    ]


def compare(task: str, rows: list[dict[str, Any]]) -> None:
    """Add to each row what it makes of others: the ratio to the task's base, or what NOTES has."""
    base = [row["median"] for row in rows if row["contender"] in BASES.get(task, ())]
    for row in rows if base else []:
        row["ratio"] = significant(row["median"] / max(base))
    by_name = {row["contender"]: row for row in rows if row["unit"].startswith("GFLOP")}
    for name, row in by_name.items():
        limit = by_name.get(name.replace("ours", "products"))
        if name.startswith("ours") and limit:
            row["of_products"] = significant(row["median"] / limit["median"])
            if name == "ours-fp32" and "products-onednn" in by_name:
                best = by_name["products-onednn"]["median"]
                row["of_onednn"] = significant(row["median"] / best)
    if task == "joint":
        speeds = {row["contender"]: row["median"] for row in rows}
        for row in rows:
            name = row["contender"].split(", ")[0]
            singles = [speeds.get(f"{name}, {head}") for head in ("ner", "textcat")]
            if "+" in row["contender"] and all(singles):
                row["gain"] = significant(row["median"] * sum(1 / one for one in singles))


NOTES = {
    "same": "{:.0%} of results the same as of the first",
    "r2": "a line: R² {:.5f}",
    "gain": "{:.2f} times one after the other",
    "of_products": "{:.0%} of torch's products alone",
    "of_onednn": "{:.0%} of oneDNN's",
}


def show(task: str, rows: list[dict[str, Any]]) -> None:
    """Print a task's table."""
    compare(task, rows)
    print(f"\n{task}")
    for row in rows:
        low, middle, high = (readable(row[key]) for key in ("min", "median", "max"))
        ratio = f"{row['ratio']:.2f} x" if "ratio" in row else ""
        memory = f"{row.get('peak_gpu_mib', row['peak_rss_mib']):,} MiB"
        notes = ", ".join(text.format(row[key]) for key, text in NOTES.items() if key in row)
        spread = f"({low} – {high})"
        print(
            f"  {row['contender']:34} {middle:>9} {spread:20} {row['unit']:24} {ratio:>7} "
            f"{memory:>11}  {notes}".rstrip(),
            flush=True,
        )


def describe_machine(bench: Bench) -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    c = AutoConfig.from_pretrained(bench.encoder)
    gpu = {"gpu": torch.cuda.get_device_name()} if bench.device == "cuda" else {}
    return {
        "date": datetime.now().isoformat(timespec="minutes"),
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in CPU_FLAGS if flag in fields.get("flags", "").split()],
        **gpu,
        "threads": bench.threads or torch.get_num_threads(),
        "seconds": "of the processor" if bench.cpu_time else "of the clock",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "spacy": spacy.__version__,
        "encoder": f"{c.model_type}, {c.num_hidden_layers} layers, width {c.hidden_size}",
        "rounds": bench.rounds,
    }


# --- a picture

OURS_COLOUR, THEIRS_COLOUR = "#09a3d5", "#b8bec4"


def draw(report: dict[str, Any], picture: Path) -> None:
    """A panel a task, a bar a contender: the median, a line from the slowest to the fastest round,
    and the ratio to the base."""
    from matplotlib.figure import Figure

    panels: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        if row["task"] not in ("overhead", "growth"):
            panels.setdefault(row["task"], []).append(row)
    if not panels:
        return
    height = sum(0.32 * len(rows) + 0.9 for rows in panels.values())
    figure = Figure(figsize=(8, height + 0.4), layout="constrained")
    ratios = [len(rows) + 1 for rows in panels.values()]
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axes, (task, rows) in zip(grid, panels.items(), strict=True):
        names = [row["contender"] for row in rows]
        colours = [OURS_COLOUR if n.startswith("ours") else THEIRS_COLOUR for n in names]
        medians = np.asarray([row["median"] for row in rows])
        spread = [medians - [row["min"] for row in rows], [row["max"] for row in rows] - medians]
        axes.barh(names, medians, xerr=spread, color=colours, height=0.7, ecolor="#444444")
        for i, row in enumerate(rows):
            ratio = f"  ({row['ratio']:.2f} x)" if "ratio" in row else ""
            text = f"{readable(row['median'])}{ratio}"
            axes.annotate(
                text, (row["max"], i), (6, 0), textcoords="offset points", va="center", size=9
            )
        axes.invert_yaxis()
        axes.set_title(f"{task}, {rows[0]['unit']}", loc="left", size=11)
        axes.set_xlim(0, 1.3 * max(row["max"] for row in rows))
        axes.xaxis.set_major_formatter("{x:,.0f}" if medians.max() >= 10 else "{x:,.1f}")
        axes.tick_params(labelsize=9)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    machine = report["machine"]
    where = machine.get("gpu", f"{machine['cpu']}, threads: {machine['threads']}")
    title = f"{machine['encoder']}; {where}; {machine['date'][:10]}"
    figure.suptitle(title, size=10, x=0.01, ha="left")
    figure.get_layout_engine().set(hspace=0.02, h_pad=0.12)
    figure.savefig(picture, dpi=120, format="png")


if __name__ == "__main__":
    typer.run(main)
