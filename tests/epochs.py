"""Corpora whose every wordpiece has its own id, plans in folders that are gone at once, and batches
of them."""

import tempfile
from copy import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from arrays import ints
from checkpoints import SPECIAL, make_tokenizer
from hypothesis import strategies as st

from spacy_bert_heads.pretraining.documents import hold_out
from spacy_bert_heads.pretraining.examples import Batch, Plan, make_batch, plan_epoch
from spacy_bert_heads.pretraining.masking import Masking, Vocabulary
from spacy_bert_heads.text.wordpieces import WordpieceTokenizer

CLS, SEP, MASK = (SPECIAL["wordpiece"].index(f"[{name}]") for name in ("CLS", "SEP", "MASK"))
# The id of a wordpiece is its place in the corpus, plus this.
A = 100
SIZE = 1_000_000
DOCUMENTS = st.lists(st.lists(st.integers(1, 14), min_size=1, max_size=8), max_size=8)


@dataclass
class Corpus:
    pieces: np.ndarray
    words: np.ndarray
    spans: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray

    def document_of(self, piece: int) -> int:
        sentence = int(np.searchsorted(self.sentences, piece, side="right")) - 1
        return int(np.searchsorted(self.documents, sentence, side="right")) - 1

    def span(self, document: int) -> tuple[int, int]:
        first, last = self.sentences[self.documents[document : document + 2]].tolist()
        return first, last


def corpus_of(
    *documents: list[int], words: list[int] | None = None, spans: list[int] | None = None
) -> Corpus:
    """A corpus by the pieces of each sentence, and where its words begin (default everywhere), and
    its spans (default: as the words do)."""
    sentences = np.cumsum([0, *(length for document in documents for length in document)])
    n_pieces = int(sentences[-1])
    starts = np.ones(n_pieces, dtype=bool) if words is None else np.isin(range(n_pieces), words)
    units = starts if spans is None else np.isin(range(n_pieces), spans)
    bounds = np.cumsum([0, *map(len, documents)])
    return Corpus(np.arange(n_pieces, dtype=np.int32) + A, starts, units, sentences, bounds)


@cache
def vocabulary(kind: str = "wordpiece") -> Vocabulary:
    wordpieces = WordpieceTokenizer(make_tokenizer(kind).backend_tokenizer)
    return Vocabulary(wordpieces, MASK, SIZE, np.arange(len(SPECIAL[kind])))


class Epoch:
    """A plan in a folder that is gone at once."""

    def __init__(
        self, corpus: Corpus, objective: str, max_length: int, kind="wordpiece", **options
    ):
        options = {"short_seq_prob": 0.0, "seed": 0, "epoch": 0, **options}
        share, evaluation = options.pop("held_out", 0.0), options.pop("evaluation", False)
        held_out = hold_out(len(corpus.documents) - 1, share, seed=options["seed"])
        with tempfile.TemporaryDirectory() as folder:
            self.plan = plan_epoch(
                corpus,
                held_out == evaluation,
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
    """A batch of these examples or of all, at any seed and epoch, by default those of the plan."""
    numbers = numbers or range(len(plan))
    masks = copy(plan)
    masks.seed, masks.epoch = options.pop("seed", plan.seed), options.pop("epoch", plan.epoch)
    options = {"masking": Masking(), **options}
    return make_batch(corpus, masks, ints(*numbers), vocabulary=vocabulary(kind), **options)


def restored(batch: Batch) -> list[list[int]]:
    """The ids of each sequence as they were."""
    ids = batch.packed.input_ids.copy()
    ids[batch.masked] = batch.targets
    return [part.tolist() for part in np.split(ids, np.cumsum(batch.packed.seqlens)[:-1])]


def within(share: float, expected: float, n: int) -> bool:
    """Whether a share of n draws is within five standard errors. The seeds are fixed."""
    return abs(share - expected) <= 5 * (expected * (1 - expected) / n) ** 0.5
