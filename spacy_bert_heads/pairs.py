"""Pairs of texts on a Doc: inputs, results, and functions that make gold entries.

Importing this module registers the extensions `doc._.hypotheses` and `doc._.nli`, `doc._.others`
and `doc._.similarities`, `doc._.questions` and `doc._.answers`, `doc._.choices` and
`doc._.chosen`. `make_verdict`, `make_answer` and `make_choice` make gold entries. `INPUTS` maps the
names of inputs to those of results. `inputs_of` reads the inputs of a Doc, `copy_inputs` copies
them to another Doc.
"""

from typing import TYPE_CHECKING, Any

from .heads.choice import BertChoice
from .heads.find import copy_inputs, pair_names
from .heads.nli import BertNLI
from .heads.qa import BertQA
from .heads.similarity import BertSimilarity
from .text.doc_data import inputs_of, make_answer, make_choice, make_verdict

if TYPE_CHECKING:
    INPUTS: dict[str, str]

__all__ = ["INPUTS", "copy_inputs", "inputs_of", "make_answer", "make_choice", "make_verdict"]

# Not those of all heads: finding all imports modules that may import this one.
for _head in (BertNLI, BertSimilarity, BertQA, BertChoice):
    _head.set_extensions()


def __getattr__(name: str) -> Any:
    if name == "INPUTS":
        return pair_names()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
