"""Counts of single Docs add up to what the scorers give for all of them."""

import numpy as np
import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.scorer import Scorer, get_ner_prf
from spacy.tokens import Doc, Span
from spacy.training import Example

from spacy_bert_heads.heads.answers import score_qa, tally_answers
from spacy_bert_heads.heads.find import register_extensions
from spacy_bert_heads.heads.ner import BertNER
from spacy_bert_heads.heads.nli import BertNLI, score_nli
from spacy_bert_heads.heads.qa import BertQA
from spacy_bert_heads.heads.tagger import BertTagger
from spacy_bert_heads.heads.tallies import count_decisions, match_entities, match_tags
from spacy_bert_heads.heads.textcat import BertTextCat
from spacy_bert_heads.pairs import make_answer, make_verdict

VOCAB = spacy.blank("xx").vocab
LABELS = ["A", "B", "C"]
register_extensions()


def total(tallies, labels=()):
    """Sums of tallies, in the shape (n_labels,)."""
    columns = list(dict.fromkeys([*labels, *(label for tally in tallies for label in tally)]))
    kinds = {kind for tally in tallies for row in tally.values() for kind in row}
    return {
        kind: np.asarray(
            [sum(t[c][kind] for t in tallies if c in t) for c in columns], dtype=np.float64
        )
        for kind in kinds
    }


def same(found: dict, expected: dict) -> bool:
    return all(
        np.isnan(found[key])
        if expected[key] is None
        else found[key] == pytest.approx(expected[key])
        for key in found
        if key in expected
    )


@st.composite
def texts(draw):
    """A text of ten letters, cut into tokens twice."""
    docs = []
    for _ in range(2):
        cuts = draw(st.lists(st.booleans(), min_size=9, max_size=9))
        words = "".join(
            c + (" " if cut else "") for c, cut in zip("abcdefghij", [*cuts, 0], strict=True)
        ).split()
        docs.append(Doc(VOCAB, words=words, spaces=[False] * len(words)))
    return docs


@st.composite
def with_entities(draw):
    gold, predicted = draw(texts())
    for doc in (gold, predicted):
        bounds = sorted(draw(st.lists(st.integers(0, len(doc)), max_size=6)))
        spans = [
            Span(doc, a, b, draw(st.sampled_from(LABELS)))
            for a, b in zip(bounds[::2], bounds[1::2], strict=False)
            if a < b
        ]
        default = draw(st.sampled_from(["outside", "missing"])) if doc is gold else "outside"
        doc.set_ents(spans, default=default)
    return Example(predicted, gold)


@st.composite
def with_tags(draw):
    gold, predicted = draw(texts())
    for doc in (gold, predicted):
        for token in doc:
            token.tag_ = draw(st.sampled_from(["", *LABELS]))
    return Example(predicted, gold)


@given(st.lists(with_entities(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_entities(examples):
    expected = get_ner_prf(examples)
    counts = total([count_decisions(match_entities(eg)) for eg in examples])
    if expected["ents_f"] is None:
        assert not counts
    else:
        assert same(BertNER.scores_of(counts), expected)


@given(st.lists(with_tags(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_tags(examples):
    expected = Scorer.score_token_attr(examples, "tag")
    counts = total([count_decisions(match_tags(eg, lambda token: token.tag_)) for eg in examples])
    if expected["tag_acc"] is None:
        assert not counts
    else:
        assert same(BertTagger.scores_of(counts), expected)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1))
@settings(deadline=None)
def test_categories(pairs):
    examples = []
    for true, guess in pairs:
        gold, predicted = Doc(VOCAB, words=["a"]), Doc(VOCAB, words=["a"])
        gold.cats = {label: float(label == true) for label in LABELS}
        predicted.cats = {label: 0.5 * (label == guess) for label in LABELS}
        examples.append(Example(predicted, gold))
    expected = Scorer.score_cats(examples, "cats", labels=LABELS, multi_label=False)
    counts = total([count_decisions([pair]) for pair in pairs], LABELS)
    counts["occurs"] = np.isin(LABELS, pairs)
    assert same(BertTextCat.scores_of(counts), {"cats_score": expected["cats_macro_f"]})


@given(
    st.lists(
        st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None])), min_size=1, max_size=9
    )
)
@settings(deadline=None)
def test_verdicts(pairs):
    gold, predicted = Doc(VOCAB, words=["a"]), Doc(VOCAB, words=["a"])
    gold._.hypotheses = predicted._.hypotheses = [f"number {i}" for i in range(len(pairs))]
    gold._.nli = [make_verdict(true) for true, _ in pairs]
    predicted._.nli = [guess and make_verdict(guess, {guess: 1.0}) for _, guess in pairs]
    head = BertNLI.__new__(BertNLI)
    head.cfg = {"labels": LABELS}
    decisions = head.decisions(Example(predicted, gold))
    assert decisions == [(true, guess or "") for true, guess in pairs]
    expected = score_nli([Example(predicted, gold)])
    assert same(BertNLI.scores_of(total([count_decisions(decisions)])), expected)


def test_answers():
    doc = Doc(VOCAB, words=["the", "coaster", "Hanne", "Lind", "left", "Hull"])
    gold, predicted = doc.copy(), doc.copy()
    gold._.questions = predicted._.questions = ["a", "b", "c", "d"]
    gold._.answers = [make_answer(gold, 12, 22), make_answer(gold), None, make_answer(gold, 28, 32)]
    predicted._.answers = [make_answer(doc, 4, 22), make_answer(doc), make_answer(doc), None]
    example = Example(predicted, gold)
    assert tally_answers(example) == {
        "answer": {"exact": 0.0, "f1": 0.8, "count": 2},
        "no answer": {"exact": 1.0, "f1": 1.0, "count": 1},
    }
    expected = score_qa([example, example])
    assert (expected["qa_exact"], expected["qa_f1"]) == pytest.approx((1 / 3, 0.6))
    assert same(BertQA.scores_of(total([tally_answers(example)] * 2)), expected)


def test_undefined_scores():
    nothing = {kind: np.zeros((2, 3)) for kind in ("tp", "fp", "fn")}
    assert np.isnan(BertNER.scores_of(nothing)["ents_f"]).all()
    assert np.isnan(BertNLI.scores_of(nothing)["nli_acc"]).all()
    nothing["occurs"] = np.zeros(3, dtype=bool)
    assert BertTextCat.scores_of(nothing)["cats_score"].tolist() == [0, 0]  # as spaCy has it
