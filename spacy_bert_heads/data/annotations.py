"""Convert the plain values of a record to an annotated Doc."""

from dataclasses import replace
from typing import Any, NamedTuple

from spacy.tokens import Doc
from spacy.util import filter_spans

from ..heads.find import json_heads
from ..text.doc_data import make_answer, make_verdict
from ..text.user_data import set_value
from .records import Notes, Record, Settings, check_list, check_text, is_utf8, only_one

NOT_TOKENS = "entities skipped, not whole tokens"
Place = tuple[int, int]  # start and end characters; the end is exclusive


class Made(NamedTuple):
    """Hold a Doc, the kinds of its annotations, and whether categories that it doesn't name are
    negative."""

    doc: Doc
    kinds: set[str]
    others_negative: bool


class Question(NamedTuple):
    """Hold a question with the places of its answers in the text; None if it is not annotated."""

    text: str
    places: list[Place] | None
    notes: Notes


def make_doc(record: Record, settings: Settings) -> Made:
    """Tokenize a record's text and set its annotations with the `read_json` of the heads.

    Adds labels and notes to `settings`. Raises ValueError if a value is malformed; `settings` is
    then unchanged.
    """
    if record.words is not None:
        words = record.words
        if not words or not all(isinstance(word, str) and word for word in words):
            raise ValueError("empty token")
        if not is_utf8("".join(words)):
            raise ValueError("not UTF-8")
        # Without spaces spaCy's Corpus keeps these tokens in the predicted Doc.
        doc = Doc(settings.nlp.vocab, words, record.spaces)
    else:
        text = check_text("text", record.text, longest=settings.nlp.max_length)
        doc = settings.nlp.make_doc(text)
    found = replace(settings, labels=set(), notes=Notes(), others_negative=False)
    kinds = set()
    for keys, head in json_heads().items():
        was = found.others_negative
        if record.values.get(keys[0]) is not None:
            head.read_json(doc, record.values[keys[0]], found)
        if head.is_annotated(doc) or found.others_negative > was:
            kinds.add(head.annotation or keys[0])
    settings.labels.update(found.labels)
    settings.notes.update(record.notes)
    settings.notes.update(found.notes)
    return Made(doc, kinds, found.others_negative)


# --- categories


def read_labels(value: Any, settings: Settings) -> dict[str, float]:
    """Read `doc.cats` from a dict, a string or a list. A string or a list names the positive
    categories; all others are then negative. Raises ValueError for values outside of 0 to 1."""
    if isinstance(value, dict):
        cats = {check_text("label", label): number for label, number in value.items()}
        if not all(type(v) in (int, float) and 0 <= v <= 1 for v in cats.values()):
            raise ValueError(f"cats are not between 0 and 1: {value}")
        return cats
    labels = value if isinstance(value, list) else [value]
    positive = [check_text("label", label).strip() for label in labels]
    settings.labels.update(positive)
    settings.others_negative = True
    return dict.fromkeys(positive, 1.0)


# --- entities


class SpanFields(NamedTuple):
    """Hold a span of a record; `text` is None if the record has only offsets."""

    start: int
    end: int
    label: Any
    text: str | None


def span_fields(value: Any) -> SpanFields | None:
    """Read `{"start": 0, "end": 4, "label": "X"}`, doccano's `start_offset` and `end_offset`, Label
    Studio's `labels`, or `[0, 4, "X"]`. Returns None if the value is not a span."""
    match value:
        case {"start": start, "end": end} | {"start_offset": start, "end_offset": end}:
            label, text = value.get("label"), value.get("text")
            match value.get("labels"):
                case [one] if label is None:
                    label = one
        case [start, end, label] | (start, end, label):
            text = None
        case _:
            return None
    if type(start) is not int or type(end) is not int:
        return None
    return SpanFields(start, end, label, text if isinstance(text, str) else None)


def list_spans(value: Any) -> list[Any]:
    """Return the spans of a list, or of CLUENER's dict `{"X": {"Anna": [[0, 3]]}}`, whose ends are
    inclusive."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or (value and not holds_spans(value)):
        return [value]
    return [
        {"start": place[0], "end": place[1], "label": label, "text": text}
        for label, by_text in value.items()
        for text, places in by_text.items()
        for place in places
    ]


def holds_spans(value: Any) -> bool:
    """Check whether a value is a non-empty list of spans, or CLUENER's dict."""
    if isinstance(value, dict):
        by_label = value.values()
        return (
            bool(value)
            and all(isinstance(x, dict) for x in by_label)
            and all(
                isinstance(places, list)
                and all(isinstance(place, list) and len(place) == 2 for place in places)
                for by_text in by_label
                for places in by_text.values()
            )
        )
    if not isinstance(value, list) or not value:
        return False
    fields = [span_fields(one) for one in value]
    return all(one is not None and isinstance(one.label, str) for one in fields)


