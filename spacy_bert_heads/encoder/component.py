"""The component that owns the encoder: the latest batch of states, and the training step."""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example, validate_examples
from spacy.vocab import Vocab
from thinc.api import Model, Optimizer

from ..files import AGAIN, check_digests, in_component, replace_file, write_digests
from ..types import Encoded, MeanLoss, Pairs
from .cache import StatesCache
from .listener import BertListener
from .loading import SAVED
from .model import EncoderModel, bert_of, prepare, shim_of
from .shim import adam_settings
from .states import LatestBatch, TrainingStep

DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.BertEncoder.v1",
    "name": "bert-base-uncased",
    "revision": None,
    "window": 256,
    "stride": 192,
    "max_batch_tokens": 4096,
    "precision": "auto",
    "frozen_layers": 0,
    "adapter": None,
    "adapter_size": None,
    "share_checkpoint": False,
    "rate_factor": 1.0,
    "layer_decay": 1.0,
}

# Above this, fine-tuning forgets what pretraining taught (BERT, section A.3, uses 2e-5 to
# 5e-5); spaCy's own default is 1e-3.
HIGH_LEARN_RATE = 5e-4


@Language.factory("bert_encoder", default_config={"model": DEFAULT_MODEL})
def make_bert_encoder(nlp: Language, name: str, model: EncoderModel) -> "BertEncoder":
    """Create the encoder component. It annotates nothing: the heads after it read its states.

    nlp (Language): The pipeline.
    name (str): The component's name.
    model (Model[List[Doc], Encoded]): The encoder.
    """
    encoder = BertEncoder(nlp.vocab, model, name)
    encoder.nlp = weakref.ref(nlp)
    return encoder


