"""The registered heads: ours, and those of other packages whose factories spaCy finds."""

from collections.abc import Callable
from functools import cache
from typing import Any

from spacy.tokens import Doc
from spacy.util import registry

from ..text.doc_data import inputs_of
from ..text.user_data import copy_of_list, set_value
from .declared import Score
from .head import BertHead

# What spaCy's own components learn from, apart from entities, categories and spans.
OF_SPACY = ("TAG", "POS", "MORPH", "LEMMA", "DEP", "SENT_START", "ENT_KB_ID")


@cache
def _load_factories() -> None:
    # As Language.__init__ does. Entry points don't change while a process runs.
    registry._entry_point_factories.get_all()


def head_classes() -> dict[str, type[BertHead]]:
    """Find all heads, by their factories' names without "bert_", in alphabetical order."""
    _load_factories()
    classes: list[type[BertHead]] = [BertHead]
    for cls in classes:  # which grows meanwhile
        classes += cls.__subclasses__()
    found = {cls.factory.removeprefix("bert_"): cls for cls in classes if "factory" in vars(cls)}
    return dict(sorted(found.items()))


def pair_names() -> dict[str, str]:
    """Return the names in `doc._` that heads for pairs use: inputs, with the output of each."""
    return {name: cls.output_name for name, cls in _pair_readers().items()}


def check_asked(name: str, asked: Any, where: str) -> list[Any]:
    """Return the inputs under one of the `pair_names` as the list that its head reads. Raises
    ValueError, which names the list `where`, if they are not valid."""
    return _pair_readers()[name].check_asked(asked, where)


def _pair_readers() -> dict[str, Any]:
    return {cls.input_name: cls for cls in head_classes().values() if cls.input_name}


def second_texts(doc: Doc) -> list[str]:
    """List the second texts of a Doc for all heads. Raises ValueError if inputs are not valid."""
    return [
        text
        for name, cls in _pair_readers().items()
        for one in inputs_of(doc, name, [], cls.check_asked)
        for text in cls.texts_of(one)
    ]


def json_heads() -> dict[tuple[str, ...], type[BertHead]]:
    """Return the heads whose annotation `convert` can read, by their keys in JSONL."""
    return {cls.json_keys: cls for cls in head_classes().values() if cls.json_keys}


def label_counters() -> list[Callable[[Doc], dict[str, int]]]:
    """List the `count_labels` of all heads, once if several heads inherit the same."""
    counters = [cls.count_labels for cls in head_classes().values()]
    return list({getattr(counter, "__func__", counter): counter for counter in counters}.values())


def annotations_of(doc: Doc) -> frozenset[str]:
    """Return the heads for which a Doc has gold annotation, by factory name without "bert_"."""
    return frozenset(name for name, cls in head_classes().items() if cls.is_annotated(doc))


def teaches_text(doc: Doc) -> bool:
    """Return whether a Doc has gold annotation for a component that reads no second texts."""
    heads = head_classes().values()
    return (
        any(cls.is_annotated(doc) for cls in heads if not cls.input_name)
        or any(map(doc.has_annotation, OF_SPACY))
        or bool(doc.spans)
    )


def teaches_pairs(doc: Doc) -> bool:
    """Return whether a Doc has gold annotation for its second texts."""
    return any(cls.is_annotated(doc) for cls in head_classes().values() if cls.input_name)


def known_scores() -> dict[str, Score]:
    """Return the scores of all heads by name."""
    return {name: score for cls in head_classes().values() for name, score in cls.scores.items()}


def register_extensions() -> None:
    """Register the Doc and Span extensions of all heads, unless they are registered. Raises
    ValueError if other code has registered one of the names."""
    for cls in head_classes().values():
        cls.set_extensions()


def copy_inputs(source: Doc, target: Doc) -> None:
    """Copy a Doc's inputs for heads of pairs to another Doc with the same text, without results."""
    for name in pair_names():
        if texts := copy_of_list(name, source):
            set_value(name, target, texts)
