"""Hidden states, packed and window by window, beside Hugging Face's."""

import time

import numpy as np
import pytest
import torch
import transformers
from arrays import ints
from checkpoints import FAMILIES, make_checkpoint, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from letters import NLP, ZWSP, letters
from spacy.tokens import Doc

from spacy_bert_heads.encoder.loading import Bert, load_checkpoint
from spacy_bert_heads.encoder.model import run, run_with_graph
from spacy_bert_heads.encoder.rows import Row
from spacy_bert_heads.sequences import make_sequences
from spacy_bert_heads.types import DocSequences
from spacy_bert_heads.wordpieces import Wordpieces

# --- states


class Stub(torch.nn.Module):
    """Answers what it is asked: the states are id, type, position, length of the sequence."""

    width = 4
    wordpieces = Wordpieces(make_tokenizer("wordpiece").backend_tokenizer, pad_id=99)

    def __init__(self, reads_rows: bool = True) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(4))
        self.reads_rows = reads_rows
        self.rows: list[Row] = []

    def read_row(self, row, layers=None):
        self.rows.append(row)
        assert (row.ids[~row.mask] == 99).all() and (row.type_ids[~row.mask] == 0).all()
        lengths = [
            mask.sum(1, keepdim=True).expand_as(mask).flatten() for mask in row.split(row.mask)
        ]
        states = [row.ids, row.type_ids, row.columns, torch.cat(lengths)]
        return torch.stack(states, dim=1).float() * self.scale


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(2, 9), st.integers(2, 400)), min_size=1, max_size=12),
    max_tokens=st.integers(1, 1000),
    keep_graph=st.booleans(),
    reads_rows=st.booleans(),
)
def test_states_are_packed_in_the_order_of_the_slots(lengths, max_tokens, keep_graph, reads_rows):
    n_slots, none = sum(lengths), ints()
    ids, types = np.arange(n_slots) + 100, np.arange(n_slots) % 2
    sequences = DocSequences(ids, types, ints(*lengths), none, none, none, none)
    stub = Stub(reads_rows)
    states = (run_with_graph if keep_graph else run)(stub, sequences, max_tokens)
    assert states.requires_grad == keep_graph
    positions = [i for length in lengths for i in range(length)]
    repeated = [length for length in lengths for _ in range(length)]
    expected = np.stack([ids, types, positions, repeated], axis=1)
    assert states.tolist() == expected.tolist()
    assert states.dtype == torch.float32
    for row in stub.rows:
        assert len(row.ids) <= max_tokens or [n for n, _ in row.shapes] == [1]
        masks = row.split(row.mask)
        assert row.is_padded == [not mask.all() for mask in masks]
    if keep_graph:
        gradient = torch.arange(4.0 * n_slots).reshape(-1, 4)
        states.backward(gradient)
        by_hand = (gradient.double() * torch.from_numpy(expected)).sum(0)
        assert torch.allclose(stub.scale.grad.double(), by_hand, rtol=1e-5)


def test_states_of_no_docs():
    sequences = make_sequences([], letters(), window=8, stride=4)
    assert run(Stub(), sequences, 100).shape == (0, 4)


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
def bert(folder) -> Bert:
    return load_checkpoint(folder).eval()


def states_of(bert: Bert, docs: list[Doc], budget: int) -> list[torch.Tensor]:
    """The states of each Doc."""
    sequences = make_sequences(docs, bert.wordpieces, window=WINDOW, stride=STRIDE)
    with torch.no_grad():
        states = run(bert, sequences, budget)
    sizes = np.split(sequences.lengths, np.cumsum(sequences.windows)[:-1])
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
    sequences = make_sequences(docs, bert.wordpieces, window=WINDOW, stride=STRIDE)
    gradients = []
    for budget in (60, 4096):  # a batch over the budget is computed again in the backward pass
        states = run_with_graph(bert, sequences, budget)
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
    wordpieces = Wordpieces(make_tokenizer("wordpiece").backend_tokenizer)
    doc = NLP.make_doc(text)
    start = time.process_time()
    sequences = make_sequences([doc], wordpieces, window=128, stride=96)
    sequences.take(ints(0, 0))
    assert time.process_time() - start < 5
    n_pieces = len(wordpieces([text]).ids)
    assert len(doc.text) == 100_000 and n_pieces > 20_000
    n_windows = 1 + -(-(n_pieces - 126) // 96)
    assert sequences.windows.tolist() == [n_windows]
    assert len(sequences.ids) == n_pieces + 30 * (n_windows - 1) + 2 * n_windows
    assert (sequences.pieces > 0).all()
    assert (np.diff(sequences.rows) > 0).all()
    firsts = wordpieces([text]).ids[np.cumsum(sequences.pieces) - sequences.pieces]
    with torch.no_grad():
        states = run(Stub(), sequences, 4096)
    assert states[sequences.first_rows(), 0].tolist() == firsts.tolist()
