"""What adaptation to a domain buys, by the amount of text (jobs.py has the command line; run it
with --precision bf16). Papers and abstracts of biomedicine, 48 MB; then names of diseases in
abstracts, NCBI disease.

pretrain-RECIPE-MILLIONS-SEED
    ENCODER after so many million wordpieces. A recipe is `base` with one setting changed: one
    factor is screened at a time, at half a million wordpieces. `warm` and `task-warm` start with a
    head for masked words that was trained on the frozen encoder (`head`), the others with a new
    one. `wrong` reads WikiText, `task` the training texts of NCBI disease alone (Gururangan et al.
    2020), `domain-task` those after eight million wordpieces of the domain.
ncbi-RECIPE-MILLIONS-SEED-SHARE-SEED, ncbi-none-0-0-SHARE-SEED
    Entities learned with a share of the sentences, in percent, from the adapted encoder (of that
    seed) and the unadapted one; `decay` in place of the share lets each layer learn at 0.9 of the
    rate of that above it, with 5 %.

Recipes are compared on the development set; those of TESTED are run with more seeds and scored on
the test set. The sentences of a share are the same for all seeds.
"""

import json
import statistics
from functools import partial
from typing import Any

import spacy
from jobs import (
    Bench,
    Job,
    finetune,
    of,
    pretrain,
    print_head,
    print_row,
    read_results,
    run_script,
    spread,
)
from tasks import TASKS, read_conll
from thinc.api import Config

from spacy_bert_heads.data.reader import BertCorpus

Share = int | str  # of the sentences, in percent; or "decay"
RATE = "training.optimizer.learn_rate.initial_rate"
BASE = {  # beside configs/pretrain.cfg
    "objective.sentences": "full-sentences",
    "text.held_out": 0.01,
    "training.batch_tokens": 2048,
    RATE: 1e-4,
    "training.phases": [{"max_length": 128, "share": 1.0}],
}
# What each recipe changes.
RECIPES: dict[str, dict[str, Any]] = {
    # The encoder's learning rate is nearly 0, so its weights stay; the head's is 1e-3.
    "head": {RATE: 1e-9, "training.new_head_lr_multiplier": 1e6},
    "base": {},
    "warm": {},
    "rate-3e-4": {RATE: 3e-4},
    "batch-512": {"training.batch_tokens": 512},
    "mask-30": {"masking.rate": 0.3},
    "mask-40": {"masking.rate": 0.4},
    "wordpieces": {"masking.units": "wordpieces"},
    "ngrams": {"masking.max_ngram": 3},
    "nsp": {"objective.sentences": "nsp"},
    "sop": {"objective.sentences": "sop"},
    "wrong": {"text.held_out": 0.1},
    "task": {"text.held_out": 0.1},
    "task-warm": {"text.held_out": 0.1},
    "domain-task": {"text.held_out": 0.1},
}
HEAD = ("head", 0.1)  # and its million wordpieces
SCREEN = 0.5  # million wordpieces
# The recipes that start from another one's encoder, not from ENCODER.
STARTS = {"warm": HEAD, "task-warm": HEAD, "domain-task": ("base", 8.0)}
# What is scored on the test set: recipe, millions of wordpieces, pretraining seeds.
TESTED = (
    ("base", 0.5, 3),
    ("base", 2.0, 3),
    ("base", 8.0, 1),
    ("wrong", 0.5, 1),
    ("wrong", 2.0, 1),
    ("task", 0.5, 1),
    ("task", 2.0, 1),
    ("domain-task", 2.0, 1),
    ("task-warm", 0.5, 1),
    # The first steps taught the new head alone: a setting that gained nothing, of 4736d01.
    ("task-head-first", 0.5, 1),
    ("task-head-first", 2.0, 1),
)
EPOCHS = {5: 10, 25: 3, 100: 1}  # by the share of the sentences
SENTENCES = 5432
SEEDS = range(5)
SCREEN_SEEDS = range(3)
LAYER_DECAY = 0.9


