"""The config that `init-config --pretrain` writes: the settings that gained most on a test set
(benchmarks/RESULTS.md)."""

from __future__ import annotations

from thinc.api import Config

from .settings import make_config
from .sources import list_files

STEP = 2048  # wordpieces
MAX_STEPS = 4000  # the longest run that was measured: eight million wordpieces of a domain
MIN_STEPS = 100
PASSES = 10  # over the texts of a task
BYTES_PER_WORDPIECE = 5  # of English text


def make_recipe(*, raw: str | None = None, encoder: str | None = None, lang: str = "en") -> Config:
    """Return a complete config: masked words alone, in small steps, as many as the size of the raw
    text demands. Without `encoder` (a hub name or folder), the run creates a new encoder, with the
    defaults, which are BERT's."""
    config = make_config(raw=raw, encoder=encoder, lang=lang)
    if encoder is not None:
        config["objective"]["sentences"] = "full-sentences"
        config["training"] |= {"batch_tokens": STEP, "max_steps": choose_steps(raw)}
    return config


def choose_steps(raw: str | None) -> int:
    """Return the number of steps for a file, a folder or a pattern: ten passes, but not more than
    were measured. Text that is not there yet may be long."""
    try:
        size = sum(file.stat().st_size for file in list_files(raw)) if raw else 0
    except FileNotFoundError:
        size = 0
    passes = PASSES * size // BYTES_PER_WORDPIECE // STEP if size else MAX_STEPS
    return min(max(passes, MIN_STEPS), MAX_STEPS)
