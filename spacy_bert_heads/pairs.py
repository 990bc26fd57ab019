"""Pairs of texts on a Doc: `doc._.hypotheses` and `doc._.nli`, `doc._.others` and
`doc._.similarities`, `doc._.questions` and `doc._.answers`, `doc._.choices` and `doc._.chosen`,
which importing this module registers, and how gold entries are made."""

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

# Not those of all heads: finding them imports modules that may be importing this one.
for _head in (BertNLI, BertSimilarity, BertQA, BertChoice):
    _head.set_extensions()


def __getattr__(name: str) -> Any:
    if name == "INPUTS":
        return pair_names()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
