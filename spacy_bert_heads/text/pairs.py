"""Docs with second texts: premise and hypothesis, question and context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from spacy.tokens import Doc

from .arrays import Ints1d


@dataclass(frozen=True)
class Pairs:
    """Docs, and the second texts to read with each, pair after pair."""

    docs: list[Doc]
    texts: list[list[str]]  # of each Doc
    doc_first: bool  # premise before hypothesis; else question before context
    longest_span: int = 0  # of the Doc, in wordpieces, that some window must hold

    @property
    def num_pairs(self) -> Ints1d:
        """The pairs of each Doc (num_docs,)."""
        return np.fromiter(map(len, self.texts), dtype=np.int64, count=len(self.texts))

    def split(self, max_chars: int) -> Iterator[Pairs]:
        """Split into parts of about equal work, each of at most `max_chars` characters unless one
        pair has more. A pair is never split, the order is kept."""
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
    """Second texts that leave too little of a window to the Doc.

    `pairs` are the numbers of these pairs, `texts` their second texts, `limit` is the maximum
    number of wordpieces.
    """

    def __init__(self, pairs: list[int], texts: list[str], limit: int) -> None:
        super().__init__(
            f"A second text may fill half of a window, {limit} wordpieces, but this one has more: "
            f"{_show(texts)}. Shorten it, or set a larger window in the encoder's model."
        )
        self.pairs, self.texts = pairs, texts


class NoRoomForAnswers(TextTooLong):
    """Questions beside which a window of a long Doc has no room for the longest answer.

    `room` is the longest span in wordpieces that a window holds wherever it is.
    """

    def __init__(self, pairs: list[int], texts: list[str], room: int, wanted: int) -> None:
        ValueError.__init__(
            self,
            f"Beside a question as long as this one, the windows of a long Doc have room for "
            f"answers of at most {room} wordpieces, but max_answer_length is {wanted}: "
            f"{_show(texts)}. Set max_answer_length to {room} or less, shorten the question, or "
            "set a larger window in the encoder's model.",
        )
        self.pairs, self.texts = pairs, texts


def _show(texts: list[str]) -> str:
    shown = texts[0] if len(texts[0]) <= 80 else f"{texts[0][:77]}…"
    return f"'{shown}'" + (f" (and {len(texts) - 1} others)" if len(texts) > 1 else "")
