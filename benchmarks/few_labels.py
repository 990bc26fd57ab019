"""Few labels, by several ways of training (jobs.py has the command line).

TASK-SIZE-WAY-DRAW
    SIZE examples of each class (of NCBI: sentences), drawn from the training set, the same ones for
    all ways; all of them are tested on the same examples. SICK is pairs of texts for `bert_nli`; a
    cloze test reads them as one text.
TASK-0-WAY-DRAW
    No example: five patterns, or five hypotheses for each class, in place of draws.
masked, sick, cbow, skip-gram
    What other jobs need: the checkpoint after an epoch of masked words, `bert_nli` after an epoch
    of SICK, static vectors.

Nothing is chosen by a score on a test set, and no setting was tried out before.
"""

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import spacy
from jobs import (
    RATE,
    Bench,
    Job,
    finetune,
    pretrain,
    print_head,
    print_row,
    read_results,
    run_script,
    spread,
    take,
)
from rivals import SETFIT, VECTORS, run_program
from spacy.tokens import Doc, DocBin
from spacy.vocab import Vocab
from tasks import convert_task
from thinc.api import Config

from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.text.user_data import copy_of_list, set_value
from spacy_bert_heads.training.loop import train

DRAWS = range(5)
STEPS = 100
NUM_TEST = 1000  # at most: a standard error of 1.6 points, where draws differ by more
METRICS = {"textcat": "cats_acc", "nli": "nli_acc", "ner": "ents_f"}
SIZES = {"sst2": (8, 64), "sick": (8, 64), "ncbi": (16, 64)}
HEADS = {"sst2": "textcat", "sick": "nli", "ncbi": "ner"}
# Of LM-BFF (Gao et al. 2021, table 1) and PET (Schick & Schütze 2021, section 4). The first one is
# trained, too.
WORDS = {
    "sst2": {"1": "great", "0": "terrible"},
    "sick": {"entailment": "yes", "neutral": "maybe", "contradiction": "no"},
}
PATTERNS = {
    "sst2": (
        "{text} It was {mask}.",
        "{text} All in all, it was {mask}.",
        "{text} In summary, the movie is {mask}.",
        "Just {mask}! {text}",
        "{text} A {mask} one.",
    ),
    "sick": (
        "{text} {mask}.",
        "{text} Answer: {mask}.",
        "{text} The answer is {mask}.",
        "{mask}: {text}",
        "Question: {text} Answer: {mask}.",
    ),
}
JOINED = "{} Does it follow that {}?"  # how a pair is one text
HYPOTHESES = (
    {"1": "The movie is good", "0": "The movie is bad"},
    {"1": "The movie is great", "0": "The movie is terrible"},
    {"1": "A person is praising a movie", "0": "A person is criticizing a movie"},
    {"1": "Someone likes it", "0": "Someone dislikes it"},
    {"1": "This is a positive review", "0": "This is a negative review"},
)
STATIC = {"@architectures": "spacy.HashEmbedCNN.v2", "pretrained_vectors": True} | {
    "width": 96,
    "depth": 4,
    "embed_size": 2000,
    "window_size": 1,
    "maxout_pieces": 3,
    "subword_features": True,
}


@dataclass(frozen=True)
class Way:
    """A row. `tasks` are those that it is for; `needs` the job that makes its encoder, or its
    vectors; without `learns` the encoder is frozen."""

    tasks: tuple[str, ...] = ("sst2", "sick", "ncbi")
    learns: bool = True
    needs: str | None = None
    change: Callable[[Config, str], None] = lambda config, task: None


def contrast(config: Config, task: str) -> None:
    config["initialize"]["after_init"] = {"@callbacks": "spacy_bert_heads.contrastive.v1"}


def ask_for_words(config: Config, task: str, pattern: int = 0) -> None:
    model = config["components"]["bert_textcat"]["model"]
    config["components"]["bert_textcat"]["model"] = {
        "@architectures": "spacy_bert_heads.ClozeHead.v1",
        "pattern": PATTERNS[task][pattern],
        "words": WORDS[task],
        "tok2vec": model["tok2vec"],
    }


def read_vectors(config: Config, task: str) -> None:
    head = f"bert_{HEADS[task]}"
    config["components"][head]["model"]["tok2vec"] = STATIC
    config["components"][head]["model"]["learning_rate_multiplier"] = 1.0
    del config["components"]["bert_encoder"]
    config["nlp"]["pipeline"] = [head]
    config["training"]["optimizer"]["learn_rate"]["initial_rate"] = 1e-3


WAYS = {
    "fine-tuned": Way(),
    "frozen": Way(learns=False),
    "contrastive": Way(("sst2",), learns=False, change=contrast),
    "masked": Way(("sst2",), needs="masked"),
    "cloze": Way(("sst2", "sick"), needs="masked", change=ask_for_words),
    "cbow": Way(("sst2", "ncbi"), needs="cbow", change=read_vectors),
    "skip-gram": Way(("sst2", "ncbi"), needs="skip-gram", change=read_vectors),
    "setfit": Way(("sst2",)),
}


