"""Students of half a teacher's layers: scores beside the teacher's, by the product's own commands.

A teacher learns entities, categories and verdicts jointly; its student begins with every second
layer and learns all three from the teacher's predictions on the same texts. Each run is a JSON
file, so that an interrupted series goes on where it was.

    python benchmarks/distillation.py run DATA ENCODER OUT --seeds 0,1,2
    python benchmarks/distillation.py table OUT
"""

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import spacy
import typer
from joint import corpus
from quality import HEADS, METRICS
from thinc.api import Config

from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.distill import distill
from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.training.loop import train

TASKS = ("wnut17", "sst2", "sick")
KEPT = {"every second layer": (0, 2, 4), "upper": (1, 3, 5), "lowest": (0, 1, 2)}
app = typer.Typer()


@app.command()
def run(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    out: Annotated[Path, typer.Argument(help="A folder for the results")],
    seeds: str = "0",
    kept: Annotated[str, typer.Option(help=", ".join(KEPT))] = "every second layer",
    epochs: Annotated[int, typer.Option(help="Of the student; the teacher has one")] = 3,
    rate: Annotated[float, typer.Option(help="The student's learning rate")] = 1e-4,
    precision: str = "bf16",
) -> None:
    """Train what is missing, and score it on the test sets."""
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    files = {part: gather(data, out, part) for part in ("train", "dev")}
    for seed in map(int, seeds.split(",")):
        teacher = out / f"teacher-{seed}"
        name = f"{kept.replace(' ', '-')}-{epochs}-{rate:g}-{seed}"
        config = make_config(encoder, files, seed, precision)
        if not (out / f"teacher-{seed}.json").exists():
            note(out, teacher.name, lambda: train(config, teacher, force=True), data, teacher)  # noqa: B023
        if not (out / f"{name}.json").exists():
            model = teacher / "model-last"
            for_student = make_config(
                str(model / "bert_encoder" / "model"), files, seed, precision, epochs, rate
            )
            note(
                out,
                name,
                lambda: distill(model, for_student, out / name, keep_layers=KEPT[kept], force=True),  # noqa: B023
                data,
                out / name,
            )


def gather(data: Path, out: Path, part: str) -> Path:
    """A folder with this part of every task."""
    folder = out / part
    folder.mkdir(exist_ok=True)
    for task in TASKS:
        if not (folder / f"{task}.spacy").exists():
            shutil.copy(corpus(data, out, task, part), folder / f"{task}.spacy")
    return folder


def make_config(
    encoder: str,
    files: dict[str, Path],
    seed: int,
    precision: str,
    epochs: int = 1,
    rate: float | None = None,
) -> Config:
    """The config of `init-config`, for one epoch of annotated data or some of unlabelled texts."""
    config = init_config([HEADS[task] for task in TASKS], name=encoder, **files)
    steps = 890 if rate is None else 700 * epochs  # of 512 wordpieces
    config["paths"]["encoder"] = encoder
    config["components"]["bert_encoder"]["model"]["precision"] = precision
    config["training"] |= {"seed": seed, "max_steps": steps, "eval_frequency": steps, "patience": 0}
    config["training"]["optimizer"]["learn_rate"] |= {
        "warmup_steps": steps // 10,
        "total_steps": steps,
    }
    if rate is not None:
        config["training"]["optimizer"]["learn_rate"]["initial_rate"] = rate
        config["training"]["batcher"]["by_task"] = False
    return config


def note(out: Path, name: str, work: Any, data: Path, folder: Path) -> None:
    """Write what a run comes to."""
    start = time.process_time()
    work()
    result: dict[str, Any] = {"cpu_seconds": round(time.process_time() - start), "scores": {}}
    nlp = spacy.load(folder / "model-last")
    for task in TASKS:
        head = f"bert_{HEADS[task]}"
        with nlp.select_pipes(enable=["bert_encoder", head]):
            scores = nlp.evaluate(list(BertCorpus(corpus(data, out, task, "test"))(nlp)))
        result["scores"][task] = scores[METRICS[HEADS[task]]["score"]]
    (out / f"{name}.json").write_text(json.dumps(result))
    print(name, result, flush=True)


@app.command()
def table(out: Annotated[Path, typer.Argument(help="The folder of the results")]) -> None:
    """Print the scores, means over seeds, and what share of the teacher's they are."""
    runs: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for file in sorted(out.glob("*.json")):
        name, seed = file.stem.rsplit("-", 1)
        runs.setdefault(name, []).append((seed, json.loads(file.read_text())["scores"]))
    teachers = dict(runs["teacher"])
    print(f"| | seeds | {' | '.join(TASKS)} |\n|---{'|---' * (len(TASKS) + 1)}|")
    for name, found in runs.items():
        cells = []
        for task in TASKS:
            mean = statistics.mean(scores[task] for _, scores in found)
            known = statistics.mean(teachers[seed][task] for seed, _ in found)
            cells.append(f"{mean:.3f} ({mean / known:.1%})")
        print(f"| {name} | {len(found)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    app()
