"""How fast `bert annotate` is beside `nlp.pipe`, from JSON Lines to JSON Lines, loading included.

    python benchmarks/annotate.py training/ner/model-best assets/train.jsonl FOLDER

Contenders get the same texts and two threads in all, and take turns.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import typer
from jobs import print_head, print_row, spread

PIPE = """
import json, sys
import spacy, torch
from spacy_bert_heads.annotate.records import Columns

model, source, output, processes = sys.argv[1:5]
torch.set_num_threads(2 // int(processes))
nlp = spacy.load(model)
columns = Columns.of(nlp)
with open(source) as rows, open(output, "w") as out:
    pairs = ((row["text"], row) for row in map(json.loads, rows))
    for doc, row in nlp.pipe(pairs, as_tuples=True, n_process=int(processes)):
        out.write(json.dumps(row | columns.read(doc), ensure_ascii=False) + "\\n")
"""


def main(
    model: str, source: str, folder: Path, rounds: int = 3, names: str = "one,two,ray,pipe-1,pipe-2"
) -> None:
    """Time the contenders. Seconds of the processor are without those of Ray's processes."""
    folder.mkdir(parents=True, exist_ok=True)
    annotate = [sys.executable, "-m", "spacy", "bert", "annotate", model, source]
    more = {"one": [], "two": ["--workers", "2"], "ray": ["--workers", "2", "--engine", "ray"]}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names.split(",")}
    for _ in range(rounds):
        for name, times in found.items():
            output = folder / f"out-{name}"
            shutil.rmtree(output, ignore_errors=True)
            output.unlink(missing_ok=True)
            if name.startswith("pipe"):
                words = [sys.executable, "-c", PIPE, model, source, str(output), name[-1]]
            else:
                words = [*annotate, str(output), "--docs-per-part", "50", *more[name]]
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
            times.append((time.perf_counter() - start, cpu))
    print_head("mean (lowest to highest)", "seconds", "seconds of the processor")
    for name, times in found.items():
        print_row(name, *(spread(list(column), ".1f") for column in zip(*times, strict=True)))


if __name__ == "__main__":
    typer.run(main)
