"""Odd documents have a defined result, and no other document pays for one that fails."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import spacy
from conftest import make_examples
from damage import cut_in_half
from small_pipelines import LANG, TEXT, annotations, assert_same, build
from spacy.tokens import DocBin
from spacy.training import Example
from spacy.util import ignore_error

from spacy_bert_heads.data.reader import make_corpus
from spacy_bert_heads.encoder import component

# --- odd documents


ODD = {
    "plain": TEXT,
    "empty": "",
    "space": "   ",
    "line breaks": "\n\t \r\n",
    "words": "word " * 40_000,
    "one word": "x" * 200_000,
    "control": "\x00\x01\x02 a\x07b \x7f",
    "emoji": "👩‍👩‍👧 🇩🇰 👍🏽 e\u0301 \u200b\u200d \ufe0f",
    "bidi": "\ufeffhello \u202eabc a\u00a0b",
    "unspaced": "船在港口外搁浅了。",
    "plain again": "The boat burned in Hull",
}


@pytest.fixture(scope="module")
def odd_nlp(checkpoint):
    return build(checkpoint, "ner", "tagger", "textcat")


@pytest.fixture(scope="module")
def odd_alone(odd_nlp):
    return {name: annotations(odd_nlp(text)) for name, text in ODD.items()}


@pytest.mark.parametrize("batch_size", [3, 1000])
def test_odd_documents_change_no_other(odd_nlp, odd_alone, batch_size):
    docs = list(odd_nlp.pipe(ODD.values(), batch_size=batch_size))
    assert len(docs) == len(ODD)
    for doc, (name, text) in zip(docs, ODD.items(), strict=True):
        assert doc.text == text
        assert_same(annotations(doc), odd_alone[name])


def test_odd_documents_alone(odd_nlp, odd_alone):
    assert odd_alone["empty"]["ents"] == odd_alone["empty"]["tags"] == []
    for name in ("space", "line breaks"):  # no wordpiece, so nothing is known of a token
        assert odd_alone[name]["ents"] == []
        assert set(odd_alone[name]["tags"]) == {""}
    assert len(odd_alone["words"]["tags"]) == 40_000
    assert len(odd_alone["one word"]["tags"]) == 1
    for name, found in odd_alone.items():
        assert set(found["cats"]) == {"fire", "voyage"}, name
        assert sum(found["cats"].values()) == pytest.approx(1, abs=1e-6), name
        assert all(0 <= score <= 1 for score in found["scores"]), name
        assert len(found["scores"]) == len(found["ents"]), name


def test_only_empty_documents(odd_nlp, odd_alone):
    docs = list(odd_nlp.pipe(["", "", ""]))
    assert [annotations(doc)["cats"] for doc in docs] == [
        pytest.approx(odd_alone["empty"]["cats"], abs=1e-5)
    ] * 3
    assert list(odd_nlp.pipe([])) == []


def test_learning_from_documents_without_tokens(make_nlp):
    nlp = make_nlp("ner", "tagger", "textcat")
    odd = [Example(nlp.make_doc(text), nlp.make_doc(text)) for text in ("", "  ", "\u200b")]
    plain = nlp.update(make_examples(nlp), sgd=False, losses={})
    mixed = nlp.update([*odd, *make_examples(nlp)], sgd=False, losses={})
    nlp.get_pipe("bert_encoder").to_bytes()  # closes the step
    # The odd ones are not annotated, and count for nothing.
    assert mixed == pytest.approx(plain, rel=1e-4)
    assert all(np.isfinite(loss) and loss > 0 for loss in plain.values())

    odd[0].reference.cats = {"fire": 1.0, "voyage": 0.0}
    losses = nlp.update(odd[:1], sgd=False, losses={})
    p = nlp("").cats["fire"]
    assert losses["bert_textcat"] == pytest.approx(-np.log(p), rel=1e-4)
    assert losses["bert_ner"] == losses["bert_tagger"] == 0


# --- documents that fail


STREAM = ["Anna left Hull", "the BOOM fell", "It burned", "BOOM", "a pump", "the crew left BOOM"]
SURVIVORS = [text for text in STREAM if "BOOM" not in text]


@pytest.fixture
def failing(make_nlp, monkeypatch):
    """A pipeline whose encoder raises at every batch with a BOOM in it."""
    nlp = make_nlp("ner", "textcat")
    pack = component.pack

    def fail(model, docs):
        if any(token.text == "BOOM" for doc in docs for token in doc):
            raise RuntimeError("the encoder went BOOM")
        return pack(model, docs)

    monkeypatch.setattr(component, "pack", fail)
    return nlp


@pytest.mark.parametrize("batch_size", [1, 2, 4, 1000])
def test_only_the_document_that_fails_is_lost(failing, batch_size):
    expected = [annotations(failing(text)) for text in SURVIVORS]
    lost = []
    failing.set_error_handler(
        lambda name, pipe, docs, error: lost.append((name, [d.text for d in docs], str(error)))
    )
    docs = list(failing.pipe(STREAM, batch_size=batch_size))
    assert [doc.text for doc in docs] == SURVIVORS
    for doc, alone in zip(docs, expected, strict=True):
        assert_same(annotations(doc), alone)
    assert lost == [
        ("bert_ner", [text], "the encoder went BOOM") for text in STREAM if "BOOM" in text
    ]


def test_contexts_stay_with_their_documents(failing):
    failing.set_error_handler(ignore_error)
    stream = [(text, {"line": i}) for i, text in enumerate(STREAM)]
    found = [(doc.text, context) for doc, context in failing.pipe(stream, as_tuples=True)]
    assert found == [("Anna left Hull", {"line": 0}), ("It burned", {"line": 2}),
                     ("a pump", {"line": 4})]  # fmt: skip


def test_by_default_the_original_error_is_raised(failing):
    with pytest.raises(RuntimeError, match="the encoder went BOOM"):
        list(failing.pipe(STREAM))
    with pytest.raises(RuntimeError, match="the encoder went BOOM"):
        failing("BOOM")
    assert failing("Anna left Hull").cats  # and the pipeline goes on working


# --- data files


@pytest.fixture
def data_file(tmp_path) -> Path:
    nlp = spacy.blank(LANG)
    file = tmp_path / "train.spacy"
    DocBin(docs=[eg.reference for eg in make_examples(nlp) * 20]).to_disk(file)
    return file


@pytest.mark.parametrize("content", ["half", "without its end", "one byte", "empty", "text"])
def test_data_file_is_damaged(data_file, content):
    nlp = spacy.blank(LANG)
    assert len(list(make_corpus(data_file)(nlp))) == 40
    whole = data_file.read_bytes()
    damaged = {
        "half": whole[: len(whole) // 2],
        "without its end": whole[:-1],
        "one byte": whole[:1],
        "empty": b"",
        "text": b"Anna left Skagen\n",
    }
    data_file.write_bytes(damaged[content])
    with pytest.raises(ValueError, match=rf"{data_file} is damaged.*spacy bert convert"):
        list(make_corpus(data_file)(nlp))


def test_one_of_several_data_files_is_damaged(data_file):
    shutil.copy(data_file, data_file.with_name("more.spacy"))
    cut_in_half(data_file.with_name("more.spacy"))
    with pytest.raises(ValueError, match=r"more\.spacy is damaged"):
        list(make_corpus(data_file.parent)(spacy.blank(LANG)))


def test_no_such_data_file(tmp_path):
    nlp = spacy.blank(LANG)
    with pytest.raises(ValueError, match=r"no '.*none\.spacy'. Create it with: python"):
        list(make_corpus(tmp_path / "none.spacy")(nlp))
    with pytest.raises(ValueError, match="no '.*nothing-here'. Create it with: .* bert convert"):
        list(make_corpus(tmp_path / "nothing-here")(nlp))
    with pytest.raises(ValueError, match=r"No data path is set. Add: --paths.train"):
        make_corpus(None)
