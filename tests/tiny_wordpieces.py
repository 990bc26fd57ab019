"""Tokenizers of each kind with a few pieces, and texts that are hard for them."""

from functools import cache

import spacy
from checkpoints import SPECIAL, make_tokenizer
from hypothesis import strategies as st
from spacy.tokens import Doc
from tokenizers import models, pre_tokenizers

from spacy_bert_heads.text.wordpieces import WordpieceTokenizer

KINDS = list(SPECIAL)
NLP = spacy.blank("en")
ZWSP, ZWJ, NBSP, BOM, ACCENT = "\u200b", "\u200d", "\u00a0", "\ufeff", "\u0301"

# Vocabularies by hand: a trained one is not the same from run to run.
WORDPIECES = ["a", "b", "##b", "cannot", "can", "cafe", "船", "在", "😀", "👩👩👧"]
MERGES = ["c a", "ca n", "n o", "no t", "can not", "Ġ cannot", "Ġ a", "ð Ł", "ðŁ ĳ"]
UNIGRAMS = ["a", "b", "▁a", "▁b", "▁can", "▁cannot", "café", "船", "在", "😀", "👩"]


@cache
def by_hand(kind: str) -> WordpieceTokenizer:
    """The tokenizer of a kind with a vocabulary of a few pieces."""
    tokenizer = make_tokenizer(kind).backend_tokenizer
    special = SPECIAL[kind]
    if kind == "wordpiece":
        vocab = number([*special, *WORDPIECES])
        tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
    elif kind == "bytes":
        merges = [tuple(merge.split()) for merge in MERGES]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = number([*special, *alphabet, *(a + b for a, b in merges)])
        tokenizer.model = models.BPE(vocab, merges)
    else:
        scores = [(piece, 0.0) for piece in special] + [("▁", -3.0)]
        scores += [(piece, -1.0 - len(piece) / 100) for piece in UNIGRAMS]
        tokenizer.model = models.Unigram(scores, special.index("<unk>"))
    return WordpieceTokenizer(tokenizer)


@cache
def trained(kind: str) -> WordpieceTokenizer:
    return WordpieceTokenizer(make_tokenizer(kind).backend_tokenizer)


def number(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces)}


def make_doc(*words: str) -> Doc:
    """A Doc of these words; ␣ at a word's end is the space behind it."""
    return Doc(
        NLP.vocab,
        words=[word.removesuffix("␣") for word in words],
        spaces=[word.endswith("␣") for word in words],
    )


TRICKY = [*" \t\n\r\v\x00\x1c\x85é船😀👩ﬁ①\u2028\u3000\ufdfa", NBSP, ZWSP, ZWJ, BOM, ACCENT]
WORDS = ["cannot", "don't", "Café", "the", "\r\n", "<mask>", "[SEP]", "İ", "ẞ", "\u1100\u1161"]
CHARACTERS = st.one_of(
    st.sampled_from(TRICKY),
    st.sampled_from("abcdeABC.,'-"),
    st.characters(exclude_categories=["Cs"]),
)
TEXTS = st.lists(st.one_of(CHARACTERS, st.sampled_from(WORDS)), max_size=20).map("".join)
