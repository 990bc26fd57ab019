"""The component that owns the encoder: the latest batch of hidden states, and the training step."""

import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example, validate_examples
from spacy.vocab import Vocab
from thinc.api import Optimizer

from ..files import AGAIN, check_digests, in_component, write_digests
from ..pipe_configs import pipe_configs_of
from ..text.batch import PackedBatch
from ..text.unknown import warn_of_unknown
from .accumulation import Accumulation
from .cache import StatesCache
from .encoder import Encoder
from .hidden_states import HiddenStates
from .identity import count_update
from .imitation import Imitating, pull
from .latest import LatestBatch
from .listened import ListenedTo
from .listener import BertListener
from .model import (
    EncoderModel,
    PackedPairs,
    checkpoint_of,
    encode,
    may_lack_windows,
    pack,
    prepare,
    shim_of,
)
from .optimization import AdamSettings, adam_settings
from .saved import SAVED, read_checkpoint, write_checkpoint
from .source import open_folder
from .step import MeanLoss, TrainingStep

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
    "learning_rate_multiplier": 1.0,
    "layer_decay": 1.0,
}

# Above this, fine-tuning forgets what pretraining taught (BERT, section A.3, uses 2e-5 to
# 5e-5); spaCy's own default is 1e-3.
HIGH_LEARN_RATE = 5e-4
SAMPLE = 300  # examples that are looked at for unknown words


@Language.factory("bert_encoder", default_config={"model": DEFAULT_MODEL})
def make_bert_encoder(nlp: Language, name: str, model: EncoderModel) -> "BertEncoder":
    """Create the encoder component. It does not set any annotations: the heads after it read its
    hidden states."""
    pipe_configs_of(nlp)
    encoder = BertEncoder(nlp.vocab, model, name)
    encoder.nlp = weakref.ref(nlp)
    return encoder


