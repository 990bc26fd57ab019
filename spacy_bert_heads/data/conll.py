"""Read tokens in columns: CoNLL, with one tag per token, and CoNLL-U."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from .files import File
from .records import Options, Record, Rejected, attempt, is_utf8

MAX_SENTENCE = 100_000  # tokens; a longer sentence means that the file has no blank lines
TAG = re.compile(r"O|[BILUEMS]-.+")
# Tags without a label (one kind of entity), and tags with "_" instead of "-".
BARE = re.compile(r"[BILUEMS](_.+)?")
BARE_LABEL = "ENTITY"
BRACKETS = re.compile(r"\(.+|.+\)")  # spans over several lines, in CoNLL-2005 and 2012
# CoNLL-U's "# key = value", MultiCoNER's "# id …<tab>domain=…", OntoNotes' "#end document". A "#"
# alone may be a token.
COMMENT = re.compile(r"# .* = |# id .*\tdomain=|#end document")
NEW_DOCUMENT = re.compile(r"-DOCSTART-|# newdoc|#begin document")
Sentence = list[tuple[int, list[str]]]  # numbered rows


def read_conll(file: File, options: Options) -> Iterator[Record | Rejected]:
    """Yield a record for each sentence.

    Tokens are in the first column, or in the second one if the first has token numbers; tags are in
    the last one. With two columns, the first may have the tags. Tags are entities (BIO and similar
    schemes, or labels besides "O"), otherwise token tags. All sentences must have the same number
    of columns as the first valid one. In GermEval's format (two tag columns after the number), the
    nested entities of the second tag column are not read.
    """
    found = attempt("", survey, file, options)
    if isinstance(found, Rejected):
        yield found
        return
    token_column, tag_column, counted, scheme, nested, has_documents = found
    width = 0

    def make(rows: Sentence) -> Record:
        words = [row[token_column] for _, row in rows]
        tags = [row[tag_column] for _, row in rows]
        record = tagged_record(f":{rows[0][0]}", words, tags, scheme)
        if nested:
            record.unread = (f"column {width}",)
        return record

    for group, rows in split_sentences(file, counted=counted):
        own_width = len(rows[0][1])
        fault = find_fault(rows, width or own_width, token_column, tag_column, scheme)
        if fault is not None:
            yield fault
            continue
        width = own_width
        record = attempt(f":{rows[0][0]}", make, rows)
        if isinstance(record, Record):
            record.group = group if has_documents else None
        yield record


def column_number(name: str, default: int) -> int:
    """Convert a column number, from 1, or negative from the end, to an index. Raises ValueError for
    0 or other text."""
    if not name:
        return default
    if not name.removeprefix("-").isdecimal() or int(name) == 0:
        raise ValueError(f"'{name}' is not a column of a CoNLL file. Pass a number from 1.")
    return int(name) - (int(name) > 0)


def split_sentences(file: File, *, counted: bool) -> Iterator[tuple[str | None, Sentence]]:
    """Yield the sentences, each with its document if the file marks documents. Blank lines end a
    sentence."""
    document = 0
    rows: Sentence = []
    for number, line in enumerate(chain(file.lines(), [""]), 1):  # "" closes the last sentence
        line = line.rstrip(" \t\r\n")
        starts = NEW_DOCUMENT.match(line)
        if line and not starts:
            is_comment = line.startswith("#") if counted else COMMENT.match(line)
            if not is_comment and len(rows) <= MAX_SENTENCE:
                rows.append((number, split_columns(line)))
        elif rows and not line.startswith("#"):
            yield (str(document) if document else None), rows
            rows = []
        document += bool(starts)


def split_columns(line: str) -> list[str]:
    """Split a line at tabs if it has any, otherwise at spaces. A token between tabs may contain a
    space."""
    return line.split("\t") if "\t" in line else re.split(" +", line)


class Survey(NamedTuple):
    """Hold what all sentences of a file have in common."""

    token_column: int
    tag_column: int
    counted: bool  # the first column has token numbers
    scheme: str  # of `scheme_of`
    nested: bool  # the last column has tags of nested entities
    has_documents: bool


def survey(file: File, options: Options) -> Survey:
    """Read a file once to detect its columns and its tag scheme."""
    counted = several = 0
    widths: set[int] = set()
    documents = set()
    for document, rows in split_sentences(file, counted=False):
        documents.add(document)
        numbers = [row[0] for _, row in rows if not row[0].startswith("#")]
        widths.update(len(row) for _, row in rows if not row[0].startswith("#"))
        if len(numbers) > 1:  # a sentence of one number is no evidence
            several += 1
            first = int(numbers[0]) if numbers[0].isdecimal() else 0
            counted += numbers == [str(first + i) for i in range(len(numbers))]
    is_counted = counted > several / 2 and widths != {2}
    tokens = column_number(options.token_column, 1 if is_counted else 0)
    wanted = column_number(options.tag_column, -1)
    # By column: the first, the one before the last, the one of the tags.
    seen: dict[int, set[str]] = {0: set(), -2: set(), wanted: set()}
    for _, rows in split_sentences(file, counted=is_counted):
        for _, row in rows:
            for column, values in seen.items():
                if -len(row) <= column < len(row):
                    values.add(row[column])
    is_named = bool(options.tag_column or options.token_column)
    if widths == {2} and not is_named and is_bio(seen[0]) and not is_bio(seen[-1]):
        tokens, wanted = 1, 0
    nested = is_counted and not options.tag_column and widths == {4}
    nested = nested and all(map(TAG.fullmatch, seen[-1] | seen[-2]))
    column = -2 if nested else wanted
    scheme = scheme_of(seen[column])
    return Survey(tokens, column, is_counted, scheme, nested, len(documents) > 1)


def find_fault(
    rows: Sentence, width: int, token_column: int, tag_column: int, scheme: str
) -> Rejected | None:
    """Return the first faulty row of a sentence as a rejected record, None if there is none."""
    if len(rows) > MAX_SENTENCE:
        return Rejected(f":{rows[0][0]}", f"no blank line for {MAX_SENTENCE} lines")
    for line, row in rows:
        if not is_utf8("".join(row)):
            return Rejected(f":{line}", "not UTF-8")
        needed = max(2, token_column + 1, tag_column + 1, -tag_column)
        if len(row) != width or width < needed:
            wanted = max(width, needed)
            return Rejected(f":{line}", f"wrong number of columns: {len(row)} instead of {wanted}")
        if not row[token_column]:
            return Rejected(f":{line}", "empty token")
        if scheme == "BIO" and not TAG.fullmatch(row[tag_column]):
            return Rejected(f":{line}", f"not a tag of BIO or BILOU: {row[tag_column]!r}")
    return None


# --- tags to annotations


def scheme_of(tags: Iterable[str]) -> str:
    """Return the scheme of tags: "BIO" (B-, I- and so on), "B" (the same without a label or with an
    underscore), "IO" (labels besides "O"), or "" (not entities).

    Raises ValueError for spans in brackets.
    """
    tags = set(tags)
    held = tags - {"O"}
    if any(map(TAG.fullmatch, held)):
        return "BIO"
    if "O" in tags:
        is_bare = all(map(BARE.fullmatch, held)) and any(tag[0] == "B" for tag in held)
        return "B" if is_bare else "IO"
    if brackets := next(filter(BRACKETS.fullmatch, sorted(tags)), None):
        raise ValueError(
            "spans in brackets are not supported, name the tag column with --tag-column: "
            f"{brackets!r}"
        )
    return ""


def is_bio(tags: set[str]) -> bool:
    """Check whether all tags belong to BIO or a similar scheme, and not all are "O"."""
    return bool(tags - {"O"}) and all(map(TAG.fullmatch, tags))


def tagged_record(
    where: str, words: list[str], tags: list[str], scheme: str, spaces: list[bool] | None = None
) -> Record:
    """Create a record from tokens and their tags. Raises ValueError for an invalid tag."""
    if not scheme:
        return Record(where, words=words, spaces=spaces, values={"pos_tags": tags})
    for tag in tags:
        if scheme == "BIO" and not TAG.fullmatch(tag):
            raise ValueError(f"not a tag of BIO or BILOU: {tag!r}")
    if scheme == "IO":
        tags = [tag if tag == "O" else f"I-{tag}" for tag in tags]
    elif scheme == "B":
        tags = [tag if tag == "O" else f"{tag[0]}-{tag[2:] or BARE_LABEL}" for tag in tags]
    spans = place_entities(words, spaces, tags_to_entities(tags))
    return Record(where, words=words, spaces=spaces, values={"spans": spans})


def tags_to_entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return the entities of BIO, IOB1, BILOU, BIOES or BMES tags as (start, end, label) in tokens;
    the end is exclusive.

    One rule covers all schemes: I, M, L and E continue an open entity with their label, every other
    tag except O starts one, and only B, I and M leave it open. So a stray I starts an entity, as in
    IOB1 and in the CoNLL scorer.
    """
    entities: list[tuple[int, int, str]] = []
    open_label = None
    for i, tag in enumerate(tags):
        prefix, _, label = tag.partition("-")
        if prefix in "IMLE" and label == open_label:
            entities[-1] = (entities[-1][0], i + 1, label)
        elif prefix != "O":
            entities.append((i, i + 1, label))
        open_label = label if prefix in "BIM" else None
    return entities


