"""What a training run may switch on in an encoder."""

from collections.abc import Callable
from pathlib import Path

from spacy.language import Language

from .cache import StatesCache
from .component import BertEncoder


def make_cache_states(folder: Path) -> Callable[[Language], Language]:
    """Make the callback that keeps the hidden states of frozen encoders on disk while heads are
    trained, so that epochs after the first, and evaluations, run no encoder. It belongs to
    `[initialize.after_init]`.

    `folder` is below the folder that the training is started in. It gets 4 bytes for a number: 1.5
    MB for a thousand wordpieces of width 384, times the layers that are read. It can be deleted
    after the training.

    Raises ValueError if the folder is elsewhere: a config from somebody else must not choose any
    folder of the disk.
    """
    below = Path.cwd().resolve()
    if not Path(folder).resolve().is_relative_to(below):
        raise ValueError(
            f"cache_states can't keep hidden states in '{folder}', which is not below '{below}', "
            "where the training was started. Name a folder there."
        )

    def cache_states(nlp: Language) -> Language:
        for _, pipe in nlp.components:  # spaCy has disabled frozen ones meanwhile
            if isinstance(pipe, BertEncoder):
                pipe.cache = StatesCache(folder)
        return nlp

    return cache_states
