"""White space and characters of no width: no entity begins or ends with them."""

import unicodedata
import warnings
from functools import cache

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
from spacy.vocab import Vocab
from tiny_wordpieces import BOM, KINDS, NBSP, ZWJ, ZWSP, trained

from spacy_bert_heads.heads.gold import read_gold, tag_classes
from spacy_bert_heads.heads.units import Units
from spacy_bert_heads.text.blanks import blank_tokens, count_visible, is_blank
from spacy_bert_heads.text.packing import pack_docs

ALL_SCHEMES = ["BIO", "BILOU", "IOB", "IOBES", "IO"]
BLANKS = ["\n", "\n\n", "\t", " ", NBSP, ZWSP, ZWJ + ZWSP, BOM, "\x07", "\u2028", "\x85"]


@cache
def head(scheme: str, **config):
    return make_head("ner", scheme=scheme, **config)


def with_wordpieces(docs: list[Doc], kind: str, n_classes: int):
    """The output of a token head for Docs, all logits 0."""
    tokens = pack_docs(docs, trained(kind), window=64, stride=48).tokens
    logits = np.zeros((len(tokens.num_wordpieces), n_classes), dtype=np.float32)
    return token_logits(logits, tokens.num_wordpieces > 0, tokens.num_tokens)


@st.composite
def annotated(draw):
    """A Doc of words, white space and characters of no width, with entities."""
    words = draw(st.lists(st.sampled_from([*BLANKS, "Anna", "船", "don't", "x"]), max_size=9))
    spaces = draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))
    doc = Doc(NLP.vocab, words=words, spaces=spaces)
    marks = draw(st.lists(st.sampled_from("OOBBII"), min_size=len(words), max_size=len(words)))
    spans: list[Span] = []
    for i, mark in enumerate(marks):
        if mark == "B":
            spans.append(Span(doc, i, i + 1, label=draw(st.sampled_from("AB"))))
        elif mark == "I" and spans and spans[-1].end == i:
            spans[-1] = Span(doc, spans[-1].start, i + 1, label=spans[-1].label_)
    doc.ents = spans
    return doc


def trimmed(doc: Doc, seen: list[bool]) -> list[tuple[int, int, str]]:
    """The entities without tokens that are not `seen` at their borders."""
    found = []
    for ent in doc.ents:
        inside = [i for i in range(ent.start, ent.end) if seen[i]]
        if inside:
            found.append((inside[0], inside[-1] + 1, ent.label_))
    return found


def joined(spans: list[tuple[int, int, str]], seen: list[bool]) -> list[tuple[int, int, str]]:
    """Neighbours of one label as one, as IO can't part them."""
    found: list[tuple[int, int, str]] = []
    for start, end, label in spans:
        between = range(found[-1][1], start) if found else ()
        if found and found[-1][2] == label and not any(seen[i] for i in between):
            found[-1] = (found[-1][0], end, label)
        else:
            found.append((start, end, label))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ALL_SCHEMES)
@settings(max_examples=60, deadline=None)
@given(references=st.lists(annotated(), min_size=1, max_size=3))
def test_gold_to_tags_to_entities_is_gold_without_white_space(scheme, kind, references):
    ner = head(scheme)
    docs = [Doc(NLP.vocab, [t.text for t in d], [bool(t.whitespace_) for t in d])
            for d in references]  # fmt: skip
    examples = [Example(doc, reference) for doc, reference in zip(docs, references, strict=True)]
    output = with_wordpieces(docs, kind, len(ner.tags))
    units = Units.of(output, docs)
    gold = read_gold(examples, units, labels=ner.labels, mode="strict")
    classes = tag_classes(gold, ner.tags, scheme)
    # What has a class is what has a wordpiece and can be seen.
    visible = [any(unicodedata.category(c)[0] not in "CZ" for c in t.text) for d in docs for t in d]
    assert (classes >= 0).tolist() == [
        bool(has and seen) for has, seen in zip(output.has_wordpiece, visible, strict=True)
    ]
    # Whatever is predicted for the others: an I or a B, which would be an entity.
    wild = torch.full_like(output.logits, -20.0)
    wild[:, 1] = 20.0
    rows = np.flatnonzero(classes >= 0)
    wild[rows] = -20.0
    wild[rows, classes[rows]] = 20.0
    ner.set_annotations(docs, output._replace(logits=wild))
    begin = 0
    for doc, reference in zip(docs, references, strict=True):
        seen = (classes >= 0).tolist()[begin : begin + len(doc)]
        expected = trimmed(reference, seen)
        if scheme == "IO":
            expected = joined(expected, seen)
        assert [(ent.start, ent.end, ent.label_) for ent in doc.ents] == expected
        assert len(doc.spans["ents"]) == len(expected)
        begin += len(doc)


