"""Packed sequences, plans on disk, and batches: exact values and properties."""

import tracemalloc

import numpy as np
import pytest
from checkpoints import SPECIAL
from epochs import DOCUMENTS, A, Epoch, batch_of, corpus_of, restored, vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_bert_heads.pretraining import documents, examples
from spacy_bert_heads.pretraining.examples import PACKINGS, PAIRS, Plan, plan_epoch
from spacy_bert_heads.pretraining.masking import Masking

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
        # Three documents in a sequence
        ([[2], [1, 1], [2]], [[(0, 2)], [(2, 2)], [(4, 2)]], [[(0, 2), (2, 2), (4, 2)]]),
        ([], [], []),
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
    assert batch.packed.token_type_ids.tolist() == [0] * 12
    assert batch.packed.seqlens.tolist() == [6, 6]
    assert batch.packed.num_windows.tolist() == [1, 1]
    assert batch.labels.tolist() == [-1, -1]


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
                assert batch.packed.seqlens.max() <= max_length
                found = [i - A for ids in restored(batch) for i in ids if i >= A]
                assert found == sides[-1]
        assert sorted(sides[0] + sides[1]) == list(range(len(corpus.pieces)))
        of_sides = [{corpus.document_of(piece) for piece in side} for side in sides]
        assert not of_sides[0] & of_sides[1]
        assert bool(sides[1]) == (held_out > 0 and len(documents) > 1)


# --- plans


def test_a_long_document_is_planned_in_parts(monkeypatch):
    monkeypatch.setattr(documents, "MAX_SENTENCES", 10)
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


@pytest.mark.parametrize("objective", [*PAIRS, *PACKINGS])
def test_plans_are_reproducible_and_differ(objective):
    corpus = corpus_of(*([3, 4, 5, 6] for _ in range(50)))
    one = Epoch(corpus, objective, 16, seed=1, epoch=1)
    assert Epoch(corpus, objective, 16, seed=1, epoch=1).examples == one.examples
    for options in ({"seed": 2, "epoch": 1}, {"seed": 1, "epoch": 2}):
        other = Epoch(corpus, objective, 16, **options)
        assert (other.examples == one.examples) == (objective in PACKINGS)


def test_memory_does_not_grow_with_the_corpus(monkeypatch, tmp_path):
    monkeypatch.setattr(documents, "MAX_SENTENCES", 500)
    peaks = {}
    for size in (300, 3000):
        corpus = corpus_of(*([[5, 6, 7, 8, 9, 10, 11]] * size))
        for objective in ("nsp", "full-sentences"):
            Epoch(corpus, objective, 32)  # what is allocated once
            tracemalloc.start()
            plan_epoch(
                corpus,
                np.ones(size, dtype=np.bool_),
                tmp_path,
                objective=objective,
                max_length=32,
                short_seq_prob=0.1,
                vocabulary=vocabulary(),
                seed=0,
                epoch=0,
            )
            peaks[objective, size] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    for objective in ("nsp", "full-sentences"):
        # No more than a few numbers for each document, whatever its length.
        assert peaks[objective, 3000] - peaks[objective, 300] < 32 * (3000 - 300)


def test_a_plan_is_opened_again_and_an_unfinished_one_is_not(tmp_path):
    corpus = corpus_of([3, 3, 3], [2], [3, 3])
    options = {"objective": "sop", "max_length": 12, "short_seq_prob": 0.1, "seed": 0, "epoch": 0}
    options |= {"vocabulary": vocabulary()}
    every = np.ones(3, dtype=np.bool_)
    plan = plan_epoch(corpus, every, tmp_path / "a" / "plan", **options)
    again = Plan(tmp_path / "a" / "plan")
    assert again.examples.tolist() == plan.examples.tolist()
    assert again.segments.tolist() == plan.segments.tolist()
    assert (len(again), again.skipped) == (len(plan), 1)
    assert not again.segments.flags.writeable

    def broken(*args, **settings):
        raise OSError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "pair_segments", broken)
        with pytest.raises(OSError, match="full"):
            plan_epoch(corpus, every, tmp_path / "a" / "plan", **options)
    with pytest.raises(FileNotFoundError):
        Plan(tmp_path / "a" / "plan")
    assert len(plan_epoch(corpus, every, tmp_path / "a" / "plan", **options)) == len(plan)


def test_what_cannot_be_planned():
    corpus = corpus_of([3, 3])
    with pytest.raises(ValueError, match="needs two documents, but there is only one"):
        Epoch(corpus, "nsp", 16)
    assert len(Epoch(corpus, "nsp", 16, held_out=0.0, evaluation=True).plan) == 0
    assert len(Epoch(corpus, "sop", 16).plan) == 2
    with pytest.raises(ValueError, match="is 4, which leaves no room beside 3 special"):
        Epoch(corpus, "sop", 4)
    with pytest.raises(ValueError, match="is 2, which leaves no room beside 2 special"):
        Epoch(corpus, "doc-sentences", 2)
    with pytest.raises(
        ValueError, match="no objective 'mlm'. Choose one of: nsp, sop, full-sentences"
    ):
        Epoch(corpus, "mlm", 16)


# --- batches


@settings(max_examples=60, deadline=None)
@given(data=st.data(), objective=st.sampled_from(["nsp", "sop", "full-sentences"]))
def test_an_example_is_the_same_in_any_batch(data, objective):
    corpus = corpus_of([3, 5, 2, 7], [4] * 5, [9, 2, 2], words=list(range(0, 51, 2)))
    plan = Epoch(corpus, objective, 16).plan
    numbers = data.draw(st.lists(st.integers(0, len(plan) - 1), min_size=1, max_size=8))
    options = {"masking": Masking(rate=0.4, max_ngram=2), "seed": 5, "epoch": 6}
    batch = batch_of(corpus, plan, *numbers, **options)
    alone = [batch_of(corpus, plan, number, **options) for number in numbers]
    lengths = [len(one.packed.input_ids) for one in alone]
    starts = np.cumsum(lengths) - lengths
    packed = [one.packed for one in alone]
    for name in ("input_ids", "token_type_ids", "seqlens", "num_windows"):
        joined = np.concatenate([getattr(one, name) for one in packed])
        assert getattr(batch.packed, name).tolist() == joined.tolist()
    masked = [one.masked + start for one, start in zip(alone, starts, strict=True)]
    assert batch.masked.tolist() == np.concatenate(masked).tolist()
    assert batch.targets.tolist() == np.concatenate([one.targets for one in alone]).tolist()
    assert batch.labels.tolist() == np.concatenate([one.labels for one in alone]).tolist()


def test_no_examples():
    corpus = corpus_of([])
    plan = Epoch(corpus, "sop", 10).plan
    batch = batch_of(corpus, plan)
    assert batch.packed.cu_seqlens.tolist() == [0]
    assert not len(batch.packed.input_ids) and not len(batch.packed.num_windows)
    assert [len(batch.masked), len(batch.targets), len(batch.labels)] == [0] * 3
