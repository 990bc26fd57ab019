"""Heads without weights, and scores that say what they shall write."""

import itertools
import re

import numpy as np
import spacy
from arrays import ints
from groups import GROUPS
from losses import token_logits
from spacy.tokens import Doc
from spacy.training import Example

from spacy_bert_heads.heads.outputs import TokenLogits

NLP = spacy.blank("en")
PREFIXES = {"BIO": "BI", "BILOU": "BILU"}
ALLOWED = {
    "BIO": re.compile(r"(O |B-(\w) (I-\2 )*)*"),
    "BILOU": re.compile(r"(O |U-\w |B-(\w) (I-\2 )*L-\2 )*"),
}


def tags_of(scheme: str, labels: str) -> list[str]:
    return ["O", *(f"{prefix}-{label}" for label in labels for prefix in PREFIXES[scheme])]


BIO, BILOU = tags_of("BIO", "AB"), tags_of("BILOU", "AB")


def doc_of(text: str) -> Doc:
    return Doc(NLP.vocab, words=text.split(" ") if text else [])


def make_head(kind: str, labels=("A", "B"), **config):
    """A head without weights, which is enough for what it does with scores."""
    head = NLP.create_pipe(f"bert_{kind}", config=GROUPS.get(kind, {}) | config)
    for label in labels:
        head.add_label(label)
    return head


def scores_of(
    docs: list[list[dict[str, float]]], tags: list[str], known: list[bool] | None = None
) -> TokenLogits:
    """Scores from each token's probabilities by tag; what is left goes to the other tags."""
    rows = []
    for token in itertools.chain.from_iterable(docs):
        rest = (1 - sum(token.values())) / max(len(tags) - len(token), 1)
        rows.append([max(token.get(tag, rest), 1e-9) for tag in tags])
    logits = np.log(np.asarray(rows, dtype=np.float32).reshape(-1, len(tags)))
    is_known = np.ones(len(rows), dtype=bool) if known is None else np.asarray(known)
    return token_logits(logits + 1.5, is_known, ints(*map(len, docs)))  # any shift is the same


def certain(texts: list[str], tags: list[str], known: list[bool] | None = None) -> TokenLogits:
    """Scores that leave no doubt of these tags."""
    docs = [[{tag: 0.99} for tag in text.split()] for text in texts]
    return scores_of(docs, tags, known)


def random_logits(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3


def unannotated(text: str) -> Example:
    return Example(doc_of(text), doc_of(text))
