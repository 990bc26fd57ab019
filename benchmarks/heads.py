"""What heads and their settings are worth (jobs.py has the command line).

loss-TASK-LOSS-SEED
    Entities by a softmax over each token's tags, and by a conditional random field.
choice-TASK-SEED, similarity-stsb-SEED
    Multiple choice beside chance, and Spearman's correlation.
added-SEED
    WNUT17 without one type of entities, then with it: a label is added to the trained head, which
    learns on from the whole data; or from sentences with the new type alone, in which nothing else
    is annotated, with rehearsal on the other sentences between, or without; or in which the head
    has annotated the old types before. The score is the F1 of the old types on the test set.

Every setting is that of `init-config`, but for what a job is about. Nothing is chosen by a score on
a test set.
"""

import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import spacy
from jobs import RATE, SEEDS, Bench, Job, finetune, of, print_table, read_results, run_script
from spacy.training import Example
from spacy.util import fix_random_seed, minibatch
from tasks import BATCH_SIZE
from thinc.api import Adam, Config

from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.reader import BertCorpus

EPOCHS = 3
TASKS = ("wnut17", "ncbi")
LOSSES = ("softmax", "crf")
CHOICES = ("codah", "copa")
NEW = "location"
WAYS = ("mixed", "new alone", "new and rehearsal", "new and predicted")


def list_jobs() -> list[Job]:
    """All jobs, seed after seed, so that what is done first is of everything."""
    jobs = []
    for seed in SEEDS:
        for task in TASKS:
            for loss in LOSSES:
                name = f"loss-{task}-{loss}-{seed}"
                jobs.append(Job(name, 12, partial(train, name, task, seed, loss=loss)))
        for task in (*CHOICES, "stsb"):
            name = f"{'similarity' if task == 'stsb' else 'choice'}-{task}-{seed}"
            jobs.append(Job(name, 8, partial(train, name, task, seed)))
        jobs.append(Job(f"added-{seed}", 20, partial(add_label, seed)))
    return jobs


def train(
    name: str, task: str, seed: int, bench: Bench, *, loss: str | None = None
) -> dict[str, Any]:
    def change(config: Config) -> None:
        if loss is not None:
            config["components"]["bert_ner"]["loss"] = loss

    settings = {"seed": seed, "epochs": EPOCHS}
    result = finetune(bench, bench.work(name), task, bench.encoder, change=change, **settings)
    return {"task": task, "loss": loss, "seed": seed, **result}


# --- labels that are added


def add_label(seed: int, bench: Bench) -> dict[str, Any]:
    folder = bench.work(f"added-{seed}")
    without = folder / "without" / "ner_wnut17"
    without.mkdir(parents=True, exist_ok=True)
    for source in (bench.data / "ner_wnut17").glob("*.conll"):
        text = source.read_text(encoding="utf8")
        text = text.replace(f"B-{NEW}", "O").replace(f"I-{NEW}", "O")
        (without / source.name).write_text(text, encoding="utf8")
    whole = {}
    for part in ("train", "test"):
        whole[part] = folder / f"{part}.spacy"
        convert(bench.data / "ner_wnut17" / f"{part}.conll", whole[part])

    def look(nlp: spacy.Language) -> dict[str, Any]:
        test = list(BertCorpus(whole["test"])(nlp))
        before = score(nlp, test)
        saved = nlp.to_bytes()
        after = {}
        for way in WAYS:
            learner = spacy.blank(nlp.lang).from_config(nlp.config).from_bytes(saved)
            learn_more(learner, whole["train"], way, seed, bench)
            after[way] = score(learner, test)
        return {"before": before, "after": after}

    own = replace(bench, data=without.parent)
    settings = {"seed": seed, "epochs": EPOCHS}
    result = finetune(own, folder / "run", "wnut17", bench.encoder, look=look, **settings)
    return {"seed": seed, **result}


