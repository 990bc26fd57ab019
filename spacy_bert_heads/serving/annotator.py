"""Run a pipeline on queries, and return plain records."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, compress
from typing import Any, TypeVar

from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import logger

from ..annotate.records import DIGITS, Columns
from ..heads.choice import BertChoice
from ..heads.nli import BertNLI
from ..heads.qa import BertQA
from ..heads.similarity import BertSimilarity
from ..text.pairs import TextTooLong
from ..text.user_data import set_value

BYTES_PER_WORDPIECE = 4  # of UTF-8: 4.3 in English, 3 in Chinese
Head = TypeVar("Head")
FAILED = "This text could not be annotated. The server's log has the location of the error."


@dataclass(frozen=True)
class Query:
    """Hold a text with its questions, hypotheses and other second texts."""

    text: str
    questions: Sequence[str] = ()
    hypotheses: Sequence[str] = ()
    categories: Mapping[str, str] = field(default_factory=dict)  # each with its hypothesis
    softmax: str | None = None  # of the categories, see `make_bert_nli`; None is the pipeline's
    others: Sequence[str] = ()  # to compare the text with
    choices: Sequence[dict[str, Any]] = ()  # each with "options" and a "question", which may be ""

    @property
    def second_texts(self) -> list[str]:
        """Return all texts that are read together with the text."""
        options = (text for choice in self.choices for text in BertChoice.texts_of(choice))
        texts = (self.questions, self.hypotheses, self.categories.values(), self.others, options)
        return list(chain.from_iterable(texts))

    @property
    def cost(self) -> int:
        """Return an estimate of the wordpieces that the encoder reads, based on the number of
        bytes: accurate enough to bound the time of a batch, and it costs nothing."""
        second = self.second_texts
        sizes = [len(text.encode()) for text in (self.text, *second)]
        return (sizes[0] * len(second) + sum(sizes)) // BYTES_PER_WORDPIECE + 2 * len(second) + 2


Record = dict[str, Any]


class Annotator:
    """Answer queries with a pipeline, in batches, from one thread.

    Raises ValueError if the pipeline sets no annotations.
    """

    def __init__(self, nlp: Language) -> None:
        self.nlp = nlp
        self.columns = Columns.of(nlp)
        self.nli, self.qa = self._find(BertNLI), self._find(BertQA)
        self.similarity = self._find(BertSimilarity)

    def _find(self, head: type[Head]) -> Head | None:
        return next((one for _, one in self.nlp.pipeline if isinstance(one, head)), None)

    @property
    def answers_questions(self) -> bool:
        """Return whether the pipeline answers questions."""
        return self.qa is not None

    @property
    def judges_hypotheses(self) -> bool:
        """Return whether the pipeline judges hypotheses."""
        return self.nli is not None

    @property
    def compares(self) -> bool:
        """Return whether the pipeline compares texts."""
        return self.similarity is not None

    @property
    def chooses(self) -> bool:
        """Return whether the pipeline chooses among options."""
        return self._find(BertChoice) is not None

    @property
    def classifies(self) -> bool:
        """Return whether zero-shot categories are supported: `bert_nli` has a label
        "entailment"."""
        try:
            return self.nli is not None and bool(self.nli.entailment)
        except ValueError:
            return False

    def labels(self, kind: str) -> list[str]:
        """Return the labels of a kind of annotation; for "entities", those of all components that
        list their labels."""
        if kind != "entities":
            return list(self.columns.labels.get(kind, ()))
        assigns = {name: self.nlp.get_pipe_meta(name).assigns for name in self.nlp.pipe_names}
        makers = [name for name, places in assigns.items() if "doc.ents" in places]
        found = [label for one in makers for label in getattr(self.nlp.get_pipe(one), "labels", ())]
        return list(dict.fromkeys(found))

    def complete(self, query: Query) -> Query:
        """Add the second texts of the pipeline's config to a query without its own, so that they
        are counted."""
        questions = query.questions or (self.qa.texts if self.qa else ())
        hypotheses = query.hypotheses or (self.nli.texts if self.nli else ())
        others = query.others or (self.similarity.texts if self.similarity else ())
        return replace(query, questions=questions, hypotheses=hypotheses, others=others)

    def annotate(self, queries: Sequence[Query]) -> list[Record]:
        """Return a record for each query, or {"error": …} if it fails. If a batch fails, its halves
        are retried separately, so that a bad text doesn't affect others."""
        try:
            return self._annotate(queries)
        except Exception as error:
            if len(queries) == 1:
                if isinstance(error, TextTooLong):  # the message says what to do
                    return [{"error": str(error)}]
                log_error(error)
                return [{"error": FAILED}]
        half = len(queries) // 2
        return self.annotate(queries[:half]) + self.annotate(queries[half:])

    def _annotate(self, queries: Sequence[Query]) -> list[Record]:
        with self.nlp.memory_zone():  # frees the strings of new words afterwards
            docs = list(self.nlp.pipe(map(self._make_doc, queries), batch_size=len(queries)))
            records = [self.columns.read(doc) for doc in docs]
            self._add_categories(queries, docs, records)
            return records

    def _make_doc(self, query: Query) -> Doc:
        doc = self.nlp.make_doc(query.text)
        for name in ("questions", "hypotheses", "others", "choices"):
            if asked := getattr(query, name):
                set_value(name, doc, list(asked))
        return doc

    def _add_categories(
        self, queries: Sequence[Query], docs: list[Doc], records: list[Record]
    ) -> None:
        """Add the probabilities of the queries' categories under "zero_shot"."""
        asked = [bool(query.categories) for query in queries]
        if self.nli is None or not any(asked):
            return
        found = self.nli.classify(
            list(compress(docs, asked)),
            [(query.categories, query.softmax) for query in compress(queries, asked)],
        )
        for record, scores in zip(compress(records, asked), found, strict=True):
            record["zero_shot"] = {label: round(score, DIGITS) for label, score in scores.items()}


def log_error(error: BaseException) -> None:
    """Log the location of an error, but not its message, which may contain a user's text."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{one.filename}:{one.lineno} {one.name}" for one in reversed(frames[-6:]))
    logger.error("%s at %s", type(error).__name__, places)
