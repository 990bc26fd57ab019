"""The base class of heads without labels."""

from collections.abc import Callable, Iterable

from spacy.language import Language
from spacy.training import Example

from .head import BertHead


class UnlabelledHead(BertHead):
    """The base class of heads without labels. `does` says what such a head does, for error
    messages."""

    does: str
    n_classes = 0

    def labels_of(self, example: Example) -> Iterable[str]:
        return ()

    @property
    def label_data(self) -> None:  # type: ignore[override]
        return None

    def add_label(self, label: str) -> int:
        """Raise ValueError: this head has no labels."""
        raise ValueError(f"{self.name} {self.does}; it has no labels.")

    def check_labels(self) -> None:
        pass

    def initialize(  # type: ignore[override]
        self, get_examples: Callable[[], Iterable[Example]], *, nlp: Language | None = None
    ) -> None:
        """Make the weights. Raises ValueError if there is no encoder, or a gold entry is wrong."""
        super().initialize(get_examples, nlp=nlp, labels=())
