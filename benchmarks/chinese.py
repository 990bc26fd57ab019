"""A small Chinese BERT from scratch, on the training texts of two tasks alone, and what it is worth
on them beside random weights of its shape with its vocabulary.

    python benchmarks/chinese.py DATA OUT
    python benchmarks/chinese.py DATA OUT --seeds 0,1,2

DATA has the folders zh_chnsenticorp and zh_cluener. OUT gets the checkpoints and the results of
`bert glue`. What is done is not done again. The texts of the tasks' development and test sets are
not read before the fine-tuned models are scored.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from jobs import CONFIG, make_random

from spacy_bert_heads.glue.run import format_results
from spacy_bert_heads.glue.tasks import TASKS, find_tasks

NAMES = ("ChnSentiCorp", "CLUENER")
# Most texts are shorter than 128 characters; every character that occurs is in the vocabulary.
SETTINGS = {
    "text.lang": "zh",
    "text.held_out": 0.02,
    "text.workers": 1,
    "encoder.vocab_size": 6000,
    "encoder.lowercase": "true",
    "objective.sentences": "full-sentences",
    "training.phases": '[{"max_length": 128, "share": 1.0}]',
    "training.batch_tokens": 4096,
    "training.checkpoint_frequency": 100,
    "training.eval_frequency": 100,
    "training.optimizer.learn_rate.initial_rate": 1e-3,
}


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
    out: Annotated[Path, typer.Argument(help="The folder of the results")],
    size: Annotated[str, typer.Option(help="tiny, mini, small …")] = "tiny",
    steps: Annotated[int, typer.Option(help="Of pretraining, 4,096 wordpieces each")] = 2000,
    seeds: str = "0",
    precision: str = "bf16",
    limit: Annotated[int, typer.Option(help="Examples of each set: a test of this script")] = 0,
) -> None:
    """Pretrain, fine-tune from both kinds of weights, print their tables."""
    out.mkdir(parents=True, exist_ok=True)
    raw, pretrained, random = out / "raw.jsonl", out / "pretrained", out / "random"
    if not raw.exists():
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in read_texts(data)]
        raw.write_text("\n".join(lines) + "\n", encoding="utf8")
    if not (pretrained / "model-last").is_dir():
        settings = SETTINGS | {
            "paths.raw": raw.absolute(),
            "paths.encoder": "null",
            "paths.cache": (out / "cache").absolute(),
            "encoder.size": size,
            "training.max_steps": steps,
            "training.precision": precision,
        }
        resume = ["--resume"] if pretrained.exists() else []
        run("pretrain", CONFIG, pretrained, settings, *resume)
    if not random.is_dir():
        make_random(str(pretrained / "model-last"), random)
    for name, encoder in (("pretrained", pretrained / "model-last"), ("random", random)):
        options = {"name": encoder, "tasks": ",".join(NAMES), "seeds": seeds}
        options |= {"epochs": 3, "learn-rate": 3e-4, "precision": precision}
        run("glue", data, out / f"glue-{name}", options | ({"limit": limit} if limit else {}))
    for name in ("pretrained", "random"):
        results = json.loads((out / f"glue-{name}" / "results.json").read_bytes())
        print(f"\n{name}\n\n{format_results(results['scores'])}")


def run(command: str, first: Path, output: Path, options: dict[str, Any], *more: str) -> None:
    words = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    command_line = [sys.executable, "-m", "spacy", "bert", command, first, output, *words, *more]
    subprocess.run(command_line, check=True)


def read_texts(data: Path) -> Iterator[str]:
    """The texts of the training sets."""
    folders = find_tasks(data)
    for name in NAMES:
        task = TASKS[name]
        yield from (item.text for item in task.read(folders[name] / task.train))


if __name__ == "__main__":
    typer.run(main)
