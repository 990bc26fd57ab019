"""Where in a text the answer to a question stands, or that there is none."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from spacy.language import Language
from spacy.tokens import Doc, Span, SpanGroup
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from ..data.annotations import read_questions, set_questions
from ..data.records import Settings
from ..encoder.listener import DEFAULT_LISTENER
from ..encoder.model import PackedPairs
from ..text.doc_data import (
    drop_results,
    get_answers,
    make_answer,
    register_extension,
    set_value,
)
from .answers import best_spans, best_threshold, score_qa
from .declared import HFClasses, Score, score_weights
from .losses import mean_over
from .outputs import SpanLogits
from .pair_head import BertPairHead
from .qa_windows import choose_windows

DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.SpanHead.v1",
    "dropout": 0.0,
    "rate_factor": 1.0,
    "tok2vec": DEFAULT_LISTENER,
}
SCORES = {
    "qa_f1": Score("QA F1", 1.0),
    "qa_exact": Score("QA exact"),
    "qa_per_type": Score("QA"),
}


@Language.factory(
    "bert_qa",
    assigns=["doc._.answers", "doc._.questions", "doc.spans"],
    default_config={
        "model": DEFAULT_MODEL,
        "questions": [],
        "max_answer_length": 30,
        "alternatives": 0,
        "no_answer_threshold": None,
        "spans_key": None,
        "scorer": {"@scorers": "spacy_bert_heads.qa_scorer.v1"},
    },
    default_score_weights=score_weights(SCORES),
)
def make_bert_qa(
    nlp: Language,
    name: str,
    model: Model[PackedPairs, SpanLogits],
    questions: list[str],
    max_answer_length: int,
    alternatives: int,
    no_answer_threshold: float | None,
    spans_key: str | None,
    scorer: Callable | None,
) -> "BertQA":
    """Create a component that finds answers in the Doc, their context.

    nlp (Language): The pipeline.
    name (str): The component's name.
    model (Model[PackedPairs, SpanLogits]): The span head.
    questions (List[str]): What to ask of Docs that bring no questions of their own, in
        `doc._.questions` or in a context of `as_tuples`.
    max_answer_length (int): The longest answer, in wordpieces.
    alternatives (int): How many more answers to give, none of which overlaps a better one.
    no_answer_threshold (Optional[float]): No answer is given where `no_answer_score` is above this
        probability. None: tuned on the dev set in training.
    spans_key (Optional[str]): A span group for the answers; None for none. A group does not
        survive spaCy's retokenizer, which leaves its spans where they were.
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


def make_qa_scorer() -> Callable:
    """Give the scorer."""
    return score_qa


def log_sum_exp(logits: torch.Tensor, groups: torch.Tensor, n_groups: int) -> torch.Tensor:
    """The logarithm of the sum of exponentials of each group of rows, column by column: logits
    (n, 2) with the number of each row's group (n,) become (n_groups, 2)."""
    index = groups[:, None].expand_as(logits)
    tops = torch.full((n_groups, logits.shape[1]), -torch.inf, device=logits.device)
    tops = tops.scatter_reduce(0, index, logits.detach(), "amax")
    sums = torch.zeros_like(tops).index_add(0, groups, (logits - tops[groups]).exp())
    return sums.log() + tops


