"""One version of the package beside another: speed and memory, or the score of a short training.

Run it with the folder of each version first on PYTHONPATH, in turns; it prints a line of JSON.

    PYTHONPATH=OLD python benchmarks/versions.py DATA ENCODER speed
    PYTHONPATH=. python benchmarks/versions.py DATA ENCODER wnut17 --steps 120 --seed 1
"""

import json
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import spacy
import torch
import typer
from plain_loops import FILES, read_conll, read_labelled
from spacy.language import Language
from spacy.scorer import Scorer
from spacy.tokens import Doc
from spacy.training import Example
from spacy.training.iob_utils import biluo_tags_to_spans, iob_to_biluo
from thinc.api import Adam, fix_random_seed

import spacy_bert_heads

RATE, BATCH_SIZE, PIPE_BATCH = 1e-4, 32, 128


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    what: Annotated[str, typer.Argument(help="speed, wnut17 or sst2")],
    steps: Annotated[int, typer.Option(help="Of a training for a score")] = 120,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    torch.set_num_threads(1)
    fix_random_seed(seed)
    torch.manual_seed(seed)
    if what == "speed":
        found = measure_speed(make_nlp(encoder, "bert_ner"), data)
    else:
        head = {"wnut17": "bert_ner", "sst2": "bert_textcat"}[what]
        nlp = make_nlp(encoder, head, {"model": {"rate_factor": 10.0}})
        found = {"score": round(train(nlp, data, what, steps, seed), 4)}
    version = str(Path(spacy_bert_heads.__file__).parents[1])
    print(json.dumps({"package": version, "task": what, "seed": seed, **found}))


def make_nlp(encoder: str, head: str, config: dict | None = None) -> Language:
    nlp = spacy.blank("en")
    nlp.add_pipe("bert_encoder", config={"model": {"name": encoder}})
    nlp.add_pipe(head, config=config or {})
    return nlp


def measure_speed(nlp: Language, data: Path) -> dict[str, float]:
    """By seconds of the processor, which other programs beside it disturb less."""
    examples, test = (read_examples(nlp, data, "wnut17", part) for part in (1, 3))
    nlp.initialize(lambda: examples[:400])
    optimizer = Adam(5e-5, use_averages=False, L2_is_weight_decay=True)
    nlp.update(examples[:BATCH_SIZE], sgd=optimizer)
    start = time.process_time()
    for i in range(0, 640, BATCH_SIZE):
        nlp.update(examples[i : i + BATCH_SIZE], sgd=optimizer)
    steps_per_s = 640 / BATCH_SIZE / (time.process_time() - start)
    texts = [" ".join(token.text for token in example.reference) for example in test]
    num_words = sum(len(example.reference) for example in test)
    list(nlp.pipe(texts[:200], batch_size=PIPE_BATCH))
    rates = []
    for _ in range(2):
        start = time.process_time()
        list(nlp.pipe(texts, batch_size=PIPE_BATCH))
        rates.append(num_words / (time.process_time() - start))
    start = time.process_time()
    for text in texts[:60]:
        nlp(text)
    return {
        "words_per_s": round(max(rates)),
        "steps_per_s": round(steps_per_s, 3),
        "ms_per_text": round((time.process_time() - start) / 60 * 1000, 2),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def train(nlp: Language, data: Path, task: str, steps: int, seed: int) -> float:
    """Train, the rate rising for a tenth of the steps, and score the test data: the F of entities,
    the accuracy of categories."""
    examples, test = (read_examples(nlp, data, task, part) for part in (1, 3))
    nlp.initialize(lambda: examples[:1500])
    optimizer = Adam(RATE, use_averages=False, L2=0.01, L2_is_weight_decay=True, grad_clip=1.0)
    batches = make_batches(examples, random.Random(seed))
    for step in range(steps):
        share = min((step + 1) / (steps / 10), (steps - step) / (steps * 0.9))
        optimizer.learn_rate = RATE * share
        batch = [Example(copy_words(nlp, one.reference), one.reference) for one in next(batches)]
        nlp.update(batch, sgd=optimizer)
    docs = nlp.pipe([one.predicted for one in test], batch_size=PIPE_BATCH)
    scored = [Example(doc, one.reference) for doc, one in zip(docs, test, strict=True)]
    if task == "wnut17":
        return Scorer.score_spans(scored, "ents")["ents_f"]
    return sum(best(one.predicted) == best(one.reference) for one in scored) / len(scored)


def make_batches(examples: list[Example], rng: random.Random) -> Iterator[list[Example]]:
    while True:
        rng.shuffle(examples)
        for i in range(0, len(examples) - BATCH_SIZE + 1, BATCH_SIZE):
            yield examples[i : i + BATCH_SIZE]


def read_examples(nlp: Language, data: Path, task: str, part: int) -> list[Example]:
    folder, *files = FILES[task]
    path = data / folder / files[part - 1]
    references = []
    if task == "wnut17":
        for words, tags in read_conll(path):
            doc = Doc(nlp.vocab, words=words)
            doc.set_ents(biluo_tags_to_spans(doc, iob_to_biluo(tags)), default="outside")
            references.append(doc)
    else:
        for (text,), label in read_labelled(path):
            doc = nlp.make_doc(text)
            doc.cats = {name: float(name == label) for name in ("0", "1")}
            references.append(doc)
    return [Example(copy_words(nlp, doc), doc) for doc in references]


def copy_words(nlp: Language, doc: Doc) -> Doc:
    words, spaces = [token.text for token in doc], [bool(token.whitespace_) for token in doc]
    return Doc(nlp.vocab, words=words, spaces=spaces)


def best(doc: Doc) -> str:
    return max(doc.cats, key=doc.cats.__getitem__)


if __name__ == "__main__":
    typer.run(main)
