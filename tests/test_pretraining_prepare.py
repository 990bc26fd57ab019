"""Raw text to exact arrays on disk, once, by any number of processes, in constant memory."""

import os
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import spacy
from checkpoints import TEXTS
from raw_text import BY_KIND, TWO, WORDPIECES, jsonl, read, run, text, write
from spacy.language import Language
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.pretraining import layouts
from spacy_bert_heads.pretraining import prepare as prepare_module
from spacy_bert_heads.pretraining.boundaries import begin_words
from spacy_bert_heads.pretraining.prepare import make_sentencizer, prepare
from spacy_bert_heads.pretraining.records import Format, cut
from spacy_bert_heads.pretraining.store import open_corpus


@Language.component("picky_sentencizer")
def picky_sentencizer(doc):
    """A pipeline that can't read everything."""
    if "dynamite" in doc.text:
        raise RuntimeError("it exploded")
    for token in doc:
        token.is_sent_start = token.i % 2 == 0
    return doc


# --- arrays


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
    assert corpus.spans.tolist() == corpus.words.tolist()
    for array in (corpus.pieces, corpus.words, corpus.spans, corpus.sentences, corpus.documents):
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
    nlp = make_sentencizer("en")
    assert np.diff(corpus.documents).tolist() == [len(list(nlp(t).sents)) for t in texts]


def test_sentences_without_pieces_vanish(tmp_path):
    file = write(tmp_path / "a.jsonl", jsonl("Anna left. \u200b. \x01\n\n", "\x01\x02"))
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": [".", "\u200b", "\x01"]})
    corpus = run(tmp_path, file, pipeline=nlp)
    assert np.diff(corpus.sentences).min() > 0 and np.diff(corpus.documents).min() > 0
    assert len(corpus.documents) == 2
    assert corpus.report.skipped == Counter({"no wordpieces": 1})


def test_a_document_that_the_pipeline_fails_on_is_skipped(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("picky_sentencizer")
    file = write(tmp_path / "a.txt", text("Anna left", "dynamite", "the crew swim"))
    corpus = run(tmp_path, file, pipeline=nlp)
    assert read(corpus) == [["anna left"], ["the crew", "swim"]]
    assert corpus.report.samples == [f"{file}:3: pipeline failed: it exploded"]


def test_long_texts_are_cut_at_white_space(tmp_path):
    assert list(cut(" ab cd efgh ", 6)) == ["ab cd", "efgh"]
    assert list(cut("a bcdefghij", 4)) == ["a bc", "defg", "hij"]
    assert list(cut("abc", 3)) == ["abc"]
    nlp = make_sentencizer("en")
    nlp.max_length = 100
    words = ("fire anna. " * 50).strip()
    corpus = run(tmp_path, write(tmp_path / "a.jsonl", jsonl(words)), pipeline=nlp)
    assert corpus.report.documents == 6
    assert corpus.pieces.tolist() == WORDPIECES([words]).ids.tolist()
    assert not corpus.report.skipped


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"title": 1}\n'])
def test_nothing_kept_is_an_error_and_leaves_nothing(tmp_path, content):
    with pytest.raises(ValueError, match="All text in the sources was skipped"):
        run(tmp_path, write(tmp_path / "a", content))
    assert os.listdir(tmp_path / "cache") == []


def test_a_pipeline_without_sentences_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="sets no sentence boundaries"):
        run(tmp_path, write(tmp_path / "a.txt", b"anna"), pipeline=spacy.blank("en"))


# --- the cache


def count(tmp_path: Path) -> int:
    return len(os.listdir(tmp_path / "cache"))


