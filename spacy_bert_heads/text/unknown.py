"""Words that a checkpoint's vocabulary does not have."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .wordpieces import WordpieceTokenizer

MAX_SHARE = 0.2  # in English text with BERT's vocabulary the share is below 0.001
MIN_WORDPIECES = 10  # with fewer, a single word could decide
NUM_WORDS = 5  # the number of words in the warning


class Unknown(NamedTuple):
    """The unknown words in some texts."""

    share: float  # of all wordpieces
    words: list[str]  # the most frequent ones


def find_unknown(texts: Sequence[str], tokenizer: WordpieceTokenizer) -> Unknown:
    """Find the words that a tokenizer turns into its unknown token."""
    wordpieces = tokenizer(texts)
    is_unknown = wordpieces.ids == id_of_unknown(tokenizer)
    if len(is_unknown) < MIN_WORDPIECES:
        return Unknown(0.0, [])
    text_of = np.repeat(np.arange(len(texts)), wordpieces.lengths)
    words = Counter(
        texts[text_of[i]][wordpieces.starts[i] : wordpieces.ends[i]]
        for i in np.flatnonzero(is_unknown)
    )
    return Unknown(float(is_unknown.mean()), [word for word, _ in words.most_common(NUM_WORDS)])


def id_of_unknown(tokenizer: WordpieceTokenizer) -> int:
    """Return the id of the unknown token, -1 if the tokenizer has none, such as a byte-level
    one."""
    model = json.loads(tokenizer.tokenizer.to_str())["model"]
    found = model.get("unk_id")
    if found is None and model.get("unk_token") is not None:
        found = tokenizer.tokenizer.token_to_id(model["unk_token"])
    return -1 if found is None else int(found)


def warn_of_unknown(texts: Sequence[str], tokenizer: WordpieceTokenizer, name: str) -> None:
    """Warn if many words of the texts are unknown to a checkpoint, because it can't tell them
    apart. `name` is that of the checkpoint."""
    unknown = find_unknown(texts, tokenizer)
    if unknown.share <= MAX_SHARE:
        return
    lower = find_unknown([text.lower() for text in texts], tokenizer)
    cure = "Take a checkpoint for the language and the script of the texts, or a multilingual one."
    if lower.share < unknown.share / 2:
        cure = (
            f"In lower case it would be {lower.share:.0%}: its vocabulary is uncased, but its "
            "tokenizer keeps upper case. Set do_lower_case to true in its tokenizer_config.json "
            "(and lowercase in the normalizer of tokenizer.json), or take a cased checkpoint."
        )
    warnings.warn(
        f"{unknown.share:.0%} of the wordpieces in the training texts are unknown to '{name}', "
        f"such as {', '.join(map(repr, unknown.words))}: it can't tell these words apart. {cure}",
        stacklevel=3,
    )
