"""Where in a text the answer to a question stands, or that there is none."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from spacy.language import Language
from spacy.tokens import Doc, Span, SpanGroup
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model, get_array_module, to_numpy

from ..encoder.listener import DEFAULT_LISTENER
from ..pairs import drop_results, make_answer
from ..types import Ints1d, Ints2d, Pairs, PairSequences, SpanScores
from .pair_head import BertPairHead, match_predictions

DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.SpanHead.v1",
    "dropout": 0.0,
    "rate_factor": 1.0,
    "tok2vec": DEFAULT_LISTENER,
}
Floats1d = NDArray[np.float64]


@Language.factory(
    "bert_qa",
    assigns=["doc._.answers", "doc._.questions", "doc.spans"],
    default_config={
        "model": DEFAULT_MODEL,
        "questions": [],
        "max_answer_length": 30,
        "alternatives": 0,
        "no_answer_threshold": None,
        "spans_key": "answers",
        "scorer": {"@scorers": "spacy_bert_heads.qa_scorer.v1"},
    },
    default_score_weights={"qa_f1": 1.0, "qa_exact": None, "qa_per_type": None},
)
def make_bert_qa(
    nlp: Language,
    name: str,
    model: Model[Pairs, SpanScores],
    questions: list[str],
    max_answer_length: int,
    alternatives: int,
    no_answer_threshold: float | None,
    spans_key: str,
    scorer: Callable | None,
) -> "BertQA":
    """Create a component that finds answers in the Doc, their context.

    nlp (Language): The pipeline.
    name (str): The component's name.
    model (Model[Pairs, SpanScores]): The span head.
    questions (List[str]): What to ask of Docs that bring no questions of their own, in
        `doc._.questions` or in a context of `as_tuples`.
    max_answer_length (int): The longest answer, in wordpieces.
    alternatives (int): How many more answers to give, none of which overlaps a better one.
    no_answer_threshold (Optional[float]): No answer is given where `no_answer_score` is above this
        probability. None: tuned on the dev set in training.
    spans_key (str): The span group for the answers.
    scorer (Optional[Callable]): The scorer.
    """
    return BertQA(
        nlp.vocab,
        model,
        name,
        questions=questions,
        max_answer_length=max_answer_length,
        alternatives=alternatives,
        no_answer_threshold=no_answer_threshold,
        spans_key=spans_key,
        scorer=scorer,
    )


# --- scores


def make_qa_scorer() -> Callable:
    """RETURNS (Callable): The scorer."""
    return score_qa


def score_qa(examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
    """Score answers as the official script of SQuAD 2.0 does (Rajpurkar et al. 2016, section 6.1;
    2018). Texts in Chinese, Japanese and Thai are compared character by character.

    examples (Iterable[Example]): The examples.
    RETURNS (Dict[str, Any]): `qa_exact` and `qa_f1`, the official figures as fractions;
        `qa_per_type`, the same for questions with and without an answer; None without any question.
    RAISES (ValueError): If a reference has questions that were not asked of the prediction.
    """
    figures: dict[str, list[tuple[float, float]]] = {"answer": [], "no answer": []}
    for example in examples:
        lang = example.reference.lang_
        for gold, predicted in match_predictions(example, "questions"):
            right = (0.0, 0.0)
            if predicted:
                right = compare_answers(predicted["text"], accepted(gold), lang)
            figures["answer" if gold["text"] else "no answer"].append(right)
    rows = [*figures["answer"], *figures["no answer"]]
    if not rows:
        return {"qa_exact": None, "qa_f1": None, "qa_per_type": None}
    return {
        "qa_exact": sum(exact for exact, _ in rows) / len(rows),
        "qa_f1": sum(f1 for _, f1 in rows) / len(rows),
        "qa_per_type": {
            kind: {
                "exact": sum(exact for exact, _ in some) / len(some),
                "f1": sum(f1 for _, f1 in some) / len(some),
                "count": len(some),
            }
            for kind, some in figures.items()
            if some
        },
    }


def accepted(gold: dict[str, Any]) -> list[str]:
    """gold (Dict[str, Any]): A true answer.
    RETURNS (List[str]): The texts that are right.
    """
    return [gold["text"], *(other["text"] for other in gold.get("alternatives", ()))]


def compare_answers(predicted: str, gold: Sequence[str], lang: str = "en") -> tuple[float, float]:
    """Compare an answer with those that are right, and take the best of each figure.

    predicted (str): The answer; empty for none.
    gold (Sequence[str]): The right ones; empty where there is none.
    lang (str): The language's code.
    RETURNS (Tuple[float, float]): Whether it is the same after normalisation, and the F1 of the
        words that both have in common.
    """
    guess = answer_words(predicted, lang)
    # What is nothing but punctuation and articles is no answer, unless there is nothing else.
    truths = [words for words in (answer_words(text, lang) for text in gold) if words] or [[]]
    return (
        float(max(guess == truth for truth in truths)),
        max(overlap(guess, truth) for truth in truths),
    )


def answer_words(text: str, lang: str) -> list[str]:
    """text (str): An answer.
    lang (str): The language's code.
    RETURNS (List[str]): Its words, or its characters, in lower case, without punctuation and, as
        the official script has it, without English articles.
    """
    text = text.lower()
    if lang in ("zh", "ja", "th"):
        return [c for c in text if not c.isspace() and unicodedata.category(c)[0] not in "PS"]
    text = "".join(c for c in text if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def overlap(guess: list[str], truth: list[str]) -> float:
    """guess (List[str]): The words of an answer.
    truth (List[str]): Those of a right one.
    RETURNS (float): The F1 of one to the other.
    """
    if not guess or not truth:
        return float(guess == truth)
    common = sum((Counter(guess) & Counter(truth)).values())
    return 2 * common / (len(guess) + len(truth))


# --- spans


class BestSpans(NamedTuple):
    """The best spans of each pair, best first."""

    starts: Ints2d  # (n_pairs, n_best) characters of the Doc, 0 where there are no more
    ends: Ints2d
    scores: NDArray[np.float64]  # (n_pairs, n_best) probabilities, 0 where there are no more
    no_answer: Floats1d  # (n_pairs,) the probability of no answer against the best span


def best_spans(
    logits: NDArray, sequences: PairSequences, *, max_length: int, n_best: int
) -> BestSpans:
    """Find the best spans by array operations over a whole batch.

    A span's logit is that of its start plus that of its end in one window; its start must be in
    the window that holds it best (`run_squad.py` in google-research/bert). Logits of all windows
    of a question are compared, and the softmax goes over all of its spans and "no answer" (Clark
    & Gardner 2018, section 3.2). The logit of "no answer" is that of [CLS] as start and end in the
    window where it is lowest: the others may just be the wrong windows.

                 end of a span, counted from its start
                  0     1     2   …  max_length - 1
    piece 0      s+e   s+e   s+e
    piece 1      s+e   s+e    -          - the window ends
    piece 2      s+e    -     -

    logits (NDArray): Of starts and ends (n_slots, 2).
    sequences (PairSequences): The pairs.
    max_length (int): The longest span, in wordpieces.
    n_best (int): How many spans to find. None of them overlaps a better one.
    RETURNS (BestSpans): The spans.
    """
    n_pairs = len(sequences.windows)
    base = np.cumsum(sequences.lengths) - sequences.lengths
    pair_of = np.repeat(np.arange(n_pairs), sequences.windows)
    null = np.full(n_pairs, np.inf)
    np.minimum.at(null, pair_of, logits[base].sum(axis=1, dtype=np.float64))

    # Only pieces that hold characters can start or end an answer.
    slots = np.flatnonzero(sequences.ends > sequences.starts)
    window = np.repeat(np.arange(len(base)), sequences.lengths)[slots]
    reach = np.arange(max_length)
    at = np.minimum(np.arange(len(slots))[:, None] + reach, max(len(slots) - 1, 0))
    inside = np.arange(len(slots))[:, None] + reach < len(slots)
    inside &= (window[at] == window[:, None]) & sequences.best[slots][:, None]
    spans = np.where(inside, logits[slots, :1] + logits[slots, 1][at], -np.inf)
    pairs = pair_of[window]
    sizes = np.bincount(pairs, minlength=n_pairs)

    starts, ends = np.zeros((2, n_pairs, n_best), dtype=np.int64)
    best = np.full((n_pairs, n_best), -np.inf)
    first_char, last_char = sequences.starts[slots], sequences.ends[slots][at]
    free = spans
    for k in range(n_best):
        found, rows, columns = best_of_each(free, sizes)
        best[found, k] = free[rows, columns]
        starts[found, k], ends[found, k] = first_char[rows], last_char[rows, columns]
        if k + 1 < n_best:
            taken = first_char[:, None] < ends[pairs, k, None]
            free = np.where(taken & (last_char > starts[pairs, k, None]), -np.inf, free)
    # The sum over all spans, relative to the greatest of them lest it overflow.
    top = np.maximum(best[:, 0], null)
    row_sums = np.exp(spans - top[pairs, None]).sum(axis=1)
    total = np.exp(null - top) + np.bincount(pairs, weights=row_sums, minlength=n_pairs)
    scores = np.exp(best - (top + np.log(total))[:, None])
    return BestSpans(starts, ends, scores, np.exp(null - np.logaddexp(null, best[:, 0])))


def best_of_each(spans: NDArray, sizes: Ints1d) -> tuple[Ints1d, Ints1d, Ints1d]:
    """Find the greatest element of each group of rows; of equals the first.

    spans (NDArray): (sum(sizes), max_length); -inf where there is nothing.
    sizes (Ints1d): The rows of each group (n_groups,).
    RETURNS (Tuple[Ints1d, Ints1d, Ints1d]): The groups that have one, its row and its column.
    """
    row_best = spans.max(axis=1, initial=-np.inf)
    group = np.repeat(np.arange(len(sizes)), sizes)
    greatest = np.full(len(sizes), -np.inf)
    np.maximum.at(greatest, group, row_best)
    rows = np.flatnonzero((row_best == greatest[group]) & (row_best > -np.inf))
    found, first = np.unique(group[rows], return_index=True)
    rows = rows[first]
    return found, rows, spans[rows].argmax(axis=1)


class BertQA(BertPairHead):
    """Write an answer to each of `doc._.questions` to `doc._.answers`, and to a span group.

    vocab (Vocab): The vocabulary.
    model (Model[Pairs, SpanScores]): The span head.
    name (str): The component's name.
    questions (Sequence[str]): What to ask of Docs that bring no questions of their own.
    max_answer_length (int): The longest answer, in wordpieces.
    alternatives (int): How many more answers to give.
    no_answer_threshold (Optional[float]): No answer is given where `no_answer_score` is above it.
        None: the first evaluation that follows an update (in `spacy train` that of the dev set)
        sets it to what gives the best F1 there, for the evaluations after it and for saving.
    spans_key (str): The span group for the answers. A span's label is the number of its question,
        Q1, Q2, ….
    scorer (Optional[Callable]): The scorer.
    RAISES (ValueError): If a setting makes no sense.
    """

    input_name = "questions"
    doc_first = False
    n_classes = 2  # start and end

    def __init__(
        self,
        vocab: Vocab,
        model: Model[Pairs, SpanScores],
        name: str = "bert_qa",
        *,
        questions: Sequence[str] = (),
        max_answer_length: int = 30,
        alternatives: int = 0,
        no_answer_threshold: float | None = None,
        spans_key: str = "answers",
        scorer: Callable | None = score_qa,
    ) -> None:
        if max_answer_length < 1:
            raise ValueError(f"max_answer_length is {max_answer_length}; it must be 1 or more.")
        if alternatives < 0:
            raise ValueError(f"alternatives is {alternatives}; it must be 0 or more.")
        if no_answer_threshold is not None and not 0 <= no_answer_threshold <= 1:
            raise ValueError(
                f"no_answer_threshold is {no_answer_threshold}; it must be a probability, 0 to 1."
            )
        super().__init__(vocab, model, name, texts=questions, scorer=scorer)
        self.cfg["no_answer_threshold"] = 0.5
        self.max_answer_length, self.alternatives = max_answer_length, alternatives
        self.fixed_threshold, self.spans_key = no_answer_threshold, spans_key
        self._tunes = False

    @property
    def no_answer_threshold(self) -> float:
        """RETURNS (float): The threshold in force."""
        if self.fixed_threshold is not None:
            return self.fixed_threshold
        return self.cfg["no_answer_threshold"]

    # --- there are no labels

    @property
    def label_data(self) -> None:  # type: ignore[override]
        """RETURNS (None): There are no labels."""
        return None

    def add_label(self, label: str) -> int:
        """RAISES (ValueError): There are no labels."""
        raise ValueError(f"{self.name} answers questions; it has no labels.")

    def _check_labels(self) -> None:
        pass

    # --- training

    def initialize(  # type: ignore[override]
        self, get_examples: Callable[[], Iterable[Example]], *, nlp: Language | None = None
    ) -> None:
        """Make the weights.

        get_examples (Callable): Returns examples; if every question in them has an answer, the
            threshold begins where one is always given.
        nlp (Optional[Language]): The pipeline.
        RAISES (ValueError): If there is no encoder that reads pairs.
        """
        super().initialize(get_examples, nlp=nlp, labels=())
        always = True
        for example in get_examples():
            self.check_gold(example)
            always = always and all(entry["text"] for _, entry in self.gold_pairs(example))
        self.cfg["no_answer_threshold"] = 1.0 if always else 0.5

    def check_gold(self, example: Example) -> None:
        doc_text = ""
        for question, entry in self.gold_pairs(example):
            doc_text = doc_text or example.reference.text
            match entry:
                case {"text": str(text), "start_char": int(start), "end_char": int(end)} if (
                    0 <= start <= end and doc_text[start:end] == text
                ):
                    pass
                case _:
                    raise ValueError(
                        f"The true answer to '{question}' needs a text that is "
                        f"doc.text[start_char:end_char], but it is {entry!r}. Make it with "
                        "spacy_bert_heads.pairs.make_answer(doc, start, end)."
                    )

    def gold_answers(self, examples: Iterable[Example]) -> Ints2d:
        entries = [entry for eg in examples for _, entry in self.gold_pairs(eg)]
        places = [(entry["start_char"], entry["end_char"]) for entry in entries]
        return np.asarray(places, dtype=np.int64).reshape(-1, 2)

    def update(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, float]:
        self._tunes = self.fixed_threshold is None
        return super().update(examples, **kwargs)

    update.__doc__ = BertPairHead.update.__doc__

    def get_loss(self, examples: Iterable[Example], scores: SpanScores) -> tuple[float, Any]:
        """Softmax cross-entropy of start and end over the pieces of each window and [CLS], which
        stands for "not here", averaged over windows (BERT, sections 4.2 and 4.3).

        examples (Iterable[Example]): The batch.
        scores (SpanScores): Logits (n_slots, 2).
        RETURNS (Tuple[float, Floats2d]): The loss in nats, and its gradient by the logits.
        """
        sequences = scores.sequences
        lengths = sequences.lengths
        base = np.cumsum(lengths) - lengths
        assert sequences.targets is not None
        known = sequences.targets[:, 0] >= 0
        candidate = sequences.starts >= 0
        candidate[base] = True
        logits = np.where(candidate[:, None], to_numpy(scores.logits), -np.inf)
        logits -= np.repeat(np.maximum.reduceat(logits, base), lengths, axis=0)
        exps = np.exp(logits)
        sums_ = np.add.reduceat(exps, base)
        gradient = exps / np.repeat(sums_, lengths, axis=0)
        loss = 0.0
        for column in range(2):
            slots = base + np.maximum(sequences.targets[:, column], 0)
            loss += (np.log(sums_[:, column]) - logits[slots, column])[known].sum()
            gradient[slots, column] -= 1
        share = 0.5 / max(int(known.sum()), 1)
        gradient *= share * np.repeat(known, lengths)[:, None]
        xp = get_array_module(scores.logits)
        return float(share * loss), xp.asarray(gradient, dtype=scores.logits.dtype)

    # --- predicting

    def read_out(self, scores: SpanScores) -> Iterator[tuple[list, float]]:
        """scores (SpanScores): The model's scores for some pairs.
        YIELDS (Tuple[list, float]): Of each pair the best spans (start, end, probability), best
            first, and the probability that there is no answer.
        """
        best = best_spans(
            to_numpy(scores.logits),
            scores.sequences,
            max_length=self.max_answer_length,
            n_best=1 + self.alternatives,
        )
        spans = np.stack((best.starts, best.ends), axis=-1).tolist()
        rows = zip(spans, best.scores.tolist(), best.no_answer.tolist(), strict=True)
        for places, probabilities, no_answer in rows:
            found = zip(places, probabilities, strict=True)
            yield [(*place, p) for place, p in found if place[1] > place[0]], no_answer

    def set_annotations(self, docs: Sequence[Doc], results: list) -> None:
        """Write the answers.

        docs (Sequence[Doc]): The Docs.
        results (list): What `predict` gave.
        """
        for doc, (texts, rows) in zip(docs, results, strict=True):
            if not texts:
                if drop_results(doc, self.output_name):
                    doc.spans.pop(self.spans_key, None)
                continue
            doc_text = doc.text
            answers = [row and self._answer(doc, doc_text, *row) for row in rows]
            given = [(i, answer) for i, answer in enumerate(answers) if answer and answer["text"]]
            doc._.answers = answers
            doc.spans[self.spans_key] = SpanGroup(
                doc,
                name=self.spans_key,
                spans=[Span(doc, a["start"], a["end"], label=f"Q{i + 1}") for i, a in given],
                attrs={"scores": [answer["score"] for _, answer in given]},
            )

    def _answer(
        self, doc: Doc, doc_text: str, spans: list[tuple[int, int, float]], no_answer: float
    ) -> dict[str, Any]:
        make = partial(make_answer, doc, doc_text=doc_text, no_answer_score=no_answer)
        found = []
        for start, end, score in spans:
            # Some tokenizers make pieces of white space, and an answer may begin with one.
            text = doc_text[start:end]
            start += len(text) - len(text.lstrip())
            end -= len(text) - len(text.rstrip())
            if start < end:
                found.append(make(start, end, score=score))
        if found and no_answer <= self.no_answer_threshold:
            return {**found[0], "alternatives": found[1:]}
        # The best span stands behind "no answer", for whoever wants another threshold.
        return make(score=no_answer, alternatives=found)

    # --- the threshold

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Score the examples that are annotated for this head; after an update, then set the
        threshold to what would have been best for them.

        examples (Iterable[Example]): The examples.
        RETURNS (Dict[str, Any]): The scores, with the threshold that was in force.
        """
        examples = list(examples)
        scores = super().score(examples, **kwargs)
        tuned = best_threshold(examples) if self._tunes else None
        if tuned is not None:
            self._tunes = False
            self.cfg["no_answer_threshold"] = tuned
        return scores


