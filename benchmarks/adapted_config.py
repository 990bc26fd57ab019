"""spaCy's own components on the encoder, at three pairs of learning rates.

    python -m spacy download en_core_web_sm
    python benchmarks/adapted_config.py TEXTS ENCODER

TEXTS is a file of raw text, as WikiText-2, that `en_core_web_sm` annotates: the first sentences are
the dev set. A tagger and a parser of spaCy are put on ENCODER by `init-config --adapt` and trained
for a few steps; with its rates, with those of a bare swap, and with those of fine-tuning. A table
of means, with the lowest and the highest, is printed.
"""

import io
import statistics
import tempfile
from itertools import islice
from pathlib import Path
from typing import Annotated

import spacy
import typer
from spacy.cli.init_config import init_config
from spacy.tokens import Doc, DocBin
from spacy.training.initialize import init_nlp
from spacy.training.loop import train
from thinc.api import Config

from spacy_bert_heads.adapt_config import LEARN_RATE, RATE_FACTOR, adapt_config

STEPS = 90
WORDS = 100  # of a batch
DEV_SENTENCES = 300
MIN_WORDS = 5  # of a sentence: headlines have no syntax
RATES = {  # of the components, and what of it the encoder has
    "init-config --adapt": (LEARN_RATE, RATE_FACTOR),
    "a bare swap: spaCy's rate for all": (LEARN_RATE, 1.0),
    "the rate of fine-tuning for all": (1e-4, 1.0),
}
SCORES = {"tag_acc": "tags", "dep_uas": "UAS", "dep_las": "LAS"}


def annotate(texts: Path, model: str, folder: Path) -> None:
    """Write train.spacy and dev.spacy: sentences of a text, as a pipeline annotates them."""
    nlp = spacy.load(model)
    lines = (line.strip() for line in texts.read_text(encoding="utf8").splitlines())
    wanted = DEV_SENTENCES + 2 * STEPS * WORDS // 15
    sentences = (
        sentence.as_doc()
        for doc in nlp.pipe(line for line in lines if line)
        for sentence in doc.sents
        if len(sentence) >= MIN_WORDS
    )
    docs: list[Doc] = list(islice(sentences, wanted))
    DocBin(docs=docs[:DEV_SENTENCES]).to_disk(folder / "dev.spacy")
    DocBin(docs=docs[DEV_SENTENCES:]).to_disk(folder / "train.spacy")


def make_config(folder: Path, encoder: str) -> Config:
    base = folder / "base.cfg"
    init_config(lang="en", pipeline=["tagger", "parser"]).to_disk(base)
    config = adapt_config(base, name=encoder)
    config["paths"] |= {part: str(folder / f"{part}.spacy") for part in ("train", "dev")}
    training = config["training"]
    training |= {"max_steps": STEPS, "eval_frequency": STEPS, "patience": 0}
    training["optimizer"]["learn_rate"]["warmup_steps"] = STEPS // 10
    training["batcher"] = {
        "@batchers": "spacy.batch_by_words.v1",
        "size": WORDS,
        "tolerance": 0.2,
        "discard_oversize": False,
    }
    training["logger"] = {"@loggers": "spacy.ConsoleLogger.v3", "console_output": False}
    return config


def run(config: Config, *, rate: float, factor: float, seed: int) -> dict[str, float]:
    """Train, and score the last model on the dev set."""
    config = config.copy()
    config["training"]["seed"] = config["system"]["seed"] = seed
    config["training"]["optimizer"]["learn_rate"]["initial_rate"] = rate
    config["components"]["bert_encoder"]["model"]["rate_factor"] = factor
    nlp = init_nlp(config)
    with tempfile.TemporaryDirectory() as output:
        train(nlp, Path(output), stdout=io.StringIO())
        trained = spacy.load(Path(output) / "model-last")
    corpus = spacy.registry.resolve(nlp.config.interpolate()["corpora"])["dev"]
    found = trained.evaluate(list(corpus(trained)))
    return {key: found[key] for key in SCORES}


def main(
    texts: Annotated[Path, typer.Argument(help="A file of raw text")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint: a hub name or a folder")],
    model: Annotated[str, typer.Option(help="The pipeline that annotates")] = "en_core_web_sm",
    seeds: Annotated[int, typer.Option(help="How many")] = 3,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        annotate(texts, model, Path(folder))
        config = make_config(Path(folder), encoder)
        print("| learning rates |", " | ".join(SCORES.values()), "|\n|---|---|---|---|")
        for name, (rate, factor) in RATES.items():
            runs = [run(config, rate=rate, factor=factor, seed=seed) for seed in range(seeds)]
            cells = []
            for key in SCORES:
                values = [100 * one[key] for one in runs]
                low, mean, high = min(values), statistics.mean(values), max(values)
                cells.append(f"{mean:.0f} ({low:.0f} to {high:.0f})")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
