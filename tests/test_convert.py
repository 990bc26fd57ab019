"""Every format in, exact Docs out of the `.spacy` file; and what must be refused, with its line."""

import functools
import gzip
import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc, DocBin
from spacy.training import Corpus

from spacy_bert_heads.convert import ConversionReport, convert, find_format, read_lines
from spacy_bert_heads.files import OUTPUT_MARK
from spacy_bert_heads.readers import READERS, Refused, Settings, tags_to_entities

blank_once = functools.cache(spacy.blank)  # it takes longer than most tests
NLP = blank_once("en")
DATA = Path(__file__).parents[1] / "../shared/data"


class Plain(NamedTuple):
    """A Doc as plain data. `ents` is None where entities are not annotated."""

    tokens: list[str]
    ents: list[tuple[int, int, str]] | None
    cats: dict[str, float]


def plain(doc: Doc) -> Plain:
    ents = [(ent.start, ent.end, ent.label_) for ent in doc.ents]
    annotated = doc.has_annotation("ENT_IOB", require_complete=True)
    assert annotated or not doc.has_annotation("ENT_IOB")
    tokens = [token.text_with_ws for token in doc]
    if doc.has_unknown_spaces:  # then spaCy sets one behind each token, the last included
        assert all(token.endswith(" ") for token in tokens)
        tokens[-1] = tokens[-1][:-1]
    return Plain(tokens, ents if annotated else None, doc.cats)


def load(path: Path) -> list[Plain]:
    return [plain(doc) for doc in DocBin().from_disk(path).get_docs(NLP.vocab)]


def run(
    tmp_path: Path, name: str, content: str | bytes, **options: Any
) -> tuple[list[Plain], ConversionReport]:
    """Convert one file and load the result."""
    source = tmp_path / name
    source.write_bytes(content.encode("utf8") if isinstance(content, str) else content)
    report = convert(source, tmp_path / "out.spacy", **options)
    docs = load(tmp_path / "out.spacy")
    assert report.kept == len(docs)
    assert report.read == report.kept + report.refused
    assert report.refused == sum(report.reasons.values())
    return docs, report


