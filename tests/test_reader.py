"""What the reader and the batcher make of data and settings at the edge of what they take."""

import random

import pytest
import spacy
from hypothesis import example, given
from hypothesis import strategies as st
from pair_examples import DATA, LANG
from pair_examples import make_example as pair_example
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Corpus
from spacy.util import registry

from spacy_bert_heads.data.batching import batch_by_pieces
from spacy_bert_heads.data.reader import make_corpus

NLP = spacy.blank(LANG)
LOWER = registry.augmenters.get("spacy.lower_case.v1")
WORDS = ["The", "ship", "Anna", ".", "Grete", "left", "Hull", "on", "Monday", "."]


def make_doc(words=WORDS, sent_starts=None) -> Doc:
    doc = Doc(NLP.vocab, words=words, sent_starts=sent_starts)
    doc.ents = [Span(doc, 2, 3, "SHIP")]
    return doc


@pytest.fixture
def save(tmp_path):
    def save(*docs: Doc, **settings):
        path = tmp_path / "a.spacy"
        DocBin(docs=docs, **settings).to_disk(path)
        return path

    return save


# --- augmenters


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_an_augmenter_works_as_in_spacys_reader(save, level):
    path = save(*[make_doc()] * 8)

    def read(reader):
        random.seed(3)
        return [(eg.x.text, eg.y.text, eg.y.to_json()["ents"]) for eg in reader(NLP)]

    found = read(make_corpus(path, augmenter=LOWER(level=level)))
    assert found == read(Corpus(path, augmenter=LOWER(level=level)))
    are_lower = {text.islower() for text, _, _ in found}
    assert are_lower == {0.0: {False}, 0.5: {False, True}, 1.0: {True}}[level]


def test_an_augmenter_takes_no_pairs_away(save):
    docs = [pair_example(NLP, text, gold).reference for text, gold in DATA[:2]]
    path = save(*docs, make_doc(), store_user_data=True)
    read = list(make_corpus(path, augmenter=LOWER(level=1.0))(NLP))
    assert [eg.y.text for eg in read[:2]] == [doc.text for doc in docs]
    assert read[2].y.text.islower()
    for eg, doc in zip(read, docs, strict=False):
        assert eg.y._.answers == doc._.answers and eg.y._.nli == doc._.nli
        assert eg.x._.questions == doc._.questions and eg.x._.hypotheses == doc._.hypotheses


def test_an_augmenter_that_keeps_pairs_may_change_the_text(save):
    def shout(nlp, eg):
        yield eg
        again = pair_example(nlp, *DATA[2])
        again.predicted.user_data.clear()
        yield again

    path = save(pair_example(NLP, *DATA[0]).reference, store_user_data=True)
    first, second = make_corpus(path, augmenter=shout)(NLP)
    assert (first.y.text, second.y.text) == (DATA[0][0], DATA[2][0])
    assert second.x._.questions == second.y._.questions == ["Why?"]


def test_an_augmenter_of_a_config(save):
    path = str(save(make_doc()))
    augmenter = {"@augmenters": "spacy.lower_case.v1", "level": 1.0}
    reader = {"@readers": "spacy_bert_heads.Corpus.v1", "path": path, "augmenter": augmenter}
    (eg,) = registry.resolve({"corpus": reader})["corpus"](NLP)
    assert eg.y.text.islower()
    assert [(ent.text, ent.label_) for ent in eg.y.ents] == [("anna", "SHIP")]


# --- Docs that are too long


def test_if_every_doc_is_too_long_that_is_said(save):
    path = save(make_doc(), make_doc())
    with pytest.raises(ValueError, match=r"all of its 2 Docs have at least max_length = 5 tokens"):
        list(make_corpus(path, max_length=5)(NLP))
    assert len(list(make_corpus(path, max_length=11)(NLP))) == 2
    assert len(list(make_corpus(path)(NLP))) == 2


def test_sentences_of_long_docs_are_read(save):
    starts = [i in (0, 4) for i in range(len(WORDS))]
    path = save(make_doc(sent_starts=starts))
    texts = [eg.y.text.strip() for eg in make_corpus(path, max_length=8)(NLP)]
    assert texts == ["The ship Anna .", "Grete left Hull on Monday ."]
    assert len(list(make_corpus(path, max_length=5)(NLP))) == 1
    with pytest.raises(ValueError, match="none has a shorter sentence"):
        list(make_corpus(path, max_length=3)(NLP))


def test_no_docs_are_no_long_docs(save):
    assert list(make_corpus(save(), max_length=5)(NLP)) == []


@pytest.mark.parametrize("limit", [0, 1, 2, 5])
def test_a_limit_counts_docs_with_tokens(save, limit):
    docs = [Doc(NLP.vocab), make_doc(), Doc(NLP.vocab), make_doc(["a", "b", "c"]), make_doc()]
    path = save(*docs)
    found = [len(eg.y) for eg in make_corpus(path, limit=limit)(NLP)]
    assert found == [len(eg.y) for eg in Corpus(path, limit=limit)(NLP)]
    assert found == [10, 3, 10][: limit or None]


# --- user data


@pytest.mark.parametrize("max_pairs", [0, 1])
def test_a_doc_without_user_data_has_none(save, max_pairs):
    without, pairs = make_doc(), pair_example(NLP, *DATA[2]).reference
    without.user_data = None
    path = save(without, pairs, store_user_data=True)
    first, *rest = make_corpus(path, max_pairs=max_pairs)(NLP)
    assert first.y.text == make_doc().text and not first.y._.questions
    assert [eg.y._.questions for eg in rest if eg.y._.questions] == [["Why?"]]


def test_a_pipeline_reads_a_doc_whose_user_data_was_taken_away(make_nlp):
    nlp = make_nlp("ner", "textcat")
    doc = nlp.make_doc("Anna Grete left Skagen")
    doc.user_data = None
    doc = nlp(doc)
    assert doc.cats and isinstance(doc._.ent_scores, list)


# --- sizes of batches


class Letters:
    """A tokenizer of letters, without special tokens."""

    pair = type("Pair", (), {"prefix": (), "middle": (), "suffix": ()})
    num_special = 0

    def __call__(self, texts):
        import numpy as np

        return type("Pieces", (), {"lengths": np.asarray([len(text) for text in texts])})


@given(st.lists(st.integers(1, 6), max_size=12), st.lists(st.integers(1, 9), min_size=1))
@example([5, 5, 5, 5, 5], [5, 5])
@example([1] * 12, [2, 4])
def test_the_last_size_stays_in_force(lengths, sizes):
    docs = [Doc(NLP.vocab, words=["a" * n], spaces=[False]) for n in lengths]
    for size in (sizes, iter(sizes)):
        batches = list(batch_by_pieces(docs, size=size, load=Letters))
        assert [doc for batch in batches for doc in batch] == docs
        for i, batch in enumerate(batches):
            budget = sizes[min(i, len(sizes) - 1)]
            total = sum(len(doc.text) for doc in batch)
            assert total <= budget or len(batch) == 1
            if i + 1 < len(batches):
                assert total + len(batches[i + 1][0].text) > budget


def test_no_size_at_all_is_an_error():
    with pytest.raises(ValueError, match="size is an empty sequence"):
        list(batch_by_pieces([make_doc()], size=[], load=Letters))
