"""Scores after fine-tuning: `spacy train` with our components against a plain Hugging Face loop.

Both sides get the same checkpoint, data, seeds, epochs, rates, batches, precision and number of
threads, one after the other in one run. Needs the data sets of the tasks.

    python benchmarks/quality.py DATA ENCODER --seeds 0,1 --precision bf16 --json quality.json
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import spacy
import typer
from plain_loops import BATCH_SIZE, FILES, read_squad, run_plain
from thinc.api import Config

from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.reader import BertCorpus, make_corpus
from spacy_bert_heads.evaluate import set_precision
from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.pairs import INPUTS

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
HYPOTHESIS = "A person is named."
# spaCy's command line, which leaves the peak of its memory in a file. (What the system tells of a
# process that has ended begins at the peak of its parent.)
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


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    seeds: str = "0,1",
    epochs: int = 3,
    rate: float = 5e-5,
    precision: str = "bf16",
    systems: str = "hf,ours,joint",
    tasks: str = "wnut17,sst2",
    predict: Annotated[str, typer.Option(help="Precisions to score ours in; '': as trained")] = "",
    override: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for our config")] = None,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Train, score on the test sets, print a row for each run."""
    rows = []
    names, kinds = tasks.split(","), systems.split(",")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if {"ours", "joint"} & set(kinds):
            for task in names:
                convert_task(data, task, work / task)
        for seed in map(int, seeds.split(",")):
            runs = [("joint", names)] if "joint" in kinds else []
            runs += [(kind, [task]) for task in names for kind in ("hf", "ours") if kind in kinds]
            for kind, members in runs:
                options = (encoder, seed, epochs, rate, precision)
                if kind == "hf":
                    scores, seconds, predict_seconds = run_plain(members[0], data, *options)
                    results = {(members[0], precision): (scores, predict_seconds)}
                else:
                    predicted = predict.split(",") if predict else [precision]
                    results, seconds = train_ours(
                        work, members, *options, predicted, override or []
                    )
                for (task, predicted_in), (scores, predict_seconds) in results.items():
                    row = {"task": task, "system": kind, "seed": seed, "predicts": predicted_in}
                    row |= {name: round(value, 4) for name, value in scores.items()}
                    row |= {"epochs": epochs, "rate": rate, "seconds": round(seconds)}
                    row |= {"predict_seconds": round(predict_seconds, 1)}
                    rows.append(row)
                    print(row, flush=True)
                if json_file:
                    json_file.write_text(json.dumps(rows, indent=1))
        if {"ours", "joint"} <= set(kinds):
            compare_speed(work, names)


def convert_task(data: Path, task: str, output: Path) -> None:
    """Make train.spacy, dev.spacy and test.spacy."""
    output.mkdir()
    if task in FILES or task in MORE_FILES:
        folder, *files = (FILES | MORE_FILES)[task]
        sources = {
            part: data / folder / file
            for part, file in zip(("train", "dev", "test"), files, strict=True)
        }
    else:
        parts = read_squad(data, task)
        sources = {part: output / f"{part}.json" for part in parts}
        for part, articles in parts.items():
            squad = {"version": "1.1", "data": articles}
            sources[part].write_text(json.dumps(squad), encoding="utf8")
    for part, source in sources.items():
        report = convert(source, output / f"{part}.spacy", **OPTIONS.get(task, {}))
        print(f"{task}, {part}: {report.docs} Docs, {report.rejected} rejected {report.samples}")


# --- speed


def compare_speed(work: Path, tasks: list[str]) -> None:
    """The single pipelines one after the other against the joint one: each on the test texts of its
    task and the joint one on all of them, then all on the same texts, asked everything."""
    joint = "-".join(tasks)
    names = [*tasks, joint]
    pipelines = {name: spacy.load(work / f"run-{name}" / "out" / "model-last") for name in names}
    own = {task: read_inputs(work / task / "test.spacy") for task in tasks}
    own[joint] = [item for task in tasks for item in own[task]]
    print("\nEach on the texts of its own task:")
    time_pipelines(pipelines, own)
    source = next((task for task in tasks if HEADS[task] == "qa"), joint)
    same = [(text, {**asked, "hypotheses": [HYPOTHESIS]}) for text, asked in own[source]]
    print(f"\nAll on the texts of {source}:")
    time_pipelines(pipelines, dict.fromkeys(names, same))


def read_inputs(path: Path) -> list[tuple[str, dict[str, list[str]]]]:
    """Texts and what is asked of them, for `nlp.pipe(…, as_tuples=True)`."""
    docs = [example.predicted for example in BertCorpus(path)(spacy.blank("en"))]
    return [(doc.text, {name: doc._.get(name) for name in INPUTS}) for doc in docs]


def time_pipelines(pipelines: dict[str, spacy.Language], inputs: dict[str, list]) -> None:
    """Texts to annotated Docs, five rounds in turns. The joint pipeline is the last."""
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    words = {}
    for _ in range(5):
        for name, nlp in pipelines.items():
            start = time.perf_counter()
            words[name] = sum(len(doc) for doc, _ in nlp.pipe(inputs[name], as_tuples=True))
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        low, median, high = (words[name] / sorted(times)[i] for i in (-1, 2, 0))
        spread = f"{median:,.0f} words/s (from {low:,.0f} to {high:,.0f})"
        print(f"{name}: {words[name]:,} words in {sorted(times)[2]:.2f} s, {spread}")
    *singles, joint = (sorted(times)[2] for times in seconds.values())
    print(f"The joint one is {sum(singles) / joint:.2f} times as fast as one after the other.")


# --- ours


def train_ours(
    work: Path,
    tasks: list[str],
    encoder: str,
    seed: int,
    epochs: int,
    rate: float,
    precision: str,
    predict: list[str],
    overrides: list[str],
) -> tuple[dict[tuple[str, str], tuple[dict[str, float], float]], float]:
    """Run `spacy train`, then score its last model on the test data; the scores and seconds of each
    task and precision, and the seconds of the training, with its start and evaluations."""
    run = work / f"run-{'-'.join(tasks)}"
    for part in ("train", "dev"):
        (run / part).mkdir(parents=True, exist_ok=True)
        for task in tasks:
            (run / part / f"{task}.spacy").write_bytes((work / task / f"{part}.spacy").read_bytes())
    config = init_config(list(dict.fromkeys(HEADS[task] for task in tasks)), name=encoder)
    for name, component in config["components"].items():
        if name != "bert_encoder":
            component["model"]["rate_factor"] = 1.0  # as in the plain loop
    if "bert_qa" in config["components"]:
        config["components"]["bert_qa"]["no_answer_threshold"] = 1.0  # all questions have answers
    settings = dict(item.split("=", 1) for item in overrides)
    seconds = run_training(run, config, seed, epochs, rate, precision, settings)["seconds"]
    nlp = spacy.load(run / "out" / "model-last")
    results = {}
    for predicted_in in predict:
        set_precision(nlp, predicted_in)
        for task in tasks:
            examples = list(BertCorpus(work / task / "test.spacy")(nlp))
            nlp.evaluate(examples[:BATCH_SIZE])  # weights of the precision are made, pools started
            start = time.perf_counter()
            found = nlp.evaluate(examples)
            scores = {name: found[key] for name, key in METRICS[HEADS[task]].items()}
            results[task, predicted_in] = scores, time.perf_counter() - start
    return results, seconds


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


if __name__ == "__main__":
    typer.run(main)
