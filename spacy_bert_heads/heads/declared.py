"""What heads say of themselves: their scores, and what becomes of a checkpoint's classes."""

from typing import Any, NamedTuple


class Score(NamedTuple):
    """A score of a head: how `bert evaluate` shows it, and how much it counts in `spacy train`."""

    title: str = ""  # without one it is not shown
    weight: float | None = None
    is_fraction: bool = True  # shown in percent


def score_weights(scores: dict[str, Score]) -> dict[str, float | None]:
    """Give the weights in the form that `Language.factory` takes."""
    return {name: score.weight for name, score in scores.items()}


class HFClasses(NamedTuple):
    """What a head makes of the classes of a Hugging Face checkpoint."""

    settings: dict[str, Any]  # of the component
    labels: list[str]
    classes: list[int]  # the checkpoint's class for each of the head's, -1 for one that it lacks
