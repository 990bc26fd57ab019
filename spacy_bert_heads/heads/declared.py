"""By what heads are known: their scores, inputs, data, counts, and what becomes of a checkpoint's
classes."""

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
    def check_asked(cls, asked: Any, where: str) -> list[Any]:
        """Give a list of what is asked of a Doc, of a head that reads pairs. Raises ValueError if
        it can't be asked; `where` is what to call the list then."""
        return check_texts(asked, where)

    @classmethod
    def texts_of(cls, asked: Any) -> list[str]:
        """List the second texts of one thing that is asked: by default it is one itself."""
        return [asked]

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

    # --- comparison with other pipelines

    def decisions(self, example: Example) -> list[tuple[str, str]]:
        """Give the true and the predicted label ("" for none) of each decision on an annotated
        example, where each is one of several labels: McNemar's test is for these."""
        return []

    def tally(self, example: Example) -> Tally:
        """Count what an annotated example adds to the scores, by label: by default "tp", "fp" and
        "fn" of its decisions. A head that counts nothing is scored anew for each resample."""
        return count_decisions(self.decisions(example))

    @classmethod
    def scores_of(cls, counts: Counts) -> dict[str, Floats]:
        """Compute scores from sums of tallies (..., n_labels) by their names. A score that is not
        here, or is not what `score` gives for the same Docs, is left to `score`."""
        return {}

    # --- exchange with Hugging Face

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        """Tell whether a checkpoint for `hf_task` is one for this head: 0 if it isn't, 1 if it may
        be, 2 if its settings or the names of its classes say so, 3 if they also say that it reads
        pairs."""
        return 0

    @classmethod
    def read_hf(cls, config: Any, names: Sequence[str], checkpoint: str) -> HFClasses:
        """Decide what becomes of a checkpoint's classes. Raises ValueError if they can't be this
        head's; `checkpoint` is the name for the message."""
        return HFClasses.as_they_are(names)

    def hf_settings(self) -> dict[str, Any]:
        """Give the settings of an exported configuration that say what its logits are."""
        return {} if self.hf_problem_type is None else {"problem_type": self.hf_problem_type}
