"""`bert calibrate`, `bert tune-thresholds`, `bert evaluate --calibration`, and abstaining."""

import json
import shutil
from contextlib import nullcontext

import pytest
import spacy
from commands import run
from joint import make_examples
from spacy.tokens import DocBin

from spacy_bert_heads.annotate.records import Columns
from spacy_bert_heads.calibration import run as calibration
from spacy_bert_heads.evaluate import evaluate
from spacy_bert_heads.files import DIGESTS, find_damage
from spacy_bert_heads.heads.free_text import as_setting
from spacy_bert_heads.pairs import make_answer, make_verdict

HEADS = ("bert_ner", "bert_textcat", "bert_nli", "bert_qa")


@pytest.fixture(scope="module")
def data(joint, tmp_path_factory):
    """What the pipeline knows by heart, and the same Docs with gold annotation that it gets
    wrong."""
    nlp = spacy.load(joint)
    docs = []
    for is_right in (True, True, False):
        for example in make_examples(nlp):
            doc = example.reference
            if not is_right:
                doc.set_ents([], default="outside")
                doc.cats = {label: 1 - value for label, value in doc.cats.items()}
                others = {"entailment": "neutral", "neutral": "contradiction"}
                labels = [others.get(one["label"], "entailment") for one in doc._.nli]
                doc._.nli = [make_verdict(label) for label in labels]
                doc._.answers = [
                    make_answer(doc) if one["text"] else make_answer(doc, 0, 3)
                    for one in doc._.answers
                ]
            docs.append(doc)
    path = tmp_path_factory.mktemp("data") / "dev.spacy"
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


@pytest.fixture
def copied_joint(joint, tmp_path):
    return shutil.copytree(joint, tmp_path / "copied")


def cfgs(folder) -> dict:
    return {name: json.loads((folder / name / "cfg").read_bytes()) for name in HEADS}


def annotated(nlp, data) -> list:
    docs = [example.predicted for example in make_examples(nlp)]
    return list(nlp.pipe(docs))


def decisions(docs) -> list:
    return [
        (
            [(ent.text, ent.label_) for ent in doc.ents],
            max(doc.cats, key=doc.cats.get),
            [one["label"] for one in doc._.nli],
            [one["text"] for one in doc._.answers],
        )
        for doc in docs
    ]


@pytest.mark.filterwarnings("ignore:.* claims on this data")
def test_calibrate_and_reset(joint, data, tmp_path):
    before = cfgs(joint)
    output = tmp_path / "calibrated"
    result = run("calibrate", joint, data, "-o", output)
    assert result.exit_code == 0, result.output
    assert cfgs(joint) == before
    nlp, new = spacy.load(joint), spacy.load(output)
    for name in HEADS:
        temperature = new.get_pipe(name).temperature
        # It was sure of everything, and a third is wrong.
        assert temperature > 1.5, name
        assert f"{name}" in result.output and f"{temperature:.3f}" in result.output
    old_docs, new_docs = annotated(nlp, data), annotated(new, data)
    assert decisions(old_docs) == decisions(new_docs)
    assert max(new_docs[0].cats.values()) < max(old_docs[0].cats.values())

    # Overridden when it is loaded, to 1 too, as a threshold is.
    config = {"components.bert_textcat.temperature": 1.0}
    raw = annotated(spacy.load(output, config=config), data)
    assert raw[0].cats == pytest.approx(old_docs[0].cats, abs=1e-5)
    # Its training goes on as before: losses know of no temperature.
    for pipeline in (nlp, new):
        pipeline.get_pipe("bert_textcat").cfg["label_smoothing"] = 0.0
    examples = make_examples(nlp)
    logits = nlp.get_pipe("bert_textcat").predict([eg.predicted for eg in examples])
    losses = [one.get_pipe("bert_textcat").get_loss(examples, logits)[0] for one in (nlp, new)]
    assert losses[0] == losses[1]

    result = run("calibrate", output, "--reset", "--force", "--heads", "bert_ner,bert_qa")
    assert result.exit_code == 0, result.output
    found = {name: spacy.load(output).get_pipe(name).temperature for name in HEADS}
    assert found["bert_ner"] == found["bert_qa"] == 1.0 < found["bert_nli"]


