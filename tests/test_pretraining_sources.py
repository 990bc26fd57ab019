"""Every kind of source is read; damaged records and files are counted, reported and skipped."""

import gzip
import io
import os
import sys
import threading

import pytest
from raw_text import TWO, TWO_SENTENCES, docbin, jsonl, read, run, text, write, zstd

from spacy_bert_heads.pretraining import layouts
from spacy_bert_heads.pretraining.layouts import read_lines
from spacy_bert_heads.pretraining.records import CHUNK, read_texts
from spacy_bert_heads.pretraining.store import Corpus, open_corpus


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", jsonl(*TWO)),
        ("a.ndjson", jsonl(*TWO)),
        ("a.txt", text(*TWO)),
        ("a.txt", b"\xef\xbb\xbf\n \n" + text(*TWO).replace(b"\n", b"\r\n") + b"\r\n\r\n\r\n"),
        ("a.spacy", docbin(*TWO)),
        ("part-0001", jsonl(*TWO)),
        ("part-0001", text(*TWO)),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_every_kind_of_file(tmp_path, name, content, pack):
    ending = {bytes: "", gzip.compress: ".gz", zstd: ".zst"}[pack]
    file = write(tmp_path / (name + ending), pack(content))
    corpus = run(tmp_path, file)
    assert read(corpus) == [
        [s.replace("!", "[UNK]") for s in document] for document in TWO_SENTENCES
    ]
    assert not corpus.report.skipped


def test_objects_behind_blank_lines_are_no_text(tmp_path):
    corpus = run(tmp_path, write(tmp_path / "part-00000", b"\n \n" + jsonl(*TWO)))
    assert read(corpus) == read(run(tmp_path, write(tmp_path / "a.jsonl", jsonl(*TWO))))


def test_lines_of_a_text_document_are_one_text(tmp_path):
    corpus = run(tmp_path, write(tmp_path / "a.txt", b"Anna left\nBerlin. A\nfire.\n\t\nAnna\n"))
    assert read(corpus) == [["anna left berlin .", "a fire ."], ["anna"]]


def test_folders_and_patterns_are_sorted_and_other_files_left_alone(tmp_path):
    folder = tmp_path / "shards"
    write(folder / "b.txt", b"the")
    write(folder / "a" / "z.jsonl.gz", gzip.compress(jsonl("fire")))
    write(folder / "README.md", b"anna")
    write(folder / ".hidden" / "a.txt", b"anna")
    assert read(run(tmp_path, folder)) == [["fire"], ["the"]]
    assert read(run(tmp_path, f"{folder}/*.*")) == [["anna"], ["the"]]
    assert read(run(tmp_path, f"{folder}/**/*.gz", folder / "b.txt")) == [["fire"], ["the"]]


@pytest.mark.parametrize("content", [jsonl(*TWO), text(*TWO)])
def test_standard_input(tmp_path, monkeypatch, content):
    def prepare_input() -> Corpus:
        stdin = io.TextIOWrapper(io.BytesIO(content))
        monkeypatch.setattr(sys, "stdin", stdin)
        return run(tmp_path, "-")

    assert len(read(prepare_input())) == 2
    assert len(read(prepare_input())) == 2
    assert len(os.listdir(tmp_path / "cache")) == 1  # found again by its content, no copy left


def test_a_pipe_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    feeder = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[text(*TWO)])
    feeder.start()
    assert len(read(run(tmp_path, tmp_path / "pipe"))) == 2
    feeder.join()


