"""What pretraining on raw text buys: named jobs, a JSON file for each, tables and plots from those.

    python benchmarks/adaptation.py DATA ENCODER OUT --list
    python benchmarks/adaptation.py DATA ENCODER OUT --jobs "adapt-*" --precision fp32
    python benchmarks/adaptation.py DATA ENCODER OUT --table

A job whose file is in OUT is not run again, and a pretraining that was interrupted goes on where it
was, so hours of work can be done in pieces. Files of several machines can be put into one folder;
what was adapted (OUT/work/adapt-…/model-last) is needed where `ncbi-…` jobs run. The number of
threads is that of OMP_NUM_THREADS. Estimates are for one core of a CPU with AVX2, in fp32.

scratch-nsp, scratch-sop
    A small random BERT on WikiText-2, with one sentence objective or the other.
adapt-covid, adapt-wikitext, adapt-nsp, adapt-frozen
    ENCODER continued on papers about COVID-19 by masked pieces alone; for as many steps on
    WikiText-2, the wrong domain; on the papers with next-sentence prediction beside; and that with
    all but the heads frozen. A checkpoint without the heads of pretraining has no loss to compare
    with: what it knew before is what heads make of its unchanged states, with as many steps to
    learn that. Each is scored on held-out documents of both texts.
ncbi-ENCODER-SHARE-SEED
    Disease names in abstracts of PubMed, from ENCODER as it came and from the adapted ones, with
    shares of the training sentences: the first ones of one order, whatever the seed.
random-vs-pretrained-TASK
    The same fine-tuning from ENCODER and from random weights of the same shape.
"""

import dataclasses
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
import typer
from jobs import (
    N_POINTS,
    SEEDS,
    Bench,
    Job,
    draw_spread,
    finetune,
    make_random,
    print_head,
    print_row,
    read_log,
    read_results,
    run_or_show,
    runs_of,
)
from thinc.api import Config

from spacy_bert_heads.encoder.shim import autocast_for
from spacy_bert_heads.pretraining import loop
from spacy_bert_heads.pretraining.data import Data
from spacy_bert_heads.pretraining.documents import hold_out
from spacy_bert_heads.pretraining.objectives import Pretrainer, Totals, load_pretrainer, no_totals
from spacy_bert_heads.pretraining.prepare import prepare
from spacy_bert_heads.pretraining.reports import COLUMNS, format_row
from spacy_bert_heads.pretraining.settings import Settings, adam, read_settings
from spacy_bert_heads.pretraining.store import Corpus

# Scratch: updates count for more than large batches as long as the model knows next to nothing.
SCRATCH = {"max_steps": 10_000, "batch_tokens": 2048, "learn_rate": 2e-3}
SCRATCH_ENCODER = {"family": "bert", "size": "tiny", "tokenizer": None, "vocab_size": 8000}
ADAPT_PIECES = 2048  # of a step
MAX_LENGTH = 128
SENTENCES = {"ncbi": 5432, "wnut17": 3394, "sst2": 6920}  # to train on
PIECES = {"ncbi": 187_000, "wnut17": 102_000, "sst2": 174_000}  # of those
EPOCHS = {100: 1, 25: 3, 5: 10}  # by the share of the sentences, in percent
COMPARED = {"wnut17": 2, "sst2": 1}  # epochs of random-vs-pretrained
STARTS = {
    "as_it_came": None,
    "covid": "adapt-covid",
    "wikitext": "adapt-wikitext",
    "nsp": "adapt-nsp",
}
TITLES = {
    "as_it_came": "as it came",
    "covid": "adapted to papers",
    "wikitext": "adapted to WikiText-2",
    "nsp": "adapted to papers, NSP beside",
}
# Estimates: wordpieces a second on one core.
LEARN, READ, LEARN_TINY = 730, 2200, 7000


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    out: Annotated[Path, typer.Argument(help="The folder of the results")],
    jobs: Annotated[str, typer.Option(help="Which jobs to run, a pattern")] = "*",
    precision: str = "fp32",
    steps: Annotated[int, typer.Option(help="Steps of an adaptation")] = 300,
    rate: Annotated[float, typer.Option(help="Learning rate of an adaptation")] = 3e-4,
    scale: Annotated[float, typer.Option(help="0.02: a test of this script")] = 1.0,
    show: Annotated[bool, typer.Option("--list", help="Show the jobs, run none")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print and plot, run none")] = False,
) -> None:
    """Run the jobs that were not run yet."""
    bench = Bench(data, encoder, out.absolute(), precision, scale)
    run_or_show(
        bench, list_jobs(steps, rate), jobs, show=show, print_tables=print_tables if table else None
    )


