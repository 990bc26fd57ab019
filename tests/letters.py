"""A tokenizer with a piece for each letter, and Docs for it."""

from functools import cache

import spacy
from checkpoints import SPECIAL, make_tokenizer
from hypothesis import strategies as st
from spacy.tokens import Doc
from tokenizers import models

from spacy_bert_heads.types import Sequences
from spacy_bert_heads.wordpieces import Wordpieces

NLP = spacy.blank("en")
ZWSP = "\u200b"
CLS, SEP = SPECIAL["wordpiece"].index("[CLS]"), SPECIAL["wordpiece"].index("[SEP]")
# The pieces of the tests, one for each letter: a is 5, b is 6, …; ##a is 31, ##b is 32, …
LETTERS = "abcdefghijklmnopqrstuvwxyz"
A = len(SPECIAL["wordpiece"])


@cache
def letters() -> Wordpieces:
    tokenizer = make_tokenizer("wordpiece").backend_tokenizer
    pieces = [*SPECIAL["wordpiece"], *LETTERS, *(f"##{letter}" for letter in LETTERS), "cannot"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
    return Wordpieces(tokenizer)


def doc_of(*words: str) -> Doc:
    return Doc(NLP.vocab, words=list(words))


def lists(sequences: Sequences) -> dict[str, list[int]]:
    return {name: value.tolist() for name, value in vars(sequences).items() if value is not None}


STRIDES = st.integers(1, 9).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c)))
