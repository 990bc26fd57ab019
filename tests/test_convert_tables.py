"""CSV, TSV and labelled lines: exact Docs out of the `.spacy` file, and rows that are rejected."""

import itertools
from collections import Counter

import pytest
from conversion import Plain, check_report, load_plain, read, run, run_plain, samples
from spacy.tokens import Doc

from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.records import Rejected

pytestmark = pytest.mark.usefixtures("share_blank_pipelines")


# Labelled lines


def test_labelled(tmp_path):
    content = "1 a stirring film .\n\n0 \t dull\xa0\n0 good, not great\n"
    docs, report = run_plain(tmp_path, "train.txt", content)
    assert docs == [
        Plain(["a ", "stirring ", "film ", "."], None, {"0": 0.0, "1": 1.0}),
        Plain(["dull"], None, {"0": 1.0, "1": 0.0}),
        Plain(["good", ", ", "not ", "great"], None, {"0": 1.0, "1": 0.0}),
    ]
    assert (report.format, report.labels) == ("labelled", Counter({"0": 2, "1": 1}))


def test_labelled_fasttext(tmp_path):
    content = "__label__b __label__a both\n__label__a one\nnone\n__label__ nothing\n__label__c\n"
    docs, report = run_plain(tmp_path, "train.txt", content)
    assert docs == [
        Plain(["both"], None, {"a": 1.0, "b": 1.0}),
        Plain(["one"], None, {"a": 1.0, "b": 0.0}),  # no c: its only record is refused
    ]
    assert samples(report) == [
        "train.txt:3: no label: ''",
        "train.txt:4: no label: ''",
        "train.txt:5: no text: ''",
    ]


def test_labelled_bad_lines(tmp_path):
    content = b"pos good\nneg\n\xff\xfe bad\nneg caf\xe9\nneg poor\r\n"
    docs, report = run_plain(tmp_path, "train.txt", content, format="labelled")
    assert docs == [
        Plain(["good"], None, {"neg": 0.0, "pos": 1.0}),
        Plain(["poor"], None, {"neg": 1.0, "pos": 0.0}),
    ]
    assert samples(report) == [
        "train.txt:2: no text: ''",
        "train.txt:3: label is not UTF-8: '\\udcff\\udcfe'",
        "train.txt:4: text is not UTF-8: 'caf\\udce9'",
    ]


# CSV and TSV


def test_csv(tmp_path):
    content = 'id,text,label\n1,"Good, ""really""",pos\n2,"two\nlines", neg\n\n3,fine,pos'
    docs, report = run_plain(tmp_path, "a.csv", content)
    assert docs == [
        Plain(["Good", ", ", '"', "really", '"'], None, {"neg": 0.0, "pos": 1.0}),
        Plain(["two", "\n", "lines"], None, {"neg": 1.0, "pos": 0.0}),
        Plain(["fine"], None, {"neg": 0.0, "pos": 1.0}),
    ]
    labels = Counter({"pos": 2, "neg": 1})
    check_report(report, format="csv", read=3, kept=3, labels=labels)
    assert report.unread == {"id": 3}


@pytest.mark.parametrize(
    "header, options",
    [
        ("sentence\tsentiment", {}),
        ("Review\tClass ", {}),
        ("\ufefftext\tlabel", {}),
        ("content\tsentiment", {}),
        ("body\tstars", {"text_column": "body", "label_column": "stars"}),
    ],
)
def test_tsv_columns(tmp_path, header, options):
    docs, report = run_plain(tmp_path, "a.tsv", f"{header}\r\nfine\t1\r\n", **options)
    assert docs == [Plain(["fine"], None, {"1": 1.0})]
    assert report.format == "tsv"