def test_the_same_text_is_not_tokenized_again(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", b"anna")
    run(tmp_path, file)
    monkeypatch.setattr(prepare_module, "write_corpus", None)
    os.utime(file, (1, 1))
    assert read(run(tmp_path, file)) == [["anna"]]
    file = file.rename(tmp_path / "b.txt")
    assert read(run(tmp_path, file, workers=2, lang="en")) == [["anna"]]
    (folder,) = (tmp_path / "cache").iterdir()
    file.unlink()
    assert read(open_corpus(folder)) == [["anna"]]


def test_whatever_changes_the_result_makes_a_new_one(tmp_path):
    file = write(tmp_path / "a.txt", b"anna")
    stat = file.stat()
    run(tmp_path, file)
    file.write_bytes(b"fire")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read(run(tmp_path, file)) == [["fire"]]
    assert count(tmp_path) == 2
    file.write_bytes(b"anna")
    run(tmp_path, file, wordpieces=BY_KIND["bytes"])
    assert count(tmp_path) == 3
    run(tmp_path, file, lang="de")
    assert count(tmp_path) == 4
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": ["a"]})
    assert read(run(tmp_path, file, pipeline=nlp)) == [["anna"]]
    assert count(tmp_path) == 5
    nlp.tokenizer.add_special_case("anna", [{"ORTH": "an"}, {"ORTH": "na"}])
    run(tmp_path, file, pipeline=nlp)
    assert count(tmp_path) == 6
    run(tmp_path, file, file)
    assert count(tmp_path) == 7
    # The same bytes are a document as text, and no object as JSON Lines.
    with pytest.raises(ValueError, match="All text in the sources"):
        run(tmp_path, write(tmp_path / "a.jsonl", b"anna"))
    run(tmp_path, file, format=Format("lines"))
    assert count(tmp_path) == 8


def test_the_weights_of_a_pipeline_count_and_its_use_does_not(tmp_path):
    file = write(tmp_path / "a.txt", b"anna")
    nlp = spacy.blank("en")
    nlp.add_pipe("senter")
    nlp.initialize()
    run(tmp_path, file, pipeline=nlp)
    list(nlp.pipe(["words that it has never seen", "anna"]))
    run(tmp_path, file, pipeline=nlp)
    assert count(tmp_path) == 1
    output = nlp.get_pipe("senter").model.get_ref("output_layer")
    output.set_param("b", output.get_param("b") + 1)
    run(tmp_path, file, pipeline=nlp)
    assert count(tmp_path) == 2


def test_the_name_is_the_same_in_another_process(tmp_path):
    file = write(tmp_path / "a.txt", b"anna")
    run(tmp_path, file)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import raw_text as t\n"
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
    with pytest.raises(ValueError, match="is missing or damaged .*Delete the folder"):
        open_corpus(folder)
    with pytest.raises(ValueError, match="is missing or damaged"):
        open_corpus(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def fail(parts, folder):
        (folder / "pieces").write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module, "write_corpus", fail)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, write(tmp_path / "a.txt", b"anna"))
    assert os.listdir(tmp_path / "cache") == []


# --- size


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
    for name in ("pieces", "words", "spans", "sentences", "documents"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))


def test_a_pipeline_that_has_seen_many_words_is_loaded_anew(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", make_text(600_000))
    once = prepare([file], tmp_path / "1", wordpieces=WORDPIECES, workers=1)
    monkeypatch.setattr(prepare_module, "MAX_LEXEMES", 1000)
    loads = []
    load = prepare_module.Worker._load
    monkeypatch.setattr(prepare_module.Worker, "_load", lambda self: loads.append(1) or load(self))
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
    monkeypatch.setattr(prepare_module, "CHUNK", 2**12)
    monkeypatch.setattr(layouts, "HEAD", 2**12)
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


# --- the command


def test_prepare_command(tmp_path, checkpoint):
    write(tmp_path / "a.jsonl", jsonl(*TWO) + b"no\n")
    config, code = tmp_path / "a.cfg", tmp_path / "code.py"
    config.write_text("[paths]\nencoder = null\n\n[encoder]\nvocab_size = 40\n")
    code.write_text("print('imported')")
    arguments = ["prepare", str(config), "--paths.raw", str(tmp_path / "a.jsonl")]
    arguments += ["--paths.cache", str(tmp_path / "cache"), "--text.workers", "1"]
    arguments += ["--code", str(code), "--paths.encoder"]
    result = CliRunner().invoke(bert_app, [*arguments, checkpoint])
    assert result.exit_code == 0, result.output
    imported, *lines = result.output.splitlines()
    assert imported == "imported"
    assert lines == [
        f"{tmp_path / 'cache'}: 2 documents, 3 sentences, 17 wordpieces of 51 bytes",
        "Read as documents: 2 objects of JSON Lines",
        "Skipped: 1",
        "       1  not JSON",
        f"  {tmp_path / 'a.jsonl'}:3: not JSON: Expecting value: line 1 column 1 (char 0)",
    ]
    # Twice the same vocabulary, which is trained on the text.
    for _ in range(2):
        assert CliRunner().invoke(bert_app, [*arguments, "null"]).exit_code == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2
    result = CliRunner().invoke(bert_app, [*arguments, checkpoint, "--text.worker", "2"])
    assert result.exit_code == 1 and "'worker' in [text]" in result.output


def test_the_prepare_command_of_version_0_1(tmp_path, checkpoint):
    write(tmp_path / "a.jsonl", jsonl(*TWO))
    arguments = ["prepare", str(tmp_path / "a.jsonl"), "--encoder", checkpoint, "-w", "1"]
    with pytest.warns(DeprecationWarning, match="Use `bert prepare CONFIG --paths.raw SOURCE"):
        result = CliRunner().invoke(bert_app, [*arguments, "--cache", str(tmp_path / "cache")])
    assert f"{tmp_path / 'cache'}: 2 documents, 3 sentences" in result.output
    with pytest.warns(DeprecationWarning):
        result = CliRunner().invoke(bert_app, [*arguments, "-c", str(tmp_path), "nowhere.txt"])
    assert result.exit_code == 1 and "nowhere.txt does not exist" in result.output
