"""The input of a QA head: windows of the Doc, the answer's position in each, and the characters
that an answer may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from spacy.tokens import Doc
from spacy.training import Example

from ..text.arrays import Ints1d, Ints2d, ranges, sums
from ..text.batch import PackedBatch
from ..text.blanks import map_spans
from ..text.packing import longest_span, max_second_text
from ..text.wordpieces import WordpieceTokenizer, token_offsets, trim_offsets


def gold_characters(example: Example, answers: Iterable[Mapping[str, Any]]) -> Ints2d:
    """Return the start and the end of each gold answer in the predicted text (num_answers, 2).
    Raises ValueError if the texts differ in more than white space and case."""
    places = [(answer["start_char"], answer["end_char"]) for answer in answers]
    spans = np.asarray(places, dtype=np.int64).reshape(-1, 2)
    gold, predicted = example.reference.text, example.predicted.text
    if gold == predicted:
        return spans
    _ = example.alignment  # raises
    return map_spans(spans, gold, predicted)


def choose_windows(batch: PackedBatch, answers: Ints2d) -> tuple[PackedBatch, Ints2d]:
    """Choose the windows of long Docs for training: those that contain the answer, and a random one
    of the others. With all of them, "not in this window" would dominate the loss.

    `answers` are the start and the end of each pair's answer in characters, equal if there is no
    answer (num_pairs, 2). Returns the chosen windows and their targets, see `find_targets`.
    """
    # Before the choice, because `find_targets` needs all windows of an answer.
    targets = find_targets(batch, answers)
    if (batch.num_windows == 1).all():
        return batch, targets
    chosen = targets[:, 0] > 0
    pair_of = np.repeat(np.arange(len(batch.num_windows)), batch.num_windows)
    # numpy's global generator, because that is the one that spaCy seeds.
    order = np.random.permutation(len(chosen))
    order = order[~chosen[order]]
    _, one_of_each = np.unique(pair_of[order], return_index=True)
    chosen[order[one_of_each]] = True
    kept, _ = batch.take_windows(np.flatnonzero(chosen), sums(chosen, batch.num_windows))
    return kept, targets[chosen]


def find_targets(batch: PackedBatch, answers: Ints2d) -> Ints2d:
    """Find the first and the last wordpiece of each pair's answer in its windows.

    `answers` are those of `choose_windows`. Returns both, counted from the window's first position
    (num_sequences, 2); neither is white space. 0, the position of [CLS], means that this window
    does not contain the whole answer; -1 that no window does, so there is nothing to learn. Only
    answers that `best_spans` can predict are learned, because it reads each span in one window.
    """
    offsets = batch.offsets
    assert offsets is not None
    begins, seqlens = batch.cu_seqlens[:-1], batch.seqlens
    pair_of = np.repeat(np.arange(len(batch.num_windows)), batch.num_windows)
    start, end = answers[np.repeat(pair_of, seqlens)].T
    inside = (offsets.starts < end) & (offsets.ends > start) & (start < end)
    inside &= offsets.ends > offsets.starts
    here = sums(inside, seqlens)  # wordpieces of the answer in each window
    wanted = _count(pair_of, sums(inside & offsets.is_best, seqlens), len(answers))
    holds = (here == wanted[pair_of]) & (here > 0)
    positions = np.flatnonzero(inside)
    first_inside = (np.cumsum(here) - here)[holds]
    targets = np.zeros((len(seqlens), 2), dtype=np.int64)
    targets[holds, 0] = positions[first_inside] - begins[holds]
    targets[holds, 1] = positions[first_inside + here[holds] - 1] - begins[holds]
    is_known = (_count(pair_of, holds, len(answers)) > 0) | (answers[:, 0] == answers[:, 1])
    targets[~is_known[pair_of]] = -1
    return targets


def _count(pair_of: Ints1d, values: np.ndarray, num_pairs: int) -> np.ndarray:
    """Add up the values of each pair's windows."""
    return np.bincount(pair_of, weights=values, minlength=num_pairs)


