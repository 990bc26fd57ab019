"""By what heads are known: their scores, inputs, data, and what becomes of a checkpoint's
classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from spacy.tokens import Doc

if TYPE_CHECKING:
    from ..checks.findings import Check
    from ..data.records import Settings


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


class DeclaredHead:
    """By what the rest of the package knows a head. No other module lists heads:
    `find.head_classes` finds the classes with a `factory`."""

    # The name in `nlp.add_pipe`, for `from_hf` and `init-config` without "bert_". A class without
    # one of its own is a base of heads.
    factory: ClassVar[str]
    scores: ClassVar[dict[str, Score]] = {}
    # Second texts and the results for them, in `doc._`; for heads that read pairs.
    input_name: ClassVar[str] = ""
    output_name: ClassVar[str] = ""
    # Where `convert` finds the annotation in a record of JSONL; the first is the usual key.
    json_keys: ClassVar[tuple[str, ...]] = ()
    # What that annotation is called in the report of `convert`; else by the usual key.
    annotation: ClassVar[str] = ""
    # What `init-config` sets in the encoder's model.
    encoder_settings: ClassVar[dict[str, Any]] = {}
    # The task of Hugging Face's pipelines, "" if they have none, and the `problem_type` of an
    # exported configuration, None to leave it alone.
    hf_task: ClassVar[str] = ""
    hf_problem_type: ClassVar[str | None] = None

    @property
    def writes(self) -> set[str]:
        """The places of a Doc that this head overwrites, such as "doc._.nli"."""
        return set()

    @classmethod
    def set_extensions(cls) -> None:
        """Register the extensions of Doc and Span that this head reads and writes, by
        `doc_data.register_extension`."""

    # --- data

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Settings) -> None:
        """Set the annotation that a record of JSONL has under one of `json_keys`. Raises ValueError
        with the reason if the value is malformed."""
        raise NotImplementedError

    @classmethod
    def count_labels(cls, doc: Doc) -> dict[str, int]:
        """Count the labels that a Doc is annotated with, for the report of `convert`."""
        return {}

    @classmethod
    def is_annotated(cls, doc: Doc) -> bool:
        """Tell whether a Doc has gold annotation for a head of this kind, whatever its labels and
        settings are."""
        return bool(cls.count_labels(doc))

    def data_checks(self) -> list[tuple[Check, str]]:
        """List what `debug-data` looks for in a corpus, and what is so where nothing is found."""
        from ..checks.heads import check_annotated

        return [(check_annotated, "train and dev have annotated Docs")]

    # --- exchange with Hugging Face

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        """Tell whether a checkpoint for `hf_task` is one for this head: 0 if it isn't, 1 if it may
        be, 2 if its settings or the names of its classes say so."""
        return 0

    @classmethod
    def read_hf(cls, config: Any, names: Sequence[str], checkpoint: str) -> HFClasses:
        """Decide what becomes of a checkpoint's classes. Raises ValueError if they can't be this
        head's; `checkpoint` is the name for the message."""
        return HFClasses.as_they_are(names)
