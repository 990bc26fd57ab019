"""Offsets of wordpieces, and the pieces of every spaCy token, for each kind of tokenizer."""

import time
from functools import cache

import numpy as np
import pytest
import spacy
from checkpoints import SPECIAL, make_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from tokenizers import Tokenizer, models, pre_tokenizers

from spacy_bert_heads.types import Pieces
from spacy_bert_heads.wordpieces import Wordpieces, align, token_offsets

KINDS = list(SPECIAL)
NLP = spacy.blank("en")
ZWSP, ZWJ, NBSP, BOM, ACCENT = "\u200b", "\u200d", "\u00a0", "\ufeff", "\u0301"

# Vocabularies by hand: a trained one is not the same from run to run.
WORDPIECES = ["a", "b", "##b", "cannot", "can", "cafe", "船", "在", "😀", "👩👩👧"]
MERGES = ["c a", "ca n", "n o", "no t", "can not", "Ġ cannot", "Ġ a", "ð Ł", "ðŁ ĳ"]
UNIGRAMS = ["a", "b", "▁a", "▁b", "▁can", "▁cannot", "café", "船", "在", "😀", "👩"]


@cache
def by_hand(kind: str) -> Wordpieces:
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
    return Wordpieces(tokenizer)


@cache
def trained(kind: str) -> Wordpieces:
    return Wordpieces(make_tokenizer(kind).backend_tokenizer)


def number(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces)}


def make_doc(*words: str) -> Doc:
    """A Doc of these words; ␣ at a word's end is the space behind it."""
    return Doc(
        NLP.vocab,
        words=[word.removesuffix("␣") for word in words],
        spaces=[word.endswith("␣") for word in words],
    )


def aligned(wordpieces: Wordpieces, docs: list[Doc]) -> list[list[list[int]]]:
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


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("wordpiece", "cannot 0:6, a 7:8, ##b 8:9, [UNK] 10:12, b 15:16"),
        ("bytes", "cannot 0:6, Ġa 7:8, b 8:9, Ġ 10:10, x 10:11, y 11:12, Ġ 13:13, ċ 13:14, "
                  "Ġ 15:15, b 15:16, Ġ 17:17"),
        ("unigram", "▁cannot 0:6, ▁a 7:8, b 8:9, ▁ 9:10, xy 10:12, ▁ 12:13, \v 13:14, ▁b 15:16, "
                    "▁ 16:17"),
    ],
)  # fmt: skip
def test_ids_and_offsets(kind, expected):
    wordpieces = by_hand(kind)
    pieces = wordpieces(["cannot ab xy \v b "])
    tokens = wordpieces.tokenizer.encode("cannot ab xy \v b ", add_special_tokens=False).tokens
    offsets = zip(tokens, pieces.starts, pieces.ends, strict=True)
    assert ", ".join(f"{token} {start}:{end}" for token, start, end in offsets) == expected
    # Unigram's tokens are the text's own; its unknown ones have the id of <unk>.
    names = [wordpieces.tokenizer.id_to_token(i) for i in pieces.ids.tolist()]
    unknown = {"xy", "\v"} if kind == "unigram" else set()
    assert names == ["<unk>" if token in unknown else token for token in tokens]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_texts_one_after_the_other(kind):
    wordpieces = by_hand(kind)
    texts = ["cannot ab", "", "  ", "b" * 300, ZWSP, "a\r\nb "]
    batch, single = wordpieces(texts), [wordpieces([text]) for text in texts]
    assert batch.lengths.tolist() == [len(pieces.ids) for pieces in single]
    for field in ("ids", "starts", "ends"):
        parts = [getattr(pieces, field) for pieces in single]
        assert getattr(batch, field).tolist() == np.concatenate(parts).tolist()
    nothing = wordpieces([])
    assert [len(field) for field in vars(nothing).values()] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "kind, prefix, suffix",
    [("wordpiece", "[CLS]", "[SEP]"), ("bytes", "<s>", "</s>"), ("unigram", "<s>", "</s>")],
)
def test_special_tokens_are_read_off_the_tokenizer(kind, prefix, suffix):
    wordpieces = by_hand(kind)
    assert wordpieces.prefix.tolist() == [SPECIAL[kind].index(prefix)]
    assert wordpieces.suffix.tolist() == [SPECIAL[kind].index(suffix)]
    assert wordpieces.n_special == 2


def test_a_tokenizer_without_special_tokens():
    tokenizer = Tokenizer(models.WordPiece(number(["[UNK]", "a"]), unk_token="[UNK]"))
    wordpieces = Wordpieces(tokenizer, pad_id=7)
    assert (wordpieces.n_special, wordpieces.pad_id) == (0, 7)
    assert wordpieces(["a"]).ids.tolist() == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_truncation_and_padding_of_the_checkpoint_are_switched_off(kind):
    tokenizer = Tokenizer.from_str(by_hand(kind).tokenizer.to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    lengths = Wordpieces(tokenizer)(["a" + " a" * 39, "a"]).lengths
    assert lengths.tolist() == [40, 1]


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
    pieces = Pieces(none, none, none, np.asarray([0, 0]))
    first, count, tokens = align(pieces, docs, [doc.text for doc in docs])
    assert (len(first), count.tolist(), tokens.tolist()) == (2, [0, 0], [2, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_much_white_space_is_quick(kind):
    text = "a" + "\n" * 60_000 + " " * 60_000 + "b"
    wordpieces = by_hand(kind)
    start = time.process_time()
    wordpieces.tokenizer.encode_batch([text])
    by_itself = time.process_time() - start
    pieces = wordpieces([text])
    # A scan of all the white space behind each piece would take a hundred times as long.
    assert time.process_time() - start - by_itself < 10 * by_itself + 1
    assert (pieces.starts[0], pieces.ends[-1]) == (0, 120_002)


# --- against a slow reference

TRICKY = [*" \t\n\r\v\x00\x1c\x85é船😀👩ﬁ①\u2028\u3000\ufdfa", NBSP, ZWSP, ZWJ, BOM, ACCENT]
WORDS = ["cannot", "don't", "Café", "the", "\r\n", "<mask>", "[SEP]", "İ", "ẞ", "\u1100\u1161"]
CHARACTERS = st.one_of(
    st.sampled_from(TRICKY),
    st.sampled_from("abcdeABC.,'-"),
    st.characters(exclude_categories=["Cs"]),
)
TEXTS = st.lists(st.one_of(CHARACTERS, st.sampled_from(WORDS)), max_size=20).map("".join)
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


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=3))
def test_offsets_lie_in_the_text_and_rise(kind, texts):
    pieces = trained(kind)(texts)
    end = 0
    for text, n_pieces in zip(texts, pieces.lengths, strict=True):
        start, end = end, end + n_pieces
        starts, ends = pieces.starts[start:end], pieces.ends[start:end]
        assert ((starts >= 0) & (starts <= ends) & (ends <= len(text))).all()
        assert (np.diff(starts) >= 0).all()
        for first, last in zip(starts.tolist(), ends.tolist(), strict=True):
            piece = text[first:last]
            assert piece == piece.lstrip() or not piece.strip()
    assert end == len(pieces.ids)
