"""Readers of training data."""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Corpus, Example
from spacy.vocab import Vocab

# What reading half a DocBin can end in: its compression, its msgpack, its attributes.
DAMAGE = (zlib.error, ValueError, KeyError, EOFError, IndexError, TypeError)


class BertCorpus(Corpus):
    """Read `.spacy` files as `spacy.Corpus.v1` does, and say which one is damaged."""

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
        YIELDS (Doc): The Docs that have tokens.
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
            yield from docs


def make_corpus(
    path: Path | None, max_length: int = 0, limit: int = 0, gold_preproc: bool = False
) -> BertCorpus:
    """Create a reader of `.spacy` files.

    path (Optional[Path]): A file, or a folder of files.
    max_length (int): Leave longer Docs out; 0 for no limit.
    limit (int): Read so many at the most; 0 for all.
    gold_preproc (bool): Predict on the reference's own sentences and tokens.
    RETURNS (Callable[[Language], Iterator[Example]]): The reader.
    RAISES (ValueError): If no path is given.
    """
    if path is None:
        raise ValueError("No data is named. Add: --paths.train FILE.spacy --paths.dev FILE.spacy")
    return BertCorpus(path, max_length=max_length, limit=limit, gold_preproc=gold_preproc)
