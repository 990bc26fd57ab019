"""BERT inside spaCy: one shared encoder, many heads."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hf import from_hf, to_hf

__version__ = "0.2.0"
__all__ = ["from_hf", "to_hf"]


def __getattr__(name: str) -> Any:
    # Imported lazily, because every `spacy.blank` imports this module if the package is installed.
    if name in __all__:
        from . import hf

        return getattr(hf, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
