"""How fast `bert annotate` is beside `nlp.pipe`, from JSON Lines to JSON Lines.

    python benchmarks/annotate.py training/ner/model-best assets/train.jsonl FOLDER

Contenders get the same texts and two threads in all, and take turns. Seconds are from the call to
the last row, with loading; those of a pipeline that is loaded are given beside.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from jobs import print_head, print_row, spread

PIPE = """
import json, sys, time
import spacy, torch
from spacy_bert_heads.annotate.records import Columns

model, source, output, processes = sys.argv[1:5]
torch.set_num_threads(2 // int(processes))
nlp = spacy.load(model)
columns = Columns.of(nlp)
start = time.perf_counter()
with open(source) as rows, open(output, "w") as out:
    pairs = ((row["text"], row) for row in map(json.loads, rows))
    for doc, row in nlp.pipe(pairs, as_tuples=True, n_process=int(processes)):
        out.write(json.dumps(row | columns.read(doc), ensure_ascii=False) + "\\n")
print("pipeline", time.perf_counter() - start)
"""


def main(
    model: Annotated[str, typer.Argument(help="A pipeline")],
    source: Annotated[Path, typer.Argument(help="A JSONL file with texts")],
    folder: Annotated[Path, typer.Argument(help="Where to write")],
    rounds: int = 3,
    contenders: str = "one,two,pipe-1,pipe-2,ray",
) -> None:
    """Time the contenders, in turns."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "spacy", "bert", "annotate", model, str(source), "OUT"]
    command += ["--docs-per-part", "50"]
    commands = {
        "one": command,
        "two": [*command, "--workers", "2"],
        "ray": [*command, "--engine", "ray", "--workers", "2"],
        "pipe-1": [sys.executable, "-c", PIPE, model, str(source), "OUT", "1"],
        "pipe-2": [sys.executable, "-c", PIPE, model, str(source), "OUT", "2"],
    }
    names = contenders.split(",")
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            output = folder / f"out-{name}"
            shutil.rmtree(output, ignore_errors=True)
            output.unlink(missing_ok=True)
            words = [str(output) if word == "OUT" else word for word in commands[name]]
            start, cpu = time.perf_counter(), cpu_of_children()
            environment = os.environ | {"OMP_NUM_THREADS": "2"}
            done = subprocess.run(words, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr}")
            whole, used = time.perf_counter() - start, cpu_of_children() - cpu
            if name.startswith("pipe"):
                loaded = float(done.stdout.split()[-1])
            else:
                notes = (output / ".annotate" / "done").glob("*.json")
                loaded = sum(json.loads(path.read_bytes())["seconds"] for path in notes)
                loaded /= 1 if name == "one" else 2
            found[name].append([whole, loaded, used])
    print_head("mean (lowest to highest)", "s, whole", "s, loaded", "s of the processor")
    for name, rows in found.items():
        cells = [spread(list(column), ".1f") for column in zip(*rows, strict=True)]
        print_row(name, *cells)


def cpu_of_children() -> float:
    """The seconds of the processor that all ended children have used; Ray's are none of ours."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    typer.run(main)
