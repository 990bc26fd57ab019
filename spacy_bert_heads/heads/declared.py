"""The declarations of a head that the rest of the package reads: scores, inputs, data formats,
counts, and how it reads a Hugging Face checkpoint's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from spacy.tokens import Doc
from spacy.training import Example

from ..text.doc_data import check_texts
from .tallies import Counts, Floats, Tally, count_decisions

if TYPE_CHECKING:
    from ..checks.findings import Check
    from ..data.records import Settings


class Score(NamedTuple):
    """A score of a head: its title in `bert evaluate` and its weight in `spacy train`."""

    title: str = ""  # without a title it is not shown
    weight: float | None = None
    is_fraction: bool = True  # shown in percent


def score_weights(scores: dict[str, Score]) -> dict[str, float | None]:
    """Return the weights for `default_score_weights` of `Language.factory`."""
    return {name: score.weight for name, score in scores.items()}


def check_softmax(names: Sequence[str], checkpoint: str) -> None:
    """Raise ValueError if a checkpoint has a single class, for a head with a softmax."""
    if len(names) == 1:
        raise ValueError(
            f"'{checkpoint}' has one class, '{names[0]}', and the softmax over one is 1 for every "
            'text. For a sigmoid instead, set task="textcat_multilabel".'
        )


class HFClasses(NamedTuple):
    """Map the classes of a Hugging Face checkpoint to those of a head."""

    settings: dict[str, Any]  # of the component
    labels: list[str]
    # For each class of the head the checkpoint's class, or the most similar one if it has none.
    classes: list[int]
    lacking: list[bool]  # for each class of the head: the checkpoint does not have it

    @staticmethod
    def as_they_are(names: Sequence[str], **settings: Any) -> HFClasses:
        """Use all classes as labels, in their order."""
        n = len(names)
        return HFClasses(settings, list(names), list(range(n)), [False] * n)


class DeclaredHead:
    """The class attributes and methods by which other modules use a head. No module lists heads:
    `find.head_classes` finds the classes with a `factory`."""

    # The factory's name; `from_hf` and `init-config` take it without "bert_". A class that does not
    # set it is an abstract base class.
    factory: ClassVar[str]
    scores: ClassVar[dict[str, Score]] = {}
    # For heads that read pairs: the names in `doc._` of second texts and of their results.
    input_name: ClassVar[str] = ""
    output_name: ClassVar[str] = ""
    # The keys under which `convert` finds the annotation in a JSONL record, the usual one first.
    json_keys: ClassVar[tuple[str, ...]] = ()
    # The name of that annotation in the report of `convert`; the usual key by default.
    annotation: ClassVar[str] = ""
    # Settings of the encoder's model that `init-config` writes for this head.
    encoder_settings: ClassVar[dict[str, Any]] = {}
    # What it sets in the head's model: new weights learn faster than those of an encoder.
    learning_rate_multiplier: ClassVar[float] = 10.0
    # The task name in Hugging Face's pipelines ("" if they have none), and the `problem_type` of an
    # exported configuration (None: not set).
    hf_task: ClassVar[str] = ""
    hf_problem_type: ClassVar[str | None] = None

    @property
    def writes(self) -> set[str]:
        """The places of a Doc that this head overwrites, such as "doc._.nli"."""
        return set()

    @classmethod
    def check_asked(cls, asked: Any, where: str) -> list[Any]:
        """Return `asked`, the inputs of a Doc for a head that reads pairs, as a valid list. Raises
        ValueError, which names the list `where`, if it is not one."""
        return check_texts(asked, where)

    @classmethod
    def texts_of(cls, asked: Any) -> list[str]:
        """List the second texts of one input; by default the input itself is the only one."""
        return [asked]

    @classmethod
    def set_extensions(cls) -> None:
        """Register the Doc and Span extensions that this head reads and writes, with
        `doc_data.register_extension`."""

    # --- data

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Settings) -> None:
        """Annotate a Doc with the value that a JSONL record has under one of `json_keys`. Raises
        ValueError with the reason if the value is malformed."""
        raise NotImplementedError

    @classmethod
    def count_labels(cls, doc: Doc) -> dict[str, int]:
        """Count a Doc's gold labels, for the report of `convert`."""
        return {}

    @classmethod
    def is_annotated(cls, doc: Doc) -> bool:
        """Return whether a Doc has gold annotation for this kind of head, independent of labels and
        settings."""
        return bool(cls.count_labels(doc))

    def data_checks(self) -> list[tuple[Check, str]]:
        """List the checks of `debug-data`, each with the statement that holds if it finds
        nothing."""
        from ..checks.heads import check_annotated

        return [(check_annotated, "train and dev have annotated Docs")]

    # --- comparison with other pipelines

    def is_judged(self, example: Example) -> bool:
        """Return whether predictions for an example can be right or wrong: it is annotated for this
        head, or has a gold label that the head can't predict."""
        return self.has_gold(example)  # type: ignore[attr-defined]

    def decisions(self, example: Example) -> list[tuple[str, str]]:
        """Return the gold and the predicted label ("" for none) of each decision on an annotated
        example, for heads that choose one of several labels. McNemar's test needs them."""
        return []

    def tally(self, example: Example) -> Tally:
        """Count what an annotated example contributes to the scores, by label: by default "tp",
        "fp" and "fn" of its decisions. A head without counts is scored again for each bootstrap
        resample."""
        return count_decisions(self.decisions(example))

    @classmethod
    def scores_of(cls, counts: Counts) -> dict[str, Floats]:
        """Compute scores by name from sums of tallies (..., num_labels). Scores that are missing
        here, or differ from what `score` returns for the same Docs, are computed by `score`."""
        return {}

    # --- exchange with Hugging Face

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        """Rate how well a checkpoint for `hf_task` fits this head: 0 if it does not, 1 if it may, 2
        if its settings or class names say so, 3 if they also say that it reads pairs."""
        return 0

    @classmethod
    def read_hf(cls, config: Any, names: Sequence[str], checkpoint: str) -> HFClasses:
        """Map the classes of a checkpoint to those of this head. Raises ValueError, which names the
        `checkpoint`, if the head can't have these classes."""
        return HFClasses.as_they_are(names)

    def hf_settings(self) -> dict[str, Any]:
        """Return the settings of an exported configuration that tell how to read its logits."""
        return {} if self.hf_problem_type is None else {"problem_type": self.hf_problem_type}
