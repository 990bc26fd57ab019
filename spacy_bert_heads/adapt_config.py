"""Adapt a config with a tok2vec or transformer, so that spaCy's components read our encoder."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from spacy.language import CONFIG_SECTION_ORDER
from spacy.pipeline.tok2vec import Tok2VecListener
from spacy.util import get_sourced_components, load_model_from_config
from thinc.api import Config, Model

from .init_config import (
    DEFAULT_NAME,
    GPU_BATCH_TOKENS,
    check_storable,
    make_learn_rate,
    read_config,
)

ENCODER = "bert_encoder"
LISTENER = "spacy_bert_heads.Tok2VecListener.v1"
# Factories of components with token vectors for other components.
UPSTREAM = ("tok2vec", "transformer", "curated_transformer")
# spaCy's components are randomly initialised and need spaCy's learning rate, a pretrained encoder a
# tenth of it (benchmarks/RESULTS.md).
LEARN_RATE = 1e-3
LEARNING_RATE_MULTIPLIER = 0.1
WARMUP_STEPS = 200
MAX_STEPS = 20000  # spaCy's default


def adapt_config(path: Path, *, name: str | None = None) -> Config:
    """Replace a config's tok2vec or transformer, and each `tok2vec` layer of a single component, by
    our encoder.

    Learning rates change too: 1e-3 with a linear warm-up for spaCy's components, a tenth of that
    for the encoder. `name` is the checkpoint; None takes that of the transformer, or
    "bert-base-uncased". All other settings stay, and every default is filled in.

    Raises ValueError if the config can't be read, if there is nothing to replace, or if a setting
    or a sourced component depends on what is replaced.
    """
    check_storable(name)
    config = read_config(path)
    components = config.get("components", {})
    if any(one.get("factory") == ENCODER for one in components.values()):
        raise ValueError(f"{path} has a {ENCODER} already: it is ready for `spacy train`.")
    old = {
        pipe: one
        for pipe, one in components.items()
        if one.get("factory") in UPSTREAM or (pipe in UPSTREAM and "source" in one)
    }
    encoder = {
        "@architectures": "spacy_bert_heads.BertEncoder.v1",
        "name": name or _find_name(config, old, path),
        "learning_rate_multiplier": LEARNING_RATE_MULTIPLIER,
    }
    if config.get("system", {}).get("gpu_allocator"):
        encoder["max_batch_tokens"] = GPU_BATCH_TOKENS
    readers = [pipe for pipe, one in components.items() if pipe not in old and _listen(one)]
    if not old and not readers:
        raise ValueError(
            f"{path} has nothing that an encoder could replace: its components "
            f"({', '.join(components) or 'none'}) read no token vectors. spaCy's text classifier "
            "reads them with @architectures = spacy.TextCatReduce.v1."
        )
    config["components"] = {
        ENCODER: {"factory": ENCODER, "model": encoder},
        **{pipe: one for pipe, one in components.items() if pipe not in old},
    }
    _replace_names(config, old, readers)
    _set_learning_rates(config)
    # Via text, so that sections have spaCy's order and variables are kept.
    text = config.to_str()
    _check_references(text, old, path)
    config = Config(section_order=CONFIG_SECTION_ORDER).from_str(text, interpolate=False)
    nlp = load_model_from_config(config, auto_fill=True)
    for pipe, component in nlp.components:
        model = getattr(component, "model", None)
        nodes = model.walk() if isinstance(model, Model) else ()
        if any(isinstance(n, Tok2VecListener) or n.name == "transformer-listener" for n in nodes):
            raise ValueError(
                f"{path} takes '{pipe}' from a trained pipeline, where it reads the tok2vec or "
                f'transformer that is replaced. Train a new one, with factory = "…" instead of '
                f"source under [components.{pipe}]; or keep what it reads, with "
                'replace_listeners = ["model.tok2vec"] there.'
            )
    filled = nlp.config
    filled["components"].update(get_sourced_components(config))
    return filled


def _find_name(config: Config, old: dict[str, Any], path: Path) -> str:
    """Return the checkpoint in a config: spacy-transformers has it in the component's model,
    spacy-curated-transformers in [initialize]."""
    for pipe, component in old.items():
        loaders = config.get("initialize", {}).get("components", {}).get(pipe, {})
        loader = loaders.get("encoder_loader") or {}
        if found := component.get("model", {}).get("name") or loader.get("name"):
            return found
        if "source" in component or component["factory"] != "tok2vec":
            raise ValueError(
                f"{path} doesn't name the checkpoint of '{pipe}'. Give one: --name "
                f"{DEFAULT_NAME}, or another hub name or a folder."
            )
    return DEFAULT_NAME


def _listen(settings: dict[str, Any]) -> bool:
    """Replace each layer with token vectors by a listener, in place. Returns whether there was
    one."""
    found = False
    for key, value in settings.items():
        if key == "tok2vec" and value is not None:
            factor = value.get("grad_factor", 1.0) if isinstance(value, dict) else 1.0
            settings[key] = {"@architectures": LISTENER, "upstream": "*", "grad_factor": factor}
            found = True
        elif isinstance(value, dict):
            found |= _listen(value)
    return found


def _replace_names(config: Config, old: dict[str, Any], readers: Collection[str]) -> None:
    """Replace the names of replaced components by that of the encoder. If there were none, the
    encoder is inserted before the first of its `readers`. Settings for replaced components only are
    removed."""
    pipeline = _renamed(config["nlp"]["pipeline"], old)
    if ENCODER not in pipeline:
        first = next((i for i, pipe in enumerate(pipeline) if pipe in readers), len(pipeline))
        pipeline.insert(first, ENCODER)
    config["nlp"]["pipeline"] = pipeline
    training = config.setdefault("training", {})
    for section, key in ((config["nlp"], "disabled"), (training, "frozen_components")):
        if isinstance(section.get(key), list):
            section[key] = _renamed(section[key], old)
    if isinstance(training.get("annotating_components"), list):
        kept = [pipe for pipe in training["annotating_components"] if pipe not in old]
        training["annotating_components"] = kept
    initialize = config.setdefault("initialize", {})
    initialize["init_tok2vec"] = None  # weights of `spacy pretrain`, for a tok2vec
    config.pop("pretraining", None)
    for pipe in old:
        initialize.get("components", {}).pop(pipe, None)


def _renamed(names: Iterable[str], old: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(ENCODER if name in old else name for name in names))


def _set_learning_rates(config: Config) -> None:
    training = config["training"]
    before = training.get("optimizer", {})
    # Our encoder needs Adam's settings, and can't average weights.
    kept = before if before.get("@optimizers") == "Adam.v1" else {"@optimizers": "Adam.v1"}
    rate = before.get("learn_rate")
    steps = training.get("max_steps", MAX_STEPS)
    warmup = rate.get("warmup_steps") if isinstance(rate, dict) else None
    if warmup is None:
        is_short = isinstance(steps, int) and 0 < steps < 10 * WARMUP_STEPS
        warmup = steps // 10 if is_short else WARMUP_STEPS
    learn_rate = make_learn_rate(LEARN_RATE, warmup_steps=warmup)
    training["optimizer"] = {**kept, "use_averages": False, "learn_rate": learn_rate}
    training["max_steps"] = steps


def _check_references(text: str, old: dict[str, Any], path: Path) -> None:
    """Raise ValueError if a setting refers to a component that was replaced."""
    section = ""
    for line in text.splitlines():
        section = line if line.startswith("[") else section
        for pipe in old:
            if re.search(rf"\$\{{components\.{re.escape(pipe)}[.:}}]", line):
                raise ValueError(
                    f"{path} has '{line}' under {section}, but '{pipe}' is replaced. Write the "
                    "value itself there, or null for the width of an input."
                )
