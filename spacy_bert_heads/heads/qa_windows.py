"""What a QA head learns from: windows of the Doc, and the place of the answer in each."""

from __future__ import annotations

import numpy as np

from ..text.arrays import Ints1d, Ints2d, sums
from ..text.batch import PackedBatch


def choose_windows(batch: PackedBatch, answers: Ints2d) -> tuple[PackedBatch, Ints2d]:
    """Choose the windows of long Docs to train on: those that contain the answer, and one at random
    of the others. Otherwise "not in this window" would dominate the loss.

    `answers` are the first character of each pair's answer and the one after its last, equal ones
    for no answer (num_pairs, 2). Returns the chosen windows and their targets, see `find_targets`.
    """
    # Found before the choice, while all windows of an answer can be seen.
    targets = find_targets(batch, answers)
    if (batch.num_windows == 1).all():
        return batch, targets
    chosen = targets[:, 0] > 0
    pair_of = np.repeat(np.arange(len(batch.num_windows)), batch.num_windows)
    # numpy's own generator, because it is the one that spaCy seeds.
    order = np.random.permutation(len(chosen))
    order = order[~chosen[order]]
    _, one_of_each = np.unique(pair_of[order], return_index=True)
    chosen[order[one_of_each]] = True
    kept, _ = batch.take_windows(np.flatnonzero(chosen), sums(chosen, batch.num_windows))
    return kept, targets[chosen]


def find_targets(batch: PackedBatch, answers: Ints2d) -> Ints2d:
    """Find the first and the last wordpiece of each pair's answer in its windows.

    `answers` are those of `choose_windows`. Returns both, counted from the window's first position
    (num_sequences, 2). 0, which is [CLS], stands for "not here": the window doesn't contain all of
    the answer. -1 says that nothing can be learned: no window contains all of it.
    """
    offsets = batch.offsets
    assert offsets is not None
    begins, seqlens = batch.cu_seqlens[:-1], batch.seqlens
    pair_of = np.repeat(np.arange(len(batch.num_windows)), batch.num_windows)
    start, end = answers[np.repeat(pair_of, seqlens)].T
    inside = (offsets.starts < end) & (offsets.ends > start) & (start < end)
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
