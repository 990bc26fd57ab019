"""What a pretraining run starts from, as a Hugging Face folder, when no folder has it yet.

    raw text ──▶ vocabulary ──▶ tokenizer ──▶ new weights ──────────────┐
    raw text ──▶ words that a tokenizer breaks ──▶ pieces and rows ─────┴──▶ folder ──▶ loop.py

The raw text is read as a stream; memory grows with its different words alone. Held-out documents
are part of it: a vocabulary is words and their counts, and the weights see none of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ..encoder.loading import save_model, write_tokenizer
from ..encoder.source import Source, open_source
from ..encoder.untrusted import (
    NotBert,
    list_vocabulary,
    read_config,
    read_tokenizer,
    tokenizer_to_files,
)
from .corpus import list_files, read_texts
from .objectives import SENTENCE_HEADS, check_objective, load_pretrainer
from .settings import SIZES, Encoder, Settings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
MAX_LENGTH = 512  # positions
MIN_COUNT = 5  # of a word that becomes a piece: fewer can't teach its vector much
Say = Callable[[str], None]


def make_start(settings: Settings, folder: Path, *, say: Say) -> str:
    """Make what a run starts from, unless there is a checkpoint that is to be taken as it is.

    settings (Settings): The run's settings.
    folder (Path): Where what is made goes. It appears when it is whole. If it is there already, it
        is used as it is, so that a resumed run starts from the same.
    say (Callable[[str], None]): Takes what is worth knowing.
    RETURNS (str): The hub name or folder to load.
    RAISES (ValueError): If a setting doesn't suit the raw text, the tokenizer or the family.
    RAISES (FileNotFoundError): If there is no such raw text.
    """
    name = settings.paths.encoder
    if name is None:
        check_objective(settings.encoder.family, settings.objective.sentences)
    elif not settings.encoder.add_words:
        return name
    if not folder.exists():
        making = folder.with_name(f".new-{folder.name}")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        # Hugging Face draws weights from torch's own generator; nobody else shall notice.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.training.seed)
            if name is None:
                make_encoder(settings, making, say=say)
            else:
                extend_encoder(name, settings, making, say=say)
        making.rename(folder)
    return str(folder)


def make_encoder(settings: Settings, folder: Path, *, say: Say) -> None:
    """Make a new encoder, with the heads that its pretraining needs.

    settings (Settings): The run's settings.
    folder (Path): Where it goes.
    say (Callable[[str], None]): Takes what is worth knowing.
    """
    from transformers import AutoModelForPreTraining

    e = settings.encoder
    tokenizer = make_tokenizer(e, lambda: read_raw(settings), say=say)
    write_tokenizer(folder, tokenizer_to_files(tokenizer))
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
    say(f"A new {e.family} encoder, {e.size}: {model.num_parameters():,} parameters.")


def extend_encoder(name: str, settings: Settings, folder: Path, *, say: Say) -> None:
    """Add words to a checkpoint.

    name (str): A hub name or a folder.
    settings (Settings): The run's settings.
    folder (Path): Where the checkpoint goes that has them.
    say (Callable[[str], None]): Takes what is worth knowing.
    """
    pretrainer = load_pretrainer(name, sentence_objective=None)
    write_tokenizer(folder, pretrainer.bert.tokenizer_files)
    words = add_words(folder, read_raw(settings), settings.encoder.add_words, say=say)
    model = pretrainer.model
    add_rows(model, words)
    # A head that the checkpoint doesn't have must not pass for one of its own.
    state = {k: v for k, v in model.state_dict().items() if k not in pretrainer.made}
    save_model(model, folder, state)


def read_raw(settings: Settings) -> Iterator[str]:
    """Read the raw text, which will be read again when it is tokenized.

    settings (Settings): The run's settings.
    RETURNS (Iterator[str]): Its texts.
    RAISES (ValueError): If it can be read only once.
    """
    sources = settings.paths.raw
    for source in sources:
        if source == "-" or not all(path.is_file() for path in list_files(source)):
            raise ValueError(
                f"paths.raw has '{source}', which can be read only once, but the vocabulary is "
                "made of the text before it is tokenized. Save it to a file, and name that."
            )
    return read_texts(sources, progress=True)


# --- new encoders


def make_config(
    encoder: Encoder, *, vocab_size: int, pad_token_id: int, **special: int
) -> PretrainedConfig:
    """Describe a new encoder.

    encoder (Encoder): Its family and size.
    vocab_size (int): The pieces.
    pad_token_id (int): The piece that fills short sequences.
    **special (int): The ids of other special tokens, as Hugging Face calls them.
    RETURNS (PretrainedConfig): Its configuration; what is not set here is the family's default.
    """
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
        # ALBERT's first version has BERT's dropout. The second has none, but was trained on more
        # text, and for longer.
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    match encoder.family:
        case "albert":
            # Embeddings of their own width (Lan et al. 2020, section 3.1 and table 1).
            shape |= {"embedding_size": min(128, width)}
        case "roberta":
            # No segments (Liu et al. 2019, section 4.2). Positions are counted from behind the
            # padding id. The epsilon is that of RoBERTa's checkpoints.
            shape |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
            shape |= {"max_position_embeddings": MAX_LENGTH + pad_token_id + 1}
    return AutoConfig.for_model(encoder.family, **shape)


def make_tokenizer(
    encoder: Encoder, read: Callable[[], Iterable[str]], *, say: Say
) -> PreTrainedTokenizerFast:
    """Load or train the tokenizer of a new encoder.

    encoder (Encoder): Which, and for what family.
    read (Callable[[], Iterable[str]]): Reads the raw text, if a vocabulary is to be trained.
    say (Callable[[str], None]): Takes what is worth knowing.
    RETURNS (PreTrainedTokenizerFast): The tokenizer, with the family's special tokens around texts.
    """
    from transformers import BertTokenizerFast, PreTrainedTokenizerFast

    # Families that learn from pairs of segments have types to tell one from the other.
    typed = encoder.family in SENTENCE_HEADS
    wrap: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    special: dict[str, Any] = SPECIAL
    if encoder.tokenizer is None:
        backend = train_tokenizer(read, encoder.vocab_size, lowercase=encoder.lowercase, say=say)
        if typed:  # it is BERT's, and its class knows of types
            wrap = partial(BertTokenizerFast, do_lower_case=encoder.lowercase)
    else:
        loaded = load_tokenizer(encoder.tokenizer)
        backend, special = loaded.backend_tokenizer, loaded.special_tokens_map
        if (max(backend.encode("a", "a").type_ids) > 0) == typed:
            return loaded
    cls, sep = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"] if typed else [cls, "$A", sep, sep, "$B", sep],
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )
    return wrap(tokenizer_object=backend, model_max_length=MAX_LENGTH, **special)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer for a new encoder, by a hub name or from a folder with tokenizer files.

    Raises ValueError if it can't be loaded, is not a fast one, or lacks a special token.
    """
    try:
        source = open_source(name)
        tokenizer = read_tokenizer(source, _config_of(source))
    except NotBert:
        raise
    except Exception as error:  # transformers, tokenizers, json and the hub have their own each
        raise ValueError(
            f"Can't read encoder.tokenizer '{name}': {error}\n"
            "It must be a folder with tokenizer files as save_pretrained writes them, or a hub "
            "name; null trains a vocabulary on the raw text."
        ) from error
    for token in ("pad_token", "cls_token", "sep_token", "mask_token"):
        if getattr(tokenizer, token) is None:
            raise ValueError(
                f"The tokenizer '{name}' has no {token}, which pretraining needs. Name a tokenizer "
                "of the BERT family, or null to train one on the raw text."
            )
    return tokenizer


