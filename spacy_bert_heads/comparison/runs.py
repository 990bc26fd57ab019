"""Run a pipeline on the data, and keep its scores, the counts of Docs and its predictions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from spacy.training import Example
from tqdm import tqdm

from ..evaluate import is_pipeline, predict, shown_scores
from ..heads.declared import Score
from ..heads.head import BertHead
from ..heads.tallies import Counts, Tally
from ..pages.results import Result, make_result, tasks_of
from ..text.arrays import Ints2d
from .bootstrap import Floats1d, Scorer, draw_weights

# Resamples Docs (the second argument is their number), and scores the resamples.
Draw = Callable[[Scorer, int], dict[str, Floats1d]]


class Counted(NamedTuple):
    """Hold the counts from which a component's scores are computed."""

    name: str
    labels: Collection[str]
    tallies: list[Tally]  # of each Doc; all empty if the component counts nothing
    decisions: list[list[tuple[str, str]]]  # of each Doc
    scores_of: Callable[[Counts], dict[str, Any]]

    def scorer(self, labels: Collection[str] = ()) -> Scorer:
        """Return a function that scores resamples by their counts, for all labels or only some."""
        own = [*self.labels, *(label for tally in self.tallies for label in tally)]
        columns = list(dict.fromkeys(labels or own))
        kinds = {kind for tally in self.tallies for row in tally.values() for kind in row}
        counts = {
            kind: np.asarray([[t.get(c, {}).get(kind, 0) for c in columns] for t in self.tallies])
            for kind in kinds
        }
        if not counts:
            return lambda weights: {}
        occurs = np.any([n.any(axis=0) for n in counts.values()], axis=0)
        return lambda weights: self.scores_of(
            {kind: weights @ n for kind, n in counts.items()} | {"occurs": occurs}
        )


class Figure(NamedTuple):
    """Hold a score of a pipeline."""

    shown: Score
    value: float  # as in `bert evaluate`
    resampled: Floats1d
    counted: Counted
    is_counted: bool  # whether resamples were scored by counts, not by the component


class Run(NamedTuple):
    """Hold the predictions and scores of a pipeline, without its weights."""

    lang: str
    figures: dict[str, Figure]
    tasks: list[str]
    results: list[Result]


def find_pipelines(name: str) -> list[str]:
    """Return the pipelines that an argument of `bert compare` names: one pipeline, or several with
    different seeds, in a folder or matching a pattern. In an output of `spacy train`, it is
    model-best. Raises ValueError if there is none."""

    def resolve(path: str) -> list[str]:
        return [one for one in (path, str(Path(path, "model-best"))) if is_pipeline(one)][:1]

    folder = Path(name)
    paths = [str(path) for path in folder.iterdir()] if folder.is_dir() else glob(name)
    found = resolve(name) or [one for path in sorted(paths) for one in resolve(path)]
    if not found:
        raise ValueError(
            f"There is no pipeline '{name}'. Pass a folder with a config.cfg, an output of `spacy "
            "train`, a folder or a quoted pattern ('runs/base-*') with several of these, or an "
            "installed package."
        )
    return found


def read_run(path: str, data: Path, gpu_id: int, draw: Draw) -> Run:
    """Run a pipeline on a data set, and score the data set and its resamples."""
    nlp, examples, scores, _ = predict(path, data, gpu_id=gpu_id)
    shown, n_docs = shown_scores(scores), len(examples)
    # The data set, and two samples with every Doc, so that they lack no label.
    probe = 1 + np.vstack([np.zeros((1, n_docs), dtype=int), *draw_weights(n_docs, 2, seed=0)])
    figures: dict[str, Figure] = {}
    for _, component in nlp.pipeline:
        score = getattr(component, "score", None)
        keys = [key for key in score(examples) if key in shown] if score else []
        if not keys:
            continue
        counted = count(component, examples)
        for earlier in (figures[key].counted for key in keys if key in figures):
            # Several heads of a kind have one score, of all their labels.
            labels = dict.fromkeys([*earlier.labels, *counted.labels])
            counted = counted._replace(labels=[*labels])
        by_counts, by_score = counted.scorer(), partial(rescore, component, examples)
        # Counts are used only if they reproduce the scorer, which may be the user's own.
        found, true = by_counts(probe), by_score(probe)
        same = {
            key: key in found and np.allclose(found[key], true[key], 0, 1e-9, equal_nan=True)
            for key in keys
        }
        drawn = draw(by_counts, n_docs) if any(same.values()) else {}
        rescored = drawn if all(same.values()) else draw(by_score, n_docs)
        for key in keys:
            resampled = drawn[key] if same[key] else rescored[key]
            figures[key] = Figure(shown[key], scores[key], resampled, counted, same[key])
    tasks = tasks_of(nlp)
    results = [make_result(nlp, example, tasks) for example in examples]
    return Run(nlp.lang or "xx", figures, tasks, results)


def count(component: Any, examples: Sequence[Example]) -> Counted:
    """Return the counts and decisions in the examples that are annotated for a head."""
    tallies: list[Tally] = [{} for _ in examples]
    decisions: list[list[tuple[str, str]]] = [[] for _ in examples]
    scores_of: Callable[[Counts], dict[str, Any]] = BertHead.scores_of
    if isinstance(component, BertHead):
        scores_of = component.scores_of  # a function of the class, so no weights are kept
        for i, example in enumerate(examples):
            if component.is_judged(example):
                tallies[i], decisions[i] = component.tally(example), component.decisions(example)
    labels = getattr(component, "labels", None) or ()
    return Counted(component.name, labels, tallies, decisions, scores_of)


def rescore(component: Any, examples: Sequence[Example], weights: Ints2d) -> dict[str, Floats1d]:
    """Score resamples with the component's own scorer: correct for every score, but as slow as
    scoring the data set once per resample."""
    rows = [
        component.score([eg for eg, n in zip(examples, row, strict=True) for _ in range(n)])
        for row in tqdm(weights.tolist(), f"{component.name}, resamples", leave=False, disable=None)
    ]
    numbers = (key for key, value in rows[0].items() if not isinstance(value, (dict, str)))
    values = {key: [row.get(key) for row in rows] for key in numbers}
    return {key: np.asarray(row, dtype=np.float64) for key, row in values.items()}  # NaN for None