def place_entities(
    words: list[str], spaces: list[bool] | None, entities: list[tuple[int, int, str]]
) -> list[dict[str, Any]]:
    """Convert entities from tokens to character offsets."""
    starts, place = [], 0
    for i, word in enumerate(words):
        starts.append(place)
        place += len(word) + (spaces is None or spaces[i])
    return [
        {"start": starts[first], "end": starts[end - 1] + len(words[end - 1]), "label": label}
        for first, end, label in entities
    ]


# --- CoNLL-U


def read_conllu(file: File, options: Options) -> Iterator[Record | Rejected]:
    """Yield a record for each sentence, with universal parts of speech, tags and features.

    A multiword token ("zum", 3-4) stays one token, without annotation. Empty nodes are skipped.
    Lemmas and dependencies are not read.
    """

    def make(rows: Sentence) -> Record:
        record = Record(f":{rows[0][0]}", words=[], spaces=[])
        record.unread = ("lemmas", "dependencies")
        values: dict[str, list[str]] = {"pos": [], "tag": [], "morph": []}
        covered = 0
        for line, row in rows:
            if len(row) != 10:
                raise ValueError(f"wrong number of columns: {len(row)} instead of 10, line {line}")
            if not re.fullmatch(r"\d+([-.]\d+)?", row[0]):
                raise ValueError(f"not a token number: {row[0]!r}, line {line}")
            first, *last = row[0].split("-")
            if "." in first or (not last and int(first) <= covered):
                continue
            if last:
                covered = int(last[0])
                record.notes.add("multiword tokens, left without tags", repr(row[1]))
            record.words.append(row[1])  # type: ignore[union-attr]
            record.spaces.append("SpaceAfter=No" not in row[9])  # type: ignore[union-attr]
            for name, column in (("pos", 3), ("tag", 4), ("morph", 5)):
                values[name].append("" if last or row[column] == "_" else row[column])
        if record.spaces:
            record.spaces[-1] = False
        given = {name: tags for name, tags in values.items() if any(tags)}
        record.values = {"pos_tags": given} if given else {}
        return record

    for group, rows in split_sentences(file, counted=True):
        record = attempt(f":{rows[0][0]}", make, rows)
        if isinstance(record, Record):
            record.group = group
        yield record