@pytest.mark.parametrize("source", ["nowhere.txt", "nowhere/*.txt"])
def test_a_missing_source_is_named(tmp_path, source):
    with pytest.raises(FileNotFoundError, match="nowhere.*does not exist"):
        run(tmp_path, write(tmp_path / "a.txt", b"anna"), source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no files of raw text"):
        run(tmp_path, tmp_path / "empty")
    assert os.listdir(tmp_path / "cache") == []


def test_zstd_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for name in ("a.txt.zst", "A.TXT.ZST"):
        with pytest.raises(ImportError, match=f"{name} .*pip install zstandard"):
            run(tmp_path, write(tmp_path / name, b"anna"))


def test_texts_are_read_in_parts(tmp_path):
    (tmp_path / "a.txt").write_text(f"one\ntwo\n\n{'long ' * CHUNK}\n")
    write(tmp_path / "b.jsonl", jsonl("three", " ", "four"))
    texts = list(read_texts([tmp_path / "a.txt", tmp_path / "b.jsonl"]))
    assert (texts[0], texts[-2:]) == ("one\ntwo", ["three", "four"])
    assert max(map(len, texts)) <= CHUNK
    assert "".join(texts[1:-2]).count("long") == CHUNK


# --- what can't be read


def test_damaged_lines_are_counted_reported_and_skipped(tmp_path):
    lines = [
        b'{"text": "anna"}',
        b"",
        b'{"text": "an',
        b'{"text": "\xff"}',
        b'{"title": "anna"}',
        b'["anna"]',
        b'{"text": " "}',
        b'{"text": null}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"text": "\\u0001"}',
        b'{"text": "fire"}',
    ]
    file = write(tmp_path / "a.jsonl", b"\n".join(lines))
    corpus = run(tmp_path, file)
    assert read(corpus) == [["anna"], ["fire"]]
    assert corpus.report.skipped == {
        "empty line": 1,
        "not JSON": 2,
        "not UTF-8": 1,
        "no 'text'": 1,
        "not a JSON object": 1,
        "no text": 2,
        "text is not UTF-8": 1,
        "no wordpieces": 1,
    }
    assert len(corpus.report.samples) == 5
    assert corpus.report.samples[0] == f"{file}:2: empty line"
    assert corpus.report.samples[2].startswith(f"{file}:4: not UTF-8: 'utf-8' codec can't decode")
    assert open_corpus(next((tmp_path / "cache").iterdir())).report == corpus.report


def test_a_text_document_that_is_not_utf8_is_skipped_alone(tmp_path):
    file = write(tmp_path / "a.txt", b"anna\n\nthe\nfire \xff\n\nfire")
    corpus = run(tmp_path, file)
    assert read(corpus) == [["anna"], ["fire"]]
    assert corpus.report.samples[0].startswith(f"{file}:3: not UTF-8")


def test_a_json_array_is_skipped_with_what_to_do(tmp_path):
    bad = write(tmp_path / "bad.json", b'\n [\n{"text": "anna"},\n{"text": "fire"}\n]\n')
    corpus = run(tmp_path, bad, write(tmp_path / "good.jsonl", jsonl("hull")))
    assert read(corpus) == [["hull"]]
    assert corpus.report.skipped == {"a JSON array, write one object per line": 1}
    assert "jq -c '.[]'" in corpus.report.samples[0]


@pytest.mark.parametrize(
    "name, content",
    [
        ("b.txt.gz", gzip.compress(text(*TWO) * 1000)[:100]),
        ("b.jsonl.gz", b"no gzip"),
        ("b.spacy", docbin(*TWO)[:100]),
        ("b.spacy", b"no DocBin"),
        ("b.txt", "anna".encode("utf-16")),
    ],
    ids=["gzip cut off", "not gzip", "DocBin cut off", "no DocBin", "UTF-16"],
)
def test_a_damaged_file_does_not_end_the_run(tmp_path, name, content):
    good = write(tmp_path / "a.txt", b"anna")
    bad = write(tmp_path / name, content)
    corpus = run(tmp_path, good, bad, good)
    assert [read(corpus)[0], read(corpus)[-1]] == [["anna"], ["anna"]]
    assert corpus.report.skipped["damaged file"] == 1
    assert any(sample.startswith(f"{bad}: damaged file: ") for sample in corpus.report.samples)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda packed: packed[: len(packed) // 2], "it ends in the middle"),
        (lambda packed: b"no zstd at all", "nknown frame descriptor"),
    ],
)
def test_damaged_zstd(tmp_path, damage, reason):
    packed = zstd(b"\n\n".join(b"anna %d" % i for i in range(5000)))
    whole = run(tmp_path, write(tmp_path / "a.txt.zst", packed + packed))
    assert whole.report.documents == 9999  # two frames are one stream; no blank line between them
    good = write(tmp_path / "a.txt", b"anna")
    corpus = run(tmp_path, good, write(tmp_path / "b.txt.zst", damage(packed)))
    assert corpus.report.skipped["damaged file"] == 1
    assert reason in corpus.report.samples[0]


def test_a_file_of_one_line_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "MAX_BYTES", 10)
    content = "anna fire abcdefghijkl 船在港口外\nanna".encode()
    parts = list(read_lines(io.BytesIO(content)))
    assert b"".join(part for _, part in parts) == content
    assert parts[0] == (1, b"anna fire ") and parts[-1] == (2, b"anna")
    assert all(part.decode("utf8") for _, part in parts)
    corpus = run(tmp_path, write(tmp_path / "a.txt", b"anna a\nanna\n" * 9))
    assert corpus.report.documents == 9  # each ends with the line that makes it 10 bytes long
    assert corpus.report.pieces == 27
