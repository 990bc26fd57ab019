"""Tokenizers whose wordpieces bring the space before a word along, as those of long-context
encoders do: no token of spaCy's begins with it."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from tiny_wordpieces import MERGES, NLP, TEXTS, make_doc, number
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from spacy_bert_heads.text.wordpieces import WordpieceTokenizer, align

# How EuroBERT's tokenizer, that of Llama 3, cuts texts before it merges bytes.
LLAMA = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = ("modernbert", "eurobert")
MORE = ["( can", ". Ċ"]


@cache
def make(kind: str) -> WordpieceTokenizer:
    """A tokenizer that merges bytes and doesn't trim its offsets."""
    merges = [tuple(merge.split()) for merge in [*MERGES, *MORE]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = number(["[CLS]", "[SEP]", *alphabet, *(a + b for a, b in merges)])
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    if kind == "modernbert":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(LLAMA, "isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    return WordpieceTokenizer(tokenizer)


def pieces_of(wordpieces: WordpieceTokenizer, doc: Doc) -> list[list[tuple[int, int]]]:
    """Where the wordpieces of each token are."""
    pieces = wordpieces([doc.text])
    first, count, _ = align(pieces, [doc], [doc.text])
    places = list(zip(pieces.starts.tolist(), pieces.ends.tolist(), strict=True))
    return [places[a : a + n] for a, n in zip(first.tolist(), count.tolist(), strict=True)]


# Words, and the places of each one's wordpieces by both kinds.
CASES = {
    "a space before a word": (
        ["a␣", "cannot␣", "a"],
        [[(0, 1)], [(2, 8)], [(9, 10)]],
        [[(0, 1)], [(2, 8)], [(9, 10)]],
    ),
    "two tokens in a wordpiece with a space": (
        ["a␣", "can", "not"],
        [[(0, 1)], [(2, 8)], [(2, 8)]],
        [[(0, 1)], [(2, 8)], [(2, 8)]],
    ),
    "a text that begins with a space": (
        [" ", "cannot"],
        [[], [(1, 7)]],
        [[], [(1, 7)]],
    ),
    # The last of several spaces goes with the word.
    "several spaces": (
        ["a␣", "  ", "a"],
        [[(0, 1)], [(2, 3)], [(4, 5)]],
        [[(0, 1)], [(2, 3)], [(4, 5)]],
    ),
    "a bracket in the wordpiece of a word": (
        ["a␣", "(", "can"],
        [[(0, 1)], [(2, 3)], [(3, 6)]],
        [[(0, 1)], [(2, 3)], [(3, 6)]],
    ),
    "a bracket first": (
        ["(", "can"],
        [[(0, 1)], [(1, 4)]],
        [[(0, 4)], [(0, 4)]],
    ),
    "a full stop with the line's end": (
        ["a", ".", "\n", "a"],
        [[(0, 1)], [(1, 2)], [(2, 3)], [(3, 4)]],
        [[(0, 1)], [(1, 3)], [(1, 3)], [(3, 4)]],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_the_wordpieces_of_each_token(case, kind):
    words, *expected = CASES[case]
    assert pieces_of(make(kind), make_doc(*words)) == expected[KINDS.index(kind)]


WORDS = st.lists(st.tuples(TEXTS.filter(bool), st.booleans()), max_size=8)
DOCS = st.one_of(
    TEXTS.map(NLP.make_doc),
    WORDS.map(lambda t: Doc(NLP.vocab, words=[w for w, _ in t], spaces=[s for _, s in t])),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(doc=DOCS)
def test_every_token_that_is_seen_has_the_wordpiece_of_its_first_character(kind, doc):
    """Byte-level tokenizers lose no character, so every one is in a wordpiece."""
    raw = make(kind).tokenizer.encode(doc.text, add_special_tokens=False).offsets
    for token, places in zip(doc, pieces_of(make(kind), doc), strict=True):
        if token.is_space:
            continue
        covering = [(a, b) for a, b in raw if a <= token.idx < b]
        start, end = places[0]
        # Those of the bytes of one character have the same place.
        assert (start, end) in {(max(a, start), b) for a, b in covering}
        assert start <= token.idx < end
        inside = doc.text[start : token.idx]
        assert not inside or not inside[0].isspace()
