"""Bad input loses one Doc at most, and extremes have their results."""

import pytest
import spacy
from pair_stream import (
    SAILED,
    STREAM,
    assert_same,
    assert_slices,
    make_doc,
    make_stream,
    results,
    through_docbin,
)

from spacy_bert_heads.encoder import listener


@pytest.fixture(scope="module")
def trained(answering):
    return answering


@pytest.fixture(scope="module")
def saved(answering_folder):
    return answering_folder


@pytest.fixture(scope="module")
def expected(answering_results):
    return answering_results


@pytest.fixture
def keep_handler(trained):
    """The pipeline, whose error handler the test may change."""
    yield trained
    trained.set_error_handler(spacy.util.raise_error)


# --- bad input


BAD = [
    ("Who left?", r"must be a list of strings, not 'Who left\?'"),
    ({"q": "Who left?"}, "must be a list of strings"),
    (7, "must be a list of strings, not 7"),
    (["Who left?", 3], r"must be a list of strings, but \[1\] is 3"),
    (["Who left?", None], r"but \[1\] is None"),
    (["Who left?", ["When?"]], r"but \[1\] is \['When\?'\]"),
    (["Who left?", ""], r"\[1\] is empty. Remove it"),
    ([" \n\t"], r"\[0\] is empty. Remove it"),
    (["Who \ud83d left?"], r"\[0\] contains half of a surrogate pair(.|\n)*Decode"),
]


@pytest.mark.parametrize("name, pipe", [("questions", "bert_qa"), ("hypotheses", "bert_nli")])
@pytest.mark.parametrize("bad, match", BAD, ids=[ascii(bad)[:20] for bad, _ in BAD])
@pytest.mark.parametrize("by_context", [False, True])
@pytest.mark.filterwarnings("ignore:.*W028")
def test_bad_input_loses_one_doc(keep_handler, expected, name, pipe, bad, match, by_context):
    nlp, lost = keep_handler, []
    nlp.set_error_handler(
        lambda name, pipe, docs, error: lost.append((name, [d.text for d in docs], error))
    )
    stream = [(doc, {"id": i}) for i, doc in enumerate(make_stream(nlp))]
    doc, context = nlp.make_doc("It is bad"), {"id": "bad"}
    if by_context:
        context[name] = bad
    else:
        doc._.set(name, bad)
    stream.insert(2, (doc, context))
    found = list(nlp.pipe(stream, as_tuples=True))
    assert [context["id"] for _, context in found] == list(range(len(STREAM)))
    for (doc, _), alone in zip(found, expected, strict=True):
        assert_same(results(doc), alone)
    ((where, texts, error),) = lost
    assert (where, texts) == (pipe, ["It is bad"])
    with pytest.raises(ValueError, match=match):
        raise error
    source = f"the context's '{name}'" if by_context else f"doc._.{name}"
    assert str(error).startswith(source)


@pytest.mark.parametrize("bad", [bad for bad, _ in BAD], ids=[ascii(bad)[:20] for bad, _ in BAD])
def test_bad_input_raises_by_default(trained, expected, bad):
    doc = trained.make_doc("It is bad")
    doc._.questions = bad
    with pytest.raises(ValueError):
        list(trained.pipe([*make_stream(trained), doc]))
    with pytest.raises(ValueError):
        trained(doc)
    assert_same(results(trained(make_doc(trained, *STREAM[0]))), expected[0])


@pytest.mark.filterwarnings("ignore:.*W028")
def test_a_text_that_is_too_long_loses_itself_alone(keep_handler, expected):
    nlp, long = keep_handler, "who left " * 40  # more than half a window
    questions, hypotheses = STREAM[0][1:]
    more = make_doc(nlp, STREAM[0][0], [*questions, long], [*hypotheses, long])
    stream = make_stream(nlp)
    with pytest.warns(UserWarning, match="'who left who(.|\n)*Shorten it, or set a larger window"):
        *found, doc = nlp.pipe([*stream, more])
    for one, alone in zip(found, expected, strict=True):
        assert_same(results(one), alone)
    assert (doc._.answers.pop(), doc._.nli.pop()) == (None, None)
    assert doc._.questions.pop() == doc._.hypotheses.pop() == long
    assert_same(results(doc), expected[0])


