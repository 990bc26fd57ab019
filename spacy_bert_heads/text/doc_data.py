"""The data of our components on a Doc, apart from spaCy's own attributes: second texts
(`doc._.hypotheses`, `doc._.questions`), results (`doc._.nli`, `doc._.answers`), and the
probabilities of entities (`doc._.ent_scores`, `ent._.ent_score`).

The values are plain data in `doc.user_data`, under the keys that spaCy's extensions use, so every
way of storing a Doc keeps them. They refer to characters of the text, so they stay correct when
spaCy's components merge or split tokens. Each head registers its extensions when a component or
reader of ours is first used; `spacy_bert_heads.pairs` registers those of pairs. Our own code
does not need the extensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import index
from typing import Any

from spacy.tokens import Doc, Span

from .user_data import Draft, copy_of_list, get_list, key_of, set_value, show, values_of

ENT_SCORES = "ent_scores"
ABSTAINED = "abstained"
OURS = "spacy_bert_heads"  # an attribute that marks the functions of our extensions


def register_extension(owner: Any, name: str, **functions: Callable) -> None:
    """Register an extension of Doc or Span, the `owner`, unless it is registered. Raises ValueError
    if other code has registered the name."""
    functions = {key: _mark(function) for key, function in functions.items()}
    if not owner.has_extension(name):
        owner.set_extension(name, **functions)
    elif not hasattr(owner.get_extension(name)[2], OURS):
        thing = owner.__name__
        raise ValueError(
            f"Other code has registered {thing.lower()}._.{name}, which spacy_bert_heads needs. "
            f"Find out who calls {thing}.set_extension('{name}', …) and rename that, or call "
            f"{thing}.remove_extension('{name}') before the pipeline is made."
        )


def _mark(function: Callable) -> Callable:
    marked = partial(function)
    setattr(marked, OURS, True)
    return marked


def get_answers(doc: Doc) -> list:
    """Get the answers, with tokens updated by their characters if tokens were merged or split.
    Returns a draft, as `get_list` does, if that changes something."""
    answers = get_list("answers", doc)
    if not isinstance(answers, list):
        return answers
    followed = [_follow(doc, answer) for answer in answers]
    if all(one is other for one, other in zip(followed, answers, strict=True)):
        return answers
    return Draft(doc, "answers", followed).value


def _follow(doc: Doc, answer: Any) -> Any:
    """Return the answer with its present tokens; the same object if they have not changed."""
    moved = _move(doc, answer)
    if isinstance(answer, dict) and isinstance(answer.get("alternatives"), list):
        others = [_move(doc, other) for other in answer["alternatives"]]
        if any(one is not old for one, old in zip(others, answer["alternatives"], strict=True)):
            moved = {**moved, "alternatives": others}
    return moved


def _move(doc: Doc, answer: Any) -> Any:
    if not isinstance(answer, dict) or not answer.get("text"):
        return answer
    if not {"start", "end", "start_char", "end_char"} <= answer.keys():
        return answer  # written by hand; the components say what is missing
    start, end = answer["start"], answer["end"]
    fits = 0 <= start < end <= len(doc) and (
        doc[start].idx <= answer["start_char"] < doc[start].idx + max(len(doc[start]), 1)
        and doc[end - 1].idx < answer["end_char"] <= doc[end - 1].idx + len(doc[end - 1])
    )
    if not fits:
        span = doc.char_span(answer["start_char"], answer["end_char"], alignment_mode="expand")
        if span is not None:
            return {**answer, "start": span.start, "end": span.end}
    return answer


# --- probabilities of entities


def get_ent_scores(doc: Doc) -> list[dict[str, Any]]:
    """Get an entry for each entity from a `bert_ner`: "start_char", "end_char", "label", "score",
    which is its probability, and "component"."""
    return copy_of_list(ENT_SCORES, doc)


def get_ent_score(span: Span) -> float | None:
    """Get the probability of an entity; None for a span that is not from a `bert_ner`."""
    wanted = (span.start_char, span.end_char, span.label_)
    for entry in values_of(span.doc).get(key_of(ENT_SCORES), ()):
        if (entry["start_char"], entry["end_char"], entry["label"]) == wanted:
            return entry["score"]
    return None


def ent_scores_of(doc: Doc, component: str) -> dict[tuple[int, int, str], float]:
    """Get the probabilities of a component's entities, by first character, end and label."""
    return {
        (entry["start_char"], entry["end_char"], entry["label"]): entry["score"]
        for entry in get_ent_scores(doc)
        if entry["component"] == component
    }


# --- predictions below a threshold


def register_abstained() -> None:
    getter, setter = partial(get_list, ABSTAINED), partial(set_value, ABSTAINED)
    register_extension(Doc, ABSTAINED, getter=getter, setter=setter)


def get_abstained(doc: Doc) -> list[dict[str, Any]]:
    """Get an entry for each prediction that a head left out, because its probability is below a
    threshold: "component", "label", "score", and "start_char" and "end_char" or the input
    ("asked")."""
    return copy_of_list(ABSTAINED, doc)


def write_abstained(doc: Doc, component: str, entries: list[dict[str, Any]]) -> None:
    """Write the entries of a component, replacing its earlier ones."""
    if not entries and key_of(ABSTAINED) not in values_of(doc):
        return
    others = [entry for entry in get_abstained(doc) if entry["component"] != component]
    set_value(ABSTAINED, doc, others + [{"component": component, **entry} for entry in entries])


