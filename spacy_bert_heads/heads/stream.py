"""Groups of streamed Docs whose hidden states fit into memory."""

from collections.abc import Iterable, Iterator

from spacy.tokens import Doc

# spaCy's nlp.max_length. MiniLM's hidden states (width 384) of such a text take 0.6 GB.
MAX_CHARS = 1_000_000


def group_docs(
    stream: Iterable[Doc], *, batch_size: int, max_chars: int = MAX_CHARS
) -> Iterator[list[Doc]]:
    """Group Docs for prediction: up to `batch_size` of them; a group ends early once its Docs have
    `max_chars` characters in total.

    A group ends without reading the next Doc. So every head of a pipeline makes the same groups,
    and finds their hidden states in the encoder's latest batch.
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
