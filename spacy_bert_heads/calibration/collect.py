"""Collect the claims of a pipeline's heads on a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any, NamedTuple

from spacy.language import Language
from spacy.training import Example

from ..heads.calibrated import CalibratedHead
from ..heads.claims import Claim
from ..heads.head import BertHead

BATCH_SIZE = 128  # examples per forward pass


class Part(NamedTuple):
    """Hold examples whose predictions can be right or wrong, and the output of a head's model for
    them."""

    examples: list[Example]
    output: Any


class Collected(NamedTuple):
    """Hold a head's output on a data set; its claims depend only on this and on its settings."""

    head: BertHead
    parts: list[Part]

    def claims(self) -> list[Claim]:
        """Return the claims with the head's current settings, and set them on the Docs."""
        return [claim for part in self.parts for claim in self._of(part)]

    def _of(self, part: Part) -> Iterator[Claim]:
        docs = [example.predicted for example in part.examples]
        output = self.head.read(part.output)
        self.head.set_annotations(docs, output)
        return self.head.claims(part.examples, output)

    def truths(self) -> Counter[str]:
        """Count the gold annotations by label."""
        total: Counter[str] = Counter()
        for part in self.parts:
            for example in part.examples:
                total.update(self.head.truths(example))
        return total


def heads_with_claims(nlp: Language, names: Sequence[str] = ()) -> list[BertHead]:
    """Return the heads of a pipeline with probabilities, or those with `names`. Raises ValueError
    if there is none, or if a name belongs to no such head."""
    found = {
        name: pipe
        for name, pipe in nlp.pipeline
        if isinstance(pipe, BertHead) and type(pipe).claims is not CalibratedHead.claims
    }
    for name in names:
        if name not in found:
            raise ValueError(
                f"'{name}' is not a head with probabilities. Choose from: "
                f"{', '.join(found) or 'none'}."
            )
    if not found:
        raise ValueError(
            "The pipeline has no head with probabilities. Use one with such a head; its components "
            f"are {', '.join(nlp.pipe_names) or 'none'}."
        )
    return [head for name, head in found.items() if not names or name in names]


def collect(
    nlp: Language, examples: Sequence[Example], names: Sequence[str] = ()
) -> dict[str, Collected]:
    """Run a pipeline on examples, and return the outputs of its heads' models. Thresholds are
    disabled meanwhile, so later components see all predictions.

    The logits of all examples are kept in memory. Raises ValueError if no head with probabilities
    has an annotated example.
    """
    chosen = {head.name: Collected(head, []) for head in heads_with_claims(nlp, names)}
    for at in range(0, len(examples), BATCH_SIZE):
        batch = list(examples[at : at + BATCH_SIZE])
        docs = [example.predicted for example in batch]
        for name, pipe in nlp.pipeline:
            if name not in chosen:
                docs = list(pipe.pipe(docs)) if hasattr(pipe, "pipe") else [pipe(d) for d in docs]
                for example, doc in zip(batch, docs, strict=True):
                    example.predicted = doc
                continue
            head = chosen[name].head
            is_judged = [head.is_judged(example) for example in batch]
            judged = list(compress(batch, is_judged))
            with head.without_thresholds():
                rest = [eg.predicted for eg, has in zip(batch, is_judged, strict=True) if not has]
                if rest:
                    head.set_annotations(rest, head.predict(rest))
                if judged:
                    own = [eg.predicted for eg in judged]
                    output = head.run(own)
                    # Copies without later annotations: this head will annotate them again.
                    copies = [Example(eg.predicted.copy(), eg.reference) for eg in judged]
                    chosen[name].parts.append(Part(copies, output))
                    head.set_annotations(own, head.read(output))
    found = {name: one for name, one in chosen.items() if one.parts}
    if not found:
        raise ValueError(
            f"The data has no annotations for {', '.join(chosen)}. Pass annotated data."
        )
    return found
