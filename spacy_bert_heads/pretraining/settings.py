"""The settings of a pretraining run: what its config may say, what it says by default, and how the
file is read."""

from __future__ import annotations

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

# Layers and width of each size: Turc et al. 2019, table 1; base and large of Devlin et al. 2019.
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}

# Strict: "3" is no number, 1 is not true. An int is a float.
Natural = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
# A block whose key with @ names an entry of spaCy's registry, and the arguments for it.
Block = dict[str, Any]

FORBID = ConfigDict(extra="forbid")


def _as_list(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


def _whole_words_to_units(value: Any) -> Any:
    return ("words" if value else "wordpieces") if isinstance(value, bool) else value


@dataclass(config=FORBID)
class Paths:
    """raw: files, folders, globs or "-" for standard input, unless [corpora.raw] has a reader.
    encoder: a hub name or folder to continue, or None for a new one. cache: where the tokenized
    text is kept. held_out: text to evaluate on; without it, a share of the documents is held
    out."""

    raw: Annotated[list[str], BeforeValidator(_as_list)]
    encoder: str | None
    cache: str = "corpus/pretraining"
    held_out: Annotated[list[str], BeforeValidator(_as_list)] = field(default_factory=list)


@dataclass(config=FORBID)
class Corpora:
    """raw: a block with @readers. The registered function returns a callable without arguments
    that yields the raw texts, as strings or as {"text": …}, the same ones at every call."""

    raw: Block | None = None


@dataclass(config=FORBID)
class Encoder:
    """The encoder to begin with. family, size: of a new one. tokenizer: a hub name or folder whose
    tokenizer a new one takes, or None to train one of the family's kind on the raw text, with at
    most vocab_size wordpieces. lowercase: whether that ignores case and accents; None for yes
    unless the family is roberta. add_words: frequent words that the tokenizer breaks, to be added
    to it as wordpieces; of a new encoder and of one that is continued."""

    family: Literal["bert", "albert", "roberta"] = "bert"
    size: Literal["tiny", "mini", "small", "medium", "base", "large"] = "small"
    tokenizer: str | None = None
    vocab_size: Count = 30_522
    lowercase: Flag | None = None
    add_words: Natural = 0


@dataclass(config=FORBID)
class Text:
    """pipeline: finds sentences, entities and noun chunks, or None for the sentence ends of the
    language. format: the layout of text files, see layouts.py. key: of the text in JSON Lines and
    tables. held_out: the share of documents that is left to evaluation, at least one of them.
    workers: processes that prepare, 0 for all cores."""

    lang: str = "en"
    pipeline: str | None = None
    format: Literal["auto", "paragraphs", "sentences", "lines", "wikitext"] = "auto"
    key: str = "text"
    held_out: Share = 0.1
    workers: Natural = 0


@dataclass(config=FORBID)
class Objective:
    """The loss is the sum of both parts, weighted. short_seq_prob: how often an example is shorter,
    by a random length."""

    sentences: Literal["nsp", "sop", "full-sentences", "doc-sentences"] = "nsp"
    mlm_weight: NotNegative = 1.0
    sentence_weight: NotNegative = 1.0
    short_seq_prob: Share = 0.1


@dataclass(frozen=True, config=FORBID)
class Masking(MaskingOfABatch):
    """Masking that may change over a run: from `rate` at the first step to `final_rate` at the
    last, in a straight line (Wettig et al. 2023 and Ankner et al. 2024: more masks teach more at
    first, fewer at the end)."""

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
                f"masking.mask + masking.random is {self.mask + self.random}; it must be 1 or less."
            )
        return self

    def rate_at(self, step: int, num_steps: int) -> float:
        """Return the rate of a step, counted from 1, of a run of so many."""
        if self.final_rate is None:
            return self.rate
        done = (step - 1) / max(num_steps - 1, 1)
        return self.rate + (self.final_rate - self.rate) * done


@dataclass(config=FORBID)
class Phase:
    """A part of the run, with sequences of this many wordpieces."""

    max_length: Annotated[int, Field(strict=True, ge=8)]
    share: Positive = 1.0


def adam(
    learn_rate: float | Block = 1e-4, *, warmup_steps: int | None = None, **arguments: float
) -> dict[str, Any]:
    """Make the block of an optimizer: AdamW as BERT has it, with linear warm-up, over a tenth of
    the run by default, and then linear decay to 0 at its end (Devlin et al. 2019, section A.2),
    unless `learn_rate` is the block of another schedule. `arguments` are others of thinc's
    Adam.v1."""
    if not isinstance(learn_rate, dict):
        learn_rate = {
            "@schedules": "spacy_bert_heads.warmup_linear.v1",
            "initial_rate": learn_rate,
            "warmup_steps": warmup_steps,
            "total_steps": None,
        }
    return {
        "@optimizers": "Adam.v1",
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-6,
        "L2": 0.01,
        "L2_is_weight_decay": True,
        "grad_clip": 1.0,
        "use_averages": False,
        **arguments,
        "learn_rate": learn_rate,
    }


