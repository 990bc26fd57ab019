"""Conversion of files in any format: finding the format, folders, shards, and broken files."""

import gzip
import itertools
import os

import pytest
from conversion import (
    CONLL,
    CONLL_DOCS,
    NLP,
    Plain,
    jsonl,
    load_plain,
    run_plain,
    samples,
)
from raw_text import zstd
from spacy.training import Corpus

from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.files import File
from spacy_bert_heads.data.formats import READERS, find_format
from spacy_bert_heads.data.records import Options
from spacy_bert_heads.files import OUTPUT_MARK

pytestmark = pytest.mark.usefixtures("share_blank_pipelines")


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
        ("a.json", '{\n "text": "x",\n "text": "x",\n "text": "x"\n}', "json"),
        ("a.txt", "{one}\n(two)\n[three]", None),
        ("a.txt", "x" * 200_000, None),
        ("a.txt", "", None),
    ],
)
def test_find_format(tmp_path, name, content, format):
    (tmp_path / name).write_text(content, encoding="utf8")
    assert find_format(File(tmp_path / name), Options()) == format
    (tmp_path / f"{name}.GZ").write_bytes(gzip.compress(content.encode("utf8")))
    assert find_format(File(tmp_path / f"{name}.GZ"), Options()) == format


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
        assert load_plain(source / "out.spacy") == [
            Plain(["one"], None, {"a": 1.0, "b": 0.0}),
            Plain(["two"], None, {"a": 0.0, "b": 1.0}),
            Plain(["three"], [], {}),
        ]
        assert report.format == "jsonl, conll"
        assert samples(report) == ["README.md: empty file or unknown format"]


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
        assert [len(load_plain(path)) for path in shards] == sizes
        texts = [example.predicted[0].text for example in Corpus(output)(NLP)]
        assert texts == [f"w{i}" for i in range(25)]
    assert [path.name for path in tmp_path.rglob(".*")] == [OUTPUT_MARK]


def test_an_interrupted_run_leaves_the_earlier_output(tmp_path, monkeypatch):
    run_plain(tmp_path, "a.conll", CONLL)

    def interrupted(file, options):
        yield from itertools.islice(READERS["conll"](file, options), 1)
        raise KeyboardInterrupt

    monkeypatch.setitem(READERS, "jsonl", interrupted)
    for output in ("out.spacy", "shards"):
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "a.conll", tmp_path / output, format="jsonl", max_docs=1)
    assert load_plain(tmp_path / "out.spacy") == CONLL_DOCS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.conll", "out.spacy"]


def test_nothing_kept(tmp_path):
    with pytest.raises(ValueError) as error:
        run_plain(tmp_path, "a.conll", "\tO\n\n\tB-X\n")
    message = str(error.value)
    assert "a.conll:1: empty token" in message
    assert "conll, conllu, labelled, csv, tsv, jsonl" in message
    assert [path.name for path in tmp_path.iterdir()] == ["a.conll"]
    with pytest.raises(ValueError, match="there are no records"):
        run_plain(tmp_path, "empty.jsonl", "")
    with pytest.raises(ValueError, match="plain.txt: empty file or unknown format"):
        run_plain(tmp_path, "plain.txt", "Just one line.\n")


def test_wrong_options(tmp_path):
    source = tmp_path / "a.conll"
    with pytest.raises(FileNotFoundError, match="a.conll does not exist"):
        convert(source, tmp_path / "out.spacy")
    source.write_text(CONLL)
    with pytest.raises(ValueError, match="no format 'xml'. Choose one of: conll, conllu"):
        convert(source, tmp_path / "out.spacy", format="xml")
    with pytest.raises(ValueError, match="Set it to 1 or more"):
        convert(source, tmp_path / "out", max_docs=0)
    with pytest.raises(ValueError, match="must end in .spacy, an output folder"):
        convert(source, source)
    (tmp_path / "folder.spacy").mkdir()
    with pytest.raises(ValueError, match="must end in .spacy, an output folder"):
        convert(source, tmp_path / "folder.spacy")
    with pytest.raises(ValueError, match="out.txt would be a folder. Choose a file"):
        convert(source, tmp_path / "out.txt")


def test_a_pipe_is_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file"):
        convert(tmp_path / "pipe", tmp_path / "out.spacy")


@pytest.mark.parametrize(
    "content", [b"EU\tB-ORG\n", gzip.compress(CONLL.encode())[:-9]], ids=["not gzip", "cut off"]
)
def test_broken_gzip(tmp_path, content):
    with pytest.raises(ValueError, match="a.conll.gz can.t be read"):
        run_plain(tmp_path, "a.conll.gz", content)


def test_zstd(tmp_path):
    packed = zstd((CONLL + "\n").encode())
    assert run_plain(tmp_path, "a.conll.zst", packed + packed)[0] == CONLL_DOCS * 2
    with pytest.raises(ValueError, match="a.conll.zst can.t be read: it ends in the middle"):
        run_plain(tmp_path, "a.conll.zst", packed[:-1])


def test_utf16(tmp_path):
    with pytest.raises(ValueError, match="a.csv can.t be read: it is UTF-16"):
        run_plain(tmp_path, "a.csv", "text,label\nfine,1\n".encode("utf-16"))


def test_lines_end_at_newlines_only(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffa\u2028b\x0c\r\nc\rd\n\nlast".encode())
    assert list(File(tmp_path / "a").lines()) == ["a\u2028b\x0c\r\n", "c\rd\n", "\n", "last"]