class BertQA(BertPairHead):
    """Write an answer to each of `doc._.questions` to `doc._.answers`, and to a span group.

    vocab (Vocab): The vocabulary.
    model (Model[PackedPairs, SpanLogits]): The span head.
    name (str): The component's name.
    questions (Sequence[str]): What to ask of Docs that bring no questions of their own.
    max_answer_length (int): The longest answer, in wordpieces.
    alternatives (int): How many more answers to give.
    no_answer_threshold (Optional[float]): No answer is given where `no_answer_score` is above it.
        None: the first evaluation that follows an update (in `spacy train` that of the dev set)
        sets it to what gives the best F1 there, for the evaluations after it and for saving.
    spans_key (Optional[str]): The span group for the answers; None for none. A span's label is the
        number of its question, Q1, Q2, ….
    scorer (Optional[Callable]): The scorer.
    RAISES (ValueError): If a setting makes no sense.
    """

    factory = "bert_qa"
    scores = SCORES
    input_name, output_name = "questions", "answers"
    doc_first = False
    json_keys = ("questions",)
    # An answer needs context on both sides, and the question takes its share of the window: as long
    # a one as in BERT's own SQuAD code, and overlaps of 128 as in Hugging Face's.
    encoder_settings = {"window": 384, "stride": 256}
    hf_task = "question-answering"
    n_classes = 2  # start and end

    def __init__(
        self,
        vocab: Vocab,
        model: Model[PackedPairs, SpanLogits],
        name: str = "bert_qa",
        *,
        questions: Sequence[str] = (),
        max_answer_length: int = 30,
        alternatives: int = 0,
        no_answer_threshold: float | None = None,
        spans_key: str | None = None,
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

    def check_labels(self) -> None:
        pass

    # --- data, and exchange with Hugging Face

    @classmethod
    def set_extensions(cls) -> None:
        # Answers come first with a getter of their own; the base finds them registered.
        setter = partial(set_value, cls.output_name)
        register_extension(Doc, cls.output_name, getter=get_answers, setter=setter)
        super().set_extensions()

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Settings) -> None:
        set_questions(doc, read_questions(value, doc), settings)

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        return 1

    @classmethod
    def read_hf(cls, config: Any, names: Sequence[str], checkpoint: str) -> HFClasses:
        if len(names) != cls.n_classes:
            raise ValueError(
                f"'{checkpoint}' has {len(names)} outputs; answers need a start and an end."
            )
        return HFClasses({}, [], [0, 1], [False, False])

    def start_from_hf(self, labels: Sequence[str]) -> None:
        # Hugging Face's pipelines always answer, unless asked not to. Training tunes this.
        self.cfg["no_answer_threshold"] = 1.0

    def hf_names(self) -> list[str]:
        return ["LABEL_0", "LABEL_1"]

    # --- training

    def initialize(  # type: ignore[override]
        self, get_examples: Callable[[], Iterable[Example]], *, nlp: Language | None = None
    ) -> None:
        """Make the weights. Raises ValueError if there is no encoder that reads pairs."""
        super().initialize(get_examples, nlp=nlp, labels=())

    def start_from_data(self, examples: Iterable[Example]) -> None:
        """Start the threshold where an answer is always given, if every question has one."""
        always = True
        for example in examples:
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

    def begin_update(self, examples: list[Example]) -> tuple[SpanLogits, Callable] | None:
        """Run the model with a graph on windows of the annotated pairs, see `choose_windows`."""
        pairs = self.pack_annotated(examples)
        if pairs is None:
            return None
        entries = [entry for eg in examples for _, entry in self.gold_pairs(eg)]
        places = [(entry["start_char"], entry["end_char"]) for entry in entries]
        batch, targets = choose_windows(pairs.batch, np.asarray(places, dtype=np.int64))
        output, backprop = self.model.begin_update(pairs._replace(batch=batch))
        return output._replace(targets=targets), backprop

    def update(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, float]:
        self._tunes = self.fixed_threshold is None
        return super().update(examples, **kwargs)

    update.__doc__ = BertPairHead.update.__doc__

    def loss(self, examples: Sequence[Example], output: SpanLogits) -> torch.Tensor:
        """Softmax cross-entropy in nats of start and end, over the wordpieces of each window and
        [CLS], which stands for "not here"; a mean over windows (BERT, sections 4.2 and 4.3)."""
        batch, targets = output.batch, output.targets
        assert batch.offsets is not None and targets is not None
        device = output.logits.device
        begins = batch.cu_seqlens[:-1]
        candidate = batch.offsets.starts >= 0
        candidate[begins] = True
        window = np.repeat(np.arange(len(begins)), batch.seqlens)[candidate]
        logits = output.logits[torch.from_numpy(np.flatnonzero(candidate)).to(device)]
        sums = log_sum_exp(logits, torch.from_numpy(window).to(device), len(begins))
        known = targets[:, 0] >= 0
        positions = torch.from_numpy(begins[:, None] + np.maximum(targets, 0)).to(device)
        losses = (sums - output.logits.gather(0, positions)).sum(1)
        total = 0.5 * (losses * torch.from_numpy(known).to(device)).sum()
        return mean_over(total, int(known.sum()))

    # --- predicting

    def read_out(self, output: SpanLogits) -> Iterator[tuple[list, float]]:
        """Give for each pair its best spans (start, end, probability), best first, and the
        probability that there is no answer."""
        best = best_spans(
            output.logits.float().cpu().numpy(),
            output.batch,
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
                if drop_results(doc, self.output_name) and self.spans_key is not None:
                    doc.spans.pop(self.spans_key, None)
                continue
            doc_text = doc.text
            answers = [row and self._answer(doc, doc_text, *row) for row in rows]
            set_value("answers", doc, answers)
            if self.spans_key is None:
                continue
            given = [(i, answer) for i, answer in enumerate(answers) if answer and answer["text"]]
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