# --- pairs of texts


def drop_results(doc: Doc, name: str) -> bool:
    """Remove earlier results ("nli", "answers" and so on) of a Doc that has no inputs any more.
    Returns whether there were any."""
    return values_of(doc).pop(key_of(name), None) is not None


def inputs_of(
    doc: Doc,
    name: str,
    default: list[Any],
    check: Callable[[Any, str], list[Any]] | None = None,
) -> list[Any]:
    """Return the inputs of a Doc: those in `doc._`, else in the context of
    `nlp.pipe(…, as_tuples=True)` if that is a dict with this key, else the component's own.

    `name` is that of the extension, such as "questions"; `default` are the component's own inputs.
    `check` validates a value and returns it as a list; its second argument names the value for
    error messages. The default is `check_texts`. Raises ValueError as that does.
    """
    texts = values_of(doc).get(key_of(name))
    where = f"doc._.{name}"
    if not texts and isinstance(doc._context, dict):
        texts, where = doc._context.get(name), f"the context's '{name}'"
    if texts is None or (not texts and isinstance(texts, (list, tuple))):
        texts, where = default, f"the config's '{name}'"
    return (check or check_texts)(texts, where)


def check_texts(texts: Any, where: str) -> list[str]:
    """Return a list of texts. Raises ValueError, which names the list `where`, if it is not a list
    of strings, or a string is empty or not valid Unicode."""
    if not isinstance(texts, (list, tuple)):
        raise ValueError(f"{where} must be a list of strings, not {show(texts)}.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{where} must be a list of strings, but [{i}] is {show(text)}.")
        if not text.strip():
            raise ValueError(f"{where}[{i}] is empty. Remove it, or write the text.")
        if not text.isascii():
            try:
                text.encode("utf8")
            except UnicodeEncodeError:
                raise ValueError(
                    f"{where}[{i}] contains half of a surrogate pair, which is not valid text: "
                    f"{show(text)}. Decode the source again with the right encoding."
                ) from None
    return list(texts)


def make_verdict(label: str, scores: dict[str, float] | None = None) -> dict[str, Any]:
    """Make an entry of `doc._.nli` from a label and the probabilities by label. In a gold entry the
    probability of the label is 1."""
    return {"label": label, "scores": {label: 1.0} if scores is None else scores}


def check_choices(choices: Any, where: str) -> list[dict[str, Any]]:
    """Return a list of choices, dicts with "options", at least two texts, and a "question", which
    may be missing or empty in `choices`. Raises ValueError, which names the list `where`, if it is
    not valid."""
    if not isinstance(choices, (list, tuple)):
        raise ValueError(f"{where} must be a list of dicts, not {show(choices)}.")
    checked = []
    for i, choice in enumerate(choices):
        if not isinstance(choice, dict) or "options" not in choice:
            raise ValueError(
                f'{where}[{i}] must be a dict with "options" and perhaps a "question", not '
                f"{show(choice)}."
            )
        options = check_texts(choice["options"], f"{where}[{i}]['options']")
        if len(options) < 2:
            raise ValueError(f"{where}[{i}] needs at least two options, not {show(options)}.")
        question = choice.get("question") or ""
        if question:
            check_texts([question], f"the question of {where}[{i}]")
        checked.append({"question": question, "options": options})
    return checked


def make_choice(answer: int, scores: Iterable[float] = ()) -> dict[str, Any]:
    """Make an entry of `doc._.chosen` from the index of the right option and the probability of
    each option, which gold entries don't need."""
    return {"answer": index(answer), "scores": list(scores)}


def make_answer(
    doc: Doc,
    start_char: int = 0,
    end_char: int = 0,
    *,
    doc_text: str | None = None,
    score: float = 1.0,
    no_answer_score: float | None = None,
    alternatives: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Make an entry of `doc._.answers`; without characters it means that there is no answer.

    The answer is `doc.text[start_char:end_char]`; `doc_text` saves spaCy from building `doc.text`
    again. `score` is its probability, 1 for a gold answer. `no_answer_score` is the probability of
    no answer, by default 0, or 1 without characters. `alternatives` are other answers, the best one
    first; for a gold answer those that are correct too.

    In the entry, `start` and `end` are the tokens that contain the answer. Raises ValueError if the
    characters are not in the text.
    """
    start, end, text = 0, 0, ""
    start_char, end_char = index(start_char), index(end_char)  # of numpy, too
    if start_char or end_char:
        doc_text = doc.text if doc_text is None else doc_text
        span = None
        if 0 <= start_char < end_char <= len(doc_text):
            span = doc.char_span(start_char, end_char, alignment_mode="expand")
        if span is None:
            raise ValueError(
                f"Characters {start_char} to {end_char} are not a span in a text of "
                f"{len(doc_text)} characters."
            )
        start, end, text = span.start, span.end, doc_text[start_char:end_char]
    return {
        "text": text,
        "start_char": start_char,
        "end_char": end_char,
        "start": start,
        "end": end,
        "score": score,
        "no_answer_score": float(not text) if no_answer_score is None else no_answer_score,
        "alternatives": list(alternatives),
    }
