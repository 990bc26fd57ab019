"""Read rows of multiple choice: a text, an optional question, and options, one of them correct
(COPA, CODAH, SWAG, HellaSwag, RACE)."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from .columns import Cells, NoColumns, find_column, list_columns
from .records import Options, Record, check_text, parse_cell

OPTION = re.compile(r"(choice|ending|option|answer)[ _]?[0-9a-e]", re.IGNORECASE)
LISTS = ("options", "endings", "choices")
TEXTS = ("premise", "article", "passage", "context", "ctx", "sent1", "prompt")
QUESTIONS = ("question", "sent2")
ANSWERS = ("label", "answer", "answerKey", "answer_key")
# The questions of COPA (Roemmele et al. 2011).
ASKED = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def choice_columns(columns: dict[str, Any], options: Options) -> list[str]:
    """Return the columns of the options: those that the user named, those with a typical name, or
    one with a list of texts. The list is empty if the row is not a choice."""
    if options.option_columns:
        missing = [name for name in options.option_columns if name not in columns]
        if missing:
            there = list_columns(columns)
            raise NoColumns(f"no column named by --option-columns: {', '.join(missing)}, {there}")
        return list(options.option_columns)
    if not any(name in columns for name in (options.label_column, *ANSWERS)):
        return []
    numbered = [name for name in columns if OPTION.fullmatch(name)]
    if len(numbered) > 1:
        return numbered
    return [name for name in LISTS if _is_list_of_texts(parse_cell(columns.get(name)))][:1]


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(x, str) for x in value)


def read_choice(cells: Cells, columns: Sequence[str]) -> Record:
    """Read a text with its options and the correct one, given by its number, its letter or its
    text. Numbers count from 1 if one is that of the last option, and none is 0."""
    given, options = cells.row.cells, cells.options
    texts = list_options([cells.take(name) for name in columns])
    texts = [check_text("option", text) for text in texts]
    left = [name for name in given if name not in columns]
    text = find_column(left, "text", options.text_column)
    text = text or next((name for name in TEXTS if name in left), None)
    if text is None:
        raise NoColumns(f"no text column, name it with --text-column: {list_columns(given)}")
    question = next((name for name in QUESTIONS if name in left and name != text), None)
    answer = answer_column([name for name in left if name != text], options)
    asked = cells.take(question) if question else None
    first = int(counts_from_1(cells.facts.answers))
    choice = {
        "question": ASKED.get(str(asked), asked or ""),
        "options": texts,
        "answer": read_answer(cells.take(answer) if answer else None, texts, first=first),
    }
    record = Record(cells.row.where, check_text("text", cells.take_text(text)), is_pair=True)
    record.values["choices"] = [choice]
    if first and choice["answer"] is not None:
        record.notes.add("answers counted from 1, because the last option of a text has its number")
    return record


def numbered_answer(columns: dict[str, Any], options: Options) -> tuple[int, int] | None:
    """Return the number that a row gives the correct option, and the number of its options. None
    if it is not a choice, or does not give a number."""
    if not {*options.option_columns} <= columns.keys():
        return None
    names = choice_columns(columns, options)
    answer = answer_column([name for name in columns if name not in names], options)
    value: Any = columns.get(answer or "")
    is_number = type(value) is int or (isinstance(value, str) and value.strip().isdecimal())
    texts = list_options([parse_cell(columns[name]) for name in names])
    return (int(value), len(texts)) if is_number and names and value not in texts else None


def counts_from_1(answers: Collection[tuple[int, int]]) -> bool:
    """Check whether a file counts options from 1: what `numbered_answer` returned for its rows has
    the last option's number, and no 0."""
    return any(number == n for number, n in answers) and all(number for number, _ in answers)


def list_options(found: list[Any]) -> list[Any]:
    """Return the options, from their columns or from the only one, which has a list."""
    return found[0] if len(found) == 1 and isinstance(found[0], list) else found


def answer_column(columns: Sequence[str], options: Options) -> str | None:
    """Return the column of the correct option, None if there is none."""
    return next((name for name in (options.label_column, *ANSWERS) if name in columns), None)


def read_answer(value: Any, options: Sequence[str], *, first: int = 0) -> int | None:
    """Return the number of the correct option, from 0; None if it is not annotated. `first` is the
    number that the file gives the first option. Raises ValueError if there is no such option."""
    if value is None or value == "" or value in (-1, "-1"):
        return None
    number = value - first if type(value) is int else value
    if isinstance(value, str):
        letter = value.strip().upper()
        if value in options:
            number = options.index(value)
        elif value.strip().isdecimal():
            number = int(value) - first
        elif len(letter) == 1 and letter.isascii() and letter.isalpha():
            number = ord(letter) - ord("A")
    if type(number) is not int or not 0 <= number < len(options):
        raise ValueError(
            f"answer is not the number (from {first}), letter or text of an option: {value!r}"
        )
    return number
