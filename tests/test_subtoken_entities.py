"""Entities that begin or end inside a spaCy token: of gold data with other tokens, and of
wordpieces."""

import warnings

import numpy as np
import pytest
import torch
from arrays import ints
from head_cases import NLP, make_head
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import get_loss, token_logits
from spacy.tokens import Doc, Span
from spacy.training import Example

from spacy_bert_heads.heads.gold import read_gold
from spacy_bert_heads.heads.units import Units

# Entities of gold tokens; the classes of O, B-A, I-A, B-B, I-B that each mode teaches for the
# predicted tokens, -1 for none, and how many entities are left out.
CASES = {
    "an entity at the end of a token": (
        "user_Anna left", "user _ Anna left", [(2, 3, "A")],
        {"strict": ([-1, 0], 1), "contract": ([-1, 0], 1), "expand": ([1, 0], 0)},
    ),
    "an entity that ends inside a token": (
        "in New York-based b", "in New York - based b", [(1, 3, "A")],
        {"strict": ([0, -1, -1, 0], 1), "contract": ([0, 1, 0, 0], 0),
         "expand": ([0, 1, 2, 0], 0)},
    ),
    "two entities in one token": (
        "from Hull/Skagen on", "from Hull / Skagen on", [(1, 2, "A"), (3, 4, "B")],
        {"strict": ([0, -1, 0], 2), "contract": ([0, -1, 0], 2), "expand": ([0, 1, 0], 1)},
    ),
    "tokens that agree": (
        "a b c", "a b c", [(1, 3, "B")],
        {mode: ([0, 3, 4], 0) for mode in ("strict", "contract", "expand")},
    ),
    "gold tokens that are longer": (
        "a can not b", "a cannot b", [(1, 2, "A")],
        {mode: ([0, 1, 2, 0], 0) for mode in ("strict", "contract", "expand")},
    ),
}  # fmt: skip


def pair(predicted: str, reference: str, ents: list) -> Example:
    """An Example whose texts differ in spaces alone."""
    gold = Doc(NLP.vocab, words=reference.split())
    gold.ents = [Span(gold, *ent) for ent in ents]
    return Example(Doc(NLP.vocab, words=predicted.split()), gold)


def zeros(n: int):
    """The output for one Doc of n tokens, all logits 0."""
    return token_logits(np.zeros((n, 5), dtype=np.float32), np.ones(n, dtype=bool), ints(n))


@pytest.mark.parametrize("mode", ["strict", "contract", "expand"])
@pytest.mark.parametrize("case", CASES)
def test_gold_inside_tokens(case, mode):
    predicted, reference, ents, expected = CASES[case]
    classes, left_out = expected[mode]
    ner = make_head("ner", alignment_mode=mode)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, gradient = get_loss(ner, [pair(predicted, reference, ents)], zeros(len(classes)))
    assert [int(row.argmin()) if row.any() else -1 for row in gradient] == classes
    assert len(caught) == (left_out > 0)
    for warning in caught:
        assert f"bert_ner does not learn {left_out} gold entities" in str(warning.message)


def test_texts_that_differ_in_case():
    ner = make_head("ner")
    texts = "İstanbul şehri a\u0307 ANNA", "i\u0307stanbul ŞEHRI A\u0307 anna"
    _, gradient = get_loss(ner, [pair(*texts, [(3, 4, "A")])], zeros(4))
    assert [int(row.argmin()) for row in gradient] == [0, 0, 0, 1]


def test_texts_that_cannot_be_aligned():
    ner = make_head("ner")
    with pytest.raises(ValueError, match="E949"):
        get_loss(ner, [pair("a b", "a c", [(0, 1, "A")])], zeros(2))


@st.composite
def cut(draw):
    """A text, cut into tokens in two ways, with entities of the second."""
    text = draw(st.text("abß船_", min_size=1, max_size=10))
    docs = []
    for _ in range(2):
        cuts = [0, *sorted(draw(st.sets(st.integers(1, max(len(text) - 1, 1))))), len(text)]
        words = [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if a < b]
        docs.append(Doc(NLP.vocab, words=words, spaces=[False] * len(words)))
    marks = draw(st.lists(st.booleans(), min_size=len(docs[1]), max_size=len(docs[1])))
    docs[1].ents = [Span(docs[1], i, i + 1, "A") for i, mark in enumerate(marks) if mark]
    return Example(*docs)


@pytest.mark.parametrize("mode", ["strict", "contract", "expand"])
@settings(max_examples=150, deadline=None)
@given(example=cut())
def test_gold_is_what_char_span_makes_of_it(example, mode):
    doc, n = example.predicted, len(example.predicted)
    gold = read_gold([example], Units.of(zeros(n), [doc]), labels=("A",), mode=mode)
    expected, taken = [], set()
    for ent in example.reference.ents:
        span = doc.char_span(ent.start_char, ent.end_char, alignment_mode=mode)
        if span is not None and taken.isdisjoint(range(span.start, span.end)):
            expected.append(list(range(span.start, span.end)))
            taken.update(expected[-1])
    assert [span.rows.tolist() for span in gold.entities] == expected
    assert len(gold.dropped) == len(example.reference.ents) - len(expected)
    # Nothing is taught of what a dropped entity touches.
    assert not set(np.flatnonzero(gold.outside)) & taken


