"""Annotation of corpora: every document has one row, with what the pipeline writes on it."""

import errno
import json
import os
import resource
import shutil

import pytest
import spacy
from annotation import (
    ROWS,
    annotations,
    parts,
    read,
    run,
    write_jsonl,
    write_weak_pipeline,
)
from commands import run as run_command
from joint import BURNED, SAILED, assert_same
from spacy.tokens import DocBin

from spacy_bert_heads.annotate.claims import Claim
from spacy_bert_heads.annotate.plan import Job, open_run
from spacy_bert_heads.annotate.worker import Annotator


@pytest.fixture
def corpus(tmp_path):
    return write_jsonl(tmp_path / "in" / "in.jsonl", ROWS)


@pytest.fixture(scope="module")
def once(joint, tmp_path_factory):
    """What one process writes for ROWS."""
    folder = tmp_path_factory.mktemp("once")
    run(joint, write_jsonl(folder / "in.jsonl", ROWS), folder / "out")
    return read(folder / "out")


# --- rows


def test_a_row_has_what_the_pipeline_writes(joint, once):
    nlp = spacy.load(joint)
    assert [row["id"] for row in once] == list(range(len(ROWS)))
    for row, source in zip(once, ROWS, strict=True):
        assert {name: row[name] for name in source} == source
        if source["text"] is None:
            continue
        doc = nlp.make_doc(source["text"])
        doc._.questions = source.get("questions", [])
        doc._.hypotheses = source.get("hypotheses", [])
        doc = nlp(doc)
        assert_same(row["categories"], dict(doc.cats))
        entities = [(e["start"], e["end"], e["label"], e["text"]) for e in row["entities"]]
        assert entities == [(e.start_char, e.end_char, e.label_, e.text) for e in doc.ents]
        scores = [entity["score"] for entity in row["entities"]]
        assert scores == pytest.approx([ent._.ent_score for ent in doc.ents], abs=1e-5)
        assert [one["hypothesis"] for one in row["verdicts"]] == list(doc._.hypotheses)
        for found, verdict in zip(row["verdicts"], doc._.nli, strict=True):
            assert found["label"] == verdict["label"]
            assert_same(found["scores"], verdict["scores"])
            assert found["score"] == found["scores"][found["label"]]
        assert [one["question"] for one in row["answers"]] == list(doc._.questions)
        for found, answer in zip(row["answers"], doc._.answers, strict=True):
            places = (found["text"], found["start"], found["end"])
            assert places == (answer["text"], answer["start_char"], answer["end_char"])
            assert found["score"] == pytest.approx(answer["score"], abs=1e-5)
            assert found["no_answer_score"] == pytest.approx(answer["no_answer_score"], abs=1e-5)


def test_known_rows(once):
    assert [e["text"] for e in once[0]["entities"]] == ["Anna Grete", "Skagen", "Tuesday"]
    assert once[0]["answers"][0]["text"] == "Anna Grete"
    assert once[0]["verdicts"][0]["label"] == "entailment"
    assert once[1]["categories"]["fire"] > 0.9 and once[1]["verdicts"] == []
    assert once[2]["entities"] == [] and once[2]["error"] is None
    nothing = dict.fromkeys(("entities", "categories", "verdicts", "answers"))
    reason = {"error": "no text: it is null or missing (in.jsonl:4)"}
    assert annotations(once[3:4]) == [nothing | reason]


