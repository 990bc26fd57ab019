"""How fast `bert annotate` is beside `nlp.pipe`, and how fast it reads and writes.

    python benchmarks/annotate.py make TEXTS ENCODER FOLDER    # a pipeline of NER and textcat
    python benchmarks/annotate.py speed FOLDER --rounds 3      # contenders, in turns
    python benchmarks/annotate.py files FOLDER                 # reading and writing alone
    python benchmarks/annotate.py memory FOLDER                # of a stream of new words

Heads are not trained: only time and memory are measured. Contenders get the same texts, from JSON
Lines to JSON Lines, and two threads in all. Seconds are from the call to the last row, with
loading; those of a pipeline that is loaded are given beside.
"""

import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import spacy
import torch
import typer
from spacy.training import Example

from spacy_bert_heads.annotate.outputs import WRITERS, Row
from spacy_bert_heads.annotate.plan import Job, make_plan, open_run
from spacy_bert_heads.annotate.records import Columns
from spacy_bert_heads.annotate.source import list_source, read_documents
from spacy_bert_heads.annotate.worker import Annotator, peak_memory

app = typer.Typer()
LABELS = ("DISEASE", "GENE", "CHEMICAL", "SPECIES")
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


@app.command()
def make(texts: Path, encoder: str, folder: Path, docs: int = 1000, longest: int = 2000) -> None:
    """Make a pipeline with heads that aren't trained, and a corpus of texts of up to so many
    characters, drawn from JSON Lines."""
    nlp = spacy.blank("en")
    nlp.add_pipe("bert_encoder", config={"model": {"name": encoder}})
    nlp.add_pipe("bert_ner")
    nlp.add_pipe("bert_textcat")
    doc = nlp.make_doc("a b c d e f")
    gold = {"entities": [(2 * i, 2 * i + 1, label) for i, label in enumerate(LABELS)]}
    gold["cats"] = {"review": 1.0, "trial": 0.0, "other": 0.0}
    torch.manual_seed(0)
    nlp.initialize(lambda: [Example.from_dict(doc, gold)])
    # As rare as entities are: an untrained head would find one everywhere, and rows would be long.
    with torch.no_grad():
        from spacy_bert_heads.encoder.model import shim_of

        for node in nlp.get_pipe("bert_ner").model.walk():
            if node.shims:
                dict(shim_of(node).module.named_parameters())["classifier.bias"][0] += 0.4
    nlp.to_disk(folder / "pipeline")
    rows = [line for path in sorted(texts.glob("*.jsonl")) for line in path.open()]
    rows = [row for row in rows if len(json.loads(row)["text"]) <= longest]
    chosen = random.Random(0).sample(rows, min(docs, len(rows)))
    (folder / "in.jsonl").write_text("".join(chosen))
    found = list(nlp.pipe([json.loads(row)["text"] for row in chosen[:50]]))
    print(f"{len(chosen)} documents, {sum(map(len, found)) / 50:.0f} words each,", end=" ")
    print(f"{sum(len(doc.ents) for doc in found) / 50:.1f} entities each")


@app.command()
def speed(
    folder: Path,
    rounds: int = 3,
    contenders: Annotated[str, typer.Option()] = "one,two,pipe-1,pipe-2,ray",
) -> None:
    """Time the contenders, in turns."""
    source, model = folder / "in.jsonl", folder / "pipeline"
    docs = sum(1 for _ in source.open())
    times: dict[str, list[float]] = {name: [] for name in contenders.split(",")}
    loaded: dict[str, list[float]] = {name: [] for name in times}
    used: dict[str, list[float]] = {name: [] for name in times}
    spacy_command = [sys.executable, "-m", "spacy", "bert", "annotate", str(model), str(source)]
    commands = {
        "one": [*spacy_command, "OUT"],
        "two": [*spacy_command, "OUT", "--workers", "2"],
        "ray": [*spacy_command, "OUT", "--engine", "ray", "--workers", "2"],
        "pipe-1": [sys.executable, "-c", PIPE, str(model), str(source), "OUT", "1"],
        "pipe-2": [sys.executable, "-c", PIPE, str(model), str(source), "OUT", "2"],
    }
    for number in range(rounds):
        for name in times:
            output = folder / f"out-{name}"
            shutil.rmtree(output, ignore_errors=True)
            output.unlink(missing_ok=True)
            command = [str(output) if word == "OUT" else word for word in commands[name]]
            if not name.startswith("pipe"):
                command += ["--docs-per-part", "50"]
            start, cpu = time.perf_counter(), cpu_of_children()
            environment = os.environ | {"OMP_NUM_THREADS": "2"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            times[name].append(time.perf_counter() - start)
            used[name].append(cpu_of_children() - cpu)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr}")
            if name.startswith("pipe"):
                loaded[name].append(float(done.stdout.split()[-1]))
            else:
                notes = (output / ".annotate" / "done").glob("*.json")
                seconds = sum(json.loads(path.read_bytes())["seconds"] for path in notes)
                loaded[name].append(seconds / (1 if name == "one" else 2))
            load = os.getloadavg()[0]
            print(
                f"round {number} {name}: {times[name][-1]:.1f} s, loaded {loaded[name][-1]:.1f} s, "
                f"CPU {used[name][-1]:.1f} s, "
                f"load {load:.1f}",
                flush=True,
            )
    for name in times:
        whole, part = statistics.median(times[name]), statistics.median(loaded[name])
        print(
            f"{name:8} {docs / whole:8.1f} docs/s whole ({min(times[name]):.1f} to "
            f"{max(times[name]):.1f} s), {docs / part:8.1f} docs/s loaded, "
            f"{statistics.median(used[name]):.1f} s of CPU"
        )


