"""Pipelines compared: scores as `evaluate` gives them, intervals, tests, files and the page."""

import json
import re
from functools import partial

import numpy as np
import pytest
import spacy
import srsly
from browser import look
from commands import run
from joint import make_examples
from spacy.language import Language
from spacy.tokens import DocBin

from spacy_bert_heads.comparison import runs
from spacy_bert_heads.comparison.bootstrap import (
    draw_weights,
    mcnemar,
    paired_bootstrap,
    resample,
)
from spacy_bert_heads.comparison.compare import compare
from spacy_bert_heads.comparison.runs import count, rescore
from spacy_bert_heads.comparison.tables import format_comparison
from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.evaluate import evaluate, format_report, predict
from spacy_bert_heads.pages.comparison import fewest_errors, render_comparison
from spacy_bert_heads.pages.results import Judged, Result
from spacy_bert_heads.pairs import make_answer, make_verdict

HEADS = ("ner", "textcat", "nli", "qa")


@Language.factory("test_letters", default_score_weights={"letters": 1.0})
def make_letters(nlp, name):
    return Letters()


class Letters:
    """A component of somebody else, with a score that is no sum over Docs: a median."""

    name = "test_letters"

    def __call__(self, doc):
        return doc

    def score(self, examples, **kwargs):
        return {"letters": float(np.median([len(eg.reference.text) for eg in examples]))}

    def to_disk(self, path, exclude=()):
        path.mkdir()

    def from_disk(self, path, exclude=()):
        return self


def save(path, docs):
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


@pytest.fixture(scope="module")
def gold(joint, tmp_path_factory):
    """Twelve Docs, of which the trained pipeline knows nine by heart."""
    nlp = spacy.load(joint)
    docs = [eg.reference for _ in range(6) for eg in make_examples(nlp)]
    docs[2].ents = docs[2].ents[1:]
    docs[3].cats = {"voyage": 1.0, "fire": 0.0}
    docs[4]._.nli = [make_verdict("neutral"), *docs[4]._.nli[1:]]
    docs[4]._.answers = [make_answer(docs[4]), *docs[4]._.answers[1:]]
    return save(tmp_path_factory.mktemp("gold") / "gold.spacy", docs)


def disturb(joint, folder, seed: int):
    """Save the pipeline with noise in its heads."""
    nlp = spacy.load(joint)
    rng = np.random.default_rng(seed)
    for head in HEADS:
        module = shim_of(nlp.get_pipe(f"bert_{head}").model).module
        for weights in module.parameters():
            noise = rng.normal(0, 0.5, size=tuple(weights.shape))
            weights.data += weights.new_tensor(noise)
    folder.mkdir(parents=True)
    nlp.to_disk(folder)