@pytest.mark.parametrize("docs_per_part", [1, 1000])
def test_parts_of_any_size_have_the_same_rows(joint, corpus, once, tmp_path, docs_per_part):
    run(joint, corpus, tmp_path / "out", docs_per_part=docs_per_part)
    assert len(parts(tmp_path / "out")) == -(-len(ROWS) // docs_per_part)
    assert_same(annotations(read(tmp_path / "out"))[:3], annotations(once)[:3])
    assert_same(annotations(read(tmp_path / "out"))[4:], annotations(once)[4:])


def test_documents_that_cannot_be_read(joint, tmp_path):
    lines = [
        json.dumps({"id": 1, "text": BURNED}).encode(),
        b"no json",
        b"[1, 2]",
        b'{"text": "caf\xe9"}',
        b'{"text": "half \\ud800 of a pair"}',
        b'{"text": 5}',
        b'{"id": 7}',
        b'{"text": "Where?", "questions": [" "]}',
        b'{"text": "ok", "questions": [{"question": "Where?", "answers": []}]}',
        json.dumps({"text": "x" * 1_000_001}).encode(),
        b'{"text": "ok", "score": NaN}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    summary = run(joint, tmp_path / "in.jsonl", tmp_path / "out", docs_per_part=100)
    rows = read(tmp_path / "out")
    errors = [row["error"] and row["error"].partition(":")[0] for row in rows]
    reasons = ["not JSON", "not a JSON object", "not UTF-8", "not UTF-8", "no text", "no text"]
    assert errors == [None, *reasons, "wrong questions", None, "too long", None]
    assert summary.failures == {
        "not JSON": 1,
        "not a JSON object": 1,
        "not UTF-8": 2,
        "no text": 2,
        "wrong questions": 1,
        "too long": 1,
    }
    assert rows[1] == {**dict.fromkeys(annotations(rows[1:2])[0]), "error": rows[1]["error"]}
    assert rows[1]["error"].endswith("(in.jsonl:2)")
    assert rows[8]["answers"][0]["question"] == "Where?"
    assert rows[10]["score"] is None  # JSON has no NaN
    assert [e["text"] for e in rows[0]["entities"]] == ["Hull"]


def test_lines_that_are_too_long_are_not_read(joint, tmp_path, monkeypatch):
    monkeypatch.setattr("spacy_bert_heads.annotate.source.MAX_LINE", 64)
    write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "b" * 500}, {"text": BURNED}])
    run(joint, tmp_path / "in.jsonl", tmp_path / "out", docs_per_part=2)
    errors = [row["error"] and row["error"].partition(":")[0] for row in read(tmp_path / "out")]
    assert errors == [None, "too long", None]


def test_columns_named_as_annotations_are_kept(joint, tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"text": BURNED, "error": "mine", "categories": ["a"]}])
    run(joint, tmp_path / "in.jsonl", tmp_path / "out")
    (row,) = read(tmp_path / "out")
    assert (row["input_error"], row["input_categories"]) == ("mine", ["a"])
    assert row["error"] is None and row["categories"].keys() == {"fire", "voyage"}


# --- documents that fail


@pytest.mark.parametrize("component", ["weak", "brittle"])
def test_a_document_that_fails_takes_no_other_with_it(joint, tmp_path, component):
    pipeline, code = write_weak_pipeline(joint, tmp_path, component)
    texts = [SAILED, "the BOOM fell", BURNED, "BOOM", "Grete"]
    write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    run(joint, tmp_path / "in.jsonl", tmp_path / "plain")
    summary = run(pipeline, tmp_path / "in.jsonl", tmp_path / "out", code=code)
    plain, rows = annotations(read(tmp_path / "plain")), annotations(read(tmp_path / "out"))
    for i in (0, 2, 4):
        assert_same(rows[i], plain[i])
    kind = "RuntimeError in weak" if component == "weak" else "AssertionError in brittle"
    assert rows[1]["error"].startswith(f"{kind}: went BOOM")
    assert rows[3] == {**dict.fromkeys(rows[3]), "error": rows[1]["error"]}
    assert summary.failures == {kind: 2}


def test_a_document_that_kills_its_process_is_given_up(joint, corpus, once, tmp_path):
    job = Job(str(joint), str(corpus), tmp_path / "out", docs_per_part=1000)
    annotator = Annotator(open_run(job))
    (part,) = annotator.run.parts
    batches = []
    annotate_batch = annotator.annotate_batch
    annotator.annotate_batch = lambda batch: batches.append(len(batch)) or annotate_batch(batch)
    # It died with documents 0 to 6, then with 1, then with 1 again.
    with Claim(tmp_path / "claim", [(0, 7), (1, 2), (1, 2)]) as claim:
        annotator.annotate(part, claim)
    assert batches == [1] * 6
    rows = read(tmp_path / "out")
    assert rows[1]["error"].startswith("killed the process:") and rows[1]["entities"] is None
    assert_same(annotations(rows)[4:], annotations(once)[4:])


# --- exactly once


def test_a_run_goes_on_with_what_is_missing(joint, corpus, once, tmp_path):
    out = tmp_path / "out"
    run(joint, corpus, out)
    first, second, third = parts(out)
    kept = [path.stat().st_mtime_ns for path in (first, third)]
    second.unlink()
    (out / f".{second.name}~elsewhere~1").write_text("half of it")
    summary = run(joint, corpus, out)
    assert summary.docs == len(ROWS) and summary.own_docs == 3
    assert [path.stat().st_mtime_ns for path in (first, third)] == kept
    assert read(out) == once
    assert sorted(path.name for path in out.iterdir()) == [
        ".annotate",
        ".spacy_bert_heads.json",
        first.name,
        second.name,
        third.name,
    ]
    assert list((out / ".annotate" / "claims").iterdir()) == []


