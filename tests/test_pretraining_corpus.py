"""Raw text of every kind to exact arrays on disk, in level memory; faults are counted."""

import gzip
import io
import json
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import spacy
from checkpoints import TEXTS, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import DocBin
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.pretraining import corpus as corpus_module
from spacy_bert_heads.pretraining.corpus import (
    Corpus,
    begin_words,
    cut,
    open_corpus,
    prepare,
    read_lines,
)
from spacy_bert_heads.wordpieces import Wordpieces


def make_wordpieces(kind: str = "wordpiece") -> Wordpieces:
    return Wordpieces(Tokenizer.from_str(make_tokenizer(kind).backend_tokenizer.to_str()))


WORDPIECES = make_wordpieces()
BY_KIND = {"wordpiece": WORDPIECES, "bytes": make_wordpieces("bytes")}
BY_KIND["unigram"] = make_wordpieces("unigram")
TWO = ["Anna left Berlin. The crew swim!", "A fire in New York."]
TWO_SENTENCES = [["anna left berlin .", "the crew swim !"], ["a fire in new york ."]]


@Language.component("picky_sentencizer")
def picky_sentencizer(doc):
    """A pipeline that can't read everything."""
    if "dynamite" in doc.text:
        raise RuntimeError("it exploded")
    for token in doc:
        token.is_sent_start = token.i % 2 == 0
    return doc


def read(corpus: Corpus, wordpieces: Wordpieces = WORDPIECES) -> list[list[str]]:
    """The sentences of each document, words apart, pieces of one word joined."""
    tokens = [wordpieces.tokenizer.id_to_token(int(i)) for i in corpus.pieces]
    text = [
        (" " if begins else "") + token.removeprefix("##")
        for token, begins in zip(tokens, corpus.words, strict=True)
    ]
    sentences = [
        "".join(text[start:end]).strip()
        for start, end in zip(corpus.sentences, corpus.sentences[1:], strict=False)
    ]
    return [
        sentences[start:end]
        for start, end in zip(corpus.documents, corpus.documents[1:], strict=False)
    ]


def run(tmp_path: Path, *sources: str | Path, **options) -> Corpus:
    settings = {"wordpieces": WORDPIECES, "workers": 1, **options}
    return prepare(sources, tmp_path / "cache", **settings)


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts).encode()


def docbin(*texts: str) -> bytes:
    return DocBin(docs=map(spacy.blank("en").make_doc, texts)).to_bytes()


def text(*texts: str) -> bytes:
    return "\n\n".join(texts).encode()


def zstd(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Arrays


def test_arrays_are_exact_and_read_only(tmp_path):
    file = write(tmp_path / "a.txt", text("Anna met. Lost ufra swim", "", "A pump!"))
    corpus = run(tmp_path, file)
    tokens = ["anna", "met", ".", "lost", "u", "##f", "##r", "##a", "swim", "a", "pump", "[UNK]"]
    ids = [WORDPIECES.tokenizer.token_to_id(token) for token in tokens]
    assert corpus.pieces.tolist() == ids
    assert corpus.words.astype(int).tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1]
    assert corpus.sentences.tolist() == [0, 3, 9, 12]
    assert corpus.documents.tolist() == [0, 2, 3]
    dtypes = [corpus.pieces.dtype, corpus.words.dtype]
    assert dtypes == [np.int32, np.bool_]
    assert corpus.sentences.dtype == corpus.documents.dtype == np.int64
    for array in (corpus.pieces, corpus.words, corpus.sentences, corpus.documents):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    report = corpus.report
    assert (report.documents, report.sentences, report.pieces) == (2, 3, 12)
    assert report.bytes == len("Anna met. Lost ufra swim" + "A pump!")
    assert not report.skipped and not report.samples


@pytest.mark.parametrize("kind", BY_KIND)
def test_pieces_are_those_of_the_running_text_cut_at_sentences(tmp_path, kind):
    texts = [*TEXTS, " ".join(TEXTS)]
    corpus = run(tmp_path, write(tmp_path / "a.jsonl", jsonl(*texts)), wordpieces=BY_KIND[kind])
    whole = BY_KIND[kind](texts)
    assert corpus.pieces.tolist() == whole.ids.tolist()
    assert corpus.words.tolist() == begin_words(whole, texts).tolist()
    starts = corpus.sentences[corpus.documents]
    assert np.diff(starts).tolist() == whole.lengths.tolist()
    # Where a sentence begins, so does a word, and spaCy's sentences are as many.
    assert corpus.words[corpus.sentences[:-1]].all()
    nlp = corpus_module.make_sentencizer("en")
    assert np.diff(corpus.documents).tolist() == [len(list(nlp(t).sents)) for t in texts]


