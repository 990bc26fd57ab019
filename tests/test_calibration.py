"""Temperatures: what they change, what they leave, and how they are fitted."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from head_cases import BIO, NLP, make_head, random_logits, tags_of
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import token_logits
from spacy.tokens import Doc
from spacy.training import Example

from spacy_bert_heads.calibration.collect import Collected, Part
from spacy_bert_heads.calibration.fit import fit_temperature, minimise
from spacy_bert_heads.heads.calibrated import rescale
from spacy_bert_heads.heads.claims import Claim
from spacy_bert_heads.pairs import make_answer

TEMPERATURES = st.floats(0.05, 20)


def cats_examples(head, classes: np.ndarray) -> list[Example]:
    examples = []
    for label in classes:
        gold, found = (Doc(head.vocab, words=["x"]) for _ in range(2))
        gold.cats = {one: float(i == label) for i, one in enumerate(head.labels)}
        examples.append(Example(found, gold))
    return examples


def drawn(head, n: int, sharpness: float) -> tuple[Collected, torch.Tensor, torch.Tensor]:
    """Logits that are too large by a factor, with the truth drawn by the right ones."""
    rng = np.random.default_rng(0)
    right = torch.from_numpy(rng.normal(size=(n, len(head.labels))) * 2)
    classes = torch.from_numpy(
        np.asarray([rng.choice(len(p), p=p) for p in right.softmax(1).numpy()])
    )
    logits = (right * sharpness).float()
    part = Part(cats_examples(head, classes.numpy()), logits)
    return Collected(head, [part]), logits, classes


@pytest.mark.parametrize("sharpness", [0.4, 3.0])
def test_the_temperature_is_that_of_lbfgs(sharpness):
    head = make_head("textcat", labels=("A", "B", "C"))
    found, logits, classes = drawn(head, 400, sharpness)
    log_t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.double() / log_t.exp(), classes)
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted = fit_temperature(found)
    assert fitted.temperature == pytest.approx(float(log_t.exp().detach()), rel=2e-3)
    assert fitted.nll == pytest.approx(float(closure().detach()), abs=1e-5)
    assert fitted.nll_before == pytest.approx(float(F.cross_entropy(logits, classes)), abs=1e-5)
    assert fitted.claims == 400 and fitted.errors == int((logits.argmax(1) != classes).sum())
    assert abs(np.log(fitted.temperature / sharpness)) < 0.25  # the truth, but for chance
    assert head.temperature == 1.0  # nothing is changed by looking


def test_a_head_that_is_always_right_has_no_best_temperature():
    head = make_head("textcat")
    found = Collected(head, [Part(cats_examples(head, np.asarray([0, 0])), torch.eye(2)[[0, 0]])])
    with pytest.raises(ValueError, match=r"bert_textcat has no errors on this data \(2 claims\)"):
        fit_temperature(found)


@given(st.floats(-2.9, 2.9), st.floats(0.1, 5))
def test_the_minimum_is_found(place, width):
    found = minimise(lambda x: abs((x - place) / width) ** 1.5, -3.0, 3.0)
    assert found == pytest.approx(place, abs=2e-3)


# --- what stays


@settings(max_examples=30)
@given(TEMPERATURES, st.sampled_from(["softmax", "crf"]), st.integers(0, 1000))
def test_entities_stay(temperature, loss, seed):
    """A temperature divides all scores of a path, those of transitions too."""
    head = make_head("ner", loss=loss, spans_key=None)
    docs = [Doc(head.vocab, words=list("abcdefg")) for _ in range(2)]
    output = token_logits(random_logits(14, 5, seed=seed), np.ones(14, bool), np.asarray([7, 7]))
    if loss == "crf":
        output = output._replace(transitions=torch.from_numpy(random_logits(6, 6, seed=seed + 1)))
    head.set_annotations(docs, output)
    before = [[(ent.start, ent.end, ent.label_) for ent in doc.ents] for doc in docs]
    scores = [doc._.ent_scores for doc in docs]
    head.set_temperature(temperature)
    head.set_annotations(docs, output)
    assert [[(ent.start, ent.end, ent.label_) for ent in doc.ents] for doc in docs] == before
    if abs(temperature - 1) > 0.1 and before[0]:
        assert [doc._.ent_scores for doc in docs] != scores


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0, 1))
def test_a_threshold_leaves_out_less_probable_entities(seed, threshold):
    """And nothing else; what is left out is told, in the same words."""
    head = make_head("ner", spans_key=None)
    doc = Doc(head.vocab, words=list("abcdefg"))
    output = token_logits(random_logits(7, 5, seed=seed), np.ones(7, bool), np.asarray([7]))
    head.set_annotations([doc], output)
    found = doc._.ent_scores
    assert doc._.abstained == []
    head.cfg["threshold"] = threshold
    head.set_annotations([doc], output)
    assert doc._.ent_scores == [one for one in found if one["score"] >= threshold]
    assert doc._.abstained == [one for one in found if one["score"] < threshold]


def test_the_probability_of_an_entity_by_hand():
    """B-A with logit 2 against 0 of four other tags, at temperature 2: e / (e + 4); behind it "O"
    with logit 20, that is e^10 / (e^10 + 4): I-A, which would go on, has 1 / (e^10 + 4)."""
    assert BIO == ["O", "B-A", "I-A", "B-B", "I-B"] == tags_of("BIO", "AB")
    head = make_head("ner", spans_key=None, temperature=2.0)
    logits = np.asarray([[0, 2, 0, 0, 0], [20, 0, 0, 0, 0]], dtype=np.float32)
    doc = Doc(head.vocab, words=["a", "b"])
    head.set_annotations([doc], token_logits(logits, np.ones(2, bool), np.asarray([2])))
    e = np.e
    assert doc._.ent_scores[0]["score"] == pytest.approx(
        e / (e + 4) * (1 - 1 / (e**10 + 4)), rel=1e-6
    )


@settings(max_examples=40)
@given(TEMPERATURES, st.floats(0.01, 0.99), st.lists(st.floats(-8, 8), min_size=2, max_size=2))
def test_categories_stay(temperature, threshold, logits):
    head = make_head("textcat_multilabel", threshold=threshold)
    output = torch.tensor([logits])
    doc = Doc(head.vocab, words=["x"])
    head.set_annotations([doc], output)
    before = {label for label, p in doc.cats.items() if p >= head.cfg["threshold"]}
    if any(abs(p - threshold) < 1e-4 for p in doc.cats.values()):
        return  # by the last digit of a float32
    head.set_temperature(temperature)
    head.set_annotations([doc], output)
    after = {label for label, p in doc.cats.items() if p >= head.cfg["threshold"]}
    near = any(abs(p - head.cfg["threshold"]) < 1e-6 for p in doc.cats.values())
    assert after == before or near
    expected = (output[0].double() / temperature).sigmoid().tolist()
    assert list(doc.cats.values()) == pytest.approx(expected, abs=1e-6)


@given(st.floats(0.001, 0.999), st.floats(0.1, 5))
def test_a_threshold_goes_there_and_back(p, factor):
    there = rescale(p, factor)
    # Above 0.5 a float64 has 2**-53 of precision left, which the way back multiplies by the slope.
    slope = p * (1 - p) / (factor * there * (1 - there))
    assert rescale(there, 1 / factor) == pytest.approx(p, abs=1e-12 + 2**-51 * slope)
    assert [rescale(x, factor) for x in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    assert rescale(p, 1e6) == float(p > 0.5) or p == 0.5  # no overflow


def test_answers_stay(answering):
    """The threshold of "no answer" moves with the probabilities."""
    qa = answering.get_pipe("bert_qa")
    docs = [answering.make_doc("Anna left Skagen on Tuesday."), answering.make_doc("Nobody left.")]
    for doc in docs:
        doc._.questions = ["Who left?", "When?", "Where?"]
    raw = qa.run(docs)
    with qa.trying():
        for threshold in (0.0, 0.2, 0.5, 0.9, 1.0):
            qa.cfg.update(no_answer_threshold=threshold, temperature=1.0)
            qa.set_annotations(docs, qa.read(raw))
            before = [[a["text"] for a in doc._.answers] for doc in docs]
            scores = [[a["no_answer_score"] for a in doc._.answers] for doc in docs]
            qa.set_temperature(2.5)
            qa.set_annotations(docs, qa.read(raw))
            assert [[a["text"] for a in doc._.answers] for doc in docs] == before
            after = [[a["no_answer_score"] for a in doc._.answers] for doc in docs]
            wanted = [[rescale(p, 1 / 2.5) for p in row] for row in scores]
            np.testing.assert_allclose(after, wanted, rtol=1e-4, atol=1e-7)
    assert qa.temperature == 1.0


# --- what is claimed


def test_claims_of_entities():
    head = make_head("ner", spans_key=None)
    logits = np.full((4, 5), -9.0, dtype=np.float32)
    logits[[0, 1, 2, 3], [1, 0, 3, 0]] = 0  # A O B O
    gold, found = (Doc(head.vocab, words=list("abcd")) for _ in range(2))
    gold.set_ents([gold.char_span(0, 1, label="A"), gold.char_span(4, 5, label="A")])
    output = token_logits(logits, np.ones(4, bool), np.asarray([4]))
    head.set_annotations([found], output)
    claims = list(head.claims([Example(found, gold)], output))
    assert [(claim.label, claim.is_right) for claim in claims] == [("A", True), ("B", False)]
    assert claims[0].truth == claims[0].probability == found.ents[0]._.ent_score
    assert claims[1].truth == 1 - claims[1].probability
    assert head.truths(Example(found, gold)) == {"A": 2, "B": 0}


def test_each_head_claims_what_it_found_itself():
    """Of two recognizers the second adds to the first; both are fitted on Docs of their own."""
    first, second = (NLP.create_pipe("bert_ner", name=name) for name in ("one", "two"))
    for head in (first, second):
        head.add_label("A"), head.add_label("B")
    logits = np.full((2, 2, 5), -9.0, dtype=np.float32)
    logits[[0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 3]] = 0  # A O by the first, O B by the second
    gold, found = (Doc(NLP.vocab, words=["a", "b"]) for _ in range(2))
    gold.set_ents([gold.char_span(0, 1, label="A")])
    for head, row in zip((first, second), logits, strict=True):
        output = token_logits(row, np.ones(2, bool), np.asarray([2]))
        head.set_annotations([found], output)
    labels = [
        [(one.label, one.is_right) for one in head.claims([Example(found, gold)], None)]
        for head in (first, second)
    ]
    assert labels == [[("A", True)], [("B", False)]]


def test_claims_of_tags():
    head = make_head("tagger", temperature=2.0)
    gold, found = (Doc(head.vocab, words=list("abc")) for _ in range(2))
    for token, tag in zip(gold, ("A", "B", ""), strict=True):
        token.tag_ = tag
    logits = np.asarray([[2, 0], [2, 0], [0, 2]], dtype=np.float32)
    output = token_logits(logits, np.ones(3, bool), np.asarray([3]))
    sure = float(torch.tensor(1.0).sigmoid())
    assert list(head.claims([Example(found, gold)], output)) == [
        Claim("A", pytest.approx(sure), True, pytest.approx(sure)),
        Claim("A", pytest.approx(sure), False, pytest.approx(1 - sure)),
    ]


def test_claims_of_categories_that_hold_or_not():
    head = make_head("textcat_multilabel")
    gold, found = (Doc(head.vocab, words=["x"]) for _ in range(2))
    gold.cats, found.cats = {"A": 1.0, "B": 1.0}, {"A": 0.75, "B": 0.25}
    claims = list(head.claims([Example(found, gold)], None))
    assert claims == [Claim("A", 0.75, True, 0.75), Claim("not B", 0.75, False, 0.25)]
    assert head.truths(Example(found, gold)) == {"A": 1, "B": 1}


def test_claims_of_verdicts_and_answers(answering):
    from spacy_bert_heads.pairs import make_verdict

    gold, found = (answering.make_doc("Anna left.") for _ in range(2))
    for doc in (gold, found):
        doc._.hypotheses, doc._.questions = ["She left."], ["Who?", "When?"]
    nli, qa = answering.get_pipe("bert_nli"), answering.get_pipe("bert_qa")
    first, second = nli.labels[:2]
    gold._.nli = [make_verdict(first)]
    found._.nli = [make_verdict(second, {first: 0.25, second: 0.5})]
    gold._.answers = [make_answer(gold, 0, 4), make_answer(gold)]
    found._.answers = [make_answer(found, 0, 4, score=0.75), make_answer(found, 0, 9, score=0.5)]
    example = Example(found, gold)
    assert list(nli.claims([example], None)) == [Claim(second, 0.5, False, 0.25)]
    assert list(qa.claims([example], None)) == [
        Claim("answer", 0.75, True, 0.75),
        Claim("answer", 0.5, False, 0.5),
    ]
    assert qa.truths(example) == {"answer": 1, "no answer": 1}