@pytest.mark.parametrize("vocab", [NLP.vocab, Vocab()])
@given(words=st.lists(st.text(min_size=1, max_size=3) | st.sampled_from(BLANKS), max_size=6))
@settings(max_examples=100, deadline=None)
def test_blank_tokens_by_their_categories(vocab, words):
    docs = [Doc(vocab, words=words), Doc(vocab, words=words[:1]), Doc(vocab)]
    expected = [all(unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp") for c in word)
                for word in [*words, *words[:1]]]  # fmt: skip
    assert blank_tokens(docs).tolist() == expected


def test_blank_text():
    assert [is_blank(text) for text in BLANKS] == [True] * len(BLANKS)
    assert not any(map(is_blank, ["a", "\na", "\u0301", "\ufe0f", "_", "船"]))
    assert blank_tokens([]).tolist() == []
    assert count_visible("").tolist() == [0]
    assert count_visible("a \tb\x7f").tolist() == [0, 1, 1, 1, 2, 2]
    assert count_visible("é\u200bİ").tolist() == [0, 1, 1, 2]
    assert count_visible("é\u200bİ", lower=True).tolist() == [0, 1, 1, 3]


# --- the warning


def example_of(words: list[str], *ents: tuple[int, int, str]) -> Example:
    doc = Doc(NLP.vocab, words=words)
    doc.ents = [Span(doc, start, end, label) for start, end, label in ents]
    return Example(Doc(NLP.vocab, words=words), doc)


def zeros(n: int, known: list[int] | None = None):
    has = np.ones(n, dtype=bool)
    has[known or []] = False
    return token_logits(np.zeros((n, 5), dtype=np.float32), has, ints(n))


def test_moved_borders_are_counted():
    ner = make_head("ner")
    good = example_of(["New", "\n", "York", "x"], (0, 3, "A"))
    bad = example_of(["\n", "Hull", "x", "\n"], (0, 2, "A"), (3, 4, "B"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_loss(ner, [good], zeros(4))
    with pytest.warns(UserWarning, match="bert_ner: 2 gold entities begin or end with white space"):
        _, gradient = get_loss(ner, [bad], zeros(4))
    taught = [int(row.argmin()) if row.any() else -1 for row in gradient]
    assert taught == [-1, 1, 0, -1]
    with warnings.catch_warnings():  # not again in the next epoch
        warnings.simplefilter("error")
        get_loss(ner, [bad], zeros(4))
    more = [example_of([str(i), "\n"], (0, 2, "A")) for i in range(8)]
    output = token_logits(np.zeros((16, 5), dtype=np.float32), np.ones(16, dtype=bool),
                          ints(*[2] * 8))  # fmt: skip
    with pytest.warns(UserWarning, match="10 gold entities"):
        get_loss(ner, more, output)


def test_a_word_without_a_wordpiece_at_a_border():
    ner = make_head("ner")
    with pytest.warns(UserWarning, match="1 gold entities begin or end"):
        _, gradient = get_loss(ner, [example_of(["a", "b", "c"], (0, 2, "A"))], zeros(3, [0]))
    assert [int(row.argmin()) if row.any() else -1 for row in gradient] == [-1, 1, 0]


# --- in training


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("scheme", ["BIO", "BILOU"])
def test_an_entity_behind_a_line_break_is_learned_and_found(make_nlp, folders, family, scheme):
    nlp = make_nlp(initialize=False, name=folders(family))
    nlp.add_pipe("bert_ner", config={"scheme": scheme})
    texts = [("Port of call:\nHull now", [(13, 18, "PLACE")]),
             ("Lost off Skagen\n\nToday", [(9, 17, "PLACE")])]  # fmt: skip
    examples = []
    for text, spans in texts:
        reference = nlp.make_doc(text)
        reference.ents = [reference.char_span(s, e, label=label) for s, e, label in spans]
        examples.append(Example(nlp.make_doc(text), reference))
    torch.manual_seed(0)
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 3e-3
    with pytest.warns(UserWarning, match="2 gold entities begin or end with white space"):
        for _ in range(25):
            nlp.update(examples, sgd=optimizer)
    found = [[ent.text for ent in nlp(text).ents] for text, _ in texts]
    assert found == [["Hull"], ["Skagen"]]
