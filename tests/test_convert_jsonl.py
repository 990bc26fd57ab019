"""JSONL with texts, categories and entities: exact Docs, and lines that are rejected."""

from collections import Counter

import pytest
from conversion import Plain, jsonl, run, run_plain, samples

pytestmark = pytest.mark.usefixtures("share_blank_pipelines")
TEXT = "Ada lives in Paris."
NUMBER = "label is a number, name the labels in order with --labels, or write it as a text"
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
        # An object of something else, as a tweet's.
        ({"label": "a", "entities": {"hashtags": [], "urls": []}}, None, {"a": 1.0}),
        ({"label": "a", "entities": {"LOC": ["Paris"]}}, None, {"a": 1.0}),
    ],
)
def test_jsonl(tmp_path, record, ents, cats):
    content = jsonl({"text": TEXT, **record}, {"text": "x", "spans": []})
    docs, report = run_plain(tmp_path, "a.jsonl", content)
    assert docs[0] == Plain(ADA_DOC, ents, cats)
    assert report.format == "jsonl"


@pytest.mark.parametrize("key", ["spans", "entities"])
@pytest.mark.parametrize("complete", [True, False])
def test_what_is_said_of_the_other_tokens(tmp_path, key, complete):
    record = {"text": TEXT, key: [{"start": 13, "end": 18, "label": "LOC"}], "complete": complete}
    other = "O" if complete else ""
    (doc,), report = run(tmp_path, "a.jsonl", jsonl(record))
    assert [token.ent_iob_ for token in doc] == [other, other, other, "B", other]
    assert not report.unread
    table = f"text,{key},complete\n{TEXT},\"[[13, 18, 'LOC']]\",{complete}\n"
    (doc,), _ = run(tmp_path, "a.csv", table)
    assert [token.ent_iob_ for token in doc] == [other, other, other, "B", other]


def test_entities_in_another_shape_are_named(tmp_path):
    content = jsonl({"text": TEXT, "entities": {"LOC": ["Paris"]}})
    with pytest.raises(ValueError, match="not read: entities.*Entities are lists of"):
        run(tmp_path, "a.jsonl", content)


def test_known_categories_that_a_file_lacks(tmp_path):
    content = jsonl({"text": "x", "labels": ["a"]}, {"text": "y", "labels": []})
    known = [("a", "b"), ("c", "d")]  # of the second set there is none
    docs, _ = run_plain(tmp_path, "a.jsonl", content, known_categories=known)
    assert [doc.cats for doc in docs] == [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}]
    docs, _ = run_plain(tmp_path, "a.jsonl", content, labels=("a", "b"))
    assert [doc.cats for doc in docs] == [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}]


def test_jsonl_categories_of_all_records_but_cats_and_rejected_ones(tmp_path):
    content = jsonl(
        {"text": "one", "label": "a"},
        {"text": "two", "labels": ["b", "c"]},
        {"text": "three", "labels": []},
        {"text": "four", "cats": {"other": 1.0}},
        {"text": "five", "spans": []},
        {"text": "six", "label": "rejected", "spans": [[0, 99, "X"]]},
    )
    docs, report = run_plain(tmp_path, "a.jsonl", content)
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
        ({"spans": [[0, 99, "X"]]}, "not a span of the text with a label: [0, 99, 'X']"),
        ({"spans": [[-3, 3, "X"]]}, "not a span of the text with a label: [-3, 3, 'X']"),
        ({"spans": [[3, 3, "X"]]}, "not a span of the text with a label: [3, 3, 'X']"),
        ({"spans": [[0, 3]]}, "not a span of the text with a label: [0, 3]"),
        ({"spans": "Ada"}, "not a span of the text with a label: 'Ada'"),
        ({"spans": [[0, 3, ""]]}, "no label: ''"),
        ({"spans": [[0, 3, None]]}, "no label: None"),
        ({"spans": [[True, 3, "X"]]}, "not a span of the text with a label: [True, 3, 'X']"),
        ({"spans": [], "entities": []}, "more than one of spans, entities"),
        ({"label": "a", "cats": {"a": 1}}, "more than one of label, cats"),
        ({"label": ""}, "no label: ''"),
        ({"label": True}, f"{NUMBER}: True"),
        ({"label": 1.0}, f"{NUMBER}: 1.0"),
        ({"labels": ["a", 0.5]}, f"{NUMBER}: 0.5"),
        ({"label": "\udfff"}, "label is not UTF-8: '\\udfff'"),
        ({"cats": {"a": 2}}, "cats are not between 0 and 1: {'a': 2}"),
        ({"cats": {"a": float("nan")}}, "cats are not between 0 and 1: {'a': nan}"),
        ({"cats": {"a": "1"}}, "cats are not between 0 and 1: {'a': '1'}"),
        ({"cats": {"a": True}}, "cats are not between 0 and 1: {'a': True}"),
        ({"spans": [], "answer": "reject"}, "rejected in Prodigy"),
        ({"label": "a", "answer": "ignore"}, "ignored in Prodigy"),
        ([TEXT], "not a JSON object in UTF-8"),
    ],
)
def test_jsonl_rejects(tmp_path, record, reason):
    bad = {"text": TEXT, **record} if isinstance(record, dict) else record
    content = jsonl({"text": "before", "spans": []}, bad, {"text": "after"})
    docs, report = run_plain(tmp_path, "a.jsonl", content)
    assert [doc.tokens for doc in docs] == [["before"], ["after"]]
    assert samples(report) == [f"a.jsonl:2: {reason}"]


