"""Losses as they are reported: floats, of which a component's entry is a mean; and vectors of the
encoder in `doc.tensor`."""

import pickle

import numpy as np
import pytest
import spacy
import srsly
from hypothesis import given
from hypothesis import strategies as st

from spacy_bert_heads.encoder.step import MeanLoss, add_loss

LOSSES = st.lists(st.floats(0, 100), min_size=1, max_size=6)


@given(LOSSES, LOSSES)
def test_an_entry_is_a_mean_and_a_float_everywhere_else(one, other):
    losses: dict[str, float] = {}
    for name, values in (("one", one), ("other", other)):
        for value in values:
            add_loss(losses, name, value)
    a, b = losses["one"], losses["other"]
    assert a == pytest.approx(np.mean(one)) and b == pytest.approx(np.mean(other))
    x, y = float(a), float(b)
    assert (a + b, a + 1, 1 + a, a - b, -a, a * 2, sum([a, b])) == (
        x + y, x + 1, 1 + x, x - y, -x, x * 2, x + y
    )  # fmt: skip
    assert srsly.json_dumps({"a": a}) == srsly.json_dumps({"a": x})
    again = pickle.loads(pickle.dumps(a))
    assert (again, again.count) == (a, len(one)) and isinstance(again, MeanLoss)


def test_a_number_of_the_caller_is_added_to(make_nlp):
    from conftest import make_examples

    nlp = make_nlp("textcat")
    (mean,) = [nlp.update(make_examples(nlp), sgd=False, losses={})["bert_textcat"]]
    losses = {"bert_textcat": 10.0}
    nlp.update(make_examples(nlp), sgd=False, losses=losses)
    assert losses["bert_textcat"] == pytest.approx(10 + mean)


def test_spacys_tok2vec_writes_vectors_of_the_encoder(make_nlp, tmp_path):
    nlp = make_nlp("ner")
    listener = {"@architectures": "spacy_bert_heads.Tok2VecListener.v1"}
    nlp.add_pipe("tok2vec", name="vectors", config={"model": listener})
    nlp.to_disk(tmp_path / "nlp")
    text = "Anna can't swim in Hull"
    for pipeline in (nlp, spacy.load(tmp_path / "nlp")):
        doc = pipeline(text)
        hidden = pipeline.get_pipe("bert_encoder").predict([doc])
        tokens, states = hidden.batch.tokens, hidden.states.numpy()
        ends = np.cumsum(tokens.num_wordpieces)
        for token, count, end in zip(doc, tokens.num_wordpieces, ends, strict=True):
            expected = states[tokens.positions[end - count : end]].mean(axis=0)
            np.testing.assert_allclose(token.vector, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(doc.vector, doc.tensor.mean(axis=0), rtol=1e-5)
        assert doc.similarity(pipeline(text)) == pytest.approx(1.0)
        assert [piped.tensor.shape for piped in pipeline.pipe(["", "Hull"])] == [(0, 32), (1, 32)]
