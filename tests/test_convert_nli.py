"""Natural language inference: premises with hypotheses, from each format to `doc._`."""

import gzip
from collections import Counter
from itertools import groupby

import pytest
from conversion import PAIRS, TSV, check_report, jsonl, judged, load, read, run, samples, table

from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.files import File
from spacy_bert_heads.data.formats import find_format
from spacy_bert_heads.data.records import Options

pytestmark = pytest.mark.usefixtures("share_blank_pipelines")
NLI_DOCS = [
    ("A man eats.", [("A man is hungry.", "neutral"), ("A man has food.", "entailment")]),
    ("A dog runs.", [("A dog sleeps.", "contradiction")]),
    ("A man eats.", [("Nobody eats.", "contradiction")]),
]


def snli(pairs, *names) -> str:
    return jsonl(*({"pairID": "1", **dict(zip(names, pair, strict=True))} for pair in pairs))


SICK = ("sentence_A", "sentence_B", "entailment_judgment")
JSONL = snli(PAIRS, "sentence1", "sentence2", "gold_label")


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
    pairs = Counter(hypotheses=4)
    expected = {"format": format, "unit": "pairs", "read": 4, "kept": 4, "docs": 3}
    check_report(report, **expected, labels=labels, pairs=pairs)
    # Packed, it is the same.
    docs, report = run(tmp_path, f"{name}.gz", gzip.compress(content.encode("utf8")))
    assert [judged(doc) for doc in docs] == NLI_DOCS
    check_report(report, **expected)


@pytest.mark.parametrize(
    "name, content", [("a.jsonl", snli(PAIRS, "a", "b", "c")), ("a.tsv", table(PAIRS, "abc"))]
)
def test_nli_named_columns(tmp_path, name, content):
    columns = {"premise_column": "a", "hypothesis_column": "b", "label_column": "c"}
    docs, _ = run(tmp_path, name, content, **columns)
    assert [judged(doc) for doc in docs] == NLI_DOCS
    with pytest.raises(ValueError, match="no text column.* a, b, c "):
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
        ("a.json", '{"data": [{"paragraphs": [', "json"),  # whose reader says what is wrong
        ("a.json", '{"version": "1", "data": [\n\n{"title": "x",\n "paragraphs" : []}]}', "squad"),
        ("a.JSON", '{"paragraphs": [{"qas": []}]}', "squad"),
        ("a", '{"data": [{"paragraphs": []}]}', "squad"),
        ("a.json", '{"data": []}', "json"),
        ("a.json", '[{"paragraphs": []}]', "squad"),
        ("a.json", '[{"context": "a", "qas": []}]', "squad"),
        ("a.json", '{"features": [{"name": "text"}], "rows": [{"row": {}}]}', "json"),
    ],
)
def test_find_format(tmp_path, name, content, format):
    (tmp_path / name).write_text(content, encoding="utf8")
    assert find_format(File(tmp_path / name), Options()) == format


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
    assert report.rejected == 0


def test_nli_csv_quotes_are_not(tmp_path):
    content = 'premise,hypothesis,label\n"A, ""b""","c\nd",neutral\n"A, ""b""",e,neutral\n'
    docs, _ = run(tmp_path, "a.csv", content)
    assert [judged(doc) for doc in docs] == [('A, "b"', [("c\nd", "neutral"), ("e", "neutral")])]


def test_nli_tsv_rejects_rows(tmp_path):
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
        "label is a number, name the labels in order with --labels": 1,
        "no label": 1,
        "no hypothesis": 1,
        "no premise": 1,
        "hypothesis is not UTF-8": 1,
    }
    assert samples(report) == [
        "a.tsv:3: wrong number of columns: 2 instead of 3",
        "a.tsv:4: wrong number of columns: 4 instead of 3",
        "a.tsv:5: no consensus on the label",
        "a.tsv:6: label is a number, name the labels in order with --labels: '2'",
        "a.tsv:7: no label: ' '",
    ]


def test_nli_jsonl_rejects_lines(tmp_path):
    def pair(**changes):
        return {"sentence1": "p", "sentence2": "h", "gold_label": "neutral", **changes}

    content = jsonl(
        pair(),
        pair(gold_label="-"),
        pair(gold_label=1),
        pair(gold_label=None),
        pair(gold_label=-1),
        {"sentence1": "p", "sentence2": "h"},
        [1],
        pair(sentence2="last"),
        pair(sentence1="a" * 1_000_001),
    )
    docs, report = run(tmp_path, "a.jsonl", content + "{")
    assert [judged(doc) for doc in docs] == [("p", [("h", "neutral"), ("last", "neutral")])]
    assert report.reasons == {
        "no consensus on the label": 1,
        "label is a number, name the labels in order with --labels": 2,
        "no label": 1,
        "too long for spaCy": 1,
        "no column for the label, name it with --label-column": 1,
        "not a JSON object in UTF-8": 1,
        "not JSON": 1,
    }
    assert samples(report)[:2] == [
        "a.jsonl:2: no consensus on the label",
        "a.jsonl:3: label is a number, name the labels in order with --labels: 1",
    ]


def test_nli_groups_are_bounded():
    lines = ["premise\thypothesis\tlabel\n", *(f"p\th{i}\tneutral\n" for i in range(70))]
    docs = read("nli-tsv", lines)
    assert [len(doc._.hypotheses) for doc in docs] == [32, 32, 6]
    assert [text for doc in docs for text in doc._.hypotheses] == [f"h{i}" for i in range(70)]


# Real data


@pytest.mark.long
def test_real_sick(tmp_path, data):
    source = data / "nli_sick" / "SICK_train.txt"
    report = convert(source, tmp_path / "out.spacy")
    rows = [line.split("\t") for line in source.read_text(encoding="utf8").splitlines()][1:]
    assert (report.format, report.pairs["hypotheses"], report.rejected) == ("nli-tsv", len(rows), 0)
    assert report.pairs["hypotheses"] == 4500
    assert report.labels == {"neutral": 2536, "entailment": 1299, "contradiction": 665}
    docs = [judged(doc) for doc in load(tmp_path / "out.spacy")]
    assert docs == [
        (premise, [(row[2], row[4].lower()) for row in group])
        for premise, group in groupby(rows, key=lambda row: row[1])
    ]
    assert report.docs == len(docs) == 3960