def test_jsonl_numbers_of_labels(tmp_path):
    labels = [1, 1.0, True, "1", 0.0, None, {"a": 1}, 0.5]
    content = jsonl(*({"text": "some", "label": label} for label in labels))
    docs, report = run_plain(tmp_path, "a.jsonl", content, labels=("neg", "pos"))
    pos, neg = {"neg": 0.0, "pos": 1.0}, {"neg": 1.0, "pos": 0.0}
    assert [doc.cats for doc in docs] == [pos, pos, pos, pos, neg, {}, {"a": 1}]
    assert report.reasons == {"label is not among --labels, neither by number nor by name": 1}


def test_jsonl_broken_lines(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "a", "spans": [[0, 1, "X"]]}\r',
        b"\r",
        b'{"text": "b\xff"}',
        b"[" * 99_999,
        b'{"text": "h',
    ]
    docs, report = run_plain(tmp_path, "a.jsonl", b"\n".join(lines))
    assert docs == [Plain(["a"], [(0, 1, "X")], {})]
    assert [sample.split(":")[1] for sample in samples(report)] == ["3", "4", "5"]
    assert report.reasons == {"not a JSON object in UTF-8": 1, "not JSON": 2}


def test_tokenizer_of_the_language(tmp_path):
    records = [{"text": "Don't go", "spans": [[0, 2, "X"]]}, {"text": "a", "spans": [[0, 1, "X"]]}]
    content = jsonl(*records)
    assert run_plain(tmp_path, "a.jsonl", content, lang="en")[0][0].ents == [(0, 1, "X")]
    (doc, _), report = run(tmp_path, "a.jsonl", content, lang="xx")
    assert [token.ent_iob_ for token in doc] == ["", "O"]
    assert report.notes.counts == {"entities skipped, not whole tokens": 1}
    assert report.notes.examples == {"entities skipped, not whole tokens": "'Do'"}
    message = "1 entities .* not whole tokens of the language 'xx', such as 'Do'; that is most"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "a.jsonl", jsonl(records[0]), lang="xx")


@pytest.mark.parametrize(
    "spans, ents, iob, notes",
    [
        ([[0, 4, "X"]], ["Ada"], "BOOOO", {}),  # white space is no part of an entity
        ([[0, 2, "X"], [13, 18, "Y"]], ["Paris"], "-OOBO", {"not whole tokens": 1}),
        ([[0, 9, "X"], [4, 12, "Y"]], ["Ada lives"], "BI-OO", {"overlapping a longer one": 1}),
        ([[0, 9, "X"], [4, 9, "Y"]], ["Ada lives"], "BIOOO", {"overlapping a longer one": 1}),
        ([[0, 3, "X"], [0, 3, "X"]], ["Ada"], "BOOOO", {}),
        ([[0, 3, "X"], [0, 3, "Y"]], ["Ada"], "BOOOO", {"overlapping a longer one": 1}),
    ],
)
def test_spans_that_are_left_out_teach_nothing(tmp_path, spans, ents, iob, notes):
    (doc,), report = run(tmp_path, "a.jsonl", jsonl({"text": TEXT, "spans": spans}))
    assert [ent.text for ent in doc.ents] == ents
    assert "".join(token.ent_iob_ or "-" for token in doc) == iob
    kinds = {f"entities skipped, {kind}": n for kind, n in notes.items()}
    assert report.notes.counts == kinds


@pytest.mark.parametrize(
    "start, end, kind",
    [
        (2, 6, None),
        (2, 5, "the end is the last character"),
        (3, 7, "offsets are in UTF-16"),
        (5, 10, "offsets are in bytes"),
        (0, 1, "offsets corrected"),
    ],
)
def test_offsets_are_checked_by_the_text_of_a_span(tmp_path, start, end, kind):
    span = {"start": start, "end": end, "label": "X", "text": "Zoë!"}
    (doc,), report = run(tmp_path, "a.jsonl", jsonl({"text": "🚢 Zoë! ok", "spans": [span]}))
    assert [ent.text for ent in doc.ents] == ["Zoë!"]
    found = {f"entities located by their text, {kind}": 1} if kind else {}
    assert report.notes.counts == found
    bad = jsonl({"text": "🚢 Zoë ok", "spans": [span]}, {"text": "x", "spans": []})
    _, report = run(tmp_path, "a.jsonl", bad)
    assert report.reasons == {"a span's text is not at its offsets": 1}
