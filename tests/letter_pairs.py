"""Pairs of texts for the tokenizer of letters, and the choice of spans by hand."""

import numpy as np
import spacy
from hypothesis import strategies as st
from letters import LETTERS, A, letters
from spacy.tokens import Doc

from spacy_bert_heads.sequences import make_pair_sequences
from spacy_bert_heads.types import Pairs, PairSequences

NLP = spacy.blank("en")
BLANK = -1


def pairs_of(*rows: tuple[str, list[str]], doc_first: bool = False, answers=None) -> Pairs:
    """Docs with words apart, and what is asked of them."""
    docs = []
    for text, _ in rows:
        words = text.split()
        docs.append(
            Doc(NLP.vocab, words=words, spaces=[True] * len(words[1:]) + [False] * bool(words))
        )
    return Pairs(docs, [texts for _, texts in rows], doc_first, answers)


def sequences_of(*rows, window: int = 10, stride: int = 6, doc_first: bool = False):
    pairs = pairs_of(*rows, doc_first=doc_first)
    return make_pair_sequences(pairs, letters(), window=window, stride=stride)


def pieces(text: str) -> list[int]:
    """The ids of words of the letters' tokenizer."""
    return [
        A + LETTERS.index(letter) + (len(LETTERS) if i else 0)
        for word in text.split()
        for i, letter in enumerate(word)
    ]


TEN = "a b c d e f g h i j"


def sums_of_best(sequences: PairSequences) -> list[int]:
    """How many pieces each pair has."""
    pair_of = np.repeat(np.arange(len(sequences.windows)), sequences.windows)
    return np.bincount(np.repeat(pair_of, sequences.lengths)[sequences.best]).tolist()


WORD = st.text("abc", min_size=1, max_size=4)
CONTEXT = st.lists(WORD, max_size=14).map(" ".join)
SHAPES = st.integers(8, 18).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w - 2)))


@st.composite
def cases(draw, max_docs: int = 3):
    """Docs with second texts, a window and a stride."""
    window, stride = draw(SHAPES)
    text = st.text("xyz", min_size=1, max_size=window // 2)
    row = st.tuples(CONTEXT, st.lists(text, max_size=3))
    return draw(st.lists(row, max_size=max_docs)), window, stride


def greedy(spans, n_best: int):
    """The best, then the best of what doesn't overlap it, and so on; max takes the first."""
    chosen = []
    while spans and len(chosen) < n_best:
        best = max(spans, key=lambda span: span[0])
        chosen.append(best)
        spans = [span for span in spans if span[2] <= best[1] or best[2] <= span[1]]
    return chosen
