"""Make a complete training config from a few choices, with settings that train well."""

from __future__ import annotations

import configparser
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import spacy
from spacy.language import CONFIG_SECTION_ORDER, Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import load_config, load_model_from_config
from thinc.api import Config

from .checks.heads import is_annotated
from .data.reader import BertCorpus
from .encoder.component import BertEncoder
from .evaluate import load_pipeline
from .heads.find import annotations_of, head_classes, pair_names, second_texts
from .heads.head import BertHead
from .text.user_data import get_list

# A randomly initialised head learns ten times as fast as the pretrained encoder: on WNUT17 this is
# worth 9 points of F1 at 5e-5 (benchmarks/RESULTS.md).
HEAD = {"model": {"learning_rate_multiplier": 10.0}}
# An adapter is as new as a head.
ADAPTED = {"learning_rate_multiplier": 10.0}
BATCH_SIZE = 32
SMALL_BATCH_SIZE = 8
# Wordpieces in a batch of a joint training. A short training uses smaller batches: twice as many
# updates are worth more than less noisy gradients, 8 points of F1 on WNUT17
# (benchmarks/RESULTS.md).
BATCH_TOKENS = 1024
SMALL_BATCH_TOKENS = 512
FEW_STEPS = 5000
WORDPIECES_PER_WORD = 1.3
EPOCHS = 5
MAX_EPOCHS = 20
MIN_STEPS = 200
DEFAULT_STEPS = 2000
DEFAULT_NAME = "bert-base-uncased"
GPU_BATCH_TOKENS = 32768


def init_config(
    heads: Sequence[str] = (),
    *,
    name: str | None = None,
    source: str | Path | None = None,
    lang: str | None = None,
    gpu: bool = False,
    adapter: str | None = None,
    attr: str | None = None,
    train: Path | None = None,
    dev: Path | None = None,
) -> Config:
    """Make a complete training config for one encoder and some heads.

    `heads` are factory names without "bert_"; "ner=diseases" is an `ner` head with the component
    name "diseases". `name` is the checkpoint, a Hugging Face hub name or a folder; None is
    "bert-base-uncased". `source` is a trained pipeline, all of whose components are trained further
    instead of new ones. `lang` is the language of spaCy's tokenizer, None for English. `gpu` writes
    settings for a GPU. `adapter` is "pfeiffer", "houlsby" or "lora", to train small modules instead
    of the encoder. `attr` is what `bert_tagger` learns, "tag" (None) or "pos". The number of steps
    depends on the size of the training data, `train`; it and `dev` are checked for annotation.
    Warns if `train` has none for some head of a `source`.

    Every default is filled in. Only [training] max_steps has the number of steps; the learning rate
    refers to it. Raises ValueError if there is no such head or no head at all, if the data has no
    annotation for a head, with a `source` for none of its heads, or if a path has a "$".
    """
    check_storable(name, source, train, dev)
    check_folder_of_checkpoint(name)
    if source is None:
        encoder = {"name": name or DEFAULT_NAME, **(ADAPTED if adapter else {})}
        encoder["adapter"] = adapter
        nlp = _make_pipeline(heads, encoder, lang=lang or "en", gpu=gpu, attr=attr)
        sourced = {}
        tokenizer = encoder["name"]
    elif heads or name or lang or adapter or attr:
        raise ValueError(
            "A source has its own heads, checkpoint, language and adapter. Don't set these with it."
        )
    else:
        nlp = load_pipeline(source)
        sourced = {pipe: {"source": str(source)} for pipe in nlp.component_names}
        tokenizer = _saved_tokenizer(nlp)
    for data in (train, dev):
        lacking = [] if data is None else check_annotated(data, nlp, every=source is None)
        if lacking and data is train:
            warnings.warn(
                f"{train} has no annotation for {', '.join(lacking)}, which the encoder may "
                "unlearn. Add texts with it; or keep the encoder as it is: "
                "--training.frozen_components '[\"bert_encoder\"]'; or first give such a head its "
                "own encoder with nlp.replace_listeners.",
                stacklevel=2,
            )
    pipes = [pipe for _, pipe in nlp.components]
    reads_pairs = any(isinstance(pipe, BertHead) and pipe.input_name for pipe in pipes)

    # Training examples have one pair each: with whole Docs a batch would be a few contexts with
    # many questions, which are not independent samples. The dev set is not split, because scores
    # don't depend on it, and each Doc is read once.
    max_pairs = {"train": int(reads_pairs), "dev": 0}
    trained = [pipe.factory.removeprefix("bert_") for pipe in pipes if isinstance(pipe, BertHead)]
    # Encoders of heads' own, as `replace_listeners` makes them, have no tokenizer in a file.
    is_joint = len(trained) > 1 and tokenizer is not None
    # Each batch of a joint training is for one head, and as large as in a training of that head
    # alone. Mixed batches would have only a few examples for each head (benchmarks/RESULTS.md).
    steps, batch_size = DEFAULT_STEPS, SMALL_BATCH_TOKENS if is_joint else BATCH_SIZE
    batcher: dict[str, Any]
    if train is not None:
        docs = BertCorpus(train, max_pairs=max_pairs["train"]).references(nlp)
        if is_joint:
            steps, batch_size = fit_joint_steps(docs, trained)
        else:
            steps, batch_size = fit_steps(sum(1 for _ in docs))
    if is_joint:
        batcher = {
            "@batchers": "spacy_bert_heads.batch_by_pieces.v1",
            "size": batch_size,
            "name": "${paths.encoder}",
            "by_task": True,
            "temperature": 1.0,
        }
    else:
        batcher = {
            "@batchers": "spacy.batch_by_sequence.v1",
            "size": batch_size,
            "get_length": None,
        }
    recipe: dict[str, Any] = {
        "paths": {"train": _str(train), "dev": _str(dev)}
        | ({"encoder": tokenizer} if is_joint else {}),
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
            "batcher": batcher,
            "optimizer": {
                "@optimizers": "Adam.v1",
                "learn_rate": make_learn_rate(1e-4, warmup_steps=steps // 10),
                "L2": 0.01,
                "L2_is_weight_decay": True,
                "grad_clip": 1.0,
                "use_averages": False,
                "eps": 1e-8,
            },
        },
    }
    if source is None:  # a source keeps its own logger, such as an experiment tracker
        logger = {"@loggers": "spacy_bert_heads.ConsoleLogger.v1", "output_file": None}
        recipe["training"]["logger"] = logger
    config = Config(nlp.config)
    del config["corpora"]
    for name in ("batcher", "optimizer", "logger"):
        if name in recipe["training"]:
            del config["training"][name]
    # Via text, so that sections have spaCy's order and variables are kept.
    text = config.merge(recipe).to_str()
    config = Config(section_order=CONFIG_SECTION_ORDER).from_str(text, interpolate=False)
    filled = load_model_from_config(config, auto_fill=True).config
    filled["components"].update(sourced)
    if is_joint and source is None:
        filled["components"]["bert_encoder"]["model"]["name"] = "${paths.encoder}"
    return filled


