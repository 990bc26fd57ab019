"""Learning from predictions instead of gold annotation: from those of another pipeline's head
(distillation), or from a head's own earlier ones (rehearsal)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from spacy.tokens import Doc
from spacy.training import Example, validate_examples
from spacy.util import replace_model_node
from thinc.api import Model, Optimizer

from ..encoder.listener import BertListener
from ..encoder.model import PackedPairs, shim_of
from ..encoder.step import add_loss
from .losses import mean_over, num_items_of
from .outputs import differentiate, tensors_of


class StartedUpdate(NamedTuple):
    """An update after the forward pass: the model's output, the callback for a gradient of the same
    structure, the loss as a function of the output, and the Docs that were read."""

    output: Any
    backprop: Callable[[Any], Any]
    loss: Callable[[Any], torch.Tensor]
    docs: list[Doc]


def distance(output: Any, old: Any) -> torch.Tensor:
    """Compute half the squared difference between the logits of two outputs for the same batch, a
    mean over rows. It is the limit of distillation at high temperatures (Hinton et al. 2015,
    section 2.1), for logits of any kind. Classes that `old` does not have are ignored. Transitions
    of a CRF are compared like logits."""
    total = torch.zeros(())
    for new, before in zip(tensors_of(output), tensors_of(old), strict=True):
        common = new[tuple(map(slice, before.shape))]
        total = total + (common - before.to(new.device)).square().sum() / (2 * max(len(before), 1))
    rows = len(tensors_of(old)[0])
    return mean_over(total * rows, rows)


def divergence(output: Any, wanted: Any) -> torch.Tensor:
    """Compute the Kullback-Leibler divergence in nats of the classes of each row, by softmax, from
    those that are wanted, a mean over rows: distillation at temperature 1 (Jiao et al. 2020,
    section 3.1, "prediction-layer distillation")."""
    (logits,), (known,) = tensors_of(output), tensors_of(wanted)
    known = known.to(logits.device).log_softmax(-1)
    total = F.kl_div(logits.log_softmax(-1), known, reduction="sum", log_target=True)
    return mean_over(total, len(logits))


def binary_divergence(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Compute the Kullback-Leibler divergence in nats of each value, by sigmoid, from the one that
    is wanted, a mean over values."""
    both = (torch.stack([x, torch.zeros_like(x)], -1) for x in (output, wanted.to(output.device)))
    return divergence(*(pair.flatten(0, 1) for pair in both))


class Imitating:
    """The part of a head that learns from the predictions of another model."""

    name: str
    model: Model
    finish_update: Callable[[Optimizer], None]
    record_encoder: Callable[..., None]
    _listeners: Callable[[], list[BertListener]]
    _backprop: Callable[[Any, Callable[[Any], Any], float], None]
    # Not spaCy's `_rehearsal_model`: `spacy train` would copy every sourced head and its encoder.
    _old: Model | None = None
    _teacher: Model | None = None

    def imitation_loss(self, output: Any, wanted: Any) -> torch.Tensor:
        """Compute how far an output is from a teacher's for the same batch: of the probabilities if
        the head has some, so that no head of a pipeline outweighs the others."""
        return distance(output, wanted)

    def follow(self, teacher: Imitating | None) -> None:
        """Make `update` learn the predictions of a teacher on any Docs, by `imitation_loss`; gold
        annotation is ignored. The teacher is a head of the same kind with the same classes. Its
        pipeline must be kept alive. None ends it."""
        if teacher is not None:
            teacher.unlabelled_inputs([])  # applies the head's settings to its model
        self._teacher = None if teacher is None else teacher.model

    def remember(self) -> None:
        """Keep a copy of this head and its encoder in their present state, for `rehearse`. Heads
        that are copied before the next update share one copy of the encoder. Raises ValueError if
        there are no weights yet."""
        _ = shim_of(self.model).module  # raises
        old = deepcopy(self.model)
        for node in list(old.walk()):
            if isinstance(node, BertListener):
                replace_model_node(old, node, node.encoder_for().remember(node.reads))
        self._old = old

    def unlabelled_inputs(self, docs: list[Doc]) -> list[Doc] | PackedPairs | None:
        """Return the model's input for Docs without gold annotation; None if there is none."""
        return docs or None

    def begin_imitation(
        self,
        docs: list[Doc],
        inputs: list[Doc] | PackedPairs,
        teacher: Model,
        loss: Callable[[Any, Any], torch.Tensor],
    ) -> StartedUpdate:
        """Run the model with a graph on `unlabelled_inputs`, to learn the predictions of a teacher:
        `loss` compares two outputs."""
        wanted = teacher.predict(inputs)
        output, backprop = self.model.begin_update(inputs)
        return StartedUpdate(output, backprop, lambda output: loss(output, wanted), docs)

    def learn(self, started: StartedUpdate, losses: dict[str, float]) -> None:
        """Run the backward pass of an update, and add its loss to `losses`."""
        loss, gradient = differentiate(started.loss, started.output)
        self._backprop(gradient, started.backprop, num_items_of(loss, default=len(started.docs)))
        add_loss(losses, self.name, float(loss.detach()))
        self.record_encoder(started.docs)

    def rehearse(
        self,
        examples: Iterable[Example],
        *,
        sgd: Optimizer | None = None,
        losses: dict[str, float] | None = None,
        **config: Any,
    ) -> dict[str, float]:
        """Learn to predict what this head predicted when `remember` was called, see `distance`.

        Call it between updates on data with new labels only, so that the head does not forget the
        old ones. Gold annotation is ignored; a head that reads pairs needs its inputs. Without
        `remember` it does nothing but warn. `sgd` updates the head and its encoder; the loss is
        added to `losses`.

        Raises ValueError if `nlp.rehearse` calls it and the pipeline has no optimizer.
        """
        losses = {} if losses is None else losses
        examples = list(examples)
        validate_examples(examples, f"{type(self).__name__}.rehearse")
        docs = [example.predicted for example in examples if len(example.predicted)]
        if self._old is None:
            warnings.warn(
                f"{self.name} has nothing to rehearse. Call nlp.get_pipe('{self.name}').remember() "
                "before its first update on the new data.",
                stacklevel=2,
            )
            return losses
        inputs = self.unlabelled_inputs(docs)
        if inputs is None:
            return losses
        encoders = {one: one.encoder_for(docs, is_train=True) for one in self._listeners()}
        for listener, encoder in encoders.items():
            if not encoder.is_frozen:
                encoder.open_step(docs, losses, {listener.id})
        self.learn(self.begin_imitation(docs, inputs, self._old, distance), losses)
        if sgd not in (None, False):
            sgd = self._optimizer_for(sgd)
            self.finish_update(sgd)
            for encoder in encoders.values():
                if not encoder.is_frozen:
                    encoder.finish_update(sgd)
        return losses

    def _optimizer_for(self, sgd: Any) -> Optimizer:
        """Return the optimizer. `nlp.rehearse` passes a function that collects gradients, which
        torch's AdamW can't use; then it is the pipeline's optimizer."""
        if isinstance(sgd, Optimizer):
            return sgd
        pipelines = (one.upstream.nlp() for one in self._listeners() if one.upstream is not None)
        found = next((nlp._optimizer for nlp in pipelines if nlp is not None), None)
        if found is None:
            raise ValueError(
                f"{self.name} needs an optimizer to rehearse. Call nlp.resume_training() first, or "
                f"the component: nlp.get_pipe('{self.name}').rehearse(examples, sgd=optimizer)."
            )
        return found
