"""Read rows with two texts: premise and hypothesis, texts to compare, context and question."""

from collections.abc import Iterable, Iterator
from typing import Any

from ..heads.regression import finite
from .annotations import read_question, read_verdict
from .columns import Cells, NoColumns, find_column, list_columns, parse_number
from .records import Options, Record, Rejected, check_text

MAX_PAIRS = 32  # of one Doc


def pair_columns(columns: Iterable[str], options: Options) -> tuple[str, str] | None:
    """Return the columns of two texts, None if the row has a single text.

    Pairs are recognised by their column names; if there is also a column for a single text, both
    columns must have been named by the user.
    """
    columns = list(columns)
    premise = find_column(columns, "premise", options.premise_column)
    hypothesis = find_column(columns, "hypothesis", options.hypothesis_column)
    is_named = {options.premise_column, options.hypothesis_column} <= options.named_columns()
    if premise is not None and hypothesis is not None and premise != hypothesis:
        return (premise, hypothesis) if is_named or options.text_column not in columns else None
    if is_named:
        names = list_columns(columns)
        raise NoColumns(f"no columns named by --premise-column and --hypothesis-column: {names}")
    return None


def read_pair(cells: Cells, premise: str, hypothesis: str) -> Record:
    """Read two texts with a label, a score, or both.

    The score is read if there is no label column, or if the user set --score-column.
    """
    columns, options = cells.row.cells, cells.options
    label = find_column(columns, "label", options.label_column)
    label = None if label in (premise, hypothesis) else label
    score = None
    if label is None or options.score_column in options.named_columns():
        score = find_column(columns, "score", options.score_column)
        if score is None:
            kind = "label" if label is None else "score"
            names = list_columns(columns)
            more = "; for a number, use --score-column" if label is None else ""
            raise NoColumns(
                f"no column for the {kind}, name it with --{kind}-column: {names}{more}"
            )
    text = check_text("premise", cells.take_text(premise))
    second = check_text("hypothesis", cells.take_text(hypothesis))
    values: dict[str, Any] = {}
    if label is not None:
        values["hypotheses"] = [{"text": second, "label": read_verdict(cells.take_label(label))}]
    if score is not None:
        number = finite(score, parse_number(cells.take(score)))
        values["similarities"] = [{"text": second, "scores": {score: number}}]
    return Record(cells.row.where, text, values=values, is_pair=True)


def read_flat_squad(cells: Cells) -> Record:
    """Read a question with its context, in the format of Hugging Face's SQuAD rows."""
    context = check_text("context", cells.take_text("context"))
    entry: dict[str, Any] = {"question": cells.take_text("question")}
    if "is_impossible" in cells:
        entry["is_impossible"] = cells.take("is_impossible")
    answers = cells.take("answers")
    if isinstance(answers, dict):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            raise ValueError(f"not answers: {answers!r}")
        answers = [{"text": t, "start": s} for t, s in zip(texts, starts, strict=True)]
    question = read_question(entry | {"answers": answers}, context)
    return Record(cells.row.where, context, values={"questions": [question]}, is_pair=True)


def join_pairs(records: Iterable[Record | Rejected]) -> Iterator[Record | Rejected]:
    """Merge consecutive pairs with the same first text into records of at most MAX_PAIRS pairs, so
    that the text is stored once. Rejected records in between don't separate them."""
    last: Record | None = None
    for record in records:
        if isinstance(record, Rejected):
            yield record
            continue
        if (
            last is not None
            and record.is_pair
            and (record.text, record.values.keys()) == (last.text, last.values.keys())
            and last.size < MAX_PAIRS
        ):
            for key, value in record.values.items():
                last.values[key] += value
            last.size += 1
            continue
        if last is not None:
            yield last
        last = record if record.is_pair else None
        if last is None:
            yield record
    if last is not None:
        yield last
