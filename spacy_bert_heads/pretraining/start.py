"""Create the initial model of a pretraining run as a Hugging Face folder: a new encoder, or a
checkpoint with words added to its vocabulary.

    raw text ──▶ vocabulary ──▶ tokenizer ──▶ new weights ─────────────────────┐
    raw text ──▶ words that a tokenizer splits ──▶ wordpieces and rows ────────┴──▶ folder

The vocabulary is also trained on held-out documents. It depends only on word counts; the weights
never see held-out text.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spacy
import torch
from spacy.util import registry
from tokenizers import Tokenizer

from ..encoder.loading import load_wordpiece_tokenizer
from ..encoder.saved import save_model, write_files
from ..encoder.untrusted import tokenizer_to_files
from ..files import find_damage, temporary_folder, write_digests
from ..text.wordpieces import WordpieceTokenizer
from .objectives import check_objective, load_pretrainer
from .prepare import prepare
from .records import Format, read_texts
from .settings import SIZES, Encoder, Settings
from .sources import Reader, list_files
from .store import Corpus
from .tables import find_dataset
from .train_vocabulary import Say
from .vocabulary import MAX_LENGTH, add_words, count_ids, make_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def make_start(settings: Settings, folder: Path, *, say: Say) -> str:
    """Return the hub name or folder of the checkpoint that a run starts from.

    It is created in `folder`, unless the settings name a checkpoint that is used unchanged. The
    folder is written atomically. If it exists and is undamaged, it is reused, so that a resumed run
    starts from the same weights; otherwise it is created again, with the same result. `say`
    receives messages for the user.

    Raises ValueError if a setting doesn't fit the raw text, the tokenizer or the family, and
    FileNotFoundError if the raw text doesn't exist.
    """
    name = settings.paths.encoder
    if name is None:
        check_objective(settings.encoder.family, settings.objective.sentences)
    elif not settings.encoder.add_words:
        return name
    if find_damage(folder):
        shutil.rmtree(folder, ignore_errors=True)
        making = folder.with_name(f".new-{folder.name}")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        # Hugging Face draws weights from torch's global generator, whose state must not change.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.training.seed)
            if name is None:
                make_encoder(settings, making, say=say)
            else:
                extend_encoder(name, settings, making, say=say)
        write_digests(making, (path.name for path in making.iterdir()))
        making.rename(folder)
    return str(folder)


def make_encoder(settings: Settings, folder: Path, *, say: Say) -> None:
    """Save a new, randomly initialised encoder with its pretraining heads and its tokenizer to
    `folder`."""
    from transformers import AutoModelForPreTraining

    e = settings.encoder
    tokenizer = make_tokenizer(e, lambda: read_raw(settings), say=say)
    write_files(folder, tokenizer_to_files(tokenizer))
    if e.add_words:
        add_words(folder, read_raw(settings), e.add_words, say=say)
    config = make_config(
        e,
        vocab_size=count_ids(Tokenizer.from_file(str(folder / "tokenizer.json"))),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    model = AutoModelForPreTraining.from_config(config)
    save_model(model, folder)
    say(f"New {e.family} encoder, size {e.size}: {model.num_parameters():,} parameters.")


def extend_encoder(name: str, settings: Settings, folder: Path, *, say: Say) -> None:
    """Save a copy of a checkpoint (a hub name or a folder) with added words to `folder`."""
    pretrainer = load_pretrainer(name, sentence_objective=None)
    write_files(folder, pretrainer.encoder.checkpoint.tokenizer_files)
    words = add_words(folder, read_raw(settings), settings.encoder.add_words, say=say)
    model = pretrainer.model
    add_rows(model, words)
    # A new head must not be saved, or it would look like a trained one.
    state = {k: v for k, v in model.state_dict().items() if k not in pretrainer.new_parameters}
    save_model(model, folder, state)


def list_raw(settings: Settings) -> list[str | Reader]:
    """Return the sources of the raw text: `paths.raw`, or the reader of [corpora.raw]."""
    block = settings.corpora.raw
    if block is None:
        return list(settings.paths.raw)
    reader = registry.resolve({"reader": block})["reader"]
    try:
        inspect.signature(reader).bind()
    except TypeError as error:
        raise ValueError(
            f"The reader of [corpora.raw] returns {reader!r:.80}. It must return a callable "
            "without arguments that yields texts."
        ) from error
    return [reader]


def prepare_texts(
    settings: Settings, wordpieces: WordpieceTokenizer
) -> tuple[Corpus, Corpus | None]:
    """Tokenize the raw text of a config, and its held-out text if `paths.held_out` is set, or open
    the existing corpora."""
    text = settings.text
    pipeline = spacy.load(text.pipeline) if text.pipeline else None

    def prepare_one(sources: Sequence[str | Reader]) -> Corpus:
        return prepare(
            sources,
            Path(settings.paths.cache),
            wordpieces=wordpieces,
            lang=text.lang,
            pipeline=pipeline,
            format=Format(text.format, text.key),
            workers=text.workers,
            progress=True,
        )

    corpus = prepare_one(list_raw(settings))
    if settings.masking.units == "spans" and not corpus.report.spans:
        raise ValueError(
            f"The pipeline '{text.pipeline}' finds no entities and no noun chunks in the text. "
            'Set another one in text.pipeline, or set masking.units = "words".'
        )
    held_out = settings.paths.held_out
    return corpus, prepare_one(held_out) if held_out else None


def prepare_alone(settings: Settings, *, say: Say) -> Corpus:
    """Tokenize the raw text for a run with these settings, without starting the run."""
    cache = Path(settings.paths.cache)
    is_new = not cache.exists()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_folder(cache) as made:  # for a vocabulary that is trained on the text
            encoder = make_start(settings, made / "start", say=say)
            return prepare_texts(settings, load_wordpiece_tokenizer(encoder))[0]
    finally:
        if is_new and not any(cache.iterdir()):
            cache.rmdir()


def read_raw(settings: Settings) -> Iterator[str]:
    """Yield the raw texts. Raises ValueError if a source can be read only once (standard input, a
    pipe), because the text is read again when it is tokenized."""
    for source in settings.paths.raw:
        if source == "-" or not (
            find_dataset(Path(source)) or all(path.is_file() for path in list_files(source))
        ):
            raise ValueError(
                f"paths.raw has '{source}', which can be read only once, but the text is read "
                "twice to train a vocabulary. Save it to a file and use that."
            )
    format = Format(settings.text.format, settings.text.key)
    return read_texts(list_raw(settings), format, progress=True)


def make_config(
    encoder: Encoder, *, vocab_size: int, pad_token_id: int, **special: int
) -> PretrainedConfig:
    """Create the Hugging Face configuration of a new encoder. `special` has the ids of other
    special tokens by Hugging Face's names. Other settings are the family's defaults."""
    from transformers import AutoConfig

    layers, width = SIZES[encoder.size]
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "pad_token_id": pad_token_id,
        **special,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "max_position_embeddings": MAX_LENGTH,
        # BERT's dropout, which ALBERT v1 has too. ALBERT v2 has none, but was trained for longer
        # and on more text.
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    match encoder.family:
        case "albert":
            # Embeddings have a separate width (Lan et al. 2020, section 3.1 and table 1).
            shape |= {"embedding_size": min(128, width)}
        case "roberta":
            # No segments (Liu et al. 2019, section 4.2). Positions start after the padding id. The
            # epsilon is that of RoBERTa's checkpoints.
            shape |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
            shape |= {"max_position_embeddings": MAX_LENGTH + pad_token_id + 1}
    return AutoConfig.for_model(encoder.family, **shape)


def add_rows(model: PreTrainedModel, words: dict[int, list[int]]) -> None:
    """Extend a masked language model in place by one row per new word: the mean of the rows of its
    old wordpieces. This applies to the input embeddings, the output layer (tied or not) and its
    bias. `words` is the result of `add_words`.
    """
    size = max([model.config.vocab_size, *(number + 1 for number in words)])
    outputs = model.get_output_embeddings()
    # Some heads have the bias next to the layer, tied to the layer's own bias or not.
    heads = (module for module in model.modules() if outputs in module.children())
    tables = [
        *model.get_input_embeddings().parameters(),
        *outputs.parameters(),
        *(table for head in heads for table in head.parameters(recurse=False)),
    ]
    for table in {id(table): table for table in tables}.values():
        rows = table.data.new_zeros(size, *table.shape[1:])
        rows[: len(table)] = table.data
        for number, pieces in words.items():
            rows[number] = table.data[pieces].mean(0)
        table.data = rows  # in place, so that tied parameters stay tied
    model.config.vocab_size = size
