"""Pairs of segments: exact values, BERT's and ALBERT's code by brute force, and the statistics of
every choice."""

import numpy as np
from checkpoints import SPECIAL
from epochs import CLS, DOCUMENTS, SEP, A, Corpus, Epoch, batch_of, corpus_of, restored, within
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_bert_heads.pretraining.draws import Purpose, generator


def test_sop_by_hand():
    # Room for 9 pieces of 12. The first document is one pair; the second makes one of 4 + 5
    # sentences' pieces, and its last sentence, which is left alone, one with that before it.
    corpus = corpus_of([2, 3], [4, 5, 2], [6])
    epoch = Epoch(corpus, "sop", 12)
    assert epoch.plan.skipped == 1
    pairs = [[(0, 2), (2, 3)], [(5, 4), (9, 5)], [(9, 5), (14, 2)]]
    assert epoch.examples == [rows for pair in pairs for rows in (pair, pair[::-1])]
    assert epoch.labels == [0, 1] * 3
    batch = batch_of(corpus, epoch.plan)
    assert batch.labels.tolist() == epoch.labels
    first, second = [A, A + 1], [A + 2, A + 3, A + 4]
    assert restored(batch)[:2] == [
        [CLS, *first, SEP, *second, SEP],
        [CLS, *second, SEP, *first, SEP],
    ]
    types = batch.packed.token_type_ids[:16].tolist()
    assert types == [0] * 4 + [1] * 4 + [0] * 5 + [1] * 3


def test_nsp_by_hand():
    # Room for 6 of 9. A random segment of the second document never begins with its first
    # sentence, has three pieces, or fewer where that document ends.
    corpus = corpus_of([3, 3], [1, 1, 1, 1])
    seen = set()
    for seed in range(60):
        epoch = Epoch(corpus, "nsp", 9, seed=seed)
        assert epoch.labels == [0, 1] * 2
        assert epoch.examples[0] == [(0, 3), (3, 3)]
        assert epoch.examples[1][0] == (0, 3)
        seen.add(epoch.examples[1][1])
        (first, n_first), (second, n_second) = epoch.examples[2]
        assert (first, second, n_first + n_second) == (6, 6 + n_first, 4)
        assert epoch.examples[3][1][0] == 3
    assert seen == {(7, 3), (8, 2), (9, 1)}


def test_pairs_of_a_tokenizer_without_types():
    # RoBERTa's: <s> A </s></s> B </s>
    corpus = corpus_of([2, 3])
    epoch = Epoch(corpus, "sop", 9, kind="bytes", seed=1)
    bos, eos = SPECIAL["bytes"].index("<s>"), SPECIAL["bytes"].index("</s>")
    (a, n_a), (b, n_b) = epoch.examples[0]
    first, second = range(A + a, A + a + n_a), range(A + b, A + b + n_b)
    batch = batch_of(corpus, epoch.plan, kind="bytes")
    assert restored(batch)[0] == [bos, *first, eos, eos, *second, eos]
    assert batch.packed.token_type_ids.tolist() == [0] * 18


def brute_force(corpus: Corpus, objective: str, room: int, *, short: float, seed: int, epoch: int):
    """BERT's and ALBERT's code, sentence by sentence, with our generators and both labels for each
    pair. What is cut off at either end is drawn by its number, not piece by piece, and so it is
    here."""
    sentences = [
        list(range(*corpus.sentences[i : i + 2])) for i in range(len(corpus.sentences) - 1)
    ]
    documents = [
        sentences[slice(*corpus.documents[i : i + 2])] for i in range(len(corpus.documents) - 1)
    ]
    pairs, labels = [], []
    for number, document in enumerate(documents):
        units = [one[i : i + room] for one in document for i in range(0, len(one), room)]
        random = generator(seed, Purpose.PAIRS, epoch, document[0][0])
        i = 0
        while i < len(units) > 1:
            target = room
            if random.random() < short:
                target = 2 + int(random.random() * (room - 1))
            chunk: list[list[int]] = []
            start = i - 1 if i == len(units) - 1 else i
            for unit in units[start:]:
                chunk.append(unit)
                if sum(map(len, chunk)) >= target and len(chunk) > 1:
                    break
            split = 1 + int(random.random() * (len(chunk) - 1))
            a, b = sum(chunk[:split], []), sum(chunk[split:], [])
            i = start + len(chunk)
            cut = truncated(a, b, room, random)
            pairs += [cut]
            labels += [0, 1]
            if objective == "sop":
                pairs += [cut[::-1]]
                continue
            seconds = [
                (other, first)
                for other, one in enumerate(documents)
                for first in range(min(len(one) - 1, 1), len(one))
                if other != number
            ]
            other, first = seconds[int(random.random() * len(seconds))]
            behind = documents[other][first:]
            chunks = [sum(behind[: n + 1], []) for n in range(len(behind))]
            if len(a) + len(b) >= target:
                b = next((one for one in chunks if len(one) >= target - len(a)), chunks[-1])
            else:
                b = chunks[int(np.argmin([abs(len(one) - len(b)) for one in chunks]))]
            pairs += [truncated(a, b[:room], room, random)]
    return pairs, labels


