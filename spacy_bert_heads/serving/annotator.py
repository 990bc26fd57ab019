"""A pipeline as a function from queries to plain records."""

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
FAILED = "This text could not be annotated. The server's log says where that failed."


@dataclass(frozen=True)
class Query:
    """A text, and what is asked of it."""

    text: str
    questions: Sequence[str] = ()
    hypotheses: Sequence[str] = ()
    categories: Mapping[str, str] = field(default_factory=dict)  # each with its hypothesis
    softmax: str | None = None  # of the categories, see `make_bert_nli`; None is the pipeline's
    others: Sequence[str] = ()  # to compare the text with
    choices: Sequence[dict[str, Any]] = ()  # each with "options" and a "question", which may be ""

    @property
    def second_texts(self) -> list[str]:
        """All that is read beside the text."""
        options = (text for choice in self.choices for text in BertChoice.texts_of(choice))
        texts = (self.questions, self.hypotheses, self.categories.values(), self.others, options)
        return list(chain.from_iterable(texts))

    @property
    def cost(self) -> int:
        """The number of wordpieces that the encoder reads, estimated by bytes: exact enough to
        bound the time of a batch, at no price."""
        second = self.second_texts
        sizes = [len(text.encode()) for text in (self.text, *second)]
        return (sizes[0] * len(second) + sum(sizes)) // BYTES_PER_WORDPIECE + 2 * len(second) + 2


Record = dict[str, Any]


class Annotator:
    """A pipeline that answers queries, in batches, from one thread.

    Raises ValueError if the pipeline annotates nothing.
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
        """Whether questions can be asked."""
        return self.qa is not None

    @property
    def judges_hypotheses(self) -> bool:
        """Whether hypotheses can be asked."""
        return self.nli is not None

    @property
    def compares(self) -> bool:
        """Whether other texts can be compared with a text."""
        return self.similarity is not None

    @property
    def chooses(self) -> bool:
        """Whether there can be options to choose from."""
        return self._find(BertChoice) is not None

    @property
    def classifies(self) -> bool:
        """Whether categories can be asked: hypotheses, of which one verdict is "entailment"."""
        try:
            return self.nli is not None and bool(self.nli.entailment)
        except ValueError:
            return False

    def labels(self, kind: str) -> list[str]:
        """List the labels of a kind of annotation; of "entities" those of all components that say
        which they have."""
        if kind != "entities":
            return list(self.columns.labels.get(kind, ()))
        assigns = {name: self.nlp.get_pipe_meta(name).assigns for name in self.nlp.pipe_names}
        makers = [name for name, places in assigns.items() if "doc.ents" in places]
        found = [label for one in makers for label in getattr(self.nlp.get_pipe(one), "labels", ())]
        return list(dict.fromkeys(found))

    def complete(self, query: Query) -> Query:
        """Add to a query what the pipeline asks of texts that bring nothing, so that it counts."""
        questions = query.questions or (self.qa.texts if self.qa else ())
        hypotheses = query.hypotheses or (self.nli.texts if self.nli else ())
        others = query.others or (self.similarity.texts if self.similarity else ())
        return replace(query, questions=questions, hypotheses=hypotheses, others=others)

    def annotate(self, queries: Sequence[Query]) -> list[Record]:
        """Answer queries: a record for each, or {"error": …} for one that fails. Where a batch
        fails, its halves are tried apart, so that a bad text takes no other with it."""
        try:
            return self._annotate(queries)
        except Exception as error:
            if len(queries) == 1:
                if isinstance(error, TextTooLong):  # which says what to do
                    return [{"error": str(error)}]
                log_error(error)
                return [{"error": FAILED}]
        half = len(queries) // 2
        return self.annotate(queries[:half]) + self.annotate(queries[half:])

    def _annotate(self, queries: Sequence[Query]) -> list[Record]:
        with self.nlp.memory_zone():  # what is learned of new words is forgotten afterwards
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
        """Add what the categories of queries come to, under "zero_shot"."""
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
    """Log where an error is from, but not its message, which may have a user's text in it."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{one.filename}:{one.lineno} {one.name}" for one in reversed(frames[-6:]))
    logger.error("%s at %s", type(error).__name__, places)
