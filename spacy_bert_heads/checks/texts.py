"""Check the texts, and how an encoder reads them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ..text.packing import cut_windows
from ..text.unknown import id_of_unknown
from .findings import Finding, Reading, Split, count_of, faults

MAX_UNKNOWN = 0.01  # of the wordpieces; English text and BERT's vocabulary have less than 0.001
NUM_TEXTS = 256  # tokenized together
NUM_UNKNOWN = 10  # unknown texts that are shown


def check_overlap(train: Split, dev: Split) -> list[Finding]:
    """Find texts of train that also occur in dev."""
    in_dev = {example.reference.text for example in dev.examples}
    texts = [text for eg in train.examples if (text := eg.reference.text) in in_dev]
    share = len(texts) / max(len(train.examples), 1)
    return faults(
        "overlap",
        "warning",
        "train",
        texts,
        f"{count_of(len(texts), 'Doc')} ({share:.1%}) with a text that also occurs in dev: scores "
        "on dev are too high",
        "Split the data again, with each text in only one part",
    )


def check_empty(split: Split, num_empty: int) -> list[Finding]:
    """Find Docs without tokens (`num_empty`; readers skip them) and Docs of white space only."""
    blank = sum(not example.reference.text.strip() for example in split.examples)
    total = num_empty + blank
    if not total:
        return []
    message = f"{count_of(total, 'Doc')} without text, {num_empty:,} of them without any token"
    fix = "Remove them from the data, or check the program that created them"
    return [Finding("empty", "warning", split.name, total, message, fix)]


def measure_wordpieces(split: Split, reading: Reading) -> dict[str, Any]:
    """Count the wordpieces of the Docs, the unknown ones and the most frequent unknown texts, the
    length and the windows of the longest Doc, and the Docs with several windows."""
    lengths = []
    unknown: Counter[str] = Counter()
    unknown_id = id_of_unknown(reading.tokenizer)
    texts = [example.predicted.text for example in split.examples]
    for begin in range(0, len(texts), NUM_TEXTS):
        some = texts[begin : begin + NUM_TEXTS]
        wordpieces = reading.tokenizer(some)
        lengths.append(wordpieces.lengths)
        text_of = np.repeat(np.arange(len(some)), wordpieces.lengths)
        for i in np.flatnonzero(wordpieces.ids == unknown_id):
            unknown[some[text_of[i]][wordpieces.starts[i] : wordpieces.ends[i]]] += 1
    counts = np.concatenate([*lengths, np.zeros(0, dtype=np.int64)])
    capacity = reading.window - reading.tokenizer.num_special
    windows = cut_windows(counts, capacity=capacity, stride=reading.stride).counts
    return {
        "wordpieces": int(counts.sum()),
        "unknown": unknown.total(),
        "unknown_texts": dict(unknown.most_common(NUM_UNKNOWN)),
        "longest": int(counts.max(initial=0)),
        "windows_of_longest": int(windows.max(initial=0)),
        "several_windows": int((windows > 1).sum()),
    }


def check_unknown(split: Split, measured: dict[str, Any]) -> list[Finding]:
    """Check the share of unknown wordpieces that `measure_wordpieces` counted."""
    count, total = measured["unknown"], measured["wordpieces"]
    if count <= MAX_UNKNOWN * total:
        return []
    return [
        Finding(
            "unknown_wordpieces",
            "warning",
            split.name,
            count,
            f"{count / total:.1%} of the wordpieces are unknown, so the encoder can't tell them "
            "apart",
            "Use a checkpoint for this language, script and case, or add words with `bert "
            "pretrain` and encoder.add_words",
            [f"{text} ({count:,})" for text, count in measured["unknown_texts"].items()],
        )
    ]
