"""Whose states are alive: the latest batch, and the training step that is open."""

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from spacy.tokens import Doc
from thinc.api import Optimizer

from ..types import DocSequences, Encoded, Ints1d, Pairs
from .model import EncoderModel
from .shim import AdamSettings

# The version of the weights, and the layers that are read.
Version = tuple[int, tuple[int, ...]]


class _DocRef(weakref.ref):
    """A weak reference to a Doc that keeps the hidden states of its batch alive."""

    __slots__ = ("encoded", "place")
    encoded: Encoded[DocSequences]
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

    def keep(self, docs: Sequence[Doc], version: Version, encoded: Encoded[DocSequences]) -> None:
        """Hold a batch instead of the one before. `version` is what its hidden states depend on
        beside the Docs."""
        self.drop()
        for place, doc in enumerate(docs):
            ref = _DocRef(doc, self._refs.discard)
            ref.encoded, ref.place = encoded, place
            self._refs.add(ref)
        self._version = version

    def find(self, docs: Sequence[Doc], version: Version) -> Encoded[DocSequences] | None:
        """Find the hidden states of some of the batch's Docs, in any order.

        Gives None if a Doc is not in the batch or has other tokens now, or if the version has
        changed.
        """
        if self._version != version:
            return None
        by_doc = {id(doc): ref for ref in list(self._refs) if (doc := ref()) is not None}
        found = []
        encoded = None
        for doc in docs:
            ref = by_doc.get(id(doc))
            # A component between two heads may have merged tokens.
            if ref is None or ref.encoded.sequences.tokens[ref.place] != len(doc):
                return None
            encoded = ref.encoded
            found.append(ref.place)
        if encoded is None:
            return None
        return take_docs(encoded, np.asarray(found, dtype=np.int64))[0]


class TrainingStep:
    """One training step: the Docs, what was read of them with a graph, who has answered.

    docs (List[Doc]): The batch.
    losses (Dict[str, float]): Where the norm of the gradient goes.
    """

    def __init__(self, docs: list[Doc], losses: dict[str, float]) -> None:
        self.docs = {id(doc): doc for doc in docs}
        self.losses = losses
        self.reads: list[Read] = []
        self.answered: set[int] = set()
        self.finish: tuple[Optimizer, AdamSettings | None] | None = None

    def has(self, docs: Sequence[Doc]) -> bool:
        """RETURNS (bool): Whether the Docs belong to this step."""
        return all(id(doc) in self.docs for doc in docs)

    def read(
        self, docs: Sequence[Doc], model: EncoderModel
    ) -> tuple[Encoded[DocSequences], Callable[[torch.Tensor], None]]:
        """Encode Docs with a graph, those that no listener has read yet: heads that learn from
        different Docs of a batch share what they have in common, and nothing else is run.

        docs (Sequence[Doc]): Docs of the batch.
        model (Model[List[Doc], Encoded]): The encoder.
        RETURNS (Tuple[Encoded, Callable]): The states, and the callback that takes their
            gradient (n_slots, n_layers * width).
        """
        missing = [doc for doc in docs if not any(read.has(doc) for read in self.reads)]
        if missing:
            self.reads.append(Read(missing, model))
        by_read: dict[int, list[int]] = {}
        for place, doc in enumerate(docs):
            number = next(i for i, read in enumerate(self.reads) if read.has(doc))
            by_read.setdefault(number, []).append(place)
        parts = [self.reads[i].take([docs[k] for k in places]) for i, places in by_read.items()]
        if len(parts) == 1:
            return parts[0]

        states = torch.cat([encoded.states for encoded, _ in parts])
        sequences = DocSequences.join([encoded.sequences for encoded, _ in parts])
        # From read after read to the order in which the Docs were asked for.
        order = np.argsort(np.concatenate(list(by_read.values())))
        joined, rows = take_docs(replace(parts[0][0], states=states, sequences=sequences), order)

        def answer(gradient: torch.Tensor) -> None:
            if rows is not None:
                gradient = torch.empty_like(gradient).index_copy_(0, rows, gradient)
            sizes = [len(encoded.states) for encoded, _ in parts]
            for (_, answer_part), part in zip(parts, gradient.split(sizes), strict=True):
                answer_part(part)

        return joined, answer

    def read_pairs(
        self, pairs: Pairs, model: EncoderModel
    ) -> tuple[Encoded, Callable[[torch.Tensor], None]]:
        """Encode pairs with a graph. No two heads read the same ones.

        pairs (Pairs): Pairs with Docs of the batch.
        model (Model[List[Doc], Encoded]): The encoder.
        RETURNS (Tuple[Encoded, Callable]): As above.
        """
        read = Read(pairs, model)
        self.reads.append(read)
        return read.encoded, lambda gradient: read.add(gradient, None)

    def backward(self, name: str) -> None:
        """Send the gathered gradients through the encoder.

        name (str): The encoder's name, for the losses.
        """
        while self.reads:
            read = self.reads.pop()
            if read.gradient is not None:
                read.backprop(read.gradient)
                self.losses[name] += float(read.gradient.norm())


class Read:
    """One forward pass with a graph, and the gradient that gathers for it.

    inputs (List[Doc] / Pairs): What to read.
    model (Model[List[Doc], Encoded]): The encoder.
    """

    def __init__(self, inputs: list[Doc] | Pairs, model: EncoderModel) -> None:
        docs = [] if isinstance(inputs, Pairs) else inputs
        self.places = {id(doc): i for i, doc in enumerate(docs)}
        self.encoded: Encoded
        self.backprop: Callable[[Any], Any]
        self.encoded, self.backprop = model.begin_update(inputs)
        self.gradient: torch.Tensor | None = None

    def has(self, doc: Doc) -> bool:
        """RETURNS (bool): Whether the Doc was read, with the tokens that it has now."""
        place = self.places.get(id(doc))
        return place is not None and bool(self.encoded.sequences.tokens[place] == len(doc))

    def take(
        self, docs: Sequence[Doc]
    ) -> tuple[Encoded[DocSequences], Callable[[torch.Tensor], None]]:
        """docs (Sequence[Doc]): Docs that were read.
        RETURNS (Tuple[Encoded, Callable]): Their states, and the callback that takes the gradient.
        """
        places = np.asarray([self.places[id(doc)] for doc in docs], dtype=np.int64)
        encoded, slots = take_docs(self.encoded, places)
        return encoded, lambda gradient: self.add(gradient, slots)

    def add(self, gradient: torch.Tensor, slots: torch.Tensor | None) -> None:
        """Take a listener's gradient.

        gradient (Tensor): (n_slots, n_layers * width).
        slots (Optional[Tensor]): Which rows it is for; None for all.
        """
        if slots is not None:
            whole = torch.zeros_like(self.encoded.states)
            gradient = whole.index_add_(0, slots, gradient)
        self.gradient = gradient if self.gradient is None else self.gradient + gradient


def take_docs(
    encoded: Encoded[DocSequences], places: Ints1d
) -> tuple[Encoded[DocSequences], torch.Tensor | None]:
    """Slice a batch.

    encoded (Encoded): The batch.
    places (Ints1d): Which Docs, in which order.
    RETURNS (Tuple[Encoded, Optional[Tensor]]): Their states, and the rows these come from; None
        for the rows if it is the whole batch as it is.
    """
    sequences = encoded.sequences
    if np.array_equal(places, np.arange(len(sequences.tokens))):
        return encoded, None
    taken, slots = sequences.take(places)
    rows = torch.from_numpy(slots).to(encoded.states.device)
    states = encoded.states.index_select(0, rows)
    return replace(encoded, states=states, sequences=taken), rows
