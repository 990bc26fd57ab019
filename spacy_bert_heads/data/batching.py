"""Batches with a budget of wordpieces, second texts included."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import repeat
from typing import TypeVar

import numpy as np
from spacy.tokens import Doc
from spacy.training import Example
from spacy.training.batchers import Sizing
from spacy.util import minibatch

from ..encoder.loading import load_wordpiece_tokenizer
from ..heads.find import pair_names
from ..text.arrays import Ints1d, sums
from ..text.doc_data import inputs_of
from ..text.wordpieces import WordpieceTokenizer

Item = TypeVar("Item", Doc, Example)

CHUNK = 256  # items that are tokenized at once


def make_batch_by_pieces(
    size: Sizing, name: str
) -> Callable[[Iterable[Item]], Iterator[list[Item]]]:
    """Create a batcher that counts the wordpieces the encoder will read.

    `size` is the maximum number of wordpieces in a batch; a sequence or schedule has one for each
    batch, and its last stays in force. `name` is the checkpoint whose tokenizer counts, a hub name
    or a folder; it is loaded with the first batch. spaCy resolves [training] without [components],
    so a config that names the checkpoint only once does so under [paths].
    """
    return partial(batch_by_pieces, size=size, load=cache(partial(load_wordpiece_tokenizer, name)))


def batch_by_pieces(
    items: Iterable[Item], *, size: Sizing, load: Callable[[], WordpieceTokenizer]
) -> Iterator[list[Item]]:
    """Fill batches of at most `size` wordpieces in the order of the items. An item that exceeds the
    budget is a batch of its own. Raises ValueError if the tokenizer can't be loaded, or a second
    text is not a string, or `size` is empty."""
    sizes = repeat(size) if isinstance(size, int) else iter(size)
    budget = next(sizes, None)
    if budget is None:
        raise ValueError("size is an empty sequence. Name the wordpieces of a batch: size = 4096.")
    batch: list[Item] = []
    room = budget
    for chunk in minibatch(items, CHUNK):
        docs = [item.reference if isinstance(item, Example) else item for item in chunk]
        for item, count in zip(chunk, count_pieces(docs, load()).tolist(), strict=True):
            if batch and count > room:
                yield batch
                budget = next(sizes, budget)
                batch, room = [], budget
            batch.append(item)
            room -= count
    if batch:
        yield batch


def count_pieces(docs: Sequence[Doc], tokenizer: WordpieceTokenizer) -> Ints1d:
    """Count the wordpieces that the encoder reads for each Doc (n_docs,): those of its text once,
    and again with each of its second texts, special tokens included. Overlaps of windows are not
    counted. Raises ValueError if a second text is not a string."""
    names = pair_names()
    texts = [[text for name in names for text in inputs_of(doc, name, [])] for doc in docs]
    pairs = np.fromiter(map(len, texts), dtype=np.int64, count=len(docs))
    # One call for all texts, so that the tokenizer can use all threads.
    pieces = tokenizer([doc.text for doc in docs] + [text for some in texts for text in some])
    own, second = pieces.lengths[: len(docs)], pieces.lengths[len(docs) :]
    special = tokenizer.pair
    n_special = len(special.prefix) + len(special.middle) + len(special.suffix)
    return own + tokenizer.num_special + pairs * (own + n_special) + sums(second, pairs)
