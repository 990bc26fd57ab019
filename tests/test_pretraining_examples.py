"""Examples of an epoch: exact values, brute force, and the statistics of every choice."""

import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from checkpoints import SPECIAL, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_bert_heads.pretraining import examples
from spacy_bert_heads.pretraining.examples import (
    Batch,
    Choice,
    Masking,
    Plan,
    Vocabulary,
    draw,
    make_batch,
    plan_epoch,
    shuffled,
    uniform,
)
from spacy_bert_heads.wordpieces import Wordpieces

CLS, SEP, MASK = (SPECIAL["wordpiece"].index(f"[{name}]") for name in ("CLS", "SEP", "MASK"))
# In the tests every piece of a corpus has an id of its own: its place, plus this.
A = 100
SIZE = 100_000


@dataclass
class Corpus:
    pieces: np.ndarray
    words: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray

    def document_of(self, piece: int) -> int:
        sentence = int(np.searchsorted(self.sentences, piece, side="right")) - 1
        return int(np.searchsorted(self.documents, sentence, side="right")) - 1

    def span(self, document: int) -> tuple[int, int]:
        first, last = self.sentences[self.documents[document : document + 2]].tolist()
        return first, last


def corpus_of(*documents: list[int], words: list[int] | None = None) -> Corpus:
    """A corpus by the pieces of each sentence, and where its words begin (default everywhere)."""
    sentences = np.cumsum([0, *(length for document in documents for length in document)])
    n_pieces = int(sentences[-1])
    starts = np.ones(n_pieces, dtype=bool) if words is None else np.isin(range(n_pieces), words)
    bounds = np.cumsum([0, *map(len, documents)])
    return Corpus(np.arange(n_pieces, dtype=np.int32) + A, starts, sentences, bounds)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


@cache
def vocabulary(kind: str = "wordpiece") -> Vocabulary:
    wordpieces = Wordpieces(make_tokenizer(kind).backend_tokenizer)
    return Vocabulary(wordpieces, MASK, SIZE, np.arange(len(SPECIAL[kind])))


class Epoch:
    """A plan in a folder that is gone at once."""

    def __init__(
        self, corpus: Corpus, objective: str, max_length: int, kind="wordpiece", **options
    ):
        options = {"short_seq_prob": 0.0, "seed": 0, "epoch": 0, "held_out": 0.0, **options}
        with tempfile.TemporaryDirectory() as folder:
            self.plan = plan_epoch(
                corpus,
                Path(folder) / "plan",
                objective=objective,
                max_length=max_length,
                vocabulary=vocabulary(kind),
                **options,
            )
            self.plan.examples = np.array(self.plan.examples)
            self.plan.segments = np.array(self.plan.segments)
        self.labels = self.plan.examples[:, 2].tolist()
        rows = [tuple(row) for row in self.plan.segments.tolist()]
        # First piece and number of pieces of each example's segments
        self.examples = [rows[i : i + n] for i, n, _ in self.plan.examples.tolist()]


def batch_of(
    corpus: Corpus, plan: Plan, *numbers: int, kind: str = "wordpiece", **options
) -> Batch:
    options = {"masking": Masking(), "seed": 0, "epoch": 0, **options}
    numbers = numbers or range(len(plan))
    return make_batch(corpus, plan, ints(*numbers), vocabulary=vocabulary(kind), **options)


def restored(batch: Batch) -> list[list[int]]:
    """The ids of each sequence as they were."""
    ids = batch.sequences.ids.copy()
    ids[batch.masked] = batch.targets
    return [part.tolist() for part in np.split(ids, np.cumsum(batch.sequences.lengths)[:-1])]


def within(share: float, expected: float, n: int) -> bool:
    """Whether a share of n draws is within five standard errors. The seeds are fixed."""
    return abs(share - expected) <= 5 * (expected * (1 - expected) / n) ** 0.5


# --- random numbers


def test_draws_are_what_they_were():
    # A change here would change the text that a run sees after it is resumed.
    assert draw(Choice.WORDS, 1, ints(2, 3)).tolist() == [16745020883678844818, 7877781145066174480]
    assert shuffled(np.arange(10), 10, seed=1, epoch=2).tolist() == [8, 0, 1, 3, 9, 7, 6, 5, 4, 2]


def test_draws_are_uniform_and_independent():
    n = 100_000
    keys = np.arange(n)
    columns = [uniform(Choice.WORDS, 0, keys), uniform(Choice.WORDS, 1, keys)]
    columns += [uniform(Choice.SPAN, 0, keys), uniform(Choice.WORDS, keys, 0)]
    columns += [uniform(Choice.WORDS, 0, keys + 1)]
    for column in columns:
        assert column.min() >= 0 and column.max() < 1
        shares = np.bincount((column * 10).astype(int)) / n
        assert all(within(share, 0.1, n) for share in shares)
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 5 / n**0.5


