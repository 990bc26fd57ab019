"""Convert the annotations of a Doc to plain data, for `bert annotate` and all other output outside
of spaCy.

`start` and `end` are character offsets (`text[start:end]`). Probabilities are rounded to six
digits; further digits depend on the batch of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from spacy.language import Language
from spacy.tokens import Doc

from ..text.doc_data import get_abstained, get_answers, get_ent_scores
from ..text.user_data import copy_of_dict, copy_of_list, get_value

DIGITS = 6


def entities_of(doc: Doc) -> list[dict[str, Any]]:
    """Return the entities in order; the score is None for entities of other components."""
    scores = {
        (entry["start_char"], entry["end_char"], entry["label"]): entry["score"]
        for entry in get_ent_scores(doc)
    }
    return [
        {
            "start": ent.start_char,
            "end": ent.end_char,
            "label": ent.label_,
            "text": ent.text,
            "score": _round(scores.get((ent.start_char, ent.end_char, ent.label_))),
        }
        for ent in doc.ents
    ]


def categories_of(doc: Doc) -> dict[str, float | None]:
    """Return the probability of each category."""
    return {label: _round(value) for label, value in doc.cats.items()}


def verdicts_of(doc: Doc) -> list[dict[str, Any]]:
    """Return the verdict on each hypothesis. Label and scores are None if the hypothesis was too
    long; the label is "" if the verdict is below a threshold."""
    rows = []
    hypotheses, verdicts = copy_of_list("hypotheses", doc), copy_of_list("nli", doc)
    for text, verdict in zip(hypotheses, verdicts, strict=False):
        label, scores = (verdict["label"], verdict["scores"]) if verdict else (None, None)
        rows.append(
            {
                "hypothesis": text,
                "label": label,
                "score": _round(scores.get(label)) if scores else None,
                "scores": scores and {one: _round(value) for one, value in scores.items()},
            }
        )
    return rows


def answers_of(doc: Doc) -> list[dict[str, Any]]:
    """Return the answer to each question. The text is "" for no answer, and None if the question
    was too long."""
    rows = []
    for question, answer in zip(copy_of_list("questions", doc), get_answers(doc), strict=False):
        row = {"question": question, **_place(answer)}
        row["no_answer_score"] = answer and _round(answer["no_answer_score"])
        row["alternatives"] = [_place(other) for other in answer["alternatives"]] if answer else []
        rows.append(row)
    return rows


def similarities_of(doc: Doc) -> list[dict[str, Any]]:
    """Return the scores by label for each text that the Doc is compared with; None if the text was
    too long."""
    rows = []
    others, found = copy_of_list("others", doc), copy_of_list("similarities", doc)
    for text, numbers in zip(others, found, strict=False):
        scores = numbers and {label: _round(value) for label, value in numbers.items()}
        rows.append({"other": text, "scores": scores})
    return rows


def chosen_of(doc: Doc) -> list[dict[str, Any]]:
    """Return the chosen option of each choice: its number (from 0), text and probability, and the
    probabilities of all options. All are None if an option was too long, or none is above the
    head's threshold."""
    rows = []
    choices, found = copy_of_list("choices", doc), copy_of_list("chosen", doc)
    for choice, entry in zip(choices, found, strict=False):
        options = choice["options"]
        row = {"question": choice.get("question") or "", "options": options}
        row |= dict.fromkeys(("answer", "text", "score", "scores"))
        if entry:
            answer, scores = entry["answer"], [_round(score) for score in entry["scores"]]
            row |= {"answer": answer, "text": options[answer], "scores": scores}
            row["score"] = scores[answer]
        rows.append(row)
    return rows


def _place(answer: Mapping[str, Any] | None) -> dict[str, Any]:
    if not answer:
        return dict.fromkeys(("text", "start", "end", "score"))
    places = {"text": answer["text"], "start": answer["start_char"], "end": answer["end_char"]}
    return {**places, "score": _round(answer["score"])}


def numbers_of(doc: Doc) -> dict[str, float | None]:
    """Return the numbers of `doc._.regression`."""
    return {label: _round(value) for label, value in copy_of_dict("regression", doc).items()}


def tags_of(doc: Doc) -> list[dict[str, Any]]:
    """Return the tags of all tokens, None for a missing tag."""
    return [
        {
            "start": token.idx,
            "end": token.idx + len(token),
            "tag": token.tag_ or None,
            "pos": token.pos_ or None,
        }
        for token in doc
    ]


def needs_review(doc: Doc) -> bool:
    """Return whether a head has abstained because a claim is below its threshold."""
    return bool(get_abstained(doc))


def _round(value: Any) -> float | None:
    return None if value is None else round(float(value), DIGITS)


class Kind(NamedTuple):
    """Define a kind of annotation: the attributes in spaCy's `assigns` by which the components that
    set it are recognised, and the function that reads it."""

    places: tuple[str, ...]
    read: Callable[[Doc], Any]
    has_labels: bool = False  # whether values are dicts by label


KINDS = {
    "entities": Kind(("doc.ents",), entities_of),
    "categories": Kind(("doc.cats",), categories_of, has_labels=True),
    "verdicts": Kind(("doc._.nli",), verdicts_of, has_labels=True),
    "answers": Kind(("doc._.answers",), answers_of),
    "similarities": Kind(("doc._.similarities",), similarities_of, has_labels=True),
    "chosen": Kind(("doc._.chosen",), chosen_of),
    "numbers": Kind(("doc._.regression",), numbers_of, has_labels=True),
    "generated": Kind(("doc._.generated",), lambda doc: get_value("generated", doc)),
    "tags": Kind(("token.tag", "token.pos"), tags_of),
    "review": Kind((), needs_review),
}


@dataclass(frozen=True)
class Columns:
    """Hold the kinds of annotations that a pipeline sets, with the labels of the kinds that have
    labels."""

    labels: dict[str, tuple[str, ...]]

    @staticmethod
    def of(nlp: Language) -> Columns:
        """Return the columns of a pipeline. Raises ValueError if there are none."""
        assigns = {name: nlp.get_pipe_meta(name).assigns for name in nlp.pipe_names}
        labels = {}
        for name, kind in KINDS.items():
            makers = [one for one in assigns if not set(kind.places).isdisjoint(assigns[one])]
            known = [label for one in makers for label in _labels_of(nlp.get_pipe(one), name)]
            if name == "review":  # of a pipeline with thresholds
                makers = [
                    one for one in assigns if getattr(nlp.get_pipe(one), "may_abstain", False)
                ]
            if makers and (known or not kind.has_labels):
                labels[name] = tuple(dict.fromkeys(known)) if kind.has_labels else ()
        if not labels:
            raise ValueError(
                f"The pipeline sets none of {', '.join(KINDS)}. Its components are "
                f"{', '.join(nlp.pipe_names) or 'none'}. Use a pipeline with one that does."
            )
        return Columns(labels)

    def read(self, doc: Doc) -> dict[str, Any]:
        """Return the annotations of a Doc by column."""
        return {name: KINDS[name].read(doc) for name in self.labels}


def _labels_of(pipe: Any, kind: str) -> Iterable[str]:
    # The labels of `bert_nli` are those of its verdicts, its categories have hypotheses.
    if kind == "categories" and hasattr(pipe, "categories"):
        return pipe.categories
    return getattr(pipe, "labels", ())
