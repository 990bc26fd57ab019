"""What gold data says is wrong: entities and spans that are none, tags that are not this."""

import numpy as np
import pytest
import torch
from arrays import ints
from head_cases import NLP, doc_of, make_head, random_logits, tags_of
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import assert_same_loss, get_loss, in_torch, token_logits
from spacy.tokens import Doc, Span
from spacy.training import Example
from thinc.api import Adam
from torch.nn import functional as F

from spacy_bert_heads.heads.decoding import decode
from spacy_bert_heads.heads.gold import Gold, GoldSpan, negations
from spacy_bert_heads.heads.negations import Negation, negation_losses
from spacy_bert_heads.heads.units import Units

KEY = "incorrect_spans"


def example_of(text: str, ents=(), wrong=(), *, default: str = "missing") -> Example:
    """Entities and spans that are none, of a text whose other tokens are not annotated."""
    reference = doc_of(text)
    if ents or default != "missing":
        reference.set_ents([Span(reference, *ent) for ent in ents], default=default)
    reference.spans[KEY] = [Span(reference, *span) for span in wrong]
    return Example(doc_of(text), reference)


def output_of(logits: np.ndarray):
    return token_logits(logits, np.ones(len(logits), dtype=bool), ints(len(logits)))


# --- −log(1 − p)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_negation_losses_are_those_of_the_product(data):
    n, n_classes = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 4))
    logits = random_logits(n, n_classes, seed=data.draw(st.integers(0, 50)))
    spans = []
    for _ in range(data.draw(st.integers(1, 3))):
        rows = np.asarray(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4)))
        one = st.lists(st.booleans(), min_size=n_classes, max_size=n_classes)
        masks = [data.draw(one.filter(lambda m: any(m) and not all(m))) for _ in rows]
        spans.append(Negation(rows, [np.asarray(mask) for mask in masks]))

    def product(x):
        losses = []
        for span in spans:
            p = torch.ones((), dtype=x.dtype)
            for row, mask in zip(span.rows, span.classes, strict=True):
                p = p * x[row].softmax(-1)[torch.from_numpy(mask)].sum()
            losses.append(-torch.log1p(-p))
        return torch.stack(losses).sum()

    x = torch.tensor(logits, requires_grad=True)
    loss = negation_losses(x, spans).sum()
    loss.backward()
    assert_same_loss((float(loss.detach()), x.grad.numpy()), in_torch(product, logits))


def test_a_certain_mistake_still_has_a_gradient():
    x = torch.tensor([[0.0, 80.0], [0.0, 90.0]], requires_grad=True)
    second = np.asarray([False, True])
    loss = negation_losses(x, [Negation(ints(0, 1), [second, second])]).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(80, abs=1e-3)  # 1 - p = e^-80 + e^-90
    np.testing.assert_allclose(x.grad.numpy(), [[-1, 1], [0, 0]], atol=1e-4)


@pytest.mark.parametrize("scheme", ["BIO", "BILOU"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.3, 3.0]))
def test_the_probability_is_that_of_the_entity(scheme, seed, scale):
    chance, tags = np.random.default_rng(seed), tags_of(scheme, "AB")
    lengths = ints(3, 0, 4)
    logits = chance.normal(scale=scale, size=(7, len(tags))).astype(np.float32)
    known = chance.random(7) < 0.8
    output = token_logits(logits, known, lengths)
    spans = decode(output, tags)
    units = Units(np.zeros(7, int), np.ones(7, int), lengths, known)
    begins = np.cumsum(lengths) - lengths
    wrong = []
    for doc, start, end, label in zip(*spans[:4], strict=True):
        rows = np.arange(begins[doc] + start, begins[doc] + end)
        wrong.append(GoldSpan(rows[known[rows]], "AB"[label]))
    gold = Gold(np.zeros(7, dtype=bool), [], wrong, [], [])
    found = negations(gold, units, tags, scheme, [1.0] * len(tags))
    if wrong:
        p = 1 - torch.exp(-negation_losses(output.logits, found)).numpy()
        np.testing.assert_allclose(p, spans.score, rtol=1e-3, atol=1e-6)


# --- entities


NEGATED = {
    "an entity !A": (lambda: example_of("a b c", [(1, 2, "!A")]), None),
    "a span of the group": (lambda: example_of("a b c", wrong=[(1, 2, "A")]), KEY),
}