def jsonl(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def samples(report: ConversionReport) -> list[str]:
    """The samples without their folder."""
    return [sample.rpartition("/")[2] for sample in report.samples]


@pytest.fixture(autouse=True)
def share_blank_pipelines(monkeypatch):
    monkeypatch.setattr(spacy, "blank", blank_once)


# CoNLL

CONLL = "EU\tB-ORG\nrejects\tO\nGerman\tB-MISC\n\nPeter\tB-PER\nBlackburn\tI-PER\n"
CONLL_DOCS = [
    Plain(["EU ", "rejects ", "German"], [(0, 1, "ORG"), (2, 3, "MISC")], {}),
    Plain(["Peter ", "Blackburn"], [(0, 2, "PER")], {}),
]


def test_conll(tmp_path):
    docs, report = run(tmp_path, "train.conll", CONLL)
    assert docs == CONLL_DOCS
    assert report == ConversionReport(
        format="conll", read=2, kept=2, labels=Counter(ORG=1, MISC=1, PER=1)
    )


@pytest.mark.parametrize(
    "content",
    [
        CONLL.replace("\t", " "),
        CONLL.replace("\t", "   "),
        CONLL.replace("\t", "\tNNP\t"),
        CONLL.replace("\t", " NNP I-NP "),
        CONLL.replace("\n", "\r\n"),
        CONLL.replace("\n", "\t \n"),  # white space at the end, also of blank lines
        CONLL.replace("\n\n", "\n\n\n"),
        CONLL.rstrip("\n"),
        "\ufeff" + CONLL,
        "-DOCSTART- -X- -X- O\n\n" + CONLL,
        CONLL.replace("\n\n", "\n-DOCSTART-\tO\n"),
        "# sent_id = 1\n# text = EU rejects\n" + CONLL.replace("\n\n", "\n\n# sent_id = 2\n"),
        "# id 7d3a\tdomain=en\n" + CONLL.replace("\t", " _ _ "),
    ],
)
def test_conll_variants(tmp_path, content):
    docs, report = run(tmp_path, "train.conll", content)
    assert docs == CONLL_DOCS
    assert report.refused == 0


def test_conll_is_predicted_on_the_files_own_tokens(tmp_path):
    source = tmp_path / "a.conll"
    source.write_text("@paul:x\tB-PER\ncan't\tO\n")
    convert(source, tmp_path / "a.spacy")
    (example,) = Corpus(tmp_path / "a.spacy")(NLP)
    assert [token.text for token in example.predicted] == ["@paul:x", "can't"]


def test_conll_number_sign_is_a_token(tmp_path):
    docs, _ = run(tmp_path, "a.conll", "# O\n1 B-X\n\n#\tO\n=\tO\n=\tO\n")
    assert [doc.tokens for doc in docs] == [["# ", "1"], ["# ", "= ", "="]]
    docs, _ = run(tmp_path, "a.conll", "# = SYM O\n1 CD NUM B-X\n")
    assert docs == [Plain(["# ", "1"], [(1, 2, "X")], {})]


@pytest.mark.parametrize("token", ["\xa0", "a\xa0b", "\u200b", "\u2028", "\x85", "\ufeff", "a b"])
def test_conll_odd_white_space_in_a_token(tmp_path, token):
    docs, _ = run(tmp_path, "a.conll", f"in\tO\n{token}\tB-X\nnow\tO\n")
    assert docs == [Plain(["in ", f"{token} ", "now"], [(1, 2, "X")], {})]
    # spaCy's own reader tokenizes the text anew, and that must still align.
    (example,) = Corpus(tmp_path / "out.spacy")(NLP)
    assert example.reference.ents[0].text == token
    assert None not in example.get_aligned_ner()


@pytest.mark.parametrize(
    "bad, reason",
    [
        ("b\tFOO", "not a tag of BIO or BILOU: 'FOO'"),
        ("b\tX-PER", "not a tag of BIO or BILOU: 'X-PER'"),
        ("b\tB-", "not a tag of BIO or BILOU: 'B-'"),
        ("b\tb-PER", "not a tag of BIO or BILOU: 'b-PER'"),
        ("b\t", "wrong number of columns: 1 instead of 2"),
        ("b\tNN\tO", "wrong number of columns: 3 instead of 2"),
        ("\tO", "empty token"),
        (" O", "empty token"),
        (b"b\xff\tO", "not UTF-8"),
    ],
)
def test_conll_refuses_the_sentence_with_a_bad_line(tmp_path, bad, reason):
    bad = bad.encode() if isinstance(bad, str) else bad
    content = CONLL.encode().replace(b"\n\n", b"\n\na\tO\n" + bad + b"\nc\tB-ORG\n\n")
    docs, report = run(tmp_path, "a.conll", content)
    assert docs == CONLL_DOCS
    assert (report.read, report.refused) == (3, 1)
    assert samples(report) == [f"a.conll:6: {reason}"]
    assert report.reasons == {reason.partition(":")[0]: 1}
    assert report.labels == Counter(ORG=1, MISC=1, PER=1)


def test_conll_column_count_comes_from_a_sentence_that_could_be_read(tmp_path):
    content = "a\nb X O\n\na X B-A\n\nb B-B\n\nc X B-C"
    docs, report = run(tmp_path, "a.conll", content)
    assert [doc.ents for doc in docs] == [[(0, 1, "A")], [(0, 1, "C")]]
    assert samples(report) == [
        "a.conll:1: wrong number of columns: 1 instead of 2",
        "a.conll:6: wrong number of columns: 2 instead of 3",
    ]


def test_conll_without_blank_lines_is_not_one_huge_sentence():
    lines = itertools.chain(itertools.repeat("a\tO\n", 150_000), ["\n", "b\tO\n"])
    first, second = READERS["conll"](lines, Settings(NLP))
    assert first == Refused(1, "no blank line for 100000 lines")
    assert isinstance(second, Doc) and [token.text for token in second] == ["b"]


# Tag schemes


@pytest.mark.parametrize(
    "tags, entities",
    [
        ("O O", []),
        ("B-X I-X I-X O", [(0, 3, "X")]),
        ("B-X B-X I-X", [(0, 1, "X"), (1, 3, "X")]),
        ("B-X I-Y", [(0, 1, "X"), (1, 2, "Y")]),
        ("I-X I-X B-X O I-Y", [(0, 2, "X"), (2, 3, "X"), (4, 5, "Y")]),  # IOB1
        ("U-X B-X L-X B-X I-X L-X", [(0, 1, "X"), (1, 3, "X"), (3, 6, "X")]),
        ("S-X B-X E-X B-X I-X E-X", [(0, 1, "X"), (1, 3, "X"), (3, 6, "X")]),
        ("B-X L-X I-X", [(0, 2, "X"), (2, 3, "X")]),  # L closes
        ("U-X I-X", [(0, 1, "X"), (1, 2, "X")]),  # U closes
        ("O L-X O E-X", [(1, 2, "X"), (3, 4, "X")]),  # a stray end is all there is
        ("B-creative-work I-creative-work", [(0, 2, "creative-work")]),
    ],
)
def test_tags_to_entities(tags, entities):
    assert tags_to_entities(tags.split()) == entities


@st.composite
def entity_spans(draw):
    """Draw a number of tokens and entities that do not overlap."""
    lengths = st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(["X", "Y", "B-I"]))
    entities, position = [], 0
    for gap, length, label in draw(st.lists(lengths, max_size=6)):
        entities.append((position + gap, position + gap + length, label))
        position += gap + length
    return position + draw(st.integers(0, 2)), entities


