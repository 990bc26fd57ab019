"""Streams of Docs in groups that fit into memory."""

from collections.abc import Iterable, Iterator

from spacy.tokens import Doc

# spaCy's nlp.max_length. In windows of MiniLM (384 wide) such a text has 0.6 GB of hidden states.
MAX_CHARS = 1_000_000


def group_docs(
    stream: Iterable[Doc], *, batch_size: int, max_chars: int = MAX_CHARS
) -> Iterator[list[Doc]]:
    """Group Docs for one prediction: up to `batch_size` of them, and no more once they have
    `max_chars` characters together.

    A group ends without a look at the next Doc. So every head of a pipeline makes the same groups,
    and finds in the encoder's latest batch what the head before it has read.
    """
    group: list[Doc] = []
    chars = 0
    for doc in stream:
        group.append(doc)
        chars += doc[-1].idx + len(doc[-1]) if len(doc) else 0
        if len(group) >= batch_size or chars >= max_chars:
            yield group
            group, chars = [], 0
    if group:
        yield group
