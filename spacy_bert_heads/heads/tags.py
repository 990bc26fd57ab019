"""The tags of entities: schemes, and what checkpoints call them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from ..text.arrays import Bools1d, Ints1d

# The tags of each scheme, by what spaCy's aligned gold tags, which are BILUO, are called in it. The
# last three are for checkpoints: in IOB and IOBES (BILOU otherwise) an entity may begin and end
# with any tag; IO has no way to part two neighbours.
BIO = {"B": "B", "I": "I", "L": "I", "U": "B"}
BILOU = {"B": "B", "I": "I", "L": "L", "U": "U"}
IO = {"B": "I", "I": "I", "L": "I", "U": "I"}
SCHEMES = {"BIO": BIO, "BILOU": BILOU, "IOB": BIO, "IOBES": BILOU, "IO": IO}
STRICT_SCHEMES = ("BIO", "BILOU")
# For each mark the others, the most like it first: what begins or ends where it does.
_NEAREST = {"B": "BUIL", "I": "ILBU", "L": "LUIB", "U": "UBLI"}


class Tags(NamedTuple):
    """The classes of a tagger of entities, in our terms."""

    scheme: str
    labels: list[str]
    classes: list[int]  # of the checkpoint, for each of our tags; -1 for one that it lacks

    def nearest_classes(self) -> list[int]:
        """Give the classes once more, with that of another tag of the label for one that the
        checkpoint lacks."""
        marks = list(dict.fromkeys(SCHEMES[self.scheme].values()))
        nearest = [self.classes[0]]
        for start in range(1, len(self.classes), len(marks)):
            own = dict(zip(marks, self.classes[start : start + len(marks)], strict=True))
            for mark in marks:
                found = (own[other] for other in _NEAREST[mark] if own.get(other, -1) >= 0)
                nearest.append(next(found))
        return nearest


def read_tags(names: Sequence[str]) -> Tags:
    """Find the scheme of a checkpoint's tags. M, E and S are other names of I, L and U. A plain
    label has no mark of its beginning; marks without a label are of entities that have none.

    names (Sequence[str]): The checkpoint's classes.
    RETURNS (Tags): The scheme, the labels and where each of our tags is among the classes.
    RAISES (ValueError): If no class is "O", for tokens of no entity, or two are the same tag.
    """
    if "O" not in names:
        raise ValueError(
            f'No class is "O", for tokens of no entity, but: {", ".join(names)}. Give labels, or '
            'task="tagger".'
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
        scheme = "IOBES"  # an entity that has to end with a tag that is lacking would have no path
    return Tags(scheme, labels, [names.index("O"), *classes])


def _split_tag(name: str) -> tuple[str, str]:
    marked = re.fullmatch(r"([BIMESLU])[-_](.+)", name)
    return (marked[1], marked[2]) if marked else ("I", name)


class Layout(NamedTuple):
    """Where the tags of each kind are among the classes, label after label.

    Every transition follows from the kinds, so that no table of tag against tag is needed: a tag
    that goes on (I, L) comes after one of the same label that is open (B, I); any other tag comes
    after one that is not open, or, where no tag marks an end, after any.
    """

    outside: int
    begin: Ints1d  # (n_labels,)
    inside: Ints1d  # (n_labels,) of labels that have one
    last: Ints1d  # (n_labels,) BILOU alone, else empty
    label: Ints1d  # (n_tags,) the number of a tag's label, -1 for "O"
    goes_on: Bools1d  # (n_tags,) I and L
    is_open: Bools1d  # (n_tags,) B and I
    ends: Bools1d  # (n_tags,) L and U
    closed: Ints1d  # tags that may come before one that doesn't go on, or at the end of a text
    inside_of: Ints1d  # (n_tags,) the I of a tag's label, the place of "O" without one

    @property
    def has_ends(self) -> bool:
        """Whether tags mark the end of an entity."""
        return len(self.last) > 0

    @staticmethod
    @cache
    def of(tags: tuple[str, ...]) -> Layout:
        """Sort the tags. In a layout of BIO or BILOU every label has all of its tags."""
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
        """Whether each tag may come after the one beside it in `before` (n,)."""
        continues = self.is_open[before] & (self.label[before] == self.label[tag])
        return np.where(self.goes_on[tag], continues, ~(self.is_open[before] & self.has_ends))
