"""A linear-chain conditional random field over tags (Lafferty et al. 2001; Lample et al. 2016,
section 2.2).

The score of a path is the sum of its tags' logits and of a learned transition between neighbours.
Its probability is exp(score), normalised over all paths. The table of transitions, from row to
column, has the border of a text as index 0, before the first and after the last tag: (num_tags + 1,
num_tags + 1). Sums over paths are exact, by the forward algorithm in float64, with one matrix
product for each step over all texts of a batch: 128 texts of 60 tokens take 60 products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..text.arrays import Bools1d, Ints1d, ranges
from .losses import mean_over
from .negations import Negation
from .tags import Layout

# The table of transitions and each step of Viterbi grow with the square of the number of tags.
MAX_TAGS = 200
# The logarithm of 0; finite, so that the difference of two is not NaN.
NEVER = -1e4
TINY = 1e-300


class Texts(NamedTuple):
    """The texts of a batch, as rows of the logits, text after text."""

    starts: Ints1d  # (num_texts,)
    lengths: Ints1d  # (num_texts,) at least 1

    @staticmethod
    def of(lengths: Ints1d) -> Texts:
        """Make them from their numbers of rows; empty texts are left out."""
        lengths = lengths[lengths > 0]
        return Texts(np.cumsum(lengths) - lengths, lengths)

    @property
    def ends(self) -> Ints1d:
        """The last row of each text (num_texts,)."""
        return self.starts + self.lengths - 1

    def reversed_rows(self) -> Ints1d:
        """Return the rows with each text reversed (num_rows,)."""
        return np.repeat(self.starts + self.ends, self.lengths) - ranges(self.starts, self.lengths)

    def steps(self) -> tuple[Ints1d, list[int]]:
        """Return the rows step by step (num_rows,), in each step the row of the longest text first,
        and the number of texts in each step."""
        order = np.argsort(-self.lengths, kind="stable")
        starts, lengths = self.starts[order], self.lengths[order]
        counts = np.searchsorted(-lengths, -np.arange(lengths[0]))
        step = np.repeat(np.arange(len(counts)), counts)
        return starts[ranges(np.zeros_like(counts), counts)] + step, counts.tolist()


def allowed_transitions(tags: Sequence[str], *, strict: bool) -> Bools1d:
    """Return which tag may follow which, borders included (num_tags + 1, num_tags + 1): valid
    sequences of the scheme if `strict`, else all."""
    n = len(tags)
    allowed = np.ones((n + 1, n + 1), dtype=np.bool_)
    if strict:
        layout, each = Layout.of(tuple(tags)), np.arange(n)
        allowed[1:, 1:] = layout.may_follow(np.repeat(each, n), np.tile(each, n)).reshape(n, n)
        allowed[0, 1:] = ~layout.goes_on
        allowed[1:, 0] = ~(layout.is_open & layout.has_ends)
    return allowed


def bar(values: torch.Tensor, allowed: Bools1d) -> torch.Tensor:
    """Return the values in float64, with NEVER where they are not allowed."""
    mask = torch.from_numpy(~allowed).to(values.device)
    return values.double().masked_fill(mask, NEVER)


def forward_sums(emissions: torch.Tensor, texts: Texts, transitions: torch.Tensor) -> torch.Tensor:
    """Return the log-sum over all paths from the start of a text to each tag of each row (num_rows,
    num_tags). Both tensors are float64."""
    between = transitions[1:, 1:].exp()
    rows, counts = texts.steps()
    # One selection for all steps: in the backward pass each selection needs memory for all rows.
    first, *others = emissions[torch.from_numpy(rows).to(emissions.device)].split(counts)
    sums = [transitions[0, 1:] + first]
    for own in others:
        before = sums[-1][: len(own)]
        top = before.detach().amax(1, keepdim=True)
        reached = (before - top).exp() @ between
        sums.append(reached.clamp(min=TINY).log() + top + own)
    order = torch.from_numpy(np.argsort(rows)).to(emissions.device)
    return torch.cat(sums)[order]


def log_partition(emissions: torch.Tensor, texts: Texts, transitions: torch.Tensor) -> torch.Tensor:
    """Return the log-sum over all paths of each text (num_texts,)."""
    ends = torch.from_numpy(texts.ends).to(emissions.device)
    sums = forward_sums(emissions, texts, transitions)[ends]
    return (sums + transitions[1:, 0]).logsumexp(1)


def crf_loss(
    logits: torch.Tensor,
    transitions: torch.Tensor,
    classes: Ints1d,
    lengths: Ints1d,
    tagged: Bools1d,
    *,
    allowed: Bools1d,
    negations: Sequence[Negation] = (),
) -> torch.Tensor:
    """Compute −log p of the annotation, where p sums over all paths that agree with it, and
    −log(1 − p) of each negation, in nats: a mean over annotated rows and negations.

    `logits` are (num_rows, num_tags). `classes` has the gold class of each row, -1 if it is not
    annotated; `lengths` is the number of rows of each text; rows that are not `tagged` are skipped.
    The weights of negations are not used. The loss is 0 if nothing is annotated.
    """
    rows = np.flatnonzero(tagged)
    text_of = np.repeat(np.arange(len(lengths)), lengths)
    of_texts = np.bincount(text_of[rows], minlength=len(lengths))
    gold = classes[rows]
    number_of_row = np.cumsum(tagged) - 1
    wanted = [text_of[one.rows[0]] for one in negations]  # by text
    num_items = int((gold >= 0).sum()) + len(negations)
    if not num_items:
        return mean_over(logits.sum() * 0.0, 0)

    # All texts with all tags, then with those that agree with the annotation; then the text of each
    # negation with the tags that it denies. All of these run as one batch.
    agrees = np.ones((len(rows), logits.shape[1]), dtype=np.bool_)
    known = np.flatnonzero(gold >= 0)
    agrees[known] = np.arange(logits.shape[1]) == gold[known, None]
    starts = np.cumsum(of_texts) - of_texts
    masks, parts, sizes = [np.ones_like(agrees), agrees], [rows, rows], [of_texts, of_texts]
    for one, text in zip(negations, wanted, strict=True):
        own = slice(starts[text], starts[text] + of_texts[text])
        mask = np.ones((of_texts[text], logits.shape[1]), dtype=np.bool_)
        for row, chosen in zip(number_of_row[one.rows] - starts[text], one.classes, strict=True):
            mask[row] = chosen
        masks.append(mask)
        parts.append(rows[own])
        sizes.append(of_texts[text : text + 1])
    emissions = logits[torch.from_numpy(np.concatenate(parts)).to(logits.device)]
    texts = Texts.of(np.concatenate(sizes))
    table = bar(transitions, allowed)
    sums = log_partition(bar(emissions, np.concatenate(masks)), texts, table)

    n = int((of_texts > 0).sum())
    total = (sums[:n] - sums[n : 2 * n]).sum()
    if negations:
        place = np.cumsum(of_texts > 0) - 1
        free = sums[torch.from_numpy(place[np.asarray(wanted)]).to(sums.device)]
        log_p = (sums[2 * n :] - free).clamp(max=-1e-12)
        total = total - (-log_p.expm1()).log().sum()
    return mean_over(total.to(logits.dtype), num_items)


# --- decoding


def best_path(emissions: torch.Tensor, texts: Texts, transitions: torch.Tensor) -> Ints1d:
    """Find the most probable tags of each text (Viterbi 1967). Returns them by row (num_rows,)."""
    rows, counts = texts.steps()
    first, *others = emissions[torch.from_numpy(rows).to(emissions.device)].split(counts)
    best, back = transitions[0, 1:] + first, []
    ended: list[torch.Tensor] = []  # of texts that end before a step
    for own in others:
        ended.append(best[len(own) :])
        reached, before = (best[: len(own), :, None] + transitions[1:, 1:]).max(dim=1)
        best = reached + own
        back.append(before)
    # In the order of `steps` again, longest text first.
    last = torch.cat([best, *reversed(ended)]) + transitions[1:, 0]
    tag = last.argmax(1).cpu().numpy()
    stepwise = [tag[: counts[-1]].copy()]
    steps = []
    if back:  # a single copy from a GPU
        steps = np.split(torch.cat(back).cpu().numpy(), np.cumsum(counts[1:])[:-1])
    for before, n in zip(reversed(steps), reversed(counts[:-1]), strict=True):
        goes_on = len(before)
        tag[:goes_on] = before[np.arange(goes_on), tag[:goes_on]]
        stepwise.append(tag[:n].copy())
    path = np.empty(len(rows), dtype=np.int64)
    path[rows] = np.concatenate(stepwise[::-1])
    return path


def entity_scores(
    emissions: torch.Tensor,
    texts: Texts,
    transitions: torch.Tensor,
    path: Ints1d,
    first: Ints1d,
    after: Ints1d,
    layout: Layout,
) -> np.ndarray:
    """Compute the exact probability of each entity of a path (num_entities,).

    It is that of all paths with the entity's tags at its rows, from `first` to `after` - 1, and in
    schemes that don't mark the end, with a next tag that does not continue it. Emissions and
    transitions are float64.
    """
    forward = forward_sums(emissions, texts, transitions)
    turn = torch.from_numpy(texts.reversed_rows()).to(emissions.device)
    backward = forward_sums(emissions[turn], texts, transitions.T)[turn]
    z = (forward[texts.ends] + transitions[1:, 0]).logsumexp(1)

    step = emissions[np.arange(len(path)), path]
    step[1:] += transitions[1:, 1:][path[:-1], path[1:]]
    sums = F.pad(step.cumsum(0), (1, 0))
    last = after - 1
    tag = path[last]
    log_p = forward[first, path[first]] + sums[after] - sums[first + 1]
    text_of = np.repeat(np.arange(len(texts.lengths)), texts.lengths)
    if layout.has_ends:
        log_p += backward[last, tag] - emissions[last, tag]
    else:
        log_p += transitions[1 + tag, 0]
        at = np.flatnonzero(last < texts.ends[text_of[last]])
        behind = transitions[1:, 1:][tag[at]] + backward[after[at]]
        behind[np.arange(len(at)), layout.inside_of[tag[at]]] = NEVER
        log_p[at] += behind.logsumexp(1) - transitions[1 + tag[at], 0]
    return (log_p - z[text_of[first]]).exp().clamp(max=1.0).cpu().numpy()
