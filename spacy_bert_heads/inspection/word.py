"""Compare the hidden states of one word in several texts, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from spacy.language import Language
from spacy.matcher import PhraseMatcher
from spacy.tokens import Doc, Span
from spacy.util import filter_spans

from .source import Floats1d, Floats3d, Source, encode_layers

MAX_OCCURRENCES = 20  # rows of a readable matrix


class WordView(NamedTuple):
    """Hold the similarity of the hidden states of a word's occurrences at each layer."""

    source: str
    word: str
    occurrences: list[Span]
    # Cosines of all pairs, from the embeddings to the last layer (depth + 1, n, n).
    cosines: Floats3d

    @property
    def self_similarity(self) -> Floats1d:
        """Return the mean cosine of two different occurrences at each layer (depth + 1,); see
        Ethayarajh (2019), section 3.3."""
        n = len(self.occurrences)
        return (self.cosines.sum((1, 2)) - np.trace(self.cosines, axis1=1, axis2=2)) / (n * (n - 1))


class Context(NamedTuple):
    """Hold a word with its context, in one line."""

    before: str
    word: str
    after: str


def compare_word(source: Source, word: str, texts: Sequence[str]) -> WordView:
    """Compare the hidden states of a word in all texts, layer by layer.

    The word may consist of several tokens; its case is ignored. The vector of an occurrence is the
    mean over its wordpieces. Raises ValueError if a text doesn't contain the word, or there are
    fewer than two or more than MAX_OCCURRENCES occurrences.
    """
    docs = [source.nlp.make_doc(text) for text in texts]
    found = find_word(source.nlp, word, docs)
    missing = [text for text, spans in zip(texts, found, strict=True) if not spans]
    if missing:
        others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise ValueError(
            f"The word '{word}' is not in the text '{missing[0]}'{others}. Only whole words are "
            "found, in any case. Remove the text, or use the word form of the text."
        )
    occurrences = [span for spans in found for span in spans]
    if not 2 <= len(occurrences) <= MAX_OCCURRENCES:
        raise ValueError(
            f"The word '{word}' occurs {len(occurrences)} times in {len(texts)} texts. Pass texts "
            f"with 2 to {MAX_OCCURRENCES} occurrences."
        )
    batch = source.pack(docs)
    tokens = batch.tokens
    assert tokens is not None
    hidden_states = encode_layers(source.encoder, batch, range(source.depth + 1))
    first_token = np.cumsum(tokens.num_tokens) - tokens.num_tokens
    first_wordpiece = np.append(0, np.cumsum(tokens.num_wordpieces))
    vectors = []
    for first, spans in zip(first_token.tolist(), found, strict=True):
        for span in spans:
            begin, end = first_wordpiece[[first + span.start, first + span.end]]
            # A wordpiece that is shared by two tokens of the word counts once.
            positions = np.unique(tokens.positions[begin:end])
            if not len(positions):
                raise ValueError(f"The word '{word}' has no wordpieces. Choose another one.")
            vectors.append(
                hidden_states[torch.from_numpy(positions).to(hidden_states.device)].double().mean(0)
            )
    normed = F.normalize(torch.stack(vectors, dim=1), dim=-1)  # (depth + 1, n, width)
    cosines = (normed @ normed.transpose(1, 2)).cpu().numpy()
    return WordView(source.name, word, occurrences, cosines)


def find_word(nlp: Language, word: str, docs: Sequence[Doc]) -> list[list[Span]]:
    """Return the occurrences of a word in each Doc, as whole tokens in any case. Raises ValueError
    if the word is empty."""
    pattern = nlp.make_doc(word.strip())
    if not len(pattern):
        raise ValueError("The word is empty. Pass one that occurs in the texts.")
    matcher = PhraseMatcher(nlp.vocab, attr="LOWER")
    matcher.add("word", [pattern])
    return [filter_spans(cast(list[Span], matcher(doc, as_spans=True))) for doc in docs]


def in_context(span: Span, *, limit: int) -> Context:
    """Return a word with at most `limit` characters of context on each side, plus an ellipsis."""
    text = span.doc.text
    parts = text[: span.start_char], span.text, text[span.end_char :]
    before, word, after = (re.sub(r"\s+", " ", part) for part in parts)
    # At a space, in languages that have any.
    if len(before) > limit:
        before = before[-limit:]
        before = "…" + (before.partition(" ")[2] or before)
    if len(after) > limit:
        after = after[:limit]
        after = (after.rpartition(" ")[0] or after) + "…"
    return Context(before.lstrip(), word, after.rstrip())