def test_a_finished_run_loads_no_pipeline(joint, corpus, tmp_path, monkeypatch):
    run(joint, corpus, tmp_path / "out")
    monkeypatch.setattr("spacy_bert_heads.annotate.run.Annotator", None)
    assert run(joint, corpus, tmp_path / "out").own_docs == 0


def test_a_run_with_something_else_is_an_error(joint, corpus, tmp_path):
    out = tmp_path / "out"
    run(joint, corpus, out)
    with pytest.raises(ValueError, match="was started with docs_per_part = 3"):
        run(joint, corpus, out, docs_per_part=4)
    other = tmp_path / "pipeline"
    shutil.copytree(joint, other)
    run(other, corpus, out)  # the same, elsewhere
    (other / "meta.json").write_text((other / "meta.json").read_text() + " ")
    with pytest.raises(ValueError, match="was started with another pipeline"):
        run(other, corpus, out)
    with pytest.raises(ValueError, match="was started with other files"):
        run(joint, write_jsonl(corpus.with_name("other.jsonl"), ROWS), out)
    os.utime(corpus, (1, 1))
    run(joint, corpus, out)  # copied or touched, but the same
    corpus.write_text(corpus.read_text().replace("Hull", "Kiel"))
    with pytest.raises(ValueError, match=f"was started before {corpus} changed"):
        run(joint, corpus, out)
    shutil.rmtree(out / ".annotate")
    with pytest.raises(ValueError, match="has parts such as 'part-.*.jsonl', but no"):
        run(joint, corpus, out)


def test_the_folder_of_others_is_left_alone(joint, corpus, tmp_path):
    with pytest.raises(ValueError, match="was not made by `bert annotate`"):
        run(joint, corpus, corpus.parent)
    with pytest.raises(ValueError, match="is the name of a file"):
        run(joint, corpus, tmp_path / "out.jsonl")