@pytest.mark.parametrize(
    "header, reason",
    [
        ("body,stars", "a.csv:2: no text column, name it with --text-column: the columns are body"),
        ("review,sentence,label", "a.csv:2: no text column"),
        ("text,text,label", "the columns are text (1), text (2), label"),
        ("text,stars", "Nothing in .* is annotated: 1 records have only a text.*not read: stars"),
        ("text", "not read: none except the text"),
    ],
)
def test_csv_unclear_columns(tmp_path, header, reason):
    row = ",".join("fine" for _ in header.split(","))
    with pytest.raises(ValueError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        run_plain(tmp_path, "a.csv", f"{header}\n{row}\n")


@pytest.mark.parametrize("name", ["a.csv", "a"])
def test_csv_with_semicolons(tmp_path, name):
    docs, report = run_plain(tmp_path, name, 'text;label\n"so, so; la";neg\nfine, this;pos\n')
    assert [doc.tokens for doc in docs] == [
        ["so", ", ", "so", "; ", "la"],
        ["fine", ", ", "this"],
    ]
    assert report.format == "csv" and not report.rejected


def test_csv_bad_rows(tmp_path):
    content = (
        b"text,label\n"
        b"good,pos\n"
        b'"two\nlines",pos,more\n'
        b",pos\n"
        b"no label, \n"
        b"caf\xe9,pos\n"
        b"short\n"
        b'"bad"quote,pos\n'
        b"fine,pos\n"
        b'"half-writt'
    )
    docs, report = run_plain(tmp_path, "a.csv", content)
    assert [doc.tokens for doc in docs] == [["good"], ["fine"]]
    assert report.reasons == {
        "wrong number of columns": 2,
        "no text": 1,
        "no label": 1,
        "text is not UTF-8": 1,
        "broken quotes": 2,
    }
    assert samples(report) == [
        "a.csv:3: wrong number of columns: 3 instead of 2; a cell that contains the separator "
        "needs quotes around it",
        "a.csv:5: no text: ''",
        "a.csv:6: no label: ' '",
        "a.csv:7: text is not UTF-8: 'caf\\udce9'",
        "a.csv:8: wrong number of columns: 1 instead of 2",
    ]
    assert "To keep these, save the file as UTF-8" in report.lines()[-1]


def test_csv_open_quote_does_not_swallow_the_file():
    lines = itertools.chain(["text,label\n", '"open,pos\n'], itertools.repeat("fine,pos\n", 20_000))
    first, *rest = read("csv", lines)
    assert isinstance(first, Rejected) and first.where == ":2"
    assert len(rest) == 20_000 and all(isinstance(doc, Doc) for doc in rest)


def test_csv_record_longer_than_pythons_limit(tmp_path):
    """131,072 characters; what looks like rows in it are none."""
    clauses = "".join(f"Line {n}, signed\n" for n in range(10_000))
    docs, report = run_plain(tmp_path, "a.csv", f'text,label\n"{clauses}",long\nfine,pos\n')
    assert [doc.cats for doc in docs] == [{"long": 1.0, "pos": 0.0}, {"long": 0.0, "pos": 1.0}]
    assert "".join(docs[0].tokens) == clauses and not report.rejected


def test_tsv_quotes(tmp_path):
    rows = [
        '"all ""quoted"", and\ttabs"\tpos',
        '"two\nlines"\tpos',
        '"I love it\tpos',
        "So so\tneg",
        'They said no"\tneg',
        '"Never" again\tneg',
        '"never closed\tpos',
        "fine\tpos",
        "too\tmany\ttabs",
    ]
    docs, report = run_plain(tmp_path, "a.tsv", "\n".join(["text\tlabel", *rows, ""]))
    assert ["".join(doc.tokens) for doc in docs] == [
        'all "quoted", and\ttabs',
        "two\nlines",
        '"I love it',
        "So so",
        'They said no"',
        '"Never" again',
        '"never closed',
        "fine",
    ]
    assert samples(report) == [
        "a.tsv:11: wrong number of columns: 3 instead of 2; a cell that contains the separator "
        "needs quotes around it"
    ]


# Labels with other names and numbers


KAGGLE = "id,text,target\n1,Forest fire,1\n2,I love fruits,0\n"
LIKE_LABELS = (
    "2 texts to write that look like labels; for categories, add --label-column target: '1'"
)


@pytest.mark.parametrize(
    "name, columns", [("label_column", "target"), ("label_columns", ["target"])]
)
def test_a_column_named_for_the_label_is_no_target(tmp_path, name, columns):
    docs, report = run(tmp_path, "a.csv", KAGGLE, **{name: columns})
    assert [[label for label, value in doc.cats.items() if value] for doc in docs] in (
        [["1"], ["0"]],
        [["target"], []],
    )
    assert report.kinds == {"categories": 2} and not report.notes.counts


def test_a_column_named_for_the_target_is_no_label(tmp_path):
    docs, report = run(tmp_path, "a.csv", "text,label\nsome,other\n", target_column="label")
    assert docs[0]._.targets == ["other"] and report.kinds == {"targets": 1}


@pytest.mark.parametrize(
    "targets, warns",
    [(["1", "0"], True), (["1", "so so"], False), ([f"w{i}" for i in range(21)], False)],
)
def test_targets_that_look_like_labels(tmp_path, targets, warns):
    content = "text,target\n" + "".join(f"some,{target}\n" for target in targets)
    _, report = run(tmp_path, "a.csv", content)
    assert report.kinds == {"targets": len(targets)}
    assert (LIKE_LABELS in report.lines()) == warns and bool(report.notes.counts) == warns


def test_numbers_of_labels_as_pandas_writes_them(tmp_path):
    values = ["1.0", "0.0", "1", "-1.0", "neg", " pos", "2", "0.5", "other", ""]
    content = "text,label\n" + "".join(f"w{i},{value}\n" for i, value in enumerate(values))
    docs, report = run_plain(tmp_path, "a.csv", content, labels=("neg", "pos"))
    found = [[label for label, value in doc.cats.items() if value] for doc in docs]
    assert found == [["pos"], ["neg"], ["pos"], [], ["neg"], ["pos"]]
    reason = "label is not among --labels, neither by number nor by name"
    assert report.reasons == {reason: 3, "no label": 1}
    assert samples(report)[0] == f"a.csv:8: {reason}: '2'"
    lines = "0 bad\n1 good\n2 odd\n"
    options = {"format": "labelled", "labels": ("neg", "pos")}
    docs, report = run_plain(tmp_path, "a.txt", lines, **options)
    assert [doc.cats for doc in docs] == [{"neg": 1.0, "pos": 0.0}, {"neg": 0.0, "pos": 1.0}]
    assert samples(report) == [f"a.txt:3: {reason}: '2'"]


# Real data


@pytest.mark.long
def test_real_labelled(tmp_path, data):
    source = data / "textcat_sst2" / "train.txt"
    report = convert(source, tmp_path / "out.spacy")
    lines = source.read_text(encoding="utf8").strip("\n").split("\n")
    assert (report.kept, report.rejected) == (len(lines), 0) == (6920, 0)
    assert report.labels == Counter(line[0] for line in lines)
    docs = load_plain(tmp_path / "out.spacy")
    assert ["".join(doc.tokens) for doc in docs] == [line[2:].strip() for line in lines]
    assert [doc.cats for doc in docs] == [
        {"0": float(line[0] == "0"), "1": float(line[0] == "1")} for line in lines
    ]
