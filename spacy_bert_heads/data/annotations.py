"""From the plain values of a record to an annotated Doc."""

from dataclasses import replace
from typing import Any, NamedTuple

from spacy.tokens import Doc, Span

from ..heads.find import json_heads
from ..text.doc_data import make_answer, make_verdict
from ..text.user_data import set_value
from .records import Settings, check_list, check_text, only_one


class Question(NamedTuple):
    """A question, its entry of `doc._.answers`, and how many of its offsets were corrected."""

    text: str
    answer: dict[str, Any] | None
    mended: int


def make_doc(text: Any, settings: Settings, **annotations: Any) -> Doc:
    """Tokenize a text and set the annotations that are given.

    Each has the name and the value of the project's JSONL, `label`, `spans` and so on: the first of
    the `json_keys` of a head, whose `read_json` sets it. None is no annotation.

    Adds labels and corrected offsets to `settings`. Raises ValueError if a value is malformed;
    `settings` is then unchanged.
    """
    text = check_text("text", text, longest=settings.nlp.max_length)
    doc = settings.nlp.make_doc(text)
    found = replace(settings, labels=set(settings.labels))
    for keys, head in json_heads().items():
        if annotations.get(keys[0]) is not None:
            head.read_json(doc, annotations[keys[0]], found)
    settings.labels.update(found.labels)
    settings.mended = found.mended
    return doc


def read_labels(value: Any, settings: Settings) -> dict[str, float]:
    """Read the value of `doc.cats`, or a string or a list of the positive categories: the other
    categories of the file are then negative."""
    if isinstance(value, dict):
        cats = {check_text("label", label): number for label, number in value.items()}
        if not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in cats.values()):
            raise ValueError(f"cats are not between 0 and 1: {value}")
        return cats
    labels = value if isinstance(value, list) else [value]
    positive = {check_text("label", label).strip() for label in labels}
    settings.labels.update(positive)
    return {label: float(label in positive) for label in sorted(settings.labels)}


def read_spans(values: Any, doc: Doc) -> list[Span]:
    """Read `{"start": 0, "end": 4, "label": "X"}`, doccano's `start_offset` and `end_offset`, or
    `[0, 4, "X"]`, in any order. Raises ValueError if a span is not made of whole tokens, or if two
    overlap."""
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
    """Read a list of `{"text": "…", "label": "…"}`, or of texts alone, which stay unannotated.

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
    """Read the label of a pair, in lower case, so that SICK, SNLI and MNLI can be mixed.

    Raises ValueError for "-" (the annotators did not agree) and for numbers.
    """
    text = check_text("label", label).strip().lower()
    if text == "-":
        raise ValueError("no consensus on the label")
    if text.removeprefix("-").isdecimal():
        # Which number is which label differs between data sets.
        raise ValueError(f"label is a number, write its name instead: {label!r}")
    return text


def read_questions(values: Any, doc: Doc) -> list[Question]:
    """Read a list of questions, see `read_question`."""
    doc_text = doc.text
    return [read_question(value, doc, doc_text) for value in check_list("questions", values)]


def read_question(value: Any, doc: Doc, doc_text: str) -> Question:
    """Read `{"question": "…", "answers": [{"text": "…", "start": 0}]}`.

    The first accepted answer is the primary one. An empty list, or SQuAD's `is_impossible`, says
    that there is no answer. Without the key, or as a text alone, the question stays unannotated.
    `doc_text` is `doc.text`, which spaCy would otherwise rebuild for every question.

    Raises ValueError if an answer is not in the text, or its place is ambiguous.
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
    # With its white space an answer may occur once, and without it several times.
    for wanted, shift in ((text, margin), (bare, 0)):
        place = doc_text.find(wanted)
        if place >= 0 and place == doc_text.rfind(wanted):
            return place + shift, place + shift + len(bare), True
    if bare in doc_text:
        raise ValueError(f"answer found more than once, and not at its offset: {text!r}")
    raise ValueError(f"answer not found in the context: {text!r}")


def set_questions(doc: Doc, questions: list[Question], settings: Settings) -> None:
    """Set questions and answers on a Doc that is kept, and count the corrected offsets."""
    set_value("questions", doc, [question.text for question in questions])
    set_value("answers", doc, [question.answer for question in questions])
    settings.mended += sum(question.mended for question in questions)
