"""Multiple choice and numbers for pairs, from the formats that data sets have."""

import pytest
from conversion import jsonl, run, samples

from spacy_bert_heads.pairs import make_choice, make_verdict

pytestmark = pytest.mark.usefixtures("share_blank_pipelines")


def choices_of(docs) -> list[tuple]:
    return [
        (doc.text, choice["question"], choice["options"], chosen and chosen["answer"])
        for doc in docs
        for choice, chosen in zip(doc._.choices, doc._.chosen, strict=True)
    ]


def test_own_jsonl(tmp_path):
    choices = [
        {"question": "Why?", "options": ["A", "B"], "answer": 1},
        {"options": ["C", "D", "E"], "answer": "D"},
        {"question": None, "options": ["F", "G"]},
    ]
    docs, report = run(tmp_path, "a.jsonl", jsonl({"text": "It burned.", "choices": choices}))
    assert choices_of(docs) == [
        ("It burned.", "Why?", ["A", "B"], 1),
        ("It burned.", "", ["C", "D", "E"], 1),
        ("It burned.", "", ["F", "G"], None),
    ]
    assert docs[0]._.chosen[0] == make_choice(1)
    assert report.pairs["choices"] == 3
    assert report.kinds == {"choices": 1}


def test_copa(tmp_path):
    rows = [
        {"premise": "I slept.", "choice1": "I was tired.", "choice2": "I ran."}
        | {"question": question, "label": label, "idx": 1}
        for question, label in (("cause", 0), ("effect", 1))
    ]
    docs, report = run(tmp_path, "a.jsonl", jsonl(*rows))
    assert choices_of(docs) == [
        ("I slept.", "What was the cause of this?", ["I was tired.", "I ran."], 0),
        ("I slept.", "What happened as a result?", ["I was tired.", "I ran."], 1),
    ]
    assert (report.docs, report.kept, dict(report.unread)) == (1, 2, {"idx": 1})


def test_codah(tmp_path):
    lines = ['n\tThe "dog" can\'t fly. It\tflies.\tbarks.\ttries.\tis 2.\t2\n'] * 2
    columns = {"text_column": "2", "option_columns": ("3", "4", "5", "6"), "label_column": "7"}
    docs, report = run(tmp_path, "a.tsv", "".join(lines), **columns)
    expected = ('The "dog" can\'t fly. It', "", ["flies.", "barks.", "tries.", "is 2."], 2)
    assert choices_of(docs) == [expected] * 2
    assert set(report.unread) == {"1"}


def test_swag_hellaswag_and_race(tmp_path):
    swag = {"sent1": "He sits.", "sent2": "He", "ending0": "stands.", "ending1": "flies."}
    hellaswag = {"ctx": "A man", "endings": ["sits.", "flies."], "label": "1"}
    race = {"article": "Ann ran.", "question": "Who?", "options": ["Ann", "Bob"], "answer": "B"}
    unknown = {"article": "Ann ran.", "options": ["Ann", "Bob"], "label": -1}
    docs, _ = run(tmp_path, "a.jsonl", jsonl({**swag, "label": 0}, hellaswag, race, unknown))
    assert choices_of(docs) == [
        ("He sits.", "He", ["stands.", "flies."], 0),
        ("A man", "", ["sits.", "flies."], 1),
        ("Ann ran.", "Who?", ["Ann", "Bob"], 1),
        ("Ann ran.", "", ["Ann", "Bob"], None),
    ]


def test_options_that_are_counted_from_1(tmp_path):
    """As Winogrande's. Without the last option, or with a 0, they are counted from 0."""
    row = {"sentence": "Ann saw Eve.", "option1": "Ann", "option2": "Eve"}
    for numbers, expected in ((("1", "2"), [0, 1]), ((1, 2), [0, 1]), ((0, 1), [0, 1]), ([1], [1])):
        content = jsonl(*({**row, "answer": number} for number in numbers))
        docs, report = run(tmp_path, "a.jsonl", content)
        assert [answer for *_, answer in choices_of(docs)] == expected
        assert bool(report.notes.counts) == (len(numbers) > 1 and 0 not in numbers)
    docs, report = run(tmp_path, "a.jsonl", jsonl(*({**row, "answer": n} for n in (0, 2))))
    assert [answer for *_, answer in choices_of(docs)] == [0] and report.rejected == 1


def test_wrong_choices_are_rejected(tmp_path):
    good = {"text": "a", "choices": [{"options": ["A", "B"], "answer": 0}]}
    rows = [
        {"text": "a", "choices": [{"options": ["A", "B"], "answer": 2}]},
        {"text": "a", "choices": [{"options": ["A"], "answer": 0}]},
        {"premise": "a", "choice1": "A", "choice2": "", "label": 0},
        {"premise": "a", "choice1": "A", "choice2": "B", "label": "C"},
    ]
    docs, report = run(tmp_path, "a.jsonl", jsonl(good, *rows))
    assert len(docs) == 1
    assert report.reasons == {
        "answer is not the number (from 0), letter or text of an option": 2,
        "choices[0] needs at least two options, not ['A'].": 1,
        "no option": 1,
    }
    assert (
        "a.jsonl:2: answer is not the number (from 0), letter or text of an option: 2"
        in samples(report)
    )


STSB = "genre\tsentence1\tsentence2\tscore\nnews\tA dog runs.\tA dog is running.\t4.75\n"
SICK = (
    "sentence_A\tsentence_B\trelatedness_score\tentailment_judgment\nA dog.\tA cat.\t2.5\tNEUTRAL\n"
)


def test_similarity_of_stsb(tmp_path):
    docs, report = run(tmp_path, "a.tsv", STSB)
    assert docs[0]._.others == ["A dog is running."]
    assert docs[0]._.similarities == [{"score": 4.75}]
    assert not docs[0]._.hypotheses
    assert report.kinds == {"similarities": 1}
    assert report.labels == {"score": 1}


def test_sick_has_verdicts_and_numbers_if_they_are_asked_for(tmp_path):
    docs, _ = run(tmp_path, "a.txt", SICK, score_column="relatedness_score")
    assert docs[0]._.nli == [make_verdict("neutral")]
    assert docs[0]._.similarities == [{"relatedness_score": 2.5}]
    docs, report = run(tmp_path, "a.txt", SICK)
    assert docs[0]._.nli == [make_verdict("neutral")]
    assert not docs[0]._.others
    assert dict(report.unread) == {"relatedness_score": 1}


def test_wrong_numbers_are_rejected(tmp_path):
    docs, report = run(tmp_path, "a.tsv", STSB + "news\tA\tB\tmuch\nnews\tA\tB\t\n")
    assert len(docs) == 1
    assert report.reasons == {"not a finite number": 2}
    header = "sentence1\tsentence2\tvalue\n"
    with pytest.raises(ValueError, match="no column for the label, name it with --label-column: "):
        run(tmp_path, "a.tsv", f"{header}A\tB\t1\n")
    with pytest.raises(ValueError, match="no column for the score, name it with --score-column"):
        run(tmp_path, "a.tsv", "sentence1\tsentence2\tlabel\nA\tB\tyes\n", score_column="x")


def test_own_jsonl_of_numbers(tmp_path):
    rows = [
        {"text": "B", "score": 4},
        {"text": "C", "scores": {"a": 0.5, "b": None}},
        {"text": "D"},
    ]
    docs, _ = run(tmp_path, "a.jsonl", jsonl({"text": "A", "similarities": rows}))
    assert docs[0]._.others == ["B", "C", "D"]
    assert docs[0]._.similarities == [{"score": 4.0}, {"a": 0.5}, None]
