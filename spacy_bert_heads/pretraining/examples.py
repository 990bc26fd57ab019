"""The examples of an epoch: a plan on disk that says which segments of the corpus each one holds,
and masked batches made from it. All functions are pure: every random choice comes from `draws.py`.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..text.arrays import Ints1d, Ints2d, ranges, sums
from ..text.batch import PackedBatch, cumulate
from .blocks import Block, Examples, Side, has_one_document, read_blocks
from .masking import Masking, Vocabulary, choose, corrupt
from .segment_pairs import make_pairs

if TYPE_CHECKING:
    from .store import Corpus

PAIRS = ("nsp", "sop")
PACKINGS = ("full-sentences", "doc-sentences")


@dataclass(frozen=True)
class Batch:
    """The input of a training step."""

    packed: PackedBatch  # masked
    masked: Ints1d  # (n_masked,) the positions to predict
    targets: Ints1d  # (n_masked,) the ids that were there
    # (n_examples,) of pairs: nsp 0 next, 1 random; sop 0 in order, 1 swapped. -1 without a pair.
    labels: Ints1d


class Plan:
    """The examples of one epoch, memory-mapped, as `plan_epoch` writes them.

    An example is one or more segments of the corpus: the two of a pair, or the part of each
    document that is packed into it. Raises FileNotFoundError if the folder has no complete plan.
    """

    def __init__(self, path: Path) -> None:
        about = json.loads((path / "plan.json").read_text(encoding="utf8"))
        self.skipped: int = about["skipped"]  # documents too short for a pair
        # First segment, number of segments, label or -1 (n_examples, 3).
        self.examples = _open_rows(path / "examples.bin", (about["examples"], 3))
        # First wordpiece, number of wordpieces (n_segments, 2).
        self.segments = _open_rows(path / "segments.bin", (about["segments"], 2))

    def __len__(self) -> int:
        return len(self.examples)


def _open_rows(path: Path, shape: tuple[int, int]) -> Ints2d:
    if not shape[0]:  # an empty file can't be mapped
        return np.empty(shape, dtype=np.int64)
    # Not as numpy's subclass, which makes every small slice several times slower.
    return np.asarray(np.memmap(path, dtype=np.int64, mode="r", shape=shape))


# --- from documents to examples


def plan_epoch(
    corpus: Corpus,
    path: Path,
    *,
    objective: str,
    max_length: int,
    short_seq_prob: float,
    vocabulary: Vocabulary,
    seed: int,
    epoch: int,
    held_out: float,
    evaluation: bool = False,
) -> Plan:
    """Choose the examples of an epoch and write them to the folder `path`, in corpus order.

    "nsp"             a text and the next or, half the time, one of another document (BERT, section
                      3.1, Task 2, and `create_pretraining_data.py` of google-research/bert)
    "sop"             a text and the next, swapped half the time (ALBERT, section 3.1)
    "full-sentences"  sentences up to max_length, across documents (RoBERTa, section 4.2)
    "doc-sentences"   the same, one document at a time

    `max_length` is in wordpieces, special tokens included. `short_seq_prob` is the share of pairs
    with a random shorter length, because the encoder will meet short texts later; packings have
    none, as in RoBERTa. `held_out` is the share of documents that is left for evaluation, the same
    ones in every epoch; `evaluation` plans those instead of the others.

    Raises ValueError if `max_length` leaves no room for text, or "nsp" finds no other document.

    Notes
    -----
    A sentence that doesn't fit is cut into parts. The two packings hold every wordpiece of a
    document exactly once. The pairs hold every sentence, but lose wordpieces of it at either end
    where the two together don't fit, as in BERT's code.
    """
    side = Side(seed, epoch, held_out, evaluation)
    tokenizer = vocabulary.tokenizer
    if objective in PAIRS:
        special, least = sum(map(len, tokenizer.pair[:3])), 2
    elif objective in PACKINGS:
        special, least = tokenizer.num_special, 1
    else:
        raise ValueError(f"There is no objective '{objective}', but {', '.join(PAIRS + PACKINGS)}.")
    capacity = max_length - special
    if capacity < least:
        raise ValueError(f"Sequences of {max_length} have no room beside {special} special tokens.")
    if objective == "nsp" and has_one_document(corpus, side):
        raise ValueError(
            f"The next sentence of another document needs a second one to "
            f"{'evaluate' if evaluation else 'train'} on, but there is only one. Give more "
            f"documents, hold out another share, or choose another objective."
        )
    blocks = read_blocks(corpus, side, capacity)
    if objective in PAIRS:
        examples = make_pairs(corpus, blocks, side, capacity, short_seq_prob, objective == "sop")
    else:
        examples = _pack(blocks, capacity, len(tokenizer.suffix), objective == "full-sentences")
    _write(path, examples)
    return Plan(path)


def _write(path: Path, blocks: Iterator[Examples]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    # Written last and atomically: where it exists, the plan is complete.
    about, unfinished = path / "plan.json", path / "plan.json.tmp"
    about.unlink(missing_ok=True)
    n_examples = n_segments = skipped = 0
    with (path / "examples.bin").open("wb") as examples, (path / "segments.bin").open("wb") as rows:
        for segments, sizes, labels, too_short in blocks:
            first = n_segments + np.cumsum(sizes) - sizes
            examples.write(np.stack((first, sizes, labels), axis=1).astype(np.int64).tobytes())
            rows.write(segments.astype(np.int64).tobytes())
            n_examples, n_segments = n_examples + len(sizes), n_segments + len(segments)
            skipped += too_short
    counts = {"examples": n_examples, "segments": n_segments, "skipped": skipped}
    unfinished.write_text(json.dumps(counts), encoding="utf8")
    os.replace(unfinished, about)


def _pack(
    blocks: Iterator[Block], capacity: int, separator: int, across: bool
) -> Iterator[Examples]:
    """Fill sequences with consecutive units; begin a new sequence where the next one doesn't fit.

    Nothing here is random: epochs differ in their order and their masks.
    """
    current: list[tuple[int, int]] = []
    room = capacity
    for block in blocks:
        bounds: list[int] = block.bounds.tolist()
        done: list[list[tuple[int, int]]] = []
        i = 0
        for end in block.ends.tolist():
            while i < end:
                fits = room - (separator if current else 0)
                behind = bisect_right(bounds, bounds[i] + fits, i, end + 1) - 1
                if behind > i:
                    current.append((bounds[i], bounds[behind] - bounds[i]))
                    room, i = fits - current[-1][1], behind
                if i < end:
                    done.append(current)
                    current, room = [], capacity
            if current and not across:
                done.append(current)
                current, room = [], capacity
            i = end + 1
        yield _packed(done)
    yield _packed([current] if current else [])


def _packed(examples: list[list[tuple[int, int]]]) -> Examples:
    segments = np.array([row for rows in examples for row in rows], np.int64).reshape(-1, 2)
    sizes = np.fromiter(map(len, examples), dtype=np.int64, count=len(examples))
    return Examples(segments, sizes, np.full(len(examples), -1))


# --- from examples to batches


def make_batch(
    corpus: Corpus,
    plan: Plan,
    numbers: Ints1d,
    *,
    vocabulary: Vocabulary,
    masking: Masking,
    seed: int,
    epoch: int,
) -> Batch:
    """Read the examples with these numbers and mask them, differently in each epoch (RoBERTa,
    section 4.1). An example is the same in any batch.

    pair      prefix A middle B suffix, as the tokenizer has it
    packed    prefix part of a document [suffix part of the next …] suffix
    """
    tokenizer = vocabulary.tokenizer
    first_segment, sizes, labels = np.asarray(plan.examples)[numbers].T
    first, lengths = plan.segments[ranges(first_segment, sizes)].T
    paired = len(labels) > 0 and labels[0] >= 0  # a plan has one objective
    single = (tokenizer.prefix, tokenizer.suffix, tokenizer.suffix)
    prefix, middle, suffix = tokenizer.pair[:3] if paired else single

    # Every segment has a prefix or a middle before it.
    example = np.repeat(np.arange(len(sizes)), sizes)
    begins = ranges(np.zeros_like(sizes), sizes) == 0
    before = np.where(begins, len(prefix), len(middle))
    n_positions = sums(before + lengths, sizes) + len(suffix)
    base = np.cumsum(n_positions) - n_positions
    at = np.cumsum(before + lengths) - lengths + example * len(suffix)
    source, positions = ranges(first, lengths), ranges(at, lengths)

    ids = np.empty(int(n_positions.sum()), dtype=np.int64)
    ids[positions] = corpus.pieces[source]
    ids[base[:, None] + np.arange(len(prefix))] = prefix
    ids[(at - before)[~begins][:, None] + np.arange(len(middle))] = middle
    ids[(base + n_positions - len(suffix))[:, None] + np.arange(len(suffix))] = suffix
    type_ids = np.zeros(len(ids), dtype=np.int64)
    if paired:
        type_ids[:] = tokenizer.pair.first_type
        second = at[~begins]
        type_ids[ranges(second, base + n_positions - second)] = tokenizer.pair.second_type

    pieces = sums(lengths, sizes)
    number, piece = np.repeat(numbers, pieces), ranges(np.zeros_like(pieces), pieces)
    segment = np.repeat(np.arange(len(lengths)), lengths)
    new_segment = np.append(True, np.diff(segment) > 0)[: len(segment)]
    word_starts = corpus.words[source] | new_segment | (not masking.whole_words)
    chosen = choose(word_starts, segment, pieces, (seed, epoch, number, piece), masking)

    masked = positions[chosen]
    targets = ids[masked]
    keys = (seed, epoch, number[chosen], piece[chosen])
    ids[masked] = corrupt(targets, keys, vocabulary, masking)
    windows = np.ones(len(sizes), dtype=np.int64)
    packed = PackedBatch(ids, type_ids, cumulate(n_positions), windows)
    return Batch(packed, masked, targets, labels)
