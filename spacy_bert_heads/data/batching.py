"""Batches with a budget of wordpieces, second texts included, and batches of one task."""

import random
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
from ..heads.find import annotations_of, second_texts, teaches_pairs, teaches_text
from ..text.arrays import Ints1d, sums
from ..text.wordpieces import WordpieceTokenizer

Item = TypeVar("Item", Doc, Example)

CHUNK = 256  # items that are tokenized at once


def make_batch_by_pieces(
    size: Sizing, name: str, by_task: bool = False, temperature: float = 1.0
) -> Callable[[Iterable[Item]], Iterator[list[Item]]]:
    """Create a batcher that counts the wordpieces the encoder will read.

    `size` is the maximum number of wordpieces in a batch; a sequence or schedule has one for each
    batch, and its last stays in force. `name` is the checkpoint whose tokenizer counts, a hub name
    or a folder; it is loaded with the first batch. spaCy resolves [training] without [components],
    so a config that names the checkpoint only once does so under [paths]. With `by_task` all items
    of a batch are annotated for the same heads, so a head of a joint pipeline learns from whole
    batches, as it does alone, and not from a few items of each. `temperature` is for tasks of
    uneven size: of an epoch's n batches for a task there are n ** (1 / temperature) shares, so that
    2 repeats small tasks and leaves some of the large ones for the next epoch, and a very large
    value gives all tasks the same share (multilingual BERT's sampling; Devlin 2019). The epoch is
    as long as without it.

    Raises ValueError if the temperature is below 1, or is set without `by_task`.
    """
    if temperature < 1 or (temperature > 1 and not by_task):
        raise ValueError(
            f"temperature is {temperature}, by_task is {by_task}. Set temperature to 1 or above, "
            "and by_task = true if it is above 1."
        )
    load = cache(partial(load_wordpiece_tokenizer, name))
    batch = partial(batch_by_pieces, size=size, load=load, by_task=by_task)
    return batch if temperature == 1 else partial(sample_tasks, batch, temperature)


def sample_tasks(
    batch: Callable[[list[Item]], Iterator[list[Item]]], temperature: float, items: Iterable[Item]
) -> Iterator[list[Item]]:
    """Yield as many batches of one task each as `batch` makes of an epoch, in other shares; see
    `make_batch_by_pieces`. All items are read first."""
    batches: dict[frozenset[str], list[list[Item]]] = {}
    for one in batch(list(items)):
        batches.setdefault(annotations_of(reference_of(one[0])), []).append(one)
    weights = [len(own) ** (1 / temperature) for own in batches.values()]
    num_batches, drawn = sum(map(len, batches.values())), []
    for own, weight in zip(batches.values(), weights, strict=True):
        wanted = max(round(num_batches * weight / sum(weights)), 1)
        members = [item for one in own for item in one]
        while len(own) < wanted:
            own += batch(random.sample(members, len(members)))
        drawn += own[:wanted]
    yield from random.sample(drawn, len(drawn))


def batch_by_pieces(
    items: Iterable[Item],
    *,
    size: Sizing,
    load: Callable[[], WordpieceTokenizer],
    by_task: bool = False,
) -> Iterator[list[Item]]:
    """Fill batches of at most `size` wordpieces in the order of the items. An item that exceeds the
    budget is a batch of its own. With `by_task` one batch is filled for each set of heads that
    items are annotated for, and comes when it is full. Raises ValueError if the tokenizer can't be
    loaded, or a second text is not a string, or `size` is empty."""
    sizes = repeat(size) if isinstance(size, int) else iter(size)
    budget = next(sizes, None)
    if budget is None:
        raise ValueError("size is an empty sequence. Name the wordpieces of a batch: size = 4096.")
    batches: dict[frozenset[str], list[Item]] = {}  # that are not full yet
    room: dict[frozenset[str], int] = {}
    for chunk in minibatch(items, CHUNK):
        docs = [reference_of(item) for item in chunk]
        counts = count_pieces(docs, load()).tolist()
        for item, doc, count in zip(chunk, docs, counts, strict=True):
            task = annotations_of(doc) if by_task else frozenset()
            if task in batches and count > room[task]:
                yield batches.pop(task)
                budget = next(sizes, budget)
            if task not in batches:
                batches[task], room[task] = [], budget
            batches[task].append(item)
            room[task] -= count
    yield from batches.values()


def reference_of(item: Doc | Example) -> Doc:
    """Give an example's gold Doc, or the Doc itself."""
    return item.reference if isinstance(item, Example) else item


def count_pieces(docs: Sequence[Doc], tokenizer: WordpieceTokenizer) -> Ints1d:
    """Count the wordpieces that the encoder reads for each Doc (n_docs,): those of its text once,
    unless it is annotated for pairs alone, and again with each of its second texts, special tokens
    included. Overlaps of windows are not counted. Raises ValueError if a second text is not a
    string."""
    texts = [second_texts(doc) for doc in docs]
    pairs = np.fromiter(map(len, texts), dtype=np.int64, count=len(docs))
    # One call for all texts, so that the tokenizer can use all threads.
    pieces = tokenizer([doc.text for doc in docs] + [text for some in texts for text in some])
    own, second = pieces.lengths[: len(docs)], pieces.lengths[len(docs) :]
    special = tokenizer.pair
    n_special = len(special.prefix) + len(special.middle) + len(special.suffix)
    alone = [teaches_text(doc) or not teaches_pairs(doc) for doc in docs]
    single = np.asarray(alone, dtype=np.int64) * (own + tokenizer.num_special)
    return single + pairs * (own + n_special) + sums(second, pairs)
