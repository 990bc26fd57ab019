"""Post-processing of answers: thresholds, the span group, a warning about a missing threshold."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .answers import kind_of
from .entities import Row


def apply_thresholds(
    answers: list[dict[str, Any]],
    questions: Sequence[str],
    reaches_threshold: Callable[[str, float], bool],
) -> list[dict[str, Any]]:
    """Replace answers below their thresholds by "no answer", in place; they become the first of the
    alternatives. Returns the entries for `doc._.abstained`."""
    entries = []
    for i, (answer, question) in enumerate(zip(answers, questions, strict=True)):
        if not answer or reaches_threshold(kind_of(answer), answer["score"]):
            continue
        entries.append({"label": kind_of(answer), "score": answer["score"], "asked": question})
        if answer["text"]:
            others = [{**answer, "alternatives": []}, *answer["alternatives"]]
            nothing = {"text": "", "start_char": 0, "end_char": 0, "start": 0, "end": 0}
            score = answer["no_answer_score"]
            answers[i] = {**answer, **nothing, "score": score, "alternatives": others}
    return entries


def group_rows(answers: Sequence[dict[str, Any] | None]) -> list[Row]:
    """Return the answers as rows for `write_group`; labels are Q1, Q2, … by question."""
    return [
        (answer["start"], answer["end"], f"Q{number}", answer["score"])
        for number, answer in enumerate(answers, 1)
        if answer and answer["text"]
    ]


def warn_unset(
    name: str, questions: Sequence[str], answers: Sequence[dict[str, Any] | None]
) -> bool:
    """Warn about the first answer that is less probable than "no answer". Returns whether there was
    one."""
    for question, answer in zip(questions, answers, strict=True):
        if not answer or not answer["text"] or answer["no_answer_score"] <= 0.5:
            continue
        warnings.warn(
            f"{name} answers '{question}' with '{answer['text']}', although it is more "
            f"probable that there is no answer ({answer['no_answer_score']:.2f}): without a "
            "no_answer_threshold a pipeline of from_hf always answers. If the checkpoint was "
            "fine-tuned on questions without an answer too, as those of SQuAD 2, set it: "
            f'nlp.get_pipe("{name}").cfg["no_answer_threshold"] = 0.5, or in spacy.load '
            f'config={{"components.{name}.no_answer_threshold": 0.5}}. Set 1.0 to have '
            "every question answered.",
            stacklevel=3,
        )
        return True
    return False
