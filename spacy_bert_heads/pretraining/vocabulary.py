"""The tokenizer of a new encoder: loaded, or trained on the raw text; and new words for a WordPiece
tokenizer. Raw text is read as a stream, so memory grows only with the number of different words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ..encoder.source import Source, open_source
from ..encoder.untrusted import NotBert, list_vocabulary, read_config, read_tokenizer
from .objectives import SENTENCE_HEADS
from .settings import Encoder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
MAX_LENGTH = 512  # positions
MIN_COUNT = 5  # of a word that is added: fewer occurrences can't teach its vector much
Say = Callable[[str], None]


def make_tokenizer(
    encoder: Encoder, read: Callable[[], Iterable[str]], *, say: Say
) -> PreTrainedTokenizerFast:
    """Load or train the tokenizer of a new encoder, with its family's special tokens around texts.

    `read` opens the raw text; it is called only if a vocabulary is trained. `say` gets messages for
    the user.
    """
    from transformers import BertTokenizerFast, PreTrainedTokenizerFast

    # Families that learn from pairs of segments have token types to distinguish the two.
    typed = encoder.family in SENTENCE_HEADS
    wrap: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    special: dict[str, Any] = SPECIAL
    if encoder.tokenizer is None:
        backend = train_tokenizer(read, encoder.vocab_size, lowercase=encoder.lowercase, say=say)
        if typed:  # BERT's class sets token types
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
    """Train BERT's tokenizer with a WordPiece vocabulary of at most `vocab_size` entries.

    The vocabulary has all characters and then, step by step, the most frequent pair of adjacent
    wordpieces as a new one. The same text always gives the same vocabulary. `read` opens the raw
    text and is called twice. `lowercase` also strips accents.

    Raises ValueError if there is no text, or `vocab_size` is too small for its characters.
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

    # Between equally frequent pairs the trainer prefers lower ids, but it numbers the characters
    # inside words in the order of a hash table, which differs from run to run. So the characters
    # are found in a first pass, and sorted.
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
    """Train a vocabulary on words as the tokenizer `like` splits them."""
    tokenizer = Tokenizer(model)
    if like.normalizer is not None:
        tokenizer.normalizer = like.normalizer
    tokenizer.pre_tokenizer = like.pre_tokenizer
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab(with_added_tokens=False)


def count_ids(tokenizer: Tokenizer) -> int:
    """Count the rows that an embedding table needs for all ids of a tokenizer; ids can have
    gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def add_words(folder: Path, texts: Iterable[str], n: int, *, say: Say) -> dict[int, list[int]]:
    """Add the n most frequent words that a WordPiece tokenizer splits to its vocabulary, in the
    tokenizer files in `folder`. Equally frequent words are taken in the order of their code points.

    Old ids don't change. A word that begins with an added word is now split after it; all others
    are tokenized as before. Returns, by the id of each added word, the ids of the wordpieces that
    it was split into. Raises ValueError if the tokenizer is not a WordPiece one.
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
        # A word with unknown characters is one wordpiece, [UNK]. An added token is not in the
        # model's own vocabulary.
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
