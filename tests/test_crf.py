"""Conditional random fields beside all paths that there are, and in the recognizer."""

import itertools
import math

import numpy as np
import pytest
import spacy
import torch
from conftest import make_examples
from head_cases import make_head, tags_of
from hypothesis import given, settings
from hypothesis import strategies as st
from three_heads import DATA, LANG, annotate, close, train

from spacy_bert_heads import to_hf
from spacy_bert_heads.heads.crf import (
    NEVER,
    Texts,
    allowed_transitions,
    bar,
    crf_loss,
    log_partition,
)
from spacy_bert_heads.heads.decoding import decode
from spacy_bert_heads.heads.negations import Negation
from spacy_bert_heads.heads.outputs import TokenLogits
from spacy_bert_heads.heads.tags import Layout

SCHEMES = st.sampled_from(["BIO", "BILOU", "IOB"])


def tags_in(scheme: str) -> list[str]:
    return tags_of("BILOU" if scheme == "BILOU" else "BIO", "AB")


class Case:
    """Some texts of a few tokens, and the score of every path of each."""

    def __init__(self, scheme: str, lengths: list[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.scheme, self.tags, self.lengths = scheme, tags_in(scheme), np.asarray(lengths)
        n, k = sum(lengths), len(self.tags)
        self.logits = torch.from_numpy(rng.normal(size=(n, k)) * 2)
        self.transitions = torch.from_numpy(rng.normal(size=(k + 1, k + 1)))
        self.strict = scheme != "IOB"
        self.allowed = allowed_transitions(self.tags, strict=self.strict)
        self.rng = rng

    def paths(self, text: int) -> list[tuple[tuple[int, ...], float]]:
        """All paths of a text that make sense, with their scores."""
        start = int(self.lengths[:text].sum())
        rows = self.logits[start : start + int(self.lengths[text])]
        found = []
        for path in itertools.product(range(len(self.tags)), repeat=len(rows)):
            around = [0, *(tag + 1 for tag in path), 0]
            steps = list(zip(around, around[1:], strict=False))
            if all(self.allowed[step] for step in steps):
                score = sum(float(self.transitions[step]) for step in steps)
                score += sum(float(row[tag]) for row, tag in zip(rows, path, strict=True))
                found.append((path, score))
        return found

    def output(self) -> TokenLogits:
        known = np.ones(len(self.logits), dtype=bool)
        return TokenLogits(self.logits, known, self.lengths, transitions=self.transitions)


def log_sum(scores) -> float:
    return float(np.logaddexp.reduce(list(scores)))


CASES = st.builds(
    Case, SCHEMES, st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 10**6)
)
quickly = settings(max_examples=12, deadline=None)


@quickly
@given(CASES)
def test_sums_over_paths(case):
    found = log_partition(case.logits, Texts.of(case.lengths), bar(case.transitions, case.allowed))
    expected = [log_sum(score for _, score in case.paths(i)) for i in range(len(case.lengths))]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


@quickly
@given(CASES)
def test_the_best_path_and_the_probability_of_its_entities(case):
    spans = decode(case.output(), case.tags, strict=case.strict)
    layout = Layout.of(tuple(case.tags))
    for text in range(len(case.lengths)):
        paths = case.paths(text)
        z = log_sum(score for _, score in paths)
        best = max(paths, key=lambda pair: pair[1])[0]
        own = np.flatnonzero(spans.doc == text)
        rows = zip(spans.start[own], spans.end[own], spans.label[own], strict=True)
        found = [(int(start), int(end), int(label)) for start, end, label in rows]
        assert found == entities_of(best, layout)
        for (start, end, label), p in zip(found, spans.score[own], strict=True):
            inside = layout.inside_of[best[start]]
            same = [
                score
                for path, score in paths
                if path[start:end] == best[start:end]
                and (layout.has_ends or end == len(path) or path[end] != inside)
            ]
            assert p == pytest.approx(math.exp(log_sum(same) - z), abs=1e-9), label


def entities_of(path, layout) -> list[tuple[int, int, int]]:
    """Spans by hand: one begins where a tag does not go on."""
    spans: list[list[int]] = []
    before = -1
    for i, tag in enumerate(path):
        label = int(layout.label[tag])
        goes_on = layout.goes_on[tag] and before >= 0 and layout.label[before] == label
        if goes_on and not layout.ends[before]:
            spans[-1][1] = i + 1
        elif label >= 0:
            spans.append([i, i + 1, label])
        before = tag
    return [tuple(span) for span in spans]


@quickly
@given(CASES, st.booleans())
def test_the_loss(case, with_negations):
    """What is annotated, in parts, and what is known to be wrong."""
    classes, total, items = [], 0.0, 0
    negations, starts = [], np.cumsum(case.lengths) - case.lengths
    for text, length in enumerate(case.lengths):
        paths = case.paths(text)
        z = log_sum(score for _, score in paths)
        true = paths[case.rng.integers(len(paths))][0]
        known = case.rng.random(length) < 0.6
        classes += [tag if is_known else -1 for tag, is_known in zip(true, known, strict=True)]
        agree = [s for p, s in paths if all((np.asarray(p) == true) | ~known)]
        total += z - log_sum(agree)
        items += int(known.sum())
        if with_negations and len(paths) > 1:
            masks = [np.arange(len(case.tags)) == tag for tag in true]
            negations.append(Negation(starts[text] + np.arange(length), masks))
            p = math.exp(dict(paths)[true] - z)
            total -= math.log1p(-p)
            items += 1
    arguments = np.asarray(classes), case.lengths, np.ones(len(classes), dtype=bool)
    loss = crf_loss(
        case.logits, case.transitions, *arguments, allowed=case.allowed, negations=negations
    )
    assert float(loss) == pytest.approx(total / max(items, 1), rel=1e-6, abs=1e-9)
    assert loss.num_items == items


@pytest.mark.parametrize("scheme", ["BIO", "BILOU", "IOB"])
def test_gradients(scheme):
    case = Case(scheme, [3, 1, 2], 0)
    for tensor in (case.logits, case.transitions):
        tensor.requires_grad_()
    path = case.paths(0)[7][0]
    classes = np.asarray([path[0], -1, path[2], -1, 0, -1])
    tagged = np.asarray([True] * 5 + [False])
    one = np.arange(len(case.tags)) == 1
    wrong = [Negation(np.asarray([4]), [one])]

    def loss(logits, transitions):
        arguments = classes, case.lengths, tagged
        return crf_loss(
            logits, transitions, *arguments, allowed=case.allowed, negations=wrong
        ).double()

    assert torch.autograd.gradcheck(loss, (case.logits, case.transitions))
    loss(case.logits, case.transitions).backward()
    barred = torch.from_numpy(~case.allowed)
    assert not case.transitions.grad[barred].any()
    assert not case.logits.grad[5].any()  # white space


@quickly
@given(CASES)
def test_without_transitions_it_is_the_softmax(case):
    """Single tokens are independent then; where nothing is barred all is the same."""
    output = case.output()._replace(transitions=torch.zeros_like(case.transitions))
    spans = decode(output, case.tags, strict=False)
    expected = decode(output._replace(transitions=None), case.tags, strict=False)
    for found, wanted in zip(spans, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-9)
    classes = case.logits.argmax(1).numpy()
    everything = np.ones_like(case.allowed)
    loss = crf_loss(
        case.logits,
        output.transitions,
        classes,
        case.lengths,
        np.ones(len(classes), dtype=bool),
        allowed=everything,
    )
    expected = torch.nn.functional.cross_entropy(case.logits, torch.from_numpy(classes))
    assert float(loss) == pytest.approx(float(expected))


def test_extreme_logits_and_no_annotation():
    case = Case("BIO", [3, 2], 1)
    logits = torch.tensor([[900.0, -900, -900, 0, 0]] * 5, requires_grad=True)
    arguments = case.lengths, np.ones(5, dtype=bool)
    for classes in (np.zeros(5, dtype=int), np.full(5, 3), np.full(5, -1)):
        loss = crf_loss(logits, case.transitions.float(), classes, *arguments, allowed=case.allowed)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert float(loss) == 0 and loss.num_items == 0
    empty = TokenLogits(torch.zeros(0, 5), np.ones(0, dtype=bool), np.asarray([0, 0]))
    assert not len(decode(empty._replace(transitions=case.transitions), case.tags).doc)
    assert NEVER < -745  # exp() of it is 0 in float64


# --- in the recognizer


def build(checkpoint: str, **config):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 16, "stride": 8}})
    nlp.add_pipe("bert_ner", config={"loss": "crf", **config})
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp, DATA))
    return nlp