@pytest.mark.parametrize("allowed", [0, 1, 2, 3])
def test_a_crash_leaves_a_pipeline_that_loads(copied_joint, allowed, monkeypatch):
    """Whichever file is the last that is written, a head is as it was or as it is to be."""
    head = spacy.load(copied_joint).get_pipe("bert_ner")
    head.set_temperature(2.5)
    written, left = calibration.replace_file, [allowed]

    def write(path, content):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        written(path, content)

    monkeypatch.setattr(calibration, "replace_file", write)
    with nullcontext() if allowed == 3 else pytest.raises(KeyboardInterrupt):
        calibration.replace_settings(head, copied_joint / "bert_ner")
    assert find_damage(copied_joint / "bert_ner") is None
    digests = json.loads((copied_joint / "bert_ner" / DIGESTS).read_bytes())
    assert list(digests) == (["model"] if allowed in (1, 2) else ["cfg", "model"])
    found = spacy.load(copied_joint).get_pipe("bert_ner").temperature
    assert found == (1.0 if allowed < 2 else 2.5)


@pytest.mark.filterwarnings("ignore:.* claims on this data")
def test_in_place_changes_nothing_else(copied_joint, data):
    def files() -> dict:
        return {p: p.read_bytes() for p in copied_joint.rglob("*") if p.is_file()}

    before = files()
    result = run("calibrate", copied_joint, data, "--force", "--heads", "bert_textcat")
    assert result.exit_code == 0, result.output
    after = files()
    changed = {path for path in after if after[path] != before.get(path)}
    assert after.keys() == before.keys()
    own = copied_joint / "bert_textcat"
    assert changed == {own / "cfg", own / DIGESTS}
    spacy.load(copied_joint)