def list_jobs() -> list[Job]:
    """All jobs, the smallest sizes first, draw after draw."""
    jobs = [
        Job("masked", 5, learn_words),
        Job("cbow", 2, partial(make_vectors, "cbow")),
        Job("skip-gram", 5, partial(make_vectors, "skip-gram")),
        Job("sick", 5, learn_inference),
    ]
    for draw in DRAWS:
        for task in WORDS:
            run = partial(ask_untrained, task, draw)
            jobs.append(Job(f"{task}-0-cloze-{draw}", 0.5, run, "masked"))
        run = partial(ask_inference, draw)
        jobs.append(Job(f"sst2-0-nli-{draw}", 0.5, run, "sick"))
    for step, task, draw, (name, way) in product(range(2), SIZES, DRAWS, WAYS.items()):
        if task in way.tasks:
            size = SIZES[task][step]
            run = partial(learn, task, size, name, draw)
            jobs.append(Job(f"{task}-{size}-{name}-{draw}", 1, run, way.needs))
    return jobs


# --- what other jobs need


def learn_words(bench: Bench) -> dict[str, Any]:
    """An epoch of masked words in WikiText-2's texts, half a million wordpieces."""
    settings = {
        "paths.raw": bench.data / "raw_wikitext2",
        "paths.encoder": bench.encoder,
        "objective.sentences": "full-sentences",
        "training.max_steps": bench.scaled(122, least=4),
        "training.phases": [{"max_length": 128, "share": 1.0}],
    }
    report = pretrain(bench, "masked", settings)
    return {key: report[key] for key in ("tokens", "held_out_mlm_loss", "held_out_mlm_accuracy")}


def make_vectors(kind: str, bench: Bench) -> dict[str, Any]:
    """Static vectors of all raw texts, 8 million words, by gensim."""
    output = bench.work(kind)
    output.mkdir(parents=True, exist_ok=True)
    texts = [str(path) for path in sorted(bench.data.glob("raw_*/*"))]
    given = {"texts": texts, "is_skip_gram": kind == "skip-gram", "output": f"{output}/vectors.txt"}
    run_program("gensim", VECTORS, given)
    command = ["init", "vectors", "en", f"{output}/vectors.txt", f"{output}/model-last"]
    subprocess.run([sys.executable, "-m", "spacy", *command, "--attr", "LOWER"], check=True)
    return {"vectors": len(spacy.load(output / "model-last").vocab.vectors)}


def learn_inference(bench: Bench) -> dict[str, Any]:
    """`bert_nli` on all of SICK, whose pipeline is kept."""

    def keep(nlp: spacy.Language) -> dict[str, Any]:
        folder = bench.work("sick") / "model-last"
        folder.parent.mkdir(parents=True, exist_ok=True)
        nlp.to_disk(folder)
        return {}

    return finetune(
        bench, bench.work("sick-run"), "sick", bench.encoder,
        n_train=4500, n_test=NUM_TEST, seed=0, epochs=1, look=keep,
    )  # fmt: skip


# --- data


def read_docs(bench: Bench, task: str, part: str) -> list[Doc]:
    folder = bench.work(f"data-{task}")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert_task(bench.data, task, folder)
        take(folder / "test.spacy", bench.scaled(NUM_TEST, least=32), folder / "taken.spacy")
        (folder / "taken.spacy").replace(folder / "test.spacy")
    docs = list(DocBin().from_disk(folder / f"{part}.spacy").get_docs(Vocab()))
    for doc in docs:  # some texts of SICK are in several pairs
        for name in ("hypotheses", "nli") if task == "sick" else ():
            set_value(name, doc, copy_of_list(name, doc)[:1])
    return docs


def label_of(doc: Doc) -> str:
    """The class; entities are drawn from all sentences."""
    if doc.cats:
        return max(doc.cats, key=doc.cats.__getitem__)
    return "".join(verdict["label"] for verdict in copy_of_list("nli", doc))


def draw_docs(bench: Bench, task: str, size: int, seed: int) -> list[Doc]:
    """As many examples of each class."""
    chosen, docs = random.Random(seed), read_docs(bench, task, "train")
    labels = {id(doc): label_of(doc) for doc in docs}
    return [
        doc
        for label in sorted(set(labels.values()))
        for doc in chosen.sample([doc for doc in docs if labels[id(doc)] == label], size)
    ]