@pytest.mark.parametrize("config", [{}, {"scheme": "BILOU"}, {"aggregation": "simple"}])
def test_overfit_and_reload(checkpoint, tmp_path, config):
    """In windows of 16, so that texts are longer."""
    nlp = build(checkpoint, **config)
    module = nlp.get_pipe("bert_ner").model.shims[0].module
    assert not module.transitions.any()
    train(nlp)
    assert module.transitions.abs().max() > 0.01
    assert nlp.evaluate(make_examples(nlp, DATA))["ents_f"] == 1.0
    expected = annotate(nlp)
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    assert annotate(loaded) == close(expected)
    other = loaded.get_pipe("bert_ner").model.shims[0].module
    assert torch.equal(other.transitions, module.transitions)
    with pytest.raises(
        ValueError, match='trained with loss = "crf", so it can.t be loaded with "softmax"'
    ):
        spacy.load(tmp_path, config={"components.bert_ner.loss": "softmax"})
    with pytest.raises(ValueError, match="conditional random field. Train it with loss"):
        to_hf(nlp, "bert_ner", tmp_path / "hf")


def test_settings(checkpoint, make_nlp, tmp_path):
    with pytest.raises(ValueError, match="loss is 'hinge'. Choose one of: softmax, crf"):
        make_head("ner", loss="hinge")
    for settings_ in ({"class_weights": {"O": 0.5}}, {"label_smoothing": 0.1}):
        with pytest.raises(ValueError, match="which apply to single tokens"):
            make_head("ner", loss="crf", **settings_)
    head = make_head("ner", labels=[f"L{i}" for i in range(99)], loss="crf")
    head.check_labels()  # 199 tags
    head.add_label("one more")
    with pytest.raises(ValueError, match='201 tags, but loss = "crf" takes at most 200'):
        head.check_labels()
    make_nlp("ner").to_disk(tmp_path)
    with pytest.raises(
        ValueError, match='trained with loss = "softmax", so it can.t be loaded with "crf"'
    ):
        spacy.load(tmp_path, config={"components.bert_ner.loss": "crf"})
