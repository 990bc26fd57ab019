"""Encoders with long windows, whose sequences are long enough for attention in blocks, beside
transformers' own attention."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from checkpoints import load_encoder, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from spacy_bert_heads.encoder.buckets import BucketedBatch
from spacy_bert_heads.encoder.dropout import attend_and_drop
from spacy_bert_heads.encoder.encoder import PACKED_LONG, attention_interface
from spacy_bert_heads.encoder.inference import for_inference
from spacy_bert_heads.encoder.local import Blocks, pays

REACH = 8  # to each side
LENGTHS = [[400], [300, 171], [90, 60, 17]]  # of the sequences in each bucket
LOCAL = {"local_attention": 2 * REACH}
# What tells these checkpoints apart, under the names that their files have.
CASES: dict[str, tuple[str, dict]] = {
    "ModernBERT": ("modernbert", {**LOCAL, "global_attn_every_n_layers": 3}),
    "Ettin": (
        "modernbert",
        {
            **LOCAL,
            "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0,
            "local_rope_theta": 160000.0,
            "norm_bias": False,
            "attention_bias": False,
            "mlp_bias": False,
            "layer_norm_eps": 1e-5,
        },
    ),
    "EuroBERT": ("eurobert", {"rope_theta": 250000.0}),
    "EuroBERT with shared keys": ("eurobert", {"num_key_value_heads": 1, "head_dim": 8}),
    "UltraBERT": ("ultrabert", {"sliding_window": REACH}),
    "UltraBERT, first names": (
        "ultrabert",
        {"attention_windows": [REACH, 0, REACH], "rope_theta": [1e4, 1e6, 1e4]},
    ),
    "GTE": ("gte", {"type_vocab_size": 1}),
    "GTE without types": ("gte", {"type_vocab_size": 0}),
    "Nomic": ("nomic_bert", {"type_vocab_size": 2}),
    "jina": ("jina_embeddings_v3", {"type_vocab_size": 1}),
}
THERE = [name for name, (family, _) in CASES.items() if family in transformers.CONFIG_MAPPING]


def make(folder: Path, case: str, **shape) -> str:
    """A small checkpoint whose config.json has the names of those on the hub."""
    family, more = CASES[case]
    shape = {"num_hidden_layers": 3, "initializer_range": 0.1, **shape}
    make_checkpoint(folder, family=family, **shape | more)
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    for name in ("layer_types", "rope_parameters", "sliding_window"):  # of transformers 5
        config.pop(name, None)
    path.write_text(json.dumps(config | more))
    return str(folder)


def lay_out(vocab_size: int) -> BucketedBatch:
    torch.manual_seed(0)
    ids, mask, positions = [], [], []
    for lengths in LENGTHS:
        for length in lengths:
            ids.append(torch.randint(5, vocab_size, (lengths[0],)))
            mask.append(torch.arange(lengths[0]) < length)
            positions.append(torch.arange(lengths[0]))
    shapes = [(len(lengths), lengths[0]) for lengths in LENGTHS]
    tensors = [torch.cat(ids), torch.zeros(sum(map(len, ids)), dtype=torch.long)]
    tensors += [torch.cat(mask), torch.cat(positions)]
    return BucketedBatch(*tensors, shapes, [min(lengths) < lengths[0] for lengths in LENGTHS])


def by_transformers(name: str, layout: BucketedBatch) -> tuple[torch.Tensor, torch.nn.Module]:
    """The hidden states of wordpieces from transformers' model with torch's attention, each
    sequence by itself."""
    model = transformers.AutoModel.from_pretrained(name, attn_implementation="sdpa").eval()
    found = []
    for ids, mask in zip(layout.split(layout.input_ids), layout.split(layout.mask), strict=True):
        for row, real in zip(ids, mask, strict=True):
            inputs = row[real][None]
            found.append(model(inputs, attention_mask=torch.ones_like(inputs))[0][0])
    return torch.cat(found), model


@pytest.mark.parametrize("case", THERE)
def test_values_and_gradients_are_those_of_transformers(case, tmp_path):
    name = make(tmp_path, case, max_position_embeddings=512)
    bert = load_encoder(name)
    if attention_interface() == "registered":
        assert bert.interface == "registered"
    layout = lay_out(bert.config.vocab_size)
    expected, model = by_transformers(name, layout)
    made = bert.run(layout)[layout.mask]
    torch.testing.assert_close(made, expected, atol=2e-5, rtol=1e-4)
    weights = torch.randn(made.shape)
    for states in (made, expected):
        (states * weights).sum().backward()
    theirs = dict(model.named_parameters())
    for key, parameter in bert.model.named_parameters():
        if theirs[key].grad is not None:
            torch.testing.assert_close(
                parameter.grad, theirs[key].grad, atol=2e-3, rtol=1e-3, msg=key
            )
    with torch.no_grad():
        for predicts in (bert, for_inference(bert, "fp32")):
            states = predicts.run(layout)[layout.mask]
            torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)


def test_each_family_with_long_windows_has_a_case():
    assert {family for family, _ in CASES.values()} == set(PACKED_LONG)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_blocks_are_a_band(data):
    """Attention in blocks is that with a mask of all pairs, whatever is padding."""
    n, reach = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 40))
    length = data.draw(st.integers(1, 400))
    lengths = data.draw(st.lists(st.integers(1, length), min_size=n, max_size=n))
    torch.manual_seed(length)
    present = torch.arange(length) < torch.tensor(lengths)[:, None]
    q, k, v = (torch.randn(n, length, 2, 4) for _ in range(3))
    at = torch.arange(length)
    band = ((at[:, None] - at).abs() <= reach) & present[:, None]
    expected = F.scaled_dot_product_attention(
        *(one.transpose(1, 2) for one in (q, k, v)), band[:, None], scale=0.7
    ).transpose(1, 2)
    blocks = Blocks(present, reach)
    for attend in (F.scaled_dot_product_attention, attend_and_drop):
        made = blocks.attend(q, k, v, attend, 0.0, 0.7)
        torch.testing.assert_close(made[present], expected[present])
        assert made.isfinite().all()


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tensors = filter(torch.is_tensor, made if isinstance(made, tuple | list) else [made])
        sizes = [one.untyped_storage().nbytes() for one in tensors]
        self.size = max([self.size, *sizes])
        return made


@pytest.mark.skipif(attention_interface() != "registered", reason="transformers 5 packs them")
@pytest.mark.parametrize("case", [name for name in THERE if "BERT" in name or name == "Ettin"])
def test_no_tensor_grows_with_the_square_of_the_window(case, tmp_path):
    """Two sequences of 2,048 as one batch: a mask of all pairs would have 16 MiB."""
    bert = load_encoder(make(tmp_path, case, max_position_embeddings=2048))
    n, length = 2, 2048
    ids = torch.randint(5, bert.config.vocab_size, (n * length,))
    real = torch.arange(n * length) != n * length - 1  # so that there is padding
    layout = BucketedBatch(
        ids, torch.zeros_like(ids), real, torch.arange(length).repeat(n), [(n, length)], [True]
    )
    assert pays(length, REACH)
    with Largest() as largest:
        bert.run(layout).sum().backward()
    assert 2**16 < largest.size < 2**22  # bytes