@dataclass(config=FORBID)
class Training:
    """max_steps, max_epochs: the length of the run, by one of them; without both 1,000 steps.
    batch_tokens: wordpieces of an optimizer step, of all processes together; a phase with longer
    sequences has fewer of them. max_batch_tokens: of what a process computes at once, padding
    counted; gradients of the parts of a batch add up. new_head_lr_multiplier: heads that the
    checkpoint lacks learn at this times the learning rate. keep: how many training states are kept
    to resume from. optimizer, logger: blocks with @optimizers and @loggers. In the block of a
    schedule a null total_steps is the number of steps of the run, a null warmup_steps a tenth of
    it."""

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
    """A run's settings, section by section."""

    paths: Paths
    encoder: Encoder = field(default_factory=Encoder)
    text: Text = field(default_factory=Text)
    objective: Objective = field(default_factory=Objective)
    masking: Masking = field(default_factory=Masking)
    training: Training = field(default_factory=Training)
    corpora: Corpora = field(default_factory=Corpora)

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if bool(self.paths.raw) == (self.corpora.raw is not None):
            raise ValueError(
                "The raw text comes from paths.raw (--paths.raw FILE) or from a reader in "
                "[corpora.raw], one of both."
            )
        if self.masking.units == "spans" and self.text.pipeline is None:
            raise ValueError(
                'masking.units is "spans", which a pipeline has to find. Name one that finds '
                "entities or noun chunks in text.pipeline."
            )
        e = self.encoder
        if e.add_words and self.paths.encoder is None and e.tokenizer is None:
            raise ValueError(
                "encoder.add_words adds to a vocabulary that is there, but this one is trained on "
                "the same text. Raise encoder.vocab_size instead, or name an encoder.tokenizer."
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
    """Make a complete config. Without `encoder` (a hub name or folder) the run begins with a new
    one."""
    config = dataclasses.asdict(Settings(Paths(["-"], encoder), text=Text(lang)))
    config["paths"]["raw"] = raw
    return Config(config)


def read_settings(path: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read a config, which needs no more than `paths.raw` and `paths.encoder`. `overrides` are
    values by "section.key".

    Raises ValueError if there is no such file, a setting is unknown or its value makes no sense.
    """
    if not path.is_file():
        raise ValueError(
            f"There is no config '{path}'. Make one: python -m spacy bert init-config --pretrain "
            f"{path}"
        )
    given = Config().from_disk(path, interpolate=False)
    overrides = dict(overrides or {})
    _rename(given, overrides)
    if "encoder" not in given.get("paths", {}) and "paths.encoder" not in overrides:
        raise ValueError(
            "[paths] needs an encoder: the hub name or folder of the one to continue, or null for "
            "a new one."
        )
    defaults = make_config()
    _choose_length(defaults, given, overrides)
    # With the defaults filled in first, each of them can be overridden.
    text = defaults.merge(given).to_str(interpolate=False)
    return check_config(Config().from_str(text, overrides=overrides))


def check_config(config: Mapping[str, Any]) -> Settings:
    """Make settings of an interpolated config. Raises ValueError for the first wrong one."""
    try:
        return TypeAdapter(Settings).validate_python(dict(config))
    except ValidationError as error:
        raise ValueError(_explain(error)) from error


def _rename(given: Config, overrides: dict[str, Any]) -> None:
    """Have old keys of the file and of the overrides be overrides of the new ones."""
    for old, new in RENAMED.items():
        section, key = old.split(".")
        found = [one for one in (overrides, given.get(section, {})) if old in one or key in one]
        values = [one.pop(old if one is overrides else key) for one in found]
        if values:
            overrides.setdefault(new, values[0])
            together = ", of all processes together" if new == "training.batch_tokens" else ""
            warn_deprecated(f"The setting {old}", new + together, stacklevel=3)


def _choose_length(defaults: Config, given: Config, overrides: dict[str, Any]) -> None:
    """Where the length of the run is set, to steps or epochs, drop what has less priority."""
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
    """Say what is wrong with the first wrong setting."""
    first = error.errors()[0]
    loc = first["loc"]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "unexpected_keyword_argument":
        section = ".".join(map(str, loc[:-1])) or "the config"
        known = ", ".join(_list_keys(loc[:-1]))
        return f"Unknown setting '{loc[-1]}' in [{section}]. There are: {known}."
    if first["type"] == "missing":
        return f"{'.'.join(map(str, loc))} is missing."
    said = first["msg"].replace("Input should", "it should")
    return f"{'.'.join(map(str, loc))} is {first['input']!r}: {said}."


def _list_keys(section: tuple[str | int, ...]) -> list[str]:
    kind: Any = Settings
    for key in section:
        hints = {} if isinstance(key, int) else typing.get_type_hints(kind)
        kind = typing.get_args(kind)[0] if isinstance(key, int) else hints[key]
    return [one.name for one in dataclasses.fields(kind)]