@pytest.mark.parametrize("case", NEGATED)
@pytest.mark.parametrize("scheme", ["BIO", "BILOU", "IOB", "IOBES", "IO"])
def test_a_negated_entity_is_not_this(scheme, case):
    make, key = NEGATED[case]
    ner = make_head("ner", scheme=scheme, incorrect_spans_key=key)
    example, logits = make(), random_logits(3, len(ner.tags))
    assert ner.has_gold(example)
    assert list(ner.labels_of(example)) == []
    tags = np.asarray(ner.tags)
    own = np.char.endswith(tags, "-A")
    if scheme in ("BIO", "BILOU"):
        own = tags == ("B-A" if scheme == "BIO" else "U-A")

    def expected(x):
        p = x.softmax(-1)
        whole = p[1][torch.from_numpy(own)].sum()
        if scheme in ("BIO", "IOB", "IO"):  # the next token doesn't go on
            whole = whole * (1 - p[2, tags.tolist().index("I-A")])
        return -torch.log1p(-whole)

    assert_same_loss(get_loss(ner, [example], output_of(logits)), in_torch(expected, logits))


def test_a_mean_over_tokens_and_negations():
    ner = make_head("ner", incorrect_spans_key=KEY)
    examples = [
        example_of("a b", [(0, 1, "B")], [(0, 2, "A")], default="outside"),
        example_of("c d", [(0, 2, "!B")]),
        example_of("e", [(0, 1, "!X")]),  # which is never found anyway
    ]
    logits = random_logits(5, 5)
    output = token_logits(logits, np.ones(5, dtype=bool), ints(2, 2, 1))

    def expected(x):
        p = x.softmax(-1)
        first = -torch.log1p(-p[0, 1] * p[1, 2]) - torch.log1p(-p[2, 3] * p[3, 4])
        gold = torch.tensor([3, 0])
        return (F.cross_entropy(x[:2], gold, reduction="sum") + first) / 4

    assert_same_loss(get_loss(ner, examples, output), in_torch(expected, logits))


def test_the_group_is_read_if_asked_for():
    example = example_of("a b c", wrong=[(1, 2, "A")])
    assert not make_head("ner").has_gold(example)
    assert not make_head("ner", incorrect_spans_key="other").has_gold(example)
    assert not make_head("ner", incorrect_spans_key=KEY).has_gold(example_of("a b c"))


def test_a_span_that_is_right_and_wrong():
    ner = make_head("ner", incorrect_spans_key=KEY)
    example = example_of("a b", [(0, 1, "A")], [(0, 1, "A")])
    with pytest.raises(ValueError, match=r"'a' is an entity A and also in doc.spans\['incorr"):
        get_loss(ner, [example], output_of(random_logits(2, 5)))
    other = example_of("a b", [(0, 1, "A")], [(0, 1, "B"), (0, 2, "A")])
    get_loss(ner, [other], output_of(random_logits(2, 5)))


def test_an_old_label_with_a_mark_is_a_label():
    """A pipeline of 0.1 that learned `!A` as an entity goes on with it."""
    ner = make_head("ner", ["!A", "!"])
    example = example_of("a b", [(0, 1, "!A"), (1, 2, "!")])
    assert list(ner.labels_of(example)) == ["!A", "!"]
    logits = random_logits(2, 5)
    gold = torch.tensor([1, 3])
    expected = in_torch(lambda x: F.cross_entropy(x, gold), logits)
    assert_same_loss(get_loss(ner, [example], output_of(logits)), expected)


def test_negated_entities_are_not_scored_as_entities():
    ner = make_head("ner")
    example = example_of("a b c", [(0, 1, "A"), (1, 2, "!A")], default="outside")
    example.predicted.ents = [
        Span(example.predicted, 0, 1, "A"),
        Span(example.predicted, 1, 2, "B"),
    ]
    scores = ner.score([example])
    assert (scores["ents_p"], scores["ents_r"], set(scores["ents_per_type"])) == (1, 1, {"A", "B"})
    assert [ent.label_ for ent in example.reference.ents] == ["A", "!A"]  # as it was


