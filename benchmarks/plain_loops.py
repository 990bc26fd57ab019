"""The same tasks by Hugging Face's models, padded batches and one plain loop, that of `bert glue
--beside`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tasks import BATCH_SIZE, TASKS, read_conll, read_sick, read_sst2

from spacy_bert_heads.encoder.shim import autocast_for
from spacy_bert_heads.glue import tasks as glue
from spacy_bert_heads.glue.plain import CPU, fit
from spacy_bert_heads.glue.plain import run_plain as run_plain_classifier


def run_plain(
    task: str, data: Path, encoder: str, *, seed: int, epochs: int, scale: float, **settings: Any
) -> float:
    """Train, and score on the test set. The settings are those of `fit`."""
    torch.manual_seed(seed)
    read = {"ner": read_conll, "textcat": read_sst2, "nli": read_sick}[TASKS[task].head]
    train, test = (
        items[: max(round(len(items) * scale), BATCH_SIZE)]
        for items in map(read, TASKS[task].paths(data)[::2])
    )
    settings |= {"seed": seed, "steps": epochs * -(-len(train) // BATCH_SIZE)}
    settings |= {"batch_size": BATCH_SIZE}
    if TASKS[task].head == "ner":
        return score_entities(encoder, train, test, settings)
    kind = glue.TASKS["MNLI" if TASKS[task].head == "nli" else "SST-2"]
    items, tests = ([glue.Item(*row) for row in rows] for rows in (train, test))
    (found,) = run_plain_classifier(kind, items, [tests], model=encoder, **settings)
    return glue.accuracy([str(item.label) for item in tests], found)


def tag_words(encoder: str, sentences: list) -> tuple[Any, list[str], Callable[[list], dict]]:
    """A model that tags the first wordpieces of words, its labels, and what makes its batches."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    labels = sorted({tag for _, tags in sentences for tag in tags})
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    options = {"is_split_into_words": True, "truncation": True, "max_length": 256, "padding": True}

    def encode(items: list) -> dict:
        batch = tokenizer([words for words, _ in items], return_tensors="pt", **options)
        target = torch.full(batch["input_ids"].shape, -100)
        for row, (_, tags) in enumerate(items):
            seen = set()
            for column, word in enumerate(batch.word_ids(row)):
                if word is not None and word not in seen:
                    seen.add(word)
                    target[row, column] = labels.index(tags[word])
        return {**batch, "labels": target}

    model = AutoModelForTokenClassification.from_pretrained(encoder, num_labels=len(labels))
    return model, labels, encode


def score_entities(encoder: str, train: list, test: list, settings: dict[str, Any]) -> float:
    """Entity F1, by seqeval."""
    from seqeval.metrics import f1_score

    model, labels, encode = tag_words(encoder, train + test)
    fit(model, train, encode, **settings)
    gold, predicted = [], []
    for start in range(0, len(test), BATCH_SIZE):
        inputs = encode(test[start : start + BATCH_SIZE])
        targets = inputs.pop("labels").numpy()
        with torch.no_grad(), autocast_for(settings["precision"], CPU):
            best = model(**inputs).logits.argmax(-1).numpy()
        for target, found in zip(targets, best, strict=True):
            here = target != -100
            gold.append([labels[i] for i in target[here]])
            predicted.append([labels[i] for i in found[here]])
    return float(f1_score(gold, predicted))