class BertEncoder(TrainablePipe):
    """Serve the states of one BERT to every head that listens.

    Nothing happens until a head asks. The latest batch is kept, so that the heads of a pipeline
    share one pass; in training, so that their gradients add up to one backward pass.

    vocab (Vocab): The vocabulary.
    model (Model[List[Doc], Encoded]): The encoder.
    name (str): The component's name.
    """

    def __init__(self, vocab: Vocab, model: EncoderModel, name: str = "bert_encoder") -> None:
        self.vocab = vocab
        self.model = model
        self.name = name
        self.cfg: dict[str, Any] = {}
        self.nlp: Callable[[], Language | None] = lambda: None  # the pipeline, held weakly
        self.listener_map: dict[str, list[BertListener]] = {}
        # spaCy empties the map whenever it links a pipeline, and leaves disabled heads out of it.
        self._linked: weakref.WeakSet[BertListener] = weakref.WeakSet()
        self._latest = LatestBatch()
        self._step: TrainingStep | None = None
        self._warned = False
        # Set by the callback `cache_states.v1`; part of a training run, not of the pipeline.
        self.cache: StatesCache | None = None

    # --- spaCy's protocol for shared layers (spacy.ty.ListenedToComponent)

    @property
    def listeners(self) -> list[BertListener]:
        """RETURNS (List[BertListener]): The listeners of all heads."""
        return [listener for group in self.listener_map.values() for listener in group]

    @property
    def listening_components(self) -> list[str]:
        """RETURNS (List[str]): The names of the heads."""
        return list(self.listener_map)

    def add_listener(self, listener: BertListener, component_name: str) -> None:
        """Link a head's listener.

        listener (BertListener): The layer.
        component_name (str): The head's name.
        """
        if listener.upstream is not None and listener.upstream is not self:
            listener.upstream.remove_listener(listener, component_name)
        group = self.listener_map.setdefault(component_name, [])
        if not any(one is listener for one in group):
            group.append(listener)
        self._linked.add(listener)
        listener.link(self, component_name)
        self._choose_layers()

    def remove_listener(self, listener: BertListener, component_name: str) -> bool:
        """Unlink a head's listener.

        listener (BertListener): The layer.
        component_name (str): The head's name.
        RETURNS (bool): Whether it was linked.
        """
        if listener not in self._linked:
            return False
        rest = [one for one in self.listener_map.pop(component_name, []) if one is not listener]
        if rest:
            self.listener_map[component_name] = rest
        self._linked.remove(listener)
        listener.unlink()
        self._choose_layers()
        return True

    def find_listeners(self, component: Any) -> None:
        """Link the listeners inside a component that name this encoder, or "*".

        component (Any): A component that stands behind this one.
        """
        if isinstance(getattr(component, "model", None), Model):
            names = (self.name, "*") if self._is_nearest(component) else (self.name,)
            for node in component.model.walk():
                if isinstance(node, BertListener) and node.upstream_name in names:
                    self.add_listener(node, component.name)

    def _is_nearest(self, component: Any) -> bool:
        """Whether no other encoder stands between: spaCy does not ask one that is disabled, and a
        frozen one is while the others learn, but its heads are its own all the same."""
        nlp = self.nlp()
        pipes = [] if nlp is None else [id(pipe) for _, pipe in nlp.components]
        if nlp is None or id(self) not in pipes or id(component) not in pipes:
            return True
        between = nlp.components[pipes.index(id(self)) + 1 : pipes.index(id(component))]
        return not any(isinstance(pipe, BertEncoder) for _, pipe in between)

    # --- predicting

    def __call__(self, doc: Doc) -> Doc:
        """Do nothing: the heads ask for what they need."""
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Do nothing: the heads ask for what they need."""
        yield from stream

    def predict(self, docs: Sequence[Doc]) -> Encoded:
        """Encode a batch, or find it encoded. A training step that is open is finished first,
        but for a prediction on the step's own Docs (of an annotating component).

        docs (Sequence[Doc]): The Docs.
        RETURNS (Encoded): Their states, without a graph.
        """
        self._close_other_step(docs)
        version = shim_of(self.model).version, tuple(self.model.attrs["layers"])
        encoded = self._latest.find(docs, version)
        if encoded is None:
            self._latest.drop()  # before the next batch is made, so that only one is alive
            encoded = self._encode(list(docs))
            self._latest.keep(docs, version, encoded)
        return encoded

    def _encode(self, inputs: list[Doc] | Pairs) -> Encoded:
        if self.cache is None:
            return self.model.predict(inputs)
        return self.cache.encode(self.model, inputs)

    def set_annotations(self, docs: Sequence[Doc], encoded: Encoded) -> None:
        """Do nothing: states never stay on a Doc."""

    def read(
        self, inputs: Sequence[Doc] | Pairs, listener: BertListener | None
    ) -> tuple[Encoded, Callable[[torch.Tensor], None]]:
        """Answer a listener.

        inputs (Sequence[Doc] / Pairs): The Docs it asks for, or Docs with second texts. The
            states of pairs are not kept, as no other head reads the same pairs.
        listener (Optional[BertListener]): The listener, if it is training. Outside of a step
            (this encoder is frozen) it gets states without a graph, and its gradient is dropped.
        RETURNS (Tuple[Encoded, Callable]): The states, and the callback that takes their
            gradient (n_slots, n_layers * width).
        """
        docs = inputs.docs if isinstance(inputs, Pairs) else inputs
        if listener is None or self._step is None or not self._step.has(docs):
            if isinstance(inputs, Pairs):
                self._close_other_step(docs)
                return self._encode(inputs), lambda gradient: None
            return self.predict(inputs), lambda gradient: None
        step = self._step
        if isinstance(inputs, Pairs):
            encoded, answer = step.read_pairs(inputs, self.model)
        else:
            encoded, answer = step.read(inputs, self.model)

        def backprop(gradient: torch.Tensor) -> None:
            answer(gradient)
            step.answered.add(listener.id)
            if step is self._step and step.answered >= {one.id for one in self._linked}:
                self._close_step()

        return encoded, backprop

    # --- training

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Open a training step: the heads after this read the batch with a graph, and their
        gradients add up. The backward pass follows the last head's answer, or comes before
        whatever needs its result: the next `update`, `finish_update`, a prediction, a save.

        examples (Iterable[Example]): The batch.
        drop (float): Not used: dropout is the checkpoint's own.
        sgd (Optional[Optimizer]): An optimizer to step with after the backward pass.
        losses (Optional[Dict[str, float]]): Gets this component's entry: the norm of the
            gradient by the states, a mean over updates.
        RETURNS (Dict[str, float]): The losses.
        """
        losses = {} if losses is None else losses
        examples = list(examples)
        validate_examples(examples, "BertEncoder.update")
        self._close_step()
        self._latest.drop()
        losses.setdefault(self.name, MeanLoss())
        self._step = TrainingStep([eg.predicted for eg in examples], losses)
        if sgd not in (None, False):
            self.finish_update(sgd)
        return losses

    def finish_update(self, sgd: Optimizer) -> None:
        """Step the weights. While no head has answered yet (`nlp.update(…, sgd=…)` calls this
        before the heads), the optimizer's settings are only noted: AdamW must not touch weights
        that an open graph still needs.

        sgd (Optimizer): The thinc optimizer.
        RAISES (ValueError): If it averages parameters.
        """
        rate = sgd.learn_rate * shim_of(self.model).rate_factor
        keeps_weights = self.model.attrs["adapter"] is not None
        if rate > HIGH_LEARN_RATE and not keeps_weights and not self._warned:
            self._warned = True
            warnings.warn(
                f"A learning rate of {rate:g} makes a pretrained encoder forget what it "
                "knows. Use 1e-5 to 1e-4 in [training.optimizer.learn_rate], as the config of "
                "`python -m spacy bert init-config` does.",
                stacklevel=2,
            )
        if self._step is not None and not self._step.answered:
            # The schedules may move on before the step is taken.
            self._step.finish = (sgd, adam_settings(sgd))
            return
        self._close_step()
        shim_of(self.model).finish_update(sgd)

    def _close_other_step(self, docs: Sequence[Doc]) -> None:
        if self._step is not None and not self._step.has(docs):
            self._close_step()

    def _close_step(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.backward(self.name)
            if step.finish is not None:
                shim_of(self.model).finish_update(*step.finish)

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
    ) -> None:
        """Load the checkpoint that the config names, from the hub or a folder.

        get_examples (Callable): Not used.
        nlp (Optional[Language]): Not used.
        RAISES (ValueError): If it can't be loaded or doesn't go with the settings.
        """
        shim_of(self.model).clear()
        self.model.initialize()
        self._tell_listeners()

    # --- files: the folder is a Hugging Face checkpoint

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Save the encoder as a Hugging Face folder, `path/model`, and digests of its files.

        Only files of an encoder saved there before are replaced or deleted. A symbolic link in the
        place of a file or of the folder is replaced; what it points to is left alone.
        """
        self._close_step()
        folder = Path(path) / "model"
        if folder.is_symlink():
            folder.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        if "model" not in exclude:
            files = shim_of(self.model).to_files()
            for name in SAVED:  # files of another kind would be read beside these
                if name not in files:
                    (folder / name).unlink(missing_ok=True)
            for name, content in files.items():
                replace_file(folder / name, content)
            write_digests(Path(path), [f"model/{name}" for name in files])

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> "BertEncoder":
        """Load what `to_disk` saved. Needs no network, unless the checkpoint is shared.

        Raises ValueError with the file if one is missing or damaged.
        """
        if "model" not in exclude:
            folder = Path(path) / "model"
            if not folder.is_dir():
                raise ValueError(f"There is no '{folder}' of component '{self.name}'. {AGAIN}")
            check_digests(Path(path), self.name)
            found = [folder / name for name in SAVED if (folder / name).is_file()]
            with in_component(self.name, folder):
                self._load({file.name: file.read_bytes() for file in found})
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """RETURNS (bytes): The component, packed by msgpack."""
        self._close_step()
        return super().to_bytes(exclude=tuple(exclude))

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> "BertEncoder":
        """bytes_data (bytes): What `to_bytes` gave.
        RETURNS (BertEncoder): This component.
        """
        with in_component(self.name):
            super().from_bytes(bytes_data, exclude=tuple(exclude))
            self._load({})
        return self

    def _load(self, files: dict[str, bytes]) -> None:
        shim = shim_of(self.model).from_files(files)
        if shim.has_module:
            prepare(self.model)
            self._tell_listeners()

    def _tell_listeners(self) -> None:
        """Link the listeners again, now that the width of the states is known."""
        for listener in self._linked:
            listener.link(self, listener.component_name)
        self._choose_layers()

    def _choose_layers(self) -> None:
        """Give the states that some listener reads, and no others."""
        if shim_of(self.model).has_module:
            bert = bert_of(self.model)
            read = {n for one in self._linked for n in bert.layer_numbers(one.reads)}
            self.model.attrs["layers"] = sorted(read) or [-1]

    def __reduce__(self) -> tuple:
        self._close_step()
        state = (self.listener_map, list(self._linked))
        return BertEncoder, (self.vocab, self.model, self.name), state

    def __setstate__(self, state: tuple[dict[str, list[BertListener]], list[BertListener]]) -> None:
        self.listener_map, linked = state
        self._linked.update(linked)
        self._tell_listeners()


def make_cache_states(folder: Path) -> Callable[[Language], Language]:
    """Make the callback that keeps the hidden states of frozen encoders on disk while heads are
    trained, so that epochs after the first, and evaluations, run no encoder. It belongs to
    `[initialize.after_init]`.

    `folder` is below the folder that the training is started in. It gets 4 bytes for a number: 1.5
    MB for a thousand wordpieces of width 384, times the layers that are read. It can be deleted
    after the training.

    Raises ValueError if the folder is elsewhere: a config from somebody else must not choose any
    folder of the disk.
    """
    below = Path.cwd().resolve()
    if not Path(folder).resolve().is_relative_to(below):
        raise ValueError(
            f"cache_states can't keep hidden states in '{folder}', which is not below '{below}', "
            "where the training was started. Name a folder there."
        )

    def cache_states(nlp: Language) -> Language:
        for _, pipe in nlp.components:  # spaCy has disabled frozen ones meanwhile
            if isinstance(pipe, BertEncoder):
                pipe.cache = StatesCache(folder)
        return nlp

    return cache_states
