"""Values of our extensions in `doc.user_data`, under the keys that spaCy's extensions use.

Reading a value never writes to the Doc, but changing the returned value does: a list or dict that
is not stored in this form is a draft, which is stored when it is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from spacy.tokens import Doc


def get_value(name: str, doc: Doc) -> Any:
    """Get an extension's value that can't be changed in place, None if there is none."""
    return values_of(doc).get(key_of(name))


def get_list(name: str, doc: Doc) -> list:
    """Get an extension's list without writing to the Doc.

    It is the stored list, so that appending to it works. If there is none, or a tuple, into which
    `DocBin` turns lists, it is a draft: a list that is stored in the Doc when it is changed.
    """
    stored = values_of(doc).get(key_of(name), ())
    return Draft(doc, name, stored).value if isinstance(stored, tuple) else stored


def copy_of_list(name: str, doc: Doc) -> list:
    """Return a copy of an extension's list, [] if there is none."""
    return to_lists(values_of(doc).get(key_of(name), []))


def get_dict(name: str, doc: Doc) -> dict[str, Any]:
    """Get an extension's dict without writing to the Doc, as `get_list` does."""
    stored = values_of(doc).get(key_of(name))
    return Draft(doc, name, {}).value if stored is None else stored


def copy_of_dict(name: str, doc: Doc) -> dict[str, Any]:
    """Return a copy of an extension's dict, {} if there is none. Raises ValueError if the value is
    not a dict."""
    value = values_of(doc).get(key_of(name), {})
    if not isinstance(value, dict):
        raise ValueError(f"doc._.{name} must be a dict, not {show(value)}.")
    return dict(value)


def set_value(name: str, doc: Doc, value: Any) -> None:
    """Set an extension's value. Components validate it when they use it."""
    if isinstance(value, _Drafted):
        value.draft.doc = None  # stored now
    values_of(doc)[key_of(name)] = value


def values_of(doc: Doc) -> dict[Any, Any]:
    if doc.user_data is None:  # a user may have set it to None
        doc.user_data = {}
    return doc.user_data


def key_of(name: str) -> tuple:
    return ("._.", name, None, None)


def to_lists(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [to_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: to_lists(item) for key, item in value.items()}
    return value


def show(value: Any) -> str:
    """Format a value for a message, with at most 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


class Draft:
    """A value that is stored in the Doc when it, or something in it, is changed."""

    def __init__(self, doc: Doc, name: str, content: Any) -> None:
        self.doc: Doc | None = doc
        self.name, self.before = name, values_of(doc).get(key_of(name))
        self.value = self._draft(content)

    def _draft(self, value: Any) -> Any:
        copied: Any = value
        if isinstance(value, (list, tuple)):
            copied = _DraftedList(map(self._draft, value))
        elif isinstance(value, dict):
            copied = _DraftedDict((key, self._draft(item)) for key, item in value.items())
        if copied is not value:
            copied.draft = self
        return copied

    def store(self) -> None:
        """Store the value in the Doc, once. Raises RuntimeError if the Doc has another value by
        now, which must not be overwritten."""
        if self.doc is None:
            return
        kept, key = values_of(self.doc), key_of(self.name)
        if kept.get(key) is not self.before:
            raise RuntimeError(
                f"doc._.{self.name} was set after it was read here. Read it again to change it."
            )
        kept[key], self.doc = self.value, None


class _Drafted:
    """A mixin for the lists and dicts of a draft. Copies and pickles are plain lists and dicts."""

    draft: Draft

    def __reduce_ex__(self, protocol: Any) -> tuple:
        plain: Any = list if isinstance(self, list) else dict
        return plain, (plain(self),)


class _DraftedList(_Drafted, list):
    pass


class _DraftedDict(_Drafted, dict):
    pass


def _storing(change: Callable) -> Callable:
    @wraps(change)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = change(self, *args, **kwargs)
        self.draft.store()
        return result

    return method


for _owner, _plain in ((_DraftedList, list), (_DraftedDict, dict)):
    for _name in (
        *("__setitem__", "__delitem__", "__iadd__", "__imul__", "__ior__", "append", "clear"),
        *("extend", "insert", "pop", "popitem", "remove", "reverse", "setdefault", "sort"),
        "update",
    ):
        if hasattr(_plain, _name):
            setattr(_owner, _name, _storing(getattr(_plain, _name)))
