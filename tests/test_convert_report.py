"""What a conversion reports or rejects; the same data in several formats; splits."""

import importlib.util
import json
from collections import Counter

import numpy as np
import pytest
from conversion import jsonl, load, read, run, samples, seen
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.split import Member, split_members

pytestmark = pytest.mark.usefixtures("share_blank_pipelines")


@pytest.mark.parametrize(
    "content, options, message",
    [
        (jsonl({"stars": 5, "text": "great"}), {}, "Nothing in .* is annotated: .*not read: stars"),
        (jsonl({"tokens": ["a"], "ner_tags": [3]}), {}, "'ner_tags' has numbers.*with --labels"),
        (
            jsonl({"text": "a", "label": "joy,love"}, {"text": "b", "label": "joy"}),
            {},
            "'joy,love' looks like several. Add --label-separator ','",
        ),
        (
            jsonl(*({"text": "a", "label": f"text {i}"} for i in range(100))),
            {},
            "100 different categories in 100 documents",
        ),
        (
            jsonl({"text": "a", "label": 3}),
            {"labels": ("x",)},
            "label is not among --labels, neither by number nor by name: 3",
        ),
        (jsonl({"text": "a"}), {"label_columns": ("x",)}, "no column named by --label-columns: x"),
        (
            jsonl(
                {"text": "a", "spans": [8, 9]},
                {"text": "b", "spans": [3]},
                {"text": "c", "spans": []},
            ),
            {},
            "No labels are left: 2 records in .* were rejected, .* 1 have no label.*jsonl:1",
        ),
        (
            jsonl({"text": "a", "spans": [], "_view_id": "pos_manual", "answer": "accept"}),
            {},
            "spans of Prodigy are tags",
        ),
        (
            "Anna (1)\nleft -\n",
            {"format": "conll"},
            "in brackets are not supported.*--tag-column: '.1.'",
        ),
    ],
)
def test_what_can_not_be_told_is_an_error(tmp_path, content, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "a.jsonl", content, **options)
    assert not (tmp_path / "out.spacy").exists()


def test_one_category_with_a_comma(tmp_path):
    content = jsonl({"text": "a", "label": "joy,love"}, {"text": "b", "label": "joy"})
    docs, _ = run(tmp_path, "a.jsonl", content, label_separator="")
    assert docs[0].cats == {"joy": 0.0, "joy,love": 1.0}


def test_the_report_names_what_was_not_read_and_is_rare(tmp_path):
    rows = [{"text": f"w{i}", "label": "a" if i else "b", "id": i, "meta": {}} for i in range(11)]
    _, report = run(tmp_path, "a.jsonl", jsonl(*rows))
    assert report.lines() == [
        "11 of 11 records (jsonl)",
        "categories: 11 of 11 documents",
        "Labels: a 10, b 1",
        "Labels with fewer than 10 examples: b 1",
        f"Longest document: 1 token, {tmp_path / 'a.jsonl'}:1",
        "Not read: id",
    ]


@pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="needs pyarrow")
def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    names = {"info": {"features": {"label": {"names": ["bad", "good"]}}}}
    table = pyarrow.table({"text": ["x", "y"], "label": [1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    parquet.write_table(table, tmp_path / "a.parquet")
    convert(tmp_path / "a.parquet", tmp_path / "out.spacy")
    cats = [doc.cats for doc in load(tmp_path / "out.spacy")]
    assert cats == [{"bad": 0.0, "good": 1.0}, {"bad": 1.0, "good": 0.0}]


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is there")
def test_parquet_without_pyarrow(tmp_path):
    with pytest.raises(ImportError, match="a.parquet is a Parquet file. Install pyarrow"):
        run(tmp_path, "a.parquet", b"PAR1")


# --- the same in several formats

WORDS = st.sampled_from(["Ada", "left", "Hull", "é", "🚢", "x"])


@st.composite
def annotated(draw):
    """Draw words with entities that don't overlap, and a category."""
    words = draw(st.lists(WORDS, min_size=1, max_size=6))
    ents, at = [], 0
    while at < len(words):
        length = draw(st.integers(1, 2))
        if draw(st.booleans()) and at + length <= len(words):
            ents.append((at, at + length, draw(st.sampled_from(["X", "Y"]))))
        at += length
    return words, ents


@settings(deadline=None, max_examples=25)
@given(st.lists(annotated(), min_size=1, max_size=3))
def test_all_formats_tell_the_same(records):
    conll, own, doccano, prodigy, tasks, arrays = [], [], [], [], [], ["tokens,tags\n"]
    for words, ents in records:
        tags = ["O"] * len(words)
        text, starts = " ".join(words), []
        for i in range(len(words)):
            starts.append(len(" ".join(words[:i])) + bool(i))
        spans = []
        for first, end, label in ents:
            tags[first:end] = [f"{'I' if i else 'B'}-{label}" for i in range(end - first)]
            span = {"start": starts[first], "end": starts[end - 1] + len(words[end - 1])}
            spans.append({**span, "label": label})
        conll += [f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)] + ["\n"]
        numpy = [str(np.array(values, dtype=object)) for values in (words, tags)]
        arrays.append(",".join(f'"{array}"' for array in numpy) + "\n")
        own.append(json.dumps({"text": text, "spans": spans}))
        triples = [[s["start"], s["end"], s["label"]] for s in spans]
        doccano.append([text, {"entities": triples}])
        given = {"spans": spans} if spans else {}
        prodigy.append(json.dumps({"text": text, "tokens": [], "answer": "accept", **given}))
        values = [{**s, "labels": [s["label"]]} for s in spans]
        result = [{"type": "labels", "value": value} for value in values]
        tasks.append({"data": {"text": text}, "annotations": [{"result": result}]})
    expected = [
        (" ".join(words), [(" ".join(words[a:b]), label) for a, b, label in ents])
        for words, ents in records
    ]
    has_any = any(ents for _, ents in records)
    swapped = ["\t".join(line.split()[::-1]) + "\n" for line in conll]  # the tags come first
    for name, lines in (
        ("conll", conll),
        ("conll", swapped if has_any else []),
        ("csv", arrays),
        ("jsonl", own),
        ("jsonl", prodigy),
        ("json", [json.dumps(doccano)]),
        ("json", [json.dumps(tasks)] if has_any else []),
    ):
        found = [seen(doc)[:2] for doc in read(name, lines) if isinstance(doc, Doc)]
        assert found == (expected if lines else [])


# --- splits


def test_split(tmp_path):
    rows = [{"text": f"w{i % 36}", "label": "ab"[i % 36 < 6]} for i in range(40)]
    (tmp_path / "a.jsonl").write_text(jsonl(*rows))
    parts = {}
    for seed in (0, 0, 1):
        command = [
            "convert",
            tmp_path / "a.jsonl",
            tmp_path / "out",
            "--split",
            "0.5,0.25,0.25",
            "--seed",
            seed,
        ]
        result = CliRunner().invoke(bert_app, list(map(str, command)))
        assert result.exit_code == 0, result.output
        parts[seed, seed in parts] = {
            name: [(doc.text, dict(doc.cats)) for doc in load(tmp_path / "out" / f"{name}.spacy")]
            for name in ("train", "dev", "test")
        }
    assert "train: 20 documents" in result.output
    (first, *_, last) = parts.values()
    assert first != last
    for part in parts.values():
        assert [len(docs) for docs in part.values()] == [20, 10, 10]
        texts = [{text for text, _ in docs} for docs in part.values()]
        assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
        held = [Counter(max(cats, key=cats.get) for _, cats in docs) for docs in part.values()]
        assert [counts["b"] for counts in held] in ([5, 3, 2], [5, 2, 3], [6, 2, 2], [4, 3, 3])
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "dev.spacy",
        "test.spacy",
        "train.spacy",
    ]


@pytest.mark.parametrize("split", ["0.5", "0.8,0.3", "1,0", "a,b", "0.25,0.25,0.25,0.25"])
def test_wrong_shares(tmp_path, split):
    (tmp_path / "a.jsonl").write_text(jsonl({"text": "a", "label": "x"}))
    with pytest.raises(ValueError, match=f"--split is '{split}'"):
        convert(tmp_path / "a.jsonl", tmp_path / "out", split=split)


def test_nothing_is_left_for_a_part():
    members = [Member((f"t{i}", "one source"), None) for i in range(9)]
    with pytest.raises(ValueError, match="nothing for dev: 9 documents are 1 groups"):
        split_members(members, {"train": 0.5, "dev": 0.5}, seed=0)


def test_rejected_records_are_counted_as_the_user_counts(tmp_path):
    content = jsonl(
        {"premise": "a" * 1_000_001, "hypothesis": "x", "label": "yes"},
        {"premise": "a" * 1_000_001, "hypothesis": "y", "label": "yes"},
        {"premise": "b", "hypothesis": "y", "label": "yes"},
    )
    _, report = run(tmp_path, "a.jsonl", content)
    assert (report.unit, report.read, report.kept, report.rejected) == ("pairs", 3, 1, 2)
    assert samples(report) == ["a.jsonl:1: too long for spaCy: 1000001 characters"]
