"""Pairs of texts for the tokenizer of letters, and the choice of spans by hand."""

import numpy as np
import spacy
from hypothesis import strategies as st
from letters import LETTERS, A, letters
from spacy.tokens import Doc

from spacy_bert_heads.text.batch import PackedBatch
from spacy_bert_heads.text.packing import pack_pairs
from spacy_bert_heads.text.pairs import Pairs

NLP = spacy.blank("en")
BLANK = -1


def pairs_of(*rows: tuple[str, list[str]], doc_first: bool = False) -> Pairs:
    """Docs with words apart, and what is asked of them."""
    docs = []
    for text, _ in rows:
        words = text.split()
        docs.append(
            Doc(NLP.vocab, words=words, spaces=[True] * len(words[1:]) + [False] * bool(words))
        )
    return Pairs(docs, [texts for _, texts in rows], doc_first)


def sequences_of(*rows, window: int = 10, stride: int = 6, doc_first: bool = False):
    pairs = pairs_of(*rows, doc_first=doc_first)
    return pack_pairs(pairs, letters(), window=window, stride=stride)


def pieces(text: str) -> list[int]:
    """The ids of words of the letters' tokenizer."""
    return [
        A + LETTERS.index(letter) + (len(LETTERS) if i else 0)
        for word in text.split()
        for i, letter in enumerate(word)
    ]


TEN = "a b c d e f g h i j"


def sums_of_best(batch: PackedBatch) -> list[int]:
    """How many pieces each pair has."""
    pair_of = np.repeat(np.arange(len(batch.num_windows)), batch.num_windows)
    return np.bincount(np.repeat(pair_of, batch.seqlens)[batch.offsets.is_best]).tolist()


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