def truncated(a: list[int], b: list[int], room: int, random) -> list[list[int]]:
    off = [0, 0]
    while len(a) + len(b) - sum(off) > room:
        off[len(a) - off[0] <= len(b) - off[1]] += 1
    cut = []
    for part, n in zip((a, b), off, strict=True):
        front = random.binomial(n, 0.5) if n else 0
        cut.append(part[front : len(part) - n + front])
    return cut


@settings(max_examples=80, deadline=None)
@given(
    documents=DOCUMENTS.filter(lambda documents: len(documents) != 1),
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
            assert batch.packed.seqlens.max() <= max_length
            a_b = [[[A + i for i in part] for part in pair] for pair in found]
            assert restored(batch) == [[CLS, *a, SEP, *b, SEP] for a, b in a_b]
            types = [t for a, b in found for t in [0] * (len(a) + 2) + [1] * (len(b) + 1)]
            assert batch.packed.token_type_ids.tolist() == types
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
        for rows in epoch.examples[::2]:
            for first, n in rows:
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


def test_random_segments_come_from_the_places_of_true_ones():
    # Each sentence is as likely, but for the first ones of documents with others.
    corpus = corpus_of([1] * 60_000, [1], [1] * 2, [1] * 7)
    epoch = Epoch(corpus, "nsp", 20)
    pairs = zip(epoch.examples, epoch.labels, strict=True)
    firsts = [rows[1][0] - 60_000 for rows, label in pairs if label and rows[0][0] < 60_000]
    n = len(firsts)
    assert n > 1000
    shares = np.bincount(firsts, minlength=10) / n
    expected = [1 / 8, 0, 1 / 8, 0] + [1 / 8] * 6
    assert all(within(*one, n) for one in zip(shares, expected, strict=True))


def test_no_second_segment_tells_the_label():
    # What a segment's document, place and length are is no better known by its label.
    rng = np.random.default_rng(0)
    corpus = corpus_of(*(rng.integers(1, 20, size).tolist() for size in rng.integers(60, 300, 300)))
    epoch = Epoch(corpus, "nsp", 64)
    sizes = np.diff(corpus.documents)
    by_label: tuple[list, list] = ([], [])
    for rows, label in zip(epoch.examples, epoch.labels, strict=True):
        first, n = rows[1]
        own = corpus.document_of(first)
        place = (first - corpus.span(own)[0]) / (corpus.span(own)[1] - corpus.span(own)[0])
        by_label[label].append((sizes[own], place, n))
    true, random = (np.array(one, dtype=float) for one in by_label)
    n = len(true)
    assert n == len(random) > 5000
    deviations = abs(true.mean(0) - random.mean(0)) / true.std(0)
    assert (deviations < 0.08).all()


def test_chance_and_lengths_of_short_pairs():
    # One piece a sentence and a long document: a true pair has just as many as it was to have.
    corpus = corpus_of([1] * 200_000)
    epoch = Epoch(corpus, "sop", 103, short_seq_prob=0.3)
    lengths = np.asarray([sum(n for _, n in rows) for rows in epoch.examples[:-2:2]])
    n = len(lengths)
    # Any length from 2 to 100 is as likely, the whole one among them
    assert within((lengths < 100).mean(), 0.3 * 98 / 99, n)
    short = lengths[lengths < 100]
    assert short.min() == 2
    assert abs(short.mean() - 50.5) < 5 * 28.3 / len(short) ** 0.5
    # The first segment ends anywhere.
    shares = np.asarray([rows[0][1] / sum(n for _, n in rows) for rows in epoch.examples[:-2:2]])
    assert abs(shares.mean() - 0.5) < 5 * 0.29 / n**0.5
    whole = Epoch(corpus, "sop", 103, short_seq_prob=0.0)
    assert {sum(n for _, n in rows) for rows in whole.examples} == {100}


def test_pieces_are_cut_off_at_either_end():
    # Two sentences of 20 in room for 20, so each loses 10, every one from a random end.
    corpus = corpus_of(*([[20, 20]] * 2000))
    epoch = Epoch(corpus, "sop", 23)
    fronts = np.array([first % 20 for rows in epoch.examples[::2] for first, _ in rows])
    assert {n for rows in epoch.examples for _, n in rows} == {10}
    n = len(fronts)
    assert abs(fronts.mean() - 5) < 5 * (10 / 4 / n) ** 0.5
    assert abs(fronts.var() - 10 / 4) < 5 * 10 / 4 * (2 / n) ** 0.5
    a, b = fronts[::2], fronts[1::2]
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(a) ** 0.5
