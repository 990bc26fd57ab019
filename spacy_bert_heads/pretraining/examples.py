"""Tokenized documents to the examples of an epoch, and those to masked batches.

All functions are pure: a choice is a hash of what it is about (the seed, the epoch, the place in
the corpus), not the next number of a generator. So it doesn't matter in which order, in which
batch or by which process an example is made, and there is no state to save for a resume.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import Bools1d, Ints1d, Ints2d, Sequences, ranges, sums
from ..wordpieces import Wordpieces

if TYPE_CHECKING:
    from .corpus import Corpus

PAIRS = ("nsp", "sop")
PACKINGS = ("full-sentences", "doc-sentences")
# What is planned at a time. Memory grows with it, not with the corpus.
BLOCK_SENTENCES = 1 << 16


class Choice(IntEnum):
    """What a random number decides, so that no two choices share theirs."""

    HELD_OUT, SHORT, TARGET, SPLIT, PAIR, DOCUMENT, SENTENCE, CUT = range(8)
    WORDS, SPAN, CORRUPT, REPLACE, ORDER = range(8, 13)


@dataclass(frozen=True)
class Masking:
    """Which pieces are predicted, and what stands in their place.

    rate: the share of an example's pieces that is predicted. mask, random: the shares of those
    that become the mask token and a random piece; the others stay, because text without masks
    is what the encoder will read later (BERT, section 3.1). whole_words: predict all pieces of a
    word or none. max_ngram: up to so many words in a row, n with p(n) ~ 1/n (ALBERT, section 4.1).
    """

    rate: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    whole_words: bool = True
    max_ngram: int = 1


@dataclass(frozen=True)
class Vocabulary:
    """What of a tokenizer the examples need."""

    wordpieces: Wordpieces
    mask_id: int
    size: int
    special: Ints1d  # ids that never replace a piece

    @cached_property
    def ordinary(self) -> Ints1d:
        """RETURNS (Ints1d): The ids that may replace a piece."""
        return np.setdiff1d(np.arange(self.size), self.special)


@dataclass(frozen=True)
class Batch:
    """What a training step reads."""

    sequences: Sequences  # masked
    masked: Ints1d  # (n_masked,) the slots to predict
    targets: Ints1d  # (n_masked,) what stood there
    labels: Ints1d  # (n_examples,) of the pair: nsp 0 next, 1 random; sop 0 in order, 1 swapped


class Plan:
    """The examples of one epoch, memory-mapped. `plan_epoch` writes it.

    An example is one or more segments of the corpus: the two of a pair, or the part of each
    document that is packed into it.

    path (Path): The folder.
    RAISES (FileNotFoundError): If there is no finished plan.
    """

    def __init__(self, path: Path) -> None:
        about = json.loads((path / "plan.json").read_text(encoding="utf8"))
        self.skipped: int = about["skipped"]  # documents too short for a pair
        # First segment, number of segments, label or -1 (n_examples, 3).
        self.examples = _open_rows(path / "examples.bin", (about["examples"], 3))
        # First piece, number of pieces (n_segments, 2).
        self.segments = _open_rows(path / "segments.bin", (about["segments"], 2))

    def __len__(self) -> int:
        return len(self.examples)


def _open_rows(path: Path, shape: tuple[int, int]) -> Ints2d:
    if not shape[0]:  # an empty file can't be mapped
        return np.empty(shape, dtype=np.int64)
    # The mapping without numpy's subclass, which makes every small slice several times slower.
    return np.asarray(np.memmap(path, dtype=np.int64, mode="r", shape=shape))


# --- random numbers


def draw(choice: Choice, *keys: int | Ints1d) -> NDArray[np.uint64]:
    """Draw 64 random bits for each row of keys, always the same ones for the same keys.

    The mixing is that of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number
    generators"), once for each key.

    choice (Choice): What they decide.
    *keys (int / Ints1d): What it is decided for; numbers and arrays are broadcast.
    RETURNS (NDArray[uint64]): The bits.
    """
    state = np.zeros(1, dtype=np.uint64)
    for key in (int(choice), *keys):
        state = _mix(state, key)
    return state


def _mix(state: NDArray[np.uint64], key: int | Ints1d) -> NDArray[np.uint64]:
    state = state + np.asarray(key).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniform(choice: Choice, *keys: int | Ints1d) -> NDArray[np.float64]:
    """As `draw`, but numbers of [0, 1)."""
    return (draw(choice, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(numbers: Ints1d, n: int, *, seed: int, epoch: int) -> Ints1d:
    """Shuffle `range(n)` without holding it: where an epoch goes on is found at once.

    A Feistel network permutes the numbers below a power of four. What it throws beyond n is
    permuted again until it falls below (cycle walking; Black & Rogaway 2002, "Ciphers with
    arbitrary finite domains").

    numbers (Ints1d): Positions in the epoch, each below n.
    n (int): The number of examples.
    seed (int): The seed.
    epoch (int): The epoch; each has its own order.
    RETURNS (Ints1d): The example at each of these positions.
    """
    half = max((n - 1).bit_length() + 1, 2) // 2
    low = (1 << half) - 1
    # Four rounds make a pseudo-random permutation (Luby & Rackoff 1988), but only of halves with
    # many bits. What they have in common is drawn once.
    rounds = draw(Choice.ORDER, seed, epoch, np.arange(8))

    def permute(values: Ints1d) -> Ints1d:
        left, right = values >> half, values & low
        for state in rounds[:, None]:
            noise = _mix(state, right).astype(np.int64)
            left, right = right, left ^ (noise & low)
        return left << half | right

    result = permute(np.asarray(numbers, dtype=np.int64))
    while len(beyond := np.flatnonzero(result >= n)):
        result[beyond] = permute(result[beyond])
    return result


# --- from documents to examples


@dataclass(frozen=True)
class Side:
    """Which documents are planned, and what all choices depend on."""

    seed: int
    epoch: int
    held_out: float
    evaluation: bool

    def has(self, documents: Ints1d) -> Bools1d:
        """Of each document whether it is on this side. Its number alone decides, so that no
        epoch and no process ever trains on what is held out."""
        held_out = uniform(Choice.HELD_OUT, self.seed, documents) < self.held_out
        return held_out == self.evaluation


class _Block(NamedTuple):
    """Some documents, cut into units: sentences, or parts of those that don't fit."""

    documents: Ints1d  # (n_documents,) their numbers
    bounds: Ints1d  # first piece of each unit and, last of each document, the piece behind it
    ends: Ints1d  # (n_documents,) where in `bounds` each document ends


class _Examples(NamedTuple):
    """The examples of a block."""

    segments: Ints2d  # as in Plan
    sizes: Ints1d  # (n_examples,) segments of each
    labels: Ints1d  # (n_examples,)
    skipped: int = 0


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
    """Choose the examples of an epoch. They are written as they are found, in order of the corpus.

    "nsp"             a text and the next or, half the time, one of another document (BERT, section
                      3.1, Task 2, and `create_pretraining_data.py` of google-research/bert)
    "sop"             a text and the next, swapped half the time (ALBERT, section 3.1)
    "full-sentences"  sentences up to max_length, across documents (RoBERTa, section 4.2)
    "doc-sentences"   the same, a document at a time

    A sentence that doesn't fit is cut into parts. The two packings hold every piece of a document
    exactly once. The pairs hold every sentence, but lose pieces of it at either end where
    the two together don't fit, as in BERT's code.

    corpus (Corpus): The tokenized documents.
    path (Path): The folder to write to.
    objective (str): One of the four above.
    max_length (int): The longest sequence, in wordpieces, special tokens included.
    short_seq_prob (float): The share of pairs with a random shorter length, because the encoder
        will meet short texts later. The packings have none, as in RoBERTa.
    vocabulary (Vocabulary): The tokenizer's side.
    seed (int): The seed.
    epoch (int): The epoch; each has its own pairs.
    held_out (float): The share of documents that is left to evaluation, the same ones in
        every epoch.
    evaluation (bool): Plan the documents held out, not the others.
    RETURNS (Plan): The plan.
    RAISES (ValueError): If max_length leaves no room for text, or "nsp" finds no other document.
    """
    side = Side(seed, epoch, held_out, evaluation)
    wordpieces = vocabulary.wordpieces
    if objective in PAIRS:
        special, least = sum(map(len, wordpieces.pair[:3])), 2
    elif objective in PACKINGS:
        special, least = wordpieces.n_special, 1
    else:
        raise ValueError(f"There is no objective '{objective}', but {', '.join(PAIRS + PACKINGS)}.")
    capacity = max_length - special
    if capacity < least:
        raise ValueError(f"Sequences of {max_length} have no room beside {special} special tokens.")
    if objective == "nsp" and _has_one_document(corpus, side):
        raise ValueError(
            f"The next sentence of another document needs a second one to "
            f"{'evaluate' if evaluation else 'train'} on, but there is only one. Give more "
            f"documents, hold out another share, or choose another objective."
        )
    blocks = _read_blocks(corpus, side, capacity)
    if objective in PAIRS:
        examples = _make_pairs(corpus, blocks, side, capacity, short_seq_prob, objective == "sop")
    else:
        examples = _pack(blocks, capacity, len(wordpieces.suffix), objective == "full-sentences")
    _write(path, examples)
    return Plan(path)


def _write(path: Path, blocks: Iterator[_Examples]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    # Written last and at once: where it stands, the plan is whole.
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


def _has_one_document(corpus: Corpus, side: Side) -> bool:
    """Whether just one document of a side has text. Looks no further than the second."""
    found = 0
    for start in range(0, len(corpus.documents) - 1, BLOCK_SENTENCES):
        first = corpus.sentences[corpus.documents[start : start + BLOCK_SENTENCES + 1]]
        numbers = np.arange(start, start + len(first) - 1)
        found += int(np.count_nonzero((first[1:] > first[:-1]) & side.has(numbers)))
        if found > 1:
            return False
    return found == 1


def _read_blocks(corpus: Corpus, side: Side, capacity: int) -> Iterator[_Block]:
    """Read the documents of a side, some at a time.

    One with more sentences than a block (a book, a file without empty lines) is read as several,
    because memory must not grow with it either: once in so many sentences a pair or a packed
    sequence ends early.
    """
    for start in range(0, len(corpus.documents) - 1, BLOCK_SENTENCES):
        first = np.asarray(corpus.documents[start : start + BLOCK_SENTENCES + 1])
        numbers = np.arange(start, start + len(first) - 1)
        chosen = side.has(numbers)
        numbers, first, last = numbers[chosen], first[:-1][chosen], first[1:][chosen]
        # Even parts, lest the last one be too short for a pair.
        parts = np.maximum(-(-(last - first) // BLOCK_SENTENCES), 1)
        part, n_parts = ranges(np.zeros_like(parts), parts), np.repeat(parts, parts)
        numbers, sizes = np.repeat(numbers, parts), np.repeat(last - first, parts)
        begins = np.repeat(first, parts) + sizes * part // n_parts
        sizes = sizes * (part + 1) // n_parts - sizes * part // n_parts
        block = np.cumsum(sizes) // BLOCK_SENTENCES
        for some in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(block)) + 1):
            if len(some):
                units = _cut_units(corpus, begins[some], sizes[some], capacity)
                yield _Block(numbers[some], *units)


def _cut_units(
    corpus: Corpus, begins: Ints1d, sizes: Ints1d, capacity: int
) -> tuple[Ints1d, Ints1d]:
    """Find the bounds of a block's units.

    corpus (Corpus): The documents.
    begins (Ints1d): First sentence of each (n_documents,).
    sizes (Ints1d): Sentences of each (n_documents,).
    capacity (int): The most pieces of a unit.
    RETURNS (Tuple[Ints1d, Ints1d]): The bounds and ends, as in `_Block`.
    """
    bounds = np.asarray(corpus.sentences[ranges(begins, sizes + 1)], dtype=np.int64)
    document = np.repeat(np.arange(len(sizes)), sizes + 1)
    # Sentences without pieces fall away.
    new = np.append(True, (np.diff(bounds) > 0) | (np.diff(document) > 0))
    bounds, document = bounds[new], document[new]
    too_long = (np.diff(bounds) > capacity) & (np.diff(document) == 0)
    places, cuts = [], []
    for i in np.flatnonzero(too_long).tolist():
        at, end = int(bounds[i]), int(bounds[i + 1])
        while end - at > capacity:
            # Before a word if there is one, so that it can be masked as a whole.
            starts = np.flatnonzero(corpus.words[at + 1 : at + capacity + 1])
            at += int(starts[-1]) + 1 if len(starts) else capacity
            places.append(i + 1)
            cuts.append(at)
    if places:
        bounds = np.insert(bounds, places, cuts)
        document = np.insert(document, places, document[places])
    return bounds, np.searchsorted(document, np.arange(len(sizes)), side="right") - 1


def _make_pairs(
    corpus: Corpus,
    blocks: Iterator[_Block],
    side: Side,
    capacity: int,
    short_seq_prob: float,
    swap: bool,
) -> Iterator[_Examples]:
    """Make pairs of segments: consecutive ones, swapped half the time (swap), or a random second
    one half the time.

    Two things differ from BERT's code. The target length is drawn for each example, not for each
    document, lest all of a long document be short. And where just one sentence is left, BERT
    always takes a random next, which makes far more than half of them random in short documents;
    here the true pair is then the sentence with the one before it.
    """
    for block in blocks:
        # Every example begins its search at another unit, so that unit's first piece can be the
        # key of its choices.
        keys = (side.seed, side.epoch, block.bounds)
        # Mostly as much as fits, because a shorter sequence is wasted computation.
        short = uniform(Choice.SHORT, *keys) < short_seq_prob
        any_length = 2 + (uniform(Choice.TARGET, *keys) * (capacity - 1)).astype(np.int64)
        targets = np.where(short, any_length, capacity)
        altered = (draw(Choice.PAIR, *keys) & np.uint64(1)).astype(np.int64)
        random = np.zeros_like(altered) if swap else altered
        rows, skipped = _split_pairs(block, targets, random, uniform(Choice.SPLIT, *keys))

        unit, document, first, split, behind = np.array(rows, dtype=np.int64).reshape(-1, 5).T
        key, label = block.bounds[unit], altered[unit]
        begin, middle, end = block.bounds[first], block.bounds[split], block.bounds[behind]
        second = middle.copy()
        one = np.flatnonzero(random[unit])
        second[one], end[one] = _random_segments(
            corpus,
            side,
            key[one],
            block.documents[document[one]],
            wanted=(targets[unit] - (middle - begin))[one],
            capacity=capacity,
        )
        a, b = _truncate(begin, middle - begin, second, end - second, capacity, side, key)
        segments = np.stack((a, b), axis=1)
        if swap:
            segments[label == 1] = segments[label == 1, ::-1]
        yield _Examples(segments.reshape(-1, 2), np.full(len(label), 2), label, skipped)


def _split_pairs(
    block: _Block, targets: Ints1d, random: Ints1d, splits: NDArray[np.float64]
) -> tuple[list[int], int]:
    """Walk through the documents of a block.

    block (_Block): The block.
    targets (Ints1d): The pieces to reach by an example that begins at a unit (n_bounds,).
    random (Ints1d): Whether its second segment is a random one (n_bounds,).
    splits (NDArray[float64]): Where its first segment ends, in [0, 1) (n_bounds,).
    RETURNS (Tuple[List[int], int]): Five numbers of each example: the unit that it was drawn for,
        its document, where its first segment begins, where it ends, and where the second
        one ends unless that is a random one; and the documents too short for a pair.
    """
    bounds: list[int] = block.bounds.tolist()
    target, is_random, share = targets.tolist(), random.tolist(), splits.tolist()
    rows: list[int] = []
    skipped = i = 0
    for document, end in enumerate(block.ends.tolist()):
        if end - i < 2:
            skipped += 1
            i = end
        while i < end:
            if i + 1 == end:  # one sentence is left
                rows += (i, document, i, end, end) if is_random[i] else (i, document, i - 1, i, end)
                break
            # Two at least, so that neither segment is empty.
            behind = max(bisect_left(bounds, bounds[i] + target[i], i + 1, end), i + 2)
            # Any sentence can be the last of the first segment, lest its place tell the pair.
            split = i + 1 + int(share[i] * (behind - i - 1))
            rows += (i, document, i, split, behind)
            # What a random segment took the place of is not lost, it begins the next example.
            i = split if is_random[i] else behind
        i = end + 1
    return rows, skipped


def _random_segments(
    corpus: Corpus, side: Side, key: Ints1d, own: Ints1d, *, wanted: Ints1d, capacity: int
) -> tuple[Ints1d, Ints1d]:
    """Choose random segments of other documents of the same side, all documents alike, from a
    random sentence on. Training never sees what is held out, not even as a wrong answer.

    corpus (Corpus): The documents.
    side (Side): The side.
    key (Ints1d): What the choices depend on (n,).
    own (Ints1d): The documents not to choose (n,).
    wanted (Ints1d): The pieces to reach, one sentence at least (n,).
    capacity (int): The most pieces of a segment.
    RETURNS (Tuple[Ints1d, Ints1d]): The first piece of each and the one behind its last (n,).
    """
    first, last = np.empty_like(key), np.empty_like(key)
    left, attempt = np.arange(len(key)), 0
    while len(left):
        keys = (side.seed, side.epoch, attempt, key[left])
        n_documents = len(corpus.documents) - 1
        document = (uniform(Choice.DOCUMENT, *keys) * n_documents).astype(np.int64)
        begin, behind = corpus.documents[document], corpus.documents[document + 1]
        sentence = (uniform(Choice.SENTENCE, *keys) * (behind - begin)).astype(np.int64)
        first[left] = corpus.sentences[begin + sentence]
        last[left] = corpus.sentences[behind]
        found = (document != own[left]) & side.has(document) & (first[left] < last[left])
        left, attempt = left[~found], attempt + 1
    enough = np.searchsorted(corpus.sentences, first + np.maximum(wanted, 1))
    enough = np.minimum(enough, len(corpus.sentences) - 1)
    last = np.minimum(last, corpus.sentences[enough])
    return first, np.minimum(last, first + capacity)


def _truncate(
    a: Ints1d, n_a: Ints1d, b: Ints1d, n_b: Ints1d, capacity: int, side: Side, key: Ints1d
) -> tuple[Ints2d, Ints2d]:
    """Take pieces off the longer segment of each pair, one by one, until both fit. (The rule of
    `truncate_seq_pair` in google-research/albert, without the loop.)

    a, b (Ints1d): First pieces of the two segments (n,).
    n_a, n_b (Ints1d): Their lengths (n,).
    capacity (int): The most pieces of both.
    side (Side): The side.
    key (Ints1d): What the choices depend on (n,).
    RETURNS (Tuple[Ints2d, Ints2d]): First piece and length of what stays of a and of b (n, 2).
    """
    excess = np.maximum(n_a + n_b - capacity, 0)
    longer = np.minimum(excess, np.abs(n_a - n_b))  # until both are equal, then in turns
    off_a = np.where(n_a > n_b, longer, 0) + (excess - longer) // 2
    rest = []
    for which, first, length, off in ((0, a, n_a, off_a), (1, b, n_b, excess - off_a)):
        # Each from a random end: an encoder that only ever saw whole beginnings could tell the
        # pair by them.
        piece = ranges(np.zeros_like(off), off)
        bits = draw(Choice.CUT, side.seed, side.epoch, which, np.repeat(key, off), piece)
        front = sums((bits & np.uint64(1)).astype(np.int64), off)
        rest.append(np.stack((first + front, length - off), axis=1))
    return rest[0], rest[1]


def _pack(
    blocks: Iterator[_Block], capacity: int, separator: int, across: bool
) -> Iterator[_Examples]:
    """Fill sequences with units in a row, and begin a new one where the next doesn't fit.

    There is nothing random in it: what differs from epoch to epoch is the order and the masks.
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


def _packed(examples: list[list[tuple[int, int]]]) -> _Examples:
    segments = np.array([row for rows in examples for row in rows], np.int64).reshape(-1, 2)
    sizes = np.fromiter(map(len, examples), dtype=np.int64, count=len(examples))
    return _Examples(segments, sizes, np.full(len(examples), -1))


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
    """Read some examples and mask them, afresh in each epoch (RoBERTa, section 4.1).

    pair      prefix A middle B suffix, as the tokenizer has it
    packed    prefix part of a document [suffix part of the next …] suffix

    corpus (Corpus): The tokenized documents.
    plan (Plan): The epoch's examples.
    numbers (Ints1d): Which ones.
    vocabulary (Vocabulary): The tokenizer's side.
    masking (Masking): What is masked.
    seed (int): The seed.
    epoch (int): The epoch.
    RETURNS (Batch): The batch. Each example is the same in any batch.
    """
    wordpieces = vocabulary.wordpieces
    first_segment, sizes, labels = np.asarray(plan.examples)[numbers].T
    first, lengths = plan.segments[ranges(first_segment, sizes)].T
    paired = len(labels) > 0 and labels[0] >= 0  # a plan has one objective
    single = (wordpieces.prefix, wordpieces.suffix, wordpieces.suffix)
    prefix, middle, suffix = wordpieces.pair[:3] if paired else single

    # Every segment has a prefix or a middle before it.
    example = np.repeat(np.arange(len(sizes)), sizes)
    begins = ranges(np.zeros_like(sizes), sizes) == 0
    before = np.where(begins, len(prefix), len(middle))
    n_slots = sums(before + lengths, sizes) + len(suffix)
    base = np.cumsum(n_slots) - n_slots
    at = np.cumsum(before + lengths) - lengths + example * len(suffix)
    source, slots = ranges(first, lengths), ranges(at, lengths)

    ids = np.empty(int(n_slots.sum()), dtype=np.int64)
    ids[slots] = corpus.pieces[source]
    ids[base[:, None] + np.arange(len(prefix))] = prefix
    ids[(at - before)[~begins][:, None] + np.arange(len(middle))] = middle
    ids[(base + n_slots - len(suffix))[:, None] + np.arange(len(suffix))] = suffix
    type_ids = np.zeros(len(ids), dtype=np.int64)
    if paired:
        type_ids[:] = wordpieces.pair.first_type
        second = at[~begins]
        type_ids[ranges(second, base + n_slots - second)] = wordpieces.pair.second_type

    # The number of each piece in its example, by which it has the same fate in any batch.
    pieces = sums(lengths, sizes)
    number, piece = np.repeat(numbers, pieces), ranges(np.zeros_like(pieces), pieces)
    segment = np.repeat(np.arange(len(lengths)), lengths)
    new_segment = np.append(True, np.diff(segment) > 0)[: len(segment)]
    word_starts = corpus.words[source] | new_segment | (not masking.whole_words)
    keys = (seed, epoch, number, piece)
    chosen = _choose(word_starts, segment, pieces, keys, masking)

    masked, keys = slots[chosen], (seed, epoch, number[chosen], piece[chosen])
    targets = ids[masked]
    fate = uniform(Choice.CORRUPT, *keys)
    ordinary = vocabulary.ordinary
    random = ordinary[(uniform(Choice.REPLACE, *keys) * len(ordinary)).astype(np.int64)]
    ids[masked] = np.where(
        fate < masking.mask,
        vocabulary.mask_id,
        np.where(fate < masking.mask + masking.random, random, targets),
    )
    windows = np.ones(len(sizes), dtype=np.int64)
    return Batch(Sequences(ids, type_ids, n_slots, windows), masked, targets, labels)


def _choose(
    word_starts: Bools1d,
    segment: Ints1d,
    pieces: Ints1d,
    keys: tuple[int, int, Ints1d, Ints1d],
    masking: Masking,
) -> Bools1d:
    """Choose the pieces to predict: words in random order, as many as the rate allows. One that
    would exceed it is passed over, so it may not be reached exactly; without whole words it is.
    (`create_masked_lm_predictions` in google-research/bert, and in google-research/albert for
    n-grams. There an n-gram that meets a chosen word is dropped, here it ends before it.)

    word_starts (Bools1d): Whether a piece begins a word (n_pieces,).
    segment (Ints1d): The segment of each piece (n_pieces,).
    pieces (Ints1d): Pieces of each example (n_examples,).
    keys (Tuple[int, int, Ints1d, Ints1d]): Seed, epoch, and of each piece its example and its
        number therein.
    masking (Masking): The settings.
    RETURNS (Bools1d): The pieces chosen (n_pieces,).
    """
    starts = np.flatnonzero(word_starts)
    seed, epoch, number, piece = keys
    keys = (seed, epoch, number[starts], piece[starts])
    sizes = np.diff(np.append(starts, len(word_starts)))
    words = sums(word_starts, pieces)
    example = np.repeat(np.arange(len(words)), words)
    # One sort for the batch: the example, then 40 random bits.
    noise = (draw(Choice.WORDS, *keys) >> np.uint64(24)).astype(np.int64)
    order = np.argsort((example << 40) | noise, kind="stable")
    # Where the n-gram that begins at a word ends: never in another segment, which is other text.
    p = 1 / np.arange(1, masking.max_ngram + 1)
    n = np.searchsorted(np.cumsum(p[:-1]) / p.sum(), uniform(Choice.SPAN, *keys), side="right") + 1
    segment_end = np.searchsorted(segment[starts], segment[starts], side="right")
    ends = np.minimum(np.arange(len(starts)) + n, segment_end).tolist()
    budgets = np.maximum(np.rint(masking.rate * pieces), 1).astype(np.int64)

    # The one loop over words: what still fits depends on all that was chosen before.
    chosen = np.zeros(len(starts), dtype=np.bool_)
    taken, size, ordered, position = chosen.tolist(), sizes.tolist(), order.tolist(), 0
    for n_words, room in zip(words.tolist(), budgets.tolist(), strict=True):
        for word in ordered[position : position + n_words]:
            end = ends[word]
            while word < end and not taken[word] and size[word] <= room:
                taken[word] = True
                room -= size[word]
                word += 1
            if not room:
                break
        position += n_words
    chosen[:] = taken
    return np.repeat(chosen, sizes)
