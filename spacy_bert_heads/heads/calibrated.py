"""Calibrated probabilities: a head's claims, its temperature, and the thresholds below which it
abstains."""

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
    """The part of a head that turns logits into probabilities.

    Logits are divided by the temperature where they become probabilities, never in training (Guo et
    al. 2017, section 4.2). `bert calibrate`, `bert evaluate --calibration` and `bert
    tune-thresholds` use a head's `claims`; `set_annotations` leaves out predictions for which
    `reaches_threshold` is false.
    """

    name: str
    cfg: dict[str, Any]
    # The settings with which every prediction is written, whatever its probability.
    no_thresholds: ClassVar[dict[str, Any]] = {"thresholds": None}
    # The keys of `cfg`, where a head has them, that calibration changes and students take over.
    calibration_keys: ClassVar[tuple[str, ...]] = ("temperature", "thresholds", "threshold")

    # --- for subclasses to define

    def claims(self, examples: Sequence[Example], output: Any) -> Iterator[Claim]:
        """Yield each claim about annotated examples. `output` is what `read` returned for them;
        `set_annotations` has written it to their predicted Docs."""
        return iter(())

    def truths(self, example: Example) -> Mapping[str, float]:
        """Count the gold annotations of an example by label."""
        tally = self.tally(example)
        return Counter({label: row["tp"] + row["fn"] for label, row in tally.items()})

    def run(self, docs: Iterable[Doc]) -> Any:
        """Return the model's output, which does not depend on the temperature."""
        return self.predict(docs)  # type: ignore[attr-defined]

    def read(self, output: Any) -> Any:
        """Turn the output of `run` into the argument of `set_annotations`."""
        return output

    # --- the temperature

    @property
    def temperature(self) -> float:
        """The divisor of logits; 1 for a head that was never calibrated."""
        return self.cfg.get("temperature") or 1.0

    def set_temperature(self, temperature: float) -> None:
        """Change the temperature. Decisions stay the same; the thresholds of labels are removed,
        because no other thresholds would leave out the same predictions."""
        self.cfg["temperature"] = temperature
        self.cfg["thresholds"] = None

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Restore `cfg` at the end of the block."""
        saved = dict(self.cfg)
        try:
            yield
        finally:
            self.cfg.clear()
            self.cfg.update(saved)

    # --- thresholds

    @property
    def threshold_labels(self) -> tuple[str, ...]:
        """The labels that `thresholds` may have."""
        return self.labels  # type: ignore[attr-defined]

    def check_threshold_labels(self) -> None:
        """Raise ValueError if `thresholds` has a label that is never predicted."""
        unknown = sorted(set(self.cfg.get("thresholds") or ()) - set(self.threshold_labels))
        if unknown:
            raise ValueError(
                f"thresholds of {self.name} names '{unknown[0]}', which is not among its labels: "
                f"{', '.join(self.threshold_labels)}."
            )

    @contextmanager
    def without_thresholds(self) -> Iterator[None]:
        """Write every prediction in the block, whatever its probability."""
        with self.trying():
            self.cfg.update(self.no_thresholds)
            yield

    @property
    def may_abstain(self) -> bool:
        """Whether a threshold is set."""
        return any(self.cfg.get(key) for key in self.no_thresholds)

    def reaches_threshold(self, label: str, probability: float) -> bool:
        """Return whether a prediction reaches the threshold of its label. None reaches 1, also one
        whose probability rounds to it."""
        threshold = (self.cfg.get("thresholds") or {}).get(label, 0.0)
        return threshold < 1 and probability >= threshold

    def note_abstained(self, doc: Doc, entries: list[dict[str, Any]]) -> None:
        """Write the predictions that this head left out, because they are below their thresholds,
        to `doc._.abstained`."""
        write_abstained(doc, self.name, entries)


def check_temperature(name: str, temperature: Any) -> None:
    """Raise ValueError if `temperature` is not None or a finite number above 0."""
    if temperature is None:
        return
    if not (isinstance(temperature, int | float) and 0 < temperature < float("inf")):
        raise ValueError(
            f"temperature of {name} is {temperature!r}; it must be above 0, or null for that of "
            "`bert calibrate`."
        )


def check_thresholds(name: str, thresholds: Any) -> None:
    """Raise ValueError if `thresholds` are not probabilities by label."""
    for label, value in (thresholds or {}).items():
        check_probability(f"thresholds['{label}'] of {name}", value)


def check_probability(setting: str, value: Any) -> None:
    """Raise ValueError if a setting is not a number from 0 to 1."""
    if not (isinstance(value, int | float) and 0 <= value <= 1):
        raise ValueError(f"{setting} is {value!r}; it must be a probability, 0 to 1.")


def rescale(probability: float, factor: float) -> float:
    """Multiply the logit of a probability by a factor, as a change of temperature does, and return
    the new probability."""
    if not 0 < probability < 1:
        return probability
    logit = factor * (log(probability) - log(1 - probability))
    small = exp(-abs(logit))  # can't overflow
    return (1.0 if logit >= 0 else small) / (1 + small)
