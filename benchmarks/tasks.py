"""The tasks: their files, the heads that learn them and the scores of these; and readers of the
files that share no code with the package."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from spacy_bert_heads.data.convert import convert

BATCH_SIZE = 32
METRICS = {
    "ner": "ents_f",
    "textcat": "cats_micro_f",
    "nli": "nli_acc",
    "similarity": "similarity_spearman",
    "choice": "choice_acc",
    "qa": "qa_f1",
}


class Task(NamedTuple):
    head: str
    folder: str
    files: str  # for training, development and test
    options: dict[str, Any] = {}  # of `convert`, where columns have no names

    @property
    def metric(self) -> str:
        return METRICS[self.head]

    def paths(self, data: Path) -> list[Path]:
        return [data / self.folder / name for name in self.files.split()]


CODAH = {"text_column": "2", "option_columns": ("3", "4", "5", "6"), "label_column": "7"}
TASKS = {
    "wnut17": Task("ner", "ner_wnut17", "train.conll dev.conll test.conll"),
    "ncbi": Task("ner", "ner_ncbi_disease", "train.tsv devel.tsv test.tsv"),
    "sst2": Task("textcat", "textcat_sst2", "train.txt dev.txt test.txt"),
    "sick": Task("nli", "nli_sick", "SICK_train.txt SICK_trial.txt SICK_test_annotated.txt"),
    "stsb": Task("similarity", "glue_small/STS-B", "train.tsv dev.tsv dev.tsv"),
    "codah": Task("choice", "choice_codah/cv_split/fold_0", "train.tsv dev.tsv test.tsv", CODAH),
    "copa": Task("choice", "choice_copa", "dev.jsonl dev.jsonl test.jsonl"),
    # Learned from what has more questions; dev is a piece of that.
    "xquad": Task("qa", "qa_xquad", "xquad.en.json xquad.en.json xquad.en.json"),
    "policyqa": Task("qa", "qa_policyqa", "dev.json dev.json test.json"),
}


def convert_task(data: Path, task: str, output: Path) -> None:
    """Make train.spacy, dev.spacy and test.spacy."""
    output.mkdir(parents=True)
    sources = dict(zip(("train", "dev", "test"), TASKS[task].paths(data), strict=True))
    if TASKS[task].head == "qa":
        for part, articles in read_squad(data, task).items():
            sources[part] = output / f"{part}.json"
            sources[part].write_text(json.dumps({"version": "1.1", "data": articles}), "utf8")
    for part, source in sources.items():
        report = convert(source, output / f"{part}.spacy", **TASKS[task].options)
        print(f"{task}, {part}: {report.docs} Docs, {report.rejected} rejected {report.samples}")


# --- readers


def read_conll(path: Path) -> list[tuple[list[str], list[str]]]:
    sentences = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf8")):
        rows = [line.split("\t") for line in block.splitlines() if line.strip()]
        if rows:
            sentences.append(([row[0] for row in rows], [row[-1] for row in rows]))
    return sentences


def read_sst2(path: Path) -> list[tuple[str, None, str]]:
    lines = [line.split(" ", 1) for line in path.read_text(encoding="utf8").splitlines() if line]
    return [(text, None, label) for label, text in lines]


def read_sick(path: Path) -> list[tuple[str, str, str]]:
    rows = [line.split("\t") for line in path.read_text(encoding="utf8").splitlines()[1:] if line]
    return [(row[1], row[2], row[4]) for row in rows]


def read_squad(data: Path, task: str) -> dict[str, list[dict]]:
    """The articles of each part. XQuAD is one file."""
    train, _, test = (json.loads(path.read_bytes())["data"] for path in TASKS[task].paths(data))
    dev = train[:4]
    if task == "xquad":
        train, test = train[:36], test[36:]
    return {"train": train, "dev": dev, "test": test}


def list_questions(articles: list[dict]) -> list[dict]:
    return [
        {**question, "context": paragraph["context"]}
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
