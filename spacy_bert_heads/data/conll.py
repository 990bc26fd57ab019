"""CoNLL: tokens in columns, the tag last, blank lines between sentences."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from spacy.tokens import Doc, Span

from .records import Refused, Settings, is_utf8

MAX_SENTENCE = 100_000  # tokens; a file with more in one sentence has no blank lines
TAG = re.compile(r"O|[BILUES]-.+")
# CoNLL-U's "# key = value" and MultiCoNER's "# id …<tab>domain=…". A "#" alone may be a token.
COMMENT = re.compile(r"# .* = |# id .*\tdomain=")


def read_conll(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read 2 to 4 columns, a Doc for each sentence. All sentences must have as many columns as the
    first one that could be read."""
    width = 0
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(chain(lines, [""]), 1):  # the last sentence may not be closed
        line = line.rstrip(" \t\r\n")
        if line and not line.startswith("-DOCSTART-"):
            if not COMMENT.match(line) and len(rows) <= MAX_SENTENCE:
                rows.append((number, split_columns(line)))
        elif rows:
            record = read_sentence(rows, width or len(rows[0][1]), settings)
            width = width if isinstance(record, Refused) else len(rows[0][1])
            yield record
            rows = []


def split_columns(line: str) -> list[str]:
    """Split at tabs if there are any, else at spaces. A token between tabs may contain a space."""
    return line.split("\t") if "\t" in line else re.split(" +", line)


def read_sentence(
    rows: list[tuple[int, list[str]]], width: int, settings: Settings
) -> Doc | Refused:
    """Make a Doc of a sentence's numbered rows, or reject it because of its first bad row."""
    if len(rows) > MAX_SENTENCE:
        return Refused(rows[0][0], f"no blank line for {MAX_SENTENCE} lines")
    for line, row in rows:
        if not is_utf8("".join(row)):
            return Refused(line, "not UTF-8")
        if len(row) != width or width not in (2, 3, 4):
            wanted = min(max(width, 2), 4)
            return Refused(line, f"wrong number of columns: {len(row)} instead of {wanted}")
        if not row[0]:
            return Refused(line, "empty token")
        if not TAG.fullmatch(row[-1]):
            return Refused(line, f"not a tag of BIO or BILOU: {row[-1]!r}")
    words = [row[0] for _, row in rows]
    if width > 2 and len(words) > 1 and words == [str(i) for i in range(1, len(words) + 1)]:
        return Refused(rows[0][0], "numbers instead of tokens: take the first column out")
    # Without `spaces`, because the file doesn't tell them: spaCy's Corpus then keeps these tokens
    # in the predicted Doc instead of tokenizing the text again.
    doc = Doc(settings.nlp.vocab, words=words)
    entities = tags_to_entities([row[-1] for _, row in rows])
    doc.ents = [Span(doc, start, end, label=label) for start, end, label in entities]
    return doc


def tags_to_entities(tags: list[str]) -> list[tuple[int, int, str]]:
    """Read BIO, IOB1, BILOU and BIOES by one rule: I, L and E continue an open entity of their
    label, every other tag but O begins one, and only B and I leave it open. So a stray I begins an
    entity, as in IOB1 and in the CoNLL scorer.

    Returns the first token, the one after the last, and the label of each entity.
    """
    entities: list[tuple[int, int, str]] = []
    open_label = None
    for i, tag in enumerate(tags):
        prefix, _, label = tag.partition("-")
        if prefix in "ILE" and label == open_label:
            entities[-1] = (entities[-1][0], i + 1, label)
        elif prefix != "O":
            entities.append((i, i + 1, label))
        open_label = label if prefix in "BI" else None
    return entities
