"""Cross-entropy beside torch's."""

import numpy as np
import pytest
import torch
from arrays import floats, ints
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from losses import assert_same_loss, cross_entropy, in_torch
from torch.nn import functional as F

from spacy_bert_heads.heads.losses import CHUNK, summed_cross_entropy


@settings(max_examples=60, deadline=None)
@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(2, 5)),
        elements=st.floats(-50, 50, width=32),
    ),
    weighted=st.booleans(),
    data=st.data(),
)
def test_cross_entropy_is_torchs(logits, weighted, data):
    n, n_classes = logits.shape
    classes = data.draw(hnp.arrays(np.int64, n, elements=st.integers(-1, n_classes - 1)))
    weight = st.floats(0.125, 4, width=32)
    weights = data.draw(hnp.arrays(np.float32, n_classes, elements=weight)) if weighted else None
    found = cross_entropy(logits, classes, weights=weights)
    if (classes < 0).all():
        assert found[0] == 0.0
        assert found[1].tolist() == np.zeros_like(logits).tolist()
        return
    by_class = None if weights is None else torch.from_numpy(weights).double()
    gold = torch.from_numpy(classes)
    assert_same_loss(
        found,
        in_torch(lambda x: F.cross_entropy(x, gold, weight=by_class, ignore_index=-1), logits),
    )


def test_cross_entropy_by_hand():
    loss, gradient = cross_entropy(floats([0, 0], [0, 0], [9, 9]), ints(0, 1, -1))
    assert loss == pytest.approx(np.log(2))
    assert gradient.tolist() == [[-0.25, 0.25], [0.25, -0.25], [0, 0]]
    # Weights 1 and 3: the second row counts three quarters.
    weights = floats(1, 3)
    loss, gradient = cross_entropy(floats([0, 0], [0, 0]), ints(0, 1), weights=weights)
    assert loss == pytest.approx(np.log(2))
    assert gradient.tolist() == [[-0.125, 0.125], [0.375, -0.375]]


def test_cross_entropy_survives_large_logits():
    loss, gradient = cross_entropy(floats([10_000, 0], [0, 10_000]), ints(0, 0))
    assert loss == 5000.0
    assert gradient.tolist() == [[0, 0], [-0.5, 0.5]]


def test_rows_whose_classes_weigh_nothing_teach_nothing():
    loss, gradient = cross_entropy(floats([1, 2], [3, 4]), ints(0, 0), weights=floats(0, 1))
    assert loss == 0.0
    assert gradient.tolist() == [[0, 0], [0, 0]]
    settings = {"weights": floats(0, 1), "label_smoothing": 0.1}
    loss, gradient = cross_entropy(floats([1, 2], [3, 4]), ints(0, 0), **settings)
    assert loss == 0.0 and not gradient.any()


@given(data=st.data())
def test_many_classes_at_once(data):
    """The summed cross-entropy, its gradient and the number of right classes are torch's."""
    n, width = data.draw(st.integers(0, 20)), data.draw(st.integers(1, 50))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    logits = (4 * torch.randn(n, width, generator=generator)).to(dtype).requires_grad_()
    classes = torch.randint(0, width, (n,), generator=generator)
    classes[torch.rand(n, generator=generator) < 0.3] = -1
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, classes, reduction="sum", ignore_index=-1)
    sizes = [1, 100, CHUNK]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spacy_bert_heads.heads.losses.CHUNK", data.draw(st.sampled_from(sizes)))
        made, right = summed_cross_entropy(logits, classes)
    assert float(made) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
    assert right == (logits.argmax(1) == classes).sum()
    (2 * made).backward()
    (2 * expected).backward()
    error = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=error, rtol=error)
