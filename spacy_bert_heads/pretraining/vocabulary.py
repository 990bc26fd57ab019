"""Load or train the tokenizer of a new encoder, and add words to a WordPiece tokenizer. Raw text is
streamed, so memory grows only with the number of different words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, models, processors

from ..encoder.source import Source, open_source
from ..encoder.untrusted import NotBert, list_vocabulary, read_config, read_tokenizer
from .objectives import SENTENCE_HEADS
from .settings import Encoder
from .train_vocabulary import Say, count_words, is_lowercase, train_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

MAX_LENGTH = 512  # positions
MIN_COUNT = 5  # occurrences of an added word; fewer are not enough to train its vector


def make_tokenizer(
    encoder: Encoder, read: Callable[[], Iterable[str]], *, say: Say
) -> PreTrainedTokenizerFast:
    """Load or train the tokenizer of a new encoder, with its family's special tokens around texts.

    `read` opens the raw text; it is called only if a vocabulary is trained. `say` receives messages
    for the user.
    """
    from transformers import BertTokenizerFast, PreTrainedTokenizerFast

    # Families that are trained on pairs of segments have token types to distinguish them.
    typed = encoder.family in SENTENCE_HEADS
    inputs = ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"]
    wrap: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    special: dict[str, Any]
    if encoder.tokenizer is None:
        backend, special = train_tokenizer(encoder, read, say=say)
        if encoder.family == "bert":
            wrap = partial(BertTokenizerFast, do_lower_case=is_lowercase(encoder))
    else:
        loaded = load_tokenizer(encoder.tokenizer)
        backend, special = loaded.backend_tokenizer, loaded.special_tokens_map
        if (max(backend.encode("a", "a").type_ids) > 0) == typed:
            loaded.model_input_names = inputs
            return loaded
    cls, sep = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"] if typed else [cls, "$A", sep, sep, "$B", sep],
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )
    return wrap(
        tokenizer_object=backend,
        model_max_length=MAX_LENGTH,
        model_input_names=inputs,  # the default depends on the version of transformers
        **special,
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer for a new encoder from a hub name or a folder with tokenizer files.

    Raises ValueError if it can't be loaded, is not a fast tokenizer, or lacks a special token.
    """
    try:
        source = open_source(name)
        tokenizer = read_tokenizer(source, _config_of(source))
    except NotBert:
        raise
    except Exception as error:  # transformers, tokenizers, json and the hub raise different classes
        raise ValueError(
            f"Can't read encoder.tokenizer '{name}': {error}\n"
            "Set it to a folder with tokenizer files written by save_pretrained, or to a hub "
            "name; null trains a vocabulary on the raw text."
        ) from error
    for token in ("pad_token", "cls_token", "sep_token", "mask_token"):
        if getattr(tokenizer, token) is None:
            raise ValueError(
                f"The tokenizer '{name}' has no {token}, which pretraining needs. Use a tokenizer "
                "of the BERT family, or null to train one on the raw text."
            )
    return tokenizer


def _config_of(source: Source) -> PretrainedConfig | None:
    """Return the config of the tokenizer's model, None if there is none or it is not BERT-like."""
    try:
        return read_config(source) if source.find("config.json") is not None else None
    except NotBert:
        return None


def count_ids(tokenizer: Tokenizer) -> int:
    """Return the number of embedding rows that a tokenizer's ids need; ids can have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def add_words(folder: Path, texts: Iterable[str], n: int, *, say: Say) -> dict[int, list[int]]:
    """Add the n most frequent words that a WordPiece tokenizer splits to its vocabulary, in the
    tokenizer files in `folder`. Ties are broken by code points.

    Old ids don't change. A word that starts with an added word is now split after it; all others
    are tokenized as before. Returns a dict from the id of each added word to the ids of its old
    wordpieces. Raises ValueError if the tokenizer is not WordPiece.
    """
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    model = tokenizer.model
    if not isinstance(model, models.WordPiece) or tokenizer.pre_tokenizer is None:
        raise ValueError(
            "encoder.add_words needs a WordPiece tokenizer, but this one is "
            f"{type(model).__name__}. Set add_words = 0, or start from a checkpoint or tokenizer "
            "of the BERT family."
        )
    ranks = count_words(tokenizer, texts, MIN_COUNT)
    first = count_ids(tokenizer)
    words: dict[str, list[int]] = {}
    for word in sorted(ranks, key=ranks.__getitem__):
        if len(words) == n:
            break
        # A word with unknown characters is the single wordpiece [UNK]. An added token is not in
        # the model's own vocabulary.
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
    few = f", not {n:,}: no others are split and occur {MIN_COUNT} times"
    say(
        f"{len(words):,} words added to the vocabulary ({', '.join(list(words)[:5])} …)"
        f"{few if len(words) < n else ''}."
    )
    return {ids[word]: pieces for word, pieces in words.items()}