@settings(deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_shuffled_is_a_permutation(n, seed, epoch):
    order = shuffled(np.arange(n), n, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))
    # and any part of it is found without the rest
    some = np.arange(n)[:: max(n // 7, 1)]
    assert shuffled(some, n, seed=seed, epoch=epoch).tolist() == order[some].tolist()


def test_shuffled_differs_and_is_well_mixed():
    n = 10_000
    orders = [shuffled(np.arange(n), n, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0)]]
    orders.append(np.arange(n))
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.count_nonzero(one == other) < 12  # one is expected
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / n**0.5
    # Every example is as likely as any other to be first
    firsts = [int(shuffled(ints(0), 5, seed=s, epoch=0)[0]) for s in range(1000)]
    assert all(within(share, 0.2, 1000) for share in np.bincount(firsts, minlength=5) / 1000)


def test_shuffled_holds_nothing():
    n = 10**15
    order = shuffled(ints(0, 1, 2, n - 1), n, seed=0, epoch=0)
    assert len(set(order.tolist())) == 4
    assert ((order >= 0) & (order < n)).all()
    assert order.min() > 10**11  # far from where they came from


# --- packings


@pytest.mark.parametrize(
    "documents, doc_sentences, full_sentences",
    [
        # Room for 8. Pieces:  0 1 2 | 3 4 5 | 6 7 8 9 || 10 11 | 12
        #                      ├───────────┤   ├──────┤   ├────────┤
        # Across documents the second sequence goes on, with a separator: 4 + 1 + 3.
        (
            [[3, 3, 4], [2, 1]],
            [[(0, 6)], [(6, 4)], [(10, 3)]],
            [[(0, 6)], [(6, 4), (10, 3)]],
        ),
        # Just full, just too full
        ([[4, 4, 4, 5]], [[(0, 8)], [(8, 4)], [(12, 5)]], [[(0, 8)], [(8, 4)], [(12, 5)]]),
        ([[8], [8]], [[(0, 8)], [(8, 8)]], [[(0, 8)], [(8, 8)]]),
        # No room for separator and sentence
        ([[7], [1]], [[(0, 7)], [(7, 1)]], [[(0, 7)], [(7, 1)]]),
        ([[6], [1]], [[(0, 6)], [(6, 1)]], [[(0, 6), (6, 1)]]),
        # A sentence that doesn't fit is cut into parts, and the last one has company
        ([[2, 18, 3]], [[(0, 2)], [(2, 8)], [(10, 8)], [(18, 5)]], None),
        # Three documents in a sequence; empty ones and empty sentences leave no trace
        (
            [[], [2], [0, 0], [1, 0, 1], [0], [2], []],
            [[(0, 2)], [(2, 2)], [(4, 2)]],
            [[(0, 2), (2, 2), (4, 2)]],
        ),
        ([], [], []),
        ([[], [0]], [], []),
    ],
)
def test_packings_by_hand(documents, doc_sentences, full_sentences):
    corpus = corpus_of(*documents)
    if full_sentences is None:
        full_sentences = doc_sentences
    for objective, expected in [
        ("doc-sentences", doc_sentences),
        ("full-sentences", full_sentences),
    ]:
        epoch = Epoch(corpus, objective, 10)
        assert epoch.examples == expected
        assert epoch.labels == [-1] * len(expected)
        assert len(epoch.plan) == len(expected)
        assert epoch.plan.skipped == 0


def test_long_sentences_are_cut_before_words():
    # Room for 4. Words begin at 0 3 5 | 11, and the one at 5 doesn't fit itself.
    corpus = corpus_of([11, 2], words=[0, 3, 5, 11])
    epoch = Epoch(corpus, "doc-sentences", 6)
    assert epoch.examples == [[(0, 3)], [(3, 2)], [(5, 4)], [(9, 4)]]


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
def test_packed_sequences_by_hand(kind):
    corpus = corpus_of([2], [1], [4])
    epoch = Epoch(corpus, "full-sentences", 10, kind=kind)
    batch = batch_of(corpus, epoch.plan, kind=kind)
    special = SPECIAL[kind]
    names = ("<s>", "</s>") if kind == "bytes" else ("[CLS]", "[SEP]")
    cls, sep = (special.index(name) for name in names)
    assert restored(batch) == [
        [cls, A, A + 1, sep, A + 2, sep],
        [cls, A + 3, A + 4, A + 5, A + 6, sep],
    ]
    assert batch.sequences.type_ids.tolist() == [0] * 12
    assert batch.sequences.lengths.tolist() == [6, 6]
    assert batch.sequences.windows.tolist() == [1, 1]
    assert batch.labels.tolist() == [-1, -1]


DOCUMENTS = st.lists(st.lists(st.integers(0, 14), max_size=8), max_size=8)


@settings(max_examples=80, deadline=None)
@given(documents=DOCUMENTS, max_length=st.integers(3, 20), held_out=st.sampled_from([0.0, 0.4]))
def test_packings_hold_every_piece_once(documents, max_length, held_out):
    corpus = corpus_of(*documents)
    for objective in ("full-sentences", "doc-sentences"):
        sides = []
        for evaluation in (False, True):
            options = {"held_out": held_out, "evaluation": evaluation}
            epoch = Epoch(corpus, objective, max_length, **options)
            order = [range(first, first + n) for rows in epoch.examples for first, n in rows]
            sides.append([piece for part in order for piece in part])
            assert sides[-1] == sorted(sides[-1])
            for rows in epoch.examples:
                assert 0 < sum(n for _, n in rows) + len(rows) - 1 <= max_length - 2
                of = [corpus.document_of(first) for first, _ in rows]
                ends = [corpus.document_of(first + n - 1) for first, n in rows]
                assert of == ends == sorted(set(of))
                assert objective == "full-sentences" or len(rows) == 1
            if len(epoch.plan):
                batch = batch_of(corpus, epoch.plan)
                assert batch.sequences.lengths.max() <= max_length
                found = [i - A for ids in restored(batch) for i in ids if i >= A]
                assert found == sides[-1]
        assert sorted(sides[0] + sides[1]) == list(range(len(corpus.pieces)))
        of_sides = [{corpus.document_of(piece) for piece in side} for side in sides]
        assert not of_sides[0] & of_sides[1]
        assert held_out or not sides[1]


# --- pairs


def test_sop_by_hand():
    # Room for 9 pieces of 12. The first document is one pair; the second makes one of 4 + 5
    # sentences' pieces, and its last sentence, which is left alone, one with that before it.
    corpus = corpus_of([2, 3], [4, 5, 2], [6])
    seen = set()
    for seed in range(60):
        epoch = Epoch(corpus, "sop", 12, seed=seed)
        assert epoch.plan.skipped == 1
        assert len(epoch.plan) == 3
        batch = batch_of(corpus, epoch.plan)
        expected = [[(0, 2), (2, 3)], [(5, 4), (9, 5)], [(9, 5), (14, 2)]]
        for rows, label, found in zip(expected, epoch.labels, epoch.examples, strict=True):
            assert found == (rows if label == 0 else rows[::-1])
        assert batch.labels.tolist() == epoch.labels
        seen.add(tuple(epoch.labels))
        first, second = [A, A + 1], [A + 2, A + 3, A + 4]
        if epoch.labels[0]:
            first, second = second, first
        n = len(first) + 2
        assert restored(batch)[0] == [CLS, *first, SEP, *second, SEP]
        assert batch.sequences.type_ids[:8].tolist() == [0] * n + [1] * (8 - n)
    assert len(seen) == 8


def test_nsp_by_hand():
    # Room for 6 of 9. Either the document is one pair, or each of its sentences has a random
    # next: three pieces of the other document, or fewer where that ends.
    corpus = corpus_of([3, 3], [1, 1, 1, 1])
    true, seen = [(0, 3), (3, 3)], set()
    for seed in range(60):
        epoch = Epoch(corpus, "nsp", 9, seed=seed)
        first, rest = epoch.examples[0], epoch.examples[1]
        seen.add(epoch.labels[0])
        if epoch.labels[0] == 0:
            assert first == true
            continue
        assert first[0] == (0, 3)
        assert first[1] in [(6, 3), (7, 3), (8, 2), (9, 1)]
        assert rest == true if epoch.labels[1] == 0 else rest[0] == (3, 3)
    assert seen == {0, 1}


def test_pairs_of_a_tokenizer_without_types():
    # RoBERTa's: <s> A </s></s> B </s>
    corpus = corpus_of([2, 3])
    epoch = Epoch(corpus, "sop", 9, kind="bytes", seed=1)
    bos, eos = SPECIAL["bytes"].index("<s>"), SPECIAL["bytes"].index("</s>")
    (a, n_a), (b, n_b) = epoch.examples[0]
    first, second = range(A + a, A + a + n_a), range(A + b, A + b + n_b)
    batch = batch_of(corpus, epoch.plan, kind="bytes")
    assert restored(batch) == [[bos, *first, eos, eos, *second, eos]]
    assert batch.sequences.type_ids.tolist() == [0] * 9


def brute_force(corpus: Corpus, objective: str, room: int, *, short: float, seed: int, epoch: int):
    """BERT's and ALBERT's code, sentence by sentence and piece by piece, with our draws."""

    def choose(choice: Choice, *keys: int) -> float:
        return float(uniform(choice, seed, epoch, *keys)[0])

    def is_one(choice: Choice, *keys: int) -> bool:
        return bool(draw(choice, seed, epoch, *keys)[0] & np.uint64(1))

    sentences = [
        list(range(*corpus.sentences[i : i + 2])) for i in range(len(corpus.sentences) - 1)
    ]
    documents = [
        sentences[slice(*corpus.documents[i : i + 2])] for i in range(len(corpus.documents) - 1)
    ]
    pairs, labels = [], []
    for number, document in enumerate(documents):
        units = [one[i : i + room] for one in document for i in range(0, len(one), room)]
        if len(units) < 2:
            continue
        i = 0
        while i < len(units):
            key, target = units[i][0], room
            if choose(Choice.SHORT, key) < short:
                target = 2 + int(choose(Choice.TARGET, key) * (room - 1))
            altered = is_one(Choice.PAIR, key)
            is_random = altered and objective == "nsp"
            chunk: list[list[int]] = []
            if i == len(units) - 1 and not is_random:
                chunk.append(units[i - 1])
            for unit in units[i:]:
                chunk.append(unit)
                if sum(map(len, chunk)) >= target and len(chunk) > 1:
                    break
            split = 1 + int(choose(Choice.SPLIT, key) * (len(chunk) - 1)) if len(chunk) > 2 else 1
            a, b = sum(chunk[:split], []), sum(chunk[split:], [])
            i += split if is_random else len(chunk)
            if is_random:
                b, attempt = [], 0
                while not b:
                    keys = (attempt, key)
                    other = int(choose(Choice.DOCUMENT, *keys) * len(documents))
                    start = int(choose(Choice.SENTENCE, *keys) * len(documents[other]))
                    for sentence in documents[other][start:] if other != number else []:
                        b += sentence
                        if len(b) >= max(target - len(a), 1):
                            break
                    attempt += 1
                b = b[:room]
            off = [0, 0]
            while len(a) + len(b) > room:
                which = int(len(a) <= len(b))
                (a, b)[which].pop(0 if is_one(Choice.CUT, which, key, off[which]) else -1)
                off[which] += 1
            swap = altered and objective == "sop"
            pairs.append([b, a] if swap else [a, b])
            labels.append(int(altered))
    return pairs, labels


@settings(max_examples=80, deadline=None)
@given(
    documents=DOCUMENTS.filter(lambda documents: sum(map(any, documents)) != 1),
    max_length=st.integers(5, 24),
    short=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_pairs_against_brute_force(documents, max_length, short, seed):
    corpus = corpus_of(*documents)
    for objective in ("nsp", "sop"):
        options = {"seed": seed, "epoch": 3}
        epoch = Epoch(corpus, objective, max_length, short_seq_prob=short, **options)
        expected, labels = brute_force(corpus, objective, max_length - 3, short=short, **options)
        found = [[list(range(first, first + n)) for first, n in rows] for rows in epoch.examples]
        assert found == expected
        assert epoch.labels == labels
        too_short = [sum(-(-n // (max_length - 3)) for n in one) < 2 for one in documents]
        assert epoch.plan.skipped == sum(too_short)
        for (a, b), label in zip(found, labels, strict=True):
            assert a and b and len(a) + len(b) <= max_length - 3
            of = {corpus.document_of(piece) for piece in a}, {corpus.document_of(i) for i in b}
            assert len(of[0]) == len(of[1]) == 1
            assert (of[0] != of[1]) == (objective == "nsp" and label == 1)
        if found:
            batch = batch_of(corpus, epoch.plan)
            assert batch.sequences.lengths.max() <= max_length
            a_b = [[[A + i for i in part] for part in pair] for pair in found]
            assert restored(batch) == [[CLS, *a, SEP, *b, SEP] for a, b in a_b]
            types = [t for a, b in found for t in [0] * (len(a) + 2) + [1] * (len(b) + 1)]
            assert batch.sequences.type_ids.tolist() == types
            assert batch.labels.tolist() == labels


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=2, max_size=6), seed=st.integers(0, 2**32))
def test_pairs_hold_every_sentence(sizes, seed):
    # Sentences of one piece: nothing is cut off.
    corpus = corpus_of(*([1] * size for size in sizes))
    expected = {i for i in range(len(corpus.pieces)) if sizes[corpus.document_of(i)] > 1}
    for objective in ("nsp", "sop"):
        epoch = Epoch(corpus, objective, 10, seed=seed, short_seq_prob=0.3)
        held = set()
        for rows, label in zip(epoch.examples, epoch.labels, strict=True):
            for first, n in rows[:1] if objective == "nsp" and label else rows:
                held |= set(range(first, first + n))
        assert held == expected


def test_random_segments_stay_on_their_side():
    corpus = corpus_of(*([[2] * 6] * 300))
    sides = []
    for evaluation in (False, True):
        documents = set()
        for epoch in range(3):
            options = {"held_out": 0.2, "evaluation": evaluation, "epoch": epoch}
            found = Epoch(corpus, "nsp", 12, **options)
            rows = [row for rows in found.examples for row in rows]
            documents |= {corpus.document_of(first) for first, _ in rows}
        sides.append(documents)
    assert not sides[0] & sides[1]
    assert sorted(sides[0] | sides[1]) == list(range(300))
    assert within(len(sides[1]) / 300, 0.2, 300)
    # The documents held out are the same ones for another objective and another order.
    packed = Epoch(corpus, "doc-sentences", 12, held_out=0.2, evaluation=True, epoch=7)
    assert {corpus.document_of(rows[0][0]) for rows in packed.examples} == sides[1]


def test_chances_of_pairs():
    # Documents of 2 to 9 sentences: short ones, where BERT's own code has far more than half random
    rng = np.random.default_rng(0)
    corpus = corpus_of(*(rng.integers(1, 20, size).tolist() for size in rng.integers(2, 10, 4000)))
    for objective in ("nsp", "sop"):
        epoch = Epoch(corpus, objective, 64, short_seq_prob=0.1)
        n = len(epoch.labels)
        assert n > 5000
        assert within(sum(epoch.labels) / n, 0.5, n)
    # All documents are as likely, and so is each of their sentences.
    corpus = corpus_of([1] * 60_000, [1], [1] * 2, [1] * 7)
    epoch = Epoch(corpus, "nsp", 20)
    pairs = zip(epoch.examples, epoch.labels, strict=True)
    firsts = [rows[1][0] - 60_000 for rows, label in pairs if label and rows[0][0] < 60_000]
    n = len(firsts)
    assert n > 1000
    shares = np.bincount(firsts, minlength=10) / n
    expected = [1 / 3] + [1 / 6] * 2 + [1 / 21] * 7
    assert all(within(*one, n) for one in zip(shares, expected, strict=True))


def test_chance_and_lengths_of_short_pairs():
    # One piece a sentence and a long document: a true pair has just as many as it was to have.
    corpus = corpus_of([1] * 200_000)
    epoch = Epoch(corpus, "sop", 103, short_seq_prob=0.3)
    lengths = np.asarray([sum(n for _, n in rows) for rows in epoch.examples[:-1]])
    n = len(lengths)
    # Any length from 2 to 100 is as likely, the whole one among them
    assert within((lengths < 100).mean(), 0.3 * 98 / 99, n)
    short = lengths[lengths < 100]
    assert short.min() == 2
    assert abs(short.mean() - 50.5) < 5 * 28.3 / len(short) ** 0.5
    # The first segment ends anywhere.
    shares = np.asarray([rows[0][1] / sum(n for _, n in rows) for rows in epoch.examples[:-1]])
    assert abs(shares.mean() - 0.5) < 5 * 0.29 / n**0.5
    whole = Epoch(corpus, "sop", 103, short_seq_prob=0.0)
    assert {sum(n for _, n in rows) for rows in whole.examples} == {100}


# --- plans


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=12))
def test_plans_do_not_depend_on_blocks(documents):
    corpus = corpus_of([2, 2], [3, 3], *documents)
    for objective in (*examples.PAIRS, *examples.PACKINGS):
        expected = Epoch(corpus, objective, 12)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(examples, "BLOCK_SENTENCES", 5)
            found = Epoch(corpus, objective, 12)
        assert found.examples == expected.examples
        assert found.labels == expected.labels
        assert found.plan.skipped == expected.plan.skipped


def test_a_document_larger_than_a_block(monkeypatch):
    monkeypatch.setattr(examples, "BLOCK_SENTENCES", 10)
    corpus = corpus_of([1] * 25, [1] * 3)
    packed = Epoch(corpus, "doc-sentences", 8)
    # Parts of 8, 8 and 9 sentences, with room for 6
    lengths = [[n for _, n in rows] for rows in packed.examples]
    assert lengths == [[6], [2], [6], [2], [6], [3], [3]]
    epoch = Epoch(corpus, "sop", 9)
    held = [i for rows in epoch.examples for first, n in rows for i in range(first, first + n)]
    assert set(held) == set(range(28))
    # A random segment is of another document, not of another part of the same one.
    corpus = corpus_of([1] * 250, [1] * 3)
    epoch = Epoch(corpus, "nsp", 9)
    assert set(epoch.labels) == {0, 1}
    for rows, label in zip(epoch.examples, epoch.labels, strict=True):
        assert len({corpus.document_of(first) for first, _ in rows}) == 1 + label


@pytest.mark.parametrize("objective", [*examples.PAIRS, *examples.PACKINGS])
def test_plans_are_reproducible_and_differ(objective):
    corpus = corpus_of(*([3, 4, 5, 6] for _ in range(50)))
    one = Epoch(corpus, objective, 16, seed=1, epoch=1)
    assert Epoch(corpus, objective, 16, seed=1, epoch=1).examples == one.examples
    for options in ({"seed": 2, "epoch": 1}, {"seed": 1, "epoch": 2}):
        other = Epoch(corpus, objective, 16, **options)
        assert (other.examples == one.examples) == (objective in examples.PACKINGS)


def test_memory_does_not_grow_with_the_corpus(monkeypatch, tmp_path):
    monkeypatch.setattr(examples, "BLOCK_SENTENCES", 500)
    peaks = {}
    for size in (300, 3000):
        corpus = corpus_of(*([[5, 6, 7, 8, 9, 10, 11]] * size))
        for objective in ("nsp", "full-sentences"):
            Epoch(corpus, objective, 32)  # what is allocated once
            tracemalloc.start()
            plan_epoch(
                corpus,
                tmp_path,
                objective=objective,
                max_length=32,
                short_seq_prob=0.1,
                vocabulary=vocabulary(),
                seed=0,
                epoch=0,
                held_out=0.1,
            )
            peaks[objective, size] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    for objective in ("nsp", "full-sentences"):
        # No more than a number or two for each document, whatever its length.
        assert peaks[objective, 3000] - peaks[objective, 300] < 20 * (3000 - 300)


def test_a_plan_is_opened_again_and_an_unfinished_one_is_not(tmp_path):
    corpus = corpus_of([3, 3, 3], [2], [3, 3])
    options = {"objective": "sop", "max_length": 12, "short_seq_prob": 0.1, "seed": 0, "epoch": 0}
    options |= {"vocabulary": vocabulary(), "held_out": 0.0}
    plan = plan_epoch(corpus, tmp_path / "a" / "plan", **options)
    again = Plan(tmp_path / "a" / "plan")
    assert again.examples.tolist() == plan.examples.tolist()
    assert again.segments.tolist() == plan.segments.tolist()
    assert (len(again), again.skipped) == (len(plan), 1)
    assert not again.segments.flags.writeable

    def broken(*args, **settings):
        raise OSError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "_split_pairs", broken)
        with pytest.raises(OSError, match="full"):
            plan_epoch(corpus, tmp_path / "a" / "plan", **options)
    with pytest.raises(FileNotFoundError):
        Plan(tmp_path / "a" / "plan")
    assert len(plan_epoch(corpus, tmp_path / "a" / "plan", **options)) == len(plan)