# --- extremes


def count_calls(monkeypatch) -> list[int]:
    """The characters of each call of the encoder."""
    calls = []
    pack = listener.pack

    def count(model, pairs):
        calls.append(sum(len(d.text) * len(t) for d, t in zip(pairs.docs, pairs.texts)))  # noqa: B905
        return pack(model, pairs)

    monkeypatch.setattr(listener, "pack", count)
    return calls


def test_500_questions(trained, monkeypatch):
    """Not all at once, which would take their states' memory all at once."""
    text = "The crew used a pump in the engine room. " * 20
    questions = [f"Who left {i % 250}?" for i in range(500)]
    calls = count_calls(monkeypatch)
    doc = trained(make_doc(trained, text, questions))
    assert len(calls) > 1 and sum(calls) == 500 * len(text)
    assert max(calls) < 2**18
    assert doc._.questions == questions
    assert_slices(doc)
    for i in (0, 249):  # the same question, in another part
        assert_same(doc._.answers[i], doc._.answers[i + 250])
    one = trained(make_doc(trained, text, [questions[-1]]))
    assert_same(one._.answers[0], doc._.answers[-1])


def test_a_context_of_500_000_characters(trained, monkeypatch):
    monkeypatch.setattr(trained, "max_length", 10**6)
    text = ("the crew used pump in engine room " * 15_000)[:500_000]
    doc = trained(make_doc(trained, text, ["When?"]))
    assert len(doc.text) == 500_000
    assert_slices(doc)


@pytest.mark.parametrize("text", ["", "   ", "\n\t \r\n", "\u200b\u200d\ufeff"])
def test_nothing_to_read(trained, text):
    """There is no answer, and every hypothesis has a verdict."""
    doc = trained(make_doc(trained, text, ["Who left?", "When?"], ["She left."]))
    assert doc._.answers == [
        {"text": "", "start_char": 0, "end_char": 0, "start": 0, "end": 0, "score": 1.0,
         "no_answer_score": 1.0, "alternatives": []}
    ] * 2  # fmt: skip
    assert list(doc.spans["answers"]) == list(doc.spans["answers"].attrs["scores"]) == []
    assert sum(doc._.nli[0]["scores"].values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "😀 👩‍👩‍👧 👍🏽 🇩🇰",
        "e\u0301 \u200bAnna\u200d left\ufe0f",
        "\r\n Anna\r\nleft  \r\n\r\nSkagen ",
        "船在港口外搁浅了。",
        "\ufeffhello \u202eabc a\u00a0b \x00\x07",
        "x" * 3000,
    ],
)
def test_odd_texts(saved, text):
    nlp = spacy.load(saved, config={"components.bert_qa.no_answer_threshold": 1.0})
    # The text asks of itself too, if it is short enough.
    questions = ["Who left?", "😀 \u200b?", "\u200b", text[:20]]
    doc = nlp(make_doc(nlp, text, questions, [text[:30], "She\r\nleft."]))
    assert_slices(doc)
    assert all(answer["text"] for answer in doc._.answers)
    assert len(doc._.nli) == 2
    assert_slices(through_docbin(doc))


def test_the_hypothesis_is_the_premise(trained):
    doc = trained(make_doc(trained, SAILED, [SAILED], [SAILED, SAILED]))
    assert doc._.nli[0] == doc._.nli[1]
    assert list(doc._.nli[0]["scores"]) == ["contradiction", "entailment", "neutral"]
    assert_slices(doc)


def test_the_same_question_twice(trained, expected):
    doc = trained(make_doc(trained, SAILED, ["Who left?"] * 3))
    assert_same(doc._.answers, expected[0]["answers"][:1] * 3)
    assert results(doc)["spans"] == [(0, 2, "Q1"), (0, 2, "Q2"), (0, 2, "Q3")]


def test_a_question_of_half_a_window_fits(saved):
    trained = spacy.load(saved, config={"components.bert_qa.max_answer_length": 20})
    doc = trained(make_doc(trained, STREAM[2][0], ["the " * 32], ["the " * 32]))
    assert_slices(doc)
    with pytest.warns(UserWarning, match="32 wordpieces"):
        doc = trained(make_doc(trained, STREAM[2][0], ["the " * 33]))
    assert doc._.answers == [None]
