"""SQuAD 1.1 and 2.0: paragraphs with questions."""

from collections.abc import Iterable, Iterator
from typing import Any

from spacy.tokens import Doc

from .annotations import Question, make_doc, read_question, set_questions
from .records import Refused, Settings, attempt, read_json


def read_squad(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read a Doc for each paragraph, with all of its questions that can be read.

    The file is one JSON object and is held in memory as a whole. Questions are rejected one by one
    and named by their id; a bad context rejects each of its questions. Plausible answers
    (SQuAD 2.0) are ignored.
    """
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
    """Yield all objects at the end of a path of keys, each of which holds a list of objects."""
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
    """Make a Doc of a context, after its rejected questions. There is none without a good one."""
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
