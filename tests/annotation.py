"""Corpora to annotate, and what became of them."""

import json
from pathlib import Path

import spacy
from joint import BURNED, SAILED
from spacy.cli._util import import_code

from spacy_bert_heads.annotate.plan import Job
from spacy_bert_heads.annotate.run import Summary, annotate

ROWS = [
    {"id": 0, "text": SAILED, "questions": ["Who left?"], "hypotheses": ["She left."]},
    {"id": 1, "text": BURNED, "source": {"page": 3}},
    {"id": 2, "text": ""},
    {"id": 3, "text": None},
    {
        "id": 4,
        "text": "Hull burned on Tuesday; the boat left Skagen. " * 20,
        "questions": ["When?"],
    },
    {"id": 5, "text": BURNED, "hypotheses": ["It burned.", "It rained."]},
    {"id": 6, "text": "Grete"},
]
# Components that can't do with some texts: they raise, alone or for a batch, die, or take time.
CODE = """
import os, signal, time
from spacy.language import Language

def slow(doc):
    time.sleep(0.02)
    return doc

def weak(doc):
    if "BOOM" in doc.text:
        raise RuntimeError("went BOOM: badly")
    if "KILL" in doc.text:
        os.kill(os.getpid(), signal.SIGKILL)
    return doc

class Brittle:
    def __init__(self, nlp, name):
        self.name, self.handle = name, nlp.default_error_handler
    def set_error_handler(self, handle):
        self.handle = handle
    def __call__(self, doc):
        return next(self.pipe([doc]))
    def pipe(self, stream, batch_size):
        docs = list(stream)
        try:
            assert not any("BOOM" in doc.text for doc in docs), "went BOOM"
        except AssertionError as error:
            self.handle(self.name, self, docs, error)
        else:
            yield from docs

if not Language.has_factory("weak"):
    Language.component("slow", func=slow)
    Language.component("weak", func=weak)
    Language.factory("brittle", func=Brittle)
"""


def write_weak_pipeline(joint: Path, folder: Path, component: str = "weak") -> tuple[Path, Path]:
    """Save a pipeline with such a component, and the code for it."""
    code = folder / "code.py"
    code.write_text(CODE)
    import_code(code)
    nlp = spacy.load(joint)
    nlp.add_pipe(component)
    nlp.to_disk(folder / "pipeline")
    return folder / "pipeline", code


def write_jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(model: Path, source: object, output: Path, *, workers: int = 1, **settings) -> Summary:
    job = Job(str(model), str(source), output, **{"docs_per_part": 3, **settings})
    return annotate(job, workers=workers)


def parts(output: Path) -> list[Path]:
    return sorted(output.glob("part-*"))


def read(output: Path) -> list[dict]:
    lines = "".join(path.read_text("utf8") for path in parts(output)).splitlines()
    return [json.loads(line) for line in lines]


def annotations(rows: list[dict]) -> list[dict]:
    names = ("entities", "categories", "verdicts", "answers", "error")
    return [{name: row[name] for name in names} for row in rows]
