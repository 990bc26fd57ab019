"""Sequences and windows of pairs beside Hugging Face's, for each family."""

from functools import cache

import numpy as np
import pytest
from checkpoints import FAMILIES, TEXTS, make_tokenizer
from letter_pairs import BLANK, NLP, sums_of_best
from tokenizers import Tokenizer

from spacy_bert_heads.text.packing import pack_pairs
from spacy_bert_heads.text.pairs import Pairs
from spacy_bert_heads.text.wordpieces import WordpieceTokenizer


@cache
def tokenizers_of(kind: str):
    """Hugging Face's tokenizer and ours."""
    theirs = make_tokenizer(kind)
    ours = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    return theirs, WordpieceTokenizer(ours, pad_id=theirs.pad_token_id)


QUESTIONS = ["Why did it burn?", "Who can't swim", "船", "a  pump, or\ttwo 😀"]
CONTEXTS = [*TEXTS, "", "A fire", " ".join(TEXTS), "  Anna\n\nleft  Skagen "]


@pytest.mark.parametrize("doc_first", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_are_hugging_faces(family, doc_first):
    theirs, wordpieces = tokenizers_of(FAMILIES[family])
    docs = [NLP.make_doc(text) for text in CONTEXTS]
    pairs = Pairs(docs, [QUESTIONS] * len(docs), doc_first)
    batch = pack_pairs(pairs, wordpieces, window=2000, stride=1900)
    assert (batch.num_windows == 1).all()
    found = np.split(np.stack([batch.input_ids, batch.token_type_ids]), np.cumsum(batch.seqlens), 1)
    rows = [(doc.text, text) for doc in docs for text in QUESTIONS]
    for (context, text), ids in zip(rows, found[:-1], strict=True):
        # In a list, for an empty text alone is no text at all to it.
        expected = theirs(*(([context], [text]) if doc_first else ([text], [context])))
        assert ids.tolist() == [expected["input_ids"][0], expected["token_type_ids"][0]]


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Offsets without white space at either side; equal ones for nothing else."""
    piece = text[start:end]
    begin = start + len(piece) - len(piece.lstrip()) if piece.strip() else start
    return begin, begin + len(piece.strip())


@pytest.mark.parametrize("doc_first", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window, stride", [(48, 40), (64, 32), (100, 90)])
def test_windows_of_pairs_are_hugging_faces(family, doc_first, window, stride):
    theirs, wordpieces = tokenizers_of(FAMILIES[family])
    docs = [NLP.make_doc(text) for text in (" ".join(TEXTS * 2), TEXTS[0])]
    pairs = Pairs(docs, [QUESTIONS] * len(docs), doc_first)
    batch = pack_pairs(pairs, wordpieces, window=window, stride=stride)
    ends = np.cumsum(batch.seqlens)
    rows = np.stack(
        [batch.input_ids, batch.token_type_ids, batch.offsets.starts, batch.offsets.ends]
    )
    found = iter(np.split(rows, ends[:-1], 1))
    n_special = theirs.num_special_tokens_to_add(pair=True)
    asked = [(doc.text, text) for doc in docs for text in QUESTIONS]
    for (context, text), n_windows in zip(asked, batch.num_windows.tolist(), strict=True):
        room = window - n_special - len(theirs(text, add_special_tokens=False)["input_ids"])
        expected = theirs(
            *((context, text) if doc_first else (text, context)),
            truncation="only_first" if doc_first else "only_second",
            max_length=window,
            stride=min(window - 2 - stride, room // 2),  # Hugging Face's stride is the overlap
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        assert len(expected["input_ids"]) == n_windows
        covered = set()
        for i in range(n_windows):
            ids, type_ids, starts, stops = next(found).tolist()
            assert ids == expected["input_ids"][i]
            assert type_ids == expected["token_type_ids"][i]
            of_context = 0 if doc_first else 1
            offsets = [
                trimmed(context, *offset) if of == of_context else (BLANK, BLANK)
                for of, offset in zip(
                    expected.sequence_ids(i), expected["offset_mapping"][i], strict=True
                )
            ]
            assert list(zip(starts, stops, strict=True)) == offsets
            covered.update(offset for offset in offsets if offset != (BLANK, BLANK))
        every = theirs(context, add_special_tokens=False, return_offsets_mapping=True)
        assert covered == {trimmed(context, *offset) for offset in every["offset_mapping"]}
    assert next(found, None) is None
    assert batch.num_windows[: len(QUESTIONS)].min() > 1
    n_pieces = wordpieces([doc.text for doc in docs]).lengths
    assert sums_of_best(batch) == np.repeat(n_pieces, len(QUESTIONS)).tolist()
