"""The tasks that are trained, with their data, and the training of one by `spacy train`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import spacy
from plain_loops import BATCH_SIZE, FILES, read_squad
from thinc.api import Config

from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.reader import make_corpus

HEADS = {
    "wnut17": "ner",
    "ncbi": "ner",
    "sst2": "textcat",
    "sick": "nli",
    "stsb": "similarity",
    "codah": "choice",
    "copa": "choice",
    "xquad": "qa",
    "policyqa": "qa",
    "splice": "textcat",
    "promoters": "textcat",
    "deeploc": "textcat",
}
SEQUENCES = ("splice", "promoters", "deeploc")  # in the words that sequences.py writes
# Tasks that no plain loop has; and how `convert` reads one whose columns have no names.
MORE_FILES = {
    "stsb": ("glue_small/STS-B", "train.tsv", "dev.tsv", "dev.tsv"),
    "codah": ("choice_codah/cv_split/fold_0", "train.tsv", "dev.tsv", "test.tsv"),
    "copa": ("choice_copa", "dev.jsonl", "dev.jsonl", "test.jsonl"),
    **{task: (task, "train.tsv", "test.tsv", "test.tsv") for task in SEQUENCES},
}
OPTIONS: dict[str, dict] = {
    "codah": {"text_column": "2", "option_columns": ("3", "4", "5", "6"), "label_column": "7"}
}
METRICS = {
    "ner": {"score": "ents_f"},
    "textcat": {"score": "cats_micro_f"},
    "nli": {"score": "nli_acc"},
    "similarity": {"score": "similarity_spearman"},
    "choice": {"score": "choice_acc"},
    "qa": {"score": "qa_f1", "exact": "qa_exact", "f1": "qa_f1"},
}
# spaCy's command line, with its peak of memory in a file: the system's figure begins at our peak.
MEASURED = f"""
import sys
from pathlib import Path
from spacy.cli import setup_cli

sys.path.append({str(Path(__file__).parent)!r})
from contenders import peak_rss

peak = Path(sys.argv.pop(1))
try:
    setup_cli()
finally:
    peak.write_text(str(peak_rss()))
"""


def convert_task(data: Path, task: str, output: Path) -> None:
    """Make train.spacy, dev.spacy and test.spacy."""
    output.mkdir()
    if task in FILES or task in MORE_FILES:
        folder, *files = (FILES | MORE_FILES)[task]
        paths = (data / folder / file for file in files)
        sources = dict(zip(("train", "dev", "test"), paths, strict=True))
    else:
        parts = read_squad(data, task)
        sources = {part: output / f"{part}.json" for part in parts}
        for part, articles in parts.items():
            squad = {"version": "1.1", "data": articles}
            sources[part].write_text(json.dumps(squad), encoding="utf8")
    for part, source in sources.items():
        report = convert(source, output / f"{part}.spacy", **OPTIONS.get(task, {}))
        print(f"{task}, {part}: {report.docs} Docs, {report.rejected} rejected {report.samples}")


def run_training(
    run: Path,
    config: Config,
    seed: int,
    epochs: int,
    rate: float,
    precision: str,
    overrides: dict[str, Any],
) -> dict[str, float]:
    """Run `spacy train` on the folders `train` and `dev` of a run, to its `out`; the seconds, with
    its start and evaluations, those of the processor, and the peak of its memory."""
    corpus = make_corpus(run / "train", max_pairs=1)  # so a batch is 32 pairs, as in the plain loop
    config["corpora"]["train"]["max_pairs"] = 1
    n_examples = sum(1 for _ in corpus(spacy.blank("en")))
    steps_per_epoch = -(-n_examples // BATCH_SIZE)
    steps = epochs * steps_per_epoch
    config.to_disk(run / "config.cfg")
    settings = {
        "paths.train": run / "train",
        "paths.dev": run / "dev",
        "system.seed": seed,
        "components.bert_encoder.model.precision": precision,
        "training.batcher.size": BATCH_SIZE,
        "training.max_steps": steps - 1,  # spaCy counts from 0
        "training.eval_frequency": steps_per_epoch,
        "training.optimizer.learn_rate.initial_rate": rate,
        "training.optimizer.learn_rate.warmup_steps": steps // 10,
        "training.optimizer.learn_rate.total_steps": steps,
        **overrides,
    }
    command = [sys.executable, "-c", MEASURED, str(run / "peak"), "train", str(run / "config.cfg")]
    command += ["--output", str(run / "out")]
    command += [str(part) for key, value in settings.items() for part in (f"--{key}", value)]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(status, command)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mib": float((run / "peak").read_text()),
    }
