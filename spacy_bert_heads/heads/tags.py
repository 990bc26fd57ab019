"""The tags of entities: schemes, and their names in checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from ..text.arrays import Bools1d, Ints1d

# The marks of each scheme for spaCy's BILUO tags. The last three are for checkpoints: IOB and IOBES
# are BIO and BILOU in which an entity may begin and end with any tag; IO can't separate two
# neighbours.
BIO = {"B": "B", "I": "I", "L": "I", "U": "B"}
BILOU = {"B": "B", "I": "I", "L": "L", "U": "U"}
IO = {"B": "I", "I": "I", "L": "I", "U": "I"}
SCHEMES = {"BIO": BIO, "BILOU": BILOU, "IOB": BIO, "IOBES": BILOU, "IO": IO}
STRICT_SCHEMES = ("BIO", "BILOU")
# For each mark the others, the most similar first: those that begin or end at the same place.
_NEAREST = {"B": "BUIL", "I": "ILBU", "L": "LUIB", "U": "UBLI"}


class Tags(NamedTuple):
    """The tags of a checkpoint, as ours."""

    scheme: str
    labels: list[str]
    classes: list[int]  # the checkpoint's class for each of our tags, -1 if it has none

    def nearest_classes(self) -> list[int]:
        """Return the classes, with that of the label's most similar tag for each tag that the
        checkpoint does not have."""
        marks = list(dict.fromkeys(SCHEMES[self.scheme].values()))
        nearest = [self.classes[0]]
        for start in range(1, len(self.classes), len(marks)):
            own = dict(zip(marks, self.classes[start : start + len(marks)], strict=True))
            for mark in marks:
                found = (own[other] for other in _NEAREST[mark] if own.get(other, -1) >= 0)
                nearest.append(next(found))
        return nearest


def read_tags(names: Sequence[str]) -> Tags:
    """Find the scheme and the labels of a checkpoint's tags, the names of its classes.

    M, E and S are other names of I, L and U. Labels without marks are scheme IO; marks without
    labels get the label ENTITY. Raises ValueError if no class is "O", or two are the same tag.
    """
    if "O" not in names:
        raise ValueError(
            'No class is "O", for tokens outside of entities. The classes are: '
            f'{", ".join(names)}. Give labels, or task="tagger".'
        )
    rest = [name for name in names if name != "O"]
    if all(re.fullmatch("[BIMESLU]", name) for name in rest):
        split = {name: (name, "ENTITY") for name in rest}
    elif any(re.match("[BI][-_].", name) for name in rest):
        split = {name: _split_tag(name) for name in rest}
    else:  # such as E-MAIL
        split = {name: ("I", name) for name in rest}
    found: dict[tuple[str, str], int] = {}
    for name, (mark, label) in split.items():
        tag = {"M": "I", "E": "L", "S": "U"}.get(mark, mark), label
        if tag in found:
            raise ValueError(f"'{name}' and '{names[found[tag]]}' are the same tag. Give labels.")
        found[tag] = names.index(name)
    marks = {mark for mark, _ in found}
    scheme = "IOB"
    if marks == {"I"}:
        scheme = "IO"
    elif marks & {"L", "U"}:
        scheme = "BILOU"
    labels = list(dict.fromkeys(label for _, label in found))
    ours = dict.fromkeys(SCHEMES[scheme].values())
    classes = [found.get((mark, label), -1) for label in labels for mark in ours]
    if scheme == "BILOU" and -1 in classes:
        scheme = "IOBES"  # with BILOU an entity could have to end with a tag that does not exist
    return Tags(scheme, labels, [names.index("O"), *classes])


def _split_tag(name: str) -> tuple[str, str]:
    marked = re.fullmatch(r"([BIMESLU])[-_](.+)", name)
    return (marked[1], marked[2]) if marked else ("I", name)


class Layout(NamedTuple):
    """The classes of the tags of each kind, label after label.

    Valid transitions follow from the kinds, so no table of all pairs of tags is needed: a tag that
    continues an entity (I, L) follows an open one (B, I) of the same label; any other tag follows
    one that is not open, or any tag in schemes that don't mark the end.
    """

    outside: int
    begin: Ints1d  # (num_labels,)
    inside: Ints1d  # (num_labels,) of labels that have one
    last: Ints1d  # (num_labels,) in BILOU, else empty
    label: Ints1d  # (num_tags,) the index of a tag's label, -1 for "O"
    goes_on: Bools1d  # (num_tags,) I and L
    is_open: Bools1d  # (num_tags,) B and I
    ends: Bools1d  # (num_tags,) L and U
    closed: Ints1d  # tags that may precede one that does not continue an entity, or end a text
    inside_of: Ints1d  # (num_tags,) the I of a tag's label; that of "O" if there is none

    @property
    def has_ends(self) -> bool:
        """Whether tags mark the end of an entity."""
        return len(self.last) > 0

    @staticmethod
    @cache
    def of(tags: tuple[str, ...]) -> Layout:
        """Make the layout of these classes. With BIO and BILOU every label has all of its tags."""
        outside = tags.index("O") if "O" in tags else 0
        marks = np.asarray([tag[0] if tag != "O" else "O" for tag in tags])
        labels = {
            label: i for i, label in enumerate(dict.fromkeys(t[2:] for t in tags if t != "O"))
        }
        label = np.asarray([labels[tag[2:]] if tag != "O" else -1 for tag in tags], dtype=np.int64)
        ends, is_open = np.isin(marks, ("L", "U")), np.isin(marks, ("B", "I"))
        inside = np.flatnonzero(marks == "I")
        inside_of_label = np.full(len(labels) + 1, outside)  # the last one is for "O"
        inside_of_label[label[inside]] = inside
        return Layout(
            outside=outside,
            begin=np.flatnonzero(marks == "B"),
            inside=inside,
            last=np.flatnonzero(marks == "L"),
            label=label,
            goes_on=np.isin(marks, ("I", "L")),
            is_open=is_open,
            ends=ends,
            closed=np.flatnonzero(~is_open) if ends.any() else np.arange(len(tags)),
            inside_of=inside_of_label[label],
        )

    def may_follow(self, before: Ints1d, tag: Ints1d) -> Bools1d:
        """Return whether each tag may follow the one in `before` (n,)."""
        continues = self.is_open[before] & (self.label[before] == self.label[tag])
        return np.where(self.goes_on[tag], continues, ~(self.is_open[before] & self.has_ends))
