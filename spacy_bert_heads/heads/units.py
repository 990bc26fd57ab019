"""The units that entities consist of: the tokens of a batch, or their wordpieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from spacy.tokens import Doc

from ..text.arrays import Bools1d, Ints1d
from ..text.blanks import blank_tokens, count_visible
from ..text.wordpieces import token_offsets
from .decoding import Spans
from .outputs import TokenLogits

ALIGNMENT_MODES = ("strict", "contract", "expand")


class Units(NamedTuple):
    """The units of a batch, Doc after Doc. Each is a row of the logits."""

    starts: Ints1d  # (num_units,) characters of the Doc
    ends: Ints1d  # (num_units,)
    lengths: Ints1d  # (num_docs,) the number of units of each Doc
    # (num_units,) False for white space, zero-width characters and tokens without a wordpiece. They
    # never have a tag; an entity can continue after them as if they were not there.
    tagged: Bools1d

    @staticmethod
    def of(output: TokenLogits, docs: Sequence[Doc]) -> Units:
        """Return the tokens of the Docs, or their wordpieces if the output has logits of those."""
        if output.offsets is None:
            starts, ends, lengths = token_offsets(docs)
            return Units(starts, ends, lengths, output.has_wordpiece & ~blank_tokens(docs))
        starts, ends = output.offsets.T
        tagged = np.zeros(len(starts), dtype=np.bool_)
        for doc, rows in zip(docs, rows_of(output.lengths), strict=True):
            visible = count_visible(doc.text)
            tagged[rows] = visible[ends[rows]] > visible[starts[rows]]
        return Units(starts, ends, output.lengths, tagged)


def rows_of(lengths: Ints1d) -> list[slice]:
    """Return the rows of each Doc; they are consecutive."""
    ends = np.cumsum(lengths)
    return [slice(*pair) for pair in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]


def choose(touched: Bools1d, covered: Bools1d, mode: str) -> Ints1d:
    """Return the indices of a span's units, by an alignment mode of `Doc.char_span`; empty if there
    is no such span. `touched` and `covered` say which units it overlaps and contains (n,)."""
    if mode == "expand":
        return np.flatnonzero(touched)
    if mode == "strict" and (touched & ~covered).any():
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(covered)


def to_tokens(
    spans: Spans, units: Units, docs: Sequence[Doc], mode: str, drop: Callable[[int], None]
) -> Spans:
    """Turn entities of wordpieces into entities of tokens. Tokens are aligned by their tagged
    wordpieces.

    Of two entities with the same token the more probable one is kept. `drop` is called with the
    number of entities that are left out.
    """
    kept: list[tuple[int, int, int]] = []  # index, first token, the token after the last
    bounds = np.searchsorted(spans.doc, np.arange(len(docs) + 1)).tolist()
    for i, rows in enumerate(rows_of(units.lengths)):
        if bounds[i] == bounds[i + 1]:
            continue
        tagged = np.flatnonzero(units.tagged[rows])
        starts, ends = units.starts[rows][tagged], units.ends[rows][tagged]
        token_starts, token_ends, _ = token_offsets(docs[i : i + 1])
        # The tagged wordpieces of each token are first to after - 1.
        first = np.searchsorted(np.maximum.accumulate(ends), token_starts, side="right")
        after = np.searchsorted(starts, token_ends, side="left")
        free = np.ones(len(token_starts), dtype=np.bool_)
        for index in sorted(range(bounds[i], bounds[i + 1]), key=lambda j: -spans.score[j]):
            low, high = np.searchsorted(tagged, (spans.start[index], spans.end[index]))
            touched = (first < high) & (after > low) & (first < after)
            chosen = choose(touched, touched & (first >= low) & (after <= high), mode)
            if len(chosen) and free[chosen[0] : chosen[-1] + 1].all():
                free[chosen[0] : chosen[-1] + 1] = False
                kept.append((index, int(chosen[0]), int(chosen[-1]) + 1))
    drop(len(spans.doc) - len(kept))
    kept.sort()
    of, start, end = np.asarray(kept, dtype=np.int64).reshape(-1, 3).T
    return Spans(spans.doc[of], start, end, spans.label[of], spans.score[of])
