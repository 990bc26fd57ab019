"""Train vocabularies on raw text, with the algorithm of each model family.

    bert     WordPiece, on words as split by BERT's own tokenizer (Devlin et al. 2019)
    roberta  byte-level BPE, so no text is unknown (Liu et al. 2019, section 4.4)
    albert   Unigram, on words with their leading space (Kudo 2018; Lan et al. 2020, section 4.1)

The same text always produces the same vocabulary; the probabilities of Unigram may differ by 0.001.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from .settings import Encoder

Read = Callable[[], Iterable[str]]  # opens the raw text
Say = Callable[[str], None]

ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
# In the order of the ids in each family.
SPECIAL = {
    "bert": dict(zip(ROLES, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), strict=True)),
    "albert": dict(zip(ROLES, ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"), strict=True)),
    "roberta": {
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    },
}


def is_lowercase(encoder: Encoder) -> bool:
    """Return whether a new vocabulary ignores case and accents; by default all but RoBERTa's do."""
    return encoder.family != "roberta" if encoder.lowercase is None else encoder.lowercase


def train_tokenizer(encoder: Encoder, read: Read, *, say: Say) -> tuple[Tokenizer, dict[str, str]]:
    """Train the tokenizer of a new encoder, with at most `encoder.vocab_size` entries.

    Returns the tokenizer and its special tokens by role. `say` receives messages for the user.
    Raises ValueError if there is no text, or `vocab_size` is too small for its characters.
    """
    train = {"bert": _train_wordpieces, "roberta": _train_bytes, "albert": _train_unigrams}
    special = SPECIAL[encoder.family]
    tokenizer = train[encoder.family](encoder, list(special.values()), read)
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    # A space before the mask token belongs to the masked word.
    spaced = encoder.family != "bert"
    tokenizer.add_special_tokens(
        [AddedToken(t, lstrip=spaced and t == special["mask_token"]) for t in special.values()]
    )
    if size < encoder.vocab_size:
        say(
            f"The vocabulary has only {size:,} wordpieces, not {encoder.vocab_size:,}: no others "
            "occur twice in the raw text."
        )
    else:
        say(f"Trained a vocabulary of {size:,} wordpieces on the raw text.")
    return tokenizer, special


def _train_wordpieces(encoder: Encoder, special: list[str], read: Read) -> Tokenizer:
    """Train WordPiece: start from all characters, and merge the most frequent pair of adjacent
    wordpieces at each step."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=is_lowercase(encoder))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()

    def train(size: int, first: list[str]) -> dict[str, int]:
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=2, special_tokens=first, show_progress=False
        )
        return _train(tokenizer, models.WordPiece(unk_token="[UNK]"), trainer, read())

    # Between equally frequent pairs the trainer prefers lower ids, but it numbers the characters
    # inside words in the order of a hash table, which differs between runs. So the characters are
    # collected in a first pass and sorted.
    characters = sorted(
        set(train(0, special)) - set(special), key=lambda piece: (len(piece), piece)
    )
    _check_size(encoder, characters, len(special) + len(characters))
    vocab = train(encoder.vocab_size, special + characters)
    tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
    return tokenizer


def _train_bytes(encoder: Encoder, special: list[str], read: Read) -> Tokenizer:
    """Train BPE: start from all bytes, and merge the most frequent pair of adjacent wordpieces at
    each step."""
    tokenizer = Tokenizer(models.BPE())
    if is_lowercase(encoder):
        tokenizer.normalizer = _lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _check_size(encoder, alphabet, len(special) + len(alphabet))
    trainer = trainers.BpeTrainer(
        vocab_size=encoder.vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read(), trainer)
    _check_text(tokenizer.get_vocab_size() - len(special) - len(alphabet))
    return tokenizer


def _train_unigrams(encoder: Encoder, special: list[str], read: Read) -> Tokenizer:
    """Train Unigram: choose wordpieces that maximise the likelihood of the text."""
    tokenizer = Tokenizer(models.Unigram())
    plain = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    quotes = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    lower = [_lowercase()] if is_lowercase(encoder) else []
    tokenizer.normalizer = normalizers.Sequence([*quotes, *lower, *plain])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=encoder.vocab_size,
        special_tokens=special,
        unk_token="<unk>",
        show_progress=False,
    )
    try:
        tokenizer.train_from_iterator(read(), trainer)
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(
            f"encoder.vocab_size is {encoder.vocab_size:,}: {error}. Increase it, or remove "
            "foreign scripts from the text."
        ) from error
    # Sums of probabilities differ in the last digits between runs, and so would an order by them.
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"][len(special) :]
    _check_text(len(vocab))
    rounded = ([piece, round(score, 3)] for piece, score in vocab)
    content["model"]["vocab"][len(special) :] = sorted(rounded)
    return Tokenizer.from_str(json.dumps(content))


def _lowercase() -> normalizers.Normalizer:
    strip = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    return normalizers.Sequence(strip)


def _check_text(n: int) -> None:
    if not n:
        raise ValueError(
            "The raw text in paths.raw is empty, so no vocabulary can be trained. Set other text."
        )


def _check_size(encoder: Encoder, characters: Iterable[object], least: int) -> None:
    _check_text(len(list(characters)))
    if encoder.vocab_size < least:
        raise ValueError(
            f"encoder.vocab_size is {encoder.vocab_size:,}, but the characters of the raw text "
            f"alone need {least:,} entries. Increase it, or remove foreign scripts from the text."
        )


def count_words(tokenizer: Tokenizer, texts: Iterable[str], least: int) -> dict[str, int]:
    """Return the words that occur at least `least` times, with their rank by frequency. Words are
    split as by the tokenizer."""
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31, min_frequency=least, special_tokens=[], show_progress=False
    )
    return _train(tokenizer, models.WordLevel(unk_token="[UNK]"), trainer, texts)


def _train(
    like: Tokenizer, model: models.Model, trainer: trainers.Trainer, texts: Iterable[str]
) -> dict[str, int]:
    """Train a vocabulary on words as split by the tokenizer `like`."""
    tokenizer = Tokenizer(model)
    if like.normalizer is not None:
        tokenizer.normalizer = like.normalizer
    tokenizer.pre_tokenizer = like.pre_tokenizer
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab(with_added_tokens=False)
