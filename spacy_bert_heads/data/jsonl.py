"""JSONL: a text in each line, with any of our annotations. This is the project's own format."""

from collections.abc import Iterable, Iterator

from spacy.tokens import Doc

from ..heads.find import json_heads
from .annotations import make_doc
from .records import Refused, Settings, attempt, only_one, read_json


def read_jsonl(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read one object per line: a text, and optionally what heads are annotated with, under their
    `json_keys`. Without such a key the Doc stays unannotated; an empty list of entities says that
    there are none. Other keys are ignored."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield attempt(number, read_object, line, settings)


def read_object(line: str, settings: Settings) -> Doc:
    """Make a Doc of one line. Raises ValueError if something in it is malformed."""
    record = read_json(line)
    if record.get("answer") in ("reject", "ignore"):
        raise ValueError("rejected or ignored in Prodigy")
    columns = settings.text_names()
    annotations = {
        keys[0]: only_one(record, *(columns.get(key, key) for key in keys)) for keys in json_heads()
    }
    return make_doc(record.get(settings.text_column), settings, **annotations)