@pytest.fixture(scope="module")
def noisy(joint, tmp_path_factory):
    """A folder of outputs of `spacy train`, as of three seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        disturb(joint, folder / f"noisy-{seed}" / "model-best", seed)
    return folder


@pytest.fixture(scope="module")
def two(joint, noisy, gold):
    """The trained pipeline, and the same with noise, compared."""
    return compare([str(joint), str(noisy / "noisy-0")], gold, n_resamples=20)


@pytest.fixture
def rules(tmp_path):
    """Make a pipeline of rules, by words and their labels."""

    def make(name: str, **labels: str) -> str:
        nlp = spacy.blank("xx")
        patterns = [{"label": label, "pattern": word} for word, label in labels.items()]
        nlp.add_pipe("entity_ruler").add_patterns(patterns)
        nlp.to_disk(tmp_path / name)
        return str(tmp_path / name)

    return make


def test_scores_are_those_of_evaluate(joint, noisy, gold, two):
    report = two.report
    names = list(report["pipelines"])
    shown = format_report(evaluate(str(joint), gold))
    for i, path in enumerate((joint, noisy / "noisy-0" / "model-best")):
        expected = evaluate(str(path), gold)
        found = {key: score["pipelines"][i]["score"] for key, score in report["scores"].items()}
        assert found == {key: expected[key] for key in found}
    assert list(found) == [
        *("ents_p", "ents_r", "ents_f", "cats_score", "cats_acc"),
        *("nli_acc", "nli_macro_f", "qa_exact", "qa_f1"),
    ]
    for score in report["scores"].values():  # as they are printed, too
        (line,) = [line for line in shown.splitlines() if line.startswith(score["title"])]
        first = score["pipelines"][0]
        assert line.split()[-1] == f"{100 * first['score']:.2f}"
        assert first["interval"][0] <= first["score"] <= first["interval"][1]
    assert report["pipelines"] == {
        names[0]: [names[0]],
        names[1]: [str(noisy / "noisy-0" / "model-best")],
    }


def test_counts_give_what_the_scorer_gives_for_every_resample(noisy, gold):
    nlp, examples, _, _ = predict(str(noisy / "noisy-1" / "model-best"), gold)
    weights = next(draw_weights(len(examples), 40, 0))
    seen = 0
    for head in HEADS:
        component = nlp.get_pipe(f"bert_{head}")
        found = count(component, examples).scorer()(weights)
        expected = rescore(component, examples, weights)
        for key, values in found.items():
            np.testing.assert_allclose(values, expected[key], atol=1e-12)
            assert head == "qa" or len(set(values.round(6))) > 3
            seen += 1
    assert seen == 9


def test_intervals_are_those_of_paired_bootstrap(joint, noisy, gold):
    """From the counts of the documents that are written, over seeds too."""
    names = [str(joint), str(noisy)]
    found = compare(names, gold, n_resamples=200, seed=5)
    counts = [
        [
            [
                [
                    sum(
                        row[kind]
                        for row in doc["pipelines"][name][i]["counts"]["bert_nli"].values()
                    )
                    for kind in ("tp", "fn")
                ]
                for doc in found.documents()
            ]
            for i in range(len(found.runs[name]))
        ]
        for name in names
    ]
    expected = paired_bootstrap(
        *counts, lambda sums: sums[..., 0] / sums.sum(axis=-1), n_resamples=200, seed=5
    )
    first, second = found.report["scores"]["nli_acc"]["pipelines"]
    assert (first["score"], second["score"]) == pytest.approx(expected[:2])
    assert len(second["seeds"]) == 3 and second["score"] == pytest.approx(np.mean(second["seeds"]))
    assert (second["difference"], *second["difference_interval"]) == pytest.approx(expected[2:])


def test_what_is_printed(joint, noisy, gold):
    report = compare([str(joint), str(noisy)], gold, n_resamples=100).report
    assert report["mcnemar"] == []  # of several seeds
    first, second = format_comparison(report).splitlines()[2:4]
    assert re.search(r"entities P +\S+ +\d+\.\d\d +\d+\.\d\d to \d+\.\d\d *$", first)
    assert re.search(r"\d\.\d\d ± \d+\.\d\d \(3\) .* [-+]\d+\.\d\d +-\d+\.\d\d to ", second)
    lines = format_comparison(report, markdown=True).splitlines()
    assert lines[:2] == [
        "|  | pipeline | score | 95 % | difference | 95 % |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    assert all(line.count(" |") == 6 for line in lines[: 2 + 2 * 8])
    assert "12 documents, 100 resamples. Documents with different predictions:" in lines[-3]
    assert lines[-1] == "Intervals from so few documents (12) are too narrow."


def test_mcnemar(joint, noisy, gold):
    names = [str(joint), str(noisy / "noisy-0"), str(noisy / "noisy-1")]
    report = compare(names, gold, n_resamples=5).report
    categories, verdicts = report["mcnemar"]
    assert (categories["component"], verdicts["component"]) == ("bert_textcat", "bert_nli")
    accuracy = [row["score"] for row in report["scores"]["nli_acc"]["pipelines"]]
    for row, name, share in zip(verdicts["pipelines"], names[1:], accuracy[1:], strict=True):
        assert row["pipeline"] == name and row["decisions"] == 30
        first, this = row["only_first_right"], row["only_this_right"]
        assert (this - first) / 30 == pytest.approx(share - accuracy[0])
        assert row["p"] == mcnemar(first, this)
    assert categories["pipelines"][0]["decisions"] == 12
    assert "bert_nli" in format_comparison(report)


def test_files(joint, noisy, gold, tmp_path):
    words = ["compare", joint, noisy / "noisy-0", gold, "--resamples", 50, "--seed", 7]
    files = {"-o": "a/report.json", "--docs": "a/docs.jsonl", "--page": "b/page.html"}
    for option, name in files.items():
        words += [option, tmp_path / name]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'b/page.html'}: open it in a browser" in result.output
    report = json.loads((tmp_path / "a/report.json").read_text())
    names = [str(joint), str(noisy / "noisy-0")]
    expected = compare(names, gold, n_resamples=50, seed=7).report
    assert report == json.loads(srsly.json_dumps(expected))  # ten digits
    docs = list(srsly.read_jsonl(tmp_path / "a/docs.jsonl"))
    assert [doc["number"] for doc in docs] == list(range(1, 13))
    (mine,) = docs[2]["pipelines"][names[0]]
    assert mine["errors"] == {"entities": 1, "categories": 0, "verdicts": 0, "answers": 0}
    assert mine["counts"]["bert_ner"]["VESSEL"] == {"tp": 0, "fp": 1, "fn": 0}
    assert mine["counts"]["bert_qa"]["no answer"] == {"exact": 1.0, "f1": 1.0, "count": 1}
    differing = [doc["differ_in"] for doc in docs]
    assert report["differing"] == {
        task: sum(task in some for some in differing)
        for task in ("entities", "categories", "verdicts", "answers")
    }
    assert any(differing)


def test_the_page(two, tmp_path):
    found = two
    page = render_comparison(found, limit=100)
    assert not re.search(r"url\(|@import|https?:|src=", page)
    differing = [tasks for tasks in found.differing if tasks]
    assert page.count('<section class="doc"') == len(differing) > 0
    assert f"differ in {len(differing)} of 12 Docs; all {len(differing)} are shown" in page
    assert page.count("<h3>") == 2 * len(differing)
    views, console = look(page, tmp_path, (400, 1200))
    assert console == []
    for view, width in zip(views, (400, 1200), strict=True):
        assert width - 20 <= view["width"] <= width
        assert view["scrollWidth"] == view["width"] and view["wide"] == []
        assert view["all"] == view["again"] == len(differing) and view["labelled"]
        for task, n in found.report["differing"].items():
            assert view["filtered"][task] == n
        best = view["filtered"]["best-0"], view["filtered"]["best-1"]
        assert best[0] > best[1] and sum(best) < len(differing)
        # With all boxes: those of one group add Docs, and each group takes some away.
        assert view["any"] == sum(best)


def test_the_first_docs_alone(two):
    page = render_comparison(two, limit=1)
    assert page.count('<section class="doc"') == 1
    assert "; the first 1 are shown" in page


def test_who_makes_the_fewest_errors():
    results = [
        Result("", verdicts=[Judged("", [], right)] * n)
        for right, n in ((False, 2), (True, 3), (None, 1), (False, 1))
    ]
    assert fewest_errors(results, ["verdicts"]) == ["best-1", "best-2"]
    assert fewest_errors(results[1:3], ["verdicts"]) == []


# --- what can't be compared, or not by counts


def test_only_common_labels(rules, tmp_path):
    """Rules count nothing themselves; trained heads do, see `restricted`."""
    one, two = rules("one", Skagen="PLACE"), rules("two", Skagen="PLACE", Hull="PORT")
    docs = save(tmp_path / "a.spacy", [eg.reference for eg in make_examples(spacy.blank("xx"))])
    with pytest.raises(ValueError, match=r"no common score .* the labels PORT"):
        compare([one, two], docs)


def test_restricted(joint, noisy, gold, tmp_path):
    """A pipeline that lacks a label: entities and Docs of that label count for neither."""
    nlp = spacy.load(joint)
    nlp.get_pipe("bert_ner").cfg["labels"][0] = "CRAFT"
    nlp.get_pipe("bert_ner").cfg["labels"][1] = "DAY"
    nlp.to_disk(tmp_path / "other")
    labels = spacy.load(joint).get_pipe("bert_ner").labels
    report = compare([str(joint), str(tmp_path / "other")], gold, n_resamples=20).report
    first, second = report["scores"]["ents_f"]["pipelines"]
    common = labels[2]
    expected = evaluate(str(joint), gold)["ents_per_type"][common]["f"]
    assert first["score"] == second["score"] == pytest.approx(expected)
    others = ", ".join(sorted({*labels[:2], "CRAFT", "DAY"}))
    assert (
        f"entities F (ents_f): without the labels {others}, which not all pipelines have"
        in report["notes"][2]
    )
    assert second["difference_interval"] == (0, 0)


def test_a_score_that_one_lacks(joint, rules, gold):
    names = [str(joint), rules("one", Skagen="PLACE", Tuesday="DATE", Hull="VESSEL")]
    report = compare(names, gold, n_resamples=20).report
    assert list(report["scores"]) == ["ents_p", "ents_r", "ents_f"]
    assert "Not compared: QA F1 (qa_f1), which not all pipelines have." in report["notes"]
    assert list(report["differing"]) == ["entities"]


def test_a_score_of_another_component(rules, tmp_path):
    """It is computed by its own scorer for each resample."""
    nlp = spacy.blank("xx")
    nlp.add_pipe("test_letters")
    for name in ("one", "two"):
        nlp.to_disk(tmp_path / name)
    docs = [nlp.make_doc("a" * n) for n in range(1, 8)]
    names = [str(tmp_path / name) for name in ("one", "two")]
    found = compare(names, save(tmp_path / "a.spacy", docs), n_resamples=500)
    figure = found.runs[names[0]][0].figures["letters"]
    weights = np.concatenate(list(draw_weights(7, 500, 0)))
    medians = [np.median(np.repeat(np.arange(1, 8), row)) for row in weights]
    assert figure.resampled.tolist() == medians and figure.value == 4.0


def test_a_scorer_of_ones_own_is_asked_anew(joint, gold, monkeypatch):
    """One that gives the same for all Docs, but not for each resample, doesn't pass either."""
    nlp, examples, scores, _ = predict(str(joint), gold)
    head = nlp.get_pipe("bert_ner")

    def always(examples, **kwargs):
        return {**head.scorer(examples, **kwargs), "ents_f": scores["ents_f"]}

    monkeypatch.setattr(runs, "predict", lambda *_, **__: (nlp, examples, scores, 1.0))
    monkeypatch.setattr(head, "score", always)
    draw = partial(resample, n_resamples=30, seed=0)
    figures = runs.read_run("", gold, -1, draw).figures
    assert not figures["ents_f"].is_counted and figures["ents_p"].is_counted
    assert set(figures["ents_f"].resampled) == {scores["ents_f"]}


# --- what an argument names


def test_what_is_found(joint, noisy, tmp_path):
    every = [str(noisy / f"noisy-{i}" / "model-best") for i in range(3)]
    assert runs.find_pipelines(str(joint)) == [str(joint)]
    assert runs.find_pipelines(str(noisy)) == every
    assert runs.find_pipelines(f"{noisy}/noisy-[01]") == every[:2]
    assert runs.find_pipelines(f"{noisy}/noisy-2") == every[2:]
    for nothing in (tmp_path, tmp_path / "lost", f"{noisy}/other-*"):
        with pytest.raises(ValueError, match="There is no pipeline"):
            runs.find_pipelines(str(nothing))


def test_one_pipeline_is_not_enough(joint, gold):
    for words in ([joint, gold], [joint, joint, gold]):
        result = run("compare", *words)
        assert result.exit_code == 1
        assert "Pass at least two different ones, and the data last" in result.output
