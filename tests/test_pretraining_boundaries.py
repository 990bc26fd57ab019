"""Where words, sentences and documents begin in wordpieces, for three kinds of tokenizers."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_text import BY_KIND
from tokenizers import Tokenizer, models, pre_tokenizers

from spacy_bert_heads.pretraining.boundaries import begin_words, cut_pieces
from spacy_bert_heads.text.wordpieces import WordpieceTokenizer


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_texts_are_cut_into_sentences_and_documents_that_cover_them(texts):
    starts = [np.arange(len(text) % 5, len(text), 3) for text in texts]
    for wordpieces in BY_KIND.values():
        pieces = wordpieces(texts)
        words = begin_words(pieces, texts)
        sentences, documents = cut_pieces(pieces, words, texts, starts)
        ends = np.append(0, np.cumsum(sentences))
        assert (sentences > 0).all() and sentences.sum() == len(pieces.ids)
        assert words[ends[:-1]].all()
        lengths = np.diff(ends[np.append(0, np.cumsum(documents))])
        assert lengths.tolist() == pieces.lengths[pieces.lengths > 0].tolist()


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
    wordpieces = WordpieceTokenizer(tokenizer)
    text = "bb (b"
    pieces = wordpieces([text])
    assert [tokenizer.id_to_token(i) for i in pieces.ids] == ["▁", "b", "b", "▁", "(", "b"]
    assert begin_words(pieces, [text]).tolist() == [True, False, False, True, False, True]


def test_texts_of_a_batch_do_not_touch():
    for kind in BY_KIND:
        assert words_of(kind, "co", "st") == ["co", "st"]


def test_words_of_a_real_wordpiece_vocabulary_are_those_of_its_marks(minilm, data):
    from spacy_bert_heads.encoder.loading import load_wordpiece_tokenizer

    wordpieces = load_wordpiece_tokenizer(minilm)
    lines = (data / "raw_covid_papers" / "papers.jsonl").read_text("utf8").splitlines()[:10]
    texts = [json.loads(line)["text"][:20_000] for line in lines]
    pieces = wordpieces(texts)
    marked = [not wordpieces.tokenizer.id_to_token(int(i)).startswith("##") for i in pieces.ids]
    assert len(marked) > 20_000
    assert begin_words(pieces, texts).tolist() == marked
