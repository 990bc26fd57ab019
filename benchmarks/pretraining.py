"""Speed and memory of a step of pretraining: ours against that of Hugging Face's run_mlm, on the
same text and encoder, in turns. Nothing is learned, each takes steps from the same start.

run_mlm is its default (text in a row cut to the length), and for short sentences its
--line_by_line, padded to the length or to the longest of a batch; here a plain loop with its
model, collator, optimizer and clipping. Speed is in useful wordpieces: special tokens are counted
for all alike, padding is not.

    python benchmarks/pretraining.py RAW ENCODER --precision fp32,bf16 --json pretraining.json
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from contenders import peak_rss
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
)

from spacy_bert_heads.encoder.loading import load_wordpiece_tokenizer
from spacy_bert_heads.encoder.shim import autocast_for
from spacy_bert_heads.pretraining.data import Data, Position
from spacy_bert_heads.pretraining.objectives import load_pretrainer
from spacy_bert_heads.pretraining.prepare import prepare
from spacy_bert_heads.pretraining.run import Run
from spacy_bert_heads.pretraining.settings import adam, check_config
from spacy_bert_heads.pretraining.store import Corpus
from spacy_bert_heads.runs.processes import Processes

# What others are compared with, in fp32.
BASE = {"text": "run_mlm", "sentences": "run_mlm, dynamic"}
CONTENDERS = {
    "text": ("run_mlm", "full-sentences"),
    # Each sentence is a document of its own.
    "sentences": ("run_mlm, padded", "run_mlm, dynamic", "doc-sentences", "full-sentences"),
}
MASKED = 0.15


@dataclass(frozen=True)
class Job:
    """What one process measures. pieces: slots of a full batch."""

    raw: str
    encoder: str
    work: Path
    task: str
    contender: str
    precision: str
    length: int
    pieces: int
    device: str

    @property
    def autocast(self) -> torch.autocast:
        return autocast_for(self.precision, torch.device(self.device))


def main(
    raw: Annotated[str, typer.Argument(help="Raw text: a file, a folder or a pattern")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    precision: str = "fp32",
    lengths: Annotated[str, typer.Option(help="Sentences use the first one only")] = "128",
    pieces: Annotated[int, typer.Option(help="Slots of a batch: 4096 are 32 x 128")] = 4096,
    steps: Annotated[int, typer.Option(help="Steps of a round")] = 5,
    rounds: int = 5,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="Seconds of the processor: for a busy machine")
    ] = False,
    threads: Annotated[int, typer.Option(help="On a CPU; 0 for all")] = 0,
    device: str = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure all contenders in turns, print a table."""
    first = int(lengths.split(",")[0])
    fresh = multiprocessing.get_context("forkserver")  # has imported all, and done nothing yet
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        read_corpus(raw, encoder, work)  # once, so that no contender's memory has it
        jobs = [
            Job(raw, encoder, work, task, contender, type_, length, pieces, device)
            for length in map(int, lengths.split(","))
            for task, contenders in CONTENDERS.items()
            if task == "text" or length == first
            for contender in contenders
            for type_ in precision.split(",")
        ]
        # A process for each, so that each has its own peak of memory. One works at a time.
        pools = [ProcessPoolExecutor(max_workers=1, mp_context=fresh) for _ in jobs]
        flops = [p.submit(start, j, threads).result() for p, j in zip(pools, jobs, strict=True)]
        found: list[list[dict[str, float]]] = [[] for _ in jobs]
        for _ in range(rounds):
            for results, pool in zip(found, pools, strict=True):
                results.append(pool.submit(take_round, steps, cpu_time).result())
        rate = pools[0].submit(matmul_rate).result() if device == "cuda" else None
        for pool in pools:
            pool.shutdown()
    rows = []
    for job, results, per_piece in zip(jobs, found, flops, strict=True):
        speeds = [result["speed"] for result in results]
        row = {
            "task": f"{job.task}, {job.length}",
            "contender": f"{job.contender}, {job.precision}",
            "unit": "pieces/CPU s" if cpu_time else "pieces/s",
            "median": round(statistics.median(speeds)),
            "min": round(min(speeds)),
            "max": round(max(speeds)),
            "peak_rss_mib": round(max(result["rss"] for result in results)),
            "pieces_per_step": round(statistics.mean(result["per_step"] for result in results)),
        }
        if rate:
            row["peak_gpu_mib"] = round(max(result["gpu"] for result in results))
            row["matmul_share"] = round(row["median"] * per_piece / rate, 3)
        rows.append(row)
    show(rows, rate)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1))


