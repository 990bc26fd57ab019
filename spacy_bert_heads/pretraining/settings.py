"""The settings of a pretraining run, as its config has them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from thinc.api import Config

from ..encoder.shim import DTYPES, check_precision
from .examples import PACKINGS, PAIRS
from .masking import Masking

FAMILIES = ("bert", "albert", "roberta")
# Layers and width of each size: Turc et al. 2019, table 1; base and large of Devlin et al. 2019.
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


@dataclass
class Paths:
    """raw: files, folders, globs or "-" for standard input. encoder: a hub name or folder to
    continue, or None for a new one. cache: where the tokenized text is kept."""

    raw: list[str]
    encoder: str | None
    cache: str = "corpus/pretraining"


@dataclass
class Encoder:
    """The encoder to begin with. family, size: of a new one. tokenizer: a hub name or folder whose
    tokenizer a new one takes, or None to train wordpieces on the raw text, vocab_size of them at
    the most. add_words: frequent words that the tokenizer breaks, to be added to it as pieces; of a
    new encoder and of one that is continued."""

    family: str = "bert"
    size: str = "small"
    tokenizer: str | None = None
    vocab_size: int = 30_522
    lowercase: bool = True
    add_words: int = 0


@dataclass
class Text:
    """sentences: a pipeline that finds them, or None for the rules of the language. held_out: the
    share of documents that is left to evaluation. workers: processes that prepare, 0 for all
    cores."""

    lang: str = "en"
    sentences: str | None = None
    held_out: float = 0.1
    workers: int = 0


@dataclass
class Objective:
    """sentences: "nsp", "sop", "full-sentences" or "doc-sentences". The loss is the sum of both,
    weighted. short_seq_prob: how often an example is shorter, by a random length."""

    sentences: str = "nsp"
    mlm_weight: float = 1.0
    sentence_weight: float = 1.0
    short_seq_prob: float = 0.1


@dataclass
class Phase:
    """A part of the run, with sequences of this many wordpieces."""

    max_length: int
    share: float = 1.0


@dataclass
class Training:
    """batch_pieces: wordpieces of a process's step, so a phase with longer sequences has fewer of
    them. rate_factor: heads that the checkpoint lacks learn at this times the rate.
    keep: how many states are kept to resume from. logger: an entry of spaCy's registry of loggers,
    with its settings."""

    max_steps: int = 1000
    seed: int = 0
    batch_pieces: int = 4096
    max_batch_tokens: int = 4096
    precision: str = "auto"
    learn_rate: float = 1e-4
    rate_factor: float = 10.0
    warmup_steps: int = 100
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    eval_frequency: int = 100
    eval_pieces: int = 65_536
    checkpoint_frequency: int = 100
    keep: int = 2
    phases: list[Phase] = field(default_factory=lambda: [Phase(128)])
    logger: dict | None = None


@dataclass
class Settings:
    """A run's settings, section by section."""

    paths: Paths
    encoder: Encoder = field(default_factory=Encoder)
    text: Text = field(default_factory=Text)
    objective: Objective = field(default_factory=Objective)
    masking: Masking = field(default_factory=Masking)
    training: Training = field(default_factory=Training)


def read_settings(path: Path, overrides: dict[str, Any]) -> Settings:
    """Read a config.

    path (Path): The file.
    overrides (Dict[str, Any]): Values by "section.key", instead of the file's.
    RETURNS (Settings): The settings.
    RAISES (ValueError): If the file can't be read, or a setting is unknown or makes no sense.
    """
    if not path.is_file():
        raise ValueError(f"There is no config '{path}'. The project ships configs/pretrain.cfg.")
    config = Config().from_disk(path, overrides=overrides)
    settings = _build(Settings, dict(config), "")
    _check(settings)
    return settings


def _build(kind: Any, value: Any, name: str) -> Any:
    """Build a dataclass, or a list of them, of plain data, with errors that name the place."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"[{name}] must be a section, not {value!r}.")
        kinds = get_type_hints(kind)
        unknown = sorted(set(value) - set(kinds))
        if unknown:
            raise ValueError(
                f"Unknown setting '{unknown[0]}' in [{name or 'the config'}]. "
                f"There are: {', '.join(kinds)}."
            )
        prefix = f"{name}." if name else ""
        built = {key: _build(kinds[key], one, prefix + key) for key, one in value.items()}
        try:
            return kind(**built)
        except TypeError as error:
            needed = [f.name for f in dataclasses.fields(kind) if _is_required(f)]
            raise ValueError(f"[{name}] needs: {', '.join(needed)}.") from error
    if get_origin(kind) is list:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, not {value!r}.")
        return [_build(get_args(kind)[0], one, f"{name}[{i}]") for i, one in enumerate(value)]
    allowed = get_args(kind) or (kind,)
    if float in allowed and type(value) is int:
        return float(value)
    if isinstance(value, dict) and dict in allowed:
        return value
    if type(value) not in allowed:
        names = " or ".join(getattr(one, "__name__", "null") for one in allowed)
        raise ValueError(f"{name} must be {names.replace('NoneType', 'null')}, not {value!r}.")
    return value


def _is_required(one: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return one.default is missing and one.default_factory is missing


def _check(settings: Settings) -> None:
    t, o, m, e = settings.training, settings.objective, settings.masking, settings.encoder
    shares = {
        "text.held_out": settings.text.held_out,
        "objective.short_seq_prob": o.short_seq_prob,
        "masking.rate": m.rate,
        "masking.mask": m.mask,
        "masking.random": m.random,
        "masking.mask + masking.random": m.mask + m.random,
    }
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must be between 0 and 1.")
    counts = {
        "training.max_steps": t.max_steps,
        "training.batch_pieces": t.batch_pieces,
        "training.max_batch_tokens": t.max_batch_tokens,
        "training.eval_frequency": t.eval_frequency,
        "training.eval_pieces": t.eval_pieces,
        "training.checkpoint_frequency": t.checkpoint_frequency,
        "training.keep": t.keep,
        "masking.max_ngram": m.max_ngram,
        "encoder.vocab_size": e.vocab_size,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be 1 or more.")
    for name, chosen, known in (("family", e.family, FAMILIES), ("size", e.size, tuple(SIZES))):
        if chosen not in known:
            raise ValueError(f"encoder.{name} is '{chosen}'. Choose one of: {', '.join(known)}.")
    for name, count in (
        ("training.warmup_steps", t.warmup_steps),
        ("encoder.add_words", e.add_words),
    ):
        if count < 0:
            raise ValueError(f"{name} is {count}; it must be 0 or more.")
    if e.add_words and settings.paths.encoder is None and e.tokenizer is None:
        raise ValueError(
            "encoder.add_words adds to a vocabulary that is there, but this one is trained on the "
            "same text. Raise encoder.vocab_size instead, or name an encoder.tokenizer."
        )
    check_precision(t.precision, ("auto", *DTYPES))
    if t.precision == "fp16":
        raise ValueError('training.precision "fp16" would need its gradients scaled. Take "bf16".')
    if not t.rate_factor > 0:
        raise ValueError(f"training.rate_factor is {t.rate_factor}; it must be above 0.")
    if o.sentences not in PAIRS + PACKINGS:
        raise ValueError(
            f"objective.sentences is '{o.sentences}'. Choose nsp, sop, full-sentences or "
            "doc-sentences."
        )
    if not t.phases or any(p.max_length < 8 or p.share <= 0 for p in t.phases):
        raise ValueError(
            "training.phases needs one entry at least, each with a max_length of 8 or more and a "
            "share above 0."
        )