def learn_more(nlp: spacy.Language, data: Path, way: str, seed: int, bench: Bench) -> None:
    """Add the label, and learn for an epoch, at a learning rate that falls to 0."""
    fix_random_seed(seed)
    nlp.resume_training()
    nlp.get_pipe("bert_ner").remember()
    examples = list(BertCorpus(data)(nlp))
    examples = random.sample(examples, bench.scaled(len(examples), BATCH_SIZE))
    others = [eg for eg in examples if not has_new(eg)]
    if way == "new and predicted":
        examples = [with_predicted(eg, nlp) for eg in examples if has_new(eg)] * 3
    elif way != "mixed":
        examples = [only_new(eg) for eg in examples if has_new(eg)] * 3
    nlp.get_pipe("bert_ner").add_label(NEW)
    batches = [list(batch) for batch in minibatch(examples, BATCH_SIZE)]
    optimizer = Adam(RATE, use_averages=False, L2=0.01, L2_is_weight_decay=True, grad_clip=1.0)
    for step, batch in enumerate(batches):
        optimizer.learn_rate = RATE * (1 - step / len(batches))
        nlp.update(batch, sgd=optimizer)
        if way == "new and rehearsal":
            old = random.sample(others, min(len(others), BATCH_SIZE))
            nlp.get_pipe("bert_ner").rehearse(old, sgd=optimizer)
    nlp.get_pipe("bert_encoder").close_step()


def has_new(example: Example) -> bool:
    return any(ent.label_ == NEW for ent in example.reference.ents)


def only_new(example: Example) -> Example:
    """The same where nothing but the new entities is known."""
    gold = example.reference.copy()
    gold.set_ents([ent for ent in gold.ents if ent.label_ == NEW], default="missing")
    return Example(example.predicted, gold)


def with_predicted(example: Example, nlp: spacy.Language) -> Example:
    """The new entities beside those that the head finds of the old types."""
    new = only_new(example).reference.ents
    gold, found = example.reference.copy(), nlp(nlp.make_doc(example.reference.text))
    old = [gold.char_span(ent.start_char, ent.end_char, ent.label_) for ent in found.ents]
    taken = {token.i for ent in new for token in ent}
    gold.set_ents([*new, *(e for e in old if e and not taken & set(range(e.start, e.end)))])
    return Example(example.predicted, gold)


def score(nlp: spacy.Language, examples: list[Example]) -> dict[str, float]:
    """F1 of the old types, and of the new one."""
    docs = nlp.pipe([nlp.make_doc(eg.reference.text) for eg in examples])
    counts: dict[str, Counter] = {"old": Counter(), "new": Counter()}
    for eg, doc in zip(examples, docs, strict=True):
        for label, row in nlp.get_pipe("bert_ner").tally(Example(doc, eg.reference)).items():
            counts["new" if label == NEW else "old"].update(row)
    return {
        name: 2 * row["tp"] / max(2 * row["tp"] + row["fp"] + row["fn"], 1)
        for name, row in counts.items()
    }


# --- tables


def print_tables(bench: Bench) -> None:
    done = read_results(bench)
    rows = [f"loss-{task}-{loss}" for task in TASKS for loss in LOSSES]
    rows += [f"choice-{task}" for task in CHOICES] + ["similarity-stsb"]
    print_table(done, "score, test", {"": of("test")}, {name: name for name in rows})
    columns = {"old types before": of("before.old")}
    columns |= {f"{way}: points lost, and of {NEW}": partial(show_way, way) for way in WAYS}
    print_table(done, f"WNUT17, F1: without {NEW}, then with it", columns, {"": "added"})


def show_way(way: str, runs: list[dict]) -> str:
    lost = of(lambda run: 100 * (run["before"]["old"] - run["after"][way]["old"]), ".1f")
    return f"{lost(runs)}; {of(f'after.{way}.new')(runs)}"


if __name__ == "__main__":
    run_script(list_jobs, print_tables)
