"""spaCy's protocol for a layer that several components share, for the encoder component."""

import sys
import weakref
from collections.abc import Callable
from typing import Any, cast

from spacy.language import Language
from spacy.vocab import Vocab
from thinc.api import Model

from .listener import BertListener
from .model import EncoderModel, checkpoint_of, shim_of


class ListenedTo:
    """Link the listeners of heads to an encoder (spacy.ty.ListenedToComponent), and choose the
    layers that it computes."""

    vocab: Vocab
    name: str
    model: EncoderModel
    nlp: Callable[[], Language | None]  # a weak reference to the pipeline, see `note_pipeline`
    listener_map: dict[str, list[BertListener]]
    # spaCy clears the map whenever it links a pipeline, and does not add disabled heads to it.
    _linked: "weakref.WeakSet[BertListener]"

    @property
    def listeners(self) -> list[BertListener]:
        """The listeners of all heads."""
        return [listener for group in self.listener_map.values() for listener in group]

    @property
    def listening_components(self) -> list[str]:
        """The names of the heads."""
        return list(self.listener_map)

    def note_pipeline(self) -> None:
        """Note the pipeline whose method has called the caller of this.

        spaCy passes it to factories alone, not to a component that was sourced, copied or
        unpickled, and pipelines may share a component.
        """
        caller = sys._getframe(2).f_locals.get("self")
        if isinstance(caller, Language):
            self.nlp = weakref.ref(caller)

    def add_listener(self, listener: BertListener, component_name: str) -> None:
        """Link the listener of a head.

        A head that was sourced into this pipeline still reads its own encoder for the Docs of its
        own pipeline. A listener of this pipeline is unlinked from the pipeline's other encoders.
        """
        nlp = self.nlp()
        beside = [] if nlp is None else [id(pipe) for _, pipe in nlp.components]
        for other in listener.upstreams:
            if other is not self and (other.vocab is self.vocab or id(other) in beside):
                other.remove_listener(listener, component_name)
        group = self.listener_map.setdefault(component_name, [])
        if not any(one is listener for one in group):
            group.append(listener)
        self._linked.add(listener)
        listener.link(cast(Any, self), component_name)
        self._choose_layers()

    def remove_listener(self, listener: BertListener, component_name: str) -> bool:
        """Unlink the listener of a head. Returns whether it was linked."""
        if listener not in self._linked:
            return False
        rest = [one for one in self.listener_map.pop(component_name, []) if one is not listener]
        if rest:
            self.listener_map[component_name] = rest
        self._linked.remove(listener)
        listener.unlink(cast(Any, self))
        self._choose_layers()
        return True

    def find_listeners(self, component: Any) -> None:
        """Link the listeners of a component that name this encoder, or "*"."""
        self.note_pipeline()
        if isinstance(getattr(component, "model", None), Model):
            for node in component.model.walk():
                if isinstance(node, BertListener) and (
                    node.upstream_name == self.name
                    or (node.upstream_name == "*" and self._is_nearest(component, node))
                ):
                    self.add_listener(node, component.name)

    def _is_nearest(self, component: Any, listener: BertListener) -> bool:
        """Return whether there is no other encoder between this one and a component. Disabled
        encoders count too: spaCy disables frozen components in training, but their heads still
        belong to them."""
        nlp = self.nlp()
        pipes = [] if nlp is None else [id(pipe) for _, pipe in nlp.components]
        if nlp is None or id(self) not in pipes or id(component) not in pipes:
            # No pipeline with both has called, so the order is unknown.
            linked = [one for one in listener.upstreams if one.vocab is self.vocab]
            return not linked or self in linked
        between = nlp.components[pipes.index(id(self)) + 1 : pipes.index(id(component))]
        return not any(isinstance(pipe, ListenedTo) for _, pipe in between)

    def _tell_listeners(self) -> None:
        """Link the listeners again, after the width of the hidden states is known."""
        for listener in self._linked:
            listener.link(cast(Any, self), listener.component_name)
        self._choose_layers()

    def _choose_layers(self) -> None:
        """Set the layers that the encoder computes: those that some listener reads."""
        if shim_of(self.model).has_module:
            checkpoint = checkpoint_of(self.model)
            read = {n for one in self._linked for n in checkpoint.layer_numbers(one.reads)}
            self.model.attrs["layers"] = sorted(read) or [-1]
