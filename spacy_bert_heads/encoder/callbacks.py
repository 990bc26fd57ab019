"""Callbacks for training runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from spacy.language import Language

from .cache import StatesCache
from .component import BertEncoder


def make_cache_states(folder: Path) -> Callable[[Language], Language]:
    """Make a callback that caches the hidden states of frozen encoders on disk while heads are
    trained, so that the encoder only runs in the first epoch. Put it into
    `[initialize.after_init]`.

    folder (Path): A folder below the one in which the training is started. The files are float32:
        1.5 MB for a thousand wordpieces of width 384, times the number of layers that are read.
        They can be deleted after the training.

    Raises ValueError if the folder is elsewhere: a config from somebody else must not be able to
    write to any folder of the disk.
    """
    below = Path.cwd().resolve()
    if not Path(folder).resolve().is_relative_to(below):
        raise ValueError(
            f"cache_states can't keep hidden states in '{folder}', which is not below '{below}', "
            "where the training was started. Set its folder to one there."
        )

    def cache_states(nlp: Language) -> Language:
        for _, pipe in nlp.components:  # `nlp.pipeline` lacks frozen ones, which are disabled now
            if isinstance(pipe, BertEncoder):
                pipe.cache = StatesCache(folder)
        return nlp

    cast(Any, cache_states).is_of_run = True  # so that --resume does it again
    return cache_states
