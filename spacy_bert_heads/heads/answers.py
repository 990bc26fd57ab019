"""The best spans of a text for a question, and how answers are scored."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from spacy.training import Example

from ..text.arrays import Ints1d, Ints2d
from ..text.batch import PackedBatch
from .pair_head import match_predictions
from .qa_windows import DocWindows
from .tallies import Tally

Floats1d = NDArray[np.float64]
# The maximum number of spans in one array: 8 MB in float64.
MAX_SPANS = 2**20
WITHOUT_SPACES = ("zh", "ja", "th")  # languages, whose characters are compared in place of words
KINDS = ("answer", "no answer")  # of answers, in scores and thresholds


# --- spans


class BestSpans(NamedTuple):
    """The best spans of each pair, best first."""

    starts: Ints2d  # (num_pairs, n_best) characters of the Doc, 0 if there are fewer spans
    ends: Ints2d
    scores: NDArray[np.float64]  # (num_pairs, n_best) probabilities, 0 if there are fewer spans
    no_answer: Floats1d  # (num_pairs,) the probability of no answer, relative to the best span


def best_spans(logits: NDArray, batch: PackedBatch, *, max_length: int, n_best: int) -> BestSpans:
    """Find the `n_best` spans of each pair with array operations over the whole batch. None of them
    overlaps a better one, and white space neither begins nor ends a span.

    `logits` are those of starts and ends (num_positions, 2). `max_length` is that of a span, in
    wordpieces. If the offsets of `batch` were widened to tokens, so are the spans; their logits are
    still those of wordpieces.

    The logit of a span is that of its start plus that of its end, in one window: of the windows
    that contain the span, the one where its shorter side has the most context, of equal ones the
    first. So each span is counted once. (`run_squad.py` in google-research/bert considers the start
    only, and loses spans at the end of a window.) One softmax runs over the spans of all windows
    and "no answer" (Clark & Gardner 2018, section 3.2). The logit of "no answer" is that of [CLS]
    as start and end in the window where it is lowest: it may be high in the other windows just
    because the answer is not in them.

    Time is num_positions * max_length * n_best; memory is bounded, independent of `max_length`.
    """
    num_pairs = len(batch.num_windows)
    windows = DocWindows.of(batch)
    pair_of = windows.pair_of
    null = np.full(num_pairs, np.inf)
    np.minimum.at(null, pair_of, logits[batch.cu_seqlens[:-1]].sum(axis=1, dtype=np.float64))

    table = _SpanTable.of(logits, batch, windows, max_length)
    pairs = pair_of[table.window]
    starts, ends = np.zeros((2, num_pairs, n_best), dtype=np.int64)
    best = np.full((num_pairs, n_best), -np.inf)
    row_sums = np.full(len(pairs), -np.inf)  # log-sum-exp over all spans with the same start
    for k in range(n_best):
        row_best = np.full(len(pairs), -np.inf)
        column = np.zeros(len(pairs), dtype=np.int64)
        for rows, spans, last_char in table.chunks():
            if k == 0:
                row_sums[rows] = _log_sum_exp(spans)
            for j in range(k):
                first, last = starts[pairs[rows], j, None], ends[pairs[rows], j, None]
                overlaps = (table.first_char[rows, None] < last) & (last_char > first)
                spans = np.where(overlaps, -np.inf, spans)
            column[rows] = spans.argmax(axis=1)
            row_best[rows] = spans.max(axis=1)
        found, row = _best_rows(row_best, pairs, num_pairs)
        best[found, k] = row_best[row]
        starts[found, k] = table.first_char[row]
        ends[found, k] = table.last_char[row + column[row]]
    # The sum is taken relative to its greatest term, because exp would overflow.
    top = np.maximum(best[:, 0], null)
    shares = np.exp(row_sums - top[pairs])
    total = np.exp(null - top) + np.bincount(pairs, weights=shares, minlength=num_pairs)
    scores = np.exp(best - (top + np.log(total))[:, None])
    return BestSpans(starts, ends, scores, np.exp(null - np.logaddexp(null, best[:, 0])))


class _SpanTable(NamedTuple):
    """The spans of a batch: one row for each wordpiece at which a span may start, one column for
    each length.

                     end of a span, counted from its start
                      0     1     2   …  max_length - 1
    wordpiece 0      s+e   s+e   s+e
    wordpiece 1      s+e   s+e    -          - the window ends
    wordpiece 2      s+e    -     -

    Only wordpieces with visible characters can start or end an answer.
    """

    start_logits: NDArray  # (num_wordpieces,)
    end_logits: NDArray
    first_char: Ints1d
    last_char: Ints1d
    window: Ints1d
    number: Ints1d  # of the wordpiece, counted over all wordpieces of all windows
    # The numbers of the first and the last wordpiece at which a span that starts here may end,
    # because this window has the most context for it.
    first_end: Ints1d
    last_end: Ints1d
    max_length: int

    @staticmethod
    def of(logits: NDArray, batch: PackedBatch, windows: DocWindows, max_length: int) -> _SpanTable:
        offsets = batch.offsets
        assert offsets is not None
        positions = np.flatnonzero(offsets.ends > offsets.starts)
        window = np.repeat(np.arange(len(batch.seqlens)), batch.seqlens)[positions]
        number = (np.cumsum(offsets.starts >= 0) - 1)[positions]
        left = number - (np.cumsum(windows.lengths) - windows.lengths)[window]
        shortest, longest = _readable_lengths(windows, window, left)
        return _SpanTable(
            logits[positions, 0],
            logits[positions, 1],
            offsets.starts[positions],
            offsets.ends[positions],
            window,
            number,
            number + shortest - 1,
            number + np.minimum(longest, max_length) - 1,
            min(max_length, int(np.bincount(window).max(initial=1))),
        )

    def chunks(self) -> Iterator[tuple[slice, NDArray, Ints2d]]:
        """Yield some rows at a time: their slice, the logits of their spans (num_rows, max_length),
        -inf where there is none, and the end of each span in characters."""
        n, step = len(self.window), max(MAX_SPANS // self.max_length, 1)
        for begin in range(0, n, step):
            rows = slice(begin, min(begin + step, n))
            at = np.arange(rows.start, rows.stop)[:, None] + np.arange(self.max_length)
            inside = at < n
            at = np.minimum(at, n - 1)
            inside &= self.window[at] == self.window[rows, None]
            end = self.number[at]
            inside &= (end >= self.first_end[rows, None]) & (end <= self.last_end[rows, None])
            spans = self.start_logits[rows, None] + self.end_logits[at]
            yield rows, np.where(inside, spans, -np.inf), self.last_char[at]


def _readable_lengths(windows: DocWindows, window: Ints1d, left: Ints1d) -> tuple[Ints1d, Ints1d]:
    """Return the minimum and maximum length of spans that are read in the window of their first
    wordpiece.

    `window` is the window of each first wordpiece, `left` the number of wordpieces before it there.
    A span of n wordpieces has the context min(left, right), where right = length - left - n. From
    one window to the next, left decreases by the step s and right increases by e. So the next
    window has no more context if left - s <= right, and the previous one has less if
    right - e < left.
    """
    starts, ends = windows.starts, windows.starts + windows.lengths
    same = windows.pair_of[1:] == windows.pair_of[:-1]
    never = int(windows.lengths.max(initial=0)) + 1
    steps = np.append(np.where(same, np.diff(starts), 2 * never), 2 * never)
    growth = np.append(2 * never, np.where(same, np.diff(ends), 2 * never))
    balance = windows.lengths[window] - 2 * left
    return balance - growth[window] + 1, balance + steps[window]


def _log_sum_exp(spans: NDArray) -> Floats1d:
    """Return the log-sum-exp of each row, -inf for a row without a span."""
    top = spans.max(axis=1)
    finite = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(spans - finite[:, None]).sum(axis=1, dtype=np.float64)) + finite


def _best_rows(row_best: NDArray, groups: Ints1d, n_groups: int) -> tuple[Ints1d, Ints1d]:
    """Find the row with the greatest value of each group, the first of equal ones. Returns the
    groups with a value above -inf, and their rows."""
    greatest = np.full(n_groups, -np.inf)
    np.maximum.at(greatest, groups, row_best)
    rows = np.flatnonzero((row_best == greatest[groups]) & (row_best > -np.inf))
    found, first = np.unique(groups[rows], return_index=True)
    return found, rows[first]


# --- scores


def score_qa(examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
    """Score answers as the official script of SQuAD 2.0 does (Rajpurkar et al. 2016, section 6.1;
    2018). Texts in Chinese, Japanese and Thai are compared character by character.

    Returns `qa_exact` and `qa_f1`, the official scores as fractions, and `qa_per_type`, the same
    for questions with and without an answer; None without any question. Raises ValueError if a
    predicted Doc lacks questions of its reference.
    """
    kinds: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for example in examples:
        for kind, row in tally_answers(example).items():
            kinds[kind].append(row)
    if not any(kinds.values()):
        return {"qa_exact": None, "qa_f1": None, "qa_per_type": None}
    total = _sum_up(list(chain(*kinds.values())))
    return {
        "qa_exact": total["exact"],
        "qa_f1": total["f1"],
        "qa_per_type": {kind: _sum_up(rows) for kind, rows in kinds.items() if rows},
    }


def _sum_up(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the means of "exact" and "f1", and the number of questions."""
    count = sum(row["count"] for row in rows)
    return {name: sum(row[name] for row in rows) / count for name in ("exact", "f1")} | {
        "count": count
    }