def list_jobs(steps: int, rate: float) -> list[Job]:
    """All jobs, those first that others need."""
    pieces = SCRATCH["max_steps"] * SCRATCH["batch_tokens"]
    jobs = [
        Job(
            f"scratch-{objective}",
            2 + pieces / LEARN_TINY / 60,
            partial(pretrain_scratch, objective),
        )
        for objective in ("nsp", "sop")
    ]
    learned = steps * ADAPT_PIECES / 60
    speeds = {"covid": LEARN, "wikitext": LEARN, "nsp": LEARN, "frozen": READ}
    for name, speed in speeds.items():
        jobs.append(Job(f"adapt-{name}", 5 + learned / speed, partial(adapt, name, steps, rate)))
    for share, epochs in EPOCHS.items():
        for seed in SEEDS:
            for start, needs in STARTS.items():
                minutes = 1 + PIECES["ncbi"] * share / 100 * epochs / LEARN / 60
                run = partial(finetune_ncbi, start, share, seed)
                jobs.append(Job(f"ncbi-{start}-{share}-{seed}", minutes, run, needs))
    for task, epochs in COMPARED.items():
        minutes = 2 * (2 + PIECES[task] * epochs / LEARN / 60)
        jobs.append(Job(f"random-vs-pretrained-{task}", minutes, partial(compare, task)))
    return jobs


# --- raw text


def raw_text(bench: Bench, name: str) -> Path:
    """A file of JSON Lines, a document in each."""
    if name == "covid":
        return bench.data / "raw_covid_papers" / "papers.jsonl"
    path = bench.work("wikitext.jsonl")
    if not path.exists():  # written once: a run is not resumed on a file that has changed
        path.parent.mkdir(parents=True, exist_ok=True)
        partly = path.with_suffix(".partly")
        lines = [json.dumps({"text": text}) + "\n" for text in read_wikitext(bench.data)]
        partly.write_text("".join(lines), encoding="utf8")
        partly.replace(path)
    return path


def read_wikitext(data: Path) -> Iterator[str]:
    """The articles of WikiText-2 as running text: no headings, no marks around hyphens and within
    numbers. A word that was not in its vocabulary stays a word, the same for all of them."""
    for name in ("valid.txt", "test.txt"):
        content = (data / "raw_wikitext2" / name).read_text(encoding="utf8")
        lines = ["", *(line.strip() for line in content.splitlines()), ""]
        article: list[str] = []
        for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
            heading = line.startswith("= ") and line.endswith(" =") and not before and not after
            if heading and not line.startswith("= ="):
                if article:
                    yield "\n".join(article)
                article = []
            elif line and not heading:
                line = re.sub(r" @([-,.])@ ", r"\1", line)
                article.append(line.replace("<unk>", "unk"))
        yield "\n".join(article)


# --- pretraining