def test_training_on_rejected_spans(make_nlp):
    """A place that is rejected is found no more, the others are."""
    nlp = make_nlp(initialize=False)
    nlp.add_pipe("bert_ner", config={"incorrect_spans_key": KEY})

    def make(text, ents=(), wrong=()):
        reference = nlp.make_doc(text)
        reference.ents = [Span(reference, *ent) for ent in ents]
        if wrong:
            reference.set_ents([], default="missing")
            reference.spans[KEY] = [Span(reference, *span) for span in wrong]
        return Example(nlp.make_doc(text), reference)

    positive = [make("Anna left Hull", [(2, 3, "PLACE"), (0, 1, "PER")]),
                make("The boat burned in Skagen", [(4, 5, "PLACE")])]  # fmt: skip
    negative = [make("The boat burned in Skagen", wrong=[(4, 5, "PLACE")])]
    torch.manual_seed(0)
    nlp.initialize(lambda: positive)
    assert nlp.get_pipe("bert_ner").labels == ("PER", "PLACE")

    def train(examples):
        optimizer = Adam(2e-3, use_averages=False)
        for _ in range(25):
            nlp.update(examples, sgd=optimizer)
        docs = [nlp(eg.reference.text) for eg in positive]
        return [{(ent.text, ent.label_) for ent in doc.ents} for doc in docs]

    with pytest.warns(UserWarning, match="A learning rate"):
        both = {("Anna", "PER"), ("Hull", "PLACE")}
        assert train(positive) == [both, {("Skagen", "PLACE")}]
        first, second = train([positive[0], *negative])
    assert first == both
    assert ("Skagen", "PLACE") not in second


# --- tags


def test_a_negated_tag_is_not_this():
    tagger = make_head("tagger", ["N", "V", "_SP"])
    gold = [["N", "!N", "!V", "!X", ""], ["!N", "V"]]
    examples = [
        Example.from_dict(doc_of("a b c d e"), {"tags": gold[0]}),
        Example.from_dict(doc_of("f g"), {"tags": gold[1]}),
    ]
    assert [list(tagger.labels_of(eg)) for eg in examples] == [["N"], ["V"]]
    logits = random_logits(7, 3)
    known = np.ones(7, dtype=bool)
    known[2] = False

    def expected(x):
        p = x.softmax(-1)
        wrong = -torch.log1p(-p[1, 0]) - torch.log1p(-p[5, 0])
        right = F.cross_entropy(x[[0, 6]], torch.tensor([0, 1]), reduction="sum")
        return (wrong + right) / 4

    output = token_logits(logits, known, ints(5, 2))
    assert_same_loss(get_loss(tagger, examples, output), in_torch(expected, logits))


def test_a_tag_is_a_mark_alone():
    tagger = make_head("tagger", ["!", "!N"])
    example = Example.from_dict(doc_of("a b c"), {"tags": ["!", "!N", "!!"]})
    assert list(tagger.labels_of(example)) == ["!", "!N"]  # "!!" is not "!"
    logits = random_logits(3, 2)

    def expected(x):
        right = F.cross_entropy(x[:2], torch.tensor([0, 1]), reduction="sum")
        return (right - torch.log1p(-x[2].softmax(-1)[0])) / 3

    assert_same_loss(get_loss(tagger, [example], output_of(logits)), in_torch(expected, logits))


def test_negated_tags_are_not_scored():
    tagger = make_head("tagger", ["N", "V"])
    example = Example.from_dict(doc_of("a b c"), {"tags": ["N", "!N", "V"]})
    for token, tag in zip(example.predicted, ["N", "V", "N"], strict=True):
        token.tag_ = tag
    assert tagger.score([example]) == {"tag_acc": 0.5}


# --- tags that are there


@pytest.mark.parametrize("attr, tags", [("tag", ("NN", "VB")), ("pos", ("NOUN", "VERB"))])
@pytest.mark.parametrize("overwrite", [None, False, True])
def test_preset_tags_are_kept_unless_overwrite(attr, tags, overwrite):
    config = {} if overwrite is None else {"overwrite": overwrite}
    tagger = make_head("tagger", tags, attr=attr, **config)
    doc = Doc(NLP.vocab, words=["a", "b", "c"])
    setattr(doc[1], f"{attr}_", tags[1])
    logits = np.asarray([[1, 0]] * 3, dtype=np.float32)
    tagger.set_annotations([doc], output_of(logits))
    found = [getattr(token, f"{attr}_") for token in doc]
    assert found == [tags[0], tags[0] if overwrite else tags[1], tags[0]]
