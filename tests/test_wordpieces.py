"""Offsets of wordpieces and special tokens, for each kind of tokenizer."""

import time

import numpy as np
import pytest
from checkpoints import SPECIAL
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_wordpieces import KINDS, TEXTS, ZWSP, by_hand, number, trained
from tokenizers import Tokenizer, models

from spacy_bert_heads.text.wordpieces import WordpieceTokenizer


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
    assert wordpieces.num_special == 2


def test_a_tokenizer_without_special_tokens():
    tokenizer = Tokenizer(models.WordPiece(number(["[UNK]", "a"]), unk_token="[UNK]"))
    wordpieces = WordpieceTokenizer(tokenizer, pad_id=7)
    assert (wordpieces.num_special, wordpieces.pad_id) == (0, 7)
    assert wordpieces(["a"]).ids.tolist() == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_truncation_and_padding_of_the_checkpoint_are_switched_off(kind):
    tokenizer = Tokenizer.from_str(by_hand(kind).tokenizer.to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    lengths = WordpieceTokenizer(tokenizer)(["a" + " a" * 39, "a"]).lengths
    assert lengths.tolist() == [40, 1]


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
