"""Pairs of texts: premises with hypotheses, texts with questions, from each format to `doc._`."""

import functools
import gzip
import json
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.tokens import Doc, DocBin
from spacy.training import Corpus
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.convert import ConversionReport, convert, find_format
from spacy_bert_heads.pairs import make_answer, make_verdict
from spacy_bert_heads.readers import READERS, Refused, Settings

blank_once = functools.cache(spacy.blank)  # it takes longer than most tests
NLP = blank_once("en")
TEXT = "Ada lives in Paris. Ada likes Paris, and the sea."
FIRST_ADA, SECOND_ADA = 0, 20


@pytest.fixture(autouse=True)
def share_blank_pipelines(monkeypatch):
    monkeypatch.setattr(spacy, "blank", blank_once)


def load(path: Path) -> list[Doc]:
    return list(DocBin().from_disk(path).get_docs(NLP.vocab))


def run(
    tmp_path: Path, name: str, content: str | bytes, **options: Any
) -> tuple[list[Doc], ConversionReport]:
    """Convert one file and load the result."""
    source = tmp_path / name
    source.write_bytes(content.encode("utf8") if isinstance(content, str) else content)
    report = convert(source, tmp_path / "out.spacy", **options)
    docs = load(tmp_path / "out.spacy")
    assert report.kept == len(docs)
    assert report.read == report.kept + report.refused
    assert report.refused == sum(report.reasons.values())
    assert report.hypotheses == sum(len(doc._.hypotheses) for doc in docs)
    assert report.questions == sum(len(doc._.questions) for doc in docs)
    return docs, report


def samples(report: ConversionReport) -> list[str]:
    """The samples without their folder."""
    return [sample.rpartition("/")[2] for sample in report.samples]


