"""The pieces of every spaCy token, for each kind of tokenizer."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from tiny_wordpieces import (
    ACCENT,
    BOM,
    KINDS,
    NBSP,
    NLP,
    TEXTS,
    ZWJ,
    ZWSP,
    by_hand,
    make_doc,
    trained,
)
from tokenizers import Tokenizer

from spacy_bert_heads.text.wordpieces import Wordpieces, WordpieceTokenizer, align, token_offsets


def aligned(wordpieces: WordpieceTokenizer, docs: list[Doc]) -> list[list[list[int]]]:
    """The numbers of each token's pieces, counted from its Doc's first piece."""
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


# Words, and for each of them the pieces (start:end) by each kind of tokenizer. Of the kinds,
# - wordpiece drops white space, zero-width and control characters;
# - bytes (as RoBERTa's) gives a piece that is a space by itself the empty place behind it, and
#   several pieces to a character outside of ASCII;
# - unigram puts a ▁ before each word, which takes the place of a space, or of the Doc's first
#   character; unknown characters in a row are one piece.
CASES = {
    "one piece, two tokens": (
        ["can", "not␣", "can", "not"],
        ["0:6", "0:6", "7:13", "7:13"],
        ["0:6", "0:6", "7:13", "7:13"],
        ["0:6", "0:6", "7:13", "7:13"],
    ),
    "one token, two pieces": (
        ["ab␣", "a", "b"],
        ["0:1 1:2", "3:4", "4:5"],
        ["0:1 1:2", "3:4", "4:5"],
        ["0:1 1:2", "3:4", "4:5"],
    ),
    "a token that holds spaces": (
        ["a a␣", "a"],
        ["0:1 2:3", "4:5"],
        ["0:1 2:3", "4:5"],
        ["0:1 2:3", "4:5"],
    ),
    "leading space": ([" ", "a"], ["", "1:2"], ["", "1:2"], ["", "1:2"]),
    "leading spaces": (
        ["  ", "a"],
        ["", "2:3"],
        ["1:1", "2:3"],
        ["0:1", "2:3"],
    ),
    "trailing space": (["a␣"], ["0:1"], ["0:1"], ["0:1"]),
    "trailing spaces": (
        ["a␣", " "],
        ["0:1", ""],
        ["0:1", "2:2"],
        ["0:1", "2:3"],
    ),
    "two spaces": (
        ["a␣", " ", "a"],
        ["0:1", "", "3:4"],
        ["0:1", "2:2", "3:4"],
        ["0:1", "", "3:4"],
    ),
    "only spaces": (["   "], [""], ["1:1 2:2"], ["0:1 1:2 2:3"]),
    "a space without a merge": (
        ["a␣", "b"],
        ["0:1", "2:3"],
        ["0:1", "2:2 2:3"],
        ["0:1", "2:3"],
    ),
    "carriage return and newline": (
        ["a", "\r\n", "b"],
        ["0:1", "", "3:4"],
        ["0:1", "1:2 2:3", "3:4"],
        ["0:1", "1:3", "3:4"],
    ),
    "newline between spaces": (
        ["a␣", "\n ", "a"],
        ["0:1", "", "4:5"],
        ["0:1", "2:2 2:3", "4:5"],
        ["0:1", "2:3", "4:5"],
    ),
    "tab": (["a", "\t", "b"], ["0:1", "", "2:3"], ["0:1", "1:2", "2:3"], ["0:1", "1:2", "2:3"]),
    "next line": (
        ["a", "\x85", "x"],
        ["0:3", "0:3", "0:3"],  # a control character: the word is ax
        ["0:1", "1:2 1:2", "2:3"],
        ["0:1", "", "2:3"],  # unknown characters in a row, trimmed
    ),
    "no-break space": (
        ["a", NBSP, "b"],
        ["0:1", "", "2:3"],
        ["0:1", "1:2 1:2", "2:3"],
        ["0:1", "", "2:3"],  # NFKC makes it a space
    ),
    "ideographic space": (
        ["a", "\u3000", "b"],
        ["0:1", "", "2:3"],
        ["0:1", "1:2 1:2 1:2", "2:3"],
        ["0:1", "", "2:3"],
    ),
    "a token of zero-width characters": (
        ["a␣", ZWSP + ZWJ + "␣", "a"],
        ["0:1", "", "5:6"],
        ["0:1", "2:2 2:3 2:3 2:3 3:4 3:4 3:4", "5:6"],
        ["0:1", "2:4", "5:6"],
    ),
    "a zero-width character inside a word": (
        ["a", ZWSP, "b"],
        ["0:1", "", "2:3"],
        ["0:1", "1:2 1:2 1:2", "2:3"],
        ["0:1", "1:2", "2:3"],
    ),
    "byte order mark": (
        [BOM, "a"],
        ["", "1:2"],
        ["0:1 0:1 0:1", "1:2"],
        ["0:1 0:1", "1:2"],
    ),
    "control characters": (
        ["\x00", "a", "\x07", "b"],
        ["", "1:2", "", "3:4"],
        ["0:1", "1:2", "2:3", "3:4"],
        ["0:1 0:1", "1:2", "2:3", "3:4"],
    ),
    "emoji": (
        ["😀␣", "a"],
        ["0:1", "2:3"],
        ["0:1 0:1 0:1", "2:3"],
        ["0:1 0:1", "2:3"],
    ),
    "an emoji sequence is one token": (
        [f"👩{ZWJ}👩{ZWJ}👧"],
        ["0:5"],
        ["0:1 0:1 1:2 1:2 1:2 2:3 2:3 3:4 3:4 3:4 4:5 4:5"],
        ["0:1 0:1 1:2 2:3 3:5"],
    ),
    "an emoji sequence is five tokens": (
        ["👩", ZWJ, "👩", ZWJ, "👧"],
        ["0:5", "0:5", "0:5", "0:5", "0:5"],
        ["0:1 0:1", "1:2 1:2 1:2", "2:3 2:3", "3:4 3:4 3:4", "4:5 4:5"],
        ["0:1 0:1", "1:2", "2:3", "3:5", "3:5"],
    ),
    "accents": (
        ["Café␣", "a"],
        ["0:4", "5:6"],
        ["0:1 1:2 2:3 3:4 3:4", "5:6"],
        ["0:1 0:1 1:2 2:4", "5:6"],
    ),
    "a combining accent": (
        ["cafe", ACCENT + "␣", "a"],
        ["0:4", "", "6:7"],
        ["0:2 2:3 3:4", "4:5 4:5", "6:7"],
        ["0:1 0:4", "", "6:7"],  # NFKC makes one character of two
    ),
    "Chinese": (
        ["船在", "港"],
        ["0:1 1:2", "2:3"],
        ["0:1 0:1 0:1 1:2 1:2 1:2", "2:3 2:3 2:3"],
        ["0:1 0:1 1:2", "2:3"],
    ),
    "one character that is a sentence in NFKC": (
        ["\ufdfa␣", "a"],
        ["0:1", "2:3"],
        ["0:1 0:1 0:1", "2:3"],
        ["0:1 0:1 0:1 0:1 0:1 0:1 0:1 0:1", "2:3"],
    ),
    "a word of 10,000 letters": (
        ["x" * 10_000 + "␣", "a"],
        ["0:10000", "10001:10002"],
        [" ".join(f"{i}:{i + 1}" for i in range(10_000)), "10001:10002"],
        ["0:1 0:10000", "10001:10002"],
    ),
    "an empty Doc": ([], [], [], []),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_the_pieces_of_each_token(case, kind):
    words, *by_kind = CASES[case]
    wordpieces, doc = by_hand(kind), make_doc(*words)
    pieces = wordpieces([doc.text])
    places = [
        " ".join(f"{pieces.starts[i]}:{pieces.ends[i]}" for i in numbers)
        for numbers in aligned(wordpieces, [doc])[0]
    ]
    assert places == by_kind[KINDS.index(kind)]


def test_token_offsets():
    docs = [make_doc("can", "not␣", "😀"), make_doc(), make_doc(" ", "a␣", "\n")]
    starts, ends, lengths = token_offsets(docs)
    assert starts.tolist() == [0, 3, 7, 0, 1, 3]
    assert ends.tolist() == [3, 6, 8, 1, 2, 4]
    assert lengths.tolist() == [3, 0, 3]
    assert [array.tolist() for array in token_offsets([])] == [[], [], []]


def test_a_token_never_gets_a_piece_of_the_doc_before():
    docs = [make_doc("cannot"), make_doc(ZWSP, "can", "not"), make_doc(), make_doc(ZWSP)]
    assert aligned(by_hand("wordpiece"), docs) == [[[0]], [[], [0], [0]], [], [[]]]
    # The space behind b is a piece of its own, at the very end of the text.
    assert aligned(by_hand("bytes"), [make_doc("b␣"), make_doc("b")]) == [[[0]], [[0]]]


def test_docs_without_any_piece():
    none = np.zeros(0, dtype=np.int64)
    docs = [make_doc(ZWSP, " "), make_doc()]
    pieces = Wordpieces(none, none, none, np.asarray([0, 0]))
    first, count, tokens = align(pieces, docs, [doc.text for doc in docs])
    assert (len(first), count.tolist(), tokens.tolist()) == (2, [0, 0], [2, 0])


TOKENS = st.lists(st.tuples(TEXTS.filter(bool), st.booleans()), max_size=8)
DOCS = st.one_of(
    TEXTS.map(NLP.make_doc),
    TOKENS.map(lambda t: Doc(NLP.vocab, words=[w for w, _ in t], spaces=[s for _, s in t])),
)


def reference(tokenizer: Tokenizer, doc: Doc) -> list[list[int]]:
    """For each token the pieces that start in it, else the one that covers its start."""
    text = doc.text
    places = []
    for start, end in tokenizer.encode(text, add_special_tokens=False).offsets:
        piece = text[start:end]
        if piece.strip():
            start += len(piece) - len(piece.lstrip())
        places.append((start, end))
    expected = []
    for token in doc:
        begin, stop = token.idx, token.idx + len(token)
        inside = [i for i, (start, _) in enumerate(places) if begin <= start < stop]
        covering = [i for i, (start, end) in enumerate(places) if start <= begin < end]
        assert inside or len(covering) < 2  # "the piece that covers" is never in doubt
        expected.append(inside or covering)
    return expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(docs=st.lists(DOCS, max_size=3))
@example(docs=[make_doc("a", NBSP, "b"), make_doc(" ", "\u2028a", "\u3000b␣"), make_doc()])
@example(docs=[make_doc("can", "not␣", "can"), make_doc("船", "在"), make_doc("\ufdfa", "a")])
def test_alignment_is_as_the_rule_says(kind, docs):
    wordpieces = trained(kind)
    assert aligned(wordpieces, docs) == [reference(wordpieces.tokenizer, doc) for doc in docs]