def test_sentences_without_pieces_vanish(tmp_path):
    file = write(tmp_path / "a.jsonl", jsonl("Anna left. \u200b. \x01\n\n", "\x01\x02"))
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": [".", "\u200b", "\x01"]})
    corpus = run(tmp_path, file, sentences=nlp)
    assert np.diff(corpus.sentences).min() > 0 and np.diff(corpus.documents).min() > 0
    assert len(corpus.documents) == 2
    assert corpus.report.skipped == Counter({"no wordpieces": 1})


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_texts_are_cut_into_sentences_and_documents_that_cover_them(texts):
    starts = [np.arange(len(text) % 5, len(text), 3) for text in texts]
    for wordpieces in BY_KIND.values():
        pieces = wordpieces(texts)
        words = begin_words(pieces, texts)
        sentences, documents = corpus_module.cut_pieces(pieces, words, texts, starts)
        ends = np.append(0, np.cumsum(sentences))
        assert (sentences > 0).all() and sentences.sum() == len(pieces.ids)
        assert words[ends[:-1]].all()
        lengths = np.diff(ends[np.append(0, np.cumsum(documents))])
        assert lengths.tolist() == pieces.lengths[pieces.lengths > 0].tolist()


# Words


def words_of(kind: str, *texts: str) -> list[str]:
    """The text of each word, white space around it left out."""
    pieces = BY_KIND[kind](texts)
    begins = np.flatnonzero(begin_words(pieces, list(texts)))
    of_text = np.repeat(np.arange(len(texts)), pieces.lengths)
    return [
        texts[of_text[first]][pieces.starts[first] : pieces.ends[last - 1]].strip()
        for first, last in zip(begins, [*begins[1:], len(pieces.ids)], strict=True)
    ]


@pytest.mark.parametrize(
    "text, words",
    [
        ("Unsinkable, Hanne CO2.", ["Unsinkable", ",", "Hanne", "CO2", "."]),
        ("can't.\tswim", ["can", "'", "t", ".", "swim"]),
        ("cafe\u0301s na\u00adve", ["cafe\u0301s", "na\u00adve"]),
        ("ab 😀😀 👩‍👩‍👧 d", ["ab", "😀😀", "👩‍👩‍👧", "d"]),
        ("किताब an", ["किताब", "an"]),
    ],
)
def test_words_of_scripts_with_spaces(text, words):
    assert words_of("wordpiece", text) == words
    assert [word for word in words_of("unigram", text) if word] == words
    # Byte-level tokenizers make a piece of an apostrophe with what follows it.
    assert [word for word in words_of("bytes", text) if word] == (
        ["can", "'t", ".", "swim"] if "'" in text else words
    )


def test_each_piece_is_a_word_in_scripts_without_spaces():
    assert words_of("wordpiece", "Das船在港口") == ["Das", "船", "在", "港", "口"]
    assert words_of("unigram", "船在 港。")[:3] == ["船", "在", "港"]


