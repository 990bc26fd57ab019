"""Buckets in one row: as if each was read by itself."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from checkpoints import FAMILIES, make_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from spacy_bert_heads.encoder.loading import READ_ROWS, load_checkpoint
from spacy_bert_heads.encoder.rows import Bucket, RowAttention
from spacy_bert_heads.sequences import fill_rows

SHAPES = [(1, 60), (3, 41), (2, 41), (5, 12), (1, 2)]  # more slots than there are positions


def make_row(bert, shapes=SHAPES, seed=0) -> list[Bucket]:
    """Buckets of random wordpieces; all but the first and the last have padding."""
    chance = torch.Generator().manual_seed(seed)
    row = []
    for number, (n, length) in enumerate(shapes):
        ids = torch.randint(5, bert.config.vocab_size, (n, length), generator=chance)
        lengths = torch.randint(2, length + 1, (n,), generator=chance)
        lengths[0] = length
        if number in (0, len(shapes) - 1):
            lengths[:] = length
        column = torch.arange(length)
        mask = (column < lengths[:, None]).long()
        ids = torch.where(mask == 1, ids, bert.wordpieces.pad_id)
        type_ids = (column >= lengths[:, None] // 2).long() * mask
        row.append(Bucket(ids, type_ids, mask, is_padded=bool((mask == 0).any())))
    return row


def one_by_one(bert, row, layers=None) -> torch.Tensor:
    """The states of all slots, from Hugging Face's model, a sequence without padding at a time."""
    parts = []
    for bucket in row:
        for ids, type_ids, mask in zip(bucket.ids, bucket.type_ids, bucket.mask, strict=True):
            n = int(mask.sum())
            states = bert(ids[None, :n], type_ids[None, :n], mask[None, :n], layers)[0]
            parts.append(F.pad(states, (0, 0, 0, len(ids) - n)))
    return torch.cat(parts)


def pieces_of(row) -> torch.Tensor:
    return torch.cat([bucket.mask.flatten() for bucket in row]).bool()


@pytest.mark.parametrize("layers", [None, (0, 2, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_read_as_its_sequences(tmp_path, family, layers):
    bert = load_checkpoint(make_checkpoint(tmp_path, family=family)).eval()
    row = make_row(bert)
    assert sum(bucket.ids.numel() for bucket in row) > bert.max_window
    with torch.no_grad():
        made, expected = bert.read_row(row, layers), one_by_one(bert, row, layers)
    at = pieces_of(row)
    assert made.shape == expected.shape
    torch.testing.assert_close(made[at], expected[at], atol=2e-5, rtol=1e-4)


def test_which_families_are_read_in_rows(tmp_path):
    """So that this goes on when transformers changes."""
    found = {
        family: load_checkpoint(make_checkpoint(tmp_path / family, family=family)).reads_rows
        for family in FAMILIES
    }
    always = {"bert", "roberta", "xlm-roberta", "albert", "camembert"}
    assert always <= {family for family, reads in found.items() if reads} <= set(READ_ROWS)


def test_gradients_are_those_of_the_sequences(tmp_path):
    bert = load_checkpoint(make_checkpoint(tmp_path))
    row = make_row(bert)
    weights = torch.randn(sum(bucket.ids.numel() for bucket in row), bert.width)
    weights = weights * pieces_of(row)[:, None]
    gradients = []
    for read in (bert.read_row, lambda row: one_by_one(bert, row)):
        bert.zero_grad()
        (read(row) * weights).sum().backward()
        gradients.append({n: p.grad for n, p in bert.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 30
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, atol=1e-3, rtol=1e-3, msg=name)


def test_dropout_of_the_weights_is_kept(tmp_path):
    name = make_checkpoint(tmp_path, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    bert = load_checkpoint(name).train()
    row = make_row(bert)
    with torch.no_grad():
        first, second = bert.read_row(row), bert.read_row(row)
        bert.eval()
        third, fourth = bert.read_row(row), bert.read_row(row)
    assert not torch.allclose(first, second, atol=1e-2)
    torch.testing.assert_close(third, fourth, atol=0, rtol=0)


def test_other_attention_reads_buckets_one_by_one(tmp_path):
    old = transformers.__version__ < "5"  # newer versions have absolute positions alone
    settings = {"position_embedding_type": "relative_key"} if old else {}
    bert = load_checkpoint(make_checkpoint(tmp_path, **settings)).eval()
    assert bert.reads_rows != old
    if not old:
        bert.encoder.set_attn_implementation("eager")
    assert not bert.reads_rows
    row = make_row(bert)
    with torch.no_grad():
        made, expected = bert.read_row(row), one_by_one(bert, row)
    at = pieces_of(row)
    torch.testing.assert_close(made[at], expected[at], atol=2e-5, rtol=1e-4)


def test_attention_that_goes_another_way_is_an_error(checkpoint, monkeypatch):
    bert = load_checkpoint(checkpoint).eval()
    plain = staticmethod(F.scaled_dot_product_attention)
    monkeypatch.setattr(RowAttention, "attend", plain)
    with pytest.raises(AssertionError, match="attention is not torch's"):
        bert.read_row(make_row(bert))


@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 20)), max_size=30),
    max_tokens=st.integers(1, 90),
)
def test_rows_are_as_full_as_they_may_be(shapes, max_tokens):
    ends = np.cumsum([0, *(n for n, _ in shapes)])
    buckets = [np.arange(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    lengths = np.repeat([length for _, length in shapes], [n for n, _ in shapes]).astype(np.int64)
    rows = list(fill_rows(buckets, lengths, max_tokens))
    assert [id(b) for row in rows for b in row] == [id(b) for b in buckets]
    sizes = [[len(b) * int(lengths[b].max()) for b in row] for row in rows]
    assert all(sum(row) <= max_tokens or len(row) == 1 for row in sizes)
    for row, after in zip(sizes, sizes[1:], strict=False):
        assert sum(row) + after[0] > max_tokens
