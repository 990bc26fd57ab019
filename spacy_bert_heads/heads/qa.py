"""Extractive question answering: where a text answers a question, or that it does not."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from ..data.annotations import read_questions, set_questions
from ..data.records import Settings
from ..encoder.listener import DEFAULT_LISTENER
from ..encoder.model import EncoderModel, PackedPairs, checkpoint_of, shim_of
from ..text.doc_data import drop_results, get_answers, make_answer, register_extension
from ..text.pairs import NoRoomForAnswers, Pairs
from ..text.user_data import set_value
from .answers import KINDS, best_spans, best_threshold, check_answer, score_qa, tally_answers
from .calibrated import check_probability, rescale
from .claims import Claim, claim_answers
from .declared import HFClasses, Score, score_weights
from .entities import write_group
from .free_text import read_text
from .given_answers import apply_thresholds, group_rows, warn_unset
from .losses import span_divergence, span_loss
from .outputs import SpanLogits
from .pair_head import UnlabelledPairHead
from .qa_windows import (
    check_room,
    choose_windows,
    gold_characters,
    longest_everywhere,
    widen_to_tokens,
)
from .tallies import Counts, Floats, Tally, ratio

DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.SpanHead.v1",
    "dropout": 0.0,
    "learning_rate_multiplier": 1.0,
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
        "alignment": "token",
        "alternatives": 0,
        "no_answer_threshold": None,
        "spans_key": None,
        "temperature": None,
        "thresholds": None,
        "scorer": {"@scorers": "spacy_bert_heads.qa_scorer.v1"},
    },
    default_score_weights=score_weights(SCORES),
)
def make_bert_qa(
    nlp: Language,
    name: str,
    model: Model[PackedPairs, SpanLogits],
    questions: list[str] | str,
    max_answer_length: int,
    alignment: str,
    alternatives: int,
    no_answer_threshold: float | None,
    spans_key: str | None,
    temperature: float | None,
    thresholds: dict[str, float] | str | None,
    scorer: Callable | None,
) -> "BertQA":
    """Create a component that answers questions by spans of the Doc, their context.

    questions (List[str]): The questions for Docs that have none in `doc._.questions` or in a
        context of `as_tuples`. In a config file, questions with a "$" must be JSON in a string,
        see `as_setting`.
    max_answer_length (int): The maximum length of an answer in wordpieces. Windows of long Docs
        overlap as much as it needs, up to three quarters.
    alignment (str): "token" widens answers to the borders of spaCy's tokens. "char" keeps the
        borders of wordpieces, which can be inside of a word.
    alternatives (int): How many further answers to return. None of them overlaps a better one.
    no_answer_threshold (Optional[float]): If `no_answer_score` is above it, there is no answer.
        None tunes it on the dev set during training.
    spans_key (Optional[str]): Also write the answers to this span group. spaCy's retokenizer does
        not update span groups; `doc._.answers` stays correct.
    temperature (Optional[float]): Logits are divided by it. None takes that of `bert calibrate`.
    thresholds (Optional[Dict[str, float]]): An answer that is less probable than
        `thresholds["answer"]` becomes an alternative; the other key is "no answer".
    """
    questions, by_kind = read_text(nlp, name, questions=questions, thresholds=thresholds)
    return BertQA(
        nlp.vocab,
        model,
        name,
        questions=questions,
        max_answer_length=max_answer_length,
        alignment=alignment,
        alternatives=alternatives,
        no_answer_threshold=no_answer_threshold,
        spans_key=spans_key,
        temperature=temperature,
        thresholds=by_kind,
        scorer=scorer,
    )


def make_qa_scorer() -> Callable:
    return score_qa


class BertQA(UnlabelledPairHead):
    """Answer each of `doc._.questions` in `doc._.answers`. The settings are those of
    `make_bert_qa`; a value out of range raises ValueError.

    With `no_answer_threshold = None` the first evaluation after an update (in `spacy train` on the
    dev set) sets the threshold with the best F1 on its data, for later evaluations and for saving.
    In the span group `spans_key` a span's label is the number of its question: Q1, Q2, ….
    """

    factory = "bert_qa"
    scores = SCORES
    input_name, output_name = "questions", "answers"
    does = "answers questions"
    doc_first = False
    json_keys = ("questions",)
    annotation = "answers"
    made_by = "made with spacy_bert_heads.pairs.make_answer"
    # As in BERT's SQuAD code, because a window also has the question; Hugging Face's overlap, 128.
    encoder_settings = {"window": 384, "stride": 256}
    hf_task = "question-answering"
    n_classes = 2  # start and end
    threshold_labels = KINDS
    calibration_keys = ("temperature", "thresholds", "no_answer_threshold", "fixed_threshold")

    def __init__(
        self,
        vocab: Vocab,
        model: Model[PackedPairs, SpanLogits],
        name: str = "bert_qa",
        *,
        questions: Sequence[str] = (),
        max_answer_length: int = 30,
        alignment: str = "token",
        alternatives: int = 0,
        no_answer_threshold: float | None = None,
        spans_key: str | None = None,
        scorer: Callable | None = score_qa,
        **calibration: Any,
    ) -> None:
        if max_answer_length < 1:
            raise ValueError(f"max_answer_length is {max_answer_length}; it must be 1 or more.")
        if alignment not in ("token", "char"):
            raise ValueError(f"alignment of {name} is {alignment!r}; it must be 'token' or 'char'.")
        if alternatives < 0:
            raise ValueError(f"alternatives is {alternatives}; it must be 0 or more.")
        if no_answer_threshold is not None:
            check_probability("no_answer_threshold", no_answer_threshold)
        calibration["fixed_threshold"] = no_answer_threshold
        super().__init__(vocab, model, name, texts=questions, scorer=scorer, **calibration)
        self.cfg["no_answer_threshold"] = 0.5
        self.max_answer_length, self.alternatives = max_answer_length, alternatives
        self.alignment, self.spans_key = alignment, spans_key
        self._tunes = self._warned = False

    @property
    def fixed_threshold(self) -> float | None:
        """The threshold of the config, which evaluations don't tune; None if it has none."""
        return self.cfg["fixed_threshold"]

    @property
    def no_answer_threshold(self) -> float:
        """The threshold in use; 1, always answer, if it was never set or tuned, as by `from_hf`."""
        if self.fixed_threshold is not None:
            return self.fixed_threshold
        tuned = self.cfg["no_answer_threshold"]
        return 1.0 if tuned is None else tuned

    # --- data, and exchange with Hugging Face

    @classmethod
    def set_extensions(cls) -> None:
        # Registered before the base class does it, because answers have their own getter.
        setter = partial(set_value, cls.output_name)
        register_extension(Doc, cls.output_name, getter=get_answers, setter=setter)
        super().set_extensions()

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Settings) -> None:
        set_questions(doc, read_questions(value, doc), settings)

    def data_checks(self) -> list:
        from ..checks.pairs import check_answers

        passed = "all answers are in the text and can be given"
        return [*super().data_checks(), (check_answers, passed)]

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
        # Unset: it always answers, as Hugging Face's pipelines do. Training tunes it.
        self.cfg["no_answer_threshold"] = None

    def hf_names(self) -> list[str]:
        return ["LABEL_0", "LABEL_1"]

    # --- training

    def initialize(  # type: ignore[override]
        self, get_examples: Callable[[], Iterable[Example]], *, nlp: Language | None = None
    ) -> None:
        """Make the weights. Raises ValueError if there is no encoder that reads pairs, or its
        windows are too short for `max_answer_length`."""
        super().initialize(get_examples, nlp=nlp)
        self._check_room()

    def start_from_data(self, examples: Iterable[Example]) -> None:
        """Initialise the threshold: 1, always answer, if every question has an answer; else 0.5."""
        always = True
        for example in examples:
            self.check_gold(example)
            always = always and all(entry["text"] for _, entry in self.gold_pairs(example))
        self.cfg["no_answer_threshold"] = 1.0 if always else 0.5

    def check_gold(self, example: Example) -> None:
        doc_text = ""
        for question, entry in self.gold_pairs(example):
            doc_text = doc_text or example.reference.text
            check_answer(entry, question, doc_text)

    def begin_update(self, examples: list[Example]) -> tuple[SpanLogits, Callable] | None:
        """Run the model with a graph on windows of the annotated pairs, see `choose_windows`."""
        pairs = self.pack_annotated(examples)
        if pairs is None:
            return None
        own = [gold_characters(eg, [one for _, one in self.training_pairs(eg)]) for eg in examples]
        batch, targets = choose_windows(pairs.batch, np.concatenate(own))
        output, backprop = self.model.begin_update(pairs._replace(batch=batch))
        return output._replace(targets=targets), backprop

    def update(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, float]:
        self._tunes = self.fixed_threshold is None
        return super().update(examples, **kwargs)

    update.__doc__ = UnlabelledPairHead.update.__doc__

    def loss(self, examples: Sequence[Example], output: SpanLogits) -> torch.Tensor:
        return span_loss(output)

    def imitation_loss(self, output: SpanLogits, wanted: SpanLogits) -> torch.Tensor:
        return span_divergence(output, wanted)

    def tally(self, example: Example) -> Tally:
        return tally_answers(example)

    @classmethod
    def scores_of(cls, counts: Counts) -> dict[str, Floats]:
        sums = {name: counts[name].sum(axis=-1) for name in ("exact", "f1", "count")}
        return {f"qa_{name}": ratio(sums[name], sums["count"]) for name in ("exact", "f1")}

    # --- windows

    def _after_loading(self) -> None:
        super()._after_loading()
        self._check_room()

    def _encoder_models(self) -> Iterator[EncoderModel]:
        for listener in self._listeners():
            if listener.upstream is not None:
                yield listener.upstream.model
        yield from (node for node in self.model.walk() if node.name == "bert_encoder")

    def _check_room(self) -> None:
        """Raise ValueError if no question leaves room for the longest answer in a window."""
        for model in self._encoder_models():
            if shim_of(model).has_module:
                tokenizer, window = checkpoint_of(model).tokenizer, model.attrs["window"]
                check_room(self.name, self.max_answer_length, tokenizer, window)

    def pack(self, pairs: Pairs, *, is_train: bool = False) -> PackedPairs:
        """Pack pairs in windows that overlap enough for the longest answer at any place. For
        prediction, offsets are widened to tokens (`alignment`), and NoRoomForAnswers is raised if a
        question leaves too little room for that; in training the overlap is then smaller."""
        wanted = self.max_answer_length
        packed = super().pack(replace(pairs, longest_span=wanted), is_train=is_train)
        if is_train:
            return packed
        batch, room = packed.batch, longest_everywhere(packed.batch)
        lost = np.flatnonzero((batch.num_windows > 1) & (room < wanted)).tolist()
        if lost:
            texts = list(chain(*pairs.texts))
            raise NoRoomForAnswers(lost, [texts[i] for i in lost], int(room[lost].min()), wanted)
        if self.alignment == "token":
            batch = widen_to_tokens(batch, pairs.docs, pairs.num_pairs)
        return packed._replace(batch=batch)

    # --- predicting

    def read_out(self, output: SpanLogits) -> Iterator[tuple[list, float]]:
        """Yield for each pair its spans (start, end, probability), the best one first, and the
        probability that there is no answer."""
        best = best_spans(
            (output.logits.float() / self.temperature).cpu().numpy(),
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
        """Write the answers; `results` is what `predict` returned."""
        for doc, (texts, rows) in zip(docs, results, strict=True):
            if not texts:
                if drop_results(doc, self.output_name):
                    self._write_group(doc, [])
                continue
            doc_text = doc.text
            answers = [row and self._answer(doc, doc_text, *row) for row in rows]
            self._warn_unset(texts, answers)
            self.note_abstained(doc, apply_thresholds(answers, texts, self.reaches_threshold))
            set_value("answers", doc, answers)
            self._write_group(doc, answers)

    def _write_group(self, doc: Doc, answers: Sequence[dict[str, Any] | None]) -> None:
        if self.spans_key is not None:
            write_group(doc, group_rows(answers), self.name, self.spans_key)

    def _answer(
        self, doc: Doc, doc_text: str, spans: list[tuple[int, int, float]], no_answer: float
    ) -> dict[str, Any]:
        make = partial(make_answer, doc, doc_text=doc_text, no_answer_score=no_answer)
        found = [make(start, end, score=score) for start, end, score in spans]
        if found and no_answer <= self.no_answer_threshold:
            return {**found[0], "alternatives": found[1:]}
        # The best span becomes an alternative, for callers with another threshold.
        return make(score=no_answer, alternatives=found)

    def claims(self, examples: Sequence[Example], output: list) -> Iterator[Claim]:
        for example in examples:
            yield from claim_answers(example, (self.input_name, self.output_name))

    def truths(self, example: Example) -> dict[str, float]:
        return {kind: row["count"] for kind, row in tally_answers(example).items()}

    def set_temperature(self, temperature: float) -> None:
        """Change the temperature, and the "no answer" threshold so that decisions don't change."""
        factor = self.temperature / temperature
        super().set_temperature(temperature)
        tuned = self.cfg["no_answer_threshold"]
        self.cfg["no_answer_threshold"] = tuned if tuned is None else rescale(tuned, factor)
        if self.fixed_threshold is not None:
            self.cfg["fixed_threshold"] = rescale(self.fixed_threshold, factor)

    # --- the threshold

    def _warn_unset(self, questions: list[str], answers: list[dict[str, Any] | None]) -> None:
        """Warn once that no threshold is set, when an answer is less probable than "no answer".
        Only checkpoints from `from_hf` have never had a threshold."""
        is_set = (self.fixed_threshold, self.cfg["no_answer_threshold"]) != (None, None)
        if not is_set and not self._warned:
            self._warned = warn_unset(self.name, questions, answers)

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Score the examples that are annotated for this head. After an update, then set the
        threshold that would have been best for them."""
        examples = list(examples)
        scores = super().score(examples, **kwargs)
        tuned = best_threshold(examples) if self._tunes else None
        if tuned is not None:
            self._tunes = False
            self.cfg["no_answer_threshold"] = tuned
        return scores
