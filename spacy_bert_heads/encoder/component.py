"""The component that owns the encoder, its latest batch of hidden states, and the training step."""

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
from .imitation import Imitating
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

# Above this, fine-tuning destroys what pretraining learned (BERT, section A.3, uses 2e-5 to 5e-5).
# spaCy's own default is 1e-3.
HIGH_LEARN_RATE = 5e-4
SAMPLE = 300  # the number of examples that are searched for unknown words


@Language.factory("bert_encoder", default_config={"model": DEFAULT_MODEL})
def make_bert_encoder(nlp: Language, name: str, model: EncoderModel) -> "BertEncoder":
    """Create the encoder component. It does not set any annotations; the heads after it read its
    hidden states."""
    pipe_configs_of(nlp)
    encoder = BertEncoder(nlp.vocab, model, name)
    encoder.nlp = weakref.ref(nlp)
    return encoder


class BertEncoder(ListenedTo, Imitating, TrainablePipe):
    """Compute the hidden states that all heads of a pipeline read. It does not set any annotations.

    It runs only when a head asks for hidden states (`read`). It keeps the latest batch, so that the
    heads share one forward pass, and in training one backward pass with the sum of their gradients.
    """

    def __init__(self, vocab: Vocab, model: EncoderModel, name: str = "bert_encoder") -> None:
        self.vocab = vocab
        self.model = model
        self.name = name
        self.cfg: dict[str, Any] = {}
        self.nlp: Callable[[], Language | None] = lambda: None  # a weak reference to the pipeline
        self.listener_map = {}
        self._linked = weakref.WeakSet()
        self._latest = LatestBatch()
        self._steps = threading.local()  # the open step of each thread
        self.accumulation = Accumulation()
        self._warned: set[str] = set()
        # Set by the callback `cache_states.v1`. It belongs to a training run, not to the pipeline.
        self.cache: StatesCache | None = None

    # --- predicting

    def __call__(self, doc: Doc) -> Doc:
        """Return the Doc. The encoder runs when a head asks for hidden states."""
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Yield the Docs. The encoder runs when a head asks for hidden states."""
        yield from stream

    def predict(self, docs: Iterable[Doc]) -> HiddenStates:
        """Encode a batch without a graph, or find it in the latest one. An open training step is
        not affected."""
        docs = docs if isinstance(docs, list) else list(docs)
        version = shim_of(self.model).version, tuple(self.model.attrs["layers"])
        hidden = self._latest.find(docs, version)
        if hidden is None:
            self._latest.drop()  # before the next batch, so that there is only one in memory
            batch = pack(self.model, docs)
            hidden = self._encode(self.model, batch)
            if not may_lack_windows(docs, batch).any():
                self._latest.keep(docs, version, hidden)
        return hidden

    @property
    def id(self) -> str | None:
        """The random id of this encoder, whatever its weights are; None if version 0.1 saved it."""
        shim = shim_of(self.model)
        return checkpoint_of(self.model).origin.get("id") if shim.has_module else None

    @property
    def num_updates(self) -> int:
        """The number of updates of the weights since the id was assigned."""
        return checkpoint_of(self.model).origin.get("updates", 0)

    def is_learning(self, docs: Sequence[Doc]) -> bool:
        """Return whether a training step for these Docs is open in this thread."""
        return self._step is not None and self._step.has(docs)

    @property
    def _encode(self) -> Callable[[EncoderModel, PackedBatch], HiddenStates]:
        return encode if self.cache is None else self.cache.encode

    def set_annotations(self, docs: Sequence[Doc], hidden: HiddenStates) -> None:
        """Do nothing: hidden states are never stored on a Doc."""

    def read(
        self, inputs: Sequence[Doc] | PackedPairs, listener: BertListener | None
    ) -> tuple[HiddenStates, Callable[[torch.Tensor], None]]:
        """Compute hidden states for a head. A head in training passes its `listener`; then they
        have a graph if a step for its Docs is open in this thread. Hidden states of pairs are not
        kept, because no other head reads the same pairs.

        Returns them, and a callback for their gradient (num_positions, num_layers * hidden_size);
        without an open step the callback ignores it.
        """
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
                gradient = gradient + self.imitation_gradient(inputs, hidden)
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
        """Open a training step: the heads read the batch with a graph, and the encoder gets the sum
        of their gradients.

        The step belongs to this thread and these Docs. It ends with one backward pass, after the
        gradient of the last head that is expected; otherwise at the next `update`, a
        `finish_update` after the first gradient, `use_params`, or a save. Heads that are disabled,
        frozen, or have no gold annotation in the batch are not expected. Predictions on any Docs in
        any thread neither end the step nor use its dropout.

        In `losses` this component's value is the norm of the gradient with respect to the hidden
        states, a mean over updates. `drop` is ignored: dropout is set by the checkpoint.
        """
        losses = {} if losses is None else losses
        examples = list(examples)
        validate_examples(examples, "BertEncoder.update")
        self.note_pipeline()
        self.open_step([eg.predicted for eg in examples], losses, self._expected())
        if sgd not in (None, False):
            self.finish_update(sgd)
        return losses

    def open_step(
        self, docs: list[Doc], losses: dict[str, float], waits_for: Iterable[int]
    ) -> None:
        """Open a training step that waits for gradients from the listeners with these ids."""
        self.close_step()
        self._latest.drop()
        losses.setdefault(self.name, MeanLoss())
        self._steps.open = TrainingStep(self.name, docs, losses, waits_for)

    def _expected(self) -> set[int]:
        """Return the ids of the listeners that are expected to send a gradient."""
        nlp = self.nlp()
        idle = set() if nlp is None else {*nlp.disabled, *frozen_components(nlp)}
        return {one.id for one in self._linked if one.component_name not in idle}

    def skip(self, listener: BertListener) -> None:
        """Stop waiting for a listener that has nothing to learn from the open step's batch."""
        if self._step is not None and self._step.answer(listener.id):
            self.close_step()

    def finish_update(self, sgd: Optimizer) -> None:
        """Update the weights. `nlp.update(…, sgd=…)` calls this before any head has sent its
        gradient. Then only the optimizer's settings are stored, and the update follows the backward
        pass: AdamW must not change weights that an open graph still needs. Raises ValueError if the
        optimizer averages parameters."""
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
        """End the training step that is open in this thread, if any: run its backward pass, and the
        update that spaCy has requested in the meantime."""
        step, self._steps.open = self._step, None
        if step is not None:
            step.close(self.model, self.accumulation)
            if step.finish is not None:
                self._finish(*step.finish)

    def drop_step(self) -> None:
        """Discard this thread's open training step and its gradients, as after an error."""
        step, self._steps.open = self._step, None
        if step is not None:
            step.drop()

    def use_params(self, params: dict) -> Iterator[None]:
        """End the open step, because spaCy is about to evaluate with other weights. It is a
        generator, which spaCy uses as a context manager."""
        self.close_step()
        yield from super().use_params(params)

    @property
    def is_frozen(self) -> bool:
        """Whether this component is in the config's frozen_components."""
        nlp = self.nlp()
        return nlp is not None and self.name in frozen_components(nlp)

    def _warn_not_learning(self, component: str) -> None:
        if self.nlp() is not None and not self.is_frozen:
            self._warn_once(
                f"{component} learns, but '{self.name}' does not: it has not been updated with "
                "these examples, because it is disabled or excluded, or the component was updated "
                "alone. To train it, call nlp.update(examples) with both components enabled; to "
                "keep it as it is, set nlp.config['training']['frozen_components'] = "
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
        """Load the checkpoint that the config names, from the hub or a folder. Warns if it does not
        know many words of the first examples. Raises ValueError if it can't be loaded or does not
        fit the settings."""
        self.close_step()  # for the old weights
        shim_of(self.model).clear()
        self.model.initialize()
        self._tell_listeners()
        texts = [eg.x.text for eg in islice(get_examples(), SAMPLE)]
        warn_of_unknown(texts, checkpoint_of(self.model).tokenizer, self.model.attrs["name"])

    # --- files: the folder is a Hugging Face checkpoint

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Save the encoder as a Hugging Face folder, `path/model`, and digests of its files. Only
        files of such a save are replaced or deleted; symbolic links there are not followed."""
        self.close_step()
        for listener in self._linked:
            listener.warn_if_lost(self)
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
        """Load what `to_disk` saved. This needs no network, unless the checkpoint is shared. Raises
        ValueError that names a missing or damaged file."""
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
                    self._after_loading()
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """Serialize the component to msgpack."""
        self.close_step()
        return super().to_bytes(exclude=tuple(exclude))

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> "BertEncoder":
        """Load what `to_bytes` returned."""
        with in_component(self.name):
            super().from_bytes(bytes_data, exclude=tuple(exclude))
            self._after_loading()
        return self

    def _after_loading(self) -> None:
        """Set up the model and its listeners for the loaded weights."""
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
    """Return the frozen_components of the pipeline's config."""
    frozen = nlp.config["training"].get("frozen_components") or []
    if isinstance(frozen, str):  # a variable
        frozen = nlp.config.interpolate()["training"]["frozen_components"]
    return frozen