def render(n_tokens, entities, *, single, begin, inside, last):
    tags = ["O"] * n_tokens
    for start, end, label in entities:
        prefixes = begin + inside * (end - start - 2) + last if end - start > 1 else single
        tags[start:end] = [f"{prefix}-{label}" for prefix in prefixes]
    return tags


@settings(deadline=None)
@given(entity_spans())
def test_every_scheme_gives_the_same_entities(drawn):
    n_tokens, entities = drawn
    bio = render(n_tokens, entities, single="B", begin="B", inside="I", last="I")
    iob1 = list(bio)
    for start, _, label in entities:
        # IOB1 has a B only where an entity follows another one of its label.
        if start == 0 or not bio[start - 1].endswith(f"-{label}"):
            iob1[start] = f"I-{label}"
    bilou = render(n_tokens, entities, single="U", begin="B", inside="I", last="L")
    bioes = render(n_tokens, entities, single="S", begin="B", inside="I", last="E")
    for tags in (bio, iob1, bilou, bioes):
        assert tags_to_entities(tags) == entities
        docs = list(READERS["conll"]([f"w {tag}\n" for tag in tags], Settings(NLP)))
        ents = [plain(doc).ents for doc in docs if isinstance(doc, Doc)]
        assert ents == ([entities] if n_tokens else [])


# Labelled lines


def test_labelled(tmp_path):
    content = "1 a stirring film .\n\n0 \t dull\xa0\n0 good, not great\n"
    docs, report = run(tmp_path, "train.txt", content)
    assert docs == [
        Plain(["a ", "stirring ", "film ", "."], None, {"0": 0.0, "1": 1.0}),
        Plain(["dull"], None, {"0": 1.0, "1": 0.0}),
        Plain(["good", ", ", "not ", "great"], None, {"0": 1.0, "1": 0.0}),
    ]
    assert (report.format, report.labels) == ("labelled", Counter({"0": 2, "1": 1}))


