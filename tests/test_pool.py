"""A pool of pipelines with random orders of heads, retokenizers, rulers, disabled pipes and batch
sizes: every head gives what it gives in a fresh pipeline that holds it alone."""

import random
from pathlib import Path

import numpy as np
import pytest
import spacy
from joint import HEADS, LANG, assert_same
from spacy.attrs import HEAD
from spacy.language import Language
from spacy.tokens import Doc

WORDS = [
    *("Anna", "Grete", "left", "Skagen", "on", "Tuesday", "The", "boat", "burned", "in", "Hull"),
    *("cannot", "harbour", "船在港口", "naïve", "2024", "!", ",", "e-mail", "\u200b", "\n"),
]
QUESTIONS = ["Who left?", "What burned?", "When?", "Where?"]
HYPOTHESES = ["She left.", "She sank.", "It rained.", "It burned."]
HEAD_NAMES = [f"bert_{head}" for head in HEADS]
N_PIPELINES, N_BATCHES, N_LONG_BATCHES = 20, 300, 1_500


def forget(doc: Doc) -> None:
    """Forget what spaCy's retokenizer leaves invalid: entities in pieces where it merges or splits
    across their ends (E093), and heads beyond the text after a split (E039)."""
    doc.set_ents([], default="missing")
    doc.from_array([HEAD], np.zeros(len(doc), dtype=np.uint64))


@Language.component("pool_merge")
def merge(doc: Doc) -> Doc:
    """Merge every fifth token with the next."""
    forget(doc)
    with doc.retokenize() as retokenizer:
        for i in range(0, len(doc) - 1, 5):
            retokenizer.merge(doc[i : i + 2])
    return doc


@Language.component("pool_split")
def split(doc: Doc) -> Doc:
    """Split every fourth token that is long enough in two."""
    forget(doc)
    with doc.retokenize() as retokenizer:
        for token in list(doc)[::4]:
            if len(token.text) > 3:
                parts = [token.text[:2], token.text[2:]]
                retokenizer.split(token, parts, heads=[(token, 1), (token, 0)])
    return doc


@Language.component("pool_move")
def move(doc: Doc) -> Doc:
    """Merge two tokens and split one, so that there are as many tokens as before, but others."""
    forget(doc)
    long = next((token for token in doc[2:] if len(token.text) > 3), None)
    if long is not None:
        with doc.retokenize() as retokenizer:
            retokenizer.merge(doc[0:2])
            parts = [long.text[:2], long.text[2:]]
            retokenizer.split(long, parts, heads=[(long, 1), (long, 0)])
    return doc


def add(nlp: Language, name: str, source: Language) -> None:
    match name:
        case "entity_ruler":
            ruler = nlp.add_pipe("entity_ruler")
            ruler.add_patterns([{"label": "RULED", "pattern": "Hull"}])
        case _ if name.removeprefix("bert_") in HEADS:
            nlp.add_pipe(name, source=source)
        case _:
            nlp.add_pipe(name)


def make_pipeline(joint: Path, names: list[str]) -> Language:
    source = spacy.load(joint)
    nlp = spacy.blank(LANG, vocab=source.vocab)
    nlp.add_pipe("bert_encoder", source=source)
    for name in names:
        add(nlp, name, source)
    return nlp


class Member:
    """A pipeline of the pool, and for each of its heads a fresh one with that head alone, behind
    the components that change what it reads."""

    def __init__(self, joint: Path, names: list[str]) -> None:
        self.nlp = make_pipeline(joint, names)
        self.alone = {}
        for head in HEAD_NAMES:
            kept = [name for name in names[: names.index(head)] if name not in HEAD_NAMES]
            self.alone[head] = make_pipeline(joint, [*kept, head])


def choose_names(chance: random.Random) -> list[str]:
    others = ["pool_merge", "pool_split", "pool_move", "entity_ruler", "sentencizer"]
    names = HEAD_NAMES + chance.sample(others, chance.randint(0, len(others)))
    chance.shuffle(names)
    return names


def make_text(chance: random.Random) -> str:
    n = chance.choice([0, 1, 3, 8, 20, 120])
    return " ".join(chance.choice(WORDS) for _ in range(n))


def make_doc(nlp: Language, text: str, asked: dict[str, list[str]]) -> Doc:
    doc = nlp.make_doc(text)
    for name, texts in asked.items():
        if texts:
            doc._.set(name, list(texts))
    return doc


def result(doc: Doc, head: str) -> object:
    """What a head found, by characters."""
    match head:
        case "bert_ner":
            return doc._.ent_scores
        case "bert_textcat":
            return dict(doc.cats)
        case "bert_nli":
            return doc._.nli
        case _:
            places = ("start", "end")  # tokens, which components behind may change
            return [{k: v for k, v in a.items() if k not in (*places, "alternatives")}
                    for a in doc._.answers]  # fmt: skip


def check_batch(member: Member, chance: random.Random) -> None:
    texts = [make_text(chance) for _ in range(chance.randint(1, 5))]
    asked = [
        {
            "questions": chance.sample(QUESTIONS, chance.randint(0, 2)),
            "hypotheses": chance.sample(HYPOTHESES, chance.randint(0, 2)),
        }
        for _ in texts
    ]
    off = chance.sample(HEAD_NAMES, chance.choice([0, 0, 1, 2]))
    with member.nlp.select_pipes(disable=off):
        docs = [make_doc(member.nlp, text, one) for text, one in zip(texts, asked, strict=True)]
        found = list(member.nlp.pipe(docs, batch_size=chance.randint(1, 4)))
    for head in HEAD_NAMES:
        if head in off:
            continue
        nlp = member.alone[head]
        for doc, text, one in zip(found, texts, asked, strict=True):
            fresh = nlp(make_doc(nlp, text, one))
            assert_same(result(doc, head), result(fresh, head))


@pytest.fixture(scope="module")
def pool(joint) -> list[Member]:
    chance = random.Random(0)
    names = [choose_names(chance) for _ in range(N_PIPELINES - 1)]
    # One in which all that is kept for the second head is wrong, but for its number of tokens.
    names.append(["bert_textcat", "pool_move", "bert_ner", "bert_nli", "bert_qa"])
    return [Member(joint, one) for one in names]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_head_gives_what_it_gives_alone(pool):
    chance = random.Random(1)
    for _ in range(N_BATCHES):
        check_batch(chance.choice(pool), chance)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", [2, 3])  # for two processes
def test_every_head_gives_what_it_gives_alone_at_length(pool, seed):
    chance = random.Random(seed)
    for _ in range(N_LONG_BATCHES):
        check_batch(chance.choice(pool), chance)
