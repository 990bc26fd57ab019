"""Where the threshold for no answer is set, and where it stays."""

import pytest
import spacy
from official_squad import official
from pair_examples import DATA, ask, build, make_examples, make_head, train
from spacy.util import load_model_from_config

ANSWERED = [
    ("Anna left Skagen", {"questions": {"Who left?": "Anna", "Where from?": "Skagen"}}),
    ("The boat burned", {"questions": {"What burned?": "The boat"}}),
]


def best_by_hand(nlp, data=DATA) -> float:
    """The best F1 of all thresholds, answering every question to see."""
    rows = []
    for text, gold in data:
        doc = ask(nlp, text, questions=list(gold["questions"]))
        for right, found in zip(gold["questions"].values(), doc._.answers, strict=True):
            span = found if found["text"] else found["alternatives"][0]
            rows.append((found["no_answer_score"], span["text"], right))
    thresholds = sorted({0.0, 1.0, *(row[0] for row in rows)})
    f1 = [
        sum(official([right], text if none <= t else "")[1] for none, text, right in rows)
        for t in thresholds
    ]
    return max(f1) / len(rows)


def threshold_of(nlp) -> float:
    return nlp.get_pipe("bert_qa").no_answer_threshold


def test_where_the_threshold_starts(folders):
    assert threshold_of(build(folders("bert"), "qa")) == 0.5
    assert threshold_of(build(folders("bert"), "qa", data=ANSWERED)) == 1.0
    fixed = build(folders("bert"), "qa", data=ANSWERED, no_answer_threshold=0.25)
    assert threshold_of(fixed) == 0.25


def test_the_first_evaluation_after_an_update_sets_the_threshold(folders, tmp_path):
    nlp = build(folders("bert"), "qa")
    qa, examples = nlp.get_pipe("bert_qa"), make_examples(nlp)
    nlp.evaluate(examples)
    assert threshold_of(nlp) == 0.5  # nothing was learned yet
    train(nlp, steps=12)
    best = best_by_hand(nlp)
    before = nlp.evaluate(examples)["qa_f1"]  # with the threshold that was in force
    tuned = threshold_of(nlp)
    assert tuned != 0.5
    assert qa.cfg["no_answer_threshold"] == tuned
    after = nlp.evaluate(examples)["qa_f1"]
    assert after == pytest.approx(best)
    assert after >= before
    assert threshold_of(nlp) == tuned

    # It is kept with the pipeline, and no evaluation touches it before the next update.
    nlp.to_disk(tmp_path)
    from_bytes = load_model_from_config(nlp.config).from_bytes(nlp.to_bytes())
    for one in (spacy.load(tmp_path), from_bytes, nlp):
        assert threshold_of(one) == pytest.approx(tuned, abs=1e-9)
        assert one.evaluate(make_examples(one))["qa_f1"] == after
        one.evaluate(make_examples(one, ANSWERED))
        assert threshold_of(one) == pytest.approx(tuned, abs=1e-9)
        assert one.get_pipe("bert_qa").cfg["no_answer_threshold"] == threshold_of(one)
    train(nlp, ANSWERED, steps=20)
    nlp.evaluate(make_examples(nlp, ANSWERED))
    assert threshold_of(nlp) == 1.0  # every question has an answer


@pytest.mark.parametrize("threshold", [1 - 1e-9, 1e-9, 0.333333333])
def test_a_threshold_is_kept_to_the_last_digit(folders, tmp_path, threshold):
    nlp = build(folders("bert"), "qa")
    nlp.get_pipe("bert_qa").cfg["no_answer_threshold"] = threshold
    nlp.to_disk(tmp_path)
    assert threshold_of(spacy.load(tmp_path)) == threshold


def test_a_fixed_threshold_stays(folders, tmp_path):
    nlp = build(folders("bert"), "qa", no_answer_threshold=0.25)
    train(nlp, steps=2)
    nlp.evaluate(make_examples(nlp))
    assert threshold_of(nlp) == 0.25
    nlp.to_disk(tmp_path)
    assert threshold_of(spacy.load(tmp_path)) == 0.25


def test_an_evaluation_without_questions_leaves_the_threshold(folders):
    nlp = build(folders("bert"), "qa", data=ANSWERED)
    train(nlp, ANSWERED, steps=1)
    nlp.evaluate(make_examples(nlp, [("Anna left", {})]))
    assert threshold_of(nlp) == 1.0


@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match="must be a probability"):
        make_head("qa", no_answer_threshold=threshold)
