"""The latest batch of hidden states, found by what was read."""

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
    """What the encoder reads of a Doc: its tokens and the spaces between them, hence its text. A
    component between two heads may have merged or split tokens."""
    return doc.to_array([ORTH, SPACY]).tobytes()


class _DocRef(weakref.ref):
    """A weak reference to a Doc that keeps the hidden states of its batch alive."""

    __slots__ = ("content", "hidden", "place")
    hidden: HiddenStates
    content: bytes
    place: int  # of the Doc in the batch


class LatestBatch(threading.local):
    """The latest batch of hidden states, one for every thread, for as long as its Docs are alive.

    The hidden states belong to the references to the Docs, and a reference that has lost its Doc
    leaves the set by a method of the set itself. So no Python code of ours runs while a Doc is
    deleted: an interrupt there would be swallowed.
    """

    def __init__(self) -> None:
        self._refs: set[_DocRef] = set()
        self._version: Version | None = None

    def drop(self) -> None:
        """Forget the batch."""
        self._refs.clear()  # a set and its references hold each other

    @property
    def is_empty(self) -> bool:
        """Whether no batch is kept, or all its Docs are gone."""
        return not self._refs

    def keep(self, docs: Sequence[Doc], version: Version, hidden: HiddenStates) -> None:
        """Hold a batch instead of the one before. `version` is what its hidden states depend on
        beside the Docs."""
        self.drop()
        for place, doc in enumerate(docs):
            ref = _DocRef(doc, self._refs.discard)
            ref.hidden, ref.content, ref.place = hidden, content_of(doc), place
            self._refs.add(ref)
        self._version = version

    def find(self, docs: Sequence[Doc], version: Version) -> HiddenStates | None:
        """Find the hidden states of Docs whose tokens are those of Docs of the batch, in any order.

        Returns None if the batch lacks one of them, or if the version has changed.
        """
        refs = list(self._refs)
        if self._version != version or not refs:
            return None
        places = {ref.content: ref.place for ref in refs}
        found = [places.get(content_of(doc), -1) for doc in docs]
        if -1 in found:
            return None
        return take_docs(refs[0].hidden, np.asarray(found, dtype=np.int64))[0]


def take_docs(hidden: HiddenStates, places: Ints1d) -> tuple[HiddenStates, torch.Tensor | None]:
    """Select Docs of a batch: those at `places`, in that order. Returns their hidden states, and
    the positions that these come from; None for the positions if it is the whole batch as it is."""
    if np.array_equal(places, np.arange(len(hidden.batch.num_windows))):
        return hidden, None
    batch, taken = hidden.batch.take(places)
    positions = torch.from_numpy(taken).to(hidden.states.device)
    return replace(hidden, states=hidden.states.index_select(0, positions), batch=batch), positions
