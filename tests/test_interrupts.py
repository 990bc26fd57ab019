"""Ctrl-C at any moment: later predictions, and other models of the program, are as before."""

import gc
import signal
import threading
import weakref

import pytest
import spacy
import torch
import torch.nn.functional as F
from joint import annotate, assert_same, make_docs

from spacy_bert_heads.encoder import inference
from spacy_bert_heads.encoder.attention import PackedAttention
from spacy_bert_heads.encoder.buckets import BucketedBatch
from spacy_bert_heads.encoder.encoder import attention_interface
from spacy_bert_heads.encoder.function_mode import AttentionMode, drop_ended_modes
from spacy_bert_heads.encoder.latest import LatestBatch


@pytest.fixture(scope="module")
def nlp(joint):
    return spacy.load(joint)


@pytest.fixture
def unfused(joint, monkeypatch):
    """The same pipeline with the code of transformers, which needs the mode."""
    monkeypatch.setattr(inference, "packing_pays", lambda: False)
    nlp = spacy.load(joint)
    nlp("Anna Grete left Skagen on Tuesday")
    return nlp


@pytest.mark.skipif(
    attention_interface() != "function mode", reason="this transformers needs no function mode"
)
@pytest.mark.parametrize("name", ["_push_mode", "_pop_mode"])
@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt_between_two_instructions(unfused, monkeypatch, name, before):
    """As a signal arrives before or after attention's mode goes onto torch's stack or off it."""
    nlp = unfused
    expected = annotate(nlp)
    plain = getattr(torch.overrides, name)
    depth = torch._C._len_torch_function_stack()

    def interrupted(*args):
        monkeypatch.undo()
        if not before:
            plain(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.overrides, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        nlp("Anna Grete left Skagen on Tuesday")
    query = torch.randn(1, 2, 5, 16)
    assert F.scaled_dot_product_attention(query, query, query).shape == query.shape
    assert_same(annotate(nlp), expected)
    assert torch._C._len_torch_function_stack() == depth


def test_interrupts_at_random(nlp):
    """Signals after a random time, hundreds of them, as a user's Ctrl-C."""
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        pytest.skip("signals are not to be had here")
    expected = annotate(nlp)
    docs = make_docs(nlp)
    generator = torch.Generator().manual_seed(0)
    interrupts = 0

    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            try:
                after = 1e-4 + 2e-2 * float(torch.rand(1, generator=generator))
                signal.setitimer(signal.ITIMER_REAL, after)
                list(nlp.pipe(doc.copy() for doc in docs))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupts > 30
    assert torch.is_grad_enabled()
    query = torch.randn(1, 2, 5, 16)
    assert F.scaled_dot_product_attention(query, query, query).shape == query.shape
    assert_same(annotate(nlp), expected)
    assert torch._C._len_torch_function_stack() == 0


def test_a_mode_that_has_ended_does_nothing(nlp):
    zeros = torch.zeros(4, dtype=torch.long)
    layout = BucketedBatch(zeros, zeros, zeros == 0, zeros, shapes=[(1, 4)], is_padded=[False])
    mode = AttentionMode(PackedAttention(layout))
    mode.has_ended = True
    query = torch.randn(1, 2, 5, 16)
    expected = F.scaled_dot_product_attention(query, query, query)
    mode.__enter__()
    torch.testing.assert_close(F.scaled_dot_product_attention(query, query, query), expected)
    drop_ended_modes()
    assert torch._C._len_torch_function_stack() == 0


def test_no_code_of_ours_runs_when_a_doc_is_deleted(nlp):
    """Python swallows what is raised in a weak reference's callback, an interrupt too; a method of
    a set is no Python code."""
    latest = LatestBatch()
    docs = [nlp.make_doc("Anna"), nlp.make_doc("Hull")]
    encoded = nlp.get_pipe("bert_encoder").predict(docs)
    states = weakref.ref(encoded.states)
    latest.keep(docs, (0, (2,)), encoded)
    nlp.get_pipe("bert_encoder")._latest.drop()
    for ref in latest._refs:
        assert type(ref.__callback__).__name__ == "builtin_function_or_method"
    del encoded, ref
    gc.disable()
    try:
        del docs[0]
        assert states() is not None
        del docs[0]
        assert states() is None  # gone with the last Doc, without a garbage collection
        assert latest.is_empty
    finally:
        gc.enable()