def set_entities(doc: Doc, value: Any, settings: Settings) -> None:
    """Set entities. With `{"spans": [...], "complete": False}`, all other tokens are unannotated.

    A span that is not aligned with tokens or that overlaps a longer one is skipped and noted, and
    its tokens are unannotated. Raises ValueError for a span outside of the text, or whose `text` is
    not found.
    """
    complete = True
    if isinstance(value, dict) and "spans" in value:
        complete, value = value.get("complete") is not False, value["spans"]
    text, spans = doc.text, []
    doubtful: set[int] = set()  # tokens of skipped spans
    for one in list_spans(value):
        fields = span_fields(one)
        if fields is None:
            raise ValueError(f"not a span of the text with a label: {one!r}")
        label = check_text("label", fields.label).strip()
        start, end = locate(fields, text, settings.notes)
        if not 0 <= start < end <= len(text):
            raise ValueError(f"not a span of the text with a label: {one!r}")
        if doc.char_span(start, end) is None and (bare := text[start:end].strip()):
            start = text.index(bare, start)
            end = start + len(bare)
        span = doc.char_span(start, end, label=label)
        if span is not None:
            spans.append(span)
            continue
        settings.notes.add(NOT_TOKENS, repr(text[start:end]))
        doubtful.update(t.i for t in doc if t.idx < end and t.idx + len(t) > start)
    kept = filter_spans(spans)
    for span in spans:
        doubtful.update(range(span.start, span.end))
        if span not in kept:
            settings.notes.add("entities skipped, overlapping a longer one", repr(span.text))
    taken = {i for span in kept for i in range(span.start, span.end)}
    if complete:
        doc.set_ents(kept, missing=[doc[i : i + 1] for i in sorted(doubtful - taken)])
    else:
        doc.set_ents(kept, default="missing")


def locate(span: SpanFields, text: str, notes: Notes) -> Place:
    """Return the place of a span in the text.

    If the span's text is known and doesn't match its offsets, these interpretations are tried in
    turn: an inclusive end, offsets in UTF-16 units (JavaScript) or bytes, the only occurrence of
    the text. Raises ValueError if none matches.
    """
    start, end, _, wanted = span
    if wanted is None or is_same(text[max(start, 0) : end], wanted):
        return start, end
    first = text.find(wanted)
    only = (first, first + len(wanted)) if first == text.rfind(wanted) else None
    for kind, place in (
        ("the end is the last character", (start, end + 1)),
        ("offsets are in UTF-16", decode_place(text, start, end, "utf-16-le", 2)),
        ("offsets are in bytes", decode_place(text, start, end, "utf8", 1)),
        ("offsets corrected", only),
    ):
        if place is not None and place[0] >= 0 and is_same(text[slice(*place)], wanted):
            notes.add(f"entities located by their text, {kind}", repr(wanted))
            return place
    raise ValueError(f"a span's text is not at its offsets: {wanted!r}")


def is_same(text: str, wanted: str) -> bool:
    """Compare two texts except for white space, which annotation tools change."""
    return text == wanted or text.split() == wanted.replace("\\n", " ").split()


def decode_place(text: str, start: int, end: int, encoding: str, width: int) -> Place | None:
    """Convert offsets in code units of an encoding to characters; None if they split a
    character."""
    encoded = text.encode(encoding)
    try:
        first = len(encoded[: start * width].decode(encoding))
        return first, first + len(encoded[start * width : end * width].decode(encoding))
    except UnicodeDecodeError:
        return None


# --- tags of tokens


