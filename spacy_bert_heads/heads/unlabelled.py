"""What the heads share whose classes are no labels."""

from collections.abc import Callable, Iterable

from spacy.language import Language
from spacy.training import Example

from .head import BertHead


class UnlabelledHead(BertHead):
    """The base of the heads whose classes are no labels. `does` says what such a head does, for an
    error."""

    does: str
    n_classes = 0

    @property
    def label_data(self) -> None:  # type: ignore[override]
        return None

    def add_label(self, label: str) -> int:
        """Raise ValueError: there are no labels."""
        raise ValueError(f"{self.name} {self.does}; it has no labels.")

    def check_labels(self) -> None:
        pass

    def initialize(  # type: ignore[override]
        self, get_examples: Callable[[], Iterable[Example]], *, nlp: Language | None = None
    ) -> None:
        """Make the weights. Raises ValueError if there is no encoder, or a gold entry is wrong."""
        super().initialize(get_examples, nlp=nlp, labels=())
