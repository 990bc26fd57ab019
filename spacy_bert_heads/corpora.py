"""Readers of training data."""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Corpus, Example
from spacy.vocab import Vocab

from .pairs import INPUTS, copy_inputs

# What reading half a DocBin can end in: its compression, its msgpack, its attributes.
DAMAGE = (zlib.error, ValueError, KeyError, EOFError, IndexError, TypeError)


class BertCorpus(Corpus):
    """Read `.spacy` files as `spacy.Corpus.v1` does, with what is asked of each Doc, and say which
    file is damaged.

    path (str / Path): A file, or a folder of files.
    max_length (int): Leave longer Docs out, or take their sentences, without pairs; 0 for no limit.
    limit (int): Read so many Docs of each file at the most; 0 for all.
    gold_preproc (bool): Predict on the reference's own sentences and tokens.
    max_pairs (int): The most second texts of an example; 0 for no limit.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_length: int = 0,
        limit: int = 0,
        gold_preproc: bool = False,
        max_pairs: int = 0,
    ) -> None:
        super().__init__(path, max_length=max_length, limit=limit, gold_preproc=gold_preproc)
        self.max_pairs = max_pairs

    def __call__(self, nlp: Language) -> Iterator[Example]:
        """Yield the examples.

        nlp (Language): The pipeline.
        YIELDS (Example): The examples.
        RAISES (ValueError): If there is no such file or folder, or one can't be read.
        """
        if not Path(self.path).exists():
            make_it = f"python -m spacy bert convert SOURCE {self.path}"
            raise ValueError(f"There is no '{self.path}'. Make it: {make_it}")
        yield from super().__call__(nlp)

    def read_docbin(self, vocab: Vocab, locs: Iterable[str | Path]) -> Iterator[Doc]:
        """Yield the Docs of the files.

        vocab (Vocab): The vocabulary.
        locs (Iterable[str / Path]): The files.
        YIELDS (Doc): The Docs that have tokens, split by their second texts.
        RAISES (ValueError): If a file can't be read to its end.
        """
        for file in locs:
            try:
                docs = list(super().read_docbin(vocab, [file]))
            except DAMAGE as error:
                raise ValueError(
                    f"{file} is damaged, or no .spacy file ({error}). Make it again: "
                    f"python -m spacy bert convert SOURCE {file}"
                ) from error
            for doc in docs:
                # Of a Doc that is too long, sentences without pairs are read, and but once.
                too_long = 0 < self.max_length <= len(doc)
                yield from split_pairs(doc, 0 if too_long else self.max_pairs)

    def make_examples_gold_preproc(
        self, nlp: Language, reference_docs: Iterable[Doc]
    ) -> Iterator[Example]:
        """Make examples of sentences. What is asked of a Doc is asked of the whole text, so a Doc
        with second texts stays whole.

        nlp (Language): The pipeline.
        reference_docs (Iterable[Doc]): The references.
        YIELDS (Example): The examples.
        """
        for reference in reference_docs:
            if any(reference._.get(name) for name in INPUTS):
                yield self._make_example(nlp, reference, True)
            else:
                yield from super().make_examples_gold_preproc(nlp, [reference])

    def _make_example(self, nlp: Language, reference: Doc, gold_preproc: bool) -> Example:
        # spaCy makes the predicted Doc of the text alone.
        example = super()._make_example(nlp, reference, gold_preproc)
        copy_inputs(reference, example.predicted)
        return example


def split_pairs(doc: Doc, max_pairs: int) -> Iterator[Doc]:
    """Split a Doc with many second texts into several of the same text. A batch would be full of
    one text otherwise.

    max_pairs 2     first part        second part       third part
    hypotheses      A  B              C                 -
    questions       -                 D                 E
    all else        as it was         as it was         as it was

    A Doc whose gold entries don't match its second texts stays whole, for the head that reads them
    to say so.

    doc (Doc): The Doc.
    max_pairs (int): The most second texts of a part, 0 for no limit.
    YIELDS (Doc): The parts, or the Doc itself if there is nothing to split.
    """
    texts = {name: doc._.get(name) for name in INPUTS}
    gold = {name: doc._.get(output) for name, output in INPUTS.items()}
    asked = [(name, i) for name in INPUTS for i in range(len(texts[name]))]
    if (
        not 0 < max_pairs < len(asked)
        or any(isinstance(texts[name], str) for name in INPUTS)
        or any(gold[name] and len(gold[name]) != len(texts[name]) for name in INPUTS)
    ):
        yield doc
        return
    for start in range(0, len(asked), max_pairs):
        part = doc.copy()
        for name, output in INPUTS.items():
            chosen = [i for of, i in asked[start : start + max_pairs] if of == name]
            part._.set(name, [texts[name][i] for i in chosen])
            part._.set(output, [gold[name][i] for i in chosen] if gold[name] else [])
        yield part


def make_corpus(
    path: Path | None,
    max_length: int = 0,
    limit: int = 0,
    gold_preproc: bool = False,
    max_pairs: int = 0,
) -> BertCorpus:
    """Create a reader of `.spacy` files.

    path (Optional[Path]): A file, or a folder of files.
    max_length (int): Leave longer Docs out; 0 for no limit.
    limit (int): Read so many of each file at the most; 0 for all.
    gold_preproc (bool): Predict on the reference's own sentences and tokens.
    max_pairs (int): Split Docs with more second texts than this; 0 for no limit.
    RETURNS (Callable[[Language], Iterator[Example]]): The reader.
    RAISES (ValueError): If no path is given.
    """
    if path is None:
        raise ValueError("No data is named. Add: --paths.train FILE.spacy --paths.dev FILE.spacy")
    return BertCorpus(
        path,
        max_length=max_length,
        limit=limit,
        gold_preproc=gold_preproc,
        max_pairs=max_pairs,
    )