def test_labelled_fasttext(tmp_path):
    content = "__label__b __label__a both\n__label__a one\nnone\n__label__ nothing\n__label__c\n"
    docs, report = run(tmp_path, "train.txt", content)
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
    docs, report = run(tmp_path, "train.txt", content, format="labelled")
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
    docs, report = run(tmp_path, "a.csv", content)
    assert docs == [
        Plain(["Good", ", ", '"', "really", '"'], None, {"neg": 0.0, "pos": 1.0}),
        Plain(["two", "\n", "lines"], None, {"neg": 1.0, "pos": 0.0}),
        Plain(["fine"], None, {"neg": 0.0, "pos": 1.0}),
    ]
    assert report == ConversionReport(
        format="csv", read=3, kept=3, labels=Counter({"pos": 2, "neg": 1})
    )


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
    docs, report = run(tmp_path, "a.tsv", f"{header}\r\nfine\t1\r\n", **options)
    assert docs == [Plain(["fine"], None, {"1": 1.0})]
    assert report.format == "tsv"


@pytest.mark.parametrize(
    "header", ["body,stars", "text,stars", "review,sentence,label", "text,text,label", "text"]
)
def test_csv_unclear_columns(tmp_path, header):
    with pytest.raises(ValueError) as error:
        run(tmp_path, "a.csv", f"{header}\nfine,1\n")
    assert f"a.csv:1: no columns for text and label: {header.split(',')}" in str(error.value)
    assert "name them by --text-column and --label-column" in str(error.value)


@pytest.mark.parametrize("name", ["a.csv", "a"])
def test_csv_with_semicolons(tmp_path, name):
    docs, report = run(tmp_path, name, 'text;label\n"so, so; la";neg\nfine, this;pos\n')
    assert [doc.tokens for doc in docs] == [
        ["so", ", ", "so", "; ", "la"],
        ["fine", ", ", "this"],
    ]
    assert report.format == "csv" and not report.refused


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
    docs, report = run(tmp_path, "a.csv", content)
    assert [doc.tokens for doc in docs] == [["good"], ["fine"]]
    assert report.reasons == {
        "wrong number of columns": 2,
        "no text": 1,
        "no label": 1,
        "text is not UTF-8": 1,
        "broken quotes": 2,
    }
    assert samples(report) == [
        "a.csv:3: wrong number of columns: 3 instead of 2",
        "a.csv:5: no text: ''",
        "a.csv:6: no label: ' '",
        "a.csv:7: text is not UTF-8: 'caf\\udce9'",
        "a.csv:8: wrong number of columns: 1 instead of 2",
    ]


def test_csv_open_quote_does_not_swallow_the_file():
    lines = itertools.chain(["text,label\n", '"open,pos\n'], itertools.repeat("fine,pos\n", 20_000))
    first, *rest = READERS["csv"](lines, Settings(NLP))
    assert isinstance(first, Refused) and first.line == 2
    assert len(rest) == 20_000 and all(isinstance(doc, Doc) for doc in rest)


def test_csv_record_longer_than_pythons_limit(tmp_path):
    """131,072 characters; what looks like rows in it are none."""
    clauses = "".join(f"Line {n}, signed\n" for n in range(10_000))
    docs, report = run(tmp_path, "a.csv", f'text,label\n"{clauses}",long\nfine,pos\n')
    assert [doc.cats for doc in docs] == [{"long": 1.0, "pos": 0.0}, {"long": 0.0, "pos": 1.0}]
    assert "".join(docs[0].tokens) == clauses and not report.refused


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
    docs, report = run(tmp_path, "a.tsv", "\n".join(["text\tlabel", *rows, ""]))
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
    assert samples(report) == ["a.tsv:11: wrong number of columns: 3 instead of 2"]


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="can be read only once"):
        convert(tmp_path / "pipe", tmp_path / "out.spacy")