def tally_answers(example: Example) -> Tally:
    """Sum up "exact" and "f1" of an example's answers and count them, separately for questions with
    and without an answer."""
    tally: Tally = {}
    lang = example.reference.lang_
    for gold, predicted in match_predictions(example, "questions", "answers"):
        exact, f1 = 0.0, 0.0
        if predicted:
            exact, f1 = compare_answers(predicted["text"], accepted(gold), lang)
        row = tally.setdefault(kind_of(gold), {"exact": 0.0, "f1": 0.0, "count": 0})
        row["exact"] += exact
        row["f1"] += f1
        row["count"] += 1
    return tally


def check_answer(answer: Any, question: str, doc_text: str) -> None:
    """Raise ValueError if a gold answer is not a part of the text."""
    match answer:
        case {"text": str(text), "start_char": int(start), "end_char": int(end)} if (
            0 <= start <= end and doc_text[start:end] == text
        ):
            return
    raise ValueError(
        f"The gold answer to '{question}' needs a text that is doc.text[start_char:end_char], but "
        f"it is {answer!r}. Make it with spacy_bert_heads.pairs.make_answer(doc, start, end)."
    )


def kind_of(answer: dict[str, Any]) -> str:
    """Return the name of an answer's kind in scores and thresholds."""
    return KINDS[0] if answer["text"] else KINDS[1]


