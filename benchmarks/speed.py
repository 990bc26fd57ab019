"""Speed and memory beside what a spaCy user can pick today: from text to annotated Docs, and of
training. Every contender works in a process of its own, all take turns, and get the same encoder,
texts and threads. Heads are not trained: only time is measured.

    python benchmarks/speed.py DATA ENCODER OUT.json --tasks ner,textcat

Tasks that are in OUT.json are not measured again. Contenders have names that begin with their
system: `ours-bf16`, `hf-pipeline-b8` (batches of 8), `by-hand-fp32`; `--contenders ours,by-hand`
runs some of them. `--rival` compares another package, in an environment of its own (`rivals.py`):

    python benchmarks/speed.py DATA ENCODER OUT.json --rival gliner
"""

import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import torch
import typer
from contenders import BATCH_SIZE, HEADS, LABELS, MAX_ANSWER, START
from rivals import RIVALS, make_environment
from spacy.language import Language
from tasks import TASKS, list_questions, read_conll, read_sick, read_squad

from spacy_bert_heads import to_hf
from spacy_bert_heads.encoder.model import shim_of

OURS = ("ours-fp32", "ours-bf16", "ours-int8")
SPACY = ("spacy-transformers", "spacy-curated-transformers")
PIPELINES = tuple(f"hf-pipeline-b{size}" for size in (1, 8, 16))
CONTENDERS = {
    "ner": (*OURS, *SPACY, *PIPELINES, "by-hand-fp32", "by-hand-bf16", "edsnlp", "gliner"),
    "textcat": (*OURS, *SPACY, *PIPELINES, "setfit"),
    "nli": (*OURS, *PIPELINES),
    "qa": (*OURS, *PIPELINES),
    "train": (*OURS[:2], "hf-trainer", "hf-trainer-grouped", "hf-trainer-bf16", *SPACY),
    "joint": OURS,  # entities and categories on one encoder, of the texts of ner and textcat
}
INPUTS = {"nli": "pairs", "qa": "questions", "train": "sentences"}
UNITS = {"nli": "pairs/s", "qa": "questions/s", "train": "steps/s"}
SIZES = {"texts": 1000, "pairs": 1000, "questions": 80, "steps": 20}
TAGGED = 0.1  # of the words


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint, a folder")],
    out: Annotated[Path, typer.Argument(help="A JSON file for the results")],
    tasks: Annotated[str, typer.Option(help=f"Else all: {', '.join(CONTENDERS)}")] = "",
    contenders: Annotated[str, typer.Option(help="What their names begin with")] = "",
    rival: Annotated[str, typer.Option(help=f"One of: {', '.join(RIVALS)}")] = "",
    rounds: int = 5,
    threads: Annotated[int, typer.Option(help="On a CPU; 0 for all")] = 0,
    device: str = "cpu",
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="Seconds of the processor: for a busy machine")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few inputs")] = False,
) -> None:
    """Measure the contenders of each task in turns, print a table a task."""
    report = json.loads(out.read_bytes()) if out.exists() else {"rows": []}
    measured = {"threads": threads, "cpu_time": cpu_time, "device": device}
    report["machine"] = describe_machine() | measured | {"rounds": rounds}
    python = make_environment(rival) if rival else sys.executable
    if rival:
        contenders = f"{contenders or 'ours'},{rival}"
    begins = [f"{name}-" for name in contenders.split(",") if name]
    chosen = {
        task: [name for name in names if not begins or f"{name}-".startswith(tuple(begins))]
        for task, names in CONTENDERS.items()
        if not rival or any(name.startswith(rival) for name in names)
    }
    done = {row["task"] for row in report["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sizes = {name: size // 6 if quick else size for name, size in SIZES.items()}
        amounts = prepare(data, encoder, work, sizes)
        for task, names in chosen.items():
            if task in done or (tasks and task not in tasks.split(",")):
                continue
            inputs = INPUTS.get(task, "texts")
            spec = {"task": task, "encoder": encoder, "work": folder, **measured}
            spec["heads"] = ["bert_ner", "bert_textcat"]
            if task != "joint":
                spec["heads"] = [HEADS.get(task, "bert_ner")]
            spec["inputs"] = str(work / f"{inputs}.json")
            spec["warm_up"] = {"train": 2 * BATCH_SIZE, "qa": 2}.get(task, 16)
            processes = []
            for name in names:
                system = next(one for one in START if name.startswith(one))
                own = {"system": system, "variant": name[len(system) + 1 :]}
                runs_on = python if system == rival else sys.executable
                processes.append(Process(name, runs_on, spec | own, work / f"{name}.log"))
            report["rows"] += measure(task, processes, amounts[inputs], rounds)
            show(task, report["rows"])
            out.write_text(json.dumps(report, indent=1))


# --- what is measured


def prepare(data: Path, encoder: str, work: Path, sizes: dict[str, int]) -> dict[str, float]:
    """Write our pipeline, the same heads for Hugging Face's classes, and the inputs. Returns the
    amount of work in each file of inputs."""
    wnut = [read_conll(path) for path in TASKS["wnut17"].paths(data)]
    tweets = [" ".join(words) for sentences in wnut for words, _ in sentences]
    lines = (data / "raw_wikitext2" / "valid.txt").read_text(encoding="utf8").splitlines()
    paragraphs = [line for line in map(str.strip, lines) if line and not line.startswith("=")]
    chance, half = random.Random(0), sizes["texts"] // 2
    texts = chance.sample(tweets, half) + chance.sample(paragraphs, half)
    chance.shuffle(texts)
    sick = read_sick(TASKS["sick"].paths(data)[2])
    contexts: dict[str, list[str]] = {}
    squad = read_squad(data, "xquad")
    for question in list_questions(squad["train"] + squad["test"]):
        contexts.setdefault(question["context"], []).append(question["question"])
    inputs: dict[str, list[Any]] = {
        "texts": texts,
        "pairs": [(first, [second]) for first, second, _ in sick[: sizes["pairs"]]],
        "questions": list(contexts.items())[: sizes["questions"]],
        "sentences": wnut[0][: sizes["steps"] * BATCH_SIZE],
    }
    for name, items in inputs.items():
        (work / f"{name}.json").write_text(json.dumps(items), encoding="utf8")
    nlp = make_pipeline(encoder)
    calm_recognizer(nlp, texts[:50])
    nlp.to_disk(work / "pipeline")
    for task, head in HEADS.items():
        to_hf(nlp, head, work / task)
    return {
        "texts": sum(len(nlp.make_doc(text)) for text in texts),
        "pairs": len(inputs["pairs"]),
        "questions": sum(len(asked) for _, asked in inputs["questions"]),
        "sentences": sizes["steps"],
    }


def make_pipeline(encoder: str) -> Language:
    """All heads on one encoder, as a user puts it together."""
    nlp = spacy.blank("en")
    nlp.batch_size = 128  # as in the configs of `init-config`, spaCy's and ours
    nlp.add_pipe("bert_encoder", config={"model": {"name": encoder}})
    settings = {"bert_qa": {"no_answer_threshold": 1.0, "max_answer_length": MAX_ANSWER}}
    for task, head in HEADS.items():
        pipe: Any = nlp.add_pipe(head, config=settings.get(head, {}))
        for label in LABELS[task]:
            pipe.add_label(label)
    torch.manual_seed(0)
    nlp.initialize()
    return nlp


def calm_recognizer(nlp: Language, texts: list[str]) -> None:
    """Move the bias of "O" until the recognizer tags as many words as a trained one: with random
    numbers it finds entities everywhere, and no user's decoder has so much to do."""
    ner = nlp.get_pipe("bert_ner")
    logits = ner.predict([nlp.make_doc(text) for text in texts]).logits
    lead = logits[:, 1:].amax(dim=1) - logits[:, 0]
    module: Any = shim_of(ner.model).module
    with torch.no_grad():
        module.classifier.bias[0] += float(np.quantile(lead.cpu(), 1 - TAGGED))


# --- measuring


class Process:
    """A process with a contender, and what it has answered."""

    def __init__(self, title: str, interpreter: str, spec: dict[str, Any], log: Path) -> None:
        self.title, self.log = title, log
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        if spec["threads"]:
            names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
            environment |= dict.fromkeys(names, str(spec["threads"]))
        script = str(Path(__file__).with_name("contenders.py"))
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [interpreter, script, json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self.versions = self.read()
        self.rounds: list[dict[str, float]] = []

    def read(self) -> dict[str, Any] | None:
        """The next answer; None, with a line that says why, if the process has ended."""
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        print(f"{self.title} is left out: {' '.join(last)}", flush=True)
        return None

    def take_round(self) -> bool:
        """Whether it has succeeded."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        if found := self.read():
            self.rounds.append(found)
        return found is not None


def measure(task: str, started: list[Process], amount: float, rounds: int) -> list[dict[str, Any]]:
    """Rounds in turns, one process at work at a time; a row for each."""
    processes = [process for process in started if process.versions is not None]
    for _ in range(rounds):
        processes = [process for process in processes if process.take_round()]
    for process in started:
        process.process.communicate()  # closes its input, which ends it
    rows = []
    for process in processes:
        speeds = [float(f"{amount / one['seconds']:.4g}") for one in process.rounds]
        row = {"task": task, "contender": process.title, "unit": UNITS.get(task, "words/s")}
        row |= {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
        row |= {"peak_mib": round(max(one["peak_mib"] for one in process.rounds))}
        rows.append(row | {"versions": process.versions})
    return rows


def show(task: str, rows: list[dict[str, Any]]) -> None:
    """Print a task's table, as Markdown. Ratios are to ours in fp32: divide two for another one."""
    rows = [row for row in rows if row["task"] == task]
    base = rows[0]["median"] if rows else 1.0
    print(f"\n| {task} | {rows[0]['unit'] if rows else ''} | ratio | peak MiB |\n|---|---|---|---|")
    for row in rows:
        low, middle, high = (f"{row[key]:,.4g}" for key in ("min", "median", "max"))
        speed = f"{middle} ({low} – {high}) | {row['median'] / base:.2f}"
        print(f"| {row['contender']} | {speed} | {row['peak_mib']:,} |", flush=True)


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    found = re.search("model name\\s*: (.*)", info.read_text() if info.exists() else "")
    return {
        "date": datetime.now().isoformat(timespec="minutes"),
        "cpu": found[1] if found else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    typer.run(main)
