"""Detect the layout of text files, and split their lines into documents.

paragraphs  blank lines between documents, whose lines are running text
sentences   one sentence per line, blank lines between documents (google-research/bert)
lines       one document per line (run_mlm.py --line_by_line, fastText, Leipzig)
wikitext    a document from ` = Title = ` to the next; headings are skipped (WikiText)
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from typing import BinaryIO

import numpy as np

from ..text.arrays import Ints1d

LAYOUTS = {
    "paragraphs": "text between blank lines",
    "sentences": "sentences on lines between blank lines",
    "lines": "lines",
    "wikitext": "articles of WikiText",
}
MAX_BYTES = 2**26  # of one record
HEAD = 2**18  # bytes from which the layout of a file is detected

TITLE = re.compile(rb"\s*= [^=].* =\s*")
HEADING = re.compile(rb"\s*= .* =\s*")
# A sentence that ends before the end of a line: punctuation, and a capital letter (or none, in
# scripts that have no capitals).
NEXT_SENTENCE = re.compile(r"[.!?][\"'”’)\]]*\s+[\"'“‘(\[]*([^\W\d_])|[。！？]+(\w)")

Lines = Iterable[tuple[int, bytes]]


def read_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines with their line endings. A line longer than `MAX_BYTES` is yielded in
    parts with the same number, split after a space if there is one, never inside a character."""
    number, whole, rest = 0, True, b""
    while line := stream.readline(MAX_BYTES):
        if number == 0:
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise ValueError("it is UTF-16, save it as UTF-8")
            line = line.removeprefix(codecs.BOM_UTF8)
        number += whole
        line, rest = rest + line, b""
        whole = line.endswith(b"\n")
        if not whole and len(line) >= MAX_BYTES:
            end = line.rfind(b" ") + 1
            if end == 0:
                end = len(line) - 1
                while end > 1 and line[end] & 0xC0 == 0x80:
                    end -= 1
            line, rest = line[:end], line[end:]
        yield number, line
    if rest:
        yield number, rest


def split_documents(lines: Lines, layout: str) -> Iterator[tuple[int, str, bytes]]:
    """Yield the documents of a text file: the number of the first line, the layout, and the
    content.

    A document ends at the latest with the line at which it reaches `MAX_BYTES`. `layout` is one of
    `LAYOUTS`, or "auto" to detect it from the first `HEAD` bytes.
    """
    lines = iter(lines)
    head, size = [], 0
    while layout == "auto" and size < HEAD and (line := next(lines, None)):
        head.append(line)
        size += len(line[1])
    if layout == "auto":
        layout = find_layout(b"".join(line for _, line in head).decode("utf8", "replace"))
    lines = chain(head, lines)
    documents: Lines
    if layout == "lines":
        documents = (line for line in lines if line[1].strip())
    elif layout == "wikitext":
        documents = _join(lines, TITLE.fullmatch, left_out=HEADING.fullmatch)
    else:
        documents = _join(lines, bytes.isspace, left_out=bytes.isspace)
    for number, content in documents:
        yield number, layout, content


def find_lines(text: str) -> Ints1d:
    """Return the first character of each line, an int64 array (num_lines,)."""
    return np.array([0, *(match.end() for match in re.finditer("\n", text))], dtype=np.int64)


def find_layout(text: str) -> str:
    """Detect the layout of a text file from its first lines.

    Notes
    -----
    If lines end inside sentences, they are wrapped running text ("paragraphs"). Otherwise, without
    blank lines, each line is a document; with blank lines, each line is a sentence if few lines
    contain several sentences. Blocks of one line are paragraphs. One document with a sentence per
    line can't be distinguished from one document per line; users must set `text.format` then.
    """
    lines = [line.strip() for line in text.split("\n")]
    if any(TITLE.fullmatch(line.encode()) for line in lines):
        return "wikitext"
    breaks = [(a, b) for a, b in pairwise(lines) if a and b]
    if not breaks or sum(_is_wrapped(*both) for both in breaks) > len(breaks) / 5:
        return "paragraphs"
    filled = [line for line in lines if line]
    if "" not in "\n".join(lines).strip().split("\n"):
        return "lines"
    several = sum(any(map(_is_capital, NEXT_SENTENCE.finditer(line))) for line in filled)
    return "sentences" if several < len(filled) / 3 else "paragraphs"


def _is_wrapped(line: str, following: str) -> bool:
    """Check whether a sentence continues in the following line: there is neither punctuation nor a
    capital letter between them."""
    goes_on = line[-1].isalnum() or line[-1] in ",;-–—"
    return goes_on and following[0].isalpha() and not following[0].isupper()


def _is_capital(match: re.Match[str]) -> bool:
    letter = match[1] or match[2]
    return not letter.islower()


def _join(
    lines: Lines, is_border: Callable[[bytes], object], *, left_out: Callable[[bytes], object]
) -> Iterator[tuple[int, bytes]]:
    """Join the lines between borders into documents, without the lines that `left_out` matches."""
    first, size = 0, 0
    document: list[bytes] = []
    for number, line in lines:
        if not left_out(line) and (document or line.strip()):
            first = first if document else number
            document.append(line)
            size += len(line)
        if document and (size >= MAX_BYTES or is_border(line)):
            yield first, b"".join(document)
            document, size = [], 0
    if document:
        yield first, b"".join(document)