def jsonl(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def judged(doc: Doc) -> tuple[str, list[tuple[str, str | None]]]:
    """A text, its hypotheses and their labels."""
    assert all(x is None or x == make_verdict(x["label"]) for x in doc._.nli)
    labels = [verdict and verdict["label"] for verdict in doc._.nli]
    return doc.text, list(zip(doc._.hypotheses, labels, strict=True))


def answered(doc: Doc) -> list[tuple[str, list[tuple[int, str]] | None]]:
    """Questions with the places and texts of their answers, the primary first."""
    found = []
    for question, answer in zip(doc._.questions, doc._.answers, strict=True):
        if answer is not None:
            answers = [answer, *answer["alternatives"]]
            for one in answers:
                others = answer["alternatives"] if one is answer else []
                place = one["start_char"], one["end_char"]
                assert one == make_answer(doc, *place, alternatives=others)
                assert one["text"] == doc.text[slice(*place)]
            answer = [(x["start_char"], x["text"]) for x in answers if x["text"]]
            assert answer or len(answers) == 1
        found.append((question, answer))
    return found


# The project's own JSONL


def test_jsonl_hypotheses_and_questions(tmp_path):
    record = {
        "text": TEXT,
        "hypotheses": [
            {"text": "Ada is home.", "label": "Entailment"},
            {"text": "Ada is old.", "label": None},
            {"text": "Ada is tall."},
            "Ada is ill.",
        ],
        "questions": [
            {"question": "Where?", "answers": [{"text": "Paris", "start": 30}]},
            {
                "question": "Who?",
                "answers": [
                    {"text": "Ada", "answer_start": SECOND_ADA},
                    {"text": "Ada", "start": FIRST_ADA},
                    {"text": "Ada", "start": SECOND_ADA},
                ],
            },
            {"question": "Why?", "answers": []},
            {"question": "When?", "answers": None},
            {"question": "How?"},
            "What?",
        ],
    }
    docs, report = run(tmp_path, "a.jsonl", jsonl(record, {"text": "Nothing."}))
    assert judged(docs[0]) == (
        TEXT,
        [
            ("Ada is home.", "entailment"),
            ("Ada is old.", None),
            ("Ada is tall.", None),
            ("Ada is ill.", None),
        ],
    )
    assert answered(docs[0]) == [
        ("Where?", [(30, "Paris")]),
        ("Who?", [(SECOND_ADA, "Ada"), (FIRST_ADA, "Ada")]),
        ("Why?", []),
        ("When?", None),
        ("How?", None),
        ("What?", None),
    ]
    assert docs[0].cats == {} and not docs[0].has_annotation("ENT_IOB")
    assert not load(tmp_path / "out.spacy")[1].user_data
    assert report == ConversionReport(
        format="jsonl", read=2, kept=2, labels=Counter(entailment=1), hypotheses=4, questions=6
    )


def test_jsonl_pairs_beside_other_annotation(tmp_path):
    spans = [{"start": 0, "end": 3, "label": "PER"}]
    record = {"text": TEXT, "label": "x", "spans": spans, "hypotheses": ["A."], "questions": []}
    (doc,), report = run(tmp_path, "a.jsonl", jsonl(record))
    assert (doc.cats, doc.ents[0].text, doc._.hypotheses) == ({"x": 1.0}, "Ada", ["A."])
    assert (report.labels, report.hypotheses) == (Counter(x=1, PER=1), 1)


def test_jsonl_mended_offsets_of_kept_records(tmp_path):
    """The file is read twice, for its categories, but mended once."""
    sea, ada = ({"text": text, "start": 7} for text in ("the sea", "Ada"))
    good = {"text": TEXT, "questions": [{"question": "What?", "answers": [sea]}]}
    bad = {"text": TEXT, "questions": [*good["questions"], {"question": "Who?", "answers": [ada]}]}
    (doc,), report = run(tmp_path, "a.jsonl", jsonl(good, bad))
    assert answered(doc) == [("What?", [(41, "the sea")])]
    assert report.mended == 1
    assert samples(report) == [
        "a.jsonl:2: answer found more than once, and not at its offset: 'Ada'"
    ]


@pytest.mark.parametrize(
    "record, reason",
    [
        ({"hypotheses": "A."}, "hypotheses are not a list: 'A.'"),
        ({"hypotheses": [" "]}, "no hypothesis: ' '"),
        ({"hypotheses": [{"label": "x"}]}, "no hypothesis: {'label': 'x'}"),
        ({"hypotheses": [{"text": "a", "label": "-"}]}, "no consensus on the label"),
        ({"hypotheses": [{"text": "a", "label": ""}]}, "no label: ''"),
        (
            {"hypotheses": [{"text": "a", "label": 2}]},
            "label is a number, write its name instead: 2",
        ),
        ({"questions": {}}, "questions are not a list: {}"),
        ({"questions": [None]}, "no question: None"),
        ({"questions": [{"question": ""}]}, "no question: ''"),
        ({"questions": [{"question": "\ud800"}]}, "question is not UTF-8: '\\ud800'"),
        ({"questions": [{"question": "a", "answers": {"text": []}}]}, "answers are not a list"),
        ({"questions": [{"question": "a", "answers": ["Ada"]}]}, "not an answer: 'Ada'"),
        ({"questions": [{"question": "a", "answers": [{"text": " "}]}]}, "no answer text: ' '"),
        (
            {"questions": [{"question": "a", "answers": [{"text": "Rome", "start": 1}]}]},
            "answer not found in the context: 'Rome'",
        ),
        (
            {
                "questions": [
                    {"question": "a", "answers": [{"text": "a", "start": 0, "answer_start": 0}]}
                ]
            },
            "more than one of start, answer_start",
        ),
    ],
)
def test_jsonl_refuses(tmp_path, record, reason):
    content = jsonl({"text": "before"}, {"text": TEXT, **record}, {"text": "after"})
    docs, report = run(tmp_path, "a.jsonl", content)
    assert [doc.text for doc in docs] == ["before", "after"]
    (sample,) = samples(report)
    assert sample.startswith(f"a.jsonl:2: {reason}")


# Natural language inference

PAIRS = [
    ("A man eats.", "A man is hungry.", "neutral"),
    ("A man eats.", "A man has food.", "entailment"),
    ("A dog runs.", "A dog sleeps.", "contradiction"),
    ("A man eats.", "Nobody eats.", "contradiction"),
]
NLI_DOCS = [
    ("A man eats.", [("A man is hungry.", "neutral"), ("A man has food.", "entailment")]),
    ("A dog runs.", [("A dog sleeps.", "contradiction")]),
    ("A man eats.", [("Nobody eats.", "contradiction")]),
]


def snli(pairs, *names) -> str:
    return jsonl(*({"pairID": "1", **dict(zip(names, pair, strict=True))} for pair in pairs))


def table(pairs, header, *, delimiter="\t") -> str:
    """Write pairs behind a column of numbers."""
    rows = [(str(i), *pair) for i, pair in enumerate(pairs)]
    return "".join(delimiter.join(row) + "\n" for row in [("index", *header), *rows])


SICK = ("sentence_A", "sentence_B", "entailment_judgment")
JSONL = snli(PAIRS, "sentence1", "sentence2", "gold_label")
TSV = table(PAIRS, ("sentence1", "sentence2", "label"))


@pytest.mark.parametrize(
    "name, content, format",
    [
        ("a.jsonl", JSONL, "nli-jsonl"),
        ("a.jsonl", snli(PAIRS, "premise", "hypothesis", "label"), "nli-jsonl"),
        ("a.txt", JSONL, "nli-jsonl"),
        ("a.jsonl", JSONL.replace("\n", "\r\n\r\n"), "nli-jsonl"),
        ("a.jsonl", "\ufeff" + JSONL, "nli-jsonl"),
        ("a.tsv", TSV, "nli-tsv"),
        ("a.txt", TSV, "nli-tsv"),
        ("a.tsv", TSV.replace("\n", "\r\n"), "nli-tsv"),
        ("a.tsv", "\ufeff" + TSV.rstrip("\n"), "nli-tsv"),
        ("a.tsv", TSV + "\n", "nli-tsv"),
        ("a.tsv", table(PAIRS, ("question", "sentence", "label")), "nli-tsv"),
        ("a.tsv", table(PAIRS, ("sentence1", "sentence2", "gold_label")), "nli-tsv"),
        ("SICK.txt", table([(p, h, x.upper()) for p, h, x in PAIRS], SICK), "nli-tsv"),
        ("a.csv", table(PAIRS, ("Premise", "Hypothesis", "Label"), delimiter=","), "nli-csv"),
    ],
)
def test_nli(tmp_path, name, content, format):
    docs, report = run(tmp_path, name, content)
    assert [judged(doc) for doc in docs] == NLI_DOCS
    labels = Counter(label for _, _, label in PAIRS)
    expected = ConversionReport(format=format, read=3, kept=3, labels=labels, hypotheses=4)
    assert report == expected
    # Packed, it is the same.
    docs, report = run(tmp_path, f"{name}.gz", gzip.compress(content.encode("utf8")))
    assert [judged(doc) for doc in docs] == NLI_DOCS and report == expected


@pytest.mark.parametrize(
    "name, content", [("a.jsonl", snli(PAIRS, "a", "b", "c")), ("a.tsv", table(PAIRS, "abc"))]
)
def test_nli_named_columns(tmp_path, name, content):
    columns = {"premise_column": "a", "hypothesis_column": "b", "label_column": "c"}
    docs, _ = run(tmp_path, name, content, **columns)
    assert [judged(doc) for doc in docs] == NLI_DOCS
    with pytest.raises(ValueError, match="for premise, hypothesis and label: .*'a', 'b', 'c'"):
        run(tmp_path, name, content, format=f"nli-{name[2:]}")


@pytest.mark.parametrize(
    "name, content, format",
    [
        # A key or column of texts says that the others are not all there is.
        ("a.jsonl", jsonl({"text": "a", "question": "b", "sentence": "c"}), "jsonl"),
        ("a.tsv", "text\tquestion\tsentence\tlabel\n", "tsv"),
        ("a.tsv", "sentence\tlabel\n", "tsv"),
        ("a.csv", "sentence1,label\n", "csv"),
        ("a.jsonl", '{"text": "a"}\n[1]\n{"te', "jsonl"),
        ("a.json", '{"data": [{"paragraphs": [', "squad"),
        ("a.json", '{"version": "1", "data": [\n\n{"title": "x",\n "paragraphs" : [', "squad"),
        ("a.JSON", '{"paragraphs": []}', "squad"),
        ("a.json", '{"data": []}', "jsonl"),
        ("a.json", '[{"paragraphs": []}]', None),
    ],
)
def test_find_format(tmp_path, name, content, format):
    (tmp_path / name).write_text(content, encoding="utf8")
    assert find_format(tmp_path / name, Settings(NLP)) == format


def test_nli_tsv_quotes_are_text(tmp_path):
    content = (
        "sentence1\tsentence2\tlabel\n"
        '"Yes, he said.\tHe said "no".\tneutral\n'
        '"Quoted"\t5\' 11"\tentailment\n'
        'A\rB\t""\tneutral\n'
    )
    docs, report = run(tmp_path, "a.tsv", content)
    assert [judged(doc) for doc in docs] == [
        ('"Yes, he said.', [('He said "no".', "neutral")]),
        ('"Quoted"', [("5' 11\"", "entailment")]),
        ("A\rB", [('""', "neutral")]),
    ]
    assert report.refused == 0


def test_nli_csv_quotes_are_not(tmp_path):
    content = 'premise,hypothesis,label\n"A, ""b""","c\nd",neutral\n"A, ""b""",e,neutral\n'
    docs, _ = run(tmp_path, "a.csv", content)
    assert [judged(doc) for doc in docs] == [('A, "b"', [("c\nd", "neutral"), ("e", "neutral")])]


def test_nli_tsv_refuses_rows(tmp_path):
    rows = [
        b"sentence1\tsentence2\tlabel",
        b"p\th1\tneutral",
        b"p\th2",
        b"p\th3\tneutral\tmore",
        b"p\th4\t-",
        b"p\th5\t2",
        b"p\th6\t ",
        b"p\t\tneutral",
        b" \th8\tneutral",
        b"p\th\xff\tneutral",
        b"p\th10\tENTAILMENT",
    ]
    docs, report = run(tmp_path, "a.tsv", b"\n".join(rows))
    # What is refused does not part the pairs of a premise.
    assert [judged(doc) for doc in docs] == [("p", [("h1", "neutral"), ("h10", "entailment")])]
    assert report.reasons == {
        "wrong number of columns": 2,
        "no consensus on the label": 1,
        "label is a number, write its name instead": 1,
        "no label": 1,
        "no hypothesis": 1,
        "no premise": 1,
        "hypothesis is not UTF-8": 1,
    }
    assert samples(report) == [
        "a.tsv:3: wrong number of columns: 2 instead of 3",
        "a.tsv:4: wrong number of columns: 4 instead of 3",
        "a.tsv:5: no consensus on the label",
        "a.tsv:6: label is a number, write its name instead: '2'",
        "a.tsv:7: no label: ' '",
    ]


def test_nli_jsonl_refuses_lines(tmp_path):
    def pair(**changes):
        return {"sentence1": "p", "sentence2": "h", "gold_label": "neutral", **changes}

    content = jsonl(
        pair(),
        pair(gold_label="-"),
        pair(gold_label=1),
        pair(gold_label=None),
        pair(gold_label=-1),
        pair(sentence1="a" * 1_000_001),
        {"sentence1": "p", "sentence2": "h"},
        [1],
        pair(sentence2="last"),
    )
    docs, report = run(tmp_path, "a.jsonl", content + "{")
    assert [judged(doc) for doc in docs] == [("p", [("h", "neutral"), ("last", "neutral")])]
    assert report.reasons == {
        "no consensus on the label": 1,
        "label is a number, write its name instead": 2,
        "no label": 1,
        "too long for spaCy": 1,
        "no keys for premise, hypothesis and label": 1,
        "not a JSON object in UTF-8": 1,
        "not JSON": 1,
    }
    assert samples(report)[:2] == [
        "a.jsonl:2: no consensus on the label",
        "a.jsonl:3: label is a number, write its name instead: 1",
    ]


def test_nli_groups_are_bounded():
    lines = ["premise\thypothesis\tlabel\n", *(f"p\th{i}\tneutral\n" for i in range(70))]
    docs = list(READERS["nli-tsv"](lines, Settings(NLP)))
    assert [len(doc._.hypotheses) for doc in docs] == [32, 32, 6]
    assert [text for doc in docs for text in doc._.hypotheses] == [f"h{i}" for i in range(70)]


# SQuAD


def qa(name: str, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    entries = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": f"{name}?", "answers": entries, **more}


def squad(*paragraphs: Any, indent: int | None = None) -> str:
    paragraphs = [
        {"context": TEXT, "qas": paragraph} if isinstance(paragraph, list) else paragraph
        for paragraph in paragraphs
    ]
    data = [{"title": "a", "paragraphs": paragraphs}]
    return json.dumps({"version": "v2.0", "data": data}, indent=indent)


QUESTIONS = [
    qa("one", ("Paris", 30)),
    qa("several", ("Ada", SECOND_ADA), ("Paris.", 13), ("Ada", SECOND_ADA), is_impossible=False),
    qa("none", is_impossible=True, plausible_answers=[{"text": "Ada", "answer_start": 0}]),
    qa("empty"),
    {"id": "test", "question": "test?"},
]
ANSWERS = [
    ("one?", [(30, "Paris")]),
    ("several?", [(SECOND_ADA, "Ada"), (13, "Paris.")]),
    ("none?", []),
    ("empty?", []),
    ("test?", None),
]


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
    expected = ConversionReport(format="squad", read=1, kept=1, questions=5)
    for name, packed in (
        ("a.json", content.encode()),
        ("b.json.gz", gzip.compress(content.encode())),
    ):
        (doc,), report = run(tmp_path, name, packed)
        assert doc.text == TEXT and answered(doc) == ANSWERS
        assert report == expected


def test_squad_context_is_kept_as_it_is(tmp_path):
    context = " \n Ada  lives\u3000in\tPar\u0301is, 1½ km 🐟 off.\n"
    start = context.index("🐟")
    paragraph = {"context": context, "qas": [qa("a", ("🐟 off", start), ("ad", 4))]}
    for lang in ("en", "zh", "xx"):
        paragraph["qas"][0]["answers"][1]["text"] = "da"  # in the middle of a token
        (doc,), report = run(tmp_path, "a.json", squad(paragraph), lang=lang)
        assert doc.text == context and report.mended == 0
        assert answered(doc) == [("a?", [(start, "🐟 off"), (4, "da")])]


@pytest.mark.parametrize(
    "answer, found, mended",
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
def test_squad_offsets(tmp_path, answer, found, mended):
    content = squad([qa("first"), qa("q:1", answer), qa("last", ("Ada", 0))])
    (doc,), report = run(tmp_path, "a.json", content)
    others = [("first?", []), ("last?", [(0, "Ada")])]
    assert report.mended == mended
    if isinstance(found, str):
        assert answered(doc) == others
        assert samples(report) == [f"a.json: {found}: 'q:1'"]
        assert report.reasons == {found: 1}
    else:
        assert answered(doc) == [others[0], ("q:1?", [found]), others[1]]
        assert report.refused == 0


def test_squad_overlapping_places_are_two(tmp_path):
    paragraph = {"context": "na na na", "qas": [qa("a", ("na na", 7)), qa("b", ("na na", 3))]}
    (doc,), report = run(tmp_path, "a.json", squad(paragraph))
    assert answered(doc) == [("b?", [(3, "na na")])]
    assert report.reasons == {"answer found more than once, and not at its offset": 1}


def test_squad_refuses_question_by_question(tmp_path):
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
        ("[]", "not a JSON object in UTF-8"),
        ('{"data": "x"}', "not SQuAD: an object without a list of data"),
        ('{"data": [{}]}', "not SQuAD: an object without a list of paragraphs"),
        ("{}", "not SQuAD: an object without a list of paragraphs"),
    ],
)
def test_squad_refuses_files(content, reason):
    (refused,) = READERS["squad"]([content], Settings(NLP))
    assert isinstance(refused, Refused) and refused.line == 0
    assert refused.reason.startswith(reason)


# Outputs


def test_pairs_survive_in_shards(tmp_path):
    """What the readers make is what comes back, also by spaCy's own reader."""
    lines = [squad(QUESTIONS, QUESTIONS[:1])]
    made = [doc for doc in READERS["squad"](lines, Settings(NLP)) if isinstance(doc, Doc)]
    (tmp_path / "a.json").write_text(lines[0])
    convert(tmp_path / "a.json", tmp_path / "out", max_docs=1)
    assert len(list((tmp_path / "out").glob("*.spacy"))) == 2
    examples = list(Corpus(tmp_path / "out")(NLP))
    for doc, example in zip(made, examples, strict=True):
        assert example.reference.text == doc.text
        assert example.reference._.questions == doc._.questions != []
        assert example.reference._.answers == doc._.answers != []
        assert example.predicted._.questions == []
    assert examples[1].reference._.answers == [make_answer(made[1], 30, 35)]


def test_the_report_counts_over_all_files(tmp_path):
    source = tmp_path / "data"
    source.mkdir()
    (source / "a.json").write_text(squad([qa("a", ("the sea", 1))], [qa("b", ("Ada", 1))]))
    (source / "b.json").write_text(squad([qa("c", ("the sea", 2), ("likes", 3))]))
    (source / "c.tsv").write_text(TSV)
    report = convert(source, tmp_path / "out.spacy")
    assert report.format == "squad, nli-tsv"
    assert (report.read, report.kept, report.refused, report.mended) == (6, 5, 1, 3)
    assert (report.questions, report.hypotheses) == (2, 4)


def test_command(tmp_path):
    def invoke(*args: Any) -> list[str]:
        result = CliRunner().invoke(bert_app, ["convert", *map(str, args)])
        assert result.exit_code == 0
        return result.output.splitlines()

    source, output = tmp_path / "a.json", tmp_path / "a.spacy"
    source.write_text(squad([qa("a", ("the sea", 1)), qa("b", ("Ada", 1))]))
    assert invoke(source, output) == [
        f"{output}: 1 of 2 records (squad)",
        "Pairs: 1 questions",
        "Offsets mended: 1",
        "Refused: 1",
        "       1  answer found more than once, and not at its offset",
        f"  {source}: answer found more than once, and not at its offset: 'b'",
    ]
    source = tmp_path / "a.tsv"
    source.write_text("a\tb\tc\n" + "p\th\tneutral\n" * 1200)
    columns = ["--premise-column", "a", "--hypothesis-column", "b", "--label-column", "c"]
    assert invoke(source, output, *columns) == [
        f"{output}: 38 of 38 records (nli-tsv)",
        "Labels: neutral 1,200",
        "Pairs: 1,200 hypotheses",
    ]


# Real data


def test_real_sick(tmp_path, data):
    source = data / "nli_sick" / "SICK_train.txt"
    report = convert(source, tmp_path / "out.spacy")
    rows = [line.split("\t") for line in source.read_text(encoding="utf8").splitlines()][1:]
    assert (report.format, report.hypotheses, report.refused) == ("nli-tsv", len(rows), 0)
    assert report.hypotheses == 4500
    assert report.labels == {"neutral": 2536, "entailment": 1299, "contradiction": 665}
    docs = [judged(doc) for doc in load(tmp_path / "out.spacy")]
    assert docs == [
        (premise, [(row[2], row[4].lower()) for row in group])
        for premise, group in groupby(rows, key=lambda row: row[1])
    ]
    assert report.kept == len(docs) == 3960


@pytest.mark.parametrize("name", ["qa_xquad/xquad.en", "qa_xquad/xquad.de", "qa_xquad/xquad.zh"])
def test_real_xquad(tmp_path, data, name):
    report = check_squad(tmp_path, data / f"{name}.json", lang=name[-2:])
    assert (report.kept, report.questions) == (240, 1190)


@pytest.mark.parametrize(
    "name, n_docs, n_questions, n_several", [("dev", 574, 3809, 1583), ("test", 500, 4152, 1588)]
)
def test_real_policyqa(tmp_path, data, name, n_docs, n_questions, n_several):
    report = check_squad(tmp_path, data / "qa_policyqa" / f"{name}.json", lang="en")
    assert (report.kept, report.questions) == (n_docs, n_questions)
    docs = load(tmp_path / "out.spacy")
    assert sum(bool(x["alternatives"]) for doc in docs for x in doc._.answers) == n_several


def check_squad(tmp_path: Path, source: Path, *, lang: str) -> ConversionReport:
    """Convert a file whose offsets are right, and compare all of it."""
    report = convert(source, tmp_path / "out.spacy", lang=lang)
    assert (report.format, report.refused, report.mended) == ("squad", 0, 0)
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


@pytest.mark.parametrize("name, n_docs", [("train", 120), ("dev", 32), ("test", 40)])
def test_own_corpus(tmp_path, name, n_docs):
    source = Path(__file__).parents[1] / "assets" / f"{name}.jsonl"
    report = convert(source, tmp_path / "out.spacy")
    assert (report.format, report.kept, report.refused, report.mended) == ("jsonl", n_docs, 0, 0)
    records = [json.loads(line) for line in source.read_text(encoding="utf8").splitlines()]
    for doc, record in zip(load(tmp_path / "out.spacy"), records, strict=True):
        hypotheses = [(x["text"], x["label"]) for x in record["hypotheses"]]
        assert judged(doc) == (record["text"], hypotheses)
        assert answered(doc) == [
            (entry["question"], [(x["start"], x["text"]) for x in entry["answers"]])
            for entry in record["questions"]
        ]