def test_what_cannot_be_planned():
    corpus = corpus_of([3, 3], [], [0, 0])
    with pytest.raises(ValueError, match="a second one to train on, but there is only one"):
        Epoch(corpus, "nsp", 16)
    assert len(Epoch(corpus, "nsp", 16, held_out=0.0, evaluation=True).plan) == 0
    assert len(Epoch(corpus, "sop", 16).plan) == 1
    with pytest.raises(ValueError, match="of 4 have no room beside 3 special"):
        Epoch(corpus, "sop", 4)
    with pytest.raises(ValueError, match="of 2 have no room beside 2 special"):
        Epoch(corpus, "doc-sentences", 2)
    with pytest.raises(ValueError, match="no objective 'mlm', but nsp, sop, full-sentences, doc"):
        Epoch(corpus, "mlm", 16)


# --- masks


def many(n: int = 400, length: int = 40, **options) -> tuple[Corpus, Plan]:
    corpus = corpus_of(*([[length]] * n), **options)
    return corpus, Epoch(corpus, "doc-sentences", length + 2).plan


@pytest.mark.parametrize(
    "n_pieces, rate, expected",
    [
        (40, 0.15, 6),
        (10, 0.15, 2),
        (11, 0.15, 2),
        (3, 0.15, 1),
        (1, 0.15, 1),
        (40, 0.5, 20),
        (7, 1.0, 7),
    ],
)
def test_number_of_pieces_to_predict(n_pieces, rate, expected):
    corpus, plan = many(5, n_pieces)
    batch = batch_of(corpus, plan, masking=Masking(rate=rate))
    assert len(batch.masked) == len(set(batch.masked.tolist())) == 5 * expected
    n_each = np.bincount(batch.masked // (n_pieces + 2), minlength=5)
    assert n_each.tolist() == [expected] * 5


def test_chances_of_masks():
    corpus, plan = many(2000)
    corpus.pieces[:] = A  # so that a random piece is hardly ever the same
    for mask, random in ((0.8, 0.1), (0.5, 0.5), (0.6, 0.1), (0.0, 0.0)):
        batch = batch_of(corpus, plan, masking=Masking(mask=mask, random=random))
        n = len(batch.masked)
        assert n == 12_000
        ids = batch.sequences.ids[batch.masked]
        assert within((ids == MASK).mean(), mask, n)
        assert within((ids == A).mean(), 1 - mask - random, n) or abs(mask + random - 1) < 1e-9
        others = ids[(ids != MASK) & (ids != A)]
        assert within(len(others) / n, random, n)
        assert (batch.targets == A).all()
        # The independence of neighbours: fates are drawn piece by piece
        masks = ids == MASK
        if mask > 0:
            assert within((masks[1:] & masks[:-1]).mean(), mask**2, n)


def test_random_pieces_are_uniform_over_the_vocabulary():
    corpus, plan = many(1000)
    small = Vocabulary(vocabulary().wordpieces, MASK, 25, ints(0, 1, 2, 3, 4, 24))
    batch = make_batch(
        corpus,
        plan,
        np.arange(len(plan)),
        vocabulary=small,
        masking=Masking(rate=0.5, mask=0.0, random=1.0),
        seed=0,
        epoch=0,
    )
    n = len(batch.masked)
    shares = np.bincount(batch.sequences.ids[batch.masked], minlength=25) / n
    assert shares[[0, 1, 2, 3, 4, 24]].tolist() == [0] * 6
    assert all(within(share, 1 / 19, n) for share in shares[5:24])


def test_every_place_is_as_likely():
    corpus, plan = many(4000, 10)
    batch = batch_of(corpus, plan, masking=Masking(rate=0.2))
    shares = np.bincount(batch.masked % 12, minlength=12) / 4000
    assert shares[[0, 11]].tolist() == [0, 0]
    assert all(within(share, 0.2, 4000) for share in shares[1:11])
    # and pairs of places are independent of each other, but for the number
    places = (batch.masked % 12).reshape(-1, 2)
    counts = np.bincount(places[:, 0] * 12 + places[:, 1], minlength=144)
    assert all(within(count / 4000, 1 / 45, 4000) for count in counts[counts > 0])
    assert np.count_nonzero(counts) == 45


def spans(masked: np.ndarray) -> list[int]:
    """Lengths of the runs of consecutive slots."""
    return [len(run) for run in np.split(masked, np.flatnonzero(np.diff(masked) > 1) + 1)]


def test_lengths_of_ngrams():
    # So few are chosen of so many that they hardly meet; the budget of three lets all through.
    corpus, plan = many(3000, 300)
    batch = batch_of(corpus, plan, masking=Masking(rate=0.01, max_ngram=3))
    assert len(batch.masked) == 9000
    first = [spans(one) for one in np.split(batch.masked, 3000)]
    # p(3) = 2/11 fill the budget at once; 3/11 begin with two, 6/11 with one: then 1 + (1 or 2)
    n_three = sum(one == [3] for one in first) / 3000
    p = np.asarray([6, 3, 2]) / 11
    alone = p[0] * p[0]  # 1 1 1, whatever the third was
    assert abs(n_three - p[2]) < 0.04
    assert abs(sum(one == [1, 1, 1] for one in first) / 3000 - alone) < 0.04
    corpus, plan = many(300, 100)
    lengths = spans(batch_of(corpus, plan, masking=Masking(rate=0.1, max_ngram=1)).masked)
    assert np.mean(lengths) < 1.15  # single words, which meet by chance


WORDS = st.lists(st.integers(1, 5), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(
    documents=st.lists(WORDS, min_size=1, max_size=6),
    rate=st.floats(0.01, 1.0),
    max_ngram=st.integers(1, 4),
    objective=st.sampled_from(["doc-sentences", "full-sentences", "sop"]),
    seed=st.integers(0, 2**32),
)
def test_masks(documents, rate, max_ngram, objective, seed):
    lengths = [length for words in documents for length in words]
    words = np.cumsum([0, *lengths])[:-1].tolist()
    # Sentences of two words
    shape = [[sum(one[i : i + 2]) for i in range(0, len(one), 2)] for one in documents]
    corpus = corpus_of(*shape, words=words)
    epoch = Epoch(corpus, objective, 20, seed=seed)
    if not len(epoch.plan):
        return
    for whole_words in (True, False):
        masking = Masking(rate=rate, max_ngram=max_ngram, whole_words=whole_words)
        batch = batch_of(corpus, epoch.plan, masking=masking, seed=seed)
        # What was there can be put back, and nothing else was changed.
        originals = [i for ids in restored(batch) for i in ids]
        changed = np.flatnonzero(batch.sequences.ids != originals)
        assert set(changed.tolist()) <= set(batch.masked.tolist())
        assert sorted(i - A for i in originals if i >= A) == sorted(
            i for rows in epoch.examples for first, n in rows for i in range(first, first + n)
        )
        assert (batch.targets >= A).all()  # never a special token
        assert (np.diff(batch.masked) > 0).all()
        starts = np.cumsum(batch.sequences.lengths) - batch.sequences.lengths
        example = np.searchsorted(starts, batch.masked, side="right") - 1
        for i, rows in enumerate(epoch.examples):
            masked = set((batch.targets[example == i] - A).tolist())
            n_pieces = sum(n for _, n in rows)
            budget = max(1, round(rate * n_pieces))
            assert len(masked) <= budget
            if not whole_words:
                assert len(masked) == budget
                continue
            # A word that is cut by the segment counts as far as it is there.
            parts = []
            for first, n in rows:
                cuts = sorted({first, first + n, *(w for w in words if first < w < first + n)})
                parts += [set(range(*cut)) for cut in zip(cuts, cuts[1:], strict=False)]
            assert all(part <= masked or not part & masked for part in parts)
            # None was left out that would have fitted.
            left = [len(part) for part in parts if not part & masked]
            assert not left or min(left) > budget - len(masked)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), objective=st.sampled_from(["nsp", "sop", "full-sentences"]))
