"""The formats: a reader for each, a generator from lines to Docs and to what it refuses.

    lines ──▶ reader ──▶ Doc | Refused

What a reader can't read exactly it refuses, with the line and the reason, and it goes on with the
rest. None holds a whole file, except SQuAD's, which is one JSON object.
"""

import csv
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

from spacy.language import Language
from spacy.tokens import Doc, Span

from .pairs import make_answer, make_verdict

MAX_SENTENCE = 100_000  # tokens; with more, a file just has no blank lines
MAX_HYPOTHESES = 32  # of one Doc
MAX_RECORD = 10_000_000  # characters of a table's record; with more, a quote is not closed
# What a column is often called where its default name is missing.
COMMON_NAMES = {
    "text": ("sentence", "content", "review"),
    "label": (
        "category",
        "class",
        "sentiment",
        "gold_label",
        "entailment_judgment",
        "entailment_label",
    ),
    "premise": ("sentence1", "sentence_a", "question"),
    "hypothesis": ("sentence2", "sentence_b", "sentence"),
}
TAG = re.compile(r"O|[BILUES]-.+")
# CoNLL-U's "# key = value" and MultiCoNER's "# id …<tab>domain=…". A "#" alone may be a token.
COMMENT = re.compile(r"# .* = |# id .*\tdomain=")
FASTTEXT = "__label__"

T = TypeVar("T")


class Refused(NamedTuple):
    """What could not be read. Details of the record follow the reason's first colon. Line 0 is for
    files whose lines say nothing: there the details name the record."""

    line: int
    reason: str


class Row(NamedTuple):
    """Cells of a table."""

    line: int
    cells: list[str]


class Pair(NamedTuple):
    """A premise, and a hypothesis as `read_hypotheses` takes it."""

    line: int
    premise: str
    hypothesis: dict[str, str]


class Question(NamedTuple):
    """A question, its entry of `doc._.answers`, and how many of its offsets were mended."""

    text: str
    answer: dict[str, Any] | None
    mended: int


@dataclass
class Settings:
    """What a reader needs to know. To `labels`, the categories of its file, it adds those of every
    record it can read, and to `mended` the answers it found away from their offsets."""

    nlp: Language
    text_column: str = "text"
    label_column: str = "label"
    premise_column: str = "premise"
    hypothesis_column: str = "hypothesis"
    labels: set[str] = field(default_factory=set)
    mended: int = 0

    def text_names(self) -> dict[str, str]:
        """RETURNS (Dict[str, str]): The columns of a table of texts."""
        return {"text": self.text_column, "label": self.label_column}

    def pair_names(self) -> dict[str, str]:
        """RETURNS (Dict[str, str]): The columns of a table of pairs."""
        return {
            "premise": self.premise_column,
            "hypothesis": self.hypothesis_column,
            "label": self.label_column,
        }


