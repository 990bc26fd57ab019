"""Pairs of texts on a Doc: `doc._.hypotheses` and `doc._.nli`, `doc._.questions` and
`doc._.answers`, which importing this module registers, and how gold entries are made."""

from .text.doc_data import (
    INPUTS,
    copy_inputs,
    inputs_of,
    make_answer,
    make_verdict,
    register_extensions,
)

__all__ = ["INPUTS", "copy_inputs", "inputs_of", "make_answer", "make_verdict"]

register_extensions()
