"""A tokenizer with a piece for each letter, and Docs for it."""

from functools import cache

import numpy as np
import spacy
from checkpoints import SPECIAL, make_tokenizer
from hypothesis import strategies as st
from spacy.tokens import Doc
from tokenizers import models

from spacy_bert_heads.text.batch import PackedBatch
from spacy_bert_heads.text.wordpieces import WordpieceTokenizer

NLP = spacy.blank("en")
ZWSP = "\u200b"
CLS, SEP = SPECIAL["wordpiece"].index("[CLS]"), SPECIAL["wordpiece"].index("[SEP]")
# The pieces of the tests, one for each letter: a is 5, b is 6, …; ##a is 31, ##b is 32, …
LETTERS = "abcdefghijklmnopqrstuvwxyz"
A = len(SPECIAL["wordpiece"])


@cache
def letters() -> WordpieceTokenizer:
    tokenizer = make_tokenizer("wordpiece").backend_tokenizer
    pieces = [*SPECIAL["wordpiece"], *LETTERS, *(f"##{letter}" for letter in LETTERS), "cannot"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
    return WordpieceTokenizer(tokenizer)


def doc_of(*words: str) -> Doc:
    return Doc(NLP.vocab, words=list(words))


def lists(batch: PackedBatch) -> dict[str, list[int]]:
    """All arrays of a batch and of its maps, by name."""
    parts = [batch, *(part for part in (batch.offsets, batch.tokens) if part is not None)]
    arrays = {name: value for part in parts for name, value in vars(part).items()}
    arrays["seqlens"] = batch.seqlens
    return {name: arrays[name].tolist() for name in arrays if isinstance(arrays[name], np.ndarray)}


STRIDES = st.integers(1, 9).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c)))
