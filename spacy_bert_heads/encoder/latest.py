"""The latest batch of hidden states, looked up by the content of its Docs."""

import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from spacy.attrs import ORTH, SPACY
from spacy.tokens import Doc

from ..text.arrays import Ints1d
from .hidden_states import HiddenStates

# The version of the weights, and the layers that are read.
Version = tuple[int, tuple[int, ...]]


def content_of(doc: Doc) -> bytes:
    """Return all that the encoder reads of a Doc, as bytes: its tokens and the spaces between them.
    It is not just the text, because a component between two heads can merge or split tokens."""
    return doc.to_array([ORTH, SPACY]).tobytes()


class _DocRef(weakref.ref):
    """A weak reference to a Doc that keeps the hidden states of its batch alive."""

    __slots__ = ("content", "hidden", "place")
    hidden: HiddenStates
    content: bytes
    place: int  # the index of the Doc in the batch


class LatestBatch(threading.local):
    """The latest batch of hidden states of each thread, kept as long as one of its Docs exists.

    The weak references to the Docs own the hidden states. The callback of a reference whose Doc is
    deleted is a C method of the set of references. So no Python code of ours runs while a Doc is
    deleted: an interrupt (Ctrl-C) at that moment would be lost.
    """

    def __init__(self) -> None:
        self._refs: set[_DocRef] = set()
        self._version: Version | None = None

    def drop(self) -> None:
        """Delete the batch."""
        self._refs.clear()  # the set and its references refer to each other

    @property
    def is_empty(self) -> bool:
        """Whether there is no batch, or all of its Docs were deleted."""
        return not self._refs

    def keep(self, docs: Sequence[Doc], version: Version, hidden: HiddenStates) -> None:
        """Keep a batch in place of the previous one. `version` is what its hidden states depend on,
        apart from the Docs."""
        self.drop()
        for place, doc in enumerate(docs):
            ref = _DocRef(doc, self._refs.discard)
            ref.hidden, ref.content, ref.place = hidden, content_of(doc), place
            self._refs.add(ref)
        self._version = version

    def find(self, docs: Sequence[Doc], version: Version) -> HiddenStates | None:
        """Return the hidden states of Docs that have the same tokens as Docs of the batch, in any
        order; None if the batch lacks one of them, or if the version has changed."""
        refs = list(self._refs)
        if self._version != version or not refs:
            return None
        places = {ref.content: ref.place for ref in refs}
        found = [places.get(content_of(doc), -1) for doc in docs]
        if -1 in found:
            return None
        return take_docs(refs[0].hidden, np.asarray(found, dtype=np.int64))[0]


def take_docs(hidden: HiddenStates, places: Ints1d) -> tuple[HiddenStates, torch.Tensor | None]:
    """Select the Docs of a batch with the indices `places`, in that order. Returns their hidden
    states, and the positions of these in the batch, None if it is the whole batch unchanged."""
    if np.array_equal(places, np.arange(len(hidden.batch.num_windows))):
        return hidden, None
    batch, taken = hidden.batch.take(places)
    positions = torch.from_numpy(taken).to(hidden.states.device)
    return replace(hidden, states=hidden.states.index_select(0, positions), batch=batch), positions
