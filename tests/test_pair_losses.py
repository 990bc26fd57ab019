"""Losses of heads that read pairs, beside torch's."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from letter_pairs import TEN, pairs_of
from letters import letters
from losses import assert_same_loss, get_loss, in_torch
from pair_examples import NLP, make_example, make_head
from spacy.training import Example
from torch.nn import functional as F

from spacy_bert_heads.heads.losses import span_divergence
from spacy_bert_heads.heads.outputs import SpanLogits, differentiate
from spacy_bert_heads.heads.qa_windows import find_targets
from spacy_bert_heads.text.packing import pack_pairs


def qa_loss(x, rows, window: int, stride: int):
    """Cross-entropy over context and [CLS] of every window, by the text alone."""
    losses, slot = [], 0
    asked = [(text, *item) for text, questions in rows for item in questions.items()]
    for text, question, answer in asked:
        offsets = letters().tokenizer.encode(text, add_special_tokens=False).offsets
        n, room = len(question), window - 3 - len(question)
        step = room - min(window - 2 - stride, room // 2)
        starts = range(0, max(len(offsets) - room, 0) + step, step)
        begin, end = answer or (0, 0)
        wanted = [i for i, (a, b) in enumerate(offsets) if a < end and b > begin]
        parts = [range(start, min(start + room, len(offsets))) for start in starts]
        holds = [bool(wanted) and {*wanted} <= {*part} for part in parts]
        for part, here in zip(parts, holds, strict=True):
            candidates = [slot, *range(slot + n + 2, slot + n + 2 + len(part))]
            slot += n + 3 + len(part)
            if answer is None or (begin < end and not any(holds)):
                continue
            targets = [1 + i - part[0] for i in (wanted[0], wanted[-1])] if here else [0, 0]
            for column, target in enumerate(targets):
                loss = F.cross_entropy(x[candidates, column][None], torch.tensor([target]))
                losses.append(loss)
    assert slot == len(x)
    return sum(losses) / len(losses) if losses else None


QA_ROWS = [
    (TEN, {"yz": (4, 9), "z": (0, 0), "x": (18, 19), "xyz": (0, 19)}),  # the last is too long
    ("k lm", {"a": (2, 4), "b": (3, 4), "c": (0, 4)}),
    ("", {"a": (0, 0)}),
    ("abcd ef", {"x": (1, 3), "y": (3, 6), "z": (4, 5)}),  # the last is but a space
]


def scores_of(rows, *, window: int, stride: int, seed: int = 0) -> tuple[list[Example], SpanLogits]:
    pairs = pairs_of(*((text, list(questions)) for text, questions in rows))
    batch = pack_pairs(pairs, letters(), window=window, stride=stride)
    logits = np.random.default_rng(seed).normal(size=(len(batch.input_ids), 2)) * 3
    examples = [make_example(NLP, text, {"questions": qs}) for text, qs in rows]
    answers = [place for _, questions in rows for place in questions.values()]
    targets = find_targets(batch, np.asarray(answers, dtype=np.int64).reshape(-1, 2))
    return examples, SpanLogits(torch.from_numpy(logits.astype(np.float32)), batch, targets)


@pytest.mark.parametrize("window, stride", [(40, 30), (10, 6), (10, 8), (14, 4)])
def test_qa_loss_is_torchs(window, stride):
    examples, scores = scores_of(QA_ROWS, window=window, stride=stride)
    found = get_loss(make_head("qa"), examples, scores)
    expected = in_torch(lambda x: qa_loss(x, QA_ROWS, window, stride), scores.logits)
    assert_same_loss(found, expected)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text("abc ", max_size=24).map(lambda text: " ".join(text.split())),
            st.dictionaries(
                st.text("xyz", min_size=1, max_size=4),
                st.tuples(st.floats(0, 1), st.floats(0, 1)),
                max_size=3,
            ),
        ),
        max_size=3,
    ),
    window=st.integers(9, 16),
    stride=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_qa_loss_is_torchs_for_any_answers(rows, window, stride, seed):
    placed = []
    for text, questions in rows:
        size = len(text)
        spans = {q: sorted((round(a * size), round(b * size))) for q, (a, b) in questions.items()}
        placed.append((text, {q: (a, b) if a < b else (0, 0) for q, (a, b) in spans.items()}))
    examples, scores = scores_of(placed, window=window, stride=stride, seed=seed)
    loss, gradient = get_loss(make_head("qa"), examples, scores)
    if qa_loss(scores.logits, placed, window, stride) is None:
        assert loss == 0.0 and not gradient.any()
    else:
        expected = in_torch(lambda x: qa_loss(x, placed, window, stride), scores.logits)
        assert_same_loss((loss, gradient), expected)


def test_qa_loss_by_hand():
    # [CLS] x [SEP] a b [SEP]: three candidates
    examples, scores = scores_of([("a b", {"x": (2, 3)})], window=12, stride=6)
    logits = np.zeros((6, 2), dtype="f")
    loss, gradient = get_loss(
        make_head("qa"), examples, scores._replace(logits=torch.from_numpy(logits))
    )
    assert loss == pytest.approx(np.log(3))
    sixth = 1 / 6
    expected = [[sixth] * 2, [0, 0], [0, 0], [sixth] * 2, [sixth - 0.5] * 2, [0, 0]]
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_the_divergence_of_answers_is_torchs():
    # [CLS] x [SEP] a b [SEP] [CLS] y z [SEP] a b [SEP]: three candidates each
    rows = [("a b", {"x": (2, 3), "yz": (0, 0)})]
    (_, made), (_, wanted) = (scores_of(rows, window=12, stride=6, seed=seed) for seed in (1, 2))
    windows = [[0, 3, 4], [6, 10, 11]]

    def loss(x: torch.Tensor) -> torch.Tensor:
        parts = [
            F.kl_div(x[rows].log_softmax(0), wanted.logits[rows].softmax(0), reduction="sum")
            for rows in windows
        ]
        return sum(parts) / 2 / len(windows)

    found, gradient = differentiate(lambda output: span_divergence(output, wanted), made)
    assert_same_loss((float(found), gradient.logits.numpy()), in_torch(loss, made.logits))
    assert float(span_divergence(made, made)) == pytest.approx(0, abs=1e-6)


def test_qa_loss_survives_large_logits():
    examples, scores = scores_of([("a b", {"x": (2, 3)})], window=12, stride=6)
    logits = np.zeros((6, 2), dtype="f")
    logits[3] = 10_000
    logits[1] = 90_000  # of the question: no candidate
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, gradient = get_loss(
            make_head("qa"), examples, scores._replace(logits=torch.from_numpy(logits))
        )
    assert loss == 10_000
    assert gradient.tolist() == [[0, 0]] * 3 + [[0.5, 0.5], [-0.5, -0.5], [0, 0]]


@pytest.mark.parametrize("weights", [None, {"B": 2.5}, {"A": 0.5, "B": 0.0, "C": 3.0}])
def test_nli_loss_is_torchs(weights):
    nli = make_head("nli", class_weights=weights)
    for label in "ABC":
        nli.add_label(label)
    hypotheses = [{"a": "A", "b": None, "c": "C"}, {}, {"a": "B"}, {"a": "X", "b": "B", "c": "A"}]
    examples = [make_example(NLP, "a", {"hypotheses": one}) for one in hypotheses]
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) * 3
    gold = torch.tensor([0, 2, 1, -1, 1, 0])  # without the None, which is not read at all
    by_class = torch.tensor([(weights or {}).get(label, 1.0) for label in "ABC"]).double()
    with pytest.warns(UserWarning, match="bert_nli has no label 'X'") as caught:
        found = get_loss(nli, examples, logits)
    assert len(caught) == 1
    expected = in_torch(lambda x: F.cross_entropy(x, gold, by_class, ignore_index=-1), logits)
    assert_same_loss(found, expected)
