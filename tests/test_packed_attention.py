"""Buckets in one layout: as if each was read by itself."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from checkpoints import FAMILIES, load_encoder, make_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from spacy_bert_heads.encoder import attention, dropout
from spacy_bert_heads.encoder.buckets import BucketedBatch, common_size, group_buckets
from spacy_bert_heads.encoder.dropout import (
    Dropout,
    attend_and_drop,
    fast_dropout,
    keep_at_random,
)
from spacy_bert_heads.encoder.encoder import (
    PACKED,
    PACKED_LONG,
    attention_interface,
    warn_unknown,
)
from spacy_bert_heads.encoder.function_mode import AttentionMode

SHAPES = [(1, 60), (3, 41), (2, 41), (5, 12), (1, 2)]  # more than there are position embeddings


def make_layout(bert, seed=0) -> BucketedBatch:
    """Random wordpieces; all buckets but the first and the last have padding."""
    chance = np.random.default_rng(seed)
    lengths = []
    for number, (n, longest) in enumerate(SHAPES):
        shortest = longest if number in (0, len(SHAPES) - 1) else 2
        lengths += [longest, *chance.integers(shortest, longest, n - 1, endpoint=True).tolist()]
    widths = [longest for n, longest in SHAPES for _ in range(n)]
    ids, type_ids, mask = [], [], []
    for length, width in zip(lengths, widths, strict=True):
        pieces = chance.integers(5, bert.checkpoint.config.vocab_size, length).tolist()
        ids += pieces + [bert.checkpoint.tokenizer.pad_id] * (width - length)
        type_ids += [0] * (length // 2) + [1] * (length - length // 2) + [0] * (width - length)
        mask += [True] * length + [False] * (width - length)
    positions = [position for width in widths for position in range(width)]
    tensors = [torch.tensor(values) for values in (ids, type_ids, mask, positions)]
    return BucketedBatch(*tensors, SHAPES, is_padded=[False, True, True, True, False])


def one_by_one(bert, layout, layers=None) -> torch.Tensor:
    """The hidden states of all positions from Hugging Face's model, without any padding."""
    parts = []
    for bucket in zip(
        *map(layout.split, (layout.input_ids, layout.token_type_ids, layout.mask.long())),
        strict=True,
    ):
        for ids, type_ids, mask in zip(*bucket, strict=True):
            n = int(mask.sum())
            states = bert(ids[None, :n], type_ids[None, :n], mask[None, :n], layers)[0]
            parts.append(F.pad(states, (0, 0, 0, len(ids) - n)))
    return torch.cat(parts)


