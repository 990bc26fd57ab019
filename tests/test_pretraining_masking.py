"""Masks: the number, the places and the fates of the wordpieces to predict."""

import numpy as np
import pytest
from arrays import ints
from checkpoints import SPECIAL
from epochs import MASK, A, Corpus, Epoch, batch_of, corpus_of, restored, vocabulary, within
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_bert_heads.pretraining.examples import Plan, make_batch
from spacy_bert_heads.pretraining.masking import Masking, Vocabulary


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
        ids = batch.packed.input_ids[batch.masked]
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
    corpus.pieces[:] = 5
    small = Vocabulary(vocabulary().tokenizer, MASK, 25, ints(0, 1, 2, 3, 4, 24))
    batch = make_batch(
        corpus,
        plan,
        np.arange(len(plan)),
        vocabulary=small,
        masking=Masking(rate=0.5, mask=0.0, random=1.0),
    )
    n = len(batch.masked)
    shares = np.bincount(batch.packed.input_ids[batch.masked], minlength=25) / n
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
    for units in ("words", "wordpieces"):
        masking = Masking(rate=rate, max_ngram=max_ngram, units=units)
        batch = batch_of(corpus, epoch.plan, masking=masking, seed=seed)
        # What was there can be put back, and nothing else was changed.
        originals = [i for ids in restored(batch) for i in ids]
        changed = np.flatnonzero(batch.packed.input_ids != originals)
        assert set(changed.tolist()) <= set(batch.masked.tolist())
        assert sorted(i - A for i in originals if i >= A) == sorted(
            i for rows in epoch.examples for first, n in rows for i in range(first, first + n)
        )
        assert (batch.targets >= A).all()  # never a special token
        assert (np.diff(batch.masked) > 0).all()
        starts = np.cumsum(batch.packed.seqlens) - batch.packed.seqlens
        example = np.searchsorted(starts, batch.masked, side="right") - 1
        for i, rows in enumerate(epoch.examples):
            masked = set((batch.targets[example == i] - A).tolist())
            n_pieces = sum(n for _, n in rows)
            budget = max(1, round(rate * n_pieces))
            if units == "wordpieces":
                assert len(masked) == budget
                continue
            # A word that is cut by the segment counts as far as it is there.
            parts = []
            for first, n in rows:
                cuts = sorted({first, first + n, *(w for w in words if first < w < first + n)})
                parts += [set(range(*cut)) for cut in zip(cuts, cuts[1:], strict=False)]
            assert all(part <= masked or not part & masked for part in parts)
            longest = max(map(len, parts))
            assert budget - longest < len(masked) < budget + longest


def test_masks_are_fresh_in_each_epoch():
    corpus, plan = many(200)
    options = [{"seed": 0, "epoch": 0}, {"seed": 0, "epoch": 1}, {"seed": 1, "epoch": 0}]
    batches = [batch_of(corpus, plan, **one) for one in options]
    again = batch_of(corpus, plan, **options[0])
    assert again.packed.input_ids.tolist() == batches[0].packed.input_ids.tolist()
    assert again.masked.tolist() == batches[0].masked.tolist()
    n = len(batches[0].masked)
    for i, one in enumerate(batches):
        for other in batches[:i]:
            shared = len(np.intersect1d(one.masked, other.masked)) / n
            assert within(shared, 0.15, n)  # as many as chance has


def test_spans_are_predicted_as_a_whole():
    # Ten words of two pieces; a span of three words in the middle of each sentence.
    words = [start + i for start in range(0, 4000, 20) for i in range(0, 20, 2)]
    spans = [i for i in words if i % 20 not in (8, 10)]
    corpus = corpus_of(*([[20]] * 200), words=words, spans=spans)
    plan = Epoch(corpus, "doc-sentences", 22).plan
    for units in ("spans", "words"):
        batch = batch_of(corpus, plan, masking=Masking(rate=0.3, units=units))
        assert 200 * 5 < len(batch.masked) < 200 * 7
        masked = set((batch.targets - A).tolist())
        whole = [sum(i in masked for i in range(s + 6, s + 12)) for s in range(0, 4000, 20)]
        if units == "words":
            assert {0, 2, 4} <= set(whole)
        else:
            assert set(whole) == {0, 6}
            assert within(whole.count(6) / 200, 0.3, 200)


def test_long_words_are_predicted_as_often_as_short_ones():
    """Also in short examples, where a long one is more than the rate allows."""
    words = [start + i for start in range(0, 60_000, 15) for i in (*range(8), 8, 10)]
    corpus = corpus_of(*([[15]] * 4000), words=words)
    batch = batch_of(corpus, Epoch(corpus, "doc-sentences", 17).plan, masking=Masking(rate=0.2))
    place = (batch.targets - A) % 15
    shares = np.bincount(place, minlength=15) / 4000
    assert shares[8] == shares[9] and len({*shares[10:]}) == 1  # words of two and five wordpieces
    assert shares[[0, 8, 10]] == pytest.approx([0.2, 0.2, 0.2], abs=0.02)


def test_unknown_wordpieces_are_never_predicted():
    corpus, plan = many(200, words=[i for i in range(8000) if i % 4 != 3])
    corpus.pieces[::3] = SPECIAL["wordpiece"].index("[UNK]")
    for units in ("words", "wordpieces"):
        masking = Masking(rate=0.5, units=units, max_ngram=3)
        batch = batch_of(corpus, plan, masking=masking)
        assert (batch.targets >= A).all()
        n_known = sum(len(ids) - 2 - ids.count(1) for ids in restored(batch))
        assert abs(len(batch.targets) - n_known / 2) < 200  # one for each example
        unknown = batch.packed.input_ids == 1
        assert unknown.sum() == (corpus.pieces == 1).sum()
