"""What all heads share beyond spaCy's TrainablePipe: retry, readable losses, labels."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.vocab import Vocab
from thinc.api import Model, Optimizer

from ..encoder.accumulation import has_gradients, scale_gradients
from ..encoder.listener import BertListener
from ..encoder.model import prepare, shim_of
from ..encoder.step import MeanLoss
from ..files import AGAIN, check_digests, in_component, write_digests
from ..text.doc_data import register_abstained
from .calibrated import CalibratedHead, check_temperature, check_thresholds
from .free_text import parse_labels
from .imitation import Begun, Imitating
from .layers import add_classes
from .outputs import differentiate, map_tensors
from .stream import group_docs


class BertHead(CalibratedHead, Imitating, TrainablePipe):
    """The base of the heads. A head defines what it learns (`labels_of`, `has_gold`, `loss`), what
    it writes (`set_annotations`), and by what the rest of the package knows it (`DeclaredHead`).

    `class_weights` are weights in the loss by label, 1 if not named. `settings` are those of the
    config; they are kept in `cfg`, with the labels. `temperature` divides the logits; of a label
    with a threshold in `thresholds` nothing is said below it (`CalibratedHead`). Raises ValueError
    if a number makes no sense.
    """

    def __init__(
        self,
        vocab: Vocab,
        model: Model,
        name: str,
        *,
        scorer: Callable | None,
        class_weights: dict[str, float] | None = None,
        temperature: float | None = None,
        thresholds: dict[str, float] | None = None,
        **settings: Any,
    ) -> None:
        check_temperature(name, temperature)
        check_thresholds(name, thresholds)
        settings |= {"temperature": temperature, "thresholds": thresholds}
        if class_weights and any(weight < 0 for weight in class_weights.values()):
            raise ValueError(f"class_weights must not be negative: {class_weights}.")
        self.set_extensions()
        register_abstained()
        self.vocab, self.model, self.name, self.scorer = vocab, model, name, scorer
        self._config = {"class_weights": class_weights, **settings}
        self.cfg: dict[str, Any] = {"labels": [], **self._config, "config": self._config}
        self._unknown: set[str] = set()
        self.num_items = 0.0  # that the head's gradients are a mean over, since its last update
        for node in model.walk():  # an error before the first link can name the component
            if hasattr(node, "component_name"):
                node.component_name = name

    # --- what a head defines

    @property
    def n_classes(self) -> int:
        """The classes that the model tells apart."""
        return len(self.labels)

    def labels_of(self, example: Example) -> Iterable[str]:
        """Give the labels in the reference."""
        raise NotImplementedError

    def has_gold(self, example: Example) -> bool:
        """Whether the reference teaches this head anything: by default, whether it has a label."""
        return any(True for _ in self.labels_of(example))

    def start_from_hf(self, labels: Sequence[str]) -> None:
        """Take over what `read_hf` has found, before there are weights."""
        for label in labels:
            self.add_label(label)
        self.check_labels()

    def hf_names(self) -> list[str]:
        """Name the classes of the model as an exported configuration does."""
        return list(self.labels)

    # --- labels

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.cfg["labels"])

    @property
    def label_data(self) -> list[str]:
        """What `initialize` takes as `labels`."""
        return list(self.labels)

    def add_label(self, label: str) -> int:
        """Add a label. Returns 0 if it is there already, else 1. A head that has weights keeps them
        for its other labels, so what it gives them stays until it learns more; the new label begins
        as one of a new head. Raises ValueError if it is no string, or can't be added."""
        if not isinstance(label, str) or not label:
            raise ValueError(f"A label must be a string, not {label!r}.")
        if label in self.labels:
            return 0
        before = self.n_classes
        self.cfg["labels"].append(label)
        self.vocab.strings.add(label)
        if shim_of(self.model).has_module:
            try:
                self.check_labels()
                add_classes(self.model, self.n_classes - before)
            except ValueError:
                self.cfg["labels"].pop()
                raise
        return 1

    def warn_unknown(self, label: str) -> None:
        """Warn once of a label of the training data that is not among this head's."""
        if label not in self._unknown:
            self._unknown.add(label)
            warnings.warn(
                f"{self.name} has no label '{label}' and does not learn from it. Its labels are "
                f"{', '.join(self.labels)}: to learn it too, add it with "
                f"nlp.get_pipe('{self.name}').add_label('{label}').",
                stacklevel=2,
            )

    def label_rows(self, gold: Iterable[Mapping[str, float]]) -> np.ndarray:
        """Arrange the values of Docs, by label, as rows (n_docs, n_labels), NaN where there is
        none."""
        known = dict.fromkeys(self.labels)
        rows = []
        for values in gold:
            for label in values:
                if label not in known:
                    self.warn_unknown(label)
            rows.append([values.get(label, np.nan) for label in known])
        return np.asarray(rows, dtype=np.float32).reshape(-1, len(known))

    # --- training

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        labels: Sequence[str] | str | None = None,
    ) -> None:
        """Collect the labels, from all examples if they are not given, and make the weights.
        `labels` may be JSON, see `as_setting`. Raises ValueError if there is no label, or no
        encoder."""
        validate_get_examples(get_examples, f"{type(self).__name__}.initialize")
        shim_of(self.model).clear()
        labels = parse_labels(nlp, self.name, labels)
        if labels is None:
            labels = sorted({label for eg in get_examples() for label in self.labels_of(eg)})
        for label in labels:
            self.add_label(label)
        self.check_labels()
        self.model.set_dim("nO", self.n_classes, force=True)
        docs = [eg.x for eg in islice(get_examples(), 10)]
        for listener in self._listeners():
            listener.trained_on = listener.trained_at = None
        self.model.initialize(X=docs or None)
        self.note_encoder()
        self.start_from_data(get_examples())

    def start_from_data(self, examples: Iterable[Example]) -> None:
        """Set what starts at a value of the training data, after the weights are made."""

    def check_labels(self) -> None:
        """Raise ValueError if the head can't learn with the labels that it has."""
        if not self.labels:
            raise ValueError(
                f"{self.name} has no labels: the training data has none for it, or none was given. "
                f"Annotate the data, name labels under [initialize.components.{self.name}.labels], "
                f"or call nlp.get_pipe('{self.name}').add_label(…) before nlp.initialize()."
            )
        unknown = sorted(set(self.cfg["class_weights"] or ()) - set(self.weighted_labels))
        if unknown:
            raise ValueError(
                f"class_weights of {self.name} names '{unknown[0]}', which is not among its "
                f"labels: {', '.join(self.weighted_labels)}."
            )

    @property
    def weighted_labels(self) -> tuple[str, ...]:
        """What `class_weights` may name."""
        return self.labels

    def _weights(self, logits: torch.Tensor) -> torch.Tensor:
        """A weight for each class (n_classes,)."""
        weights = self.cfg["class_weights"] or {}
        return logits.new_tensor([weights.get(label, 1.0) for label in self.labels])

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Learn from those examples of a batch whose references are annotated for this head. The
        others are not run.

        `drop` is not used: the head's dropout is set in its model. `losses` gets this component's
        entry, a mean over updates.
        """
        losses = {} if losses is None else losses
        examples = list(examples)
        validate_examples(examples, f"{type(self).__name__}.update")
        losses.setdefault(self.name, MeanLoss())
        begun = self._begin(examples)
        if begun is None:
            for listener in self._listeners():
                listener.skip()
        else:
            self.learn(begun, losses)
        if sgd not in (None, False):
            self.finish_update(sgd)
        return losses

    def _begin(self, examples: list[Example]) -> Begun | None:
        """Run the model on what there is to learn from in a batch; None if that is nothing."""
        if self._teacher is not None:
            docs = [eg.predicted for eg in examples if len(eg.predicted)]
            inputs = self.unlabelled_inputs(docs)
            return None if inputs is None else self.begin_imitation(docs, inputs, self._teacher)
        annotated = [eg for eg in examples if self.has_gold(eg)]
        step = self.begin_update(annotated) if annotated else None
        if step is None:
            return None
        docs = [eg.predicted for eg in annotated]
        return Begun(*step, lambda output: self.loss(annotated, output), docs)

    def loss(self, examples: Sequence[Example], output: Any) -> torch.Tensor:
        """Give the loss of annotated examples, a number, as torch computes with it.

        `output` is what `begin_update` gave. Whatever the loss learns with is in it, so that the
        gradient by it is all that has to be known. `means.mean_over` makes a loss that says over
        how many items it is a mean; otherwise each example counts as one.
        """
        raise NotImplementedError

    def get_loss(self, examples: Iterable[Example], scores: Any) -> tuple[float, Any]:
        """Give the loss, and its gradient by the tensors of the model's output, in a structure like
        that of the output (spaCy's protocol; autograd does the rest)."""
        examples = list(examples)
        loss, gradient = differentiate(lambda output: self.loss(examples, output), scores)
        return float(loss.detach()), gradient

    def _backprop(self, gradient: Any, backprop: Callable[[Any], Any], num_items: float) -> None:
        """Add a gradient to those of the sub-batches before it, as a mean over the items of all.
        The encoder, which learns from other heads too, weights it by itself."""
        if not has_gradients(shim_of(self.model).module):
            self.num_items = 0.0
        self.num_items += num_items
        share = num_items / self.num_items if num_items else 1.0
        if share < 1:
            scale_gradients(self.model, 1 - share)
            gradient = map_tensors(gradient, lambda part: part * share)
        for listener in self._listeners():
            listener.num_items, listener.share = num_items, share
        try:
            backprop(gradient)
        finally:
            for listener in self._listeners():
                listener.num_items, listener.share = None, 1.0

    def begin_update(self, examples: list[Example]) -> tuple[Any, Callable] | None:
        """Run the model with a graph on annotated examples, one at least.

        Gives the model's output and the callback that takes a gradient of the same structure; None
        if there is nothing to learn after all.
        """
        return self.model.begin_update([eg.predicted for eg in examples])

    def _listeners(self) -> list[BertListener]:
        return [node for node in self.model.walk() if isinstance(node, BertListener)]

    def note_encoder(self, docs: Sequence[Doc] = ()) -> None:
        """Note which encoder this head is trained on. It is saved with the head, and predictions
        with another encoder are an error."""
        for listener in self._listeners():
            encoder = listener.encoder_for(docs, is_train=True)
            # The encoder's update comes when all heads of its step have answered.
            at = encoder.num_updates + (bool(docs) and encoder.is_learning(docs))
            if docs and listener.trained_on == encoder.id and listener.trained_at is not None:
                gap = at - listener.trained_at
                listener.longest_gap = max(listener.longest_gap, gap)
            listener.trained_on, listener.trained_at = encoder.id, at
            self.cfg |= {
                "encoder": encoder.id,
                "encoder_updates": at,
                "longest_gap": listener.longest_gap,
            }

    # --- files

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Save the head, and digests of its files."""
        super().to_disk(path, exclude=tuple(exclude))
        write_digests(Path(path), [name for name in ("cfg", "model") if name not in exclude])

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> "BertHead":
        """Load what `to_disk` saved. Raises ValueError with the file that is missing or damaged."""
        folder, exclude = Path(path), tuple(exclude)
        check_digests(folder, self.name, exclude=exclude)
        for name in ("cfg", "model"):
            if name not in exclude and not (folder / name).is_file():
                raise ValueError(f"There is no '{folder / name}' of '{self.name}'. {AGAIN}")
        with in_component(self.name, folder):
            super().from_disk(folder, exclude=exclude)
            return self._settle()

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> "BertHead":
        """Load what `to_bytes` gave."""
        with in_component(self.name):
            super().from_bytes(bytes_data, exclude=tuple(exclude))
            return self._settle()

    def _settle(self) -> "BertHead":
        """Let settings that the config has now win over those it had when this was saved; and what
        was set by hand since (`cfg["threshold"] = …`) over both. Fit an encoder of this head's own
        (`replace_listeners`) to its settings."""
        saved = self.cfg["config"]
        for key, value in self._config.items():
            if value != saved.get(key):
                self.cfg[key] = value
        self.cfg["config"] = self._config
        for label in self.labels:
            self.vocab.strings.add(label)
        for listener in self._listeners():
            listener.trained_on = self.cfg.get("encoder")
            listener.trained_at = self.cfg.get("encoder_updates")
            listener.longest_gap = self.cfg.get("longest_gap", 1)
        for node in self.model.walk():
            if node.name == "bert_encoder" and shim_of(node).has_module:
                prepare(node)
        return self

    # --- predicting

    def predict(self, docs: Iterable[Doc]) -> Any:
        """Give the model's output for a batch: logits as a torch tensor, or a NamedTuple with
        them."""
        return self.model.predict(list(docs))

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Annotate a stream in order, `batch_size` Docs at once. If a batch fails, each of its Docs
        is tried by itself, and those that fail again go to the error handler."""
        handle_error = self.get_error_handler()
        for docs in group_docs(stream, batch_size=batch_size):
            try:
                self.set_annotations(docs, self.predict(docs))
            except Exception as error:  # whatever it is, spaCy's handler decides
                if len(docs) == 1:
                    handle_error(self.name, self, docs, error)
                else:
                    yield from self._one_by_one(docs, handle_error)
                continue
            yield from docs

    def _one_by_one(self, docs: list[Doc], handle_error: Callable) -> Iterator[Doc]:
        for doc in docs:
            try:
                self.set_annotations([doc], self.predict([doc]))
            except Exception as error:
                handle_error(self.name, self, [doc], error)
            else:
                yield doc

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Score the examples that are annotated for this head."""
        if self.scorer is None:
            return {}
        annotated = [eg for eg in examples if self.has_gold(eg)]
        return self.scorer(annotated, **{**self.scorer_settings(), **kwargs})

    def scorer_settings(self) -> dict[str, Any]:
        """Give the arguments of the scorer that depend on this head."""
        return {}
