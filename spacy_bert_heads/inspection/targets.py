"""Define what can be explained of an annotated Doc: the predictions of each head, as log-odds in
nats computed from its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from spacy.tokens import Doc

from ..heads.head import BertHead
from ..heads.ner import BertNER
from ..heads.nli import BertNLI
from ..heads.qa import BertQA
from ..heads.textcat import BertTextCat
from ..text.batch import PackedBatch
from ..text.doc_data import ent_scores_of, get_answers
from ..text.user_data import copy_of_list


class Target(NamedTuple):
    """Hold a prediction of a head that can be explained."""

    title: str
    asked: str  # the second text, "" for heads without one
    score: Callable[
        [torch.Tensor, PackedBatch], torch.Tensor
    ]  # maps the module's logits to the log-odds


def targets_of(head: BertHead, doc: Doc) -> Iterator[Target]:
    """Yield the predictions of a head on a Doc that can be explained."""
    if isinstance(head, BertTextCat):
        yield from _categories(head, doc)
    elif isinstance(head, BertNER) and head.cfg["aggregation"] != "simple":
        yield from _entities(head, doc)
    elif isinstance(head, BertNLI):
        yield from _verdicts(head, doc)
    elif isinstance(head, BertQA):
        yield from _answers(head, doc)


def log_odds(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the log-odds of the classes of a mask (num_classes,) against the others, from logits
    (n, num_classes)."""
    return logits[:, chosen].logsumexp(1) - logits[:, ~chosen].logsumexp(1)


def _one_of(number: int, logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Return the log-odds of a class for the only text; a single class has a sigmoid."""
    if logits.shape[1] == 1:
        return logits[0, 0]
    return log_odds(logits, torch.arange(logits.shape[1]) == number)[0]


def _by_itself(number: int, logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    return logits[0, number]


def _categories(head: BertTextCat, doc: Doc) -> Iterator[Target]:
    found = [label for label in head.labels if label in doc.cats]
    given = head.given(doc.cats) if len(found) == len(head.labels) else []
    if head.multi_label and not given and found:
        given = [max(found, key=doc.cats.__getitem__)]
    how = _by_itself if head.multi_label else _one_of
    for label in given:
        title = f"category {label}, {doc.cats[label]:.2f}"
        yield Target(title, "", partial(how, head.labels.index(label)))


def _entities(head: BertNER, doc: Doc) -> Iterator[Target]:
    """Yield the entities. The log-odds is that the tokens have the entity's label, in any tag; the
    transitions of a conditional random field are ignored."""
    own = ent_scores_of(doc, head.name)
    for ent in doc.ents:
        score = own.get((ent.start_char, ent.end_char, ent.label_))
        if score is not None and ent.label_ in head.labels:
            tags = torch.tensor([tag[2:] == ent.label_ or tag == ent.label_ for tag in head.tags])
            title = f"entity “{ent.text}” {ent.label_}, {score:.2f}"
            yield Target(title, "", partial(_entity, ent.start, ent.end, tags))


def _entity(
    start: int, end: int, tags: torch.Tensor, logits: torch.Tensor, batch: PackedBatch
) -> torch.Tensor:
    """Return the mean log-odds of an entity's tokens that have wordpieces."""
    assert batch.tokens is not None
    rows = start + np.flatnonzero(batch.tokens.num_wordpieces[start:end] > 0)
    return log_odds(logits[rows.tolist()], tags).mean()


def _verdicts(head: BertNLI, doc: Doc) -> Iterator[Target]:
    hypotheses, verdicts = copy_of_list("hypotheses", doc), copy_of_list("nli", doc)
    for text, verdict in zip(hypotheses, verdicts, strict=False):
        if verdict is None:
            continue
        label = max(verdict["scores"], key=verdict["scores"].__getitem__)
        title = f"“{text}” {label}, {verdict['scores'][label]:.2f}"
        yield Target(title, text, partial(_one_of, head.labels.index(label)))


def _answers(head: BertQA, doc: Doc) -> Iterator[Target]:
    for question, answer in zip(copy_of_list("questions", doc), get_answers(doc), strict=False):
        if answer and not answer["text"] and answer["alternatives"]:
            continue  # "no answer" can't be attributed to words
        if answer and answer["text"]:
            title = f"“{question}” {answer['text']}, {answer['score']:.2f}"
            place = answer["start_char"], answer["end_char"]
            yield Target(title, question, partial(_answer, *place))


def _answer(start: int, end: int, logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Return the mean log-odds of the answer's start and end against all other positions of a
    window: of those with most of the answer the one in which its start has the most context."""
    assert batch.offsets is not None
    offsets, cuts = batch.offsets, batch.cu_seqlens
    inside = np.flatnonzero((offsets.starts < end) & (offsets.ends > start) & (offsets.starts >= 0))
    windows = np.searchsorted(cuts, inside, side="right") - 1
    sizes = np.bincount(windows)
    is_best = np.bincount(windows, weights=offsets.is_best[inside])
    window = int(np.lexsort((is_best, sizes))[-1])
    begin, stop = int(cuts[window]), int(cuts[window + 1])
    own = inside[windows == window]
    odds = [
        log_odds(logits[None, begin:stop, column], torch.arange(begin, stop) == int(place))[0]
        for column, place in ((0, own[0]), (1, own[-1]))
    ]
    return (odds[0] + odds[1]) / 2