# JSONL

TEXT = "Ada lives in Paris."
ADA_DOC = ["Ada ", "lives ", "in ", "Paris", "."]


@pytest.mark.parametrize(
    "record, ents, cats",
    [
        ({}, None, {}),
        ({"spans": []}, [], {}),
        ({"spans": None, "label": None}, None, {}),
        ({"spans": [{"start": 13, "end": 18, "label": "LOC", "x": 1}]}, [(3, 4, "LOC")], {}),
        ({"entities": [[13, 18, "LOC"], [0, 3, 1]]}, [(0, 1, "1"), (3, 4, "LOC")], {}),
        (
            {"entities": [{"start_offset": 0, "end_offset": 9, "label": "X", "id": 4}]},
            [(0, 2, "X")],
            {},
        ),
        ({"label": "a"}, None, {"a": 1.0}),
        ({"label": 1}, None, {"1": 1.0}),
        ({"labels": ["b", "a"]}, None, {"a": 1.0, "b": 1.0}),
        ({"labels": []}, None, {}),
        ({"cats": {"b": 0.25, "a": 1}}, None, {"a": 1, "b": 0.25}),
        ({"cats": {}, "spans": [], "answer": "accept", "other": [1]}, [], {}),
    ],
)
def test_jsonl(tmp_path, record, ents, cats):
    docs, report = run(tmp_path, "a.jsonl", jsonl({"text": TEXT, **record}))
    assert docs == [Plain(ADA_DOC, ents, cats)]
    assert report.format == "jsonl"


def test_jsonl_categories_of_all_records_but_cats_and_refused_ones(tmp_path):
    content = jsonl(
        {"text": "one", "label": "a"},
        {"text": "two", "labels": ["b", "c"]},
        {"text": "three", "labels": []},
        {"text": "four", "cats": {"other": 1.0}},
        {"text": "five", "spans": []},
        {"text": "six", "label": "refused", "spans": [[0, 1, "X"]]},
    )
    docs, report = run(tmp_path, "a.jsonl", content)
    assert [doc.cats for doc in docs] == [
        {"a": 1.0, "b": 0.0, "c": 0.0},
        {"a": 0.0, "b": 1.0, "c": 1.0},
        {"a": 0.0, "b": 0.0, "c": 0.0},
        {"other": 1.0},
        {},
    ]
    assert report.labels == Counter(a=1, b=1, c=1, other=1)


