"""Batch examples by wordpieces, second texts included, and by task."""

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

CHUNK = 256  # items that are tokenized in one call


def make_batch_by_pieces(
    size: Sizing, name: str, by_task: bool = False, temperature: float = 1.0
) -> Callable[[Iterable[Item]], Iterator[list[Item]]]:
    """Create a batcher with a budget of wordpieces, counted as the encoder will read them.

    `size` is the maximum number of wordpieces per batch; a sequence or schedule has one value per
    batch, and the last one is kept. `name` is the checkpoint whose tokenizer is used, a hub name or
    a folder; it is loaded with the first batch. spaCy resolves [training] without [components], so
    to name the checkpoint only once in a config, put it under [paths].

    With `by_task`, all items of a batch are annotated for the same heads, so in joint training a
    head learns from whole batches, as when trained alone. `temperature` is for tasks of uneven
    size: a task with n of the epoch's batches gets a share proportional to n ** (1 / temperature).
    With 2, small tasks are repeated and some batches of large ones wait for the next epoch; a very
    large value gives all tasks the same share (sampling of multilingual BERT; Devlin 2019). The
    length of the epoch does not change.

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
    """Yield batches of one task each, with the shares of tasks changed by `temperature`.

    There are as many batches as `batch` makes of an epoch; see `make_batch_by_pieces`. All items
    are read first.
    """
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
    """Yield batches of at most `size` wordpieces in the order of the items.

    An item above the budget is a batch of its own. With `by_task`, one batch is filled for each set
    of heads for which items are annotated, and yielded when it is full. Raises ValueError if the
    tokenizer can't be loaded, a second text is not a string, or `size` is empty.
    """
    sizes = repeat(size) if isinstance(size, int) else iter(size)
    budget = next(sizes, None)
    if budget is None:
        raise ValueError(
            "size is an empty sequence. Set the number of wordpieces per batch, such as size = "
            "4096."
        )
    batches: dict[frozenset[str], list[Item]] = {}  # not full yet
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
    """Return an example's gold Doc, or the Doc itself."""
    return item.reference if isinstance(item, Example) else item


def count_pieces(docs: Sequence[Doc], tokenizer: WordpieceTokenizer) -> Ints1d:
    """Count the wordpieces that the encoder reads for each Doc, an int64 array (num_docs,).

    The text counts once (not if the Doc is annotated only for pairs), and again with each second
    text, special tokens included. Overlaps of windows are not counted. Raises ValueError if a
    second text is not a string.
    """
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
