"""What the heads of a pipeline claim of a data set."""

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

BATCH_SIZE = 128  # examples whose logits are made at once


class Part(NamedTuple):
    """Some examples that are annotated for a head, and what its model gave for them."""

    examples: list[Example]
    output: Any


class Collected(NamedTuple):
    """What a head makes of a data set: all that it says depends on this and on its settings."""

    head: BertHead
    parts: list[Part]

    def claims(self) -> list[Claim]:
        """Give the claims by the settings that the head has now. They are written to the Docs."""
        return [claim for part in self.parts for claim in self._of(part)]

    def _of(self, part: Part) -> Iterator[Claim]:
        docs = [example.predicted for example in part.examples]
        output = self.head.read(part.output)
        self.head.set_annotations(docs, output)
        return self.head.claims(part.examples, output)

    def truths(self) -> Counter[str]:
        """Count what there is to be found, by label."""
        total: Counter[str] = Counter()
        for part in self.parts:
            for example in part.examples:
                total.update(self.head.truths(example))
        return total


def heads_with_claims(nlp: Language, names: Sequence[str] = ()) -> list[BertHead]:
    """Find the heads of a pipeline that give probabilities, those with `names` if there are some.
    Raises ValueError if there is none, or a name is not of one."""
    found = {
        name: pipe
        for name, pipe in nlp.pipeline
        if isinstance(pipe, BertHead) and type(pipe).claims is not CalibratedHead.claims
    }
    for name in names:
        if name not in found:
            raise ValueError(
                f"'{name}' is no head with probabilities. Those of the pipeline are: "
                f"{', '.join(found) or 'none'}."
            )
    if not found:
        raise ValueError(
            "The pipeline has no head with probabilities. Its components are "
            f"{', '.join(nlp.pipe_names) or 'none'}."
        )
    return [head for name, head in found.items() if not names or name in names]


def collect(
    nlp: Language, examples: Sequence[Example], names: Sequence[str] = ()
) -> dict[str, Collected]:
    """Run a pipeline on examples, and keep what the models of its heads gave. Thresholds are lifted
    meanwhile, so later components see all that heads say.

    Memory is the logits of all examples. Raises ValueError if no head with probabilities has an
    annotated example.
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
            is_annotated = [head.has_gold(example) for example in batch]
            annotated = list(compress(batch, is_annotated))
            with head.without_thresholds():
                rest = [
                    eg.predicted for eg, has in zip(batch, is_annotated, strict=True) if not has
                ]
                if rest:
                    head.set_annotations(rest, head.predict(rest))
                if annotated:
                    own = [eg.predicted for eg in annotated]
                    output = head.run(own)
                    # Docs without what later components write: this head writes to them again.
                    copies = [Example(eg.predicted.copy(), eg.reference) for eg in annotated]
                    chosen[name].parts.append(Part(copies, output))
                    head.set_annotations(own, head.read(output))
    found = {name: one for name, one in chosen.items() if one.parts}
    if not found:
        raise ValueError(
            f"The data has no annotation of what {', '.join(chosen)} say. Name data that has."
        )
    return found