def best_threshold(examples: Iterable[Example]) -> float | None:
    """Find the threshold with the best F1 (the `best_f1_thresh` of SQuAD 2.0's script, for
    probabilities).

    examples (Iterable[Example]): Examples with predicted answers.
    RETURNS (Optional[float]): The threshold, halfway between two questions, to as many digits as
        are saved; 1 if an answer should always be given, 0 if never; None without questions.
    """
    rows = []
    for example in examples:
        lang = example.reference.lang_
        for gold, predicted in match_predictions(example, "questions"):
            if predicted is None:
                continue
            span = next(iter([predicted] if predicted["text"] else predicted["alternatives"]), None)
            _, f1 = compare_answers(span["text"] if span else "", accepted(gold), lang)
            rows.append((predicted["no_answer_score"], f1, float(not gold["text"])))
    if not rows:
        return None
    rows.sort()
    no_answer, with_span, without = np.asarray(rows, dtype=np.float64).reshape(-1, 3).T
    # Answering the first k of them, refusing the others.
    totals = np.append(0.0, with_span.cumsum()) + np.append(without[::-1].cumsum()[::-1], 0.0)
    bounds = np.concatenate([[0.0], (no_answer[:-1] + no_answer[1:]) / 2, [1.0]])[: len(totals)]
    distinct = np.append(np.append(True, no_answer[:-1] < no_answer[1:])[: len(rows)], True)
    totals[~distinct] = -1.0
    # Of equal thresholds the highest: it gives more answers.
    return round(float(bounds[len(totals) - 1 - totals[::-1].argmax()]), 9)