@pytest.mark.parametrize(
    "record, reason",
    [
        ({"text": None}, "no text: None"),
        ({"text": "  \n"}, "no text: '  \\n'"),
        ({"text": ["a"]}, "no text: ['a']"),
        ({"text": "a\ud800"}, "text is not UTF-8: 'a\\ud800'"),
        ({"text": "a" * 1_000_001}, "too long for spaCy: 1000001 characters"),
        ({"spans": [[0, 2, "X"]]}, "span is not whole tokens: 'Ad'"),
        ({"spans": [[0, 4, "X"]]}, "span is not whole tokens: 'Ada '"),
        ({"spans": [[0, 99, "X"]]}, "not a span of the text with a label: [0, 99, 'X']"),
        ({"spans": [[-3, 3, "X"]]}, "not a span of the text with a label: [-3, 3, 'X']"),
        ({"spans": [[3, 3, "X"]]}, "not a span of the text with a label: [3, 3, 'X']"),
        ({"spans": [[0, 3]]}, "not a span of the text with a label: [0, 3]"),
        ({"spans": "Ada"}, "not a span of the text with a label: 'Ada'"),
        ({"spans": [[0, 3, ""]]}, "no label: ''"),
        ({"spans": [[0, 3, None]]}, "no label: None"),
        ({"spans": [[0, 9, "X"], [4, 12, "Y"]]}, "overlapping spans: 'Ada lives' and 'lives in'"),
        ({"spans": [[0, 3, "X"], [0, 3, "X"]]}, "overlapping spans: 'Ada' and 'Ada'"),
        ({"spans": [], "entities": []}, "more than one of spans, entities"),
        ({"label": "a", "cats": {"a": 1}}, "more than one of label, labels, cats"),
        ({"label": ""}, "no label: ''"),
        ({"label": True}, "no label: True"),
        ({"label": [[0, 3, "X"]]}, "no label: [0, 3, 'X']"),
        ({"label": "\udfff"}, "label is not UTF-8: '\\udfff'"),
        ({"cats": {"a": 2}}, "cats are not between 0 and 1: {'a': 2}"),
        ({"cats": {"a": float("nan")}}, "cats are not between 0 and 1: {'a': nan}"),
        ({"cats": {"a": "1"}}, "cats are not between 0 and 1: {'a': '1'}"),
        ({"label": "a", "answer": "reject"}, "rejected or ignored in Prodigy"),
        ([TEXT], "not a JSON object in UTF-8"),
    ],
)
def test_jsonl_refuses(tmp_path, record, reason):
    bad = {"text": TEXT, **record} if isinstance(record, dict) else record
    content = jsonl({"text": "before"}, bad, {"text": "after"})
    docs, report = run(tmp_path, "a.jsonl", content)
    assert [doc.tokens for doc in docs] == [["before"], ["after"]]
    assert samples(report) == [f"a.jsonl:2: {reason}"]


def test_jsonl_broken_lines(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "a"}\r',
        b"\r",
        b'{"text": "b\xff"}',
        b"[" * 99_999,
        b'{"text": "h',
    ]
    docs, report = run(tmp_path, "a.jsonl", b"\n".join(lines))
    assert docs == [Plain(["a"], None, {})]
    assert [sample.split(":")[1] for sample in samples(report)] == ["3", "4", "5"]
    assert report.reasons == {"not a JSON object in UTF-8": 1, "not JSON": 2}


def test_tokenizer_of_the_language(tmp_path):
    content = jsonl({"text": "Don't", "spans": [[0, 2, "X"]]})
    assert run(tmp_path, "a.jsonl", content, lang="en")[0][0].ents == [(0, 1, "X")]
    with pytest.raises(ValueError, match="span is not whole tokens: 'Do'"):
        run(tmp_path, "a.jsonl", content, lang="xx")


# Finding the format


@pytest.mark.parametrize(
    "name, content, format",
    [
        ("a.txt", CONLL, "conll"),
        ("a.tsv", CONLL, "conll"),
        ("a", "bad line\n" + CONLL, "conll"),
        ("a.IOB2", "", "conll"),
        ("a.tsv", "x\ty\n", "tsv"),
        ("a.txt", "id\ttext\tlabel\n", "tsv"),
        ("a.txt", '"label","text"\n', "csv"),
        ("a.csv", "x;y\n", "csv"),
        ("a.txt", '{"text": "x"}\n{"text": "y"}\n{"te', "jsonl"),
        ("a.ndjson", "", "jsonl"),
        ("a.txt", "1 x\n0 y\n", "labelled"),
        ("a.txt", "pos x\npos y\nneg x\npos z\n" * 2, "labelled"),
        ("a.txt", "__label__pos x\n__label__neg y\n", "labelled"),
        ("a.txt", "One plain line.\nAnd another.\n", None),
        ("a.md", "- one\n- two\n- three\n- four\n", None),
        ("a.json", '{\n "text": "x",\n "text": "x",\n "text": "x"\n}', None),
        ("a.txt", "x" * 200_000, None),
        ("a.txt", "", None),
    ],
)
def test_find_format(tmp_path, name, content, format):
    (tmp_path / name).write_text(content, encoding="utf8")
    assert find_format(tmp_path / name, Settings(NLP)) == format
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode("utf8")))
    assert find_format(tmp_path / f"{name}.gz", Settings(NLP)) == format


