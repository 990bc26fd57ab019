"""The formats by name, with the reader of each."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from spacy.tokens import Doc

from .conll import read_conll
from .jsonl import read_jsonl
from .nli import read_nli_jsonl, read_nli_table
from .records import Refused, Settings
from .squad import read_squad
from .tables import read_csv, read_labelled

Reader = Callable[[Iterable[str], Settings], Iterator[Doc | Refused]]
READERS: dict[str, Reader] = {
    "conll": read_conll,
    "labelled": read_labelled,
    "csv": partial(read_csv, delimiter=","),
    "tsv": partial(read_csv, delimiter="\t"),
    "jsonl": read_jsonl,
    "nli-jsonl": read_nli_jsonl,
    "nli-tsv": partial(read_nli_table, delimiter="\t", quoted=False),
    "nli-csv": partial(read_nli_table, delimiter=",", quoted=True),
    "squad": read_squad,
}
# Formats that set `doc.cats`, which name all categories of a file: these files are read twice.
WITH_CATEGORIES = ("labelled", "csv", "tsv", "jsonl")