def show(rows: list[dict[str, Any]], rate: float | None) -> None:
    """Print the rows, with the ratio of each median to that of the first of its task in BASE."""
    if rate:
        print(f"bf16 matrix products: {rate / 1e12:.0f} TFLOP/s. A step's share of it counts what")
        print("all products need for useful pieces, those of the head for masked ones.")
    speed = f"{rows[0]['unit']} (from – to)"
    print(f"{'':39} {speed:>27} {'ratio':>6} {'a step':>6} {'MiB':>7} {'share':>6}")
    for row in rows:
        base = f"{BASE[row['task'].split(',')[0]]}, fp32"
        same = [r for r in rows if (r["task"], r["contender"]) == (row["task"], base)]
        ratio = f"{row['median'] / same[0]['median']:.2f}" if same else ""
        speed = f"{row['median']:,} ({row['min']:,} – {row['max']:,})"
        memory = row.get("peak_gpu_mib", row["peak_rss_mib"])
        steps = f"{row['pieces_per_step']:,}"
        share = f"{row['matmul_share']:.1%}" if rate else ""
        print(
            f"{row['task']:14} {row['contender']:24} {speed:>27} {ratio:>6} {steps:>6} "
            f"{memory:7,} {share:>6}"
        )


# --- in a process of its own

Step = Callable[[], int]  # takes a step; how many pieces it had
step: Step
measured: Job


def start(job: Job, threads: int) -> float:
    """Make ready and take a first step, which is not measured. The FLOPs of a useful piece."""
    global step, measured
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    corpus = read_corpus(job.raw, job.encoder, job.work)
    if job.task == "sentences":
        corpus = replace(corpus, documents=np.arange(len(corpus.sentences)))
    is_theirs = job.contender.startswith("run_mlm")
    step, flops = (start_theirs if is_theirs else start_ours)(job, corpus)
    measured = job
    step()
    return flops


def take_round(steps: int, cpu_time: bool) -> dict[str, float]:
    """Take some steps. Pieces a second and a step, and peaks of memory in MiB."""
    is_cuda = measured.device == "cuda"
    synchronize = torch.cuda.synchronize if is_cuda else lambda: None
    clock = time.process_time if cpu_time else time.perf_counter
    synchronize()
    begin = clock()
    pieces = sum(step() for _ in range(steps))
    synchronize()
    seconds = clock() - begin
    gpu = torch.cuda.max_memory_allocated() / 2**20 if is_cuda else 0.0
    speed, per_step = pieces / seconds, pieces / steps
    return {"speed": speed, "per_step": per_step, "rss": peak_rss(), "gpu": gpu}


def read_corpus(raw: str, encoder: str, work: Path) -> Corpus:
    return prepare([raw], work / "cache", wordpieces=load_wordpiece_tokenizer(encoder), workers=1)


