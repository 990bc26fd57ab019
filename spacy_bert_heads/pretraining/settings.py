"""Define, read and check the settings of a pretraining run."""

from __future__ import annotations

import configparser
import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from thinc.api import Config

from ..deprecated import warn_deprecated
from .masking import Masking as MaskingOfABatch
from .noise import Noise
from .schedule import adam

# Layers and hidden size of each size: Turc et al. 2019, table 1; base and large of Devlin et al.
# 2019.
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}

# Strict: "3" is not a number, 1 is not a bool. An int is accepted as a float.
Natural = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
# A registry block: its key with @ names a function in spaCy's registry, the rest are arguments.
Block = dict[str, Any]

FORBID = ConfigDict(extra="forbid")


def _as_list(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


def _whole_words_to_units(value: Any) -> Any:
    return ("words" if value else "wordpieces") if isinstance(value, bool) else value


@dataclass(config=FORBID)
class Paths:
    """Hold the paths of a run.

    raw: files, folders, globs or "-" for standard input, unless [corpora.raw] has a reader.
    encoder: the hub name or folder of the checkpoint to start from; None for a new encoder. cache:
    the folder for the tokenized text. held_out: text for evaluation; if empty, a share of the
    documents is held out.
    """

    raw: Annotated[list[str], BeforeValidator(_as_list)]
    encoder: str | None
    cache: str = "corpus/pretraining"
    held_out: Annotated[list[str], BeforeValidator(_as_list)] = field(default_factory=list)


@dataclass(config=FORBID)
class Corpora:
    """Hold the reader of raw text.

    raw: a block with @readers. The registered function returns a callable without arguments that
    yields the raw texts, as strings or as {"text": …}, the same texts at every call.
    """

    raw: Block | None = None


@dataclass(config=FORBID)
class Encoder:
    """Hold the settings of the initial encoder.

    family, size: of a new encoder. tokenizer: a hub name or folder with the tokenizer of a new
    encoder; None trains one on the raw text, with the family's algorithm and at most vocab_size
    wordpieces. lowercase: whether the trained tokenizer ignores case and accents; None means yes,
    except for roberta. add_words: the number of frequent words that the tokenizer splits and that
    are added to its vocabulary, for a new encoder or a checkpoint.
    """

    family: Literal["bert", "albert", "roberta"] = "bert"
    size: Literal["tiny", "mini", "small", "medium", "base", "large"] = "small"
    tokenizer: str | None = None
    vocab_size: Count = 30_522
    lowercase: Flag | None = None
    add_words: Natural = 0


@dataclass(config=FORBID)
class Text:
    """Hold the settings for reading raw text.

    pipeline: finds sentences, entities and noun chunks; None splits sentences at the punctuation of
    the language. format: the layout of text files, see layouts.py. key: the key or column of the
    text in JSON Lines and tables. held_out: the share of documents for evaluation, at least one
    document. workers: processes that tokenize, 0 for all cores.
    """

    lang: str = "en"
    pipeline: str | None = None
    format: Literal["auto", "paragraphs", "sentences", "lines", "wikitext"] = "auto"
    key: str = "text"
    held_out: Share = 0.1
    workers: Natural = 0


@dataclass(config=FORBID)
class Objective:
    """Hold the settings of the loss, the weighted sum of the MLM loss and the loss of pairs.

    short_seq_prob: the probability that an example has a random shorter length.
    """

    sentences: Literal["nsp", "sop", "full-sentences", "doc-sentences"] = "nsp"
    mlm_weight: NotNegative = 1.0
    sentence_weight: NotNegative = 1.0
    short_seq_prob: Share = 0.1


@dataclass(frozen=True, config=FORBID)
class Masking(MaskingOfABatch):
    """Hold masking settings with a rate that may change linearly over a run, from `rate` at the
    first step to `final_rate` at the last (Wettig et al. 2023; Ankner et al. 2024: a higher rate is
    better early, a lower one late in training)."""

    rate: Share = 0.15
    mask: Share = 0.8
    random: Share = 0.1
    units: Annotated[
        Literal["wordpieces", "words", "spans"], BeforeValidator(_whole_words_to_units)
    ] = "words"
    max_ngram: Count = 1
    final_rate: Share | None = None

    @model_validator(mode="after")
    def _check(self) -> Masking:
        if self.mask + self.random > 1:
            raise ValueError(
                f"masking.mask + masking.random is {self.mask + self.random}. Reduce it to 1 or "
                "less."
            )
        return self

    def rate_at(self, step: int, num_steps: int) -> float:
        """Return the masking rate of a step, counted from 1, in a run of `num_steps` steps."""
        if self.final_rate is None:
            return self.rate
        done = (step - 1) / max(num_steps - 1, 1)
        return self.rate + (self.final_rate - self.rate) * done


@dataclass(frozen=True, config=FORBID)
class Denoising(Noise):
    """Hold the settings of a decoder that restores damaged texts, see `Noise`; without kinds there
    is none. The decoder is saved in the folder "decoder" of the encoder's.

    weight: that of its loss, a mean over the wordpieces that it writes; with an mlm_weight of 0
    nothing else is learned. decoder: "encoder" initialises it with the encoder's weights, "random"
    with new ones. num_layers: its layers, null for as many as the encoder has.
    """

    kinds: tuple[Literal["permutation", "rotation", "deletion", "infilling", "mass"], ...] = ()
    rate: Share = 0.3
    mean_span: Positive = 3.0
    weight: NotNegative = 1.0
    decoder: Literal["encoder", "random"] = "encoder"
    num_layers: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> Denoising:
        if "mass" in self.kinds and len(self.kinds) > 1:
            raise ValueError(
                "denoising.kinds has mass, which can't be combined: the decoder writes only a part "
                'of the text. Set it to ["mass"], or leave mass out.'
            )
        return self


@dataclass(config=FORBID)
class Phase:
    """Hold a part of the run, with sequences of `max_length` wordpieces and its share of the
    steps."""

    max_length: Annotated[int, Field(strict=True, ge=8)]
    share: Positive = 1.0


@dataclass(config=FORBID)
class Training:
    """Hold the settings of the training loop.

    max_steps, max_epochs: the length of the run; set one of them (default: 1,000 steps).
    batch_tokens: wordpieces per optimizer step, over all processes; with longer sequences a batch
    has fewer of them. max_batch_tokens: the most wordpieces, padding included, that a process
    computes at once; gradients of the parts of a batch are accumulated. new_head_lr_multiplier: the
    learning-rate multiplier of heads that the checkpoint lacks. keep: the number of training states
    to keep. optimizer, logger: blocks with @optimizers and @loggers. In the block of a schedule, a
    null total_steps is the number of steps of the run, a null warmup_steps a tenth of it.
    """

    max_steps: Count | None = None
    max_epochs: Positive | None = None
    seed: Natural = 0
    batch_tokens: Count = 4096
    max_batch_tokens: Count = 4096
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    new_head_lr_multiplier: Positive = 10.0
    eval_frequency: Count = 100
    eval_tokens: Count = 65_536
    checkpoint_frequency: Count = 100
    keep: Count = 2
    phases: Annotated[list[Phase], Field(min_length=1)] = field(
        default_factory=lambda: [Phase(128)]
    )
    optimizer: Block = field(default_factory=adam)
    logger: Block | None = None

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.max_epochs is None:
            self.max_steps = self.max_steps or 1000
        elif self.max_steps is not None:
            raise ValueError(
                f"training.max_steps is {self.max_steps} and training.max_epochs is "
                f"{self.max_epochs}. Set one of them to null."
            )
        return self


@dataclass(config=FORBID)
class Settings:
    """Hold the settings of a run by section."""

    paths: Paths
    encoder: Encoder = field(default_factory=Encoder)
    text: Text = field(default_factory=Text)
    objective: Objective = field(default_factory=Objective)
    masking: Masking = field(default_factory=Masking)
    denoising: Denoising = field(default_factory=Denoising)
    training: Training = field(default_factory=Training)
    corpora: Corpora = field(default_factory=Corpora)

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if bool(self.paths.raw) == (self.corpora.raw is not None):
            raise ValueError(
                "Set the raw text in exactly one place: paths.raw (--paths.raw FILE) or a reader "
                "in [corpora.raw]."
            )
        if self.masking.units == "spans" and self.text.pipeline is None:
            raise ValueError(
                'masking.units is "spans", but text.pipeline is null. Set it to a pipeline that '
                "finds entities or noun chunks."
            )
        if self.denoising.kinds and self.objective.sentences != "doc-sentences":
            raise ValueError(
                f"denoising damages parts of one document, but objective.sentences is "
                f'"{self.objective.sentences}". Set it to "doc-sentences".'
            )
        e = self.encoder
        if e.add_words and self.paths.encoder is None and e.tokenizer is None:
            raise ValueError(
                "encoder.add_words extends an existing vocabulary, but this one is trained on the "
                "same text. Increase encoder.vocab_size instead, or set encoder.tokenizer."
            )
        return self


# --- the config file

# Keys of version 0.1, which work until 0.3.
RENAMED = {
    "training.batch_pieces": "training.batch_tokens",
    "training.eval_pieces": "training.eval_tokens",
    "training.rate_factor": "training.new_head_lr_multiplier",
    "training.learn_rate": "training.optimizer.learn_rate.initial_rate",
    "training.warmup_steps": "training.optimizer.learn_rate.warmup_steps",
    "training.weight_decay": "training.optimizer.L2",
    "training.grad_clip": "training.optimizer.grad_clip",
    "text.sentences": "text.pipeline",
    "masking.whole_words": "masking.units",
}


def make_config(*, raw: str | None = None, encoder: str | None = None, lang: str = "en") -> Config:
    """Return a complete config. Without `encoder` (a hub name or folder), the run creates a new
    encoder."""
    config = dataclasses.asdict(Settings(Paths(["-"], encoder), text=Text(lang)))
    config["paths"]["raw"] = raw
    return Config(config)


def read_settings(path: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read a config, which needs only `paths.raw` and `paths.encoder`. `overrides` maps
    "section.key" to values.

    Raises ValueError if the file doesn't exist, a setting is unknown or a value is invalid.
    """
    if not path.is_file():
        raise ValueError(
            f"There is no config '{path}'. Create one with: python -m spacy bert init-config "
            f"--pretrain {path}"
        )
    try:
        given = Config().from_disk(path, interpolate=False)
    except (ValueError, configparser.Error) as error:
        raise ValueError(
            f"{path} can't be read as a config: {' '.join(str(error).split())}. Fix it, or create "
            "one with `bert init-config --pretrain`."
        ) from error
    overrides = dict(overrides or {})
    _rename(given, overrides)
    if "encoder" not in given.get("paths", {}) and "paths.encoder" not in overrides:
        raise ValueError(
            "[paths] has no encoder. Set it to the hub name or folder of a checkpoint, or to null "
            "for a new encoder."
        )
    defaults = make_config()
    _choose_length(defaults, given, overrides)
    # Defaults are filled in first, because only existing settings can be overridden.
    text = defaults.merge(given).to_str(interpolate=False)
    return check_config(Config().from_str(text, overrides=overrides))


def check_config(config: Mapping[str, Any]) -> Settings:
    """Convert an interpolated config to settings. Raises ValueError for the first invalid one."""
    try:
        return TypeAdapter(Settings).validate_python(dict(config))
    except ValidationError as error:
        raise ValueError(_explain(error)) from error


def _rename(given: Config, overrides: dict[str, Any]) -> None:
    """Turn deprecated keys of the file and of the overrides into overrides of the new keys."""
    for old, new in RENAMED.items():
        section, key = old.split(".")
        found = [one for one in (overrides, given.get(section, {})) if old in one or key in one]
        values = [one.pop(old if one is overrides else key) for one in found]
        if values:
            overrides.setdefault(new, values[0])
            together = ", of all processes together" if new == "training.batch_tokens" else ""
            warn_deprecated(f"The setting {old}", new + together, stacklevel=3)


def _choose_length(defaults: Config, given: Config, overrides: dict[str, Any]) -> None:
    """If the length of the run is set in steps or epochs, drop settings with lower priority."""
    section = given.get("training", {})
    for values, prefix in ((overrides, "training."), (section, "")):
        told = [key for key in ("max_steps", "max_epochs") if values.get(prefix + key) is not None]
        if told:
            for key in {"max_steps", "max_epochs"}.difference(told):
                defaults["training"][key] = None
                if values is overrides:
                    section.pop(key, None)
            return


def _explain(error: ValidationError) -> str:
    """Return a message for the first invalid setting."""
    first = error.errors()[0]
    loc = first["loc"]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "unexpected_keyword_argument":
        section = ".".join(map(str, loc[:-1])) or "the config"
        known = ", ".join(_list_keys(loc[:-1]))
        return f"Unknown setting '{loc[-1]}' in [{section}]. Choose from: {known}."
    if first["type"] == "missing":
        return f"{'.'.join(map(str, loc))} is missing. Set it in the config."
    said = first["msg"].replace("Input should", "it should")
    return f"{'.'.join(map(str, loc))} is {first['input']!r}: {said}."


def _list_keys(section: tuple[str | int, ...]) -> list[str]:
    kind: Any = Settings
    for key in section:
        hints = {} if isinstance(key, int) else typing.get_type_hints(kind)
        kind = typing.get_args(kind)[0] if isinstance(key, int) else hints[key]
    return [one.name for one in dataclasses.fields(kind)]