def test_a_space_alone_belongs_to_the_word_behind_it():
    vocab = [("<unk>", 0.0), ("▁", -1.0), ("b", -1.0), ("(", -1.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    wordpieces = Wordpieces(tokenizer)
    text = "bb (b"
    pieces = wordpieces([text])
    assert [tokenizer.id_to_token(i) for i in pieces.ids] == ["▁", "b", "b", "▁", "(", "b"]
    assert begin_words(pieces, [text]).tolist() == [True, False, False, True, False, True]


def test_texts_of_a_batch_do_not_touch():
    for kind in BY_KIND:
        assert words_of(kind, "co", "st") == ["co", "st"]


def test_words_of_a_real_wordpiece_vocabulary_are_those_of_its_marks(minilm, data):
    from spacy_bert_heads.encoder.loading import load_wordpieces

    wordpieces = load_wordpieces(minilm)
    lines = (data / "raw_covid_papers" / "papers.jsonl").read_text("utf8").splitlines()[:10]
    texts = [json.loads(line)["text"][:20_000] for line in lines]
    pieces = wordpieces(texts)
    marked = [not wordpieces.tokenizer.id_to_token(int(i)).startswith("##") for i in pieces.ids]
    assert len(marked) > 20_000
    assert begin_words(pieces, texts).tolist() == marked


# Sources


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
    with pytest.raises(ImportError, match="pip install zstandard"):
        run(tmp_path, write(tmp_path / "a.txt.zst", b"anna"))


# What can't be read


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
        "no text": 4,
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


def test_a_document_that_the_pipeline_fails_on_is_skipped(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("picky_sentencizer")
    file = write(tmp_path / "a.txt", text("Anna left", "dynamite", "the crew swim"))
    corpus = run(tmp_path, file, sentences=nlp)
    assert read(corpus) == [["anna left"], ["the crew", "swim"]]
    assert corpus.report.samples == [f"{file}:3: pipeline failed: it exploded"]


def test_long_texts_are_cut_at_white_space(tmp_path):
    assert list(cut(" ab cd efgh ", 6)) == ["ab cd", "efgh"]
    assert list(cut("a bcdefghij", 4)) == ["a bc", "defg", "hij"]
    assert list(cut("abc", 3)) == ["abc"]
    nlp = corpus_module.make_sentencizer("en")
    nlp.max_length = 100
    words = ("fire anna. " * 50).strip()
    corpus = run(tmp_path, write(tmp_path / "a.jsonl", jsonl(words)), sentences=nlp)
    assert corpus.report.documents == 6
    assert corpus.pieces.tolist() == WORDPIECES([words]).ids.tolist()
    assert not corpus.report.skipped


def test_a_file_of_one_line_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "MAX_BYTES", 10)
    content = "anna fire abcdefghijkl 船在港口外\nanna".encode()
    parts = list(read_lines(io.BytesIO(content)))
    assert b"".join(part for _, part in parts) == content
    assert parts[0] == (1, b"anna fire ") and parts[-1] == (2, b"anna")
    assert all(part.decode("utf8") for _, part in parts)
    corpus = run(tmp_path, write(tmp_path / "a.txt", b"anna a\nanna\n" * 9))
    assert corpus.report.documents == 9  # each ends with the line that makes it 10 bytes long
    assert corpus.report.pieces == 27


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"title": 1}\n'])
def test_nothing_kept_is_an_error_and_leaves_nothing(tmp_path, content):
    with pytest.raises(ValueError, match="Nothing in the sources could be kept"):
        run(tmp_path, write(tmp_path / "a", content))
    assert os.listdir(tmp_path / "cache") == []


def test_a_pipeline_without_sentences_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="finds no sentences"):
        run(tmp_path, write(tmp_path / "a.txt", b"anna"), sentences=spacy.blank("en"))


# The cache


def count(tmp_path: Path) -> int:
    return len(os.listdir(tmp_path / "cache"))


def test_the_same_is_opened_and_not_read_again(tmp_path):
    file = write(tmp_path / "a.txt", b"anna")
    stat = file.stat()
    run(tmp_path, file)
    file.write_bytes(b"fire")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read(run(tmp_path, file)) == [["anna"]]
    assert read(run(tmp_path, file, workers=2, lang="en")) == [["anna"]]
    (folder,) = (tmp_path / "cache").iterdir()
    file.unlink()
    assert read(open_corpus(folder)) == [["anna"]]


def test_whatever_changes_the_result_makes_a_new_one(tmp_path):
    file = write(tmp_path / "a.txt", b"anna")
    run(tmp_path, file)
    os.utime(file, ns=(1, 1))
    run(tmp_path, file)
    assert count(tmp_path) == 2
    run(tmp_path, file, wordpieces=BY_KIND["bytes"])
    assert count(tmp_path) == 3
    run(tmp_path, file, lang="de")
    assert count(tmp_path) == 4
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": ["a"]})
    assert read(run(tmp_path, file, sentences=nlp)) == [["anna"]]
    assert count(tmp_path) == 5
    run(tmp_path, file, file)
    assert count(tmp_path) == 6


def test_the_weights_of_a_pipeline_count_and_its_use_does_not(tmp_path):
    file = write(tmp_path / "a.txt", b"anna")
    nlp = spacy.blank("en")
    nlp.add_pipe("senter")
    nlp.initialize()
    run(tmp_path, file, sentences=nlp)
    list(nlp.pipe(["words that it has never seen", "anna"]))
    run(tmp_path, file, sentences=nlp)
    assert count(tmp_path) == 1
    output = nlp.get_pipe("senter").model.get_ref("output_layer")
    output.set_param("b", output.get_param("b") + 1)
    run(tmp_path, file, sentences=nlp)
    assert count(tmp_path) == 2


def test_the_name_is_the_same_in_another_process(tmp_path):
    file = write(tmp_path / "a.txt", b"anna")
    run(tmp_path, file)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_pretraining_corpus as t\n"
        "t.run(t.Path(sys.argv[2]), sys.argv[3])"
    )
    here = str(Path(__file__).parent)
    # Trained on the spot, the other tokenizers are not the same each time; this one is.
    subprocess.run([sys.executable, "-c", code, here, str(tmp_path), str(file)], check=True)
    assert count(tmp_path) == 1