# Sources and outputs


def test_folder(tmp_path):
    source = tmp_path / "data"
    (source / "b").mkdir(parents=True)
    (source / ".hidden").mkdir()
    (source / ".hidden" / "x.conll").write_text("Hidden\tO\n")
    (source / "b" / "x.jsonl").write_text(jsonl({"text": "two", "label": "b"}))
    (source / "a.jsonl").write_text(jsonl({"text": "one", "label": "a"}))
    (source / "c.conll.gz").write_bytes(gzip.compress(b"three O\n"))
    (source / "README.md").write_text("Read me.\n")
    for _ in range(2):  # the second time there is an output in the source
        report = convert(source, source / "out.spacy")
        assert load(source / "out.spacy") == [
            Plain(["one"], None, {"a": 1.0}),  # categories are those of the file
            Plain(["two"], None, {"b": 1.0}),
            Plain(["three"], [], {}),
        ]
        assert report.format == "jsonl, conll"
        assert samples(report) == ["README.md:1: empty file or unknown format"]


def test_shards(tmp_path):
    source, output = tmp_path / "a.conll", tmp_path / "new" / "corpus"
    source.write_text("".join(f"w{i} O\n\n" for i in range(25)))
    for max_docs, sizes in [(5, [5] * 5), (10, [10, 10, 5])]:  # the last two shards are now stale
        report = convert(source, output, max_docs=max_docs)
        assert report.kept == 25
        shards = sorted(output.glob("[!.]*"))
        assert [path.name for path in shards] == [
            f"shard-{i:05}.spacy" for i, _ in enumerate(sizes, 1)
        ]
        assert [len(load(path)) for path in shards] == sizes
        texts = [example.predicted[0].text for example in Corpus(output)(NLP)]
        assert texts == [f"w{i}" for i in range(25)]
    assert [path.name for path in tmp_path.rglob(".*")] == [OUTPUT_MARK]


def test_readers_are_lazy():
    """However long the file, a reader takes no more lines than the Docs asked for need."""
    lines = {
        "conll": ["a O\n", "\n"],
        "labelled": ["1 a\n"],
        "csv": ["text,label\n"],  # a row like its header is a row
        "tsv": ["text\tlabel\n"],
        "jsonl": ['{"text": "a"}\n'],
        "nli-jsonl": [jsonl({"premise": x, "hypothesis": "b", "label": "c"}) for x in "ab"],
        "nli-tsv": ["premise\thypothesis\tlabel\n", "a\tb\tc\n"],
        "nli-csv": ["premise,hypothesis,label\n", "a,b,c\n"],
    }
    assert set(lines) == set(READERS) - {"squad"}  # one JSON object
    for name, repeated in lines.items():
        taken = itertools.count()
        endless = (line for line in itertools.cycle(repeated) if next(taken) >= 0)
        docs = list(itertools.islice(READERS[name](endless, Settings(NLP)), 100))
        assert all(isinstance(doc, Doc) for doc in docs)
        assert next(taken) <= 100 * len(repeated) + 1


def test_an_interrupted_run_leaves_the_earlier_output(tmp_path, monkeypatch):
    run(tmp_path, "a.conll", CONLL)

    def interrupted(lines, settings):
        yield from itertools.islice(READERS["conll"](lines, settings), 1)
        raise KeyboardInterrupt

    monkeypatch.setitem(READERS, "jsonl", interrupted)
    for output in ("out.spacy", "shards"):
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "a.conll", tmp_path / output, format="jsonl", max_docs=1)
    assert load(tmp_path / "out.spacy") == CONLL_DOCS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.conll", "out.spacy"]