def as_texts(docs: list[Doc]) -> list[Doc]:
    """Pairs as texts with a category."""
    joined, nlp = [], spacy.blank("en")
    for doc in docs:
        text = JOINED.format(doc.text, copy_of_list("hypotheses", doc)[0].rstrip(" ."))
        joined.append(nlp.make_doc(text))
        joined[-1].cats = {label: float(label == label_of(doc)) for label in WORDS["sick"]}
    return joined


def save(docs: list[Doc], path: Path) -> None:
    DocBin(docs=docs, store_user_data=True).to_disk(path)


# --- jobs


def learn(task: str, size: int, name: str, draw: int, bench: Bench) -> dict[str, Any]:
    way, docs = WAYS[name], draw_docs(bench, task, size, draw)
    test = read_docs(bench, task, "test")
    if name == "setfit":
        given = {"encoder": bench.encoder, "seed": draw}
        for part, own in (("train", docs), ("test", test)):
            given |= {f"{part}_texts": [doc.text for doc in own]}
            given |= {f"{part}_labels": [label_of(doc) for doc in own]}
        return {"precision": "fp32", **run_program("setfit", SETFIT, given)}
    head = HEADS[task]
    if task == "sick" and name == "cloze":
        head, docs, test = "textcat", as_texts(docs), as_texts(test)
    with TemporaryDirectory() as made:
        folder = Path(made)
        save(docs, folder / "train.spacy")
        save(docs[:: max(len(docs) // 4, 1)], folder / "dev.spacy")  # chooses nothing
        config = make_config(bench, task, head, way)
        config["paths"] |= {"train": str(folder / "train.spacy"), "dev": str(folder / "dev.spacy")}
        steps = bench.scaled(STEPS, least=4)
        config["training"] |= {"seed": draw, "max_steps": steps, "eval_frequency": steps}
        rates = config["training"]["optimizer"]["learn_rate"]
        rates |= {"warmup_steps": steps // 10, "total_steps": steps}
        return evaluate(train(config, folder / "out"), test, head)


def make_config(bench: Bench, task: str, head: str, way: Way) -> Config:
    """That of `init-config`, with the head on the mean of the last hidden states where it has a
    pooling, as MiniLM was trained."""
    model = None if way.needs is None else str(bench.work(way.needs) / "model-last")
    is_static = way.change is read_vectors
    config = init_config([head], name=bench.encoder if model is None or is_static else model)
    config["components"]["bert_encoder"]["model"]["precision"] = bench.precision
    if "pooling" in config["components"][f"bert_{head}"]["model"]:
        config["components"][f"bert_{head}"]["model"]["pooling"] = "mean"
    config["training"]["optimizer"]["learn_rate"]["initial_rate"] = RATE
    if not way.learns:
        config["training"]["optimizer"]["learn_rate"]["initial_rate"] = 1e-3
        config["training"]["frozen_components"] = ["bert_encoder"]
    if is_static:
        config["paths"]["vectors"] = model
    way.change(config, task)
    return Config(config)


def ask_untrained(task: str, pattern: int, bench: Bench) -> dict[str, Any]:
    config = make_config(bench, task, "textcat", Way(needs="masked"))
    ask_for_words(config, task, pattern)
    nlp = spacy.util.load_model_from_config(config, auto_fill=True)
    nlp.initialize()
    test = read_docs(bench, task, "test")
    return evaluate(nlp, as_texts(test) if task == "sick" else test, "textcat")


def ask_inference(number: int, bench: Bench) -> dict[str, Any]:
    nlp = spacy.load(bench.work("sick") / "model-last")
    docs = read_docs(bench, "sst2", "test")
    asked = [(HYPOTHESES[number], "categories")] * len(docs)
    found = nlp.get_pipe("bert_nli").classify([nlp.make_doc(doc.text) for doc in docs], asked)
    right = [max(p, key=p.__getitem__) == label_of(doc) for p, doc in zip(found, docs, strict=True)]
    return {"test": sum(right) / len(right)}


def evaluate(nlp: spacy.Language, docs: list[Doc], head: str) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        save(docs, Path(folder) / "test.spacy")
        examples = list(BertCorpus(Path(folder))(nlp))
    return {"test": nlp.evaluate(examples)[METRICS[head]]}


def print_tables(bench: Bench) -> None:
    """A row for each way, as Markdown: the mean over draws, and from where to where."""
    done = read_results(bench)
    columns = [(task, size) for task, sizes in SIZES.items() for size in (0, *sizes)]
    print_head("", *(f"{task}, {size}" for task, size in columns))
    for name in (*WAYS, "nli"):
        cells = []
        for task, size in columns:
            runs = [done.get(f"{task}-{size}-{name}-{draw}") for draw in DRAWS]
            values = [run["test"] for run in runs if run is not None]
            few = f", {len(values)} draws" if 0 < len(values) < len(DRAWS) else ""
            cells.append(spread(values) + few)
        print_row(name, *cells)


if __name__ == "__main__":
    run_script(list_jobs, print_tables)
