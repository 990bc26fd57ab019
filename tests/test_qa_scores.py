"""Scores of answers, and the best threshold for no answer."""

import random

import numpy as np
import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from letter_pairs import NLP
from official_squad import normalize_answer, official
from spacy.training import Example
from torchmetrics.functional.text import squad

from spacy_bert_heads.heads.answers import best_threshold, compare_answers, score_qa

# --- scores of answers


WORDS = (
    "the a an The AN cat Cat. cat's U.S. theatre anna 1,000 3.5% naïve É “so” don't well-known — … "
    "船 港口 😀 Straße İzmir œuvre ( ) , ' the. .a thé a-b"
)


def draw_answer(rng: random.Random) -> str:
    words = rng.choices(WORDS.split(), k=rng.randint(0, 5))
    spaces = [" ", " ", " ", "  ", "\n", "\u00a0", "-", ""]
    return "".join(word + rng.choice(spaces) for word in words).strip()


def vary(rng: random.Random, text: str) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words[: rng.randint(0, len(words))] + rng.choices(WORDS.split(), k=1))


def entry(text: str, *others: str, no_answer: float = 0.0, alternatives=()) -> dict:
    """An entry of `doc._.answers`; its place does not matter here."""
    places = {"start_char": 0, "end_char": len(text), "start": 0, "end": 1}
    more = [*(entry(other) for other in others), *alternatives]
    found = {"score": 1.0, "no_answer_score": no_answer, "alternatives": more}
    return {"text": text, **places, **found}


def qa_examples(gold: list, predicted: list, *, nlp=NLP) -> list[Example]:
    """Examples of up to three questions."""
    examples = []
    for start in range(0, len(gold), 3):
        docs = [nlp.make_doc("a") for _ in range(2)]
        for doc, entries in zip(docs, (predicted, gold), strict=True):
            doc._.answers = entries[start : start + 3]
            doc._.questions = [f"Q{i}" for i in range(len(doc._.answers))]
        examples.append(Example(*docs))
    return examples


def draw_answers(n: int, seed: int) -> list[tuple[list[str], str]]:
    """Right answers, and a guess that often has something of one."""
    rng, drawn = random.Random(seed), []
    for _ in range(n):
        gold = [draw_answer(rng) for _ in range(rng.randint(1, 4))]
        kind = rng.random()
        if kind < 0.4:
            guess = vary(rng, rng.choice(gold))
        elif kind < 0.7:
            guess = f" {rng.choice(gold).upper()}. "
        else:
            guess = draw_answer(rng)
        drawn.append((gold, guess))
    return drawn


def test_answers_are_scored_as_torchmetrics_does():
    drawn = [
        (gold, guess)
        for gold, guess in draw_answers(3000, 0)
        if all(normalize_answer(text) for text in gold)
    ]
    assert len(drawn) > 1500
    figures, totals = set(), np.zeros(2)
    for gold, guess in drawn:
        theirs = squad(
            [{"prediction_text": guess, "id": "0"}],
            [{"answers": {"answer_start": [0] * len(gold), "text": gold}, "id": "0"}],
        )
        expected = theirs["exact_match"].item() / 100, theirs["f1"].item() / 100
        assert compare_answers(guess, gold) == pytest.approx(expected, abs=1e-6), (gold, guess)
        figures.add(round(expected[1], 3))
        totals += expected
    assert len(figures) > 10
    examples = qa_examples(
        [entry(*gold) for gold, _ in drawn], [entry(guess) for _, guess in drawn]
    )
    scores = score_qa(examples)
    assert scores["qa_exact"] == pytest.approx(totals[0] / len(drawn))
    assert scores["qa_f1"] == pytest.approx(totals[1] / len(drawn))
    assert 0.2 < scores["qa_exact"] < scores["qa_f1"] < 0.9


def test_answers_are_scored_as_the_official_script_does():
    drawn = draw_answers(3000, 1)
    drawn += [([""], guess) for _, guess in draw_answers(500, 2)]
    drawn += [(["", *gold], guess) for gold, guess in draw_answers(500, 3)]
    for gold, guess in drawn:
        assert compare_answers(guess, gold) == pytest.approx(official(gold, guess)), (gold, guess)
    assert {official(gold, guess) for gold, guess in drawn if gold == [""]} == {(0, 0), (1, 1)}


