"""Pairs in the project's own JSONL, in shards, in the report and in the command's output."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conversion import (
    FIRST_ADA,
    NLP,
    QUESTIONS,
    SECOND_ADA,
    TEXT,
    TSV,
    answered,
    check_report,
    jsonl,
    judged,
    load,
    qa,
    read,
    run,
    samples,
    squad,
)
from spacy.training import Corpus
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.pairs import make_answer

pytestmark = pytest.mark.usefixtures("share_blank_pipelines")


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
    check_report(
        report,
        format="jsonl",
        read=2,
        kept=2,
        labels=Counter(entailment=1),
        pairs=Counter(hypotheses=4, questions=6),
    )


def test_jsonl_pairs_beside_other_annotation(tmp_path):
    spans = [{"start": 0, "end": 3, "label": "PER"}]
    record = {"text": TEXT, "label": "x", "spans": spans, "hypotheses": ["A."], "questions": []}
    (doc,), report = run(tmp_path, "a.jsonl", jsonl(record))
    assert (doc.cats, doc.ents[0].text, doc._.hypotheses) == ({"x": 1.0}, "Ada", ["A."])
    assert (report.labels, report.pairs["hypotheses"]) == (Counter(x=1, PER=1), 1)


def test_jsonl_fixed_offsets_of_kept_records(tmp_path):
    """Those of a rejected record do not count."""
    sea, ada = ({"text": text, "start": 7} for text in ("the sea", "Ada"))
    good = {"text": TEXT, "questions": [{"question": "What?", "answers": [sea]}]}
    bad = {"text": TEXT, "questions": [*good["questions"], {"question": "Who?", "answers": [ada]}]}
    (doc,), report = run(tmp_path, "a.jsonl", jsonl(good, bad))
    assert answered(doc) == [("What?", [(41, "the sea")])]
    assert report.notes.counts["answers located by their text, offsets corrected"] == 1
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
            "label is a number, name the labels in order with --labels: 2",
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
def test_jsonl_rejects(tmp_path, record, reason):
    content = jsonl({"text": "before", "label": "x"}, {"text": TEXT, **record}, {"text": "after"})
    docs, report = run(tmp_path, "a.jsonl", content)
    assert [doc.text for doc in docs] == ["before", "after"]
    (sample,) = samples(report)
    assert sample.startswith(f"a.jsonl:2: {reason}")


# Outputs


def test_pairs_survive_in_shards(tmp_path):
    """What the readers make is what comes back, also by spaCy's own reader."""
    lines = [squad(QUESTIONS, QUESTIONS[:1])]
    made = read("squad", lines)
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
    assert (report.unit, report.read, report.kept, report.rejected) == ("records", 7, 6, 1)
    assert report.notes.counts["answers located by their text, offsets corrected"] == 3
    assert (report.pairs["questions"], report.pairs["hypotheses"]) == (2, 4)


def test_command(tmp_path):
    def invoke(*args: Any) -> list[str]:
        result = CliRunner().invoke(bert_app, ["convert", *map(str, args)])
        assert result.exit_code == 0
        return result.output.splitlines()

    source, output = tmp_path / "a.json", tmp_path / "a.spacy"
    source.write_text(squad([qa("a", ("the sea", 1)), qa("b", ("Ada", 1))]))
    assert invoke(source, output) == [
        f"{output}: 1 of 2 questions (squad)",
        "answers: 1 of 1 document",
        "Pairs: 1 questions",
        f"Longest document: 13 tokens, {source}",
        "1 answers located by their text, offsets corrected: 'the sea'",
        "Rejected: 1",
        "       1  answer found more than once, and not at its offset",
        f"  {source}: answer found more than once, and not at its offset: 'b'",
    ]
    source = tmp_path / "a.tsv"
    source.write_text("a\tb\tc\n" + "p\th\tneutral\n" * 1200)
    columns = ["--premise-column", "a", "--hypothesis-column", "b", "--label-column", "c"]
    assert invoke(source, output, *columns) == [
        f"{output}: 1,200 of 1,200 pairs (nli-tsv), 38 documents",
        "verdicts: 38 of 38 documents",
        "Labels: neutral 1,200",
        "Pairs: 1,200 hypotheses",
        f"Longest document: 1 token, {source}:2",
    ]


@pytest.mark.parametrize("name, n_docs", [("train", 120), ("dev", 32), ("test", 40)])
def test_own_corpus(tmp_path, name, n_docs):
    source = Path(__file__).parents[1] / "assets" / f"{name}.jsonl"
    report = convert(source, tmp_path / "out.spacy")
    assert (report.format, report.kept, report.rejected) == ("jsonl", n_docs, 0)
    records = [json.loads(line) for line in source.read_text(encoding="utf8").splitlines()]
    for doc, record in zip(load(tmp_path / "out.spacy"), records, strict=True):
        hypotheses = [(x["text"], x["label"]) for x in record["hypotheses"]]
        assert judged(doc) == (record["text"], hypotheses)
        assert answered(doc) == [
            (entry["question"], [(x["start"], x["text"]) for x in entry["answers"]])
            for entry in record["questions"]
        ]


def test_a_pair_and_its_reverse_stay_together(tmp_path):
    pairs = [(f"The boat {i} left", f"A ship {i} sailed") for i in range(30)]
    rows = [
        {"premise": one, "hypothesis": other, "label": "entailment"}
        for pair in pairs
        for one, other in (pair, pair[::-1])
    ]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    convert(tmp_path / "a.jsonl", tmp_path / "out", split="0.6,0.2,0.2")
    parts: dict[frozenset, set[str]] = {}
    for part in ("train", "dev", "test"):
        for doc in load(tmp_path / "out" / f"{part}.spacy"):
            parts.setdefault(frozenset((doc.text, *doc._.hypotheses)), set()).add(part)
    assert len(parts) == len(pairs) and all(len(own) == 1 for own in parts.values())
