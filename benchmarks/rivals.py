"""Other packages, each in an environment of its own, and programs that run there: they get the path
of a JSON file with their arguments and print JSON."""

import json
import subprocess
import venv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import spacy
import torch

RIVALS = {  # what pip installs
    "spacy-transformers": ["spacy-transformers==1.4.0"],
    # It does not require spaCy itself.
    "spacy-curated-transformers": [
        "spacy-curated-transformers==0.3.1",
        f"spacy=={spacy.__version__}",
        "transformers<5",
    ],
    "edsnlp": ["edsnlp[ml]==0.23.0"],
    "gensim": ["gensim==4.4.0"],
    "gliner": ["gliner==0.2.29"],
    "setfit": ["setfit==1.2.0", "transformers<5"],
}


def make_environment(rival: str) -> str:
    """The interpreter of a package's environment, `.rivals/NAME` beside this folder, which is made
    once."""
    if rival not in RIVALS:
        raise SystemExit(f"There is no rival '{rival}'. Choose one of: {', '.join(RIVALS)}.")
    folder = Path(__file__).parents[1] / ".rivals" / rival
    python = str(folder / "bin" / "python")
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        # The same torch as ours: a comparison must not be one of matrix products.
        for step in ([f"torch=={torch.__version__}"], RIVALS[rival]):
            subprocess.run([python, "-m", "pip", "install", "-q", *step], check=True)
        (folder / "installed").touch()
    return python


def run_program(rival: str, program: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run a program of this file, and return what it prints."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "given.json"
        source.write_text(json.dumps(given), encoding="utf8")
        command = [make_environment(rival), "-c", program, str(source)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


# Trains a classifier and prints its accuracy.
SETFIT = """
import contextlib, json, sys, tempfile
from datasets import Dataset
from sentence_transformers import SentenceTransformer, models
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression
given = json.load(open(sys.argv[1]))
with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
    body = models.Transformer(given["encoder"])
    pooling = models.Pooling(body.get_word_embedding_dimension())
    model = SetFitModel(
        model_body=SentenceTransformer(modules=[body, pooling], device="cpu"),
        model_head=LogisticRegression(),
    )
    data = Dataset.from_dict({"text": given["train_texts"], "label": given["train_labels"]})
    arguments = TrainingArguments(
        batch_size=16, num_iterations=20, num_epochs=1, seed=given["seed"],
        report_to="none", save_strategy="no", output_dir=folder,
    )
    Trainer(model=model, args=arguments, train_dataset=data).train()
    found = [str(label) for label in model.predict(given["test_texts"])]
right = sum(a == b for a, b in zip(found, given["test_labels"]))
print(json.dumps({"test": right / len(found)}))
"""
# Writes vectors: CBOW or skip-gram (Mikolov et al. 2013), lower case.
VECTORS = r"""
import json, re, sys
from gensim.models import Word2Vec
given = json.load(open(sys.argv[1]))
sentences = []
for path in given["texts"]:
    for line in open(path, encoding="utf8"):
        text = json.loads(line)["text"] if path.endswith(".jsonl") else line
        for part in re.split(r"(?<=[.!?])\s+|\n", text.lower()):
            words = re.findall(r"\w+|[^\w\s]", part)
            if words:
                sentences.append(words)
model = Word2Vec(
    sentences, vector_size=100, window=5, min_count=5, epochs=5, workers=1, seed=0,
    sg=int(given["is_skip_gram"]),
)
model.wv.save_word2vec_format(given["output"])
print(json.dumps({"words": sum(map(len, sentences))}))
"""
