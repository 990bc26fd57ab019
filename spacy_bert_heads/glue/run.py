"""Train and score the tasks, and write submission files for GLUE's server."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import spacy
from spacy.language import Language
from spacy.scorer import Scorer
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.util import filter_spans
from thinc.api import Config

from ..encoder.component import BertEncoder
from ..encoder.model import checkpoint_of
from ..encoder.shim import resolve_precision
from ..files import check_folder, mark_folder, read_mark, replace_file
from ..heads.find import register_extensions
from ..init_config import init_config
from ..runs.processes import Processes
from ..text.doc_data import make_verdict
from ..text.packing import max_second_text
from ..training.loop import train as train_pipeline
from .plain import run_plain
from .tasks import TASKS, Item, Task, find_tasks

OURS, PLAIN = "spacy_bert_heads", "plain loop"
BATCH_SIZE = 32  # as in `init-config`


@dataclass(frozen=True)
class Setup:
    """Hold the training settings of all tasks. `limit` shortens training and development sets."""

    model: str
    epochs: int = 3
    learn_rate: float = 1e-4
    precision: str = "auto"
    gpu_id: int = -1
    limit: int | None = None


def run_glue(
    folder: Path,
    output: Path,
    setup: Setup,
    *,
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    beside: bool = False,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train and score tasks (by default all in the folder) with each seed, and return the scores by
    task, program and seed.

    With `beside`, Hugging Face's classes are trained too, in a plain loop. The scores are saved in
    `output` as `results.json`; existing results are not computed again, so an interrupted call
    continues where it stopped. For the first seed, the predictions of the test sets are written in
    the format of GLUE's server. Raises ValueError if a task is unknown or not in the folder, the
    folder is inside of the output, or the output has results with other settings.
    """
    if folder.resolve().is_relative_to(output.resolve()):
        raise ValueError(
            f"The data {folder} is inside of the output {output}. Name another output."
        )
    there = find_tasks(folder)
    for name in tasks:
        if name not in there:
            known = name in TASKS
            raise ValueError(
                f"There is no task '{name}'{f' in {folder}' if known else ''}. "
                f"Choose from: {', '.join(there)}."
            )
    check_folder(output, "glue", force=force)
    results = _load(output, setup, force=force)
    mark_folder(output, "glue")
    for name in tasks or there:
        task, data = TASKS[name], there[name]
        programs = [OURS, PLAIN] if beside and task.head != "ner" else [OURS]
        for seed in seeds:
            for program in programs:
                own = results["scores"].setdefault(name, {}).setdefault(program, {})
                if str(seed) not in own:
                    run = run_ours if program == OURS else run_beside
                    own[str(seed)] = run(task, data, output, setup, seed)
                    replace_file(output / "results.json", json.dumps(results, indent=1).encode())
                scores = ", ".join(f"{key} {100 * v:.1f}" for key, v in own[str(seed)].items())
                say(f"{name}, {program}, seed {seed}: {scores}")
    return results["scores"]


def _load(output: Path, setup: Setup, *, force: bool) -> dict[str, Any]:
    path, wanted = output / "results.json", {**vars(setup)}
    if force and read_mark(output).get("command") == "glue":  # else its files are the user's
        for left in _files_of_runs(output):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    if force or not path.exists():
        return {"setup": wanted, "scores": {}}
    results = json.loads(path.read_bytes())
    if results["setup"] != wanted:
        raise ValueError(
            f"{output} has results with {results['setup']}. Choose another folder, or add --force "
            "to start over."
        )
    return results


def _files_of_runs(output: Path) -> Iterator[Path]:
    for task in TASKS.values():
        yield output / "data" / task.name
        yield from (output / "runs").glob(f"{task.name}-*")
        yield from (output / "submissions" / f"{name}.tsv" for name in task.submissions)


