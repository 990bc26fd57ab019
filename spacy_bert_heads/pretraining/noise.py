"""Damage to texts that a decoder learns to restore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..text.arrays import Ints1d

KINDS = ("permutation", "rotation", "deletion", "infilling", "mass")


@dataclass(frozen=True)
class Noise:
    """The settings of the noise.

    kinds: any of these, applied in this order whatever the order of the list:
    "permutation", the sentences in random order; "rotation", the text begins at a random wordpiece,
    and what was before it follows the end; "deletion", random wordpieces are missing; "infilling",
    random spans are a single mask token each, also spans of no wordpiece (BART, Lewis et al. 2020,
    section 2.2). "mass" stands alone: one span is masked, wordpiece by wordpiece, and the decoder
    writes only that (Song et al. 2019, section 3.2).
    rate: the share of wordpieces that are deleted, and of those in spans.
    mean_span: the mean length of spans of infilling, which are Poisson distributed.
    """

    kinds: tuple[str, ...] = ()
    rate: float = 0.3
    mean_span: float = 3.0


class Damaged(NamedTuple):
    """The damaged text that the encoder reads, and the text that the decoder must write, without
    special tokens."""

    ids: Ints1d
    restored: Ints1d


def damage(
    ids: Ints1d, sentences: Ints1d, noise: Noise, mask_id: int, random: np.random.Generator
) -> Damaged:
    """Damage a text of wordpieces `ids` (n,), one at least, whose sentences begin at `sentences`
    (n_sentences,), the first at 0. Never longer than the text."""
    if "mass" in noise.kinds:
        return _mask_span(ids, noise, mask_id, random)
    damaged = ids
    if "permutation" in noise.kinds:
        parts = np.split(ids, sentences[1:])
        damaged = np.concatenate([parts[i] for i in random.permutation(len(parts))])
    if "rotation" in noise.kinds:
        damaged = np.roll(damaged, -int(random.integers(len(damaged))))
    if "deletion" in noise.kinds:
        number = min(round(noise.rate * len(damaged)), len(damaged) - 1)
        damaged = np.delete(damaged, random.choice(len(damaged), number, replace=False))
    if "infilling" in noise.kinds:
        damaged = fill_spans(damaged, noise, mask_id, random)[: len(ids)]
    return Damaged(damaged, ids)


def _mask_span(ids: Ints1d, noise: Noise, mask_id: int, random: np.random.Generator) -> Damaged:
    length = max(round(noise.rate * len(ids)), 1)
    start = int(random.integers(len(ids) - length + 1))
    damaged = ids.copy()
    damaged[start : start + length] = mask_id
    return Damaged(damaged, ids[start : start + length])


def fill_spans(ids: Ints1d, noise: Noise, mask_id: int, random: np.random.Generator) -> Ints1d:
    """Replace random spans by a mask token each. The spans have `rate` of the wordpieces; the last
    one that is drawn is cut to that."""
    room = round(noise.rate * len(ids))
    lengths: list[int] = []
    while room:
        length = min(int(random.poisson(noise.mean_span)), room)
        lengths.append(length)
        room -= length
    # Each span begins behind some number of kept wordpieces, drawn for all of them at once.
    kept = len(ids) - sum(lengths)
    before = np.sort(random.integers(kept + 1, size=len(lengths)))
    spans = np.array(lengths, dtype=np.int64)
    starts = before + np.cumsum(spans) - spans
    is_kept = np.ones(len(ids), dtype=np.bool_)
    for start, length in zip(starts.tolist(), lengths, strict=True):
        is_kept[start : start + length] = False
    return np.insert(ids[is_kept], before, mask_id)
