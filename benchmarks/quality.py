"""Scores after fine-tuning: `spacy train` with our components against a plain Hugging Face loop.

Both sides get the same checkpoint, data, seeds, epochs, rates, batches, precision and number of
threads, one after the other in one run. Needs the data sets WNUT17 and SST-2.

    python benchmarks/quality.py DATA ENCODER --seeds 0,1 --precision bf16 --json quality.json
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import spacy
import torch
import typer
from spacy.tokens import DocBin
from spacy.training import Example

from spacy_bert_heads.convert import convert
from spacy_bert_heads.init_config import init_config

FILES = {
    "wnut17": ("ner_wnut17", "train.conll", "dev.conll", "test.conll"),
    "sst2": ("textcat_sst2", "train.txt", "dev.txt", "test.txt"),
}
HEADS = {"wnut17": "ner", "sst2": "textcat"}
METRIC = {"wnut17": "ents_f", "sst2": "cats_micro_f"}
BATCH_SIZE = 32


def main(
    data: Annotated[Path, typer.Argument(help="The folder with ner_wnut17 and textcat_sst2")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    seeds: str = "0,1",
    epochs: int = 3,
    rate: float = 5e-5,
    precision: str = "bf16",
    systems: str = "hf,ours,joint",
    tasks: str = "wnut17,sst2",
    override: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for our config")] = None,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Train, score on the test sets, print a row for each run."""
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for task in tasks.split(","):
            folder, *parts = FILES[task]
            for part in parts:
                convert(data / folder / part, Path(work) / task / f"{Path(part).stem}.spacy")
        for seed in map(int, seeds.split(",")):
            runs = []
            if "joint" in systems.split(","):
                runs.append(("joint", tasks.split(",")))
            for task in tasks.split(","):
                runs += [(system, [task]) for system in ("hf", "ours") if system in systems]
            for system, names in runs:
                start = time.perf_counter()
                if system == "hf":
                    scores = {names[0]: HF[names[0]](data, encoder, seed, epochs, rate, precision)}
                    seconds = time.perf_counter() - start
                else:
                    scores, seconds = train_ours(
                        Path(work), names, encoder, seed, epochs, rate, precision, override or []
                    )
                for task, score in scores.items():
                    row = {"task": task, "system": system, "seed": seed, "score": round(score, 4)}
                    row |= {"epochs": epochs, "rate": rate, "seconds": round(seconds)}
                    rows.append(row)
                    print(row, flush=True)
                if json_file:
                    json_file.write_text(json.dumps(rows, indent=1))
        if {"ours", "joint"} <= set(systems.split(",")):
            compare_speed(Path(work), tasks.split(","))


def compare_speed(work: Path, tasks: list[str]) -> None:
    """Text to annotated Docs through `nlp.pipe`: each pipeline by itself, and the joint one, in
    turns, over the test texts of all tasks."""
    names = [*tasks, "-".join(tasks)]
    pipelines = {name: spacy.load(work / f"run-{name}" / "out" / "model-last") for name in names}
    vocab = spacy.blank("en").vocab
    files = [work / task / "test.spacy" for task in tasks]
    texts = [doc.text for file in files for doc in DocBin().from_disk(file).get_docs(vocab)]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(5):
        for name, nlp in pipelines.items():
            start = time.perf_counter()
            words = sum(len(doc) for doc in nlp.pipe(texts))
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        rates = sorted(words / t for t in times)
        print(f"{name}: {rates[2]:,.0f} words/s (from {rates[0]:,.0f} to {rates[-1]:,.0f})")


# --- ours


