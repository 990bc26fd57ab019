"""Model cards for exports to Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spacy.language import Language

from .heads.head import BertHead


def _encoder_name(nlp: Language, component: str) -> str | None:
    """Return the name of the checkpoint that a head's encoder was initialised from."""
    pipe: Any = nlp.get_pipe(component)
    tok2vec = pipe.model.get_ref("tok2vec") if isinstance(pipe, BertHead) else None
    upstream = getattr(tok2vec, "upstream", None)
    if upstream is None or upstream.name not in nlp.component_names:
        return None
    # Not from the config, which may have a variable there, such as ${paths.encoder}.
    return short_name(upstream.model.attrs["name"])


def make_card(
    nlp: Language, component: str, task: str, labels: Sequence[str], *, format: str = "safetensors"
) -> str:
    """Make a model card: Markdown with the hub's YAML header. Texts from users (labels, names,
    descriptions, paths) are escaped. `format` is one of the tags."""
    name = f"{nlp.lang}_{nlp.meta.get('name') or 'pipeline'}"
    version = nlp.meta.get("version") or "0.0.0"
    head = [
        "---",
        f"language: {nlp.lang}",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        f"tags: [{', '.join(('spacy', 'spacy_bert_heads', format))}]",
        "---",
        f"# {_as_text(component)}",
        f"From the spaCy pipeline {_as_code(name)}, version {_as_text(version)}, by "
        f"spacy_bert_heads. {_as_text(nlp.meta.get('description') or '')}",
    ]
    if labels:
        head += ["## Labels", ", ".join(map(_as_code, labels))]
    weights = nlp.get_pipe_meta(component).default_score_weights or {}
    scores = nlp.meta.get("performance", {})
    numbers = {k: scores[k] for k in weights if isinstance(scores.get(k), int | float)}
    if numbers:
        rows = [f"| {_as_code(name)} | {value:.4f} |" for name, value in numbers.items()]
        head += ["## Scores", "\n".join(["| score | dev set |", "|---|---|", *rows])]
    training = nlp.config.interpolate()["training"]
    rate = training["optimizer"].get("learn_rate")
    trained = {
        "seed": training.get("seed"),
        "steps": training.get("max_steps") or None,
        "learning rate": rate.get("initial_rate") if isinstance(rate, dict) else rate,
        "encoder": _encoder_name(nlp, component),
    }
    # A pipeline that was not trained by spaCy has spaCy's defaults there, which mean nothing.
    if numbers:
        rows = [f"- {name}: {_as_text(value)}" for name, value in trained.items() if value]
        head += ["## Training", "\n".join(["`spacy train`, with", "", *rows])]
    return "\n\n".join(["\n".join(head[:6]), *head[6:]]) + "\n"


def _as_text(value: Any) -> str:
    """Escape a value for Markdown, on one line: no markup, no HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#!|&~$])", r"\\\1", " ".join(str(value).split()))


def _as_code(value: Any) -> str:
    """Format a value as a code span (CommonMark 6.1), on one line."""
    text = " ".join(str(value).split())
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    edge = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def short_name(name: str) -> str:
    """Return a hub name unchanged, of a folder its last part."""
    return Path(name).resolve().name if Path(name).is_dir() else name