class BertEncoder(ListenedTo, Imitating, TrainablePipe):
    """Serve the hidden states of one BERT to every head that listens. It does not set annotations.

    Nothing happens until a head asks. The latest batch is kept, so that the heads of a pipeline
    share one pass; in training, so that their gradients add up to one backward pass.
    """

    def __init__(self, vocab: Vocab, model: EncoderModel, name: str = "bert_encoder") -> None:
        self.vocab = vocab
        self.model = model
        self.name = name
        self.cfg: dict[str, Any] = {}
        self.nlp: Callable[[], Language | None] = lambda: None  # the pipeline, held weakly
        self.listener_map = {}
        self._linked = weakref.WeakSet()
        self._latest = LatestBatch()
        self._steps = threading.local()  # the step that is open in a thread
        self.accumulation = Accumulation()
        self._warned: set[str] = set()
        # Set by the callback `cache_states.v1`; part of a training run, not of the pipeline.
        self.cache: StatesCache | None = None

    # --- predicting

    def __call__(self, doc: Doc) -> Doc:
        """Do nothing: the heads ask for what they need."""
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Do nothing: the heads ask for what they need."""
        yield from stream

    def predict(self, docs: Iterable[Doc]) -> HiddenStates:
        """Encode a batch without a graph, or find it encoded. An open step stays as it is."""
        docs = docs if isinstance(docs, list) else list(docs)
        version = shim_of(self.model).version, tuple(self.model.attrs["layers"])
        hidden = self._latest.find(docs, version)
        if hidden is None:
            self._latest.drop()  # before the next batch is made, so that only one is alive
            batch = pack(self.model, docs)
            hidden = self._encode(self.model, batch)
            if not may_lack_windows(docs, batch).any():
                self._latest.keep(docs, version, hidden)
        return hidden

    @property
    def id(self) -> str | None:
        """What tells this encoder from others, whatever their weights are; None if version 0.1
        saved it."""
        shim = shim_of(self.model)
        return checkpoint_of(self.model).origin.get("id") if shim.has_module else None

    @property
    def num_updates(self) -> int:
        """How often the weights have been updated since the id was given."""
        return checkpoint_of(self.model).origin.get("updates", 0)

    def is_learning(self, docs: Sequence[Doc]) -> bool:
        """Whether a training step is open for these Docs in this thread."""
        return self._step is not None and self._step.has(docs)

    @property
    def _encode(self) -> Callable[[EncoderModel, PackedBatch], HiddenStates]:
        return encode if self.cache is None else self.cache.encode

    def set_annotations(self, docs: Sequence[Doc], hidden: HiddenStates) -> None:
        """Do nothing: hidden states never stay on a Doc."""

    def read(
        self, inputs: Sequence[Doc] | PackedPairs, listener: BertListener | None
    ) -> tuple[HiddenStates, Callable[[torch.Tensor], None]]:
        """Answer a listener: with a graph if it is training (else it gives None) and a step is open
        for its Docs in this thread. Hidden states of pairs are not kept, as no other head reads the
        same pairs. Returns the hidden states, and the callback that takes their gradient
        (num_positions, num_layers * hidden_size); outside of a step, where this encoder doesn't
        learn, it drops that."""
        docs = inputs.docs if isinstance(inputs, PackedPairs) else inputs
        step = None if listener is None else self._step
        if listener is None or step is None or not step.has(docs):
            if listener is not None:
                self._warn_not_learning(listener.component_name)
            if isinstance(inputs, PackedPairs):
                hidden = self._encode(self.model, inputs.batch)
            else:
                hidden = self.predict(inputs)
            return hidden, lambda gradient: None
        if isinstance(inputs, PackedPairs):
            hidden, answer = step.read_pairs(inputs, self.model, listener.id)
        else:
            hidden, answer = step.read(inputs, self.model, listener.id)

        def backprop(gradient: torch.Tensor) -> None:
            step.check_open(listener.component_name)
            if self._teacher is not None:
                gradient = gradient + pull(hidden, self._teacher.read(inputs, None)[0])
            answer(gradient)
            step.items[listener.id] = listener.num_items
            if step.answer(listener.id):
                self.close_step()

        return hidden, backprop

    # --- training

    @property
    def _step(self) -> TrainingStep | None:
        return getattr(self._steps, "open", None)

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Open a training step: the heads after this read the batch with a graph, and their
        gradients add up.

        The step belongs to this thread and these Docs. It ends, with one backward pass, with the
        last answer that is expected; else with the next `update`, a `finish_update` after some
        answer, `use_params`, or a save. Heads that are disabled, frozen, or have no gold
        annotation in the batch are not waited for. Predictions, of these Docs or of others, in this
        thread or another, neither end it nor see its dropout.

        `losses` gets this component's entry: the norm of the gradient by the hidden states, a mean
        over updates. `drop` is not used: dropout is the checkpoint's own.
        """
        losses = {} if losses is None else losses
        examples = list(examples)
        validate_examples(examples, "BertEncoder.update")
        self.open_step([eg.predicted for eg in examples], losses, self._expected())
        if sgd not in (None, False):
            self.finish_update(sgd)
        return losses

    def open_step(
        self, docs: list[Doc], losses: dict[str, float], waits_for: Iterable[int]
    ) -> None:
        """Open a training step that the listeners with these ids are to answer."""
        self.close_step()
        self._latest.drop()
        losses.setdefault(self.name, MeanLoss())
        self._steps.open = TrainingStep(self.name, docs, losses, waits_for)

    def _expected(self) -> set[int]:
        """The ids of the listeners that are expected to answer."""
        nlp = self.nlp()
        idle = set() if nlp is None else {*nlp.disabled, *frozen_components(nlp)}
        return {one.id for one in self._linked if one.component_name not in idle}

    def skip(self, listener: BertListener) -> None:
        """Note that a listener has nothing to learn from the batch of the open step."""
        if self._step is not None and self._step.answer(listener.id):
            self.close_step()

    def finish_update(self, sgd: Optimizer) -> None:
        """Step the weights. While no head has answered yet (`nlp.update(…, sgd=…)` calls this
        before the heads), the optimizer's settings are only noted: AdamW must not touch weights
        that an open graph still needs. Raises ValueError if the optimizer averages parameters."""
        rate = sgd.learn_rate * shim_of(self.model).optimization.learning_rate_multiplier
        if rate > HIGH_LEARN_RATE and self.model.attrs["adapter"] is None:
            self._warn_once(
                f"A learning rate above {HIGH_LEARN_RATE:g} makes a pretrained encoder forget what "
                f"it knows: '{self.name}' is at {rate:g}. Use 1e-5 to 1e-4 in "
                "[training.optimizer.learn_rate], as `python -m spacy bert init-config` does; or "
                "beside components of spaCy, which need 1e-3, set "
                f"learning_rate_multiplier = 0.1 in [components.{self.name}.model], as "
                "`init-config --adapt` does."
            )
        if self._step is not None and not self._step.has_answers:
            # The schedules may move on before the step is taken.
            self._step.finish = (sgd, adam_settings(sgd))
            return
        self.close_step()
        self._finish(sgd)

    def _finish(self, sgd: Optimizer, settings: AdamSettings | None = None) -> None:
        shim = shim_of(self.model)
        before = shim.version
        shim.finish_update(sgd, settings)
        if shim.version != before:
            count_update(checkpoint_of(self.model))

    def close_step(self) -> None:
        """End the training step that is open in this thread, if one is: one backward pass, and the
        update that spaCy has asked for meanwhile."""
        step, self._steps.open = self._step, None
        if step is not None:
            step.close(self.model, self.accumulation)
            if step.finish is not None:
                self._finish(*step.finish)

    def drop_step(self) -> None:
        """End the training step that is open in this thread without its gradients, as after an
        error."""
        step, self._steps.open = self._step, None
        if step is not None:
            step.drop()

    def use_params(self, params: dict) -> Iterator[None]:
        """End the open step: spaCy is about to evaluate with other weights. (A generator, which it
        takes for a context manager.)"""
        self.close_step()
        yield from super().use_params(params)

    @property
    def is_frozen(self) -> bool:
        """Whether the pipeline's config keeps the weights as they are."""
        nlp = self.nlp()
        return nlp is not None and self.name in frozen_components(nlp)

    def _warn_not_learning(self, component: str) -> None:
        if self.nlp() is not None and not self.is_frozen:
            self._warn_once(
                f"{component} learns, but '{self.name}' does not: it has not been updated with "
                "these examples, as it is disabled or excluded, or the component was updated by "
                "itself. Let it learn, with nlp.update(examples) and both components enabled; or "
                "say that it shall stay as it is: nlp.config['training']['frozen_components'] = "
                f"['{self.name}']."
            )

    def _warn_once(self, message: str) -> None:
        start = message.partition(":")[0]
        if start not in self._warned:
            self._warned.add(start)
            warnings.warn(message, stacklevel=4)

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
    ) -> None:
        """Load the checkpoint that the config names, from the hub or a folder. A warning says if
        many words of the first examples are unknown to it. Raises ValueError if it can't be loaded
        or doesn't go with the settings."""
        self.close_step()  # of the weights that are given up
        shim_of(self.model).clear()
        self.model.initialize()
        self._tell_listeners()
        texts = [eg.x.text for eg in islice(get_examples(), SAMPLE)]
        warn_of_unknown(texts, checkpoint_of(self.model).tokenizer, self.model.attrs["name"])

    # --- files: the folder is a Hugging Face checkpoint

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Save the encoder as a Hugging Face folder, `path/model`, and digests of its files. Only
        files of an encoder saved there before are replaced or deleted. A symbolic link in the place
        of a file or of the folder is replaced; what it points to is left alone."""
        self.close_step()
        folder = Path(path) / "model"
        if folder.is_symlink():
            folder.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        if "model" not in exclude:
            names = []
            if shim_of(self.model).has_module:
                share = self.model.attrs["share_checkpoint"]
                names = write_checkpoint(checkpoint_of(self.model), folder, share=share)
            for name in SAVED:  # files of another kind would be read beside these
                if name not in names:
                    (folder / name).unlink(missing_ok=True)
            write_digests(Path(path), [f"model/{name}" for name in names])

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> "BertEncoder":
        """Load what `to_disk` saved. Needs no network, unless the checkpoint is shared. Raises
        ValueError with the file if one is missing or damaged."""
        if "model" not in exclude:
            folder = Path(path) / "model"
            if not folder.is_dir():
                raise ValueError(f"There is no '{folder}' of component '{self.name}'. {AGAIN}")
            check_digests(Path(path), self.name)
            if any((folder / name).is_file() for name in SAVED):
                attrs = self.model.attrs
                with in_component(self.name, folder):
                    checkpoint = read_checkpoint(
                        open_folder(folder), name=attrs["name"], revision=attrs["revision"]
                    )
                    shim_of(self.model).module = Encoder(checkpoint)
                    self._settle()
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """Return the component in one msgpack."""
        self.close_step()
        return super().to_bytes(exclude=tuple(exclude))

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> "BertEncoder":
        """Load what `to_bytes` gave."""
        with in_component(self.name):
            super().from_bytes(bytes_data, exclude=tuple(exclude))
            self._settle()
        return self

    def _settle(self) -> None:
        """Fit settings and listeners to the weights that were loaded."""
        if shim_of(self.model).has_module:
            prepare(self.model)
            self._tell_listeners()

    def __reduce__(self) -> tuple:
        self.close_step()
        state = (self.listener_map, list(self._linked))
        return BertEncoder, (self.vocab, self.model, self.name), state

    def __setstate__(self, state: tuple[dict[str, list[BertListener]], list[BertListener]]) -> None:
        self.listener_map, linked = state
        self._linked.update(linked)
        self._tell_listeners()


def frozen_components(nlp: Language) -> list[str]:
    """List the components that the pipeline's config keeps as they are."""
    frozen = nlp.config["training"].get("frozen_components") or []
    if isinstance(frozen, str):  # a variable
        frozen = nlp.config.interpolate()["training"]["frozen_components"]
    return frozen