@pytest.mark.parametrize(
    "args, message",
    [
        (["{model}", "{data}"], "No output is set. Add --output FOLDER for a new pipeline, or"),
        (["{model}", "-o", "{out}"], "The data to calibrate on is missing"),
        (["{model}", "{data}", "-o", "{model}"], "is the pipeline itself. Use --force instead"),
        (["{model}", "{data}", "-o", "{out}", "--heads", "ner"], "'ner' is not a head with prob"),
        (["nowhere", "{data}", "-o", "{out}"], "There is no pipeline 'nowhere'"),
        (["{model}", "nowhere.spacy", "-o", "{out}"], "nowhere.spacy"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(joint, data, tmp_path, args, message):
    places = {"model": joint, "data": data, "out": tmp_path / "out"}
    result = run("calibrate", *(arg.format(**places) for arg in args))
    assert result.exit_code == 1
    assert message in result.output and len(result.output.splitlines()) == 1


def test_a_head_without_errors_stays(joint, data, tmp_path):
    """It takes no other with it."""
    nlp = spacy.load(joint)
    docs = list(DocBin().from_disk(data).get_docs(nlp.vocab))
    for doc in docs[4:]:
        doc.cats, doc._.nli, doc._.answers = docs[4 - len(docs)].cats, [], []
    known = [example.reference for example in make_examples(nlp)]
    for doc, right in zip(docs[4:], known, strict=True):
        doc.cats = right.cats
    path = tmp_path / "some.spacy"
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    with pytest.warns(
        UserWarning, match="bert_textcat has no errors .* Its temperature is not changed"
    ):
        fitted = calibration.calibrate(str(joint), path, tmp_path / "new")
    assert list(fitted) == ["bert_ner"]
    assert spacy.load(tmp_path / "new").get_pipe("bert_textcat").temperature == 1.0
    with pytest.raises(ValueError, match="bert_qa has no errors"):
        calibration.calibrate(str(joint), path, tmp_path / "new", names=["bert_qa"], force=True)


def test_one_goal(joint, data):
    for goals in ([], ["--precision", 0.9, "--f"]):
        result = run("tune-thresholds", joint, data, *goals, "--force")
        assert result.exit_code == 1 and "Set exactly one of" in result.output
    result = run("tune-thresholds", joint, data, "--precision", 95, "--force")
    assert result.exit_code == 1 and "The goal is precision 95" in result.output


def test_thresholds_below_which_heads_abstain(joint, data, tmp_path):
    output = tmp_path / "tuned"
    result = run("tune-thresholds", joint, data, "--precision", 0.95, "-o", output)
    assert result.exit_code == 0, result.output
    assert "does not reach the goal" in result.output  # a third is wrong whatever the probability
    nlp = spacy.load(output)
    docs = annotated(nlp, data)
    assert [len(doc.ents) for doc in docs] == [0, 0]
    assert docs[0].cats == {}
    assert [one["label"] for one in docs[0]._.nli] == ["", "", ""]
    before = annotated(spacy.load(joint), data)
    for old, new in zip(before[0]._.answers, docs[0]._.answers, strict=True):
        assert new["text"] == ""
        if old["text"]:  # it stays among the alternatives
            assert new["alternatives"][0] == {**old, "alternatives": []}
            assert new["score"] == new["no_answer_score"] == old["no_answer_score"]
    left_out = docs[0]._.abstained
    assert {entry["component"] for entry in left_out} == {*HEADS}
    entity = next(entry for entry in left_out if entry["component"] == "bert_ner")
    first = before[0].ents[0]
    assert entity == {
        "component": "bert_ner",
        "label": first.label_,
        "score": pytest.approx(first._.ent_score),
        "start_char": first.start_char,
        "end_char": first.end_char,
    }
    assert [entry["asked"] for entry in left_out if entry["component"] == "bert_nli"] == [
        "She left.",
        "She sank.",
        "It rained.",
    ]
    # A Doc that is annotated again without thresholds needs no review any more.
    for name in HEADS:
        nlp.get_pipe(name).cfg.update(nlp.get_pipe(name).no_thresholds)
    assert nlp(docs[0])._.abstained == [] and docs[0].ents


def test_a_threshold_for_all_entities_gives_way_to_those_of_labels(joint, data, tmp_path):
    """Scores with the tuned pipeline are those of the table."""
    careful, tuned = tmp_path / "careful", tmp_path / "tuned"
    spacy.load(joint, config={"components.bert_ner.threshold": 1.0}).to_disk(careful)
    assert evaluate(str(careful), data)["ents_r"] == 0.0
    rows = calibration.tune_thresholds(str(careful), data, "recall", 1.0, tuned, names=["bert_ner"])
    assert spacy.load(tuned).get_pipe("bert_ner").cfg["threshold"] == 0.0
    found = evaluate(str(tuned), data)["ents_per_type"]
    assert found == {
        row.label: pytest.approx({"p": row.precision, "r": row.recall, "f": row.f})
        for row in rows["bert_ner"]
    }
    assert {row.recall for row in rows["bert_ner"]} == {1.0}


def test_settings_at_load_win_and_are_saved(joint, tmp_path):
    config = {
        "components.bert_ner.thresholds": as_setting({"VESSEL": 0.9}),
        "components.bert_qa.thresholds": as_setting({"no answer": 0.5}),
        "components.bert_textcat.temperature": 3.0,
    }
    spacy.load(joint, config=config).to_disk(tmp_path / "set")
    nlp = spacy.load(tmp_path / "set")
    assert nlp.get_pipe("bert_ner").cfg["thresholds"] == {"VESSEL": 0.9}
    assert nlp.get_pipe("bert_qa").cfg["thresholds"] == {"no answer": 0.5}
    assert nlp.get_pipe("bert_textcat").temperature == 3.0
    for key, value, message in (
        ("temperature", 0, "temperature of bert_ner is 0; it must be above 0"),
        ("thresholds", '{"VESSEL": 9}', r"thresholds\['VESSEL'\] of bert_ner is 9;"),
    ):
        with pytest.raises(ValueError, match=message):
            spacy.load(joint, config={f"components.bert_ner.{key}": value})


def test_annotate_says_what_needs_review(joint, nlp):
    assert "review" not in Columns.of(nlp).labels
    before = Columns.of(nlp).read(annotated(nlp, None)[0])
    nlp.get_pipe("bert_ner").cfg["thresholds"] = {"VESSEL": 1.0}
    columns = Columns.of(nlp)
    assert list(columns.labels) == [*before, "review"]
    sailed, burned = annotated(nlp, None)
    rows = [columns.read(doc) for doc in (sailed, burned)]
    assert [row["review"] for row in rows] == [
        any(ent["label"] == "VESSEL" for ent in Columns.of(spacy.load(joint)).read(doc)["entities"])
        for doc in annotated(spacy.load(joint), None)
    ]
    assert rows[0]["review"] and "VESSEL" not in {ent["label"] for ent in rows[0]["entities"]}
    pytest.importorskip("pyarrow")
    from spacy_bert_heads.annotate.outputs import annotation_schema

    assert str(annotation_schema(columns).field("review").type) == "bool"


def test_evaluate_shows_probabilities(joint, data, tmp_path):
    folder, report = tmp_path / "figures", tmp_path / "report.json"
    result = run("evaluate", joint, data, "--calibration", folder, "-o", report)
    assert result.exit_code == 0, result.output
    figures = json.loads(report.read_bytes())["calibration"]
    assert json.loads((folder / "calibration.json").read_bytes()) == figures
    assert set(figures) == {*HEADS}
    for name, row in figures.items():
        assert (folder / f"{name}.png").stat().st_size > 10_000
        assert row["calibration_error"] > row["simulated_error_95"]  # sure, and often wrong
        assert f"{row['nll']:.4f}" in result.output
    # 6 texts, each third of them wrong.
    assert (figures["bert_textcat"]["claims"], figures["bert_textcat"]["errors"]) == (6, 2)
    plain = run("evaluate", joint, data)
    assert "calibration" not in plain.output and "NLL" not in plain.output
