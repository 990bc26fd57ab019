"""Train Hugging Face's classes on the same tasks in a plain loop, for comparison."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..encoder.shim import autocast_for
from .tasks import Item, Task

MAX_LENGTH = 256
CPU = torch.device("cpu")


def run_plain(
    task: Task,
    train: Sequence[Item],
    tests: Sequence[Sequence[Item]],
    *,
    model: str,
    seed: int,
    steps: int,
    learn_rate: float,
    batch_size: int,
    precision: str,
    device: torch.device = CPU,
) -> list[list[str]]:
    """Train by `fit`. Returns predictions for each test set. Raises ValueError for a NER task."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if task.head == "ner":
        raise ValueError(
            f"The plain loop supports texts and pairs, but {task.name} has entities. Leave it out."
        )
    torch.manual_seed(seed)
    labels = [] if task.is_regression else sorted({str(item.label) for item in train})
    tokenizer = AutoTokenizer.from_pretrained(model)
    network: Any = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=len(labels) or 1
    ).to(device)

    def encode(items: Sequence[Item]) -> dict[str, torch.Tensor]:
        texts = [[item.text for item in items]]
        if items[0].second is not None:
            texts.append([item.second or "" for item in items])
        options = {"truncation": True, "max_length": MAX_LENGTH, "padding": True}
        # oneDNN compiles and keeps a program for each length.
        return tokenizer(*texts, **options, pad_to_multiple_of=8, return_tensors="pt").to(device)

    def target(items: Sequence[Item]) -> torch.Tensor:
        if task.is_regression:
            return torch.tensor([float(item.label or 0) for item in items], device=device)
        return torch.tensor([labels.index(str(item.label)) for item in items], device=device)

    fit(
        network,
        train,
        lambda items: {**encode(items), "labels": target(items)},
        seed=seed,
        steps=steps,
        learn_rate=learn_rate,
        batch_size=batch_size,
        precision=precision,
        device=device,
    )

    def predict(items: Sequence[Item]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(items), batch_size):
            with torch.no_grad(), autocast_for(precision, device):
                logits = network(**encode(items[start : start + batch_size])).logits.float()
            if task.is_regression:
                found += [str(value) for value in logits[:, 0].tolist()]
            else:
                found += [labels[i] for i in logits.argmax(1).tolist()]
        return found

    return [predict(items) for items in tests]


def fit(
    network: torch.nn.Module,
    items: Sequence[Any],
    encode: Callable[[list[Any]], dict[str, torch.Tensor]],
    *,
    seed: int,
    steps: int,
    learn_rate: float,
    batch_size: int,
    precision: str,
    device: torch.device = CPU,
) -> None:
    """Train any model of Hugging Face's, which computes its loss, by AdamW, with weight decay of
    0.01 except for biases and LayerNorms, a linear warm-up over a tenth of the steps and a linear
    decay, and clipping at 1. `encode` makes the model's input, labels included, of a batch."""
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in network.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learn_rate)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: i / warmup if i < warmup else max(steps - i, 0) / max(1, steps - warmup),
    )
    network.train()
    for batch in _batches(items, batch_size, steps, seed):
        with autocast_for(precision, device):
            loss = network(**encode(batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    network.eval()


def _batches(items: Sequence[Any], size: int, steps: int, seed: int) -> Iterator[list[Any]]:
    order, left = random.Random(seed), list[Any]()
    for _ in range(steps):
        if not left:
            left = order.sample(list(items), len(items))
        yield left[:size]
        left = left[size:]