def settings_of(bench: Bench, text: str | Path, objective: str, **training: Any) -> dict[str, Any]:
    """The config of a run on a text, with a tenth of the documents held out."""
    steps = bench.scaled(training["max_steps"], least=4)
    optimizer = adam(training.pop("learn_rate"), warmup_steps=steps // 10)
    every = max(steps // N_POINTS, 1)
    return {
        "paths": {
            "raw": str(text if isinstance(text, Path) else raw_text(bench, text)),
            "encoder": bench.encoder,
            "cache": str(bench.work("cache")),
        },
        "text": {"held_out": 0.1, "workers": 1},
        "objective": {"sentences": objective},
        "training": {
            "max_batch_tokens": 4096,
            "precision": bench.precision,
            "eval_tokens": bench.scaled(32_768, least=2048),
            "phases": [{"max_length": MAX_LENGTH, "share": 1.0}],
            **training,
            "max_steps": steps,
            "optimizer": optimizer,
            "eval_frequency": every,
            "checkpoint_frequency": every,
            "keep": 1,
        },
    }


def run_pretraining(folder: Path, config: dict[str, Any]) -> Settings:
    """`spacy bert pretrain --resume`, which starts anew if there is nothing to resume."""
    settings = write_settings(folder, config)
    command = [sys.executable, "-m", "spacy", "bert", "pretrain", str(folder / "pretrain.cfg")]
    subprocess.run([*command, str(folder), "--resume"], check=True)
    return settings


def write_settings(folder: Path, config: dict[str, Any]) -> Settings:
    folder.mkdir(parents=True, exist_ok=True)
    Config(config).to_disk(folder / "pretrain.cfg")
    return read_settings(folder / "pretrain.cfg", {})


def pretrain_scratch(objective: str, bench: Bench) -> dict[str, Any]:
    config = settings_of(bench, "wikitext", objective, **SCRATCH)
    config["paths"]["encoder"] = None
    config["encoder"] = SCRATCH_ENCODER
    folder = bench.work(f"scratch-{objective}")
    settings = run_pretraining(folder, config)
    return {
        "settings": dataclasses.asdict(settings),
        "curve": read_log(folder / "log.jsonl"),
        "held_out": score(bench, folder / "model-last", settings, "wikitext"),
    }


def adapt(kind: str, steps: int, rate: float, bench: Bench) -> dict[str, Any]:
    text = "wikitext" if kind == "wikitext" else "covid"
    training = {
        "max_steps": steps,
        "batch_tokens": ADAPT_PIECES,
        "learn_rate": rate if kind != "frozen" else 1e-4,  # and heads ten times as fast
    }
    objective = "nsp" if kind in ("nsp", "frozen") else "full-sentences"
    config = settings_of(bench, text, objective, **training)
    folder = bench.work(f"adapt-{kind}")
    result: dict[str, Any] = {}
    if kind == "frozen":
        settings = write_settings(folder, config)
        # The heads as they are made, before a step.
        result["random_heads"] = {
            text: score(bench, bench.encoder, settings, text) for text in ("covid", "wikitext")
        }
        # In this process, because the command has no setting for it, which nobody else needs.
        with mock.patch.object(loop, "load_pretrainer", load_frozen):
            print(COLUMNS)
            loop.pretrain(
                settings,
                folder,
                resume=True,
                on_report=lambda report: print(format_row(report), flush=True),
            )
    else:
        settings = run_pretraining(folder, config)
    for text in ("covid", "wikitext"):
        result[text] = score(bench, folder / "model-last", settings, text)
    return {
        "settings": dataclasses.asdict(settings),
        "curve": read_log(folder / "log.jsonl"),
        **result,
    }


def load_frozen(name: str, *, sentence_objective: str | None) -> Pretrainer:
    """A checkpoint of which the heads alone will learn, those for pairs with their pooler."""
    pretrainer = load_pretrainer(name, sentence_objective=sentence_objective)
    for parameter_name, parameter in pretrainer.model.named_parameters():
        parameter.requires_grad_("pooler" in parameter_name or parameter_name.startswith("cls."))
    return pretrainer


def score(bench: Bench, model: Path | str, settings: Settings, text: str) -> dict[str, float]:
    """The losses on the held-out documents of a text, which need not be that of the run; and the
    loss, on the same masked pieces, of the frequencies of pieces in the other documents."""
    torch.manual_seed(settings.training.seed)  # as the run: new heads are the same ones
    objective = settings.objective.sentences
    pretrainer = load_pretrainer(str(model), sentence_objective=objective)
    pretrainer.eval()
    cache = Path(settings.paths.cache)
    vocabulary = pretrainer.vocabulary()
    corpus = prepare([raw_text(bench, text)], cache, wordpieces=vocabulary.wordpieces, workers=1)
    training = dataclasses.replace(settings.training, eval_tokens=bench.scaled(131_072, least=2048))
    settings = dataclasses.replace(settings, training=training)
    autocast = autocast_for(bench.precision, torch.device("cpu"))
    nats = unigram(corpus, settings, vocabulary.size)
    sums, known = no_totals(torch.device("cpu")), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for batch in Data(corpus, vocabulary, settings, Path(folder)).held_out_batches(0):
            budget = training.max_batch_tokens
            sums += pretrainer.run(batch, max_batch_tokens=budget, autocast=autocast, scales=None)
            known += float(nats[batch.targets].sum())
    totals = Totals(*sums.tolist())
    return {
        "mlm_loss": totals.mlm_loss / totals.n_masked,
        "mlm_accuracy": totals.mlm_right / totals.n_masked,
        "n_masked": totals.n_masked,
        "unigram_loss": known / totals.n_masked,
        "sentence_accuracy": totals.sentence_right / totals.n_pairs if totals.n_pairs else None,
        "n_pairs": totals.n_pairs,
    }


def unigram(corpus: Corpus, settings: Settings, n_pieces: int) -> np.ndarray:
    """-log p of each piece, from the counts in the documents that are not held out, plus one."""
    least = 2 if settings.objective.sentences == "nsp" else 1  # as in `Data`
    n_documents, seed = len(corpus.documents) - 1, settings.training.seed
    held_out = hold_out(n_documents, settings.text.held_out, seed=seed, least=least)
    sizes = np.diff(corpus.sentences[corpus.documents])
    learned = corpus.pieces[np.repeat(~held_out, sizes)]
    counts = np.bincount(learned, minlength=n_pieces) + 1
    return np.log(counts.sum()) - np.log(counts)


# --- fine-tuning


def finetune_ncbi(start: str, share: int, seed: int, bench: Bench) -> dict[str, Any]:
    needs = STARTS[start]
    finetuned = finetune(
        bench,
        bench.work(f"ncbi-{start}-{share}-{seed}"),
        "ncbi",
        bench.encoder if needs is None else str(bench.work(needs) / "model-last"),
        n_train=round(SENTENCES["ncbi"] * share / 100),
        n_dev=50,  # no checkpoint is chosen by it
        seed=seed,
        epochs=EPOCHS[share],
    )
    return {"start": start, "share": share, "seed": seed, "epochs": EPOCHS[share], **finetuned}


def compare(task: str, bench: Bench) -> dict[str, Any]:
    random_encoder = bench.work("random-encoder")
    make_random(bench.encoder, random_encoder)
    result: dict[str, Any] = {"task": task, "epochs": COMPARED[task]}
    for kind, encoder in (("pretrained", bench.encoder), ("random", str(random_encoder))):
        result[kind] = finetune(
            bench,
            bench.work(f"random-vs-pretrained-{task}") / kind,
            task,
            encoder,
            n_train=SENTENCES[task],
            n_dev=10_000,
            seed=0,
            epochs=COMPARED[task],
        )
    return result


# --- tables and plots


def print_tables(bench: Bench) -> None:
    """All tables, as Markdown, and the plots, of what is done."""
    done = read_results(bench)
    print_scratch(done)
    print_adaptation(done)
    print_ncbi(done)
    print_comparison(done)
    draw(bench, done)


def print_scratch(done: dict[str, dict]) -> None:
    runs = {kind: done[f"scratch-{kind}"] for kind in ("nsp", "sop") if f"scratch-{kind}" in done}
    print("### From scratch\n")
    heads = [f"{kind}: {what}" for kind in runs for what in ("MLM loss", "pairs right")]
    print_head("step", *heads)
    curves = [run["curve"] for run in runs.values()]
    for reports in zip(*curves, strict=False):
        cells = [
            form.format(report[key])
            for report in reports
            for key, form in (
                ("held_out_mlm_loss", "{:.3f}"),
                ("held_out_nsp_accuracy", "{:.3f}"),
            )
        ]
        print_row(reports[0]["step"], *cells)
    finals = [run["held_out"] for run in runs.values()]
    cells = [f"**{one[key]:.3f}**" for one in finals for key in ("mlm_loss", "sentence_accuracy")]
    print_row("all held out", *cells)
    cells = [cell for one in finals for cell in (f"{one['unigram_loss']:.3f}", "0.500")]
    print_row("unigram, chance", *cells)
    print()


def print_adaptation(done: dict[str, dict]) -> None:
    frozen = done.get("adapt-frozen", {})
    rows = {
        "as it came, random heads": frozen.get("random_heads"),
        "as it came, heads learned on papers": frozen,
        "adapted to papers": done.get("adapt-covid"),
        "adapted to papers, NSP beside": done.get("adapt-nsp"),
        "adapted to WikiText-2": done.get("adapt-wikitext"),
    }
    print("### Adaptation: documents held out\n")
    texts = {"covid": "papers", "wikitext": "WikiText-2"}
    print_head(
        "",
        *(
            f"{name}: {what}"
            for name in texts.values()
            for what in ("MLM loss", "perplexity", "pieces right", "NSP right")
        ),
    )
    unigrams = []
    for label, row in rows.items():
        if not row:
            continue
        cells = []
        for text in texts:
            one = row[text]
            cells += [f"{one['mlm_loss']:.3f}", f"{math.exp(one['mlm_loss']):,.1f}"]
            pairs = one["sentence_accuracy"]
            cells += [f"{one['mlm_accuracy']:.3f}", "–" if pairs is None else f"{pairs:.3f}"]
        print_row(label, *cells)
        unigrams = [row[text]["unigram_loss"] for text in texts]
    if unigrams:
        cells = [
            cell for loss in unigrams for cell in (f"{loss:.3f}", f"{math.exp(loss):,.1f}", "", "")
        ]
        print_row("unigram", *cells)
    print()


def scores_of(done: dict[str, dict], start: str, share: int) -> list[float]:
    return [run["test"] for run in runs_of(done, f"ncbi-{start}-{share}")]


def print_ncbi(done: dict[str, dict]) -> None:
    print("### NCBI disease: entity F1 on the test data, mean (lowest to highest) over seeds\n")
    print_head("encoder", *(f"{share} % of the sentences" for share in EPOCHS))
    for start in STARTS:
        cells = []
        for share in EPOCHS:
            found = scores_of(done, start, share)
            spread = f"({min(found):.3f} to {max(found):.3f}), n={len(found)}" if found else ""
            cells.append(f"{statistics.mean(found):.3f} {spread}" if found else "–")
        print_row(TITLES[start], *cells)
    print()


def print_comparison(done: dict[str, dict]) -> None:
    for task in COMPARED:
        run = done.get(f"random-vs-pretrained-{task}")
        if run is None:
            continue
        kinds = ("pretrained", "random")
        print(f"### {task}: the same training from pretrained and from random weights\n")
        print_head("step", *(f"{kind}: {what}" for kind in kinds for what in ("loss", "dev")))
        for reports in zip(*(run[kind]["curve"] for kind in kinds), strict=False):
            cells = [f"{report[key]:.3f}" for report in reports for key in ("loss", "dev")]
            print_row(reports[0]["step"], *cells)
        print_row(
            "test", *(cell for kind in kinds for cell in ("", f"**{run[kind]['test']:.3f}**"))
        )
        print()


def draw(bench: Bench, done: dict[str, dict]) -> None:
    try:
        import matplotlib
    except ImportError:
        print("No plots: pip install matplotlib")
        return
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    def save(figure: Any, name: str) -> None:
        figure.tight_layout()
        figure.savefig(bench.out / f"{name}.png", dpi=120)
        plt.close(figure)
        print(f"{bench.out / name}.png")

    def curve(axes: Any, reports: list[dict], key: str, label: str) -> None:
        points = [(one["step"], one[key]) for one in reports if one[key] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)

    scratch = {name: run for name, run in done.items() if name.startswith("scratch-")}
    adapted = {name: run for name, run in done.items() if name.startswith("adapt-")}
    for title, runs in (("scratch", scratch), ("adapt", adapted)):
        if not runs:
            continue
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
        for name, run in runs.items():
            curve(left, run["curve"], "held_out_mlm_loss", name)
            curve(right, run["curve"], "held_out_nsp_accuracy", name)
        if title == "scratch":
            loss = next(iter(runs.values()))["held_out"]["unigram_loss"]
            left.axhline(loss, color="gray", linestyle=":", label="unigram")
        right.axhline(0.5, color="gray", linestyle=":", label="chance")
        left.set(xlabel="step", ylabel="MLM loss, held out (nats)")
        right.set(xlabel="step", ylabel="pairs right, held out")
        left.legend()
        right.legend()
        save(figure, title)
    if any(scores_of(done, start, share) for start in STARTS for share in EPOCHS):
        figure, axes = plt.subplots(figsize=(5, 3.5))
        for start in STARTS:
            points = [(share, scores_of(done, start, share)) for share in sorted(EPOCHS)]
            draw_spread(axes, points, label=TITLES[start])
        axes.set(xscale="log", xlabel="% of the training sentences", ylabel="entity F1, test")
        axes.set_xticks(sorted(EPOCHS), map(str, sorted(EPOCHS)))
        axes.legend()
        save(figure, "ncbi")
    names = {task: f"random-vs-pretrained-{task}" for task in COMPARED}
    compared = {task: done[name] for task, name in names.items() if name in done}
    if compared:
        size = (9, 3.5 * len(compared))
        figure, grid = plt.subplots(len(compared), 2, figsize=size, squeeze=False)
        for (task, run), (left, right) in zip(compared.items(), grid, strict=True):
            for kind in ("pretrained", "random"):
                curve(left, run[kind]["curve"], "loss", kind)
                curve(right, run[kind]["curve"], "dev", kind)
            left.set(xlabel="step", ylabel="training loss (nats)", title=task)
            right.set(xlabel="step", ylabel="dev score", title=task)
            left.legend()
        save(figure, "random-vs-pretrained")


if __name__ == "__main__":
    typer.run(main)
