"""What all heads share beyond spaCy's TrainablePipe: retry, readable losses, labels."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.util import minibatch
from spacy.vocab import Vocab
from thinc.api import Model, Optimizer

from ..encoder.listener import BertListener
from ..encoder.model import prepare, shim_of
from ..encoder.step import MeanLoss
from ..files import AGAIN, check_digests, in_component, write_digests
from ..text.arrays import Ints1d
from .outputs import map_tensors


class BertHead(TrainablePipe):
    """The base of the heads. A head says what it learns (`has_gold`, `labels_of`, `loss`)
    and what it writes (`set_annotations`).

    vocab (Vocab): The vocabulary.
    model (Model): The head, with its listener.
    name (str): The component's name.
    scorer (Optional[Callable]): Scores examples.
    class_weights (Optional[Dict[str, float]]): Weights in the loss, by label; 1 if not named.
    settings (Any): The config's other settings, by name. They stand in `cfg`, with the labels.
    RAISES (ValueError): If a weight is negative.
    """

    def __init__(
        self,
        vocab: Vocab,
        model: Model,
        name: str,
        *,
        scorer: Callable | None,
        class_weights: dict[str, float] | None = None,
        **settings: Any,
    ) -> None:
        if class_weights and any(weight < 0 for weight in class_weights.values()):
            raise ValueError(f"class_weights must not be negative: {class_weights}.")
        self.vocab, self.model, self.name, self.scorer = vocab, model, name, scorer
        self._config = {"class_weights": class_weights, **settings}
        self.cfg: dict[str, Any] = {"labels": [], **self._config, "config": self._config}
        self._unknown: set[str] = set()
        for node in model.walk():  # an error before the first link can name the component
            if hasattr(node, "component_name"):
                node.component_name = name

    # --- what a head says

    @property
    def n_classes(self) -> int:
        """RETURNS (int): The classes that the model tells apart."""
        return len(self.labels)

    def has_gold(self, example: Example) -> bool:
        """example (Example): An example.
        RETURNS (bool): Whether its reference teaches this head anything.
        """
        raise NotImplementedError

    def labels_of(self, example: Example) -> Iterable[str]:
        """example (Example): An example.
        RETURNS (Iterable[str]): The labels in its reference.
        """
        raise NotImplementedError

    # --- labels

    @property
    def labels(self) -> tuple[str, ...]:
        """RETURNS (Tuple[str, ...]): The labels."""
        return tuple(self.cfg["labels"])

    @property
    def label_data(self) -> list[str]:
        """RETURNS (List[str]): What `initialize` takes as `labels`."""
        return list(self.labels)

    def add_label(self, label: str) -> int:
        """Add a label before the first training.

        label (str): The label.
        RETURNS (int): 0 if it is there already, else 1.
        RAISES (ValueError): If it is no string, or if the head has weights for its labels.
        """
        if not isinstance(label, str) or not label:
            raise ValueError(f"A label must be a string, not {label!r}.")
        if label in self.labels:
            return 0
        if shim_of(self.model).has_module:
            raise ValueError(
                f"{self.name} is trained for {', '.join(self.labels)}; '{label}' can't be added. "
                "Add labels before nlp.initialize(), or train a new head with all of them."
            )
        self.cfg["labels"].append(label)
        self.vocab.strings.add(label)
        return 1

    def warn_unknown(self, label: str) -> None:
        """Say once that a label of the training data is not among this head's.

        label (str): The label.
        """
        if label not in self._unknown:
            self._unknown.add(label)
            warnings.warn(
                f"{self.name} has no label '{label}' and does not learn from it. Its labels are "
                f"{', '.join(self.labels)}: to learn it too, name it under "
                f"[initialize.components.{self.name}.labels] and train anew.",
                stacklevel=2,
            )

    # --- training

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        """Collect the labels and make the weights.

        get_examples (Callable): Returns examples; all are looked at if labels are not given.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[Sequence[str]]): The labels, as `init labels` wrote them.
        RAISES (ValueError): If there is no label, or no encoder.
        """
        validate_get_examples(get_examples, f"{type(self).__name__}.initialize")
        shim_of(self.model).clear()
        if labels is None:
            labels = sorted({label for eg in get_examples() for label in self.labels_of(eg)})
        for label in labels:
            self.add_label(label)
        self._check_labels()
        self.model.set_dim("nO", self.n_classes, force=True)
        docs = [eg.x for eg in islice(get_examples(), 10)]
        for listener in self._listeners():
            listener.trained_on = listener.trained_at = None
        self.model.initialize(X=docs or None)
        self.note_encoder()

    def _check_labels(self) -> None:
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

        examples (Iterable[Example]): The batch.
        drop (float): Not used: the head's dropout is set in its model.
        sgd (Optional[Optimizer]): An optimizer to step with.
        losses (Optional[Dict[str, float]]): Gets this component's entry: the mean cross-entropy
            in nats, a mean over updates.
        RETURNS (Dict[str, float]): The losses.
        """
        losses = {} if losses is None else losses
        examples = list(examples)
        validate_examples(examples, f"{type(self).__name__}.update")
        losses.setdefault(self.name, MeanLoss())
        annotated = [eg for eg in examples if self.has_gold(eg)]
        step = self.begin_update(annotated) if annotated else None
        if step is None:
            for listener in self._listeners():
                listener.skip()
        else:
            output, backprop = step
            loss, gradient = self.get_loss(annotated, output)
            backprop(gradient)
            losses[self.name] += loss
            self.note_encoder([eg.predicted for eg in annotated])
        if sgd not in (None, False):
            self.finish_update(sgd)
        return losses

    def loss(self, examples: Sequence[Example], output: Any) -> torch.Tensor:
        """Give the loss of annotated examples, a number, as torch computes with it.

        `output` is what `begin_update` gave. Whatever the loss learns with is in it, so that the
        gradient by it is all that has to be known.
        """
        raise NotImplementedError

    def get_loss(self, examples: Iterable[Example], scores: Any) -> tuple[float, Any]:
        """Give the loss, and its gradient by the tensors of the model's output, in a structure like
        that of the output (spaCy's protocol; autograd does the rest)."""
        leaves = map_tensors(scores, lambda tensor: tensor.detach().requires_grad_())
        with torch.enable_grad():
            loss = self.loss(list(examples), leaves)
        loss.backward()

        def gradient_of(tensor: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad

        return float(loss.detach()), map_tensors(leaves, gradient_of)

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
            listener.trained_on, listener.trained_at = encoder.id, at
            self.cfg |= {"encoder": encoder.id, "encoder_updates": at}

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
        """Annotate a stream. Of a batch that fails, each Doc is tried by itself, and those that
        fail again go to the error handler; the order is kept.

        stream (Iterable[Doc]): The Docs.
        batch_size (int): How many to predict at once.
        YIELDS (Doc): The Docs, in order.
        """
        handle_error = self.get_error_handler()
        for docs in minibatch(stream, size=batch_size):
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
        """Score the examples that are annotated for this head.

        examples (Iterable[Example]): The examples.
        RETURNS (Dict[str, Any]): The scores.
        """
        if self.scorer is None:
            return {}
        annotated = [eg for eg in examples if self.has_gold(eg)]
        return self.scorer(annotated, **{**self.scorer_settings(), **kwargs})

    def scorer_settings(self) -> dict[str, Any]:
        """RETURNS (Dict[str, Any]): What the scorer needs to know of this head."""
        return {}


def cross_entropy(
    logits: torch.Tensor, classes: Ints1d, *, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax cross-entropy in nats, averaged over the rows that are annotated.

    `logits` (n, n_classes); `classes` has the class of each row, -1 where it is not annotated (n,);
    `weights` one for each class, by which torch's weighted mean is taken. Without an annotated row
    of any weight the loss is 0.
    """
    gold = torch.from_numpy(classes).to(logits.device)
    known = gold >= 0
    weight = known if weights is None else known * weights[gold.clamp(min=0)]
    losses = F.cross_entropy(logits, gold, ignore_index=-1, reduction="none")
    return (losses * weight).sum() / weight.sum().clamp(min=torch.finfo(logits.dtype).tiny)
