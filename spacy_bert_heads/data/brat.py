"""Read brat's stand-off annotations: a text file, and its entities in an `.ann` file."""

import re
from collections.abc import Iterator

from .files import File
from .records import Options, Record, Rejected

ENTITY = re.compile(r"T\d+\t(\S+) (\d+ \d+(?:;\d+ \d+)*)\t(.*)")


def read_brat(file: File, options: Options) -> Iterator[Record | Rejected]:
    """Yield the record of a document. A discontinuous entity is read from its first character to
    its last. Relations, events and attributes are not read."""
    text = File(file.path.with_suffix(".txt"))
    if not text.path.exists():
        yield Rejected("", f"no text file next to it: {text.path.name}")
        return
    record = Record("", text.text(), values={"spans": []})
    for number, line in enumerate(File(file.annotations).lines(), 1):
        line = line.rstrip("\r\n")
        if not line.startswith("T"):
            if line.strip():
                record.notes.add("annotations of brat that were not read", line.partition("\t")[0])
            continue
        entity = ENTITY.fullmatch(line)
        if entity is None:
            yield Rejected(f":{number}", f"not an entity of brat: {line!r}")
            return
        label, places, surface = entity.groups()
        numbers = [int(one) for one in re.split("[ ;]", places)]
        span = {"start": min(numbers), "end": max(numbers), "label": label}
        if len(numbers) > 2:
            record.notes.add(
                "discontinuous entities, read from the first to the last character", surface
            )
        else:
            span["text"] = surface
        record.values["spans"].append(span)
    yield record
