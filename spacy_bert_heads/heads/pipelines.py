"""The pipelines that a head is in."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from spacy.language import Language
from spacy.vocab import Vocab

if TYPE_CHECKING:
    from .head import BertHead


class PipelineRef(weakref.ref):
    """A weak reference to the pipeline that a component was made for. In copies and pickles of the
    component it is empty."""

    def __reduce__(self) -> tuple:
        return nowhere, ()


def nowhere() -> type[None]:
    """Return an empty reference: a callable that returns None."""
    return type(None)


def pipelines_of(head: BertHead, vocab: Vocab | None = None) -> list[Language]:
    """List the pipelines that contain a head: the one that it was made for, and those whose
    encoders it reads. With a `vocab` only those whose Docs have it."""
    encoders = (encoder for node in head._listeners() for encoder in node.upstreams)
    refs: list[Callable] = [head.nlp, *(one.nlp for one in encoders)]
    found = {id(nlp): nlp for ref in refs if (nlp := ref()) is not None}
    return [
        nlp
        for nlp in found.values()
        if vocab in (None, nlp.vocab) and any(pipe is head for _, pipe in nlp.components)
    ]


def heads_alike(head: BertHead) -> list[BertHead]:
    """List the heads of this kind in the pipelines of a head, itself included."""
    pipes = (pipe for nlp in pipelines_of(head) for _, pipe in nlp.components)
    return [pipe for pipe in pipes if isinstance(pipe, type(head))]


def labels_beside(head: BertHead) -> set[str]:
    """Return the labels that other heads of this kind in the pipeline have, and this one not."""
    return {label for one in heads_alike(head) for label in one.labels} - {*head.labels}