def test_input_that_changes_meanwhile_is_an_error(joint, corpus, tmp_path):
    opened = open_run(Job(str(joint), str(corpus), tmp_path / "out", docs_per_part=4))
    corpus.write_text("".join(corpus.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="has changed since the run began: a part has 2 doc"):
        Annotator(opened).work()
    assert [path.name for path in parts(tmp_path / "out")] == ["part-00000.jsonl"]


def test_two_share_a_run(joint, corpus, once, tmp_path):
    one, other = (
        Annotator(open_run(Job(str(joint), str(corpus), tmp_path / "out", docs_per_part=3)))
        for _ in range(2)
    )
    first, second, third = one.run.parts
    with one.run.claim(second):
        assert not other.try_part(second)
    assert other.try_part(second) and not one.try_part(second)
    assert one.run.count_done() == 3
    with one.run.claim(third) as claim:
        claim.note((1, 2))
        assert one.run.count_done() == 4
    one.work()
    assert annotations(read(tmp_path / "out")) == annotations(once)


def test_a_full_disk_ends_the_run_and_leaves_nothing_half(joint, tmp_path):
    rows = [{"id": i, "text": "Hull burned. " * 10 * i} for i in range(40)]
    corpus = write_jsonl(tmp_path / "in.jsonl", rows)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    open_run(Job(str(joint), str(corpus), tmp_path / "out", docs_per_part=20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(OSError, match="part-00001.jsonl") as caught:
            run(joint, corpus, tmp_path / "out", docs_per_part=20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in parts(tmp_path / "out")] == ["part-00000.jsonl"]
    assert not list((tmp_path / "out").glob(".part*"))
    assert not list((tmp_path / "out" / ".annotate" / "claims").iterdir())
    run(joint, corpus, tmp_path / "out", docs_per_part=20)
    assert [row["id"] for row in read(tmp_path / "out")] == list(range(40))


# --- the command


def test_the_command(joint, corpus, tmp_path):
    arguments = ["annotate", joint, corpus, tmp_path / "out", "--docs-per-part", 3]
    result = run_command(*arguments)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"{tmp_path / 'out'}: 7 documents in 3 parts"
    assert lines[1] == "failed: 1 (no text 1)"
    words = sum(len(spacy.blank("xx")(row["text"] or "")) for row in ROWS)
    assert lines[2].startswith(f"{words:,} words, ")
    assert "7 documents in" in lines[3]
    assert "this call: 0 documents" in run_command(*arguments).output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere", "in.jsonl"], "There is no pipeline 'nowhere'"),
        (["PIPELINE", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["PIPELINE", "in.jsonl", "--text-column", "review"], "has no column 'review'"),
        (["PIPELINE", "in.jsonl", "--format", "csv"], "There is no format 'csv'"),
        (["PIPELINE", "in.jsonl", "--workers", "0"], "workers is 0. Set it to 1 or more"),
        (["PIPELINE", "in.jsonl", "--engine", "spark"], "There is no engine 'spark'"),
        (["PIPELINE", "in.jsonl", "--address", "auto"], "need --engine ray"),
        (["PIPELINE", "in.doc"], "is unknown. Rename it to one of"),
        (["PIPELINE", "empty.jsonl"], "has no documents. Pass other files"),
        (["PIPELINE", "wide.txt"], "it is UTF-16"),
        (
            ["PIPELINE", "array.json"],
            "array.json is a JSON array, but each line must be one object",
        ),
    ],
)
def test_errors_are_one_line(joint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    (tmp_path / "in.doc").write_text("text\na\n")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "wide.txt").write_text("wide", "utf16")
    (tmp_path / "array.json").write_text(json.dumps(ROWS))
    arguments = [str(joint) if word == "PIPELINE" else word for word in arguments]
    result = run_command("annotate", *arguments[:2], "out", *arguments[2:])
    assert result.exit_code == 1
    assert message in result.output and len(result.output.splitlines()) == 1


def test_a_pipeline_that_annotates_nothing(corpus, tmp_path):
    nlp = spacy.blank("xx")
    nlp.add_pipe("sentencizer")
    nlp.to_disk(tmp_path / "pipeline")
    with pytest.raises(ValueError, match="sets none of entities, .* components are sentencizer"):
        run(tmp_path / "pipeline", corpus, tmp_path / "out")


def test_docs_as_output(joint, corpus, once, tmp_path):
    run(joint, corpus, tmp_path / "out", format="spacy")
    vocab = spacy.load(joint).vocab
    docs = [
        doc for path in parts(tmp_path / "out") for doc in DocBin().from_disk(path).get_docs(vocab)
    ]
    assert [doc.user_data["id"] for doc in docs] == list(range(len(ROWS)))
    assert docs[1].user_data["source"] == {"page": 3}
    for doc, row in zip(docs, once, strict=True):
        assert doc.text == (row["text"] or "")
        assert doc.user_data.get("error") == row["error"]
        found = [(e.start_char, e.end_char, e.label_) for e in doc.ents]
        assert found == [(e["start"], e["end"], e["label"]) for e in row["entities"] or ()]
        assert [one["label"] for one in doc._.nli] == [v["label"] for v in row["verdicts"] or ()]
        assert [one["text"] for one in doc._.answers] == [a["text"] for a in row["answers"] or ()]
        assert_same(dict(doc.cats), row["categories"] or {})


def test_columns_that_a_doc_cannot_store_as_they_are(joint, tmp_path):
    row = {"text": BURNED, "big": 2**70, "half": "\ud800", "deep": [{"a": [2**70, None, 1.5]}]}
    write_jsonl(tmp_path / "in.jsonl", [row])
    run(joint, tmp_path / "in.jsonl", tmp_path / "out", format="spacy")
    (doc,) = DocBin().from_disk(parts(tmp_path / "out")[0]).get_docs(spacy.blank("xx").vocab)
    kept = {name: doc.user_data[name] for name in ("big", "half", "deep")}
    assert kept == {"big": str(2**70), "half": "?", "deep": ({"a": (str(2**70), None, 1.5)},)}


def test_memory_of_a_part_is_freed_with_it(joint, tmp_path):
    rows = [{"text": f"word{i} other{i * i}"} for i in range(40)]
    corpus = write_jsonl(tmp_path / "in.jsonl", rows)
    annotator = Annotator(
        open_run(Job(str(joint), str(corpus), tmp_path / "out", docs_per_part=10))
    )
    first, *others = annotator.run.parts
    annotator.try_part(first)
    vocab = annotator.nlp.vocab
    strings, lexemes = len(vocab.strings), sum(1 for _ in vocab)
    for part in others:
        annotator.try_part(part)
    assert (len(vocab.strings), sum(1 for _ in vocab)) == (strings, lexemes)


def test_many_new_words_have_the_pipeline_loaded_anew(joint, corpus, once, tmp_path, monkeypatch):
    monkeypatch.setattr("spacy_bert_heads.annotate.worker.MAX_NEW_WORDS", 12)
    annotator = Annotator(open_run(Job(str(joint), str(corpus), tmp_path / "out", docs_per_part=3)))
    used = []
    for part in annotator.run.parts:
        used.append(annotator.nlp.vocab)
        annotator.try_part(part)
    assert [vocab is used[0] for vocab in used] == [True, True, False]
    assert read(tmp_path / "out") == once