def read(task: Task, data: Path, names: Iterable[str], limit: int | None) -> list[list[Item]]:
    """Read the existing ones of a task's files."""
    paths = [data / name for name in names]
    return [list(task.read(path))[:limit] for path in paths if path.is_file()]


def count_steps(num_items: int, setup: Setup) -> int:
    """Return the number of steps, the same for both programs."""
    return setup.epochs * -(-num_items // BATCH_SIZE)


# --- by a pipeline


def run_ours(task: Task, data: Path, output: Path, setup: Setup, seed: int) -> dict[str, float]:
    """Train a pipeline, write its predictions of the test sets with the first seed, and return its
    measures on the development sets."""
    (train,), devs = (read(task, data, names, setup.limit) for names in ((task.train,), task.dev))
    files = output / "data" / task.name
    paths = {"train": train, "dev": [item for items in devs for item in items]}
    nlp = spacy.blank(task.lang)
    for name, items in paths.items():
        files.mkdir(parents=True, exist_ok=True)
        docs = [make_doc(task, item, nlp) for item in items]
        DocBin(docs=docs, store_user_data=True).to_disk(files / f"{name}.spacy")
    config = make_config(task, files, setup, seed, count_steps(len(train), setup))
    folder = output / "runs" / f"{task.name}-{seed}"
    silent = io.StringIO()
    trained = train_pipeline(
        config, folder, resume=True, gpu_id=setup.gpu_id, stdout=silent, stderr=silent
    )
    scores: dict[str, list[float]] = {}
    for items in devs:
        if task.head == "ner":
            found = {"F1": score_entities(trained, task, items)}
        else:
            found = measure(task, items, predict(trained, task, items))
        for key, value in found.items():
            scores.setdefault(key, []).append(value)
    for name, file in zip(task.submissions, task.test, strict=False):
        path = output / "submissions" / f"{name}.tsv"
        for items in () if path.exists() else read(task, data, (file,), None):
            write_submission(path, predict(trained, task, items))
    shutil.rmtree(folder)  # only the scores are kept
    return {key: float(np.mean(values)) for key, values in scores.items()}


def make_doc(task: Task, item: Item, nlp: Language) -> Doc:
    """Create a Doc from an item, annotated if the item has a label."""
    register_extensions()
    doc = nlp.make_doc(item.text)
    if item.second is not None:
        doc._.set("others" if task.is_regression else "hypotheses", [item.second])
    if item.label is None:
        return doc
    if task.head == "similarity":
        doc._.similarities = [{"score": float(item.label)}]
    elif task.head == "nli":
        doc._.nli = [make_verdict(item.label)]
    elif task.head == "textcat":
        doc.cats = {item.label: 1.0}
    else:
        spans = [
            doc.char_span(start, end, label, alignment_mode="expand")
            for start, end, label in json.loads(item.label)
        ]
        doc.set_ents(filter_spans([span for span in spans if span is not None]))
    return doc


def make_config(task: Task, files: Path, setup: Setup, seed: int, steps: int) -> Config:
    """Return the config of `init-config` for the given number of steps."""
    config = init_config(
        [task.head],
        name=setup.model,
        lang=task.lang,
        train=files / "train.spacy",
        dev=files / "dev.spacy",
        gpu=setup.gpu_id >= 0,
    )
    config["system"]["seed"] = seed
    config["components"]["bert_encoder"]["model"]["precision"] = setup.precision
    training = config["training"]
    training["max_steps"] = max(steps - 1, 1)  # spaCy takes one step more, and 0 means no limit
    training["eval_frequency"] = steps  # at the first and the last step
    rate = training["optimizer"]["learn_rate"]
    rate["initial_rate"], rate["warmup_steps"] = setup.learn_rate, steps // 10
    config["corpora"]["dev"]["limit"] = 1  # scored here
    return config


def predict(nlp: Language, task: Task, items: Sequence[Item]) -> list[str]:
    """Return the predicted label or number of each item. Second texts that are too long for the
    window are cut."""
    bare = (make_doc(task, _cut(item._replace(label=None), nlp), nlp) for item in items)
    docs = nlp.pipe(bare)
    if task.head == "similarity":
        return [str(doc._.similarities[0]["score"]) for doc in docs]
    if task.head == "nli":
        return [doc._.nli[0]["label"] for doc in docs]
    return [max(doc.cats, key=doc.cats.__getitem__) for doc in docs]


def _cut(item: Item, nlp: Language) -> Item:
    if item.second is None:
        return item
    model = cast(BertEncoder, nlp.get_pipe("bert_encoder")).model
    tokenizer = checkpoint_of(model).tokenizer
    longest, second = max_second_text(tokenizer, model.attrs["window"]), item.second
    encode = tokenizer.tokenizer.encode
    # A shorter text may have other wordpieces, and more.
    while over := encode(second, add_special_tokens=False).offsets[longest:]:
        second = second[: over[0][0]]
    return item._replace(second=second)


def score_entities(nlp: Language, task: Task, items: Sequence[Item]) -> float:
    """Return spaCy's entity F1."""
    gold = [make_doc(task, item, nlp) for item in items]
    docs = nlp.pipe(nlp.make_doc(item.text) for item in items)
    examples = [Example(doc, one) for doc, one in zip(docs, gold, strict=True)]
    return Scorer.score_spans(examples, "ents")["ents_f"] or 0.0


# --- by a plain loop


def run_beside(task: Task, data: Path, output: Path, setup: Setup, seed: int) -> dict[str, float]:
    """Train and score Hugging Face's class, and return its measures."""
    (train,), devs = (read(task, data, names, setup.limit) for names in ((task.train,), task.dev))
    device = Processes(setup.gpu_id).device
    predicted = run_plain(
        task,
        train,
        devs,
        model=setup.model,
        seed=seed,
        steps=count_steps(len(train), setup),
        learn_rate=setup.learn_rate,
        batch_size=BATCH_SIZE,
        precision=resolve_precision(setup.precision, device),
        device=device,
    )
    found = [measure(task, *both) for both in zip(devs, predicted, strict=True)]
    return {key: float(np.mean([one[key] for one in found])) for key in task.measures}


# --- what comes out


def measure(task: Task, items: Sequence[Item], predicted: Sequence[str]) -> dict[str, float]:
    """Return a task's measures."""
    gold = [str(item.label) for item in items]
    return {name: function(gold, predicted) for name, function in task.measures.items()}


def write_submission(path: Path, predicted: Sequence[str]) -> None:
    """Write predictions in the format of GLUE's server."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n")
    writer.writerow(["index", "prediction"])
    writer.writerows(enumerate(predicted))
    replace_file(path, text.getvalue().encode("utf8"))


def format_results(scores: dict[str, Any]) -> str:
    """Format the scores as a Markdown table: mean and standard deviation over the seeds, and the
    mean over tasks, as in GLUE."""
    programs = [one for one in (OURS, PLAIN) if any(one in own for own in scores.values())]
    lines = [f"| task | measure | seeds | {' | '.join(programs)} |"]
    lines.append("|---" * (3 + len(programs)) + "|")
    means: dict[str, list[float]] = {}
    for name, own in scores.items():
        measures = next(iter(own[OURS].values()))
        for measure_ in measures:
            cells = []
            for program in programs:
                values = [100 * run[measure_] for run in own.get(program, {}).values()]
                spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.1f}{spread}" if values else "–")
            lines.append(f"| {name} | {measure_} | {len(own[OURS])} | {' | '.join(cells)} |")
        for program in programs:
            runs = own.get(program, {}).values()
            if runs:
                means.setdefault(program, []).append(
                    100 * float(np.mean([list(run.values()) for run in runs]))
                )
    cells = [
        f"{np.mean(means[one]):.1f}" if len(means[one]) == len(scores) else "–" for one in programs
    ]
    return "\n".join([*lines, f"| mean | | | {' | '.join(cells)} |"])
