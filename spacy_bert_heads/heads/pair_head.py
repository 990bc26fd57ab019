"""The base class of the heads that read second texts, such as questions, with the Doc."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count
from typing import Any, NamedTuple

import srsly
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from ..encoder.listener import encoder_model_behind, pack_for
from ..encoder.model import PackedPairs
from ..text.doc_data import inputs_of, register_extension
from ..text.pairs import Pairs, TextTooLong
from ..text.user_data import copy_of_list, get_list, set_value
from .find import register_extensions
from .head import BertHead
from .unlabelled import UnlabelledHead

# Prediction runs at most this many characters at once, to limit the memory of hidden states.
MAX_CHARS = 2**18


class PairOutput(NamedTuple):
    """The inputs of a pair head for a batch, and the outputs of its model."""

    asked: list[list[Any]]  # the inputs of each Doc
    outputs: list[Any]  # of each part of the batch
    is_read: list[bool]  # for each pair; False if it was too long


class BertPairHead(BertHead):
    """The base class of the heads that read pairs of texts.

    A subclass defines the names of its inputs and results in `doc._` (`input_name`, `output_name`),
    which text comes first (`doc_first`), and how to check gold data (`check_gold`). An input is a
    second text, or something with several of them (`texts_of`), whose results `join` combines.

    `texts` are the inputs of Docs that have none of their own. `extra` are further inputs of every
    Doc, which are not written to `doc._`. Raises ValueError if `texts` are not valid inputs.
    """

    doc_first: bool
    # How users make a gold entry, for error messages.
    made_by = "made with spacy_bert_heads.pairs"

    def __init__(
        self,
        vocab: Vocab,
        model: Model,
        name: str,
        *,
        texts: Sequence[str],
        extra: Sequence[str] = (),
        scorer: Callable | None,
        **settings: Any,
    ) -> None:
        register_extensions()
        super().__init__(vocab, model, name, scorer=scorer, **settings)
        self.texts = self.check_asked(texts, f"the config's '{self.input_name}'")
        self.extra = list(extra)
        self._too_long: set[str] = set()  # second texts, found in training

    @classmethod
    def set_extensions(cls) -> None:
        for name in (cls.input_name, cls.output_name):
            getter, setter = partial(get_list, name), partial(set_value, name)
            register_extension(Doc, name, getter=getter, setter=setter)

    @property
    def writes(self) -> set[str]:
        return {f"doc._.{self.output_name}"}

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        labels: Sequence[str] | str | None = None,
    ) -> None:
        """Collect the labels and make the weights, as `BertHead.initialize` does. Also raises
        ValueError if there is no encoder that reads pairs."""
        tok2vec = self.model.get_ref("tok2vec")
        if encoder_model_behind(tok2vec) is None:
            raise ValueError(
                f"{self.name} reads pairs of texts, which '{tok2vec.name}' does not encode. Use "
                "spacy_bert_heads.BertListener.v1 in its model, behind a bert_encoder."
            )
        super().initialize(get_examples, nlp=nlp, labels=labels)

    # --- gold data

    @classmethod
    def is_annotated(cls, doc: Doc) -> bool:
        return any(entry is not None for entry in copy_of_list(cls.output_name, doc))

    @classmethod
    def join(cls, results: list[Any]) -> Any:
        """Combine the results of an input's second texts, none of which is None."""
        (result,) = results
        return result

    def gold_pairs(self, example: Example) -> Iterator[tuple[Any, Any]]:
        """Yield each annotated input of the reference with its gold entry. Raises ValueError if the
        numbers of entries and inputs differ."""
        doc = example.reference
        entries = get_list(self.output_name, doc)
        if not entries:
            return
        asked = inputs_of(doc, self.input_name, [], self.check_asked)
        if len(entries) != len(asked):
            raise ValueError(
                f"doc._.{self.output_name} has {len(entries)} entries for {len(asked)} "
                f"{self.input_name}. Give one for each, None where there is no annotation: "
                f"{start_of(doc)}"
            )
        for one, entry in zip(asked, entries, strict=True):
            if entry is not None:
                yield one, entry

    def training_pairs(self, example: Example) -> Iterator[tuple[Any, Any]]:
        """Yield the `gold_pairs` that the head learns from: all but those with a text that is too
        long. Scores count those as wrong."""
        for one, entry in self.gold_pairs(example):
            if self._too_long.isdisjoint(self.texts_of(one)):
                yield one, entry

    def check_gold(self, example: Example) -> None:
        """Raise ValueError if the head can't learn from an entry of the reference."""
        raise NotImplementedError

    def has_gold(self, example: Example) -> bool:
        return next(self.gold_pairs(example), None) is not None

    def begin_update(self, examples: list[Example]) -> tuple[Any, Callable] | None:
        """Run the model with a graph on the annotated pairs. Returns its output and a callback for
        a gradient of the same structure; None if every second text is too long."""
        pairs = self.pack_annotated(examples)
        if pairs is None:
            return None
        batch = pairs.batch.sample(self.model.attrs.get("max_windows"))
        return self.model.begin_update(pairs._replace(batch=batch))

    def pack_annotated(self, examples: list[Example]) -> PackedPairs | None:
        """Pack the annotated pairs. A second text that is too long is skipped with a warning, so
        that it does not stop the training; None if every one is."""
        for example in examples:
            self.check_gold(example)
        return self._pack_all(
            [eg.predicted for eg in examples],
            lambda: [self.flatten(one for one, _ in self.training_pairs(eg)) for eg in examples],
        )

    def unlabelled_inputs(self, docs: list[Doc]) -> PackedPairs | None:
        asked = [self.flatten(self.ask(doc) + self.extra) for doc in docs]
        pairs = self._pack_all(
            docs, lambda: [[text for text in own if text not in self._too_long] for own in asked]
        )
        if pairs is None:
            return None
        return pairs._replace(batch=pairs.batch.sample(self.model.attrs.get("max_windows")))

    def _pack_all(
        self, docs: list[Doc], list_texts: Callable[[], list[list[str]]]
    ) -> PackedPairs | None:
        """Pack Docs with the second texts that `list_texts` returns for each. It is called again
        after texts turned out to be too long, and must leave out `_too_long`."""
        while True:
            with_texts = [pair for pair in zip(docs, list_texts(), strict=True) if pair[1]]
            if not with_texts:
                return None
            docs_asked, texts = map(list, zip(*with_texts, strict=True))
            try:
                pairs = Pairs(docs_asked, texts, self.doc_first)
                return self.pack(pairs, is_train=True)
            except TextTooLong as error:
                self._too_long.update(error.texts)
                warnings.warn(f"{self.name} does not learn from a pair: {error}", stacklevel=2)

    def pack(self, pairs: Pairs, *, is_train: bool = False) -> PackedPairs:
        """Pack pairs for the encoder of this head. Raises TextTooLong."""
        batch = pack_for(self.model.get_ref("tok2vec"), pairs, is_train=is_train)
        return PackedPairs(pairs.docs, batch)

    def data_checks(self) -> list:
        from ..checks.pairs import check_entries, check_second_texts

        return [
            *super().data_checks(),
            (check_entries, "gold entries fit their second texts"),
            (check_second_texts, "no second text is too long for the window"),
        ]

    # --- predicting

    def ask(self, doc: Doc) -> list[Any]:
        """Return the inputs of a Doc, after writing them to `doc._`. Raises ValueError if they are
        not valid."""
        asked = inputs_of(doc, self.input_name, self.texts, self.check_asked)
        if asked:
            set_value(self.input_name, doc, list(asked))
        return asked

    def flatten(self, asked: Iterable[Any]) -> list[str]:
        """List the second texts of several inputs."""
        return [text for one in asked for text in self.texts_of(one)]

    def predict(self, docs: Iterable[Doc]) -> list[tuple[list[Any], list[Any]]]:
        """Run the model on each Doc with its second texts. A text that is too long is skipped with
        a warning; the other pairs of the batch are not affected.

        Returns for each Doc its inputs and a result for each input, None where a text is too long.
        Raises ValueError if inputs are not valid.
        """
        return self.read(self.run(docs))

    def run(self, docs: Iterable[Doc]) -> PairOutput:
        docs = list(docs)
        asked = [self.ask(doc) + self.extra for doc in docs]
        pairs = Pairs(docs, [self.flatten(own) for own in asked], self.doc_first)
        found = PairOutput(asked, [], [])
        for part in pairs.split(MAX_CHARS):
            found.is_read.extend(self._run(part, found.outputs))
        return found

    def read(self, output: PairOutput) -> list[tuple[list[Any], list[Any]]]:
        read = chain.from_iterable(map(self.read_out, output.outputs))
        results = (next(read) if is_read else None for is_read in output.is_read)
        return [(own, [self._join_next(one, results) for one in own]) for own in output.asked]

    def _join_next(self, asked: Any, results: Iterator[Any]) -> Any:
        own = [next(results) for _ in self.texts_of(asked)]
        return None if any(result is None for result in own) else self.join(own)

    def _run(self, pairs: Pairs, outputs: list[Any]) -> list[bool]:
        """Run the model, append its output to `outputs`, and return which pairs it has read."""
        try:
            outputs.append(self.model.predict(self.pack(pairs)))
            return [True] * sum(map(len, pairs.texts))
        except TextTooLong as error:
            if not set(error.texts).isdisjoint(self.extra):  # from the config, so in every Doc
                raise
            warnings.warn(f"{self.name} leaves a pair out: {error}", stacklevel=2)
            left_out = set(error.pairs)
        number = count()
        left = [[text for text in texts if next(number) not in left_out] for texts in pairs.texts]
        is_read: list[bool] = []
        for part in Pairs(pairs.docs, left, self.doc_first).split(MAX_CHARS):
            is_read.extend(self._run(part, outputs))
        of_others, num_pairs = iter(is_read), sum(map(len, pairs.texts))
        return [i not in left_out and next(of_others) for i in range(num_pairs)]

    def read_out(self, output: Any) -> Iterable[Any]:
        """Yield a result for each pair of a part, from the model's output."""
        raise NotImplementedError


