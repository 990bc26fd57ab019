"""Decoding of tags into entities that don't overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..text.arrays import Bools1d, Ints1d
from .crf import Texts, allowed_transitions, bar, best_path, entity_scores
from .outputs import TokenLogits
from .tags import Layout

Floats2d = NDArray[np.float64]


class Spans(NamedTuple):
    """The entities of a batch, in the order of the text."""

    doc: Ints1d  # (num_spans,)
    start: Ints1d  # (num_spans,) first token
    end: Ints1d  # (num_spans,) the token after the last
    label: Ints1d  # (num_spans,)
    score: NDArray[np.float64]  # (num_spans,) probabilities


def decode(output: TokenLogits, tags: Sequence[str], *, strict: bool = True) -> Spans:
    """Decode the most probable sequence of tags into entities.

    `tags` are the model's classes. With `strict` only valid sequences of the scheme are decoded;
    without, an entity begins wherever the label of a token differs from that of the token before.

    The probability of an entity is that of its tags and, in schemes that don't mark the end, that
    the next token does not continue it. Tokens are independent, unless the output has the
    transitions of a conditional random field (`crf.py`).

    Without transitions, time and memory are linear in the numbers of tokens and tags.
    """
    layout = Layout.of(tuple(tags))
    token = np.flatnonzero(output.has_wordpiece)
    # Tokens without a wordpiece are skipped, as if they were not in the Doc.
    logits = output.logits[torch.from_numpy(token).to(output.logits.device)].double()
    doc = np.repeat(np.arange(len(output.lengths)), output.lengths)[token]
    in_doc = token - np.repeat(np.cumsum(output.lengths) - output.lengths, output.lengths)[token]
    lengths = np.bincount(doc, minlength=len(output.lengths))
    if output.transitions is not None and len(token):
        allowed = allowed_transitions(tags, strict=strict)
        chain = logits, Texts.of(lengths), bar(output.transitions, allowed)
        path = best_path(*chain)
        first, after = find_spans(path, doc, layout)
        score = entity_scores(*chain, path, first, after, layout)
    else:
        log_p = logits.log_softmax(-1).cpu().numpy()
        path = viterbi(log_p, lengths, tags) if strict else log_p.argmax(axis=1)
        first, after = find_spans(path, doc, layout)
        score = independent_scores(log_p, path, doc, first, after, layout)

    label = layout.label[path[first]]
    return Spans(doc[first], in_doc[first], in_doc[after - 1] + 1, label, score)


def find_spans(path: Ints1d, doc: Ints1d, layout: Layout) -> tuple[Ints1d, Ints1d]:
    """Return the first token of each entity of a path, and the one after its last. `doc` is the Doc
    of each token."""
    label = layout.label[path]
    goes_on = layout.goes_on[path]
    goes_on[:1] = False
    goes_on[1:] &= (doc[1:] == doc[:-1]) & (label[1:] == label[:-1])
    goes_on[1:] &= ~layout.ends[path[:-1]]
    first = np.flatnonzero((label >= 0) & ~goes_on)
    stops = np.append(np.flatnonzero(~goes_on), len(path))
    return first, stops[np.searchsorted(stops, first, side="right")]


def independent_scores(
    log_p: Floats2d, path: Ints1d, doc: Ints1d, first: Ints1d, after: Ints1d, layout: Layout
) -> NDArray[np.float64]:
    """Compute the probability of each entity from those of independent tokens (num_spans,)."""
    sums = np.append(0.0, np.cumsum(log_p[np.arange(len(path)), path]))
    score = sums[after] - sums[first]
    if not layout.has_ends:
        follows = (after < len(path)) & (doc[np.minimum(after, len(path) - 1)] == doc[first])
        at = np.flatnonzero(follows)
        going_on = layout.inside_of[path[first[at]]]
        p_on = np.exp(log_p[after[at], going_on])
        score[at] += np.log1p(-np.minimum(p_on, 1 - 1e-12))
    return np.exp(score)


def surely_outside(log_p: Floats2d, inner: Bools1d, layout: Layout) -> Bools1d:
    """Find words that are "O" in the most probable path, whatever the words around them are.

    In a path with another tag for such a word, that tag can be replaced by "O", and the neighbours
    adjusted to it, without making the path less probable: the next word begins a new entity (I-PER
    becomes B-PER), the previous word ends its entity.

    `log_p` has the tags' log-probabilities (num_tokens, num_tags), text after text; `inner` says
    whether the next token is in the same text (num_tokens - 1,). Returns (num_tokens,); the best
    path can have other "O" that are not found.
    """
    begin, inside = log_p[:, layout.begin], log_p[:, layout.inside]
    rest = np.delete(log_p, layout.outside, axis=1).max(axis=1, initial=-np.inf)
    lead = log_p[:, layout.outside] - rest

    def most(differences: Floats2d) -> NDArray[np.float64]:
        return differences.max(axis=1, initial=0.0)

    behind = most(inside - begin)  # what the next word loses by the change
    if layout.has_ends:
        last = log_p[:, layout.last]
        units = np.flatnonzero(layout.ends & ~layout.goes_on)
        free = log_p[:, [layout.outside, *units]].max(axis=1)[:, None]
        behind = np.maximum(behind, most(last - free))
        before = np.maximum(most(begin - free), most(inside - last))
        lead[1:] -= np.where(inner, before[:-1], 0.0)
    lead[:-1] -= np.where(inner, behind[1:], 0.0)
    return lead >= 0


def viterbi(log_p: Floats2d, lengths: Ints1d, tags: Sequence[str]) -> Ints1d:
    """Find the most probable valid sequence of tags of each text (Viterbi 1967), for the whole
    batch at once.

    `log_p` has the tags' log-probabilities (num_tokens, num_tags), text after text; `lengths` is
    the number of tokens of each text (num_texts,). Returns a tag for each token (num_tokens,).
    """
    layout = Layout.of(tuple(tags))
    path = log_p.argmax(axis=1)
    if not len(path):
        return path

    # If each token's best tag makes a valid sequence, that is the best path.
    text = np.repeat(np.arange(len(lengths)), lengths)
    inner = text[1:] == text[:-1]
    barred = inner & ~layout.may_follow(path[:-1], path[1:])
    wrong = np.append(barred, False)
    wrong[1:] |= barred
    is_first, is_last = np.append(True, ~inner), np.append(~inner, True)
    wrong |= is_first & layout.goes_on[path]
    wrong |= is_last & layout.is_open[path] & layout.has_ends
    if not wrong.any():
        return path

    # A word that is surely outside splits its text in two; only invalid parts need Viterbi.
    alone = surely_outside(log_p, inner, layout)
    begins = alone.copy()
    begins[1:] |= alone[:-1] | ~inner
    begins[0] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, len(path)))
    wrong = np.flatnonzero(np.logical_or.reduceat(wrong, starts))

    # Those are decoded step by step, longest first, so that unfinished parts are the first rows.
    wrong = wrong[np.argsort(-lengths[wrong], kind="stable")]
    start, length = starts[wrong], lengths[wrong]
    steps = int(length[0])
    back = np.zeros((steps, len(wrong), len(tags)), dtype=np.int32)
    best = log_p[start].copy()
    best[:, layout.goes_on] = -np.inf
    for t in range(1, steps):
        n = int(np.searchsorted(-length, -t, side="left"))  # texts longer than t
        before, best[:n] = _step(best[:n], layout)
        back[t, :n] = before
        best[:n] += log_p[start[:n] + t]
    ends = np.full(best.shape, -np.inf)
    ends[:, layout.closed] = best[:, layout.closed]
    tag = ends.argmax(axis=1)
    for t in range(steps - 1, -1, -1):
        n = int(np.searchsorted(-length, -t, side="left"))
        path[start[:n] + t] = tag[:n]
        tag[:n] = back[t, np.arange(n), tag[:n]]
    return path


def _step(best: Floats2d, layout: Layout) -> tuple[Ints1d, Floats2d]:
    """Return for each text and tag the best previous tag, and the log-probability of the path up to
    that, both (num_texts, num_tags). It takes one comparison for each I or L tag, and one maximum
    for all others."""
    before, reached = np.empty(best.shape, dtype=np.int64), np.empty_like(best)
    closed = layout.closed[best[:, layout.closed].argmax(axis=1)]
    before[:] = closed[:, None]
    reached[:] = np.take_along_axis(best, closed[:, None], axis=1)
    stays = best[:, layout.inside] > best[:, layout.begin]
    open_tag = np.where(stays, layout.inside, layout.begin)
    value = np.where(stays, best[:, layout.inside], best[:, layout.begin])
    for places in (layout.inside, layout.last):
        if len(places):
            before[:, places], reached[:, places] = open_tag, value
    return before, reached