@pytest.mark.parametrize("name", ["info.json", "pieces", "documents"])
def test_a_damaged_folder_says_so(tmp_path, name):
    run(tmp_path, write(tmp_path / "a.txt", b"anna fire"))
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / name).write_bytes((folder / name).read_bytes()[:-4])
    with pytest.raises(ValueError, match="no whole corpus in .*Delete the folder"):
        open_corpus(folder)
    with pytest.raises(ValueError, match="no whole corpus"):
        open_corpus(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def fail(parts, folder):
        (folder / "pieces").write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus_module, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, write(tmp_path / "a.txt", b"anna"))
    assert os.listdir(tmp_path / "cache") == []


# Size


def make_text(size: int, seed: int = 0) -> bytes:
    """Documents with words that never come again, each of many pieces, so that whoever keeps words
    or pieces is found out."""
    rng, letters = random.Random(seed), str.maketrans("0123456789abcdef", "abcdefghilmnorst")
    documents = []
    while size > 0:
        words = [f"{rng.getrandbits(128):x} the crew. A room".translate(letters) for _ in range(30)]
        documents.append(" ".join(words[: rng.randrange(1, 30)]))
        size -= len(documents[-1]) + 2
    return text(*documents)


def test_any_number_of_workers_makes_the_same(tmp_path):
    lines = make_text(700_000).split(b"\n\n")
    lines[7] = b"bad \xff"
    lines[-9] = b"\x01"
    file = write(tmp_path / "a.txt", b"\n\n".join(lines))
    alone = prepare([file], tmp_path / "1", wordpieces=WORDPIECES, workers=1)
    together = prepare([file], tmp_path / "2", wordpieces=WORDPIECES, workers=2)
    assert alone.report == together.report
    assert alone.report.documents == len(lines) - 2
    assert alone.report.skipped == {"not UTF-8": 1, "no wordpieces": 1}
    for name in ("pieces", "words", "sentences", "documents"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))


def test_a_pipeline_that_has_seen_many_words_is_loaded_anew(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", make_text(600_000))
    once = prepare([file], tmp_path / "1", wordpieces=WORDPIECES, workers=1)
    monkeypatch.setattr(corpus_module, "MAX_LEXEMES", 1000)
    loads = []
    load = corpus_module.Worker._load
    monkeypatch.setattr(corpus_module.Worker, "_load", lambda self: loads.append(1) or load(self))
    often = prepare([file], tmp_path / "2", wordpieces=WORDPIECES, workers=1)
    assert len(loads) > 2
    assert often.report == once.report
    np.testing.assert_array_equal(often.pieces, once.pieces)


class Deadly:
    """Wordpieces that kill whoever unpacks them."""

    tokenizer = WORDPIECES.tokenizer

    def __reduce__(self):
        return os._exit, (1,)


def test_a_dead_worker_is_an_error(tmp_path):
    file = write(tmp_path / "a.txt", make_text(600_000))
    with pytest.raises(ChildProcessError, match="worker processes died"):
        prepare([file], tmp_path / "cache", wordpieces=Deadly(), workers=2)
    assert os.listdir(tmp_path / "cache") == []


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    """Of what Python and NumPy allocate: what the whole process takes jumps by more than a corpus
    that a test has time for."""
    monkeypatch.setattr(corpus_module, "CHUNK", 2**12)
    once = make_text(20_000)  # again and again, since spaCy's hash tables grow with new words
    peaks, pieces = [], []
    for times in (1, 6):
        file = write(tmp_path / f"{times}.txt", once * times)
        tracemalloc.start()
        try:
            corpus = prepare([file], tmp_path / "cache", wordpieces=WORDPIECES, workers=1)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        pieces.append(corpus.report.pieces)
    assert pieces[1] - pieces[0] > 80_000
    # Two bytes for each new wordpiece, whose id alone has four; 50 kB come and go by chance.
    assert peaks[1] - peaks[0] < 2 * (pieces[1] - pieces[0])


# The command


def test_prepare_command(tmp_path, checkpoint):
    write(tmp_path / "a.jsonl", jsonl(*TWO) + b"no\n")
    arguments = ["prepare", str(tmp_path / "a.jsonl"), "--encoder", checkpoint]
    arguments += ["--cache", str(tmp_path / "cache"), "--workers", "1"]
    result = CliRunner().invoke(bert_app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        f"{tmp_path / 'cache'}: 2 documents, 3 sentences, 17 wordpieces of 51 bytes",
        "Skipped: 1",
        "       1  not JSON",
        f"  {tmp_path / 'a.jsonl'}:3: not JSON: Expecting value: line 1 column 1 (char 0)",
    ]
    result = CliRunner().invoke(bert_app, [*arguments, "nowhere.txt"])
    assert result.exit_code == 1
    assert "nowhere.txt does not exist" in result.output
