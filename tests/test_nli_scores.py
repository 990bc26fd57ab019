"""Scores of verdicts."""

import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from letter_pairs import NLP
from spacy.training import Example

from spacy_bert_heads.heads.nli import score_nli
from spacy_bert_heads.pairs import make_verdict

LABELS = ["entailment", "neutral", "contradiction"]


def nli_examples(gold: list, predicted: list) -> list[Example]:
    """Examples of up to four hypotheses."""
    examples = []
    for start in range(0, len(gold), 4):
        docs = [NLP.make_doc("a") for _ in range(2)]
        for doc, labels in zip(docs, (predicted, gold), strict=True):
            labels = labels[start : start + 4]
            doc._.nli = [label and make_verdict(label) for label in labels]
            doc._.hypotheses = [f"H{i}" for i in range(len(labels))]
        examples.append(Example(*docs))
    return examples


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([*LABELS, None]), st.sampled_from([*LABELS, "other"])),
        max_size=20,
    )
)
def test_verdicts_are_scored_as_sklearn_does(rows):
    gold, guess = [true for true, _ in rows], [guess for _, guess in rows]
    scores = score_nli(nli_examples(gold, guess))
    annotated = [(true, guess) for true, guess in rows if true is not None]
    if not annotated:
        assert scores == {"nli_acc": None, "nli_macro_f": None, "nli_f_per_type": None}
        return
    true, guess = zip(*annotated, strict=True)
    labels = sorted({*true, *guess})
    p, r, f, _ = sklearn.metrics.precision_recall_fscore_support(
        true, guess, labels=labels, zero_division=0
    )
    assert scores["nli_acc"] == pytest.approx(sklearn.metrics.accuracy_score(true, guess))
    assert scores["nli_macro_f"] == pytest.approx(
        sklearn.metrics.f1_score(true, guess, average="macro", zero_division=0)
    )
    assert list(scores["nli_f_per_type"]) == labels
    for i, label in enumerate(labels):
        expected = {"p": p[i], "r": r[i], "f": f[i]}
        assert scores["nli_f_per_type"][label] == pytest.approx(expected)


def test_score_nli_by_hand():
    gold = ["entailment", "entailment", "neutral", None]
    guess = ["entailment", "neutral", "neutral", "entailment"]
    assert score_nli(nli_examples(gold, guess)) == {
        "nli_acc": pytest.approx(2 / 3),
        "nli_macro_f": pytest.approx(2 / 3),
        "nli_f_per_type": {
            "entailment": pytest.approx({"p": 1.0, "r": 0.5, "f": 2 / 3}),
            "neutral": pytest.approx({"p": 0.5, "r": 1.0, "f": 2 / 3}),
        },
    }


def test_hypotheses_that_were_not_asked():
    (example,) = nli_examples(["neutral"], ["neutral"])
    example.predicted._.hypotheses = ["another"]
    with pytest.raises(ValueError, match="not asked of the prediction .'H0'"):
        score_nli([example])
