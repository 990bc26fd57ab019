"""Check pairs of texts: gold entries, texts that are too long, answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from spacy.tokens import Doc
from spacy.training import Example

from ..heads.pair_head import BertPairHead
from ..heads.qa import BertQA
from ..heads.qa_windows import find_targets
from ..text.arrays import sums
from ..text.packing import max_second_text, pack_pairs
from ..text.pairs import Pairs
from .findings import Finding, Reading, Split, count_of, faults

MAX_CHARS = 2**18  # of the pairs that are packed together


def entries_of(head: BertPairHead, example: Example) -> Iterator[tuple[Any, Any]]:
    """Yield the second texts and their gold entries; nothing if the two don't match."""
    try:
        yield from head.gold_pairs(example)
    except ValueError:
        return


def check_entries(head: BertPairHead, split: Split, reading: Reading | None) -> list[Finding]:
    """Find Docs whose gold entries don't match their second texts, or have another format."""
    broken, errors = [], []
    for example in split.examples:
        try:
            if isinstance(head, BertQA):  # the answers themselves: see check_answers
                list(head.gold_pairs(example))
            else:
                head.check_gold(example)
        except ValueError as error:
            broken.append(example.reference.text)
            errors.append(str(error))
    return faults(
        "gold_entries",
        "error",
        split.name,
        broken,
        f"{count_of(len(broken), 'Doc')} with gold entries that don't match. "
        + "".join(errors[:1]),
        f"Set one entry in doc._.{head.output_name} for each of doc._.{head.input_name}, "
        f"{head.made_by}",
    )


def too_long(texts: Sequence[str], reading: Reading) -> set[str]:
    """Return the second texts that are too long for the window."""
    distinct = list(dict.fromkeys(texts))
    lengths = reading.tokenizer(distinct).lengths.tolist()
    limit = max_second_text(reading.tokenizer, reading.window)
    return {text for text, length in zip(distinct, lengths, strict=True) if length > limit}


def check_second_texts(head: BertPairHead, split: Split, reading: Reading | None) -> list[Finding]:
    """Find annotated pairs that are skipped because the second text is too long for the window."""
    asked = (one for example in split.examples for one, _ in entries_of(head, example))
    texts = head.flatten(asked)
    return _report_too_long(head, split.name, texts, reading)


def check_config_texts(head: BertPairHead, reading: Reading | None) -> list[Finding]:
    """Find second texts of the config that are too long for the window."""
    return _report_too_long(head, "config", head.flatten([*head.texts, *head.extra]), reading)


def _report_too_long(
    head: BertPairHead, where: str, texts: Sequence[str], reading: Reading | None
) -> list[Finding]:
    if reading is None:
        return []
    long_texts = too_long(texts, reading)
    pairs = [text for text in texts if text in long_texts]
    names = ("hypothesis", "hypotheses") if head.input_name == "hypotheses" else ("second text",)
    names = ("question",) if isinstance(head, BertQA) else names
    lost = "" if where == "config" else f": {count_of(len(pairs), 'pair')} skipped"
    return faults(
        "second_text_too_long",
        # Texts for every Doc can't be skipped: prediction would raise an error.
        "error" if where == "config" and not long_texts.isdisjoint(head.extra) else "warning",
        where,
        pairs,
        f"{count_of(len(long_texts), *names)} with more than "
        f"{max_second_text(reading.tokenizer, reading.window)} wordpieces, half of a window{lost}",
        "Shorten the text, or set a larger window in the encoder's model",
    )


class Asked(NamedTuple):
    """Hold a question with an answer in the text."""

    doc: Doc
    question: str
    place: tuple[int, int]  # characters


def check_answers(head: BertQA, split: Split, reading: Reading | None) -> list[Finding]:
    """Find answers that don't match the text at their offsets, that exceed `max_answer_length`, or
    that no window contains as a whole."""
    lost: list[str] = []
    asked: list[Asked] = []
    for example in split.examples:
        text = example.reference.text
        for question, entry in entries_of(head, example):
            if not _fits(entry, text):
                lost.append(question)
            elif entry["text"]:
                place = entry["start_char"], entry["end_char"]
                asked.append(Asked(example.predicted, question, place))
    lengthy, nowhere = ([], []) if reading is None else _measure(head, asked, reading)
    return [
        *faults(
            "answer_not_found",
            "error",
            split.name,
            lost,
            f"{count_of(len(lost), 'answer')} not in the text at start_char and end_char",
            "Create answers with spacy_bert_heads.pairs.make_answer(doc, start, end), in "
            "characters",
        ),
        *faults(
            "answer_too_long",
            "warning",
            split.name,
            lengthy,
            f"{count_of(len(lengthy), 'answer')} longer than max_answer_length, "
            f"{head.max_answer_length} wordpieces, can't be predicted",
            f"Set a larger max_answer_length for {head.name}, or shorten the answer",
        ),
        *faults(
            "answer_in_no_window",
            "warning",
            split.name,
            nowhere,
            f"{count_of(len(nowhere), 'answer')} not contained in any window, skipped in training",
            "Set a larger window, or a smaller stride, in the encoder's model",
        ),
    ]


def _fits(entry: Any, text: str) -> bool:
    match entry:
        case {"text": str(answer), "start_char": int(start), "end_char": int(end)}:
            return 0 <= start <= end and text[start:end] == answer
    return False


def _measure(head: BertQA, asked: Sequence[Asked], reading: Reading) -> tuple[list[str], list[str]]:
    """Return the questions whose answers are too long, and those whose answers are in no window."""
    long_texts = too_long([one.question for one in asked], reading)
    asked = [one for one in asked if one.question not in long_texts]
    of_docs = [list(some) for _, some in groupby(asked, key=lambda one: id(one.doc))]
    docs = [some[0].doc for some in of_docs]
    texts = [[one.question for one in some] for some in of_docs]
    lengthy, nowhere = [], []
    for part in Pairs(docs, texts, head.doc_first).split(MAX_CHARS):
        num_pairs = int(part.num_pairs.sum())
        here, asked = asked[:num_pairs], asked[num_pairs:]
        places = np.asarray([one.place for one in here], dtype=np.int64)
        batch = pack_pairs(part, reading.tokenizer, window=reading.window, stride=reading.stride)
        assert batch.offsets is not None
        positions = sums(batch.seqlens, batch.num_windows)
        start, end = np.repeat(places, positions, axis=0).T
        inside = (batch.offsets.starts < end) & (batch.offsets.ends > start)
        lengths = sums(inside & batch.offsets.is_best, positions)
        first_windows = np.cumsum(batch.num_windows) - batch.num_windows
        unknown = find_targets(batch, places)[first_windows, 0] < 0
        for one, length, is_unknown in zip(here, lengths, unknown, strict=True):
            if length > head.max_answer_length:
                lengthy.append(one.question)
            elif is_unknown:
                nowhere.append(one.question)
    return lengthy, nowhere