def _config_of(source: Source) -> PretrainedConfig | None:
    """A tokenizer may come without a model, or with one of another kind."""
    try:
        return read_config(source) if source.find("config.json") is not None else None
    except NotBert:
        return None


def train_tokenizer(
    read: Callable[[], Iterable[str]], vocab_size: int, *, lowercase: bool, say: Say
) -> Tokenizer:
    """Train a WordPiece vocabulary: all characters, and then, one after the other, the pair of
    pieces that stands together most often in the words, as one piece.

    read (Callable[[], Iterable[str]]): Reads the raw text; it is called twice.
    vocab_size (int): The most pieces.
    lowercase (bool): Whether case and accents are dropped.
    say (Callable[[str], None]): Takes what is worth knowing.
    RETURNS (Tokenizer): BERT's tokenizer with that vocabulary. The same text gives the same one.
    RAISES (ValueError): If there is no text, or too little room for its characters.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()

    def train(size: int, first: list[str]) -> dict[str, int]:
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=2, special_tokens=first, show_progress=False
        )
        return _train(tokenizer, models.WordPiece(unk_token="[UNK]"), trainer, read())

    # Of pairs that are equally frequent the trainer takes the one of lower ids, but it numbers
    # characters inside of words by the order of a hash table, which is another one in every run.
    # So they are found first, and sorted.
    special = list(SPECIAL.values())
    characters = sorted(
        set(train(0, special)) - set(special), key=lambda piece: (len(piece), piece)
    )
    if not characters:
        raise ValueError("The raw text in paths.raw has no characters to make a vocabulary of.")
    if vocab_size < len(special) + len(characters):
        raise ValueError(
            f"encoder.vocab_size is {vocab_size:,}, but the characters of the raw text alone make "
            f"{len(special) + len(characters):,} pieces, at and behind the start of words. Raise "
            "it, or clean the text of scripts that don't belong to it."
        )
    vocab = train(vocab_size, special + characters)
    if len(vocab) < vocab_size:
        say(
            f"The raw text gives a vocabulary of {len(vocab):,} pieces, not of {vocab_size:,}: "
            "no other pair of pieces occurs twice."
        )
    else:
        say(f"A vocabulary of {len(vocab):,} pieces of the raw text.")
    tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
    tokenizer.add_special_tokens(special)
    return tokenizer


def _train(
    like: Tokenizer, model: models.Model, trainer: trainers.Trainer, texts: Iterable[str]
) -> dict[str, int]:
    """Train a vocabulary on words as a tokenizer finds them."""
    tokenizer = Tokenizer(model)
    if like.normalizer is not None:
        tokenizer.normalizer = like.normalizer
    tokenizer.pre_tokenizer = like.pre_tokenizer
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab(with_added_tokens=False)


def count_ids(tokenizer: Tokenizer) -> int:
    """RETURNS (int): The rows that a tokenizer's ids need, those without a piece counted."""
    return max(tokenizer.get_vocab().values()) + 1


