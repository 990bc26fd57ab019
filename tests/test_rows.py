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
from spacy_bert_heads.encoder.rows import Row, RowAttention, attend_and_drop, common_size, dropout
from spacy_bert_heads.sequences import fill_rows

SHAPES = [(1, 60), (3, 41), (2, 41), (5, 12), (1, 2)]  # more slots than there are positions


def make_row(bert, seed=0) -> Row:
    """A row of random wordpieces; all buckets but the first and the last have padding."""
    chance = np.random.default_rng(seed)
    lengths = []
    for number, (n, longest) in enumerate(SHAPES):
        shortest = longest if number in (0, len(SHAPES) - 1) else 2
        lengths += [longest, *chance.integers(shortest, longest, n - 1, endpoint=True).tolist()]
    widths = [longest for n, longest in SHAPES for _ in range(n)]
    ids, type_ids, mask = [], [], []
    for length, width in zip(lengths, widths, strict=True):
        pieces = chance.integers(5, bert.config.vocab_size, length).tolist()
        ids += pieces + [bert.wordpieces.pad_id] * (width - length)
        type_ids += [0] * (length // 2) + [1] * (length - length // 2) + [0] * (width - length)
        mask += [True] * length + [False] * (width - length)
    columns = [column for width in widths for column in range(width)]
    tensors = [torch.tensor(values) for values in (ids, type_ids, mask, columns)]
    return Row(*tensors, SHAPES, is_padded=[False, True, True, True, False])


def one_by_one(bert, row, layers=None) -> torch.Tensor:
    """The states of all slots, from Hugging Face's model, a sequence without padding at a time."""
    parts = []
    for bucket in zip(*map(row.split, (row.ids, row.type_ids, row.mask.long())), strict=True):
        for ids, type_ids, mask in zip(*bucket, strict=True):
            n = int(mask.sum())
            states = bert(ids[None, :n], type_ids[None, :n], mask[None, :n], layers)[0]
            parts.append(F.pad(states, (0, 0, 0, len(ids) - n)))
    return torch.cat(parts)


@pytest.mark.parametrize("layers", [None, (0, 2, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_read_as_its_sequences(tmp_path, family, layers):
    bert = load_checkpoint(make_checkpoint(tmp_path, family=family)).eval()
    row = make_row(bert)
    assert len(row.ids) > bert.max_window
    with torch.no_grad():
        made, expected = bert.read_row(row, layers), one_by_one(bert, row, layers)
    at = row.mask
    assert made.shape == expected.shape
    torch.testing.assert_close(made[at], expected[at], atol=2e-5, rtol=1e-4)


def test_padding_behind_a_row_is_not_seen(tmp_path, monkeypatch):
    bert = load_checkpoint(make_checkpoint(tmp_path)).eval()
    row, sizes = make_row(bert), []
    monkeypatch.setattr(
        bert.encoder.embeddings.word_embeddings,
        "forward",
        lambda ids: sizes.append(ids.shape[1]) or F.embedding(ids, weights),
    )
    weights = bert.encoder.embeddings.word_embeddings.weight
    with torch.no_grad():
        expected = bert.read_row(row)
        bert.is_packed = True
        made = bert.read_row(row)
    assert sizes == [327, 352]
    assert made.shape == expected.shape
    torch.testing.assert_close(made[row.mask], expected[row.mask], atol=1e-5, rtol=1e-5)


def test_sizes_are_few():
    sizes = [common_size(n) for n in range(1, 4097)]
    assert [sizes[n - 1] for n in (1, 16, 17, 257, 327, 2049, 4096)] == [
        16, 16, 32, 288, 352, 2304, 4096,
    ]  # fmt: skip
    assert len(set(sizes)) == 48
    assert all(n <= size <= max(n + 15, n * 9 / 8) for n, size in enumerate(sizes, start=1))


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
    weights = torch.randn(len(row.ids), bert.width)
    weights = weights * row.mask[:, None]
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


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout(p, dtype):
    torch.manual_seed(0)
    states = torch.ones(301, 333, dtype=dtype, requires_grad=True)
    made = dropout(states, p)
    dropped = round(p * 2**16) / 2**16
    scale = torch.tensor(1 / (1 - dropped), dtype=dtype)
    kept = made != 0
    torch.testing.assert_close(made, torch.where(kept, scale, 0.0).to(dtype), atol=0, rtol=0)
    # Six standard errors, of all, of any quarter of a number and of each column.
    for part in (kept, *(kept.flatten()[i::4] for i in range(4)), *kept.T):
        error = 6 * (p * (1 - p) / part.numel()) ** 0.5
        assert abs((~part).double().mean() - p) < error
    pairs = (kept[:, 1:] == kept[:, :-1]).double().mean()
    assert pairs == pytest.approx(p**2 + (1 - p) ** 2, abs=0.01)
    made.sum().backward()
    torch.testing.assert_close(states.grad, made.detach(), atol=0, rtol=0)
    torch.manual_seed(0)
    torch.testing.assert_close(dropout(states, p), made, atol=0, rtol=0)


def test_dropout_of_nothing_and_of_everything():
    states = torch.randn(5, 7)
    assert torch.equal(dropout(states, 0.5, training=False), states)
    assert torch.equal(dropout(states, 0.0), states)
    assert not dropout(states, 1.0).any()
    assert dropout(states[:0], 0.5).shape == (0, 7)


def test_attention_with_dropout_is_torchs():
    """With a share of 0 it is attention; with dropout its mean is."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2, 5, 4, requires_grad=True) for _ in range(3))
    mask = torch.rand(3, 1, 1, 5) > 0.3
    mask[..., 0] = True
    for scale in (None, 0.3):
        for seen in (mask, None):
            expected = F.scaled_dot_product_attention(query, key, value, seen, scale=scale)
            made = attend_and_drop(query, key, value, seen, 0.0, scale=scale)
            torch.testing.assert_close(made, expected)
            wanted, found = (
                torch.autograd.grad(out.sin().sum(), (query, key, value))
                for out in (expected, made)
            )
            torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        often = [attend_and_drop(query, key, value, mask, 0.2, scale=0.3) for _ in range(4000)]
        exact = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    torch.testing.assert_close(torch.stack(often).mean(0), exact, atol=0.05, rtol=0)


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
    at = row.mask
    torch.testing.assert_close(made[at], expected[at], atol=2e-5, rtol=1e-4)


def test_attention_that_goes_another_way_is_an_error(checkpoint, monkeypatch):
    bert = load_checkpoint(checkpoint).eval()
    plain = staticmethod(F.scaled_dot_product_attention)
    monkeypatch.setattr(RowAttention, "attend", plain)
    with pytest.raises(RuntimeError, match="in a way that is not known here"):
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