def accepted(gold: dict[str, Any]) -> list[str]:
    """List the texts that count as correct for a gold answer."""
    return [gold["text"], *(other["text"] for other in gold.get("alternatives", ()))]


def compare_answers(predicted: str, gold: Sequence[str], lang: str = "en") -> tuple[float, float]:
    """Compare a predicted answer with the correct ones; "" means no answer.

    Returns "exact", 1 if the normalised texts are equal, and "f1" of their words, each the maximum
    over the correct answers.
    """
    guess = answer_words(predicted, lang)
    # A correct answer of punctuation and articles only is ignored, unless all are like that.
    truths = [words for words in (answer_words(text, lang) for text in gold) if words] or [[]]
    return (
        float(max(guess == truth for truth in truths)),
        max(overlap(guess, truth) for truth in truths),
    )


def answer_words(text: str, lang: str) -> list[str]:
    """List an answer's words, or its characters in languages without spaces, in lower case, without
    punctuation and, as in the official script, without English articles."""
    text = text.lower()
    if lang in WITHOUT_SPACES:
        return [c for c in text if not c.isspace() and unicodedata.category(c)[0] not in "PS"]
    text = "".join(c for c in text if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def overlap(guess: list[str], truth: list[str]) -> float:
    """Return the F1 of an answer's words and those of a correct one."""
    if not guess or not truth:
        return float(guess == truth)
    common = sum((Counter(guess) & Counter(truth)).values())
    return 2 * common / (len(guess) + len(truth))


def best_threshold(examples: Iterable[Example]) -> float | None:
    """Find the "no answer" threshold with the best F1: `best_f1_thresh` of SQuAD 2.0's script, for
    probabilities.

    `examples` have predicted answers. The threshold is halfway between the probabilities of two
    questions, rounded to as many digits as are saved; 1 if it is best to always answer, 0 if never;
    None without questions.
    """
    rows = []
    for example in examples:
        lang = example.reference.lang_
        for gold, predicted in match_predictions(example, "questions", "answers"):
            if predicted is None:
                continue
            span = next(iter([predicted] if predicted["text"] else predicted["alternatives"]), None)
            _, f1 = compare_answers(span["text"] if span else "", accepted(gold), lang)
            rows.append((predicted["no_answer_score"], f1, float(not gold["text"])))
    if not rows:
        return None
    rows.sort()
    no_answer, with_span, without = np.asarray(rows, dtype=np.float64).reshape(-1, 3).T
    # The total F1 if the first k questions are answered and the others are not.
    totals = np.append(0.0, with_span.cumsum()) + np.append(without[::-1].cumsum()[::-1], 0.0)
    bounds = np.concatenate([[0.0], (no_answer[:-1] + no_answer[1:]) / 2, [1.0]])[: len(totals)]
    distinct = np.append(np.append(True, no_answer[:-1] < no_answer[1:])[: len(rows)], True)
    totals[~distinct] = -1.0
    # Of equally good thresholds the highest, which answers more questions.
    return round(float(bounds[len(totals) - 1 - totals[::-1].argmax()]), 9)