@pytest.mark.parametrize(
    "guess, gold, exact, f1",
    [
        ("the Cat.", ["cat"], 1, 1),
        ("", [""], 1, 1),
        ("cat", [""], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", [""], 1, 1),  # an article is no answer
        ("", ["the"], 1, 1),
        ("", ["the", "cat"], 0, 0),  # one of the two is an answer, and it is missed
        ("red cat", ["cat", "big red cat"], 0, 0.8),  # 2 of 2 and 2 of 3; 1 of 2 and 1 of 1 is 2/3
        ("cat cat", ["cat"], 0, 2 / 3),
        ("dog", ["cat", "bird"], 0, 0),
        ("1,000", ["1000"], 1, 1),
        ("well-known", ["wellknown"], 1, 1),
        ("“cat”", ["cat"], 0, 0),  # the script knows ASCII punctuation alone
    ],
)
def test_compare_answers_by_hand(guess, gold, exact, f1):
    assert compare_answers(guess, gold) == pytest.approx((exact, f1))
    assert official(gold, guess) == pytest.approx((exact, f1))


@pytest.mark.parametrize("lang", ["zh", "ja", "th"])
@pytest.mark.parametrize(
    "guess, gold, exact, f1",
    [
        ("北京大学", ["北京"], 0, 2 / 3),  # 2 of 4 and 2 of 2
        ("北京。", ["《北京》"], 1, 1),
        ("京北", ["北京"], 0, 1),  # the same characters in another order
        ("上海", ["北京"], 0, 0),
        ("上海", ["北京", "上海市"], 0, 0.8),  # 2 of 2 and 2 of 3
        ("北 京\n", ["北京"], 1, 1),
        ("人人", ["人"], 0, 2 / 3),
        ("¥3,000元", ["3000元"], 1, 1),
        ("the A", ["A"], 0, 0.4),  # characters: 1 of 4 and 1 of 1
        ("a", ["A"], 1, 1),
        ("。", [""], 1, 1),
        ("北京", [""], 0, 0),
        ("", ["北京"], 0, 0),
    ],
)
def test_chinese_is_compared_by_characters(lang, guess, gold, exact, f1):
    assert compare_answers(guess, gold, lang) == pytest.approx((exact, f1))


def test_the_language_is_the_references():
    gold, guess = [entry("北京")], [entry("北京大学")]
    assert score_qa(qa_examples(gold, guess))["qa_f1"] == 0
    found = score_qa(qa_examples(gold, guess, nlp=spacy.blank("zh")))
    assert found["qa_f1"] == pytest.approx(2 / 3)


def test_score_qa_by_hand():
    gold = [entry("red cat", "cat"), entry(""), None, entry(""), entry("dog")]
    guess = [entry("big cat"), entry(""), entry("x"), entry("cat"), entry("the dog")]
    assert score_qa(qa_examples(gold, guess)) == {
        "qa_exact": 2 / 4,
        "qa_f1": pytest.approx((2 / 3 + 1 + 0 + 1) / 4),
        "qa_per_type": {
            "answer": {"exact": 1 / 2, "f1": pytest.approx((2 / 3 + 1) / 2), "count": 2},
            "no answer": {"exact": 1 / 2, "f1": 1 / 2, "count": 2},
        },
    }
    nothing = {"qa_exact": None, "qa_f1": None, "qa_per_type": None}
    assert score_qa([]) == score_qa(qa_examples([None], [entry("x")])) == nothing
    only = score_qa(qa_examples([entry("cat")], [entry("cat")]))["qa_per_type"]
    assert only == {"answer": {"exact": 1.0, "f1": 1.0, "count": 1}}


def test_answers_are_matched_by_their_questions():
    (example,) = qa_examples([entry("cat"), entry("dog")], [entry("dog"), entry("cat")])
    example.predicted._.questions = ["Q1", "Q0"]
    assert score_qa([example])["qa_exact"] == 1.0
    example.predicted._.questions = ["Q1", "Q2"]
    with pytest.raises(ValueError, match="not asked of the prediction .'Q0'"):
        score_qa([example])


# --- the threshold


def question(no_answer: float, gold: str, span: str, answered: bool = True) -> tuple[dict, dict]:
    """A question whose best span is this, whether it was given as the answer or not."""
    if answered and span:
        return entry(gold), entry(span, no_answer=no_answer)
    rest = [entry(span)] if span else []
    return entry(gold), entry("", no_answer=no_answer, alternatives=rest)


def threshold_of(rows) -> float:
    return best_threshold(qa_examples([gold for gold, _ in rows], [guess for _, guess in rows]))


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([question(0.2, "cat", "cat"), question(0.6, "", "dog")], 0.4),
        ([question(0.6, "", "dog"), question(0.2, "cat", "cat")], 0.4),  # in any order
        ([question(0.2, "cat", "cat"), question(0.6, "dog", "dog")], 1.0),
        ([question(0.2, "", "cat"), question(0.6, "", "dog")], 0.0),
        (
            [question(0.2, "cat", "dog"), question(0.6, "cat", "dog")],
            1.0,
        ),  # all the same: always answer
        # One right above, one wrong below: answering both is as good as answering none.
        ([question(0.25, "", "x"), question(0.75, "cat", "cat")], 1.0),
        ([question(0.25, "", "x"), question(0.25, "", "x"), question(0.75, "cat", "cat")], 0.0),
        # Two with the same score can't be told apart.
        ([question(0.5, "cat", "cat"), question(0.5, "", "x"), question(0.75, "", "x")], 0.625),
        # Half an answer is better than none.
        ([question(0.25, "red cat", "cat"), question(0.5, "", "x")], 0.375),
        # Refused ones count by the span behind them.
        ([question(0.25, "cat", "cat", False), question(0.75, "", "x", False)], 0.5),
        ([question(1.0, "cat", ""), question(1.0, "", "")], 1.0),
    ],
)
def test_best_threshold_by_hand(rows, expected):
    assert threshold_of(rows) == expected


QUESTION = st.builds(
    question,
    st.integers(1, 64).map(lambda n: n / 64),
    # The F1 of "cat" is a half, so that sums are exact and ties are ties.
    st.sampled_from(["", "big red cat", "dog"]),
    st.sampled_from(["", "big red cat", "cat", "dog", "the"]),
    st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(QUESTION, min_size=1, max_size=12))
def test_best_threshold_against_all_thresholds(rows):
    def total(threshold: float) -> tuple[float, int]:
        """The F1 of all questions, and how many are answered."""
        f1, answered = 0.0, 0
        for gold, guess in rows:
            text = guess["text"] or "".join(one["text"] for one in guess["alternatives"][:1])
            given_one = guess["no_answer_score"] <= threshold
            f1 += official([gold["text"]], text if given_one else "")[1]
            answered += given_one
        return f1, answered

    scores = sorted({guess["no_answer_score"] for _, guess in rows})
    assert total(threshold_of(rows)) == max(map(total, [0.0, *scores, 1.0]))