def test_an_example_is_the_same_in_any_batch(data, objective):
    corpus = corpus_of([3, 5, 2, 7], [4] * 5, [9, 2, 2], words=list(range(0, 51, 2)))
    plan = Epoch(corpus, objective, 16).plan
    numbers = data.draw(st.lists(st.integers(0, len(plan) - 1), min_size=1, max_size=8))
    options = {"masking": Masking(rate=0.4, max_ngram=2), "seed": 5, "epoch": 6}
    batch = batch_of(corpus, plan, *numbers, **options)
    alone = [batch_of(corpus, plan, number, **options) for number in numbers]
    lengths = [len(one.sequences.ids) for one in alone]
    starts = np.cumsum(lengths) - lengths
    sequences = [one.sequences for one in alone]
    for name in ("ids", "type_ids", "lengths", "windows"):
        joined = np.concatenate([getattr(one, name) for one in sequences])
        assert getattr(batch.sequences, name).tolist() == joined.tolist()
    masked = [one.masked + start for one, start in zip(alone, starts, strict=True)]
    assert batch.masked.tolist() == np.concatenate(masked).tolist()
    assert batch.targets.tolist() == np.concatenate([one.targets for one in alone]).tolist()
    assert batch.labels.tolist() == np.concatenate([one.labels for one in alone]).tolist()


