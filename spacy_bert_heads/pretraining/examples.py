"""Create the examples of an epoch: a plan on disk with the corpus segments of each example, and
masked batches. All functions are pure: every random choice comes from `draws.py`.
"""

from __future__ import annotations

import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..text.arrays import Bools1d, Ints1d, Ints2d
from ..text.batch import PackedBatch, cumulate
from .documents import Document, read_documents
from .draws import Purpose, generator, shuffle
from .masking import Masking, Vocabulary, choose, corrupt
from .noise import Noise, damage
from .segment_pairs import Segment, other_document, pair_segments

if TYPE_CHECKING:
    from .store import Corpus

PAIRS = ("nsp", "sop")
PACKINGS = ("full-sentences", "doc-sentences")


@dataclass(frozen=True)
class Batch:
    """Hold the input of a training step."""

    packed: PackedBatch  # masked
    masked: Ints1d  # (n_masked,) the positions to predict
    targets: Ints1d  # (n_masked,) their original ids
    # (n_sequences,) of pairs: nsp 0 next, 1 random; sop 0 in order, 1 swapped. -1 without a pair.
    labels: Ints1d
    # What a decoder writes, by the number of the damaged sequence; without special tokens.
    restored: dict[int, Ints1d] = field(default_factory=dict)


class Plan:
    """Read the examples of one epoch by memory mapping, as written by `plan_epoch`.

    An example is one or more segments of the corpus: the two of a pair, or the parts of documents
    that are packed into it. Raises FileNotFoundError if the folder has no complete plan.
    """

    def __init__(self, path: Path) -> None:
        about = json.loads((path / "plan.json").read_text(encoding="utf8"))
        self.seed, self.epoch = int(about["seed"]), int(about["epoch"])
        self.skipped: int = about["skipped"]  # documents too short for a pair
        # First segment, number of segments, label or -1 (n_examples, 3).
        self.examples = _open_rows(path / "examples.bin", (about["examples"], 3))
        # First wordpiece, number of wordpieces (n_segments, 2).
        self.segments = _open_rows(path / "segments.bin", (about["segments"], 2))

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def order(self) -> Ints1d:
        """Return the order of the examples (n_examples,); see `shuffle`. The two examples of a pair
        of segments are adjacent."""
        per_pair = 2 if len(self) and self.examples[0, 2] >= 0 else 1
        order = shuffle(len(self) // per_pair, seed=self.seed, epoch=self.epoch)
        return (per_pair * order[:, None] + np.arange(per_pair)).ravel()


def _open_rows(path: Path, shape: tuple[int, int]) -> Ints2d:
    if not shape[0]:  # an empty file can't be mapped
        return np.empty(shape, dtype=np.int64)
    # As a plain ndarray, because small slices of numpy's subclass are several times slower.
    return np.asarray(np.memmap(path, dtype=np.int64, mode="r", shape=shape))


# --- from documents to examples


def plan_epoch(
    corpus: Corpus,
    chosen: Bools1d,
    path: Path,
    *,
    objective: str,
    max_length: int,
    short_seq_prob: float,
    vocabulary: Vocabulary,
    seed: int,
    epoch: int,
) -> Plan:
    """Plan the examples of an epoch of the `chosen` documents (n_documents,), and write them to the
    folder `path` in corpus order.

    "nsp"             a text and the next one; the same text and one of another document (BERT,
                      section 3.1, Task 2; there each text gets only one of both)
    "sop"             a text and the next one; the two swapped (ALBERT, section 3.1)
    "full-sentences"  sentences up to max_length, across documents (RoBERTa, section 4.2)
    "doc-sentences"   the same, one document at a time

    `max_length` is in wordpieces, special tokens included. `short_seq_prob` is the share of pairs
    with a random shorter length, because the encoder will read short texts later; packed sequences
    have none, as in RoBERTa. The two examples of a pair are adjacent, the true one first.

    Raises ValueError if `max_length` leaves no room for text, or "nsp" finds no other document.

    Notes
    -----
    A sentence that is too long is split. Both packings contain every wordpiece of a document
    exactly once. Pairs contain every sentence twice; if the two segments are too long together,
    wordpieces at either end are dropped, as in BERT's code. Only the examples of one document, or
    of a part of it, are in memory.
    """
    tokenizer = vocabulary.tokenizer
    if objective not in PAIRS + PACKINGS:
        raise ValueError(
            f"There is no objective '{objective}'. Choose one of: {', '.join(PAIRS + PACKINGS)}."
        )
    is_pair = objective in PAIRS
    special = tokenizer.pair.num_special if is_pair else tokenizer.num_special
    capacity = max_length - special
    if capacity < 1 + is_pair:
        raise ValueError(
            f"max_length is {max_length}, which leaves no room beside {special} special tokens. "
            "Increase it."
        )
    if objective == "nsp" and chosen.sum() == 1:
        raise ValueError(
            "Next-sentence prediction needs two documents, but there is only one in the text, or "
            "among those of paths.held_out. Add documents, set text.format if they are not "
            'separated by blank lines, or set [objective] sentences = "full-sentences".'
        )
    documents = read_documents(corpus, chosen, capacity)
    if is_pair:
        pairs = partial(
            pair_segments,
            capacity=capacity,
            short_seq_prob=short_seq_prob,
            choose_other=other_document(corpus, chosen, capacity) if objective == "nsp" else None,
        )
        per_document = (
            list(pairs(document, generator(seed, Purpose.PAIRS, epoch, document.bounds[0])))
            for document in documents
        )
    else:
        across = objective == "full-sentences"
        packed = pack_segments(documents, capacity, len(tokenizer.suffix), across=across)
        per_document = ([(segments, -1)] for segments in packed)
    _write(path, per_document, seed=seed, epoch=epoch)
    return Plan(path)


def pack_segments(
    documents: Iterable[Document], capacity: int, separator: int, *, across: bool
) -> Iterator[list[Segment]]:
    """Yield sequences of consecutive units; a unit that doesn't fit starts a new sequence.
    `separator` is the number of special tokens between two documents of a sequence.

    Nothing here is random: epochs differ only in their order and their masks.
    """
    current: list[Segment] = []
    room = capacity
    for _, bounds in documents:
        i, last = 0, len(bounds) - 1
        while i < last:
            fits = room - (separator if current else 0)
            behind = bisect_right(bounds, bounds[i] + fits, i) - 1
            if behind > i:
                current.append((bounds[i], bounds[behind] - bounds[i]))
                room, i = fits - current[-1][1], behind
            if i < last:
                yield current
                current, room = [], capacity
        if current and not across:
            yield current
            current, room = [], capacity
    if current:
        yield current


def _write(
    path: Path, per_document: Iterable[list[tuple[list[Segment], int]]], **keys: int
) -> None:
    """Write the examples document by document; an example is a list of segments and a label."""
    path.mkdir(parents=True, exist_ok=True)
    # Written last and atomically: if it exists, the plan is complete.
    about, unfinished = path / "plan.json", path / "plan.json.tmp"
    about.unlink(missing_ok=True)
    n_examples = n_segments = skipped = 0
    with (path / "examples.bin").open("wb") as examples, (path / "segments.bin").open("wb") as rows:
        for found in per_document:
            skipped += not found
            for segments, label in found:
                examples.write(array("q", (n_segments, len(segments), label)))
                rows.write(array("q", chain.from_iterable(segments)))
                n_segments += len(segments)
            n_examples += len(found)
    counts = {"examples": n_examples, "segments": n_segments, "skipped": skipped} | keys
    unfinished.write_text(json.dumps(counts), encoding="utf8")
    os.replace(unfinished, about)


# --- from examples to batches


class Example(NamedTuple):
    """Hold a masked sequence."""

    ids: Ints1d  # (n_positions,)
    type_ids: Ints1d  # (n_positions,)
    masked: Ints1d  # (n_masked,) the positions to predict
    targets: Ints1d  # (n_masked,) their original ids
    label: int


def make_batch(
    corpus: Corpus,
    plan: Plan,
    numbers: Ints1d,
    *,
    vocabulary: Vocabulary,
    masking: Masking | None,
    noise: Noise | None = None,
) -> Batch:
    """Read the examples with these numbers and mask them, differently in each epoch (RoBERTa,
    section 4.1); and read them once more, damaged by `noise`. With None for one of the two they are
    read once. An example is the same in any batch, and takes 70 µs (128 wordpieces)."""
    examples, restored = [], {}
    if masking:
        for number in numbers.tolist():
            random = generator(plan.seed, Purpose.MASKS, plan.epoch, number)
            examples.append(make_example(corpus, plan, number, vocabulary, masking, random))
    if noise:
        for number in numbers.tolist():
            random = generator(plan.seed, Purpose.NOISE, plan.epoch, number)
            example, whole = damage_example(corpus, plan, number, vocabulary, noise, random)
            restored[len(examples)] = whole
            examples.append(example)
    none = np.empty(0, dtype=np.int64)
    ids, type_ids, masked, targets = (
        [none, *(example[i] for example in examples)] for i in range(4)
    )
    bounds = cumulate(np.array([len(example.ids) for example in examples], dtype=np.int64))
    shifted = [one + shift for one, shift in zip(masked[1:], bounds.tolist(), strict=False)]
    windows = np.ones(len(examples), dtype=np.int64)
    return Batch(
        PackedBatch(np.concatenate(ids), np.concatenate(type_ids), bounds, windows),
        np.concatenate([none, *shifted]),
        np.concatenate(targets),
        np.array([example.label for example in examples], dtype=np.int64),
        restored,
    )


def damage_example(
    corpus: Corpus,
    plan: Plan,
    number: int,
    vocabulary: Vocabulary,
    noise: Noise,
    random: np.random.Generator,
) -> tuple[Example, Ints1d]:
    """Read an example, which is a part of one document, and damage it. Returns the sequence that is
    read, and the wordpieces that a decoder writes."""
    first, _, _ = plan.examples[number].tolist()
    begin, length = plan.segments[first].tolist()
    ids = corpus.pieces[begin : begin + length].astype(np.int64)
    inner = np.searchsorted(corpus.sentences, [begin, begin + length], side="right")
    starts = np.append(0, corpus.sentences[inner[0] : inner[1]] - begin)
    found = damage(ids, starts[starts < length], noise, vocabulary.mask_id, random)
    tokenizer, none = vocabulary.tokenizer, np.empty(0, dtype=np.int64)
    read = np.concatenate([tokenizer.prefix, found.ids, tokenizer.suffix])
    return Example(read, np.zeros_like(read), none, none, -1), found.restored


def make_example(
    corpus: Corpus,
    plan: Plan,
    number: int,
    vocabulary: Vocabulary,
    masking: Masking,
    random: np.random.Generator,
) -> Example:
    """Read an example and mask it.

    pair      prefix A middle B suffix, as the tokenizer builds it
    packed    prefix part of a document [suffix part of the next …] suffix
    """
    tokenizer = vocabulary.tokenizer
    first, n_segments, label = plan.examples[number].tolist()
    prefix, middle, suffix = tokenizer.prefix, tokenizer.suffix, tokenizer.suffix
    if label >= 0:
        prefix, middle, suffix = tokenizer.pair[:3]
    segments = plan.segments[first : first + n_segments].tolist()
    units = corpus.spans if masking.units == "spans" else corpus.words
    parts: list[NDArray[np.integer]] = [prefix]
    starts = [np.ones_like(prefix, dtype=np.bool_)]
    for (begin, length), special in zip(
        segments, [middle] * (n_segments - 1) + [suffix], strict=True
    ):
        parts += [corpus.pieces[begin : begin + length], special]
        starts += [units[begin : begin + length], np.ones_like(special, dtype=np.bool_)]
    ids = np.concatenate(parts, dtype=np.int64)
    type_ids = np.zeros_like(ids)
    if label >= 0:
        second = sum(map(len, parts[:3]))
        type_ids[:second], type_ids[second:] = tokenizer.pair[3:]
    begins = np.concatenate(starts)
    if masking.units == "wordpieces":
        begins[:] = True
    maskable = vocabulary.is_ordinary[ids]
    masked = choose(begins, maskable, masking, random)
    targets = ids[masked]
    ids[masked] = corrupt(targets, vocabulary, masking, random)
    return Example(ids, type_ids, masked, targets, label)