def train_ours(
    work: Path,
    tasks: list[str],
    encoder: str,
    seed: int,
    epochs: int,
    rate: float,
    precision: str,
    overrides: list[str],
) -> tuple[dict[str, float], float]:
    """Run `spacy train`, then score its last model on the test data."""
    run = work / f"run-{'-'.join(tasks)}"
    for part in ("train", "dev"):
        (run / part).mkdir(parents=True, exist_ok=True)
        for task in tasks:
            (run / part / f"{task}.spacy").write_bytes((work / task / f"{part}.spacy").read_bytes())
    n_docs = sum(len(DocBin().from_disk(file)) for file in (run / "train").iterdir())
    steps_per_epoch = -(-n_docs // BATCH_SIZE)
    config = init_config([HEADS[task] for task in tasks], name=encoder)
    config.to_disk(run / "config.cfg")
    steps = epochs * steps_per_epoch
    settings = {
        "paths.train": run / "train",
        "paths.dev": run / "dev",
        "system.seed": seed,
        "components.bert_encoder.model.precision": precision,
        "training.max_steps": steps - 1,  # spaCy counts from 0
        "training.eval_frequency": steps_per_epoch,
        "training.optimizer.learn_rate.initial_rate": rate,
        "training.optimizer.learn_rate.warmup_steps": steps // 10,
        "training.optimizer.learn_rate.total_steps": steps,
        **dict(item.split("=", 1) for item in overrides),
    }
    command = [sys.executable, "-m", "spacy", "train", str(run / "config.cfg")]
    command += ["--output", str(run / "out")]
    command += [str(part) for key, value in settings.items() for part in (f"--{key}", value)]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    nlp = spacy.load(run / "out" / "model-last")
    scores = {}
    for task in tasks:
        docs = list(DocBin().from_disk(work / task / "test.spacy").get_docs(nlp.vocab))
        examples = [Example(make_predicted(nlp, doc), doc) for doc in docs]
        scores[task] = nlp.evaluate(examples)[METRIC[task]]
    return scores, seconds


def make_predicted(nlp: spacy.Language, reference: spacy.tokens.Doc) -> spacy.tokens.Doc:
    """As spaCy's own reader: on the given tokens where there was no text, else on the text."""
    if reference.has_unknown_spaces:
        return spacy.tokens.Doc(nlp.vocab, words=[token.text for token in reference])
    return nlp.make_doc(reference.text)


# --- the plain loop


def hf_wnut17(
    data: Path, encoder: str, seed: int, epochs: int, rate: float, precision: str
) -> float:
    """Token classification on first pieces, scored by seqeval."""
    from seqeval.metrics import f1_score
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    folder, train, _, test = FILES["wnut17"]
    train_data, test_data = read_conll(data / folder / train), read_conll(data / folder / test)
    labels = sorted({tag for _, tags in train_data + test_data for tag in tags})
    number = {label: i for i, label in enumerate(labels)}
    tokenizer = AutoTokenizer.from_pretrained(encoder)

    def encode(items: list) -> dict:
        batch = tokenizer(
            [words for words, _ in items],
            is_split_into_words=True,
            truncation=True,
            max_length=256,
            padding=True,
            return_tensors="pt",
        )
        target = torch.full(batch["input_ids"].shape, -100)
        for row, (_, tags) in enumerate(items):
            seen = set()
            for column, word in enumerate(batch.word_ids(row)):
                if word is not None and word not in seen:
                    seen.add(word)
                    target[row, column] = number[tags[word]]
        return {**batch, "labels": target}

    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_pretrained(encoder, num_labels=len(labels))
    fit(model, train_data, encode, seed, epochs, rate, precision)
    gold, predicted = [], []
    for start in range(0, len(test_data), BATCH_SIZE):
        batch = encode(test_data[start : start + BATCH_SIZE])
        target = batch.pop("labels").numpy()
        with torch.no_grad(), autocast(precision):
            best = model(**batch).logits.argmax(-1).numpy()
        for row in range(len(target)):
            here = target[row] != -100
            gold.append([labels[i] for i in target[row][here]])
            predicted.append([labels[i] for i in best[row][here]])
    return float(f1_score(gold, predicted))


def hf_sst2(data: Path, encoder: str, seed: int, epochs: int, rate: float, precision: str) -> float:
    """Sequence classification through the pooler; accuracy."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, train, _, test = FILES["sst2"]
    train_data, test_data = (
        read_labelled(data / folder / train),
        read_labelled(data / folder / test),
    )
    tokenizer = AutoTokenizer.from_pretrained(encoder)

    def encode(items: list) -> dict:
        texts, labels = zip(*items, strict=True)
        options = {"truncation": True, "max_length": 256, "padding": True, "return_tensors": "pt"}
        return {**tokenizer(list(texts), **options), "labels": torch.tensor(labels)}

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    fit(model, train_data, encode, seed, epochs, rate, precision)
    right = 0
    for start in range(0, len(test_data), BATCH_SIZE):
        batch = encode(test_data[start : start + BATCH_SIZE])
        with torch.no_grad(), autocast(precision):
            right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return right / len(test_data)


HF = {"wnut17": hf_wnut17, "sst2": hf_sst2}


def fit(model, items, encode, seed, epochs, rate, precision) -> None:
    """AdamW, weight decay off biases and LayerNorm, linear warm-up and decay, clipping at 1."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    steps = epochs * -(-len(items) // BATCH_SIZE)
    warmup = steps // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: i / max(1, warmup) if i < warmup else (steps - i) / max(1, steps - warmup),
    )
    order = random.Random(seed)
    model.train()
    for _ in range(epochs):
        items = order.sample(items, len(items))
        for start in range(0, len(items), BATCH_SIZE):
            with autocast(precision):
                loss = model(**encode(items[start : start + BATCH_SIZE])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def read_conll(path: Path) -> list[tuple[list[str], list[str]]]:
    sentences, rows = [], []
    for line in [*path.read_text(encoding="utf8").splitlines(), ""]:
        if line.strip():
            rows.append(line.split("\t"))
        elif rows:
            sentences.append(([row[0] for row in rows], [row[-1] for row in rows]))
            rows = []
    return sentences


def read_labelled(path: Path) -> list[tuple[str, int]]:
    lines = [line.split(" ", 1) for line in path.read_text(encoding="utf8").splitlines() if line]
    return [(text, int(label)) for label, text in lines]


if __name__ == "__main__":
    np.random.seed(0)
    typer.run(main)
