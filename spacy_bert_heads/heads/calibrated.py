"""Probabilities that mean what they say: what a head claims, its temperature, and the thresholds
below which it abstains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import exp, log
from typing import TYPE_CHECKING, Any, ClassVar

from spacy.tokens import Doc
from spacy.training import Example

from ..text.doc_data import write_abstained
from .declared import DeclaredHead

if TYPE_CHECKING:
    from .claims import Claim


class CalibratedHead(DeclaredHead):
    """The part of a head that gives probabilities. Logits are divided by the temperature where they
    become probabilities, never in training (Guo et al. 2017, section 4.2). A head takes part in
    `bert calibrate`, `bert evaluate --calibration` and `bert tune-thresholds` by `claims`; in
    `set_annotations` it takes back what is not sure by `is_sure`.
    """

    name: str
    cfg: dict[str, Any]
    # What is set to have every claim made, whatever its probability.
    no_thresholds: ClassVar[dict[str, Any]] = {"thresholds": None}

    # --- what a head defines

    def claims(self, examples: Sequence[Example], output: Any) -> Iterator[Claim]:
        """Give each claim on annotated examples. `output` is what `read` gave for them, and what
        `set_annotations` has written to their predicted Docs."""
        return iter(())

    def truths(self, example: Example) -> Mapping[str, float]:
        """Count what there is to be found in an annotated example, by label."""
        tally = self.tally(example)
        return Counter({label: row["tp"] + row["fn"] for label, row in tally.items()})

    def run(self, docs: Iterable[Doc]) -> Any:
        """Give the model's output, in which nothing depends on the temperature."""
        return self.predict(docs)  # type: ignore[attr-defined]

    def read(self, output: Any) -> Any:
        """Make what `set_annotations` takes of what `run` gave."""
        return output

    # --- the temperature

    @property
    def temperature(self) -> float:
        """What logits are divided by; 1 for a head that was never calibrated."""
        return self.cfg.get("temperature") or 1.0

    def set_temperature(self, temperature: float) -> None:
        """Change the temperature. Decisions stay as they are; thresholds of labels are taken back,
        because no other ones would leave out the same."""
        self.cfg["temperature"] = temperature
        self.cfg["thresholds"] = None

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Have what a block sets in `cfg` taken back."""
        saved = dict(self.cfg)
        try:
            yield
        finally:
            self.cfg.clear()
            self.cfg.update(saved)

    # --- thresholds

    @contextmanager
    def without_thresholds(self) -> Iterator[None]:
        """Have every claim made in a block, whatever its probability."""
        with self.trying():
            self.cfg.update(self.no_thresholds)
            yield

    @property
    def may_abstain(self) -> bool:
        """Whether something is below a threshold that is set."""
        return any(self.cfg.get(key) for key in self.no_thresholds)

    def is_sure(self, label: str, probability: float) -> bool:
        """Whether a claim reaches the threshold of its label."""
        thresholds = self.cfg.get("thresholds")
        return not thresholds or probability >= thresholds.get(label, 0.0)

    def note_abstained(self, doc: Doc, entries: list[dict[str, Any]]) -> None:
        """Write what this head has not said of a Doc, because it is not sure, to
        `doc._.abstained`."""
        write_abstained(doc, self.name, entries)


def check_temperature(name: str, temperature: Any) -> None:
    """Raise ValueError if logits can't be divided by it."""
    if temperature is None:
        return
    if not (isinstance(temperature, int | float) and 0 < temperature < float("inf")):
        raise ValueError(
            f"temperature of {name} is {temperature!r}; it must be above 0, or null for that of "
            "`bert calibrate`."
        )


def check_thresholds(name: str, thresholds: Any) -> None:
    """Raise ValueError if they are no probabilities by label."""
    for label, value in (thresholds or {}).items():
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ValueError(
                f"thresholds of {name} has {value!r} for '{label}'; it must be a probability, 0 "
                "to 1."
            )


def rescale(probability: float, factor: float) -> float:
    """Give the probability of a logit that is multiplied by a factor: where a threshold on a
    sigmoid goes when the temperature changes."""
    if not 0 < probability < 1:
        return probability
    logit = factor * (log(probability) - log(1 - probability))
    small = exp(-abs(logit))  # which can't be too large for a number
    return (1.0 if logit >= 0 else small) / (1 + small)
