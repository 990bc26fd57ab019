"""A config that trains well, from a few words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import spacy
import srsly
from spacy.language import CONFIG_SECTION_ORDER, Language
from spacy.tokens import DocBin
from spacy.util import load_model_from_config
from thinc.api import Config

from .heads.find import head_classes, pair_names
from .heads.head import BertHead

# A head begins at random and learns ten times as fast as the encoder, which doesn't: on WNUT17 this
# is worth 9 points of F1 at 5e-5 (benchmarks/RESULTS.md).
HEAD = {"model": {"rate_factor": 10.0}}
# An adapter begins as new as a head.
ADAPTED = {"rate_factor": 10.0}
BATCH_SIZE = 32
SMALL_BATCH_SIZE = 8
EPOCHS = 5
MIN_STEPS = 200
DEFAULT_STEPS = 2000


def init_config(
    heads: Sequence[str] = (),
    *,
    name: str | None = None,
    source: str | Path | None = None,
    lang: str | None = None,
    gpu: bool = False,
    adapter: str | None = None,
    train: Path | None = None,
    dev: Path | None = None,
) -> Config:
    """Make a complete training config for one encoder and some heads.

    `heads` are their factories' names without "bert_". `name` is the checkpoint, a Hugging Face hub
    name or a folder; None is "bert-base-uncased". `source` is a trained pipeline whose components,
    all of them, are trained further in place of new ones. `lang` is the language of spaCy's
    tokenizer, None for English. `adapter` is "pfeiffer", "houlsby" or "lora", to train a part of
    the encoder only. `train` is the training data, to whose size the number of steps is fitted.

    Every default is filled in. Raises ValueError if there is no such head, or none is named.
    """
    if source is None:
        encoder = {"name": name or "bert-base-uncased", **(ADAPTED if adapter else {})}
        encoder["adapter"] = adapter
        nlp = _make_pipeline(heads, encoder, lang=lang or "en", gpu=gpu)
        sourced = {}
    elif heads or name or lang or adapter:
        raise ValueError(
            "A source brings its heads, its checkpoint, its language and its adapter. Name none "
            "beside it."
        )
    else:
        nlp = spacy.load(source)
        sourced = {pipe: {"source": str(source)} for pipe in nlp.component_names}
    reads_pairs = any(isinstance(pipe, BertHead) and pipe.input_name for _, pipe in nlp.components)

    steps, batch_size = DEFAULT_STEPS, BATCH_SIZE
    # A batch of Docs would be a few contexts with many questions each, which are no independent
    # samples. With one pair an example it is a batch of pairs, in which every head finds as many
    # examples. The dev set is not split: scores don't depend on it, and Docs are read once.
    max_pairs = {"train": int(reads_pairs), "dev": 0}
    if train is not None:
        steps, batch_size = fit_steps(count_examples(train, max_pairs=max_pairs["train"]))
    recipe = {
        "paths": {"train": _str(train), "dev": _str(dev)},
        "system": {"gpu_allocator": "pytorch" if gpu else None},
        "nlp": {"batch_size": 128},
        "corpora": {
            part: {
                "@readers": "spacy_bert_heads.Corpus.v1",
                "path": f"${{paths.{part}}}",
                "max_length": 0,
                "limit": 0,
                "gold_preproc": False,
                "max_pairs": max_pairs[part],
            }
            for part in ("train", "dev")
        },
        "training": {
            "max_steps": steps,
            "patience": 0,
            "eval_frequency": max(10, min(200, steps // 10)),
            "batcher": {
                "@batchers": "spacy.batch_by_sequence.v1",
                "size": batch_size,
                "get_length": None,
            },
            "optimizer": {
                "@optimizers": "Adam.v1",
                "learn_rate": {
                    "@schedules": "warmup_linear.v1",
                    "initial_rate": 1e-4,
                    "warmup_steps": steps // 10,
                    "total_steps": steps,
                },
                "L2": 0.01,
                "L2_is_weight_decay": True,
                "grad_clip": 1.0,
                "use_averages": False,
                "eps": 1e-8,
            },
        },
    }
    config = Config(nlp.config)
    del config["corpora"], config["training"]["batcher"], config["training"]["optimizer"]
    # As text and back: the sections take spaCy's order, and references to others stay references.
    text = config.merge(recipe).to_str()
    config = Config(section_order=CONFIG_SECTION_ORDER).from_str(text, interpolate=False)
    filled = load_model_from_config(config, auto_fill=True).config
    filled["components"].update(sourced)
    return filled


def _make_pipeline(
    heads: Sequence[str], encoder: dict[str, Any], *, lang: str, gpu: bool
) -> Language:
    known = head_classes()
    unknown = [head for head in heads if head not in known]
    if unknown or not heads:
        what = f"Unknown head '{unknown[0]}'." if unknown else "No heads are named."
        raise ValueError(f"{what} Choose from: {', '.join(known)}; several with commas.")
    nlp = spacy.blank(lang)
    if gpu:
        encoder["max_batch_tokens"] = 32768
    for head in heads:
        encoder |= known[head].encoder_settings
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    for head in heads:
        nlp.add_pipe(known[head].factory, config=HEAD)
    return nlp


def fit_steps(n_examples: int) -> tuple[int, int]:
    """Choose how long to train: five epochs, or with little data longer and in small batches, for
    no fewer than 200 steps.

    n_examples (int): The number of training examples: Docs, or pairs.
    RETURNS (Tuple[int, int]): Steps, and examples in a batch.
    """
    for size in (BATCH_SIZE, SMALL_BATCH_SIZE):
        steps = EPOCHS * math.ceil(n_examples / size)
        if steps >= MIN_STEPS:
            return steps, size
    return MIN_STEPS, SMALL_BATCH_SIZE


def count_examples(path: Path, *, max_pairs: int = 0) -> int:
    """Count what the reader makes of files.

    path (Path): A `.spacy` file, or a folder of them.
    max_pairs (int): The most second texts of an example, 0 for no limit.
    RETURNS (int): The number of examples.
    RAISES (ValueError): If there is no such path.
    """
    if not path.exists():
        raise ValueError(
            f"There is no '{path}'. Make it first: python -m spacy bert convert SOURCE {path}"
        )
    files = sorted(path.glob("**/*.spacy")) if path.is_dir() else [path]
    bins = [DocBin().from_disk(file) for file in files]
    if not max_pairs:
        return sum(map(len, bins))
    pairs = [_count_pairs(user_data) for docs in bins for user_data in docs.user_data]
    return sum(max(1, math.ceil(count / max_pairs)) for count in pairs)


def _count_pairs(user_data: bytes | None) -> int:
    """The second texts in a Doc's user data, as a DocBin has them, so that no Doc is built."""
    data = {} if user_data is None else srsly.msgpack_loads(user_data, use_list=False) or {}
    return sum(len(data.get(("._.", name, None, None), ())) for name in pair_names())


def _str(path: Path | None) -> str | None:
    return None if path is None else str(path)