def test_nothing_kept(tmp_path):
    with pytest.raises(ValueError) as error:
        run(tmp_path, "a.conll", "one two three\n\nfour five six\n")
    message = str(error.value)
    assert "a.conll:1: not a tag of BIO or BILOU: 'three'" in message
    assert "a.conll:3: not a tag of BIO or BILOU: 'six'" in message
    assert "conll, labelled, csv, tsv, jsonl" in message
    assert [path.name for path in tmp_path.iterdir()] == ["a.conll"]
    with pytest.raises(ValueError, match="There are no records"):
        run(tmp_path, "empty.jsonl", "")
    with pytest.raises(ValueError, match="plain.txt:1: empty file or unknown format"):
        run(tmp_path, "plain.txt", "Just one line.\n")


def test_wrong_options(tmp_path):
    source = tmp_path / "a.conll"
    with pytest.raises(FileNotFoundError, match="a.conll does not exist"):
        convert(source, tmp_path / "out.spacy")
    source.write_text(CONLL)
    with pytest.raises(ValueError, match="no format 'xml'. Formats: conll, labelled"):
        convert(source, tmp_path / "out.spacy", format="xml")
    with pytest.raises(ValueError, match="at least 1"):
        convert(source, tmp_path / "out", max_docs=0)
    with pytest.raises(ValueError, match="in the way"):
        convert(source, source)
    (tmp_path / "folder.spacy").mkdir()
    with pytest.raises(ValueError, match="in the way"):
        convert(source, tmp_path / "folder.spacy")


@pytest.mark.parametrize(
    "content", [b"EU\tB-ORG\n", gzip.compress(CONLL.encode())[:-9]], ids=["not gzip", "cut off"]
)
def test_broken_gzip(tmp_path, content):
    with pytest.raises(ValueError, match="a.conll.gz cannot be unpacked"):
        run(tmp_path, "a.conll.gz", content)


def test_utf16(tmp_path):
    with pytest.raises(ValueError, match="a.csv is UTF-16"):
        run(tmp_path, "a.csv", "text,label\nfine,1\n".encode("utf-16"))


def test_lines_end_at_newlines_only(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffa\u2028b\x0c\r\nc\rd\n\nlast".encode())
    assert list(read_lines(tmp_path / "a")) == ["a\u2028b\x0c\r\n", "c\rd\n", "\n", "last"]


# Real data


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in ../shared/data")
    return DATA / name


@pytest.mark.parametrize(
    "name, n_docs",
    [("ner_wnut17/train.conll", 3394), ("ner_ncbi_disease/train.tsv", 5432)],
)
def test_real_conll(tmp_path, name, n_docs):
    source = real(name)
    report = convert(source, tmp_path / "out.spacy")
    # These files are plain BIO: every B is an entity, every other non-blank line one more token.
    lines = source.read_text(encoding="utf8").split("\n")
    rows = [line.split("\t") for line in lines if line.strip()]
    begins = Counter(tag[2:] for _, tag in rows if tag.startswith("B-"))
    assert (report.kept, report.refused, report.labels) == (n_docs, 0, begins)
    docs = load(tmp_path / "out.spacy")
    tokens = [token.strip(" ") for doc in docs for token in doc.tokens]
    assert tokens == [token for token, _ in rows]
    n_inside = sum(end - start for doc in docs for start, end, _ in doc.ents or [])
    assert n_inside == sum(tag != "O" for _, tag in rows)


def test_real_labelled(tmp_path):
    source = real("textcat_sst2/train.txt")
    report = convert(source, tmp_path / "out.spacy")
    lines = source.read_text(encoding="utf8").strip("\n").split("\n")
    assert (report.kept, report.refused) == (len(lines), 0) == (6920, 0)
    assert report.labels == Counter(line[0] for line in lines)
    docs = load(tmp_path / "out.spacy")
    assert ["".join(doc.tokens) for doc in docs] == [line[2:].strip() for line in lines]
    assert [doc.cats for doc in docs] == [
        {"0": float(line[0] == "0"), "1": float(line[0] == "1")} for line in lines
    ]
