"""Find the boundaries of words, sentences and documents in the wordpieces of running text, for any
tokenizer."""

from __future__ import annotations

import sys
import unicodedata

import numpy as np

from ..text.arrays import Bools1d, Ints1d, Ints2d, ranges
from ..text.wordpieces import Wordpieces

# Scripts that are written without spaces between words: Thai and Lao, Tibetan, Burmese, Khmer,
# kana, ideographs (BERT's list, with those that Unicode has added since), half-width kana.
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x0F00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x323AF),
)
NO_SPANS = np.empty((0, 2), dtype=np.int64)
SPACE, APART, LETTER, MARK, UNKNOWN = range(5)  # how a character relates to the word around it
KINDS_OF_CODES = np.full(sys.maxunicode + 1, UNKNOWN, dtype=np.uint8)  # filled on first use


def cut_pieces(
    pieces: Wordpieces, words: Bools1d, texts: list[str], starts: list[Ints1d]
) -> tuple[Ints1d, Ints1d]:
    """Split running texts into sentences and documents.

    `words` (n_pieces,) is the result of `begin_words`. `starts` has, for each text, the first
    character of each sentence; the first sentence always starts with the text. A sentence starts
    with the first word that is not entirely before it. Sentences and documents without wordpieces
    are dropped.

    Returns the number of wordpieces of each sentence (n_sentences,) and the number of sentences of
    each document (n_documents,).
    """
    shift = _shifts(texts)
    sentence_starts = np.concatenate(
        [shift, *(begin + of_text for begin, of_text in zip(shift, starts, strict=True))]
    )
    piece_starts = pieces.starts + np.repeat(shift, pieces.lengths)
    first = np.searchsorted(piece_starts, sentence_starts)
    # Back to the start of a word, whose first wordpiece may be a space alone.
    word_first = np.maximum.accumulate(np.where(words, np.arange(len(words)), 0))
    first = np.unique(word_first[first[first < len(words)]])
    text_first = (np.cumsum(pieces.lengths) - pieces.lengths)[pieces.lengths > 0]
    documents = np.append(np.searchsorted(first, text_first), len(first))
    return np.diff(np.append(first, len(words))), np.diff(documents)


def _shifts(texts: list[str]) -> Ints1d:
    """Return the start of each text if all are joined by one character (n_texts,)."""
    sizes = np.fromiter((len(text) + 1 for text in texts), dtype=np.int64, count=len(texts))
    return np.cumsum(sizes) - sizes


def begin_words(pieces: Wordpieces, texts: list[str]) -> Bools1d:
    """Mark the wordpieces that start a word, by the characters at their edges (n_pieces,).

    A word is what BERT's pre-tokenizer produces: letters, digits and symbols without white space or
    punctuation between them. A mark (an accent, a vowel sign, a soft hyphen, the joiner inside an
    emoji) belongs to the character before it. In scripts without spaces no such rule finds words,
    so every wordpiece is a word. If a tokenizer has a wordpiece for a single space, it starts the
    word after it. Wordpieces of the same character (the bytes of an emoji) stay together.

    text      un|sink|able  ,  don|'|t  ▁|(|CO|2|)  船|在|港口   <f0><9f><98><80>
    begins    1  0    0     1  1   1 1  1 0 1  0 1  1  1  1       1   0   0   0
    """
    words = np.ones(len(pieces.ids), dtype=np.bool_)
    if len(words) < 2:
        return words
    codes = np.frombuffer("\n".join(texts).encode("utf-32-le"), dtype=np.uint32)
    for code in np.unique(codes[KINDS_OF_CODES[codes] == UNKNOWN]).tolist():
        KINDS_OF_CODES[code] = _kind(code)
    kinds = KINDS_OF_CODES[codes]
    shift = np.repeat(_shifts(texts), pieces.lengths)
    starts, ends = (pieces.starts + shift)[1:], (pieces.ends + shift)[:-1]
    before, after = kinds[ends - 1], kinds[np.minimum(starts, len(kinds) - 1)]
    before[(pieces.starts == pieces.ends)[:-1]] = SPACE  # a wordpiece that is not in the text
    # Marks that a tokenizer drops don't separate their neighbours.
    solid = np.append(0, np.cumsum(kinds != MARK, dtype=np.int32))
    touching = solid[np.maximum(starts, ends)] == solid[ends]
    joined = (
        (after == MARK)
        | (after == LETTER) & ((before == LETTER) | (before == MARK))
        | (before == SPACE) & (after != SPACE)
    )
    words[1:] = ~((touching & joined) | (starts < ends))
    return words


def begin_units(
    pieces: Wordpieces, words: Bools1d, texts: list[str], spans: list[Ints2d]
) -> Bools1d:
    """Mark the wordpieces that start a span of several words, or a word outside of spans
    (n_pieces,).

    `words` is the result of `begin_words`. `spans` has, for each text, the start and end characters
    of its spans (n_spans, 2). A word that is partly in a span belongs to it.
    """
    shifts = np.repeat(_shifts(texts), [len(of_text) for of_text in spans])
    bounds = np.concatenate([NO_SPANS, *spans]) + shifts[:, None]
    piece_starts = pieces.starts + np.repeat(_shifts(texts), pieces.lengths)
    first, behind = np.searchsorted(piece_starts, bounds).T
    units = words.copy()
    units[ranges(first + 1, np.maximum(behind - first - 1, 0))] = False
    return units


def _kind(code: int) -> int:
    character = chr(code)
    category = unicodedata.category(character)
    if character == " ":
        return SPACE
    if character.isspace() or category[0] == "P" or code == 0x200B:
        return APART
    if category[0] == "M" or category == "Cf":
        return MARK
    if code < 128 and not character.isalnum():
        return APART
    return APART if any(low <= code <= high for low, high in UNSPACED) else LETTER