def read_conll(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read tokens in columns, the tag last, and blank lines between sentences: a Doc each. All have
    as many columns as the first that could be read."""
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
    """Split at tabs if there are any, else at spaces. A token between tabs may hold a space."""
    return line.split("\t") if "\t" in line else re.split(" +", line)


def read_sentence(
    rows: list[tuple[int, list[str]]], width: int, settings: Settings
) -> Doc | Refused:
    """Make a Doc of a sentence's numbered rows, or refuse it for the first one at fault."""
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
    # Without spaces: the file doesn't tell them, and readers then predict on these same tokens.
    doc = Doc(settings.nlp.vocab, words=words)
    entities = tags_to_entities([row[-1] for _, row in rows])
    doc.ents = [Span(doc, start, end, label=label) for start, end, label in entities]
    return doc


def tags_to_entities(tags: list[str]) -> list[tuple[int, int, str]]:
    """Read BIO, IOB1, BILOU and BIOES by one rule: I, L and E go on with an open entity of their
    label, every other tag but O begins one, and only B and I leave it open. So a stray I begins an
    entity, as IOB1 means it and the CoNLL scorer takes it.

    RETURNS (list[tuple[int, int, str]]): First token, the one after the last, and the label.
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


def read_labelled(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read a label and a text in each line, or fastText's `__label__a __label__b text`."""
    fasttext = False
    for number, line in enumerate(lines, 1):
        labels: list[str] = []
        text = line.strip()
        fasttext = fasttext or text.startswith(FASTTEXT)
        while text.startswith(FASTTEXT) if fasttext else text and not labels:
            label, text = [*text.split(maxsplit=1), ""][:2]
            labels.append(label.removeprefix(FASTTEXT))
        if labels or text:
            yield attempt(number, make_doc, text, settings, labels=labels or "")


def read_csv(
    lines: Iterable[str], settings: Settings, *, delimiter: str
) -> Iterator[Doc | Refused]:
    """Read a table of texts with a header. A quoted field may hold newlines: a record goes by the
    number of its first line."""
    rows = split_quoted(lines, delimiter)
    for row in read_table(rows, settings.text_names()):
        if isinstance(row, Refused):
            yield row
        else:
            text, label = row.cells
            yield attempt(row.line, make_doc, text, settings, labels=label)


def split_quoted(lines: Iterable[str], delimiter: str) -> Iterator[Row | Refused]:
    """Split the lines of a table whose fields may be quoted, and then may hold newlines. Blank
    lines are passed over. Where "," is given but the header has only ";", that is what splits.

    A stray quote does not swallow the rows behind it: of a record that can't be read only the first
    line is refused. And since tables with tabs are seldom quoted, lines of one that have as many
    tabs as the header are rows, whatever quotes they have.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD))
    lines = iter(lines)
    ahead = deque(islice(lines, 1))  # lines that were read, but belong to records to come
    if delimiter == "," and ahead and ";" in ahead[0] and "," not in ahead[0]:
        delimiter = ";"
    number, width = 1, 0
    while True:
        taken: list[str] = []
        cells, fault = [], ""
        try:
            cells = next(csv.reader(read_on(ahead, lines, taken), strict=True, delimiter=delimiter))
        except StopIteration:
            return
        except csv.Error as error:
            fault = f"broken quotes: {error}"
        if fault or len(taken) > 1:
            parts = taken[:1] if fault else taken
            if delimiter == "\t" and all(line.count("\t") == width - 1 for line in parts):
                cells, fault = [unquote(c) for c in taken[0].rstrip("\r\n").split("\t")], ""
                parts = taken[:1]
            ahead.extendleft(reversed(taken[len(parts) :]))
            taken = parts
        if fault:
            yield Refused(number, fault)
        elif cells:
            width = width or len(cells)
            yield Row(number, cells)
        number += len(taken)


def read_on(ahead: deque[str], lines: Iterator[str], taken: list[str]) -> Iterator[str]:
    """Yield a record's lines, those read ahead first, and note them."""
    size = 0
    while size <= MAX_RECORD:
        line = ahead.popleft() if ahead else next(lines, None)
        if line is None:
            return
        taken.append(line)
        size += len(line)
        yield line


def unquote(cell: str) -> str:
    """Take off the quotes around a cell, if it is quoted as a whole."""
    inner = cell[1:-1]
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def split_plain(lines: Iterable[str], delimiter: str) -> Iterator[Row]:
    """Split the lines of a table in which a quote is text, and a line a row."""
    for number, line in enumerate(lines, 1):
        if line := line.rstrip("\r\n"):
            yield Row(number, line.split(delimiter))


def read_table(rows: Iterable[Row | Refused], names: dict[str, str]) -> Iterator[Row | Refused]:
    """Read the rows of a table with a header, of each the columns that `find_columns` finds."""
    header: list[str] = []
    for row in rows:
        if isinstance(row, Refused):
            yield row
        elif not header:
            header = row.cells
            columns = find_columns(header, names)
            if min(columns) < 0:
                options = join_names(f"--{kind}-column" for kind in names)
                fault = f"no columns for {join_names(names)}: {header}, name them by {options}"
                yield Refused(row.line, fault)
                return
        elif len(row.cells) != len(header):
            wanted = len(header)
            yield Refused(
                row.line, f"wrong number of columns: {len(row.cells)} instead of {wanted}"
            )
        else:
            yield Row(row.line, [row.cells[column] for column in columns])


def find_columns(header: list[str], names: dict[str, str]) -> list[int]:
    """Find columns by their names, or, if a default name is missing, by a common one.

    header (list[str]): The names in the file.
    names (dict[str, str]): The name of each kind of column; the kind itself is the default.
    RETURNS (list[int]): The columns, -1 unless there is exactly one.
    """
    columns = []
    for name in names.values():
        common = (name, *COMMON_NAMES.get(name, ()))
        exact = [i for i, column in enumerate(header) if column == name]
        similar = [i for i, column in enumerate(header) if column.strip().lower() in common]
        found = exact or similar
        columns.append(found[0] if len(found) == 1 else -1)
    return columns


def holds_pairs(header: list[str], settings: Settings) -> bool:
    """Tell pairs of texts from texts by the names of columns or keys."""
    premise, hypothesis, _ = find_columns(header, settings.pair_names())
    return min(premise, hypothesis) >= 0 and settings.text_column not in header


def list_reasons(title: str, reasons: Counter[str], samples: list[str]) -> list[str]:
    """Say what of some data was left out.

    title (str): What became of it.
    reasons (Counter[str]): How often for each reason.
    samples (List[str]): Some of it.
    RETURNS (List[str]): Lines; none if nothing was left out.
    """
    if not reasons:
        return []
    counts = [f"  {count:>6,}  {reason}" for reason, count in reasons.most_common()]
    return [f"{title}: {reasons.total():,}", *counts, *(f"  {sample}" for sample in samples)]


def join_names(names: Iterable[str]) -> str:
    """Join some words as English does, without the comma before the last."""
    *others, last = names
    return f"{', '.join(others)} and {last}"


def read_jsonl(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read one object a line: a text, and perhaps categories (`label`, `labels` or `cats`),
    entities (`spans` or `entities`), `hypotheses` and `questions`. Without the key, entities stay
    unannotated; an empty list says that there are none. Other keys are left to other tasks."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield attempt(number, read_object, line, settings)


def read_object(line: str, settings: Settings) -> Doc:
    """Make a Doc of one line of JSONL."""
    record = read_json(line)
    if record.get("answer") in ("reject", "ignore"):
        raise ValueError("rejected or ignored in Prodigy")
    return make_doc(
        record.get(settings.text_column),
        settings,
        labels=only_one(record, settings.label_column, "labels", "cats"),
        spans=only_one(record, "spans", "entities"),
        hypotheses=record.get("hypotheses"),
        questions=record.get("questions"),
    )


def read_json(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict) or not is_utf8(text):
        raise ValueError("not a JSON object in UTF-8")
    return record


def read_nli_table(
    lines: Iterable[str], settings: Settings, *, delimiter: str, quoted: bool
) -> Iterator[Doc | Refused]:
    """Read a table of pairs with a header: SICK's, and those of GLUE, in which nothing is quoted.
    The label may be one of `entailment_judgment` and the like."""
    rows = split_quoted(lines, delimiter) if quoted else split_plain(lines, delimiter)

    def read_pairs() -> Iterator[Pair | Refused]:
        for row in read_table(rows, settings.pair_names()):
            if isinstance(row, Refused):
                yield row
            else:
                yield attempt(row.line, make_pair, row.line, row.cells, settings)

    return group_pairs(read_pairs(), settings)


def read_nli_jsonl(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read one pair a line, as objects of SNLI and MNLI: `sentence1`, `sentence2`, `gold_label`."""

    def read_pair(number: int, line: str) -> Pair:
        record = read_json(line)
        names = settings.pair_names()
        keys = list(record)
        columns = find_columns(keys, names)
        if min(columns) < 0:
            raise ValueError(f"no keys for {join_names(names)}: {keys}")
        return make_pair(number, [record[keys[column]] for column in columns], settings)

    pairs = (
        attempt(number, read_pair, number, line)
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    return group_pairs(pairs, settings)


def make_pair(line: int, values: list[Any], settings: Settings) -> Pair:
    """Make a pair of a premise, a hypothesis and a label, each of which must be there."""
    premise, hypothesis, label = values
    premise = check_text("premise", premise, longest=settings.nlp.max_length)
    hypothesis = check_text("hypothesis", hypothesis)
    return Pair(line, premise, {"text": hypothesis, "label": read_verdict(label)})


def group_pairs(pairs: Iterable[Pair | Refused], settings: Settings) -> Iterator[Doc | Refused]:
    """Make one Doc of the pairs of a premise as long as they follow each other, so that its text is
    kept once. What is refused among them does not part them."""
    group: list[Pair] = []
    for pair in chain(pairs, [None]):
        if isinstance(pair, Refused):
            yield pair
            continue
        full = len(group) == MAX_HYPOTHESES
        if group and (full or pair is None or pair.premise != group[0].premise):
            line, premise, _ = group[0]
            hypotheses = [pair.hypothesis for pair in group]
            yield attempt(line, make_doc, premise, settings, hypotheses=hypotheses)
            group = []
        if pair is not None:
            group.append(pair)


def read_squad(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read SQuAD 1.1 and 2.0: a Doc for each paragraph, with all of its questions that can be read.
    The file is one JSON object and held in memory as a whole. What is refused is one question,
    named by its id, for a bad context each of its questions; plausible answers are none."""
    squad = attempt(0, read_json, "".join(lines))
    if isinstance(squad, Refused):
        yield squad
        return
    keys = ("data", "paragraphs") if "data" in squad else ("paragraphs",)
    for paragraph in walk(squad, *keys):
        if isinstance(paragraph, Refused):
            yield paragraph
        else:
            yield from read_paragraph(paragraph, settings)


def walk(value: Any, *keys: str) -> Iterator[dict[str, Any] | Refused]:
    """Find all objects at the end of a path of keys, each of which holds a list of objects."""
    if not isinstance(value, dict):
        yield Refused(0, f"not SQuAD: {type(value).__name__} instead of an object")
    elif not keys:
        yield value
    elif not isinstance(value.get(keys[0]), list):
        yield Refused(0, f"not SQuAD: an object without a list of {keys[0]}")
    else:
        for item in value[keys[0]]:
            yield from walk(item, *keys[1:])


def read_paragraph(paragraph: dict[str, Any], settings: Settings) -> Iterator[Doc | Refused]:
    """Make a Doc of a context, and refuse questions one by one."""
    doc = attempt(0, make_doc, paragraph.get("context"), settings)
    doc_text = "" if isinstance(doc, Refused) else doc.text
    questions: list[Question] = []
    if paragraph.get("qas") == []:
        yield Refused(0, f"no questions: {paragraph.get('context')!r}")
    for entry in walk(paragraph, "qas"):
        if isinstance(entry, Refused):
            yield entry
            continue
        question: Question | Refused
        if isinstance(doc, Refused):
            question = doc
        else:
            question = attempt(0, read_question, entry, doc, doc_text)
        if isinstance(question, Refused):
            name = entry.get("id", entry.get("question"))
            yield Refused(0, f"{question.reason.partition(':')[0]}: {name!r}")
        else:
            questions.append(question)
    if questions and not isinstance(doc, Refused):
        set_questions(doc, questions, settings)
        yield doc


def only_one(record: dict[str, Any], *keys: str) -> Any:
    """Get the value of whichever key is there. Null is as good as absent."""
    values = [record[key] for key in dict.fromkeys(keys) if record.get(key) is not None]
    if len(values) > 1:
        raise ValueError(f"more than one of {', '.join(keys)}")
    return values[0] if values else None


def make_doc(
    text: Any,
    settings: Settings,
    *,
    labels: Any = None,
    spans: Any = None,
    hypotheses: Any = None,
    questions: Any = None,
) -> Doc:
    """Tokenize a text and annotate what is not None.

    text (str): The text.
    settings (Settings): Learns labels and mended offsets, unless something is refused.
    labels (str | list[str] | dict[str, float]): The positive categories, the file's others being
        negative, or cats as they are.
    spans (list): What `read_spans` takes.
    hypotheses (list): What `read_hypotheses` takes.
    questions (list): What `read_question` takes, each.
    RETURNS (Doc): The Doc.
    RAISES (ValueError): If something is not what it should be.
    """
    text = check_text("text", text, longest=settings.nlp.max_length)
    doc = settings.nlp.make_doc(text)
    if spans is not None:
        doc.ents = read_spans(spans, doc)
    if hypotheses is not None:
        doc._.hypotheses, doc._.nli = read_hypotheses(hypotheses)
    asked = [read_question(value, doc, doc.text) for value in check_list("questions", questions)]
    if isinstance(labels, dict):
        doc.cats = {check_text("label", label): value for label, value in labels.items()}
        if not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in labels.values()):
            raise ValueError(f"cats are not between 0 and 1: {labels}")
    elif labels is not None:
        labels = labels if isinstance(labels, list) else [labels]
        positive = {check_text("label", label).strip() for label in labels}
        settings.labels.update(positive)
        doc.cats = {label: float(label in positive) for label in sorted(settings.labels)}
    if questions is not None:
        set_questions(doc, asked, settings)
    return doc


def read_spans(values: Any, doc: Doc) -> list[Span]:
    """Read `{"start": 0, "end": 4, "label": "X"}`, doccano's `start_offset` and `end_offset`, or
    `[0, 4, "X"]`, in any order. Spans must hold whole tokens and not overlap."""
    spans: list[Span] = []
    for value in values if isinstance(values, list) else [values]:
        match value:
            case (
                {"start": int(start), "end": int(end), "label": label}
                | {"start_offset": int(start), "end_offset": int(end), "label": label}
                | [int(start), int(end), label]
            ) if 0 <= start < end <= len(doc.text):
                span = doc.char_span(start, end, label=check_text("label", label).strip())
            case _:
                raise ValueError(f"not a span of the text with a label: {value!r}")
        if span is None:
            raise ValueError(f"span is not whole tokens: {doc.text[start:end]!r}")
        spans.append(span)
    spans.sort()
    for left, right in zip(spans, spans[1:], strict=False):
        if right.start < left.end:
            raise ValueError(f"overlapping spans: {left.text!r} and {right.text!r}")
    return spans


def read_hypotheses(values: Any) -> tuple[list[str], list[dict[str, Any] | None]]:
    """Read `{"text": "…", "label": "…"}`, or a text alone, which is not annotated.

    values (list): The hypotheses.
    RETURNS (tuple[list[str], list[dict | None]]): Texts and their entries of `doc._.nli`.
    """
    texts, verdicts = [], []
    for value in check_list("hypotheses", values):
        match value:
            case {"text": text}:
                label = value.get("label")
            case _:
                text, label = value, None
        texts.append(check_text("hypothesis", text))
        verdicts.append(None if label is None else make_verdict(read_verdict(label)))
    return texts, verdicts


def read_verdict(label: Any) -> str:
    """Read the label of a pair, in lower case, so that SICK, SNLI and MNLI can be mixed."""
    text = check_text("label", label).strip().lower()
    if text == "-":
        raise ValueError("no consensus on the label")
    if text.removeprefix("-").isdecimal():
        # Which number is which label differs between data sets.
        raise ValueError(f"label is a number, write its name instead: {label!r}")
    return text


def read_question(value: Any, doc: Doc, doc_text: str) -> Question:
    """Read `{"question": "…", "answers": [{"text": "…", "start": 0}]}` with the answers that are
    accepted, the first of them the primary one. An empty list, or SQuAD's `is_impossible`, says
    that there is no answer; without the key, or as a text alone, it is not annotated.

    value (dict | str): The question.
    doc (Doc): The Doc that is asked.
    doc_text (str): Its text.
    RETURNS (Question): The question.
    RAISES (ValueError): If an answer is not in the text, or not clearly.
    """
    match value:
        case {"question": text}:
            answers = [] if value.get("is_impossible") is True else value.get("answers")
        case _:
            text, answers = value, None
    text = check_text("question", text)
    if answers is None:
        return Question(text, None, 0)
    found = [find_answer(answer, doc_text) for answer in check_list("answers", answers)]
    places = dict.fromkeys((start, end) for start, end, _ in found) or {(0, 0): None}
    first, *others = [make_answer(doc, *place, doc_text=doc_text) for place in places]
    return Question(text, first | {"alternatives": others}, sum(mended for _, _, mended in found))


def find_answer(value: Any, doc_text: str) -> tuple[int, int, bool]:
    """Find `{"text": "…", "start": 0}`, or SQuAD's `answer_start`, without white space around it.
    If it is not at its offset, it must be at one place only.

    value (dict): The answer.
    doc_text (str): The text of the Doc.
    RETURNS (tuple[int, int, bool]): First character, the one after the last, and whether the offset
        had to be mended.
    RAISES (ValueError): If it is not found, or found more than once.
    """
    if not isinstance(value, dict):
        raise ValueError(f"not an answer: {value!r}")
    text = check_text("answer text", value.get("text"))
    start = only_one(value, "start", "answer_start")
    bare = text.strip()
    margin = text.index(bare)
    if type(start) is int and start >= 0:
        for place in (start + margin, start):
            if doc_text.startswith(bare, place):
                return place, place + len(bare), False
    # The white space around it may be what tells one place from another.
    for wanted, shift in ((text, margin), (bare, 0)):
        place = doc_text.find(wanted)
        if place >= 0 and place == doc_text.rfind(wanted):
            return place + shift, place + shift + len(bare), True
    if bare in doc_text:
        raise ValueError(f"answer found more than once, and not at its offset: {text!r}")
    raise ValueError(f"answer not found in the context: {text!r}")


def set_questions(doc: Doc, questions: list[Question], settings: Settings) -> None:
    """Write questions to a Doc that is kept."""
    doc._.questions = [question.text for question in questions]
    doc._.answers = [question.answer for question in questions]
    settings.mended += sum(question.mended for question in questions)


def check_list(kind: str, value: Any) -> list[Any]:
    """Make sure of a list. Null is as good as an empty one."""
    if value is not None and not isinstance(value, list):
        raise ValueError(f"{kind} are not a list: {value!r}")
    return value or []


def check_text(kind: str, value: Any, *, longest: int | None = None) -> str:
    """Make sure of a text or label. A whole number is taken as it is written."""
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no {kind}: {value!r}")
    if not is_utf8(text):
        raise ValueError(f"{kind} is not UTF-8: {value!r}")
    if longest is not None and len(text) > longest:
        raise ValueError(f"too long for spaCy: {len(text)} characters")
    return text


def is_utf8(text: str) -> bool:
    """Find lone surrogates: they stand for undecodable bytes, and JSON can write them out."""
    try:
        text.encode("utf8")
    except UnicodeEncodeError:
        return False
    return True


def attempt(line: int, make: Callable[..., T], *args: Any, **kwargs: Any) -> T | Refused:
    """Make a Doc or a part of one, or refuse what it would be made of."""
    try:
        return make(*args, **kwargs)
    except ValueError as error:
        return Refused(line, str(error))


Reader = Callable[[Iterable[str], Settings], Iterator[Doc | Refused]]
READERS: dict[str, Reader] = {
    "conll": read_conll,
    "labelled": read_labelled,
    "csv": partial(read_csv, delimiter=","),
    "tsv": partial(read_csv, delimiter="\t"),
    "jsonl": read_jsonl,
    "nli-jsonl": read_nli_jsonl,
    "nli-tsv": partial(read_nli_table, delimiter="\t", quoted=False),
    "nli-csv": partial(read_nli_table, delimiter=",", quoted=True),
    "squad": read_squad,
}
# A Doc's cats name all categories of its file, so the readers that set them read it twice.
WITH_CATEGORIES = ("labelled", "csv", "tsv", "jsonl")
