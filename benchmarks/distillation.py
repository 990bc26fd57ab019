"""Students of half a teacher's layers, by the product's own commands (jobs.py has the command line;
run it with --precision bf16).

teacher-SEED
    Entities, categories and verdicts, learned jointly in one epoch.
KEPT-EPOCHS-RATE-SEED
    A student that begins with some of its layers and learns all three from the teacher's
    predictions on the same texts, without their annotation.
"""

import statistics
from functools import partial
from typing import Any

from jobs import SEEDS, Bench, Job, print_head, print_row, read_results, run_script
from joint import gather, make_config, predict
from tasks import TASKS

from spacy_bert_heads.distill import distill
from spacy_bert_heads.training.loop import train

NAMES = ("wnut17", "sst2", "sick")
KEPT = {"every-second-layer": (0, 2, 4), "upper": (1, 3, 5), "lowest": (0, 1, 2)}
STEPS = 890  # of the teacher
STUDENT_STEPS = 700  # an epoch, in batches of mixed tasks
EPOCHS, RATE = 3, 1e-4


def list_jobs() -> list[Job]:
    jobs = []
    for seed in SEEDS:
        teacher = f"teacher-{seed}"
        jobs.append(Job(teacher, 6, partial(learn, teacher, seed, None)))
        for kept in KEPT:
            name = f"{kept}-{EPOCHS}-{RATE:g}-{seed}"
            jobs.append(Job(name, 12, partial(learn, name, seed, kept), needs=teacher))
    return jobs


def learn(name: str, seed: int, kept: str | None, bench: Bench) -> dict[str, Any]:
    files, folder = gather(bench, NAMES), bench.work(name)
    teacher = bench.work(f"teacher-{seed}") / "model-last"
    config = partial(make_config, bench, NAMES, files, seed)
    if kept:
        encoder = str(teacher / "bert_encoder" / "model")
        student = config(EPOCHS * STUDENT_STEPS, encoder=encoder, by_task=False)
        student["training"]["optimizer"]["learn_rate"]["initial_rate"] = RATE
        nlp = distill(teacher, student, folder, keep_layers=KEPT[kept], force=True)
    else:
        nlp = train(config(STEPS), folder, force=True)
    scores = {}
    for task in NAMES:
        head, examples = predict(nlp, task, files[task])
        scores[task] = head.score(examples)[TASKS[task].metric]
    return {"scores": scores}


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
