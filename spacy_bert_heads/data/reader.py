"""Read training data: `.spacy` files to examples."""

import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Sized
from functools import partial
from itertools import islice
from pathlib import Path
from shlex import quote

import srsly
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Corpus, Example
from spacy.training.corpus import walk_corpus
from spacy.vocab import Vocab

from ..encoder.component import BertEncoder
from ..heads.find import copy_inputs, pair_names, register_extensions, teaches_text
from ..heads.head import BertHead
from ..heads.pair_head import BertPairHead
from ..text.user_data import get_list, set_value

# Errors of reading a damaged DocBin: from decompression, msgpack or its attributes.
DAMAGE = (zlib.error, ValueError, KeyError, EOFError, IndexError, TypeError)


class BertCorpus(Corpus):
    """Read `.spacy` files as `spacy.Corpus.v1` does, including the second texts of each Doc.

    `path` is a file or a folder of files. `limit` is the maximum number of Docs per file, and
    `max_pairs` the maximum number of second texts per example (see `split_pairs`); 0 means no
    limit. A Doc of `max_length` tokens or more is skipped or, if it has sentence boundaries, read
    sentence by sentence without its pairs; 0 means no limit. With `gold_preproc`, the predicted
    Docs have the sentences and tokens of the reference. `augmenter` is one of spaCy's, or another
    function that yields examples for `nlp` and an example (see `augment`).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_length: int = 0,
        limit: int = 0,
        gold_preproc: bool = False,
        max_pairs: int = 0,
        augmenter: Callable | None = None,
    ) -> None:
        register_extensions()
        super().__init__(
            path,
            max_length=max_length,
            limit=limit,
            gold_preproc=gold_preproc,
            augmenter=None if augmenter is None else partial(augment, augmenter),
        )
        self.max_pairs = max_pairs
        self.num_empty = 0  # Docs without tokens that were left out so far

    def __call__(self, nlp: Language) -> Iterator[Example]:
        """Yield the examples. Raises ValueError if the file or folder doesn't exist, if a file is
        damaged (with the command that recreates it), or if all Docs are too long."""
        check_exists(self.path)
        has_any = False
        for example in super().__call__(nlp):
            has_any = True
            yield example
        if not has_any and self.max_length:
            num_docs = sum(1 for _ in self.read_docbin(nlp.vocab, walk_corpus(self.path, ".spacy")))
            if num_docs:
                raise ValueError(
                    f"'{self.path}' contains no example: all of its {num_docs} Docs have at least "
                    f"max_length = {self.max_length} tokens, and none has a shorter sentence. "
                    "Raise max_length of the reader, or set it to 0 for no limit: the encoder "
                    "splits long Docs into windows."
                )

    def read_docbin(self, vocab: Vocab, locs: Iterable[str | Path]) -> Iterator[Doc]:
        """Yield the Docs that have tokens. Raises ValueError if a file is damaged."""
        for file in locs:
            try:
                docs = list(islice(self._with_tokens(Path(file), vocab), self.limit or None))
            except DAMAGE as error:
                raise damaged(file, error) from error
            yield from docs

    def _with_tokens(self, file: Path, vocab: Vocab) -> Iterator[Doc]:
        for doc in read_docs(file, vocab):
            if len(doc):
                yield doc
            else:
                self.num_empty += 1

    def references(self, nlp: Language) -> Iterator[Doc]:
        """Yield the gold Docs of the examples; a Doc that is split is yielded part by part."""
        check_exists(self.path)
        return self._split(nlp, self.read_docbin(nlp.vocab, walk_corpus(self.path, ".spacy")))

    def make_examples(self, nlp: Language, reference_docs: Iterable[Doc]) -> Iterator[Example]:
        """Yield an example for each Doc, or for each part of one that is split."""
        return super().make_examples(nlp, self._split(nlp, reference_docs))

    def _split(self, nlp: Language, docs: Iterable[Doc]) -> Iterator[Doc]:
        # Parts that no component learns from would only fill batches.
        heads = [pipe for _, pipe in nlp.components if not isinstance(pipe, BertEncoder)]
        inputs = {pipe.input_name for pipe in heads if isinstance(pipe, BertHead)}
        text = not heads or not all(isinstance(pipe, BertPairHead) for pipe in heads)
        for doc in docs:
            # A Doc above max_length is read as sentences without pairs: splitting it would repeat
            # every sentence.
            too_long = 0 < self.max_length <= len(doc)
            yield from split_pairs(
                doc,
                0 if too_long else self.max_pairs,
                inputs=inputs if heads else None,
                text=text,
            )

    def make_examples_gold_preproc(
        self, nlp: Language, reference_docs: Iterable[Doc]
    ) -> Iterator[Example]:
        """Yield an example for each sentence. Second texts refer to the whole text, so a Doc with
        any is not split."""
        for reference in self._split(nlp, reference_docs):
            if any(get_list(name, reference) for name in pair_names()):
                yield self._make_example(nlp, reference, True)
            else:
                yield from super().make_examples_gold_preproc(nlp, [reference])

    def _make_example(self, nlp: Language, reference: Doc, gold_preproc: bool) -> Example:
        # spaCy creates the predicted Doc from the text only.
        example = super()._make_example(nlp, reference, gold_preproc)
        copy_inputs(reference, example.predicted)
        return example


def check_exists(path: str | Path) -> None:
    """Raise ValueError if a file or folder of data is missing or not converted.

    The message has the command that creates it. Without this check spaCy would find no Docs.
    """
    path = Path(path)
    convert, quoted = "python -m spacy bert convert", quote(str(path))
    if not path.exists():
        raise ValueError(f"There is no '{path}'. Create it with: {convert} SOURCE {quoted}")
    if path.is_file() and path.suffix != ".spacy":
        made = quote(str(path.with_suffix(".spacy")))
        raise ValueError(
            f"'{path}' is not a .spacy file. Convert it with: {convert} {quoted} {made}"
        )
    if path.is_dir() and not any(path.rglob("*.spacy")):
        raise ValueError(
            f"There is no .spacy file in '{path}'. Create one with: {convert} {quoted} OUTPUT"
        )


def damaged(file: str | Path, error: Exception) -> ValueError:
    """Return the error for a file that can't be read as a DocBin."""
    return ValueError(
        f"{file} is damaged or not a .spacy file ({error}). Create it again with: "
        f"python -m spacy bert convert SOURCE {quote(str(file))}"
    )