def set_tags(doc: Doc, value: Any) -> None:
    """Set `token.tag_` from a list, or `tag`, `pos` and `morph` from a dict of lists.

    Each list has one string per token, "" if the token is not annotated. Raises ValueError for any
    other value.
    """
    for attr, tags in (value if isinstance(value, dict) else {"tag": value}).items():
        if attr not in ("tag", "pos", "morph"):
            raise ValueError(f"unknown kind of tags, use tag, pos or morph: {attr!r}")
        if len(check_list("tags", tags)) != len(doc):
            raise ValueError(f"wrong number of tags: {len(tags)} for {len(doc)} tokens")
        for token, tag in zip(doc, tags, strict=True):
            if not isinstance(tag, str):
                raise ValueError(f"tag is not a string: {tag!r}")
            if attr == "morph":
                token.set_morph(tag)  # type: ignore[attr-defined]
            elif tag:
                try:
                    setattr(token, f"{attr}_", tag)
                except (KeyError, ValueError):
                    raise ValueError(f"not a universal part of speech: {tag!r}") from None


# --- second texts


def read_hypotheses(values: Any) -> tuple[list[str], list[dict[str, Any] | None]]:
    """Read a list of `{"text": "…", "label": "…"}`, or of texts, which stay unannotated.

    Returns the texts and their entries of `doc._.nli`, None for one without a label.
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
    """Return the label of a pair in lower case, so that SICK, SNLI and MNLI can be combined.

    Raises ValueError for "-" (the annotators did not agree) and for numbers.
    """
    text = check_text("label", label).strip().lower()
    if text == "-":
        raise ValueError("no consensus on the label")
    if text.removeprefix("-").replace(".", "", 1).isdecimal():
        # The order of numeric labels differs between data sets.
        raise ValueError(f"label is a number, name the labels in order with --labels: {label!r}")
    return text


def read_questions(values: Any, doc: Doc) -> list[Question]:
    """Read a list of questions; see `read_question`."""
    text = doc.text
    return [
        value if isinstance(value, Question) else read_question(value, text)
        for value in check_list("questions", values)
    ]


def read_question(value: Any, text: str) -> Question:
    """Read `{"question": "…", "answers": [{"text": "…", "start": 0}]}`.

    The first accepted answer is the primary one. An empty list, or SQuAD's `is_impossible`, means
    that there is no answer. Without `answers`, or if the value is a string, the question stays
    unannotated. If only some answers can't be found, they are skipped.

    Raises ValueError if no answer is found in the text, or if all places are ambiguous.
    """
    match value:
        case {"question": question}:
            answers, is_impossible = value.get("answers"), value.get("is_impossible") is True
        case _:
            question, answers, is_impossible = value, None, False
    question, notes = check_text("question", question), Notes()
    if is_impossible:
        if answers:
            notes.add("answers not read, because is_impossible is true", repr(question))
        answers = []
    if answers is None:
        return Question(question, None, notes)
    places: dict[Place, None] = {}
    fault: ValueError | None = None
    for answer in check_list("answers", answers):
        try:
            start, end, is_fixed = find_answer(answer, text)
        except ValueError as error:
            kind, _, detail = str(error).partition(": ")
            notes.add(f"answers skipped, {kind}", detail)
            fault = error
            continue
        places[start, end] = None
        if is_fixed:
            notes.add("answers located by their text, offsets corrected", repr(text[start:end]))
    if fault is not None and not places:
        raise fault
    return Question(question, list(places), notes)


def find_answer(value: Any, doc_text: str) -> tuple[int, int, bool]:
    """Locate `{"text": "…", "start": 0}`, or SQuAD's `answer_start`, without surrounding white
    space. If it is not at its offset, it must occur exactly once in the text.

    Returns the first character, the one after the last, and whether the offset was corrected.
    Raises ValueError if the answer is not found, or found more than once.
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
    # An answer may be unique with its white space and ambiguous without it.
    for wanted, shift in ((text, margin), (bare, 0)):
        place = doc_text.find(wanted)
        if place >= 0 and place == doc_text.rfind(wanted):
            return place + shift, place + shift + len(bare), True
    if bare in doc_text:
        raise ValueError(f"answer found more than once, and not at its offset: {text!r}")
    raise ValueError(f"answer not found in the context: {text!r}")


def set_questions(doc: Doc, questions: list[Question], settings: Settings) -> None:
    """Set questions and their gold answers on a Doc."""
    text = doc.text  # spaCy would rebuild it for every answer
    entries: list[dict[str, Any] | None] = []
    for question in questions:
        settings.notes.update(question.notes)
        if question.places is None:
            entries.append(None)
            continue
        places = question.places or [(0, 0)]
        first, *others = [make_answer(doc, *place, doc_text=text) for place in places]
        entries.append(first | {"alternatives": others})
    set_value("questions", doc, [question.text for question in questions])
    set_value("answers", doc, entries)
