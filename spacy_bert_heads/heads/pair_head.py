"""What the heads share that read second texts beside the Doc."""

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

# What is run at once in prediction; it bounds the states that are alive, not the result.
MAX_CHARS = 2**18


class PairOutput(NamedTuple):
    """What a pair head asked of a batch, and what its model gave."""

    asked: list[list[Any]]  # of each Doc
    outputs: list[Any]  # part after part
    is_read: list[bool]  # of each pair: False for one that is too long


class BertPairHead(BertHead):
    """The base of the heads that read pairs. A head defines what it is asked and where the results
    go (`input_name`, `output_name`), which text comes first (`doc_first`) and what its gold data
    must be (`check_gold`). What is asked is a second text; or something that has several of them
    (`texts_of`), whose results `join` puts together.

    `texts` are what to ask of each Doc that brings nothing of its own, `extra` what to ask of every
    Doc besides, without a word of it in `doc._`. Raises ValueError if the texts are not a list of
    strings that say something.
    """

    doc_first: bool
    # How users make a gold entry, for messages.
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
        self._too_long: set[str] = set()  # found in training

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
        """Collect the labels and make the weights, as `BertHead.initialize`. Raises ValueError also
        if there is no encoder that reads pairs."""
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
        """Make the result for something that is asked of those for its second texts, none of which
        is None."""
        (result,) = results
        return result

    def gold_pairs(self, example: Example) -> Iterator[tuple[Any, Any]]:
        """Yield what is asked of a reference with its gold entries. Raises ValueError if there are
        not as many entries as there is asked."""
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

    def taught_pairs(self, example: Example) -> Iterator[tuple[Any, Any]]:
        """Yield those of `gold_pairs` that the head learns from: texts that are too long to be read
        count in scores, where they are wrong, but teach nothing."""
        for one, entry in self.gold_pairs(example):
            if self._too_long.isdisjoint(self.texts_of(one)):
                yield one, entry

    def check_gold(self, example: Example) -> None:
        """Raise ValueError if the head can't learn from an entry of the reference."""
        raise NotImplementedError

    def has_gold(self, example: Example) -> bool:
        return next(self.gold_pairs(example), None) is not None

    def begin_update(self, examples: list[Example]) -> tuple[Any, Callable] | None:
        """Run the model with a graph on the annotated pairs. Returns its output and the callback
        that takes a gradient of the same structure; None if every second text is too long."""
        pairs = self.pack_annotated(examples)
        if pairs is None:
            return None
        batch = pairs.batch.sample(self.model.attrs.get("max_windows"))
        return self.model.begin_update(pairs._replace(batch=batch))

    def pack_annotated(self, examples: list[Example]) -> PackedPairs | None:
        """Pack the annotated pairs. A text that is too long is left out with a warning, so that it
        doesn't end the run; None if every text is."""
        for example in examples:
            self.check_gold(example)
        return self._pack_all(
            [eg.predicted for eg in examples],
            lambda: [self.flatten(one for one, _ in self.taught_pairs(eg)) for eg in examples],
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
        """Pack Docs with the second texts that `list_texts` gives for each: again without those
        that turn out to be too long."""
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
        """Pack pairs as the encoder of this head reads them. Raises TextTooLong."""
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
        """Find what is asked of a Doc, and write it there. Raises ValueError if it can't be
        asked."""
        asked = inputs_of(doc, self.input_name, self.texts, self.check_asked)
        if asked:
            set_value(self.input_name, doc, list(asked))
        return asked

    def flatten(self, asked: Iterable[Any]) -> list[str]:
        """List the second texts of all that is asked."""
        return [text for one in asked for text in self.texts_of(one)]

    def predict(self, docs: Iterable[Doc]) -> list[tuple[list[Any], list[Any]]]:
        """Read every Doc with its second texts. A Doc without any costs nothing. A text that is
        too long to be read is left out with a warning, so that it takes nothing else with it.

        Gives for each Doc what is asked, and a result for each: None where a text is too long.
        Raises ValueError if something can't be asked.
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
        """Run the model, add what it gives to `outputs`, and tell which pairs it has read."""
        try:
            outputs.append(self.model.predict(self.pack(pairs)))
            return [True] * sum(map(len, pairs.texts))
        except TextTooLong as error:
            if not set(error.texts).isdisjoint(self.extra):  # of the config, so of every Doc
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
        """Give a result for each pair of a part, from the model's output."""
        raise NotImplementedError


class UnlabelledPairHead(BertPairHead):
    """The base of the pair heads whose classes are no labels. `does` says what such a head does,
    for an error."""

    does: str

    @property
    def label_data(self) -> None:  # type: ignore[override]
        return None

    def add_label(self, label: str) -> int:
        """Raise ValueError: there are no labels."""
        raise ValueError(f"{self.name} {self.does}; it has no labels.")

    def check_labels(self) -> None:
        pass

    def initialize(  # type: ignore[override]
        self, get_examples: Callable[[], Iterable[Example]], *, nlp: Language | None = None
    ) -> None:
        """Make the weights. Raises ValueError if there is no encoder that reads pairs, or if a gold
        entry is wrong."""
        super().initialize(get_examples, nlp=nlp, labels=())


def match_predictions(
    example: Example, input_name: str, output_name: str
) -> Iterator[tuple[Any, Any]]:
    """Match the annotated entries of a reference with the predicted ones, by what is asked.

    Yields gold entry and predicted entry, which is None for what was too long to be read: that is
    wrong whatever the truth. Raises ValueError if the prediction was not asked the same.
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
                "the data with spacy_bert_heads.Corpus.v1."
            )
        yield entry, found[key_of_asked(one)]


def key_of_asked(asked: Any) -> str:
    """Give what tells something that is asked from others: a text itself."""
    return asked if isinstance(asked, str) else srsly.json_dumps(asked, sort_keys=True)


def start_of(doc: Doc) -> str:
    """Quote how a Doc begins, for an error."""
    return f"'{doc[:10].text} …'"