def test_masks_are_fresh_in_each_epoch():
    corpus, plan = many(200)
    options = [{"seed": 0, "epoch": 0}, {"seed": 0, "epoch": 1}, {"seed": 1, "epoch": 0}]
    batches = [batch_of(corpus, plan, **one) for one in options]
    again = batch_of(corpus, plan, **options[0])
    assert again.sequences.ids.tolist() == batches[0].sequences.ids.tolist()
    assert again.masked.tolist() == batches[0].masked.tolist()
    n = len(batches[0].masked)
    for i, one in enumerate(batches):
        for other in batches[:i]:
            shared = len(np.intersect1d(one.masked, other.masked)) / n
            assert within(shared, 0.15, n)  # as many as chance has


def test_no_examples():
    corpus = corpus_of([])
    plan = Epoch(corpus, "sop", 10).plan
    batch = batch_of(corpus, plan)
    assert [len(value) for value in vars(batch.sequences).values()] == [0] * 4
    assert [len(batch.masked), len(batch.targets), len(batch.labels)] == [0] * 3


def test_a_batch_is_quick():
    rng = np.random.default_rng(0)
    corpus = corpus_of(*(rng.integers(5, 40, 20).tolist() for _ in range(200)))
    corpus.words[:] = rng.random(len(corpus.words)) < 0.75
    start = time.process_time()
    plan = Epoch(corpus, "nsp", 128).plan
    assert time.process_time() - start < 2  # 4,000 sentences: it takes a hundredth of that
    times = []
    for _ in range(5):
        start = time.process_time()
        batch = batch_of(corpus, plan, *range(256))
        times.append(time.process_time() - start)
    assert len(batch.sequences.ids) > 256 * 64
    assert min(times) < 0.1  # it takes 10 ms on a machine at rest
