"""The end of the demo: how each pipeline does beside a trivial baseline, and a page of what the
joint one finds."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import numpy as np
import spacy
import srsly
import typer
from overview import render_overview
from spacy.language import Language
from spacy.pipeline import EntityRuler
from spacy.training import Example
from wasabi import msg, table

from spacy_bert_heads.comparison.bootstrap import Difference, paired_bootstrap
from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.pages.results import Result, make_result, tasks_of
from spacy_bert_heads.pages.write import render_page
from spacy_bert_heads.pairs import make_answer, make_choice, make_verdict

# Each task's score, and what its baseline always says. Similarities and other numbers are not among
# them: none is right or wrong.
MEASURES = {
    "entities": ("F1", "names of the training reports"),
    "categories": ("accuracy", "the most frequent category"),
    "verdicts": ("accuracy", "the most frequent verdict"),
    "choices": ("accuracy", "the first option"),
    "answers": ("F1", "no answer"),
    "tags": ("accuracy", "the most frequent tag"),
}
JOINT = "joint"
PIPELINES = (JOINT, "ner", "textcat")


class Row(NamedTuple):
    """A task of a pipeline, beside its baseline."""

    pipeline: str
    task: str
    gain: Difference
    speed: float  # words a second

    @property
    def is_better(self) -> bool:
        return self.gain.low > 0


def main(
    training: Annotated[Path, typer.Argument(help="A folder with a folder for each pipeline")],
    train: Annotated[Path, typer.Argument(help="What they were trained on")],
    test: Annotated[Path, typer.Argument(help="What they are scored on")],
    output: Annotated[Path, typer.Argument(help="The page to write, of the joint pipeline")],
) -> None:
    """Print a table, write a page."""
    rows: list[Row] = []
    for name in PIPELINES:
        nlp = spacy.load(training / name / "model-best")
        examples, speed = predict(nlp, test)
        results = compare(nlp, examples)
        known = list(BertCorpus(train)(nlp))
        guesses = compare(nlp, guess(known, BertCorpus(test)(nlp)))
        for task in (task for task in tasks_of(nlp) if task in MEASURES):
            counts = [[count(result, task) for result in some] for some in (guesses, results)]
            rows.append(Row(name, task, paired_bootstrap(*counts, metric=share), speed))
        if name == JOINT:
            shown, tasks, num_train = results, tasks_of(nlp), len(known)
    print(format_table(rows))
    log = list(srsly.read_jsonl(training / f"{JOINT}.jsonl"))
    overview = render_overview(rows, log, MEASURES, num_train=num_train, num_test=len(shown))
    html = render_page(
        shown,
        tasks,
        made=f"Pipeline: {training / JOINT / 'model-best'} · Data: {test}",
        total=len(shown),
        lang="en",
        title="Maritime incident reports",
        overview=overview,
    )
    output.write_text(html, encoding="utf8")
    msg.good(f"{output}: {len(shown)} reports with what the joint pipeline found in them")
    python = os.path.relpath(sys.executable)
    command = f"{python} -m spacy bert serve {training / JOINT / 'model-best'}"
    msg.info("To try it on texts of your own, run this and open http://127.0.0.1:8000", command)


def predict(nlp: Language, data: Path) -> tuple[list[Example], float]:
    """Give the examples with predictions, and the speed in words a second."""
    examples = list(BertCorpus(data)(nlp))
    start = perf_counter()
    docs = list(nlp.pipe([example.predicted for example in examples]))
    seconds = perf_counter() - start
    for example, doc in zip(examples, docs, strict=True):
        example.predicted = doc
    return examples, sum(map(len, docs)) / seconds


def guess(train: Iterable[Example], examples: Iterable[Example]) -> list[Example]:
    """Predict what is most frequent in training, whatever the text. As entities take the names that
    are annotated there, wherever they stand."""
    names: dict[str, Counter[str]] = {}
    categories: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    tags: Counter[str] = Counter()
    for example in train:
        doc = example.reference
        for ent in doc.ents:
            names.setdefault(ent.text.lower(), Counter())[ent.label_] += 1
        categories.update(label for label, value in doc.cats.items() if value)
        verdicts.update(verdict["label"] for verdict in doc._.nli)
        tags.update(token.tag_ for token in doc if token.tag_)
    ruler = EntityRuler(spacy.blank("en"), phrase_matcher_attr="LOWER")
    ruler.add_patterns(
        [{"pattern": name, "label": most_common(labels)} for name, labels in names.items()]
    )
    guessed = list(examples)
    for example in guessed:
        doc = ruler(example.predicted)
        doc.cats = {label: float(label == most_common(categories)) for label in categories}
        doc._.nli = [make_verdict(most_common(verdicts)) for _ in doc._.hypotheses]
        doc._.chosen = [make_choice(0, [1.0]) for _ in doc._.choices]
        doc._.answers = [make_answer(doc) for _ in doc._.questions]
        if tags:
            for token in doc:
                token.tag_ = most_common(tags)
    return guessed


def most_common(labels: Counter[str]) -> str:
    """Choose the most frequent label, and the first of several by name."""
    return min(labels, key=lambda label: (-labels[label], label))


def compare(nlp: Language, examples: Iterable[Example]) -> list[Result]:
    """Compare predictions with gold, report by report. A report is known by its first vessel."""
    results = []
    for example in examples:
        results.append(make_result(nlp, example, tasks_of(nlp)))
        vessels = (ent.text for ent in example.reference.ents if ent.label_ == "VESSEL")
        results[-1].name = next(vessels, "")
    return results


def count(result: Result, task: str) -> tuple[float, int]:
    """Count what is right in a report, and what it is a share of: their sums make the score."""
    if task == "entities":  # F1 is 2 tp / (predicted + gold)
        gold, found = result.gold_entities or [], result.entities or []
        return 2 * sum(bool(one.is_right) for one in found), len(gold) + len(found)
    if task == "answers":
        return sum(one.f1 for one in result.answers), len(result.answers)
    judged = [one.is_right for one in getattr(result, task) if one.is_right is not None]
    return judged.count(True), len(judged)


def share(counts: Any) -> Any:
    """Make scores of sums (..., 2) of `count`."""
    return counts[..., 0] / np.maximum(counts[..., 1], 1)


def format_table(rows: Sequence[Row]) -> str:
    """Make the table, in percent."""
    header = ("pipeline", "task", "score", "baseline", "gain", "95 % interval", "", "words/s")
    cells = [
        (
            row.pipeline,
            f"{row.task}, {MEASURES[row.task][0]}",
            f"{100 * row.gain.second:.1f}",
            f"{100 * row.gain.first:.1f}",
            f"{100 * row.gain.difference:+.1f}",
            f"{100 * row.gain.low:+.1f} to {100 * row.gain.high:+.1f}",
            "better" if row.is_better else "no better",
            f"{row.speed:,.0f}",
        )
        for row in rows
    ]
    return table(cells, header=header, divider=True, aligns=list("llrrrrlr"))


if __name__ == "__main__":
    typer.run(main)
