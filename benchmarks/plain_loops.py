"""The same tasks by hand: Hugging Face models and one loop that trains any of them.

Each `plain_…` sets a task up and returns the model, the training items, what makes a padded batch
of items, and what scores the test set.
"""

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILES = {
    "wnut17": ("ner_wnut17", "train.conll", "dev.conll", "test.conll"),
    "ncbi": ("ner_ncbi_disease", "train.tsv", "devel.tsv", "test.tsv"),
    "sst2": ("textcat_sst2", "train.txt", "dev.txt", "test.txt"),
    "sick": ("nli_sick", "SICK_train.txt", "SICK_trial.txt", "SICK_test_annotated.txt"),
}
BATCH_SIZE = 32

Plain = tuple[torch.nn.Module, list, Callable[[list], dict], Callable[[], float]]


def run_plain(
    task: str, data: Path, encoder: str, seed: int, epochs: int, rate: float, precision: str
) -> float:
    """Train, and score on the test set."""
    torch.manual_seed(seed)
    model, items, encode, score = PLAIN[task](data, encoder, precision)
    fit(model, items, encode, seed, epochs, rate, precision)
    return score()


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
        for batch in batches(items):
            with autocast(precision):
                loss = model(**encode(batch)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def batches(items: list) -> Iterator[list]:
    for start in range(0, len(items), BATCH_SIZE):
        yield items[start : start + BATCH_SIZE]


# --- the tasks


def plain_wnut17(data: Path, encoder: str, precision: str) -> Plain:
    """Token classification on first pieces, scored by seqeval."""
    from seqeval.metrics import f1_score
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    folder, train, _, test = FILES["wnut17"]
    train_data, test_data = read_conll(data / folder / train), read_conll(data / folder / test)
    labels = sorted({tag for _, tags in train_data + test_data for tag in tags})
    number = {label: i for i, label in enumerate(labels)}
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForTokenClassification.from_pretrained(encoder, num_labels=len(labels))

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

    def score() -> float:
        gold, predicted = [], []
        for batch in batches(test_data):
            inputs = encode(batch)
            target = inputs.pop("labels").numpy()
            with torch.no_grad(), autocast(precision):
                best = model(**inputs).logits.argmax(-1).numpy()
            for row in range(len(target)):
                here = target[row] != -100
                gold.append([labels[i] for i in target[row][here]])
                predicted.append([labels[i] for i in best[row][here]])
        return float(f1_score(gold, predicted))

    return model, train_data, encode, score


def plain_classification(
    read: Callable, task: str, data: Path, encoder: str, precision: str
) -> Plain:
    """Sequence classification of texts or pairs through the pooler; accuracy."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, train, _, test = FILES[task]
    train_data, test_data = read(data / folder / train), read(data / folder / test)
    labels = sorted({label for _, label in train_data})
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(labels))

    def encode(items: list) -> dict:
        texts = zip(*(texts for texts, _ in items), strict=True)
        options = {"truncation": True, "max_length": 256, "padding": True, "return_tensors": "pt"}
        target = torch.tensor([labels.index(label) for _, label in items])
        return {**tokenizer(*map(list, texts), **options), "labels": target}

    def score() -> float:
        right = 0
        for batch in batches(test_data):
            inputs = encode(batch)
            with torch.no_grad(), autocast(precision):
                right += int((model(**inputs).logits.argmax(-1) == inputs["labels"]).sum())
        return right / len(test_data)

    return model, train_data, encode, score


def plain_qa(task: str, data: Path, encoder: str, precision: str) -> Plain:
    """Question answering over windows; F1 of SQuAD 1.1."""
    from torchmetrics.functional.text import squad
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    parts = {part: list_questions(articles) for part, articles in read_squad(data, task).items()}
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForQuestionAnswering.from_pretrained(encoder)

    def make_windows(questions: list[dict]) -> list[dict[str, Any]]:
        """A window points to the first of the accepted answers, or to [CLS] without it."""
        pieces = tokenizer(
            [question["question"].strip() for question in questions],
            [question["context"] for question in questions],
            truncation="only_second",
            max_length=384,
            stride=128,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        windows = []
        for row, number in enumerate(pieces["overflow_to_sample_mapping"]):
            offsets = pieces["offset_mapping"][row]
            inside = [i for i, part in enumerate(pieces.sequence_ids(row)) if part == 1]
            answer = questions[number]["answers"][0]
            first, last = answer["answer_start"], answer["answer_start"] + len(answer["text"])
            held = [i for i in inside if offsets[i][0] < last and offsets[i][1] > first]
            whole = offsets[inside[0]][0] <= first and offsets[inside[-1]][1] >= last
            start, end = (held[0], held[-1]) if held and whole else (0, 0)
            inputs = {name: pieces[name][row] for name in tokenizer.model_input_names}
            window = {"question": number, "inputs": inputs, "start": start, "end": end}
            windows.append(window | {"offsets": {i: offsets[i] for i in inside}})
        return windows

    def encode(windows: list[dict]) -> dict:
        inputs = tokenizer.pad([window["inputs"] for window in windows], return_tensors="pt")
        return {
            **inputs,
            "start_positions": torch.tensor([window["start"] for window in windows]),
            "end_positions": torch.tensor([window["end"] for window in windows]),
        }

    def score() -> float:
        questions = parts["test"]
        best = [(-np.inf, "")] * len(questions)
        for batch in batches(make_windows(questions)):
            with torch.no_grad(), autocast(precision):
                output = model(**encode(batch))
            starts, ends = output.start_logits.float().numpy(), output.end_logits.float().numpy()
            for window, start, end in zip(batch, starts, ends, strict=True):
                number, context = window["question"], questions[window["question"]]["context"]
                found = best_answer(start, end, window["offsets"], context)
                best[number] = max(best[number], found)
        texts = [{"id": str(i), "prediction_text": text} for i, (_, text) in enumerate(best)]
        gold = [
            {
                "id": str(i),
                "answers": {
                    "text": [answer["text"] for answer in question["answers"]],
                    "answer_start": [answer["answer_start"] for answer in question["answers"]],
                },
            }
            for i, question in enumerate(questions)
        ]
        return float(squad(texts, gold)["f1"]) / 100

    return model, make_windows(parts["train"]), encode, score


def best_answer(
    starts: np.ndarray, ends: np.ndarray, offsets: dict[int, tuple[int, int]], context: str
) -> tuple[float, str]:
    """The best of the 20 best starts with the 20 best ends, up to 30 pieces long, never null."""
    best = (-np.inf, "")
    for i in np.argsort(-starts)[:20]:
        for j in np.argsort(-ends)[:20]:
            if i in offsets and j in offsets and i <= j < i + 30:
                text = context[offsets[i][0] : offsets[j][1]]
                best = max(best, (float(starts[i] + ends[j]), text))
    return best


# --- the data


def read_conll(path: Path) -> list[tuple[list[str], list[str]]]:
    sentences, rows = [], []
    for line in [*path.read_text(encoding="utf8").splitlines(), ""]:
        if line.strip():
            rows.append(line.split("\t"))
        elif rows:
            sentences.append(([row[0] for row in rows], [row[-1] for row in rows]))
            rows = []
    return sentences


def read_labelled(path: Path) -> list[tuple[tuple[str], str]]:
    lines = [line.split(" ", 1) for line in path.read_text(encoding="utf8").splitlines() if line]
    return [((text,), label) for label, text in lines]


def read_sick(path: Path) -> list[tuple[tuple[str, str], str]]:
    rows = [line.split("\t") for line in path.read_text(encoding="utf8").splitlines()[1:] if line]
    return [((row[1], row[2]), row[4]) for row in rows]


def read_squad(data: Path, task: str) -> dict[str, list[dict]]:
    """The articles of each part; dev is only for what wants one, and a piece of train."""
    if task == "xquad":
        articles = load_squad(data / "qa_xquad" / "xquad.en.json")
        return {"train": articles[:36], "dev": articles[:4], "test": articles[36:]}
    train, test = (load_squad(data / "qa_policyqa" / f"{part}.json") for part in ("dev", "test"))
    return {"train": train, "dev": train[:4], "test": test}


def load_squad(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf8"))["data"]


def list_questions(articles: list[dict]) -> list[dict]:
    return [
        {**question, "context": paragraph["context"]}
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


PLAIN: dict[str, Callable[[Path, str, str], Plain]] = {
    "wnut17": plain_wnut17,
    "sst2": partial(plain_classification, read_labelled, "sst2"),
    "sick": partial(plain_classification, read_sick, "sick"),
    "xquad": partial(plain_qa, "xquad"),
    "policyqa": partial(plain_qa, "policyqa"),
}
