"""JSONL: a text in each line, with any of our annotations. This is the project's own format."""

from collections.abc import Iterable, Iterator

from spacy.tokens import Doc

from .annotations import make_doc
from .records import Refused, Settings, attempt, only_one, read_json


def read_jsonl(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read one object per line: a text, and optionally categories (`label`, `labels` or `cats`),
    entities (`spans` or `entities`), `hypotheses` and `questions`. Without the key, entities stay
    unannotated; an empty list says that there are none. Other keys are ignored."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield attempt(number, read_object, line, settings)


def read_object(line: str, settings: Settings) -> Doc:
    """Make a Doc of one line. Raises ValueError if something in it is malformed."""
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