@pytest.mark.parametrize("layers", [None, (0, 2, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_buckets_are_run_as_their_sequences(tmp_path, family, layers):
    bert = load_encoder(make_checkpoint(tmp_path, family=family)).eval()
    layout = make_layout(bert)
    assert len(layout.input_ids) > bert.checkpoint.max_window
    with torch.no_grad():
        made, expected = bert.run(layout, layers), one_by_one(bert, layout, layers)
    at = layout.mask
    assert made.shape == expected.shape
    torch.testing.assert_close(made[at], expected[at], atol=2e-5, rtol=1e-4)


def test_padding_behind_the_buckets_is_not_seen(tmp_path, monkeypatch):
    bert = load_encoder(make_checkpoint(tmp_path)).eval()
    layout, sizes = make_layout(bert), []
    monkeypatch.setattr(
        bert.model.embeddings.word_embeddings,
        "forward",
        lambda ids: sizes.append(ids.shape[1]) or F.embedding(ids, weights),
    )
    weights = bert.model.embeddings.word_embeddings.weight
    with torch.no_grad():
        expected = bert.run(layout)
        bert.multiplies_by_onednn = True
        made = bert.run(layout)
    assert sizes == [327, 352]
    assert made.shape == expected.shape
    torch.testing.assert_close(made[layout.mask], expected[layout.mask], atol=1e-5, rtol=1e-5)


def test_sizes_are_few():
    sizes = [common_size(n) for n in range(1, 4097)]
    assert [sizes[n - 1] for n in (1, 16, 17, 257, 327, 2049, 4096)] == [
        16, 16, 32, 288, 352, 2304, 4096,
    ]  # fmt: skip
    assert len(set(sizes)) == 48
    assert all(n <= size <= max(n + 15, n * 9 / 8) for n, size in enumerate(sizes, start=1))


def test_which_families_are_packed(tmp_path):
    """So that this goes on when transformers changes."""
    found = {
        family: load_encoder(make_checkpoint(tmp_path / family, family=family)).interface
        for family in FAMILIES
    }
    always = {"bert", "roberta", "xlm-roberta", "albert", "camembert"}
    assert always <= {family for family, packs in found.items() if packs} <= {*PACKED, *PACKED_LONG}


def test_gradients_are_those_of_the_sequences(tmp_path):
    bert = load_encoder(make_checkpoint(tmp_path))
    layout = make_layout(bert)
    weights = torch.randn(len(layout.input_ids), bert.checkpoint.hidden_size)
    weights = weights * layout.mask[:, None]
    gradients = []
    for read in (bert.run, lambda layout: one_by_one(bert, layout)):
        bert.zero_grad()
        (read(layout) * weights).sum().backward()
        gradients.append({n: p.grad for n, p in bert.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 30
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, atol=1e-3, rtol=1e-3, msg=name)


def test_dropout_of_the_weights_is_kept(tmp_path):
    name = make_checkpoint(tmp_path, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    bert = load_encoder(name).train()
    layout = make_layout(bert)
    with torch.no_grad():
        first, second = bert.run(layout), bert.run(layout)
        bert.eval()
        third, fourth = bert.run(layout), bert.run(layout)
    assert not torch.allclose(first, second, atol=1e-2)
    torch.testing.assert_close(third, fourth, atol=0, rtol=0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout(p, dtype):
    torch.manual_seed(0)
    states = torch.ones(301, 333, dtype=dtype, requires_grad=True)
    made = fast_dropout(states, p)
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
    torch.testing.assert_close(fast_dropout(states, p), made, atol=0, rtol=0)


def test_dropout_of_nothing_and_of_everything():
    states = torch.randn(5, 7)
    assert torch.equal(Dropout(0.5).eval()(states), states)
    assert torch.equal(fast_dropout(states, 0.0), states)
    assert not fast_dropout(states, 1.0).any()
    assert fast_dropout(states[:0], 0.5).shape == (0, 7)


def test_every_dropout_of_the_encoder_is_the_fast_one(tmp_path, monkeypatch):
    seen = {"fast_dropout": [], "attend_and_drop": []}
    monkeypatch.setattr(
        dropout, "fast_dropout", lambda states, p: seen["fast_dropout"].append(p) or states
    )
    monkeypatch.setattr(
        attention,
        "attend_and_drop",
        lambda q, k, v, mask, p, scale: seen["attend_and_drop"].append(p) or v,
    )
    bert = load_encoder(make_checkpoint(tmp_path, dropout=0.25)).train()
    bert.run(make_layout(bert))
    # Of the embeddings; in each of two layers after attention and feed-forward.
    assert seen["fast_dropout"] == [0.25] * (1 + 2 * 2)
    assert seen["attend_and_drop"] == [0.25] * (2 * len(SHAPES))


@pytest.mark.parametrize("chunk", [1, 60, dropout.CHUNK])
def test_attention_with_dropout_is_torchs(chunk, monkeypatch):
    """With a share of 0 it is attention; with dropout its mean is."""
    monkeypatch.setattr(dropout, "CHUNK", chunk)  # one head at a time, some, all
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


@given(data=st.data())
def test_dropped_attention_weights(data):
    """Values and gradients are those of attention that is written out, with the same weights
    dropped."""
    n, heads, length, width, p = (
        data.draw(st.integers(*ends)) for ends in ((1, 3), (1, 3), (1, 9), (1, 9), (0, 10))
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    shapes = (length, width, width)
    q, k, v = (
        torch.randn(n, one, heads, 4, generator=generator).transpose(1, 2).requires_grad_()
        for one in shapes
    )
    wide = data.draw(st.sampled_from([1, length]))
    mask = torch.rand(n, 1, wide, width, generator=generator) > 0.4
    mask[..., 0] = True
    mask = data.draw(st.sampled_from([mask, None]))
    torch.manual_seed(0)
    made = attend_and_drop(q, k, v, mask, p / 10, 0.7)
    torch.manual_seed(0)
    dropped = round(p / 10 * 2**16)
    kept = keep_at_random(torch.Size([n * heads, length, width]), dropped)
    weights = q @ k.mT * 0.7
    weights = weights if mask is None else weights.masked_fill(~mask, -torch.inf)
    weights = weights.softmax(-1) * kept.view(n, heads, length, width)
    expected = weights @ v * (1 / (1 - dropped / 2**16) if p < 10 else 0.0)
    torch.testing.assert_close(made, expected)
    found, wanted = (torch.autograd.grad(out.cos().sum(), (q, k, v)) for out in (made, expected))
    torch.testing.assert_close(found, wanted)


def test_the_input_of_attention_is_cast_once(tmp_path):
    """Under autocast hidden states are the same as if each linear layer cast its input."""
    bert = load_encoder(make_checkpoint(tmp_path))
    layout = make_layout(bert)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made = bert.run(layout)
        attentions = [one for one in bert.modules() if one._forward_pre_hooks]
        assert len(attentions) == bert.checkpoint.num_layers
        for one in attentions:
            one._forward_pre_hooks.clear()
        torch.testing.assert_close(bert.run(layout), made, atol=0, rtol=0)


def test_other_attention_reads_buckets_one_by_one(tmp_path):
    if transformers.__version__ > "5":
        pytest.skip("transformers 5 has absolute positions alone")
    bert = load_encoder(make_checkpoint(tmp_path, position_embedding_type="relative_key"))
    assert not bert.interface
    layout = make_layout(bert)
    with torch.no_grad():
        made, expected = bert.run(layout), one_by_one(bert, layout)
    at = layout.mask
    torch.testing.assert_close(made[at], expected[at], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("is_unknown", [True, False])
def test_attention_that_goes_another_way_is_padded(checkpoint, monkeypatch, is_unknown):
    """An unknown version of transformers, or a family whose attention is not called through what is
    known of this one: right results, and one warning."""
    known = load_encoder(checkpoint)
    layout = make_layout(known)
    with torch.no_grad():
        expected = known.run(layout)
    warn_unknown.cache_clear()
    if is_unknown:
        monkeypatch.setattr("spacy_bert_heads.encoder.encoder.version", lambda name: "6.0")
        attention_interface.cache_clear()
    bert = load_encoder(checkpoint)
    if not is_unknown:  # as if no call of attention came to ours
        bert.model.config._attn_implementation = "eager"  # transformers 5
        plain = staticmethod(F.scaled_dot_product_attention)
        monkeypatch.setattr(AttentionMode, "_attend", plain)  # transformers 4
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made, again = bert.run(layout), bert.run(layout)
    attention_interface.cache_clear()
    assert not bert.interface
    for one in (made, again):
        torch.testing.assert_close(one[layout.mask], expected[layout.mask], atol=2e-5, rtol=1e-4)
    assert [str(w.message).count("padded in buckets") for w in caught] == [1] * (not is_unknown)


def varlen_by_hand(query, key, value, cu_q, cu_k, max_q, max_k):
    """What `torch.nn.attention.varlen.varlen_attn` computes, a sequence at a time: it has no kernel
    for CPUs."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    lengths = cu_q.diff().tolist()
    assert (max(lengths), int(cu_q[-1])) == (max_q, len(query)) and max_k == max_q
    parts = zip(*(states.split(lengths) for states in (query, key, value)), strict=True)
    found = []
    for part in parts:
        q, k, v = (states.transpose(0, 1)[None] for states in part)
        found.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("family", [family for family in PACKED if family != "modernbert"])
def test_one_kernel_for_sequences_of_any_length(tmp_path, monkeypatch, family):
    """The road that a GPU takes in half precision, by a stand-in for its kernel."""
    bert = load_encoder(make_checkpoint(tmp_path, family=family))
    if not bert.interface:
        pytest.skip("not packed with this version of transformers")
    layout = make_layout(bert)
    calls = []
    with torch.no_grad():
        expected = bert.run(layout)
        monkeypatch.setattr(attention, "load_varlen", lambda: varlen_by_hand)
        monkeypatch.setattr(attention, "uses_varlen", lambda query: calls.append(1) or True)
        bert.multiplies_by_onednn = True  # so that there is padding behind the buckets
        made = bert.run(layout)
    assert len(calls) == 2
    torch.testing.assert_close(made[layout.mask], expected[layout.mask], atol=2e-5, rtol=1e-4)


def test_that_kernel_is_for_a_gpu_in_half_precision(monkeypatch):
    def query(head_size=64, dtype=torch.bfloat16):
        return SimpleNamespace(
            device=torch.device("cuda", 0), dtype=dtype, shape=(9, 12, head_size)
        )

    monkeypatch.setattr(attention, "is_ampere", lambda device: True)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    with torch.no_grad():
        assert attention.uses_varlen(query()) == (attention.load_varlen() is not None)
        assert not attention.uses_varlen(torch.zeros(9, 12, 64, dtype=torch.bfloat16))
        assert not attention.uses_varlen(query(dtype=torch.float32))
        assert not attention.uses_varlen(query(head_size=26))  # of TinyBERT
        assert not attention.uses_varlen(query(head_size=512))
        monkeypatch.setattr(attention, "is_ampere", lambda device: False)
        assert not attention.uses_varlen(query())
    monkeypatch.setattr(attention, "is_ampere", lambda device: True)
    assert not attention.uses_varlen(query())  # its gradient is not known to us


@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 20)), max_size=30),
    max_tokens=st.integers(1, 90),
)
def test_groups_of_buckets_are_as_full_as_they_may_be(shapes, max_tokens):
    ends = np.cumsum([0, *(n for n, _ in shapes)])
    buckets = [np.arange(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    lengths = np.repeat([length for _, length in shapes], [n for n, _ in shapes]).astype(np.int64)
    groups = list(group_buckets(buckets, lengths, max_tokens))
    assert [id(b) for group in groups for b in group] == [id(b) for b in buckets]
    sizes = [[len(b) * int(lengths[b].max()) for b in group] for group in groups]
    assert all(sum(group) <= max_tokens or len(group) == 1 for group in sizes)
    for group, after in zip(sizes, sizes[1:], strict=False):
        assert sum(group) + after[0] > max_tokens