def list_jobs() -> list[Job]:
    """All jobs: the screens, then what is tested."""
    jobs = [adaptation(*HEAD, 0)]
    for recipe in RECIPES:
        if recipe != "head":
            jobs.append(adaptation(recipe, SCREEN, 0))
            jobs += [learning(recipe, SCREEN, 5, seed, 1) for seed in SCREEN_SEEDS]
    for recipe, millions in (("none", 0), ("base", SCREEN)):
        jobs += [learning(recipe, millions, "decay", seed, 1) for seed in SCREEN_SEEDS]
    for recipe, millions, adapted in (("none", 0, 1), *TESTED):
        if recipe in RECIPES:
            jobs += [adaptation(recipe, millions, seed) for seed in range(adapted)]
        if recipe in ("none", *RECIPES):
            for share in EPOCHS:
                jobs += [learning(recipe, millions, share, seed, adapted) for seed in SEEDS]
    return list({job.name: job for job in jobs}.values())


def adaptation(recipe: str, millions: float, seed: int) -> Job:
    name = name_of(recipe, millions, seed)
    start = name_of(*STARTS[recipe], 0) if recipe in STARTS else None
    return Job(name, 10 * millions, partial(adapt, name, start, recipe, millions, seed), start)


def name_of(recipe: str, millions: float, seed: int) -> str:
    return f"pretrain-{recipe}-{millions:g}-{seed}"


def name_of_learning(recipe: str, millions: float, share: Share, seed: int, adapted: int) -> str:
    """There are `adapted` encoders, which seeds take in turns."""
    return f"ncbi-{recipe}-{millions:g}-{seed % adapted}-{share}-{seed}"


def learning(recipe: str, millions: float, share: Share, seed: int, adapted: int) -> Job:
    """A fine-tuning."""
    needs = name_of(recipe, millions, seed % adapted) if millions else None
    name = name_of_learning(recipe, millions, share, seed, adapted)
    return Job(name, 1, partial(learn, name, needs, share, seed), needs)


def adapt(
    name: str, start: str | None, recipe: str, millions: float, seed: int, bench: Bench
) -> dict[str, Any]:
    settings = BASE | RECIPES[recipe]
    steps = bench.scaled(millions * 1e6 / settings["training.batch_tokens"], least=2)
    raw = bench.data / ("raw_wikitext2" if recipe == "wrong" else "raw_biomedical")
    if "task" in recipe:
        raw = bench.work("task.jsonl")
        texts = [" ".join(words) for words, _ in read_conll(TASKS["ncbi"].paths(bench.data)[0])]
        raw.parent.mkdir(parents=True, exist_ok=True)
        if not raw.exists():
            lines = (json.dumps({"text": text}) + "\n" for text in documents(texts))
            raw.write_text("".join(lines), encoding="utf8")
    report = pretrain(
        bench, name, settings | {
            "paths.raw": raw,
            "paths.encoder": bench.work(start) / "model-last" if start else bench.encoder,
            "training.max_steps": steps,
            "training.seed": seed,
            "training.eval_frequency": steps,
        },
    )  # fmt: skip
    keys = ("tokens", "held_out_mlm_loss", "held_out_mlm_accuracy", "held_out_nsp_accuracy")
    return {"settings": RECIPES[recipe], "steps": steps} | {key: report[key] for key in keys}


def documents(sentences: list[str], size: int = 10) -> list[str]:
    """As many sentences in a row as an abstract has."""
    return [" ".join(sentences[at : at + size]) for at in range(0, len(sentences), size)]


def learn(name: str, encoder: str | None, share: Share, seed: int, bench: Bench) -> dict[str, Any]:
    percent = 5 if share == "decay" else int(share)

    def change(config: Config) -> None:
        if share == "decay":
            config["components"]["bert_encoder"]["model"]["layer_decay"] = LAYER_DECAY

    folder = bench.work(name)

    def look(nlp: spacy.Language) -> dict[str, Any]:
        return {"dev": nlp.evaluate(list(BertCorpus(folder / "dev")(nlp)))["ents_f"]}

    start = str(bench.work(encoder) / "model-last") if encoder else bench.encoder
    return finetune(
        bench, folder, "ncbi", start,
        seed=seed, epochs=EPOCHS[percent], n_train=SENTENCES * percent // 100, n_dev=SENTENCES,
        change=change, look=look,
    )  # fmt: skip


