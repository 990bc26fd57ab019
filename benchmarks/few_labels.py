"""Few labels: SST-2 with some examples of each class, by several ways of training.

    python benchmarks/few_labels.py run DATA ENCODER OUT --sizes 8,64 --draws 5
    SETFIT_PYTHON=…/bin/python python benchmarks/few_labels.py setfit DATA ENCODER OUT
    python benchmarks/few_labels.py table OUT

`setfit` runs the package of that name (with sentence-transformers and the same checkpoint, mean
pooling, its defaults) in an environment of its own. Each run is a JSON file.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import spacy
import typer
from spacy.tokens import Doc, DocBin
from thinc.api import Config

from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.training.loop import train

CONTRASTIVE = {"@callbacks": "spacy_bert_heads.contrastive.v1"}
# By name: contrastive training first, whether the encoder learns with the head.
METHODS = {
    "fine-tuned": (False, True),
    "linear": (False, False),  # on a frozen encoder
    "contrastive": (True, False),
    "contrastive-fine-tuned": (True, True),
}
STEPS = 100
SETFIT = """
import json, sys
from datasets import Dataset
from sentence_transformers import SentenceTransformer, models
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression
given = json.load(open(sys.argv[1]))
body = models.Transformer(given["encoder"])
pooling = models.Pooling(body.get_word_embedding_dimension())
model = SetFitModel(
    model_body=SentenceTransformer(modules=[body, pooling], device="cpu"),
    model_head=LogisticRegression(),
)
data = Dataset.from_dict({"text": given["texts"], "label": given["labels"]})
arguments = TrainingArguments(
    batch_size=16, num_iterations=20, num_epochs=1, seed=given["seed"],
    report_to="none", save_strategy="no", output_dir=given["folder"],
)
Trainer(model=model, args=arguments, train_dataset=data).train()
found = [str(label) for label in model.predict(given["test"])]
score = sum(a == b for a, b in zip(found, given["gold"])) / len(found)
json.dump({"score": score}, open(sys.argv[2], "w"))
"""
app = typer.Typer()
DATA = Annotated[Path, typer.Argument(help="The folder of the data sets")]
ENCODER = Annotated[str, typer.Argument(help="The checkpoint")]
OUT = Annotated[Path, typer.Argument(help="A folder for the results")]


def read(data: Path, part: str) -> list[tuple[str, str]]:
    lines = (data / "textcat_sst2" / part).read_text("utf8").splitlines()
    return [(line[2:], line[0]) for line in lines]


def draw(data: Path, size: int, seed: int) -> list[tuple[str, str]]:
    """As many texts of each class."""
    chosen, texts = random.Random(seed), read(data, find(data, "train"))
    return [
        pair
        for label in "01"
        for pair in chosen.sample([pair for pair in texts if pair[1] == label], size)
    ]


def find(data: Path, part: str) -> str:
    return next(path.name for path in (data / "textcat_sst2").iterdir() if part in path.name)


@app.command()
def run(
    data: DATA,
    encoder: ENCODER,
    out: OUT,
    sizes: str = "8,64",
    draws: int = 5,
    precision: str = "bf16",
) -> None:
    """Train what is missing."""
    out.mkdir(parents=True, exist_ok=True)
    for size in map(int, sizes.split(",")):
        for seed in range(draws):
            for method in METHODS:
                file = out / f"{method}.{size}.{seed}.json"
                if not file.exists():
                    start = time.process_time()
                    score = fit(data, encoder, method, size, seed, precision)
                    result = {"score": score, "cpu_seconds": round(time.process_time() - start)}
                    file.write_text(json.dumps(result))
                    print(file.stem, result, flush=True)


def fit(data: Path, encoder: str, method: str, size: int, seed: int, precision: str) -> float:
    contrastive, learns = METHODS[method]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, texts in (("train", draw(data, size, seed)), ("dev", draw(data, 2, 1000))):
            save(texts, folder / f"{part}.spacy")
        config = init_config(["textcat"], name=encoder)
        config["paths"] |= {"train": str(folder / "train.spacy"), "dev": str(folder / "dev.spacy")}
        config["components"]["bert_encoder"]["model"]["precision"] = precision
        config["components"]["bert_textcat"]["model"]["pooling"] = "mean"
        config["training"] |= {"seed": seed, "max_steps": STEPS, "eval_frequency": STEPS}
        rates = config["training"]["optimizer"]["learn_rate"]
        rates |= {"warmup_steps": STEPS // 10, "total_steps": STEPS}
        if contrastive:
            config["initialize"]["after_init"] = CONTRASTIVE
        if not learns:
            rates["initial_rate"] = 1e-3
            config["training"]["frozen_components"] = ["bert_encoder"]
        nlp = train(Config(config), folder / "out")
        test = read(data, find(data, "test"))
        docs = nlp.pipe(text for text, _ in test)
        found = [max(doc.cats, key=doc.cats.__getitem__) for doc in docs]
    return sum(a == b for a, (_, b) in zip(found, test, strict=True)) / len(test)


def save(texts: list[tuple[str, str]], path: Path) -> None:
    nlp = spacy.blank("en")
    docs: list[Doc] = []
    for text, label in texts:
        docs.append(nlp.make_doc(text))
        docs[-1].cats = {one: float(one == label) for one in "01"}
    DocBin(docs=docs, store_user_data=True).to_disk(path)


@app.command()
def setfit(data: DATA, encoder: ENCODER, out: OUT, sizes: str = "8,64", draws: int = 5) -> None:
    """Train what is missing by the package SetFit."""
    python = os.environ.get("SETFIT_PYTHON", sys.executable)
    test = read(data, find(data, "test"))
    for size in map(int, sizes.split(",")):
        for seed in range(draws):
            file = out / f"setfit.{size}.{seed}.json"
            if file.exists():
                continue
            texts, labels = zip(*draw(data, size, seed), strict=True)
            with tempfile.TemporaryDirectory() as folder:
                given: dict[str, Any] = {"encoder": encoder, "texts": texts, "labels": labels}
                given |= {"seed": seed, "folder": folder, "test": [t for t, _ in test]}
                given["gold"] = [label for _, label in test]
                source = Path(folder) / "given.json"
                source.write_text(json.dumps(given))
                subprocess.run([python, "-c", SETFIT, source, file], check=True)
            print(file.stem, file.read_text(), flush=True)


@app.command()
def table(out: OUT) -> None:
    """Print means over draws, with the lowest and the highest."""
    runs: dict[tuple[str, int], list[float]] = {}
    for file in sorted(out.glob("*.json")):
        method, size, _ = file.stem.rsplit(".", 2)
        runs.setdefault((method, int(size)), []).append(json.loads(file.read_text())["score"])
    sizes = sorted({size for _, size in runs})
    print(f"| | {' | '.join(f'{size} a class' for size in sizes)} |\n|---{'|---' * len(sizes)}|")
    for method in dict.fromkeys(method for method, _ in runs):
        cells = []
        for size in sizes:
            s = runs.get((method, size), [])
            cells.append(f"{statistics.mean(s):.3f} ({min(s):.3f} to {max(s):.3f})" if s else "–")
        print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    app()
