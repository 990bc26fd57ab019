"""What heads say of themselves: their scores, and what becomes of a checkpoint's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Score(NamedTuple):
    """A score of a head: how `bert evaluate` shows it, and how much it counts in `spacy train`."""

    title: str = ""  # without one it is not shown
    weight: float | None = None
    is_fraction: bool = True  # shown in percent


def score_weights(scores: dict[str, Score]) -> dict[str, float | None]:
    """Give the weights in the form that `Language.factory` takes."""
    return {name: score.weight for name, score in scores.items()}


def check_softmax(names: Sequence[str], checkpoint: str) -> None:
    """Raise ValueError if a checkpoint has a single class, for a head that takes a softmax."""
    if len(names) == 1:
        raise ValueError(
            f"'{checkpoint}' has one class, '{names[0]}', and the softmax over one is 1 for every "
            'text. Take its probability by itself (a sigmoid): task="textcat_multilabel".'
        )


class HFClasses(NamedTuple):
    """What a head makes of the classes of a Hugging Face checkpoint."""

    settings: dict[str, Any]  # of the component
    labels: list[str]
    # The checkpoint's class for each of the head's; of one that is lacking, the one most like it.
    classes: list[int]
    lacking: list[bool]  # of each of the head's classes

    @staticmethod
    def as_they_are(names: Sequence[str], **settings: Any) -> HFClasses:
        """Take all classes, in their order, for labels."""
        n = len(names)
        return HFClasses(settings, list(names), list(range(n)), [False] * n)