def start_ours(job: Job, corpus: Corpus) -> tuple[Step, float]:
    settings = check_config(
        {
            "paths": {"raw": job.raw, "encoder": job.encoder},
            "text": {"held_out": 0.0},
            "objective": {"sentences": job.contender},
            "training": {
                "batch_tokens": job.pieces,
                "max_batch_tokens": job.pieces,
                "precision": job.precision,
                "phases": [{"max_length": job.length}],
                "optimizer": adam() | {"learn_rate": 1e-4},  # the full rate, whichever step it is
            },
        }
    )
    pretrainer = load_pretrainer(job.encoder, sentence_objective=job.contender)
    pretrainer.to(job.device).eval()
    plans = job.work / f"{job.task}-{job.contender}-{job.precision}-{job.length}"
    data = Data(corpus, pretrainer.vocabulary(), settings, plans)
    run = Run(pretrainer, data, plans, Processes(0 if job.device == "cuda" else -1))
    run.step = 1
    loader = ThreadPoolExecutor(max_workers=1)
    coming = loader.submit(data.train_batch, Position(), run.step)

    def take_step() -> int:
        nonlocal coming
        batch, after = coming.result()
        coming = loader.submit(data.train_batch, after, run.step)
        run.learn(batch)
        return len(batch.packed.input_ids)

    return take_step, flops_per_piece(pretrainer.model, job)


def start_theirs(job: Job, corpus: Corpus) -> tuple[Step, float]:
    tokenizer = AutoTokenizer.from_pretrained(job.encoder)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    model = AutoModelForMaskedLM.from_pretrained(job.encoder).to(job.device).train()
    # As the Trainer has it by default.
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-5, fused=True)
    batches = read_batches(job, corpus, tokenizer)

    def take_step() -> int:
        batch = collate(next(batches))
        pieces = int(batch["attention_mask"].sum())
        batch = batch.to(job.device)
        with job.autocast:
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return pieces

    return take_step, flops_per_piece(model, job)


def read_batches(job: Job, corpus: Corpus, tokenizer: Any) -> Iterator[list[dict[str, list[int]]]]:
    """Tokenized examples as run_mlm makes them, in random order, again and again."""
    room = job.length - tokenizer.num_special_tokens_to_add()
    is_text = job.task == "text"
    bounds = corpus.sentences[corpus.documents]
    rows = [corpus.pieces[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True) if b > a]
    if is_text:
        # All documents in a row, each with its special tokens, cut to the length.
        whole = [tokenizer.build_inputs_with_special_tokens(row.tolist()) for row in rows]
        text = np.concatenate(whole)
        rows = list(text[: len(text) // job.length * job.length].reshape(-1, job.length))

    def make_example(row: np.ndarray) -> dict[str, list[int]]:
        ids = row.tolist()
        if not is_text:
            ids = tokenizer.build_inputs_with_special_tokens(ids[:room])
        special = np.isin(ids, tokenizer.all_special_ids).astype(int).tolist()
        example = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        example["special_tokens_mask"] = special
        if job.contender == "run_mlm, padded":
            return tokenizer.pad(example, padding="max_length", max_length=job.length)
        return example

    size, random = job.pieces // job.length, np.random.default_rng(0)
    while True:
        order = random.permutation(len(rows))
        for i in range(0, len(order) - size + 1, size):
            yield [make_example(rows[number]) for number in order[i : i + size]]


def flops_per_piece(model: Any, job: Job) -> float:
    """Of the forward and backward pass (twice the forward pass) over a piece of a full sequence, of
    which the head sees only what is masked."""
    encoder = model.base_model
    ids = torch.full((1, job.length), 5, device=job.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
    inner = set(encoder.modules())
    head = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in inner]
    per_masked = sum(2 * linear.weight.numel() for linear in head)
    return 3 * (counter.get_total_flops() / job.length + MASKED * per_masked)


def matmul_rate() -> float:
    """FLOP/s of a large bf16 product of a feed-forward layer's shape."""
    config = AutoConfig.from_pretrained(measured.encoder)
    width, inner, rows, times = config.hidden_size, 4 * config.hidden_size, 1 << 16, 50
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": measured.device}
    a, b = torch.randn(rows, width, **options), torch.randn(width, inner, **options)
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(times):
        a @ b
    torch.cuda.synchronize()
    return times * 2 * rows * width * inner / (time.perf_counter() - begin)


if __name__ == "__main__":
    typer.run(main)
