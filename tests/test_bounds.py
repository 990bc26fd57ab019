"""Memory that stays within bounds, measured by what numpy allocates."""

import tracemalloc

import numpy as np
import torch

from spacy_bert_heads.heads.answers import best_spans
from spacy_bert_heads.heads.decoding import Layout, decode
from spacy_bert_heads.heads.outputs import TokenLogits
from spacy_bert_heads.text.batch import OffsetMapping, PackedBatch, cumulate


def peak_of(run) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_decoding_is_linear_in_labels():
    """128 Docs of 15 words: no table of tag against tag, of which one alone would have 8 MB for
    each Doc with 500 labels."""
    peaks = []
    for n_labels in (125, 500):
        tags = ["O", *(f"{mark}-{i}" for i in range(n_labels) for mark in "BI")]
        lengths = np.full(128, 15)
        chance = torch.Generator().manual_seed(0)
        logits = torch.randn(int(lengths.sum()), len(tags), generator=chance)
        output = TokenLogits(logits, np.ones(len(logits), dtype=bool), lengths)
        Layout.of(tuple(tags))  # is kept
        peaks.append(peak_of(lambda output=output, tags=tags: decode(output, tags)))
    assert peaks[1] < 5 * peaks[0]
    assert peaks[1] < 150e6


def test_long_answers_take_no_more_memory():
    """15,000 positions in windows of 3,000, with answers of up to 2,000: 30 million spans."""
    n_windows, length = 5, 3000
    n = n_windows * length
    inside = np.tile(np.arange(length), n_windows)
    window = np.repeat(np.arange(n_windows), length)
    starts = np.where(inside < 10, -1, 4 * (inside + window * length))
    batch = PackedBatch(
        input_ids=np.zeros(n, dtype=np.int64),
        token_type_ids=np.zeros(n, dtype=np.int64),
        cu_seqlens=cumulate(np.full(n_windows, length)),
        num_windows=np.asarray([n_windows]),
        offsets=OffsetMapping(starts, np.where(starts < 0, -1, starts + 4), starts >= 0),
    )
    logits = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    logits[2 * length + 500, 0] = logits[2 * length + 2400, 1] = 30.0
    found = []
    peak = peak_of(lambda: found.append(best_spans(logits, batch, max_length=2000, n_best=2)))
    assert peak < 100e6
    place = 2 * length + 500
    assert found[0].starts[0, 0] == 4 * place
    assert found[0].ends[0, 0] == 4 * (place + 1900) + 4
