"""SQuAD: texts with questions and answers, to `doc._`; and questions that are rejected."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from conversion import (
    QUESTIONS,
    SECOND_ADA,
    TEXT,
    answered,
    check_report,
    load,
    qa,
    read,
    run,
    samples,
    squad,
)

from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.records import Rejected
from spacy_bert_heads.data.report import ConversionReport

pytestmark = pytest.mark.usefixtures("share_blank_pipelines")
ANSWERS = [
    ("one?", [(30, "Paris")]),
    ("several?", [(SECOND_ADA, "Ada"), (13, "Paris.")]),
    ("none?", []),
    ("empty?", []),
    ("test?", None),
]


def fixed(report: ConversionReport) -> int:
    return report.notes.counts["answers located by their text, offsets corrected"]


@pytest.mark.parametrize(
    "content",
    [
        squad(QUESTIONS),
        squad(QUESTIONS, indent=2),
        squad(QUESTIONS, indent=2).replace("\n", "\r\n"),
        "\ufeff" + squad(QUESTIONS),
        json.dumps({"paragraphs": [{"qas": QUESTIONS, "context": TEXT}], "title": "x"}),
    ],
)
def test_squad(tmp_path, content):
    expected = {"format": "squad", "unit": "questions", "read": 5, "kept": 5, "docs": 1}
    for name, packed in (
        ("a.json", content.encode()),
        ("b.json.gz", gzip.compress(content.encode())),
    ):
        (doc,), report = run(tmp_path, name, packed)
        assert doc.text == TEXT and answered(doc) == ANSWERS
        check_report(report, **expected, pairs=Counter(questions=5))


def test_squad_context_is_kept_as_it_is(tmp_path):
    context = " \n Ada  lives\u3000in\tPar\u0301is, 1½ km 🐟 off.\n"
    start = context.index("🐟")
    paragraph = {"context": context, "qas": [qa("a", ("🐟 off", start), ("ad", 4))]}
    for lang in ("en", "zh", "xx"):
        paragraph["qas"][0]["answers"][1]["text"] = "da"  # in the middle of a token
        (doc,), report = run(tmp_path, "a.json", squad(paragraph), lang=lang)
        assert doc.text == context and fixed(report) == 0
        assert answered(doc) == [("a?", [(start, "🐟 off"), (4, "da")])]


@pytest.mark.parametrize(
    "answer, found, n_fixed",
    [
        (("the sea", 41), (41, "the sea"), 0),
        (("the sea", 40), (41, "the sea"), 1),
        (("the sea", 4_000), (41, "the sea"), 1),
        (("the sea", -8), (41, "the sea"), 1),  # as a slice it would be right
        (("the sea", None), (41, "the sea"), 1),
        (("the sea", "41"), (41, "the sea"), 1),
        ((" the sea\n", 0), (41, "the sea"), 1),
        ((" Ada ", 19), (SECOND_ADA, "Ada"), 0),
        ((" Ada", SECOND_ADA), (SECOND_ADA, "Ada"), 0),
        (("Ada ", SECOND_ADA), (SECOND_ADA, "Ada"), 0),
        (("Ada\n", SECOND_ADA), (SECOND_ADA, "Ada"), 0),
        ((" Ada", 7), (SECOND_ADA, "Ada"), 1),  # only one of them has a space before it
        (("Ada", 7), "answer found more than once, and not at its offset", 0),
        (("Ada\n", 7), "answer found more than once, and not at its offset", 0),
        (("Rome", 7), "answer not found in the context", 0),
        (("paris", 13), "answer not found in the context", 0),
        (("", 7), "no answer text", 0),
        ((" \n", 7), "no answer text", 0),
        ((None, 7), "no answer text", 0),
    ],
)
def test_squad_offsets(tmp_path, answer, found, n_fixed):
    content = squad([qa("first"), qa("q:1", answer), qa("last", ("Ada", 0))])
    (doc,), report = run(tmp_path, "a.json", content)
    others = [("first?", []), ("last?", [(0, "Ada")])]
    assert fixed(report) == n_fixed
    if isinstance(found, str):
        assert answered(doc) == others
        assert samples(report) == [f"a.json: {found}: 'q:1'"]
        assert report.reasons == {found: 1}
    else:
        assert answered(doc) == [others[0], ("q:1?", [found]), others[1]]
        assert report.rejected == 0


def test_squad_overlapping_places_are_two(tmp_path):
    paragraph = {"context": "na na na", "qas": [qa("a", ("na na", 7)), qa("b", ("na na", 3))]}
    (doc,), report = run(tmp_path, "a.json", squad(paragraph))
    assert answered(doc) == [("b?", [(3, "na na")])]
    assert report.reasons == {"answer found more than once, and not at its offset": 1}


def test_squad_rejects_question_by_question(tmp_path):
    content = squad(
        [qa("a"), {"id": 7, "answers": []}, {"id": "c", "question": " "}, {"question": ""}, "d"],
        [qa("e", ("Rome", 0))],  # left out, without a question
        {"context": "\ud800", "qas": [qa("f"), qa("g")]},
        {"context": "a" * 1_000_001, "qas": [qa("h")]},
        {"context": TEXT, "qas": []},
        {"context": TEXT},
        3,
        [qa("i")],
    )
    docs, report = run(tmp_path, "a.json", content)
    assert [answered(doc) for doc in docs] == [[("a?", [])], [("i?", [])]]
    assert report.reasons == {
        "no question": 3,
        "not SQuAD": 3,
        "answer not found in the context": 1,
        "text is not UTF-8": 2,
        "too long for spaCy": 1,
        "no questions": 1,
    }
    assert samples(report) == [
        "a.json: no question: 7",
        "a.json: no question: 'c'",
        "a.json: no question: ''",
        "a.json: not SQuAD: str instead of an object",
        "a.json: answer not found in the context: 'e'",
    ]


@pytest.mark.parametrize(
    "content, reason",
    [
        ('{"data": [{"paragraphs": [', "not JSON: "),
        ("3", "not a JSON object or array in UTF-8"),
        ("[3]", "not SQuAD: int instead of an object"),
        ('{"data": "x"}', "not SQuAD: an object without a list of data"),
        ('{"data": [{}]}', "not SQuAD: an object without a list of paragraphs"),
        ("{}", "not SQuAD: an object without a list of paragraphs"),
    ],
)
def test_squad_rejects_files(content, reason):
    (rejected,) = read("squad", [content])
    assert isinstance(rejected, Rejected) and rejected.where == ""
    assert rejected.reason.startswith(reason)


# Real data


@pytest.mark.long
@pytest.mark.parametrize("name", ["qa_xquad/xquad.en", "qa_xquad/xquad.de", "qa_xquad/xquad.zh"])
def test_real_xquad(tmp_path, data, name):
    report = check_squad(tmp_path, data / f"{name}.json", lang=name[-2:])
    assert (report.docs, report.kept) == (240, 1190)


@pytest.mark.long
@pytest.mark.parametrize(
    "name, n_docs, n_questions, n_several", [("dev", 574, 3809, 1583), ("test", 500, 4152, 1588)]
)
def test_real_policyqa(tmp_path, data, name, n_docs, n_questions, n_several):
    report = check_squad(tmp_path, data / "qa_policyqa" / f"{name}.json", lang="en")
    assert (report.docs, report.kept) == (n_docs, n_questions)
    docs = load(tmp_path / "out.spacy")
    assert sum(bool(x["alternatives"]) for doc in docs for x in doc._.answers) == n_several


def check_squad(tmp_path: Path, source: Path, *, lang: str) -> ConversionReport:
    """Convert a file whose offsets are right, and compare all of it."""
    report = convert(source, tmp_path / "out.spacy", lang=lang)
    assert (report.format, report.rejected, fixed(report)) == ("squad", 0, 0)
    articles = json.loads(source.read_text(encoding="utf8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    docs = load(tmp_path / "out.spacy")
    for doc, paragraph in zip(docs, paragraphs, strict=True):
        assert doc.text == paragraph["context"]
        assert answered(doc) == [
            (entry["question"], [(x["answer_start"], x["text"]) for x in entry["answers"]])
            for entry in paragraph["qas"]
        ]
    return report


def test_answers_of_an_impossible_question_are_reported(tmp_path):
    content = squad([qa("what", ("Ada", SECOND_ADA), is_impossible=True)])
    (doc,), report = run(tmp_path, "a.json", content)
    assert answered(doc) == [("what?", [])]
    assert report.notes.counts == {"answers not read, because is_impossible is true": 1}
