"""Score several pipelines on the same data, with intervals and tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .bootstrap import N_RESAMPLES, interval, mcnemar, mean_over_seeds, resample
from .runs import Draw, Figure, Run, find_pipelines, read_run

FEW = 30  # Docs, below which percentile intervals are too narrow


class Comparison(NamedTuple):
    """Hold a report that can be written as JSON, the runs of each contestant, and for each Doc the
    tasks in which the first runs differ."""

    report: dict[str, Any]
    runs: dict[str, list[Run]]
    differing: list[list[str]]

    def documents(self) -> list[dict[str, Any]]:
        """Return the Docs with the errors and the counts of each pipeline."""
        texts = [result.text for result in next(iter(self.runs.values()))[0].results]
        return [
            {
                "number": i + 1,
                "text": text,
                "differ_in": self.differing[i],
                "pipelines": {
                    name: [_document(run, i) for run in runs] for name, runs in self.runs.items()
                },
            }
            for i, text in enumerate(texts)
        ]


def _document(run: Run, i: int) -> dict[str, Any]:
    counted = {figure.counted.name: figure.counted.tallies[i] for figure in run.figures.values()}
    errors = {task: run.results[i].count_errors(task) for task in run.tasks}
    # Without what counts for no label.
    counts = {
        name: own
        for name, tally in counted.items()
        if (own := {label: row for label, row in tally.items() if label})
    }
    return {"errors": errors, "counts": counts}


def compare(
    models: Sequence[str],
    data: Path,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    gpu_id: int = -1,
) -> Comparison:
    """Compare pipelines, or groups of them that differ in their seeds (see `find_pipelines`), on a
    `.spacy` file or a folder of them.

    The 95 % intervals come from a paired bootstrap over Docs (in each resample all contestants have
    the same Docs), and over the seeds of a contestant with several. Differences are to the first
    contestant. Classifiers with one seed are also compared by McNemar's exact test, which assumes
    independent decisions. Raises ValueError if there is nothing to compare, and the errors of
    `evaluate`.
    """
    if len(models) < 2 or len(set(models)) < len(models):
        raise ValueError(
            f"The pipelines are {', '.join(models)}. Pass at least two different ones, and the "
            "data last. To score a single pipeline, use `python -m spacy bert evaluate`."
        )
    paths = {name: find_pipelines(name) for name in models}
    draw = partial(resample, n_resamples=n_resamples, seed=seed)
    runs = {name: [read_run(path, data, gpu_id, draw) for path in paths[name]] for name in models}
    every = [run for group in runs.values() for run in group]
    notes: list[str] = []
    scores: dict[str, Any] = {}
    tests: dict[str, Any] = {}  # by component, because all its scores are of the same decisions
    for key in dict.fromkeys(key for run in every for key in run.figures):
        figures, note = share(key, [run.figures.get(key) for run in every], draw)
        notes += [note] if note else []
        if figures:
            rest = iter(figures)
            contestants = {name: [next(rest) for _ in runs[name]] for name in runs}
            scores[key] = contrast(contestants, seed)
            tests.setdefault(figures[0].counted.name, mcnemar_tests(contestants))
    if not scores:
        raise ValueError(f"The pipelines have no common score on '{data}'. {' '.join(notes)}")
    n_docs = len(every[0].results)
    if n_docs < FEW:
        notes.append(f"Intervals from so few documents ({n_docs}) are too narrow.")
    tasks = [task for task in every[0].tasks if all(task in run.tasks for run in every)]
    differing = [
        [
            task
            for task in tasks
            if any(one.given(task) != results[0].given(task) for one in results)
        ]
        for results in zip(*(group[0].results for group in runs.values()), strict=True)
    ]
    report = {
        "data": str(data),
        "documents": n_docs,
        "differing": {task: sum(task in some for some in differing) for task in tasks},
        "resamples": n_resamples,
        "seed": seed,
        "pipelines": paths,
        "scores": scores,
        "mcnemar": [test for test in tests.values() if test["pipelines"]],
        "notes": notes,
    }
    return Comparison(report, runs, differing)


def share(key: str, found: Sequence[Figure | None], draw: Draw) -> tuple[list[Figure], str]:
    """Make a score of several pipelines comparable. Returns their scores, restricted to common
    labels, or [] if they can't be compared, and a note for the user."""
    figures = [figure for figure in found if figure is not None]
    title = f"{figures[0].shown.title} ({key})"
    if len(figures) < len(found):
        return [], f"Not compared: {title}, which not all pipelines have."
    if np.isnan([figure.resampled for figure in figures]).any(axis=0).all():
        return [], f"Not compared: {title}, which is undefined in resamples of so few annotations."
    sets = [set(figure.counted.labels) for figure in figures]
    common = [label for label in figures[0].counted.labels if all(label in one for one in sets)]
    others = ", ".join(sorted(set.union(*sets).difference(common)))
    if not others:
        return figures, ""
    if not common or not all(figure.is_counted for figure in figures):
        return [], f"Not compared: {title}, because not all pipelines have the labels {others}."
    n_docs = len(figures[0].counted.tallies)
    for i, figure in enumerate(figures):
        scorer = figure.counted.scorer(common)
        value = float(scorer(np.ones((1, n_docs), dtype=int))[key][0])
        figures[i] = figure._replace(value=value, resampled=draw(scorer, n_docs)[key])
    return figures, f"{title}: without the labels {others}, which not all pipelines have."


def contrast(contestants: dict[str, list[Figure]], seed: int) -> dict[str, Any]:
    """Report a score of all contestants, and the differences to the first."""
    first = next(iter(contestants.values()))
    drawn = [
        mean_over_seeds(np.stack([figure.resampled for figure in group]), seed, i)
        for i, group in enumerate(contestants.values())
    ]
    rows: list[dict[str, Any]] = []
    for (name, group), values in zip(contestants.items(), drawn, strict=True):
        seeds = [figure.value for figure in group]
        row = {"pipeline": name, "score": float(np.mean(seeds)), "seeds": seeds}
        row["interval"] = interval(values)
        if group is not first:
            row["difference"] = row["score"] - rows[0]["score"]
            row["difference_interval"] = interval(values - drawn[0])
        rows.append(row)
    shown = first[0].shown
    return {"title": shown.title, "is_fraction": shown.is_fraction, "pipelines": rows}


def mcnemar_tests(contestants: dict[str, list[Figure]]) -> dict[str, Any]:
    """Test the decisions of the first contestant against those of each other one. Contestants with
    several seeds are skipped, and so are decisions for which only one of the two has the label."""
    (_, first), *others = contestants.items()
    rows = []
    for name, group in others:
        known = [set(one[0].counted.labels) for one in (first, group)]
        pairs = [
            (one == true, two == true)
            for mine, theirs in zip(
                first[0].counted.decisions, group[0].counted.decisions, strict=True
            )
            for (true, one), (also_true, two) in zip(mine, theirs, strict=False)
            if true == also_true and (true in known[0]) == (true in known[1])
        ]
        if len(first) > 1 or len(group) > 1 or not pairs:
            continue
        split = pairs.count((True, False)), pairs.count((False, True))
        row = {"pipeline": name, "decisions": len(pairs)}
        row |= {"only_first_right": split[0], "only_this_right": split[1], "p": mcnemar(*split)}
        rows.append(row)
    return {"component": first[0].counted.name, "pipelines": rows}
