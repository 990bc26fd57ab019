"""Docs with second texts: premise and hypothesis, question and context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from spacy.tokens import Doc

from .arrays import Ints1d


@dataclass(frozen=True)
class Pairs:
    """Docs with second texts, each of which is a pair with its Doc."""

    docs: list[Doc]
    texts: list[list[str]]  # the second texts of each Doc
    doc_first: bool  # premise before hypothesis; otherwise question before context
    longest_span: int = 0  # the length of spans, in wordpieces, that must be inside some window

    @property
    def num_pairs(self) -> Ints1d:
        """The number of pairs of each Doc (num_docs,)."""
        return np.fromiter(map(len, self.texts), dtype=np.int64, count=len(self.texts))

    def split(self, max_chars: int) -> Iterator[Pairs]:
        """Split into parts of at most `max_chars` characters, unless a single pair has more. Pairs
        are never split, and their order is kept."""
        docs: list[Doc] = []
        texts: list[list[str]] = []
        room = max_chars
        for doc, doc_texts in zip(self.docs, self.texts, strict=True):
            size = doc[-1].idx + len(doc[-1]) if len(doc) else 0
            for i, text in enumerate(doc_texts):
                room -= size + len(text)
                if room < 0 and docs:
                    yield replace(self, docs=docs, texts=texts)
                    docs, texts, room = [], [], max_chars - size - len(text)
                if i == 0 or not docs:
                    docs.append(doc)
                    texts.append([])
                texts[-1].append(text)
        if docs:
            yield replace(self, docs=docs, texts=texts)


class TextTooLong(ValueError):
    """Second texts that leave too little of a window for the Doc.

    `pairs` are the indices of these pairs, `texts` their second texts, `limit` is the maximum
    number of wordpieces.
    """

    def __init__(self, pairs: list[int], texts: list[str], limit: int) -> None:
        super().__init__(
            f"A second text may fill half of a window, {limit} wordpieces, but this one has more: "
            f"{_show(texts)}. Shorten it, or set a larger window in the encoder's model."
        )
        self.pairs, self.texts = pairs, texts


class NoRoomForAnswers(TextTooLong):
    """Questions that leave too little of a window for the longest answer in a long Doc.

    `room` is the length of the longest span, in wordpieces, that is inside of some window wherever
    it is.
    """

    def __init__(self, pairs: list[int], texts: list[str], room: int, wanted: int) -> None:
        ValueError.__init__(
            self,
            f"With a question as long as this one, the windows of a long Doc have room for "
            f"answers of at most {room} wordpieces, but max_answer_length is {wanted}: "
            f"{_show(texts)}. Set max_answer_length to {room} or less, shorten the question, or "
            "set a larger window in the encoder's model.",
        )
        self.pairs, self.texts = pairs, texts


def _show(texts: list[str]) -> str:
    shown = texts[0] if len(texts[0]) <= 80 else f"{texts[0][:77]}…"
    return f"'{shown}'" + (f" (and {len(texts) - 1} others)" if len(texts) > 1 else "")
