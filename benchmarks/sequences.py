"""What BERT's weights are worth on sequences that are no language (Kao and Lee 2021, Is BERT a
Cross-Disciplinary Knowledge Learner?): nucleotides and amino acids as words of the vocabulary.
Run it with --precision bf16 (jobs.py has the command line).

TASK-KIND-SEED
    splice (DNA, three classes), promoters (DNA, two) or deeploc (proteins, eleven places in a
    cell), from the pretrained checkpoint or from random weights of its shape. A seed draws the
    words, the random weights and the order of the training; of splice and promoters it is also the
    fold of five that is held out for the test, so the five seeds test each sequence once. deeploc
    has a test set of its own.

To take less than an hour of a core, splice is learned from 1,000 sequences, and deeploc from 1,000
and tested on 500, of which the first 128 amino acids are read.

Each kind of character is a word that is one wordpiece, drawn from the frequent ones of the
vocabulary; both kinds of weights read the same words. Sequences that are in the data twice are read
once, so none is in both parts. Nothing is chosen by a score on a test set.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from jobs import Bench, Job, finetune, make_random, of, print_table, read_results, run_script

from spacy_bert_heads.encoder.source import open_source
from spacy_bert_heads.encoder.untrusted import read_tokenizer

FOLDS = 5
KINDS = ("pretrained", "random")
FREQUENT = range(2000, 5000)  # ids of frequent words in BERT's vocabulary, which is by frequency
# Seeds, examples to train on and to test on at most, epochs, characters read at most.
TASKS: dict[str, tuple[int, int, int, int, int]] = {
    "promoters": (FOLDS, 100, 100, 20, 60),
    "splice": (FOLDS, 1000, 1000, 3, 60),
    "deeploc": (1, 1000, 500, 2, 128),
}


def list_jobs() -> list[Job]:
    """All jobs, the tasks with several seeds first, seed after seed."""
    return [
        Job(f"{task}-{kind}-{seed}", 1, partial(train, task, kind, seed))
        for tasks in (("promoters", "splice"), ("deeploc",))
        for seed in range(FOLDS)
        for task in tasks
        for kind in KINDS
        if seed < TASKS[task][0]
    ]


def train(task: str, kind: str, seed: int, bench: Bench) -> dict[str, Any]:
    _, n_train, n_test, epochs, _ = TASKS[task]
    folder = bench.work(f"{task}-{kind}-{seed}")
    write_words(bench, task, seed, folder / "words")
    encoder = bench.encoder
    if kind == "random":
        encoder = str(folder / "random")
        make_random(bench.encoder, Path(encoder), seed=seed)
    own = replace(bench, data=folder / "words")
    settings = {"n_train": n_train, "n_test": n_test, "seed": seed, "epochs": epochs}
    found = finetune(own, folder / "run", task, encoder, **settings)
    return {"task": task, "kind": kind, "seed": seed, **found, **count_common(bench, task, seed)}


# --- data


def write_words(bench: Bench, task: str, seed: int, folder: Path) -> None:
    """Write a task's training and test sequences in words, as tables."""
    parts, longest = split(bench.data, task, seed), TASKS[task][-1]
    characters = sorted({one for part in parts.values() for _, text in part for one in text})
    words = dict(zip(characters, draw_words(bench.encoder, len(characters), seed), strict=True))
    (folder / task).mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        lines = ["label\ttext"]
        for label, text in part:
            lines.append(f"{label}\t{' '.join(words[one] for one in text[:longest])}")
        (folder / task / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf8")


def draw_words(encoder: str, number: int, seed: int) -> list[str]:
    """Draw words that are one wordpiece each."""
    tokenizer = read_tokenizer(open_source(encoder), None)
    pieces = tokenizer.convert_ids_to_tokens(list(FREQUENT))
    words = [piece for piece in pieces if re.fullmatch("[a-z]{3,}", piece)]
    return random.Random(seed).sample(words, number)


def split(data: Path, task: str, seed: int) -> dict[str, list[tuple[str, str]]]:
    """Give the labels and sequences of the training and the test set."""
    folder = data / "sequences" / task
    if task == "deeploc":
        return {
            "train": list(read(folder / "val.tsv")),
            "test": list(read(folder / "test.tsv")),
        }
    rows = list(read(folder / f"{task}.tsv"))
    random.Random(0).shuffle(rows)
    return {
        "train": [row for i, row in enumerate(rows) if i % FOLDS != seed],
        "test": rows[seed::FOLDS],
    }


def read(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each sequence once, with its label."""
    seen = set()
    for line in path.read_text(encoding="utf8").splitlines():
        label, *_, text = line.split("\t")
        if text not in seen:
            seen.add(text)
            yield label, text.upper()


def count_common(bench: Bench, task: str, seed: int) -> dict[str, float]:
    """How often the most frequent label of the test set is right, to compare with."""
    labels = [label for label, _ in split(bench.data, task, seed)["test"]]
    return {"most_frequent": max(map(labels.count, labels)) / len(labels)}


# --- table


def print_tables(bench: Bench) -> None:
    """Accuracy on what was held out, of both kinds of weights, and by how much they differ."""
    done = read_results(bench)
    rows: dict[str, list[dict]] = {task: [] for task in TASKS}
    for task, seed in product(TASKS, range(FOLDS)):
        both = {kind: done.get(f"{task}-{kind}-{seed}") for kind in KINDS}
        if all(both.values()):
            rows[task].append(both)
    columns = {
        "seeds": len,
        "most frequent label": of("random.most_frequent"),
        **{kind: of(f"{kind}.test") for kind in KINDS},
        "difference": of(lambda run: run["pretrained"]["test"] - run["random"]["test"], "+.3f"),
        "CPU s of a training": of("pretrained.train_cpu_seconds", ".0f"),
    }
    print_table(done, "", columns, rows)


if __name__ == "__main__":
    run_script(list_jobs, print_tables)