def cpu_of_children() -> float:
    """Give the seconds of the processor that all ended children have used; Ray's are none of
    ours."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@app.command()
def files(folder: Path) -> None:
    """Time reading and writing without a model: documents of each input a second, by CPU time, and
    rows of each output, with the annotations that the pipeline makes."""
    import gzip

    import pyarrow.json
    import pyarrow.parquet

    source = folder / "in.jsonl"
    (folder / "in.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    rows = [json.loads(line) for line in source.open()]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "in.parquet", compression="zstd")
    (folder / "in.txt").write_text("".join(row["text"].replace("\n", " ") + "\n" for row in rows))
    size = sum(len(row["text"].encode()) for row in rows)
    repeats = 5
    for name in ("in.jsonl", "in.jsonl.gz", "in.parquet", "in.txt"):
        (file,) = list_source(folder / name, folder / "none")
        start = time.process_time()
        for _ in range(repeats):
            assert sum(1 for _ in read_documents(file, "text")) == len(rows)
        seconds = (time.process_time() - start) / repeats
        print(
            f"read {name:12} {len(rows) / seconds:10,.0f} docs/s {size / seconds / 1e6:8.0f} MB/s"
        )
    job = Job(str(folder / "pipeline"), str(source), folder / "plan", docs_per_part=1000)
    shutil.rmtree(job.output, ignore_errors=True)
    run = open_run(job)
    start = time.process_time()
    for _ in range(repeats):
        make_plan(job, "", run.files)
    seconds = (time.process_time() - start) / repeats
    print(f"plan {'in.jsonl':12} {len(rows) / seconds:10,.0f} docs/s")
    annotator = Annotator(run)
    documents = list(read_documents(run.files[0], "text"))[:200]
    made: list[Row] = annotator.annotate_batch(documents)
    columns = Columns.of(annotator.nlp)
    start = time.process_time()
    for row in made:
        columns.read(row.doc)
    print(f"records {'':9} {len(made) / (time.process_time() - start):10,.0f} docs/s")
    words = sum(len(row.doc) for row in made)
    start = time.process_time()
    with annotator.nlp.memory_zone():
        for document in documents:
            annotator.nlp.make_doc(document.text)
    seconds = time.process_time() - start
    print(f"tokenizer {len(made) / seconds:17,.0f} docs/s, {words / seconds:,.0f} words/s")
    types = {"id": "string", "source": "string", "text": "string"}
    for name in WRITERS:
        start = time.process_time()
        for _ in range(repeats):
            writer = WRITERS[name](folder / f"written.{name}", columns, types)
            writer.write(made)
            writer.close()
        seconds = (time.process_time() - start) / repeats
        bytes_written = (folder / f"written.{name}").stat().st_size / len(made)
        print(
            f"write {name:11} {len(made) / seconds:10,.0f} docs/s, {bytes_written:,.0f} bytes a doc"
        )


@app.command()
def memory(folder: Path, parts: int = 60, docs_per_part: int = 200) -> None:
    """Annotate a stream of texts whose words are all new, and print the resident memory."""
    source = folder / "new-words.jsonl"
    chosen = random.Random(0)
    with source.open("w") as out:
        for _ in range(parts * docs_per_part):
            words = (f"w{chosen.getrandbits(48):x}" for _ in range(20))
            out.write(json.dumps({"text": " ".join(words)}) + "\n")
    output = folder / "memory"
    shutil.rmtree(output, ignore_errors=True)
    annotator = Annotator(
        open_run(Job(str(folder / "pipeline"), str(source), output, docs_per_part=docs_per_part))
    )
    page = os.sysconf("SC_PAGE_SIZE")
    for part in annotator.run.parts:
        annotator.try_part(part)
        if part.number % (parts // 12) == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            docs = (part.number + 1) * docs_per_part
            print(f"{docs:8,} documents: {resident / 2**20:7.1f} MiB, peak", end=" ")
            print(f"{peak_memory() / 2**20:7.1f} MiB", flush=True)


if __name__ == "__main__":
    app()