def _saved_tokenizer(nlp: Language) -> str | None:
    """Return the folder or hub name with the tokenizer of a saved pipeline's encoder, None if it
    has none."""
    for name, pipe in nlp.components:
        if isinstance(pipe, BertEncoder):
            folder = nlp.path / name / "model"
            has_own = (folder / "tokenizer.json").exists()
            return str(folder) if has_own else pipe.model.attrs["name"]
    return None


def _make_pipeline(
    heads: Sequence[str], encoder: dict[str, Any], *, lang: str, gpu: bool, attr: str | None
) -> Language:
    known = head_classes()
    named = _name_heads(heads, known)
    if attr is not None and "tagger" not in named.values():
        raise ValueError(f"attr is '{attr}', but it is for the head tagger: add that head.")
    nlp = spacy.blank(lang)
    if gpu:
        encoder["max_batch_tokens"] = GPU_BATCH_TOKENS
    for head in named.values():
        encoder |= known[head].encoder_settings
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    for name, head in named.items():
        rate = {"learning_rate_multiplier": known[head].learning_rate_multiplier}
        config = {"model": rate} | ({"attr": attr} if attr and head == "tagger" else {})
        nlp.add_pipe(known[head].factory, name, config=config)
    return nlp


def _name_heads(heads: Sequence[str], known: Mapping[str, type[BertHead]]) -> dict[str, str]:
    """Parse entries "head" and "head=name". Returns the heads by component name."""
    named: dict[str, str] = {}
    for entry in heads:
        head, has_name, name = (part.strip() for part in entry.partition("="))
        if head not in known:
            raise ValueError(
                f"Unknown head '{head}'. Choose from: {', '.join(known)}; several with commas."
            )
        if has_name and not re.fullmatch(r"[\w-]+", name):
            raise ValueError(
                f"'{name}' can't be the name of a component. Use letters, digits, '_' and '-': "
                f"{head}=my_{head}."
            )
        name = name or known[head].factory
        if name in {*named, "bert_encoder"}:
            raise ValueError(
                f"'{name}' would be the name of two components. Give them names: "
                f"{head}=my_{head},{head}=other_{head}."
            )
        named[name] = head
    if not named:
        raise ValueError(
            f"No heads are given. Choose from: {', '.join(known)}; several with commas."
        )
    return named


