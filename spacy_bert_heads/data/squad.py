"""Read SQuAD 1.1 and 2.0: paragraphs with questions."""

from collections.abc import Iterator
from typing import Any

from .annotations import Question, read_question
from .files import File
from .records import Options, Record, Rejected, attempt, check_text, is_utf8, parse_json


def read_squad(file: File, options: Options) -> Iterator[Record | Rejected]:
    """Yield a record for each paragraph, with all of its questions that can be read.

    The file is one JSON object, or an array of articles or paragraphs, and is loaded into memory as
    a whole. Questions are rejected one by one and named by their id; a bad context rejects all of
    its questions. Plausible answers (SQuAD 2.0) are ignored. The paragraphs of an article are one
    group.
    """
    text = file.text()
    squad = attempt("", parse_json, text)
    if isinstance(squad, Rejected):
        yield squad
    elif not isinstance(squad, dict | list) or not is_utf8(text):
        yield Rejected("", "not a JSON object or array in UTF-8")
    else:
        data = {"data": squad} if isinstance(squad, list) else squad
        articles = walk(data, "data") if "data" in data else iter([data])
        for number, article in enumerate(articles):
            is_paragraph = isinstance(article, dict) and "qas" in article
            for paragraph in [article] if is_paragraph else walk(article, "paragraphs"):
                if isinstance(paragraph, Rejected):
                    yield paragraph
                else:
                    yield from read_paragraph(paragraph, group=str(number))


def walk(value: Any, *keys: str) -> Iterator[dict[str, Any] | Rejected]:
    """Yield all objects at the end of a path of keys; each key has a list of objects."""
    if isinstance(value, Rejected):
        yield value
    elif not isinstance(value, dict):
        yield Rejected("", f"not SQuAD: {type(value).__name__} instead of an object")
    elif not keys:
        yield value
    elif not isinstance(value.get(keys[0]), list):
        yield Rejected("", f"not SQuAD: an object without a list of {keys[0]}")
    else:
        for item in value[keys[0]]:
            yield from walk(item, *keys[1:])


def read_paragraph(paragraph: dict[str, Any], *, group: str) -> Iterator[Record | Rejected]:
    """Yield the rejected questions of a paragraph, then its record if a valid question is left."""
    context = attempt("", check_text, "text", paragraph.get("context"))
    questions: list[Question] = []
    if paragraph.get("qas") == []:
        yield Rejected("", f"no questions: {paragraph.get('context')!r}")
    for entry in walk(paragraph, "qas"):
        if isinstance(entry, Rejected):
            yield entry
            continue
        question: Question | Rejected
        if isinstance(context, Rejected):
            question = context
        else:
            question = attempt("", read_question, entry, context)
        if isinstance(question, Rejected):
            name = entry.get("id", entry.get("question"))
            yield Rejected("", f"{question.reason.partition(':')[0]}: {name!r}")
        else:
            questions.append(question)
    if questions:
        yield Record("", context, values={"questions": questions}, size=len(questions), group=group)