# --- tables and plot


def print_tables(bench: Bench) -> None:
    done = read_results(bench)
    print_head("0.5 million", "held out: loss", "right", "dev F1, 5 %", "gain over none")
    for recipe in ("none", *RECIPES):
        millions = SCREEN if recipe != "none" else 0.0
        reports = [done[name] for name in [name_of(recipe, millions, 0)] if name in done]
        losses = [of(f"held_out_mlm_{key}")(reports) for key in ("loss", "accuracy")]
        for part, name in {"5": recipe, "decay": f"{recipe}, layer decay"}.items():
            if runs := find(done, recipe, millions, part, SCREEN_SEEDS, 1):
                gain = gains(done, runs, "dev")
                print_row(name, *losses, of("dev")(list(runs.values())), spread(gain, "+.1f"))
    for part in ("dev", "test"):
        print()
        columns = (f"{part} F1, {share} %; gain; by seed" for share in EPOCHS)
        print_head("million wordpieces", *columns)
        for recipe, millions, adapted in (("none", 0.0, 1), *TESTED):
            cells = []
            for share in EPOCHS:
                runs = find(done, recipe, millions, share, SEEDS, adapted)
                gain = gains(done, runs, part)
                by_seed = ", ".join(f"{one:+.1f}" for one in gain)
                cells.append(f"{of(part)(list(runs.values()))}; {interval(gain)}; {by_seed}")
            print_row(f"{recipe}, {millions:g}", *cells)
    draw(bench, done)


Runs = dict[tuple[Share, int], dict]  # by share and seed


def find(
    done: dict[str, dict], recipe: str, millions: float, share: Share, seeds: range, adapted: int
) -> Runs:
    names = {
        (share, seed): name_of_learning(recipe, millions, share, seed, adapted) for seed in seeds
    }
    return {key: done[name] for key, name in names.items() if name in done}


def gains(done: dict[str, dict], runs: Runs, part: str) -> list[float]:
    """Points more than the unadapted encoder has with the same seed."""
    found = []
    for (share, seed), run in runs.items():
        compared = 5 if share == "decay" else share
        if none := done.get(name_of_learning("none", 0, compared, seed, 1)):
            found.append(100 * (run[part] - none[part]))
    return found


def interval(gain: list[float]) -> str:
    """The mean and its 95 % interval for five seeds; from where to where for fewer."""
    if len(gain) < len(SEEDS):
        return spread(gain, "+.1f")
    mean, half = statistics.mean(gain), half_width(gain)
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def half_width(gain: list[float]) -> float:
    """Half of the 95 % interval of a mean of five, by Student's t."""
    return 2.776 * statistics.stdev(gain) / len(gain) ** 0.5


def draw(bench: Bench, done: dict[str, dict]) -> None:
    """The gain over wordpieces, with its interval for five seeds, in a panel for each share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    shares = [share for share in EPOCHS if find(done, "base", SCREEN, share, SEEDS, 3)]
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    texts = {"base": "the domain", "task": "the task", "wrong": "Wikipedia"}
    for share, axes in zip(shares, panels, strict=True):
        for shift, (recipe, name) in zip((1.0, 0.95, 1.05), texts.items(), strict=True):
            points = {}
            for own, millions, adapted in TESTED:
                gain = gains(done, find(done, own, millions, share, SEEDS, adapted), "test")
                if own == recipe and gain:
                    points[done[name_of(recipe, millions, 0)]["tokens"] / 1e6 * shift] = gain
            axes.errorbar(
                list(points),
                list(map(statistics.mean, points.values())),
                [half_width(gain) if len(gain) == len(SEEDS) else 0 for gain in points.values()],
                label=name, marker="o", capsize=3,
            )  # fmt: skip
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        axes.set_title(f"{SENTENCES * share // 100:,} labelled sentences", loc="left", size=10)
        axes.set_xlabel("million wordpieces read")
    panels[0].set_ylabel("points of entity F1 gained, test")
    panels[0].legend(frameon=False, loc="upper left")
    figure.savefig(bench.out / "domain.png", dpi=120)


if __name__ == "__main__":
    run_script(list_jobs, print_tables, default_precision="bf16")