class DocWindows(NamedTuple):
    """The windows of each pair over its Doc, in wordpieces."""

    pair_of: Ints1d  # (num_sequences,)
    starts: Ints1d  # (num_sequences,)
    lengths: Ints1d  # (num_sequences,)
    overlaps: Ints1d  # (num_pairs,) between neighbouring windows

    @staticmethod
    def of(batch: PackedBatch) -> DocWindows:
        """Compute them from a batch that has all windows of each pair."""
        offsets, counts = batch.offsets, batch.num_windows
        assert offsets is not None
        lengths = sums(offsets.starts >= 0, batch.seqlens)
        pair_of = np.repeat(np.arange(len(counts)), counts)
        # Of the windows with the same wordpiece, is_best is true in one.
        repeated = sums(lengths - sums(offsets.is_best, batch.seqlens), counts)
        overlaps = repeated // np.maximum(counts - 1, 1)
        steps = lengths[np.cumsum(counts) - counts] - overlaps
        starts = ranges(np.zeros_like(counts), counts) * steps[pair_of]
        return DocWindows(pair_of, starts, lengths, overlaps)


def longest_everywhere(batch: PackedBatch) -> Ints1d:
    """Return the length of the longest span, in wordpieces, that is inside of some window wherever
    it is in the Doc (num_pairs,). For a Doc with one window that is the whole Doc."""
    windows = DocWindows.of(batch)
    return np.where(
        batch.num_windows > 1, windows.overlaps + 1, sums(windows.lengths, batch.num_windows)
    )


def check_room(name: str, wanted: int, tokenizer: WordpieceTokenizer, window: int) -> None:
    """Raise ValueError if windows are too short for the longest answer, whatever the question.
    `wanted` is the `max_answer_length` of the component `name`."""
    lengths = np.asarray([1, max_second_text(tokenizer, window)])
    most, least = longest_span(window - tokenizer.pair.num_special - lengths).tolist()
    if wanted > most:
        raise ValueError(
            f"max_answer_length of {name} is {wanted}, but windows of {window} wordpieces have "
            f"room for answers of at most {most} with the shortest question, and of {least} with "
            f"the longest, which fills half of a window. Set max_answer_length to {least}, "
            f"or to {most} if questions are short, or a larger window in the encoder's model."
        )


def widen_to_tokens(batch: PackedBatch, docs: Sequence[Doc], num_pairs: Ints1d) -> PackedBatch:
    """Widen the offsets of wordpieces to the borders of spaCy's tokens, without their white space.
    `num_pairs` is the number of pairs of each Doc (num_docs,)."""
    offsets = batch.offsets
    assert offsets is not None
    texts = [doc.text for doc in docs]
    sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    shift = np.cumsum(sizes) - sizes  # the texts of all Docs are concatenated
    starts, ends, num_tokens = token_offsets(docs)
    starts, ends = (side + np.repeat(shift, num_tokens) for side in (starts, ends))
    trimmed_starts, trimmed_ends = trim_offsets("".join(texts), starts, ends)
    pieces = np.flatnonzero(offsets.ends > offsets.starts)
    pair_shift = np.repeat(np.repeat(shift, num_pairs), batch.num_windows)
    moved = np.repeat(pair_shift, batch.seqlens)[pieces]
    first = np.searchsorted(starts, offsets.starts[pieces] + moved, side="right") - 1
    last = np.searchsorted(starts, offsets.ends[pieces] - 1 + moved, side="right") - 1
    new_starts, new_ends = offsets.starts.copy(), offsets.ends.copy()
    new_starts[pieces] = trimmed_starts[first] - moved
    new_ends[pieces] = trimmed_ends[last] - moved
    return replace(batch, offsets=replace(offsets, starts=new_starts, ends=new_ends))