def read_docs(file: Path, vocab: Vocab) -> Iterator[Doc]:
    """Yield the Docs of a DocBin, including Docs that were stored with `user_data = None`, which
    spaCy itself can't read."""
    docs = DocBin().from_disk(file)
    nothing = srsly.msgpack_dumps(None)
    docs.user_data = [None if data == nothing else data for data in docs.user_data]
    return docs.get_docs(vocab)


def augment(augmenter: Callable, nlp: Language, example: Example) -> Iterator[Example]:
    """Yield the augmented examples that keep all of the reference's `user_data`.

    spaCy's augmenters drop what is in `doc._`, such as pairs and their gold entries. Examples that
    lost any of it are skipped; if none is left, the original example is yielded.
    """
    made = list(augmenter(nlp, example))
    values = example.reference.user_data.items()
    kept = {key for key, value in values if not (isinstance(value, Sized) and not len(value))}
    whole = [one for one in made if kept <= one.reference.user_data.keys()]
    for one in whole or made[:1] and [example]:
        copy_inputs(one.reference, one.predicted)
        yield one


def split_pairs(
    doc: Doc, max_pairs: int, *, inputs: Container[str] | None = None, text: bool = True
) -> Iterator[Doc]:
    """Split a Doc with second texts into several Docs of the same text, each for one task.

    Without the split, one text could fill a batch.

    max_pairs 2     first part        second part       third part        fourth part
    annotation      unchanged         -                 -                 -
    hypotheses      -                 A  B              C                 -
    questions       -                 -                 -                 D  E

    The first part is omitted without `text`, or if the Doc is annotated only for pairs. Pairs that
    are not among the `inputs` are omitted. Yields the Doc itself if it has no second texts, if
    `max_pairs` is 0, or if its gold entries don't match its second texts; in the last case the head
    that reads them reports the error.
    """
    names = pair_names()
    texts = {name: get_list(name, doc) for name in names}
    gold = {name: get_list(output, doc) for name, output in names.items()}
    if (
        not (max_pairs and any(texts.values()))
        or any(isinstance(texts[name], str) for name in names)
        or any(gold[name] and len(gold[name]) != len(texts[name]) for name in names)
    ):
        yield doc
        return
    if text and teaches_text(doc):
        part = doc.copy()
        for name, output in names.items():
            set_value(name, part, [])
            set_value(output, part, [])
        yield part
    words, spaces = [token.text for token in doc], [bool(token.whitespace_) for token in doc]
    read = names if inputs is None else {name: names[name] for name in names if name in inputs}
    for name, output in read.items():
        for start in range(0, len(texts[name]), max_pairs):
            part = Doc(doc.vocab, words, None if doc.has_unknown_spaces else spaces)
            set_value(name, part, texts[name][start : start + max_pairs])
            set_value(output, part, gold[name][start : start + max_pairs])
            yield part


def make_corpus(
    path: Path | None,
    max_length: int = 0,
    limit: int = 0,
    gold_preproc: bool = False,
    max_pairs: int = 0,
    augmenter: Callable | None = None,
) -> BertCorpus:
    """Create the reader `spacy_bert_heads.Corpus.v1` for `[corpora]`, with the settings of
    `BertCorpus`. Raises ValueError if no path is set."""
    if path is None:
        raise ValueError(
            "No data path is set. Add: --paths.train FILE.spacy --paths.dev FILE.spacy"
        )
    return BertCorpus(
        path,
        max_length=max_length,
        limit=limit,
        gold_preproc=gold_preproc,
        max_pairs=max_pairs,
        augmenter=augmenter,
    )
