"""Students of half a teacher's layers, by the product's own commands (jobs.py has the command line;
run it with --precision bf16).

teacher-SEED
    Entities, categories and verdicts, learned jointly in one epoch.
student-SEED, student-more-SEED
    A student that begins with layers 0, 2 and 4 and learns all three from the teacher's
    predictions on the same texts without their annotation, and with `more` also on the sentences of
    MRPC and the premises of RTE, which are news.
"""

import csv
import json
import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from jobs import Bench, Job, print_head, print_row, read_results, run_script
from joint import gather, make_config, predict
from tasks import TASKS

from spacy_bert_heads.distill import distill
from spacy_bert_heads.training.loop import train

NAMES = ("wnut17", "sst2", "sick")
SEEDS = range(5)
KEPT = (0, 2, 4)
STEPS, STUDENT_STEPS = 890, 2100
RATE = 1e-4


def list_jobs() -> list[Job]:
    jobs = []
    for seed in SEEDS:
        teacher = f"teacher-{seed}"
        jobs.append(Job(teacher, 6, partial(learn, "teacher", seed)))
        for kind in ("student", "student-more"):
            run = partial(learn, kind, seed)
            jobs.append(Job(f"{kind}-{seed}", 12, run, needs=teacher))
    return jobs


def learn(kind: str, seed: int, bench: Bench) -> dict[str, Any]:
    files, folder = gather(bench, NAMES), bench.work(f"{kind}-{seed}")
    teacher = bench.work(f"teacher-{seed}") / "model-last"
    config = partial(make_config, bench, NAMES, files, seed)
    if kind != "teacher":
        encoder = str(teacher / "bert_encoder" / "model")
        student = config(STUDENT_STEPS, encoder=encoder, by_task=False)
        student["training"]["optimizer"]["learn_rate"]["initial_rate"] = RATE
        if kind == "student-more":
            student["paths"]["train"] = str(add_news(bench, files["train"]))
        nlp = distill(teacher, student, folder, keep_layers=KEPT, force=True)
    else:
        nlp = train(config(STEPS), folder, force=True)
    scores = {}
    for task in NAMES:
        head, examples = predict(nlp, task, files[task])
        scores[task] = head.score(examples)[TASKS[task].metric]
    return {"scores": scores}


def add_news(bench: Bench, texts: Path) -> Path:
    """A folder with these texts and the news."""
    folder = bench.work("more-texts")
    shutil.copytree(texts, folder, dirs_exist_ok=True)
    news = []
    for task, columns in {"MRPC": ("#1 String", "#2 String"), "RTE": ("sentence1",)}.items():
        with (bench.data / "glue_small" / task / "train.tsv").open(encoding="utf-8-sig") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                news += [row[column] for column in columns]
    lines = (json.dumps({"text": text}) + "\n" for text in news if text)
    (folder / "news.jsonl").write_text("".join(lines), "utf8")
    return folder


def print_tables(bench: Bench) -> None:
    """Means over seeds, and what share they are of those of the same teachers."""
    done = read_results(bench)
    names = dict.fromkeys(name.rpartition("-")[0] for name in done)
    print_head("", "seeds", *NAMES)
    for name in sorted(names, key=lambda name: name != "teacher"):
        seeds = [one.rpartition("-")[2] for one in done if one.rpartition("-")[0] == name]
        cells = []
        for task in NAMES:
            own, known = (
                statistics.mean(done[f"{who}-{seed}"]["scores"][task] for seed in seeds)
                for who in (name, "teacher")
            )
            cells.append(f"{own:.3f} ({own / known:.1%})")
        print_row(name, len(seeds), *cells)


if __name__ == "__main__":
    run_script(list_jobs, print_tables)