# --- more words


def add_words(folder: Path, texts: Iterable[str], n: int, *, say: Say) -> dict[int, list[int]]:
    """Make pieces of the most frequent words that a WordPiece tokenizer breaks.

    All old ids stay. A word that begins with a new piece is broken behind it now; all others are
    read as before.

    folder (Path): The tokenizer's files, which are changed.
    texts (Iterable[str]): The raw text.
    n (int): How many words. Of equally frequent ones the first by code points are taken.
    say (Callable[[str], None]): Takes what is worth knowing.
    RETURNS (Dict[int, List[int]]): By id of each new piece, the ids of the pieces it had been.
    RAISES (ValueError): If it is another kind of tokenizer.
    """
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    model = tokenizer.model
    if not isinstance(model, models.WordPiece) or tokenizer.pre_tokenizer is None:
        raise ValueError(
            f"encoder.add_words needs a WordPiece tokenizer; this one is {type(model).__name__}. "
            "Set add_words = 0, or start from a checkpoint or tokenizer of BERT's kind."
        )
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31, min_frequency=MIN_COUNT, special_tokens=[], show_progress=False
    )
    ranks = _train(tokenizer, models.WordLevel(unk_token="[UNK]"), trainer, texts)
    first = count_ids(tokenizer)
    words: dict[str, list[int]] = {}
    for word in sorted(ranks, key=ranks.__getitem__):
        if len(words) == n:
            break
        # What the model can't read is one piece, [UNK]. An added token is no piece of the model.
        pieces = [token.id for token in model.tokenize(word)]
        if len(pieces) > 1 and tokenizer.token_to_id(word) is None:
            words[word] = pieces
    ids = dict(zip(words, range(first, first + len(words)), strict=True))

    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] |= ids
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.save(str(path))
    listed = folder / "vocab.txt"
    if listed.exists():
        listed.write_text(list_vocabulary(tokenizer), encoding="utf8")
    few = f", not {n:,}: no others are broken and occur {MIN_COUNT} times"
    say(
        f"{len(words):,} words became pieces ({', '.join(list(words)[:5])} …)"
        f"{few if len(words) < n else ''}."
    )
    return {ids[word]: pieces for word, pieces in words.items()}


def add_rows(model: PreTrainedModel, words: dict[int, list[int]]) -> None:
    """Give words vectors: the mean of those of their pieces, in the embeddings, and in the layer
    that predicts pieces, tied to them or not, with its bias.

    model (PreTrainedModel): A model for masked pieces. It is changed.
    words (Dict[int, List[int]]): By id of each new piece, the ids of the pieces it had been.
    """
    size = max([model.config.vocab_size, *(number + 1 for number in words)])
    outputs = model.get_output_embeddings()
    # Some heads hold the bias beside the layer, tied to the layer's own or not.
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
        table.data = rows  # in place, so that what is tied stays tied
    model.config.vocab_size = size
