"""The base class of all heads: labels, training, and a retry Doc by Doc."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Self

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
from ..encoder.model import shim_of
from ..encoder.step import MeanLoss
from ..text.doc_data import register_abstained
from .calibrated import CalibratedHead, check_temperature, check_thresholds
from .free_text import parse_labels, read_text
from .imitation import Imitating, StartedUpdate
from .model import add_classes
from .outputs import differentiate, map_tensors
from .pipelines import PipelineRef, nowhere
from .saved import SavedHead
from .stream import group_docs


class BertHead(SavedHead, CalibratedHead, Imitating, TrainablePipe):
    """The base class of the heads.

    A subclass defines what it learns (`labels_of`, `has_gold`, `loss`), what it writes
    (`set_annotations`), and what the rest of the package needs to know of it (`DeclaredHead`).

    `class_weights` are weights in the loss by label, 1 by default. Logits are divided by
    `temperature`; predictions with a probability below the threshold of their label in `thresholds`
    are not written (`CalibratedHead`). The other `settings` of the config are kept in `cfg`, with
    the labels. Raises ValueError if a number is out of its range.
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
        self.nlp: Callable[[], Language | None] = nowhere()  # the pipeline, held weakly
        self._unknown: set[str] = set()
        # Since the last update: the number of items that the head's gradients are a mean over.
        self.num_items = 0.0
        for node in model.walk():  # so that errors before the first link can name the component
            if hasattr(node, "component_name"):
                node.component_name = name

    @classmethod
    def for_pipeline(
        cls,
        nlp: Language,
        name: str,
        model: Model,
        *,
        class_weights: Any,
        thresholds: Any,
        **settings: Any,
    ) -> Self:
        """Create the head of a pipeline from the settings of its config."""
        weights, by_label = read_text(nlp, name, class_weights=class_weights, thresholds=thresholds)
        head = cls(nlp.vocab, model, name, class_weights=weights, thresholds=by_label, **settings)
        head.nlp = PipelineRef(nlp)
        return head

    # --- for subclasses to define

    @property
    def n_classes(self) -> int:
        """The number of the model's classes."""
        return len(self.labels)

    def labels_of(self, example: Example) -> Iterable[str]:
        """Return the labels of the reference."""
        raise NotImplementedError

    def has_gold(self, example: Example) -> bool:
        """Whether this head can learn from the reference: by default, whether it has a label."""
        return any(True for _ in self.labels_of(example))

    def start_from_hf(self, labels: Sequence[str]) -> None:
        """Apply what `read_hf` has returned, before there are weights."""
        for label in labels:
            self.add_label(label)
        self.check_labels()

    def hf_names(self) -> list[str]:
        """List the names of the model's classes for an exported configuration."""
        return list(self.labels)

    # --- labels

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.cfg["labels"])

    @property
    def label_data(self) -> list[str]:
        """The `labels` argument for `initialize`."""
        return list(self.labels)

    def add_label(self, label: str) -> int:
        """Add a label. Returns 1, or 0 if the head has it already.

        A trained head keeps the weights of its other labels; those of the new label are randomly
        initialised. Raises ValueError if the label is not a string, or can't be added.
        """
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
        """Warn once about a label of the training data that this head does not have."""
        if label not in self._unknown:
            self._unknown.add(label)
            warnings.warn(
                f"{self.name} has no label '{label}' and does not learn from it. Its labels are "
                f"{', '.join(self.labels)}: to learn it too, add it with "
                f"nlp.get_pipe('{self.name}').add_label('{label}').",
                stacklevel=2,
            )

    def label_rows(self, gold: Iterable[Mapping[str, float]]) -> np.ndarray:
        """Arrange the values of Docs, by label, as float32 rows (num_docs, num_labels), NaN where a
        label has no value."""
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
        """Collect the labels from all examples, if `labels` are not given, and make the weights.
        `labels` may be JSON in a string, see `as_setting`. Raises ValueError if there is no label
        or no encoder, or another head of the pipeline writes to the same place."""
        validate_get_examples(get_examples, f"{type(self).__name__}.initialize")
        shim_of(self.model).clear()
        labels = parse_labels(nlp, self.name, labels)
        if labels is None:
            labels = sorted({label for eg in get_examples() for label in self.labels_of(eg)})
        for label in labels:
            self.add_label(label)
        self.check_labels()
        self.check_threshold_labels()
        self.model.set_dim("nO", self.n_classes, force=True)
        docs = [eg.x for eg in islice(get_examples(), 10)]
        for listener in self._listeners():
            listener.trained_on = listener.trained_at = None
        self.model.initialize(X=docs or None)
        self.record_encoder()
        self.start_from_data(get_examples())
        if nlp is not None:
            self.check_beside(nlp)

    def check_beside(self, nlp: Language) -> None:
        """Raise ValueError if another head of the pipeline would overwrite what this one writes."""
        for name, pipe in nlp.pipeline:
            shared = pipe.writes & self.writes if isinstance(pipe, BertHead) else set()
            if pipe is not self and shared:
                both = sorted((name, self.name), key=nlp.pipe_names.index)
                raise ValueError(
                    f"{' and '.join(both)} both write {min(shared)}, so the second one would "
                    "overwrite the first. Give them different labels, or put one of them into "
                    "another pipeline."
                )

    def start_from_data(self, examples: Iterable[Example]) -> None:
        """Set weights that start from statistics of the training data, after `initialize` has made
        them."""

    def check_labels(self) -> None:
        """Raise ValueError if the head can't be trained with its labels."""
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
        """The labels that `class_weights` may have."""
        return self.labels

    def _weights(self, logits: torch.Tensor) -> torch.Tensor:
        """The weight of each class in the loss (num_classes,)."""
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
        """Learn from the examples of a batch that are annotated for this head; the model does not
        run on others. `drop` is ignored: dropout is a setting of the head's model. In `losses` this
        component's value is the mean over updates."""
        losses = {} if losses is None else losses
        examples = list(examples)
        validate_examples(examples, f"{type(self).__name__}.update")
        losses.setdefault(self.name, MeanLoss())
        started = self._begin(examples)
        if started is None:
            for listener in self._listeners():
                listener.skip()
        else:
            self.learn(started, losses)
        if sgd not in (None, False):
            self.finish_update(sgd)
        return losses

    def _begin(self, examples: list[Example]) -> StartedUpdate | None:
        """Run the model on the examples of a batch that the head can learn from; None if there are
        none."""
        if self._teacher is not None:
            docs = [eg.predicted for eg in examples if len(eg.predicted)]
            inputs = self.unlabelled_inputs(docs)
            if inputs is None:
                return None
            return self.begin_imitation(docs, inputs, self._teacher, self.imitation_loss)
        annotated = [eg for eg in examples if self.has_gold(eg)]
        step = self.begin_update(annotated) if annotated else None
        if step is None:
            return None
        docs = [eg.predicted for eg in annotated]
        return StartedUpdate(*step, lambda output: self.loss(annotated, output), docs)

    def loss(self, examples: Sequence[Example], output: Any) -> torch.Tensor:
        """Compute the loss of annotated examples, a scalar tensor.

        `output` is what `begin_update` returned. The loss may depend on learned parameters only
        through it: the gradient with respect to `output` is all that is propagated. A loss made by
        `losses.mean_over` knows the number of items that it is a mean over; for any other, each
        example counts as one item.
        """
        raise NotImplementedError

    def get_loss(self, examples: Iterable[Example], scores: Any) -> tuple[float, Any]:
        """Compute the loss and its gradient with respect to the model's output, in the structure of
        the output. spaCy's protocol; autograd differentiates `loss`."""
        examples = list(examples)
        loss, gradient = differentiate(lambda output: self.loss(examples, output), scores)
        return float(loss.detach()), gradient

    def _backprop(self, gradient: Any, backprop: Callable[[Any], Any], num_items: float) -> None:
        """Accumulate the gradient of a sub-batch: afterwards gradients are a mean over the items of
        all sub-batches since the last update. The encoder does its own weighting, because it learns
        from other heads too."""
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
        """Run the model with a graph on annotated examples, at least one. Returns its output and a
        callback for a gradient of the same structure; None if there is nothing to learn."""
        return self.model.begin_update([eg.predicted for eg in examples])

    def _listeners(self) -> list[BertListener]:
        return [node for node in self.model.walk() if isinstance(node, BertListener)]

    def record_encoder(self, docs: Sequence[Doc] = ()) -> None:
        """Remember which encoder this head is trained on. The id is saved with the head; prediction
        with another encoder is an error."""
        for listener in self._listeners():
            encoder = listener.encoder_for(docs, is_train=True)
            # The encoder is updated after all heads of its step have answered.
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

    # --- predicting

    def predict(self, docs: Iterable[Doc]) -> Any:
        """Compute the model's output for a batch: logits, a torch tensor or a NamedTuple with
        some."""
        return self.model.predict(list(docs))

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Annotate a stream in order, in batches of `batch_size` Docs. If a batch fails, its Docs
        are run one by one, and those that fail again are passed to the error handler."""
        handle_error = self.get_error_handler()
        for docs in group_docs(stream, batch_size=batch_size):
            if self._annotate(docs, handle_error):
                yield from docs
            elif len(docs) > 1:  # no traceback keeps the memory of the batch any more
                yield from (doc for doc in docs if self._annotate([doc], handle_error))

    def _annotate(self, docs: list[Doc], handle_error: Callable) -> bool:
        """Return whether Docs were annotated. The error of a single one goes to the handler."""
        try:
            self.set_annotations(docs, self.predict(docs))
        except Exception as error:  # of any kind: spaCy's handler decides
            if len(docs) == 1:
                handle_error(self.name, self, docs, error)
            return False
        return True

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Score the examples that are annotated for this head."""
        if self.scorer is None:
            return {}
        judged = [eg for eg in examples if self.is_judged(eg)]
        return self.scorer(judged, **{**self.scorer_settings(), **kwargs})

    def scorer_settings(self) -> dict[str, Any]:
        """Return the scorer's arguments that depend on this head."""
        return {}
