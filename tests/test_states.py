"""Hidden states, packed and window by window, beside Hugging Face's."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from arrays import ints
from checkpoints import FAMILIES, load_encoder, make_checkpoint, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from letters import NLP, ZWSP, letters
from spacy.tokens import Doc

from spacy_bert_heads.encoder.buckets import BucketedBatch
from spacy_bert_heads.encoder.encoder import Encoder
from spacy_bert_heads.text.batch import PackedBatch, cumulate
from spacy_bert_heads.text.packing import pack_docs
from spacy_bert_heads.text.wordpieces import WordpieceTokenizer

# --- states


class Stub(Encoder):
    """Answers what it is asked: the states are id, type, position, length of the sequence."""

    def __init__(self, packs: bool = True) -> None:
        torch.nn.Module.__init__(self)
        self.model = torch.nn.Linear(4, 1, bias=False)
        torch.nn.init.ones_(self.model.weight)
        tokenizer = WordpieceTokenizer(make_tokenizer("wordpiece").backend_tokenizer, pad_id=99)
        self.checkpoint = SimpleNamespace(hidden_size=4, num_layers=1, tokenizer=tokenizer)
        self.interface = "function mode" if packs else ""
        self.layouts: list[BucketedBatch] = []

    def run(self, layout, layers=None):
        self.layouts.append(layout)
        padding = ~layout.mask
        assert (layout.input_ids[padding] == 99).all()
        assert (layout.token_type_ids[padding] == 0).all()
        lengths = [
            mask.sum(1, keepdim=True).expand_as(mask).flatten()
            for mask in layout.split(layout.mask)
        ]
        states = [layout.input_ids, layout.token_type_ids, layout.position_ids, torch.cat(lengths)]
        return torch.stack(states, dim=1).float() * self.model.weight


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(2, 9), st.integers(2, 400)), min_size=1, max_size=12),
    max_tokens=st.integers(1, 1000),
    keep_graph=st.booleans(),
    packs=st.booleans(),
)
def test_states_are_in_the_order_of_the_positions(lengths, max_tokens, keep_graph, packs):
    n_positions = sum(lengths)
    ids, types = np.arange(n_positions) + 100, np.arange(n_positions) % 2
    batch = PackedBatch(ids, types, cumulate(ints(*lengths)), np.ones_like(lengths))
    stub = Stub(packs)
    states = stub.encode(batch, max_batch_tokens=max_tokens, train=keep_graph).states
    assert states.requires_grad == keep_graph
    positions = [i for length in lengths for i in range(length)]
    repeated = [length for length in lengths for _ in range(length)]
    expected = np.stack([ids, types, positions, repeated], axis=1)
    assert states.tolist() == expected.tolist()
    assert states.dtype == torch.float32
    for layout in stub.layouts:
        assert len(layout.input_ids) <= max_tokens or [n for n, _ in layout.shapes] == [1]
        masks = layout.split(layout.mask)
        assert layout.is_padded == [not mask.all() for mask in masks]
    if keep_graph:
        gradient = torch.arange(4.0 * n_positions).reshape(-1, 4)
        states.backward(gradient)
        by_hand = (gradient.double() * torch.from_numpy(expected)).sum(0)
        assert torch.allclose(stub.model.weight.grad[0].double(), by_hand, rtol=1e-5)


def test_states_of_no_docs():
    batch = pack_docs([], letters(), window=8, stride=4)
    assert Stub().encode(batch, max_batch_tokens=100).states.shape == (0, 4)


WINDOW, STRIDE = 24, 15
TEXTS = [
    "The coaster Hanne Lind lost pitch control off Skagen.",
    "",
    "船 😀 can't",
    "Angela Merkel met Barack Obama in Berlin, then flew to New York with Anna. " * 2,
    "A fire",
    "A pump",
    ZWSP,
]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("states") / request.param, family=request.param)


@pytest.fixture(scope="module")
def bert(folder) -> Encoder:
    return load_encoder(folder)


def states_of(bert: Encoder, docs: list[Doc], budget: int) -> list[torch.Tensor]:
    """The states of each Doc."""
    batch = pack_docs(docs, bert.checkpoint.tokenizer, window=WINDOW, stride=STRIDE)
    states = bert.encode(batch, max_batch_tokens=budget).states
    sizes = np.split(batch.seqlens, np.cumsum(batch.num_windows)[:-1])
    return list(states.split([int(size.sum()) for size in sizes]))


def test_states_are_hugging_faces_own_window_by_window(folder, bert):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    docs = [NLP.make_doc(text) for text in TEXTS]
    every_state = states_of(bert, docs, 4096)
    lengths = []
    for doc, states in zip(docs, every_state, strict=True):
        # Hugging Face's stride is the overlap of two windows.
        windows = tokenizer(
            doc.text,
            truncation=True,
            max_length=WINDOW,
            stride=WINDOW - 2 - STRIDE,
            return_overflowing_tokens=True,
        )["input_ids"]
        with torch.no_grad():
            expected = [model(torch.tensor([ids])).last_hidden_state[0] for ids in windows]
        torch.testing.assert_close(states, torch.cat(expected), atol=1e-5, rtol=1e-5)
        lengths.append([len(ids) for ids in windows])
    assert lengths[1] == [2]
    assert lengths[3][0] == WINDOW
    assert len(lengths[3]) > 1


def test_states_depend_neither_on_the_budget_nor_on_the_order(bert):
    docs = [NLP.make_doc(text) for text in TEXTS]
    expected = states_of(bert, docs, 4096)
    order = [3, 1, 6, 0, 2, 5, 4, 0]
    for budget in (1, 60):
        found = states_of(bert, [docs[i] for i in order], budget)
        for i, states in zip(order, found, strict=True):
            torch.testing.assert_close(states, expected[i], atol=1e-5, rtol=1e-5)


def test_gradients_do_not_depend_on_the_budget(bert):
    docs = [NLP.make_doc(text) for text in TEXTS]
    batch = pack_docs(docs, bert.checkpoint.tokenizer, window=WINDOW, stride=STRIDE)
    gradients = []
    for budget in (60, 4096):  # a batch over the budget is computed again in the backward pass
        states = bert.encode(batch, max_batch_tokens=budget, train=True).states
        (states * torch.linspace(-1, 1, states.numel()).reshape(states.shape)).sum().backward()
        grads = {n: p.grad.clone() for n, p in bert.named_parameters() if p.grad is not None}
        gradients.append(grads)
        bert.zero_grad(set_to_none=True)
    assert gradients[0].keys() == gradients[1].keys()
    assert max(float(grad.abs().max()) for grad in gradients[0].values()) > 0.1
    for name, grad in gradients[0].items():
        torch.testing.assert_close(grad, gradients[1][name], atol=1e-3, rtol=1e-4)


# --- long Docs


def test_a_long_doc_is_quick():
    text = ("Skagen a fire broke out; " * 4000)[:100_000]
    tokenizer = WordpieceTokenizer(make_tokenizer("wordpiece").backend_tokenizer)
    doc = NLP.make_doc(text)
    start = time.process_time()
    batch = pack_docs([doc], tokenizer, window=128, stride=96)
    batch.take(ints(0, 0))
    assert time.process_time() - start < 5
    n_pieces = len(tokenizer([text]).ids)
    assert len(doc.text) == 100_000 and n_pieces > 20_000
    n_windows = 1 + -(-(n_pieces - 126) // 96)
    assert batch.num_windows.tolist() == [n_windows]
    assert len(batch.input_ids) == n_pieces + 30 * (n_windows - 1) + 2 * n_windows
    assert (batch.tokens.num_wordpieces > 0).all()
    assert (np.diff(batch.tokens.positions) > 0).all()
    counts = batch.tokens.num_wordpieces
    firsts = tokenizer([text]).ids[np.cumsum(counts) - counts]
    states = Stub().encode(batch, max_batch_tokens=4096).states
    assert states[batch.tokens.first_positions(), 0].tolist() == firsts.tolist()