class UnlabelledPairHead(UnlabelledHead, BertPairHead):  # type: ignore[misc]
    """The base class of pair heads without labels."""


def match_predictions(
    example: Example, input_name: str, output_name: str
) -> Iterator[tuple[Any, Any]]:
    """Yield each gold entry of a reference with the predicted entry for the same input.

    The predicted entry is None if a text was too long; that counts as wrong. Raises ValueError if
    the predicted Doc does not have all inputs of the reference.
    """
    gold, predicted = example.reference, example.predicted
    asked = map(key_of_asked, get_list(input_name, predicted))
    found = dict(zip(asked, get_list(output_name, predicted), strict=False))
    for one, entry in zip(get_list(input_name, gold), get_list(output_name, gold), strict=False):
        if entry is None:
            continue
        if key_of_asked(one) not in found:
            raise ValueError(
                f"A reference has {input_name} that were not asked of the prediction ('{one}'). "
                "`spacy evaluate` reads texts alone: use `python -m spacy bert evaluate`, or read "
                "the data with spacy_bert_heads.Corpus.v1. In Python, set the same "
                f"doc._.{input_name} on the predicted Doc of the Example."
            )
        yield entry, found[key_of_asked(one)]


def key_of_asked(asked: Any) -> str:
    """Return a string that identifies an input: a text itself; of a choice the JSON of its
    question, which may be missing, and its options."""
    if isinstance(asked, str):
        return asked
    return srsly.json_dumps([asked.get("question") or "", asked["options"]])


def start_of(doc: Doc) -> str:
    """Quote the beginning of a Doc, for an error message."""
    return f"'{doc[:10].text} …'"
