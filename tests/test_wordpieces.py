"""Offsets of wordpieces, and the pieces of every spaCy token, for each kind of tokenizer."""

import time
from functools import cache

import numpy as np
import pytest
import spacy
from checkpoints import SPECIAL, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from tokenizers import Tokenizer, models, pre_tokenizers

from spacy_bert_heads.wordpieces import Wordpieces, align, token_offsets

KINDS = list(SPECIAL)
NLP = spacy.blank("en")
ZWSP, ZWJ, NBSP, BOM = "\u200b", "\u200d", "\u00a0", "\ufeff"
FAMILY = f"👩{ZWJ}👩{ZWJ}👧"

# Vocabularies by hand: a trained one changes from run to run.
WORDPIECES = ["a", "b", "cannot", "can", "##b", "##x", "cafe", "船", "在", "港", "😀", "👩👩👧"]
MERGES = ["c a", "ca n", "n o", "no t", "can not", "Ġ cannot", "Ġ a", "ð Ł", "ðŁ ĳ", "¨ å"]
UNIGRAMS = ["a", "b", "▁a", "▁b", "▁cannot", "▁can", "café", "船", "在", "😀", "👩"]


@cache
def trained(kind: str) -> Wordpieces:
    return Wordpieces(make_tokenizer(kind).backend_tokenizer)


@cache
def by_hand(kind: str) -> Wordpieces:
    """The tokenizer of that kind with a vocabulary of a few pieces."""
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
    return Wordpieces(tokenizer)


def number(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces)}


def doc_of(text: str, words: list[str]) -> Doc:
    """A Doc of these words; a space that begins no word belongs to the word before."""
    spaces, at = [], 0
    for word, following in zip(words, [*words[1:], ""], strict=False):
        assert text.startswith(word, at)
        at += len(word)
        spaces.append(text.startswith(" ", at) and not following.startswith(" "))
        at += spaces[-1]
    doc = Doc(NLP.vocab, words=words, spaces=spaces)
    assert doc.text == text
    return doc


def aligned(wordpieces: Wordpieces, docs: list[Doc]) -> list[list[list[int]]]:
    """The numbers of each token's pieces, counted from the Doc's first piece."""
    texts = [doc.text for doc in docs]
    pieces = wordpieces(texts)
    first, count, tokens = align(pieces, docs, texts)
    assert tokens.tolist() == [len(doc) for doc in docs]
    base = np.repeat(np.cumsum(pieces.lengths) - pieces.lengths, tokens)
    numbers = [
        list(range(start, start + n))
        for start, n in zip((first - base).tolist(), count.tolist(), strict=True)
    ]
    ends = np.cumsum(tokens).tolist()
    return [numbers[end - len(doc) : end] for doc, end in zip(docs, ends, strict=True)]