def read_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config with its variables. Raises ValueError with the path if it is not a config."""
    try:
        return load_config(path, overrides=dict(overrides or {}), interpolate=False)
    except (ValueError, configparser.Error) as error:
        if overrides:
            read_config(path)
            raise  # the fault is in the overrides
        raise ValueError(
            f"{path} can't be read as a config. Fix it, or create one with `bert init-config`. The "
            f"fault: {' '.join(str(error).split())}"
        ) from error


def check_folder_of_checkpoint(name: str | None) -> None:
    """Raise ValueError if a name is that of a folder without a checkpoint. Warns if it can only be
    that of a folder that doesn't exist, which may be on another machine."""
    folder = Path(name or "").expanduser()
    if name and folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"'{name}' is a folder, but not a checkpoint: it has no config.json. Check --name."
        )
    if not folder.is_dir() and (folder.is_absolute() or (name or "").startswith(".")):
        warnings.warn(
            f"There is no folder '{name}' here, from which the encoder will be read.", stacklevel=3
        )


def check_storable(*values: str | Path | None) -> None:
    """Raise ValueError for a name or path with a "$". spaCy reads configs without variables
    resolved, and then doubles each "$" whenever it copies or saves one."""
    for value in values:
        if "$" in str(value):
            raise ValueError(
                f"'{value}' has a '$', which spaCy changes in configs. Rename it, or pass a link "
                "to it that has another name."
            )


def make_learn_rate(rate: float, *, warmup_steps: int) -> dict[str, Any]:
    """Make the config of a learning rate that decreases to 0 at [training] max_steps."""
    return {
        "@schedules": "spacy_bert_heads.warmup_linear.v1",
        "initial_rate": rate,
        "warmup_steps": warmup_steps,
        "total_steps": "${training.max_steps}",
    }


def check_annotated(data: Path, nlp: Language, *, every: bool) -> list[str]:
    """Return the heads of a pipeline for which the data has no annotation. Raises ValueError, which
    lists what is annotated, if there are some, or without `every`, if it has none for any."""
    heads = {name: pipe for name, pipe in nlp.components if isinstance(pipe, BertHead)}
    lacking = dict(heads)
    docs: Counter[str] = Counter()
    for doc in BertCorpus(data).references(nlp):
        docs.update(annotations_of(doc))
        example = Example(doc, doc)
        for name in [name for name, pipe in lacking.items() if is_annotated(pipe, example)]:
            del lacking[name]
    if lacking and (every or len(lacking) == len(heads)):
        name, head = next(iter(lacking.items()))
        known = head_classes()
        found = {known[kind].annotation or kind: number for kind, number in docs.most_common()}
        listed = ", ".join(f"{what} ({number:,} Docs)" for what, number in found.items())
        what = head.annotation or "annotation"
        if what in found:  # with another attribute of tokens, or other labels
            what += f" in {', '.join(sorted(head.writes))}"
        raise ValueError(
            f"{data} has no {what} for {name}; it has {listed or 'no annotation'}. Use other data "
            "or other --heads."
        )
    return [*lacking]


def fit_steps(n_examples: int) -> tuple[int, int]:
    """Choose the length of a training of one head: five epochs; with little data longer and in
    smaller batches, but at least 200 steps. Returns the number of steps, and the number of examples
    in a batch, Docs or pairs."""
    for size in (BATCH_SIZE, SMALL_BATCH_SIZE):
        steps = EPOCHS * math.ceil(n_examples / size)
        if steps >= MIN_STEPS:
            return steps, size
    return MIN_STEPS, SMALL_BATCH_SIZE


def fit_joint_steps(docs: Iterable[Doc], heads: Collection[str]) -> tuple[int, int]:
    """Choose the length of a joint training: five epochs, or more until the head with the fewest
    examples has seen as many as in a training of its own. Returns the number of steps, and the
    number of wordpieces in a batch.

    `docs` are those of the reader. Wordpieces are estimated from words, so that the checkpoint is
    not needed.
    """
    examples = dict.fromkeys(heads, 0)
    num_words = 0
    for doc in docs:
        texts = second_texts(doc)
        num_asked = sum(len(get_list(name, doc)) for name in pair_names())
        for head in annotations_of(doc) & examples.keys():
            examples[head] += max(1, num_asked)
        num_words += len(doc) * max(1, len(texts)) + sum(len(text.split()) for text in texts)
    fewest = min((n for n in examples.values() if n), default=0)
    epochs = max(EPOCHS, MIN_STEPS * SMALL_BATCH_SIZE // fewest) if fewest else EPOCHS
    num_tokens = min(epochs, MAX_EPOCHS) * WORDPIECES_PER_WORD * num_words
    size = BATCH_TOKENS if num_tokens >= FEW_STEPS * BATCH_TOKENS else SMALL_BATCH_TOKENS
    return max(math.ceil(num_tokens / size), MIN_STEPS), size


def _str(path: Path | None) -> str | None:
    return None if path is None else str(path)