# --- entities of wordpieces


def of_pieces(text: str, pieces: list[str], tags: list[str], names: list[str]):
    """Certain logits of the wordpieces of a text."""
    offsets, end = [], 0
    for piece in pieces:
        start = text.index(piece, end)
        end = start + len(piece)
        offsets.append((start, end))
    logits = np.full((len(pieces), len(names)), -9.0, dtype=np.float32)
    logits[np.arange(len(pieces)), [names.index(tag) for tag in tags]] = 9.0
    output = token_logits(logits, np.ones(len(pieces), dtype=bool), ints(len(pieces)))
    return output._replace(offsets=np.asarray(offsets, dtype=np.int64).reshape(-1, 2))


PIECES = [
    ("user_Anna left", ["user", "_", "An", "na", "left"], "O O B-A I-A O",
     {"strict": [], "contract": [], "expand": ["user_Anna"]}),
    ("in New York-based b", ["in", "New", "York", "-", "based", "b"], "O B-A I-A O O O",
     {"strict": [], "contract": ["New"], "expand": ["New York-based"]}),
    ("Anna Grete left", ["An", "na", "Grete", "left"], "B-A I-A I-A O",
     dict.fromkeys(["strict", "contract", "expand"], ["Anna Grete"])),
    ("can not b", ["can not", "b"], "B-A O",
     dict.fromkeys(["strict", "contract", "expand"], ["can not"])),
    ("Hull/Skagen", ["Hull", "/", "Skagen"], "B-A O B-B",
     {"strict": [], "contract": [], "expand": ["Hull/Skagen"]}),
    ("New\nYork \n", ["New", "\n", "York", "\n"], "B-A O I-A I-A",
     dict.fromkeys(["strict", "contract", "expand"], ["New\nYork"])),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["strict", "contract", "expand"])
@pytest.mark.parametrize("text, pieces, tags, expected", PIECES)
def test_entities_of_wordpieces_become_entities_of_tokens(text, pieces, tags, expected, mode):
    ner = make_head("ner", alignment_mode=mode, aggregation="simple")
    words, spaces = zip(*spaced(text), strict=True)
    doc = Doc(NLP.vocab, words=words, spaces=spaces)
    assert doc.text == text
    output = of_pieces(text, pieces, tags.split(), ner.tags)
    found = sum(tag[0] == "B" for tag in tags.split())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ner.set_annotations([doc], output)
    assert [ent.text for ent in doc.ents] == expected[mode]
    lost = found - len(expected[mode])
    assert len(caught) == (lost > 0)
    for warning in caught:
        assert f"bert_ner leaves out {lost} predicted entities" in str(warning.message)


def spaced(text: str) -> list[tuple[str, bool]]:
    """The words and line breaks of a text, and whether a space is behind them."""
    parts = text.replace("\n", "|\n|").replace(" ", "␣|").strip("|").split("|")
    return [(part.rstrip("␣"), part.endswith("␣")) for part in parts if part]


def test_nothing_found_is_nothing_lost():
    ner = make_head("ner", aggregation="simple")
    docs = [Doc(NLP.vocab), Doc(NLP.vocab, words=["a"])]
    output = of_pieces("a", ["a"], ["O"], ner.tags)._replace(lengths=ints(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ner.set_annotations(docs, output)
    assert [doc.ents for doc in docs] == [(), ()]


def test_learning_by_wordpieces_finds_what_is_inside_a_token(make_nlp):
    """Gold tokens are finer than the predicted ones: wordpieces learn the entity itself."""
    nlp = make_nlp(initialize=False)
    settings = {"aggregation": "simple", "alignment_mode": "expand"}
    nlp.add_pipe("bert_ner", config=settings)
    texts = [("user_Anna left", "user _ Anna left", 2), ("met_Anna now", "met _ Anna now", 2)]
    examples = []
    for text, words, at in texts:
        words = words.split()
        spaces = [i == len(words) - 2 for i in range(len(words))]
        reference = Doc(nlp.vocab, words=words, spaces=spaces)
        assert reference.text == text
        reference.ents = [Span(reference, at, at + 1, "PER")]
        predicted = Doc(nlp.vocab, words=text.split(), spaces=[True, False])
        examples.append(Example(predicted, reference))
    torch.manual_seed(0)
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 3e-3
    with pytest.warns(UserWarning, match="A learning rate"):
        for _ in range(25):
            nlp.update(examples, sgd=optimizer)
    ner = nlp.get_pipe("bert_ner")
    docs = [eg.predicted for eg in examples]
    output = ner.predict(docs)
    best = [ner.tags[i] for i in output.logits.argmax(1).tolist()]
    places = [docs[0].text[a:b] for a, b in output.offsets[: output.lengths[0]]]
    tagged = [p for p, tag in zip(places, best[: len(places)], strict=True) if tag != "O"]
    assert "".join(tagged) == "Anna"
    ner.set_annotations(docs, output)
    assert [[ent.text for ent in doc.ents] for doc in docs] == [["user_Anna"], ["met_Anna"]]
