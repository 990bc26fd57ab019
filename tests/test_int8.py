"""Linear layers in int8, and pipelines that predict with them."""

import pickle

import pytest
import spacy
import torch
from checkpoints import FAMILIES, load_encoder, run_encoder
from conftest import TRAIN_DATA, make_examples, needs_int8
from hypothesis import example, given, settings
from hypothesis import strategies as st
from thinc.api import Adam
from torch import nn

from spacy_bert_heads.encoder import inference
from spacy_bert_heads.encoder.adapters import Bottleneck, LowRank, make_settings
from spacy_bert_heads.encoder.inference import for_inference
from spacy_bert_heads.encoder.int8 import (
    MARGIN,
    MAX_OUTLIERS,
    Int8FeedForward,
    Int8Linear,
    Range,
    int8_bits,
    measure_ranges,
)
from spacy_bert_heads.encoder.model import checkpoint_of, shim_of

TEXTS = [text for text, _ in TRAIN_DATA] + ["Nobody lost 300 pumps off Hull in the engine room ."]
LARGEST = 2 ** (int8_bits() - 1) - 1  # of the weights

pytestmark = [needs_int8, pytest.mark.filterwarnings("ignore:precision is .bf16.")]


@pytest.fixture(autouse=True)
def without_amx(monkeypatch) -> None:
    """int8 as it is on most CPUs."""
    monkeypatch.setattr(inference, "_has_amx", lambda: False)


def states(nlp, texts=TEXTS):
    docs = [nlp.make_doc(text) for text in texts]
    return nlp.get_pipe("bert_encoder").predict(docs).states


def range_of(rows: torch.Tensor) -> Range:
    return Range(rows.amin(0), rows.amax(0))


def steps_of_one(num_features: int) -> Range:
    """The range that has a zero point of 100 and steps of 1."""
    return Range(
        torch.full((num_features,), -100 / MARGIN), torch.full((num_features,), 155 / MARGIN)
    )


# --- a layer


def test_exact_where_nothing_is_rounded():
    linear = nn.Linear(3, 2)
    weight, bias = [[LARGEST, 1, -2], [3, -LARGEST, 0]], [0.5, -1.0]
    linear.weight.data, linear.bias.data = torch.tensor(weight).float(), torch.tensor(bias)
    made = Int8Linear(linear, steps_of_one(3), smooth=False)
    assert (made.step, made.zero) == (pytest.approx(1), 100)
    rows = torch.tensor([[0.0, 155.0, 7.0], [-55.0, -100.0, 0.0]])
    expected = linear(rows).detach()
    torch.testing.assert_close(made(rows), expected, atol=1e-3, rtol=1e-6)
    torch.testing.assert_close(made(rows, expected), 2 * expected, atol=1e-3, rtol=1e-6)


def test_rounds_to_the_nearest_step_and_no_further_than_the_range():
    linear = nn.Linear(1, 1, bias=False)
    linear.weight.data[:] = LARGEST
    made = Int8Linear(linear, steps_of_one(1), smooth=False)
    rows = torch.tensor([[0.4], [0.6], [-0.4], [-0.6], [1e6], [-1e6]])
    found = made(rows)[:, 0] / LARGEST
    assert found.tolist() == pytest.approx([0, 1, 0, -1, 155, -100], abs=1e-3)


@settings(max_examples=60, deadline=None)
@example(n_rows=1, n_in=30, n_out=48, bias=False, large=0, smooth=False, seed=99)
@given(
    n_rows=st.integers(1, 40),
    n_in=st.integers(1, 80),
    n_out=st.integers(1, 80),
    bias=st.booleans(),
    large=st.integers(0, MAX_OUTLIERS + 1),
    smooth=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_further_off_than_half_a_step(n_rows, n_in, n_out, bias, large, smooth, seed):
    """Each input value, times its factor, is off by half a step, each weight by half a step of its
    row; values of outliers are not."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(n_in, n_out, bias=bias)
    linear.weight.data.normal_(generator=generator)
    rows = torch.randn(n_rows, n_in, generator=generator)
    rows[:, :large] *= 1000
    made = Int8Linear(linear, range_of(rows), smooth=smooth)
    assert len(made.outliers) <= MAX_OUTLIERS
    factors = 1 / (made._levels * made.step)
    weight = linear.weight.detach() * factors
    inputs = (rows / factors).abs()
    weight[:, made.outliers] = inputs[:, made.outliers] = 0
    of_weight = weight.abs().amax(1) / LARGEST / 2
    rounded = weight.abs() + of_weight[:, None]
    bound = made.step / 2 * rounded.sum(1) + inputs.sum(1, keepdim=True) * of_weight
    error = (made(rows) - linear(rows).detach()).abs()
    assert (error <= 1.01 * bound + 1e-5 * rows.abs().amax()).all()


def test_large_channels_are_not_rounded():
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    rows = torch.randn(32, 64)
    plain = Int8Linear(linear, range_of(rows), smooth=False)
    assert not len(plain.outliers)
    error = (plain(rows) - linear(rows)).abs().mean()
    rows[:, [3, 17]] *= 1000
    made = Int8Linear(linear, range_of(rows), smooth=False)
    assert made.outliers.tolist() == [3, 17]
    assert (made(rows) - linear(rows)).abs().mean() < 2 * error
    rounded = Int8Linear(linear, range_of(rows), smooth=False, max_outliers=0)
    assert (rounded(rows) - linear(rows)).abs().mean() > 50 * error


def test_factors_help_channels_of_different_sizes():
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    rows = torch.randn(32, 64) * torch.logspace(-1, 1, 64)
    smooth, plain = (
        (Int8Linear(linear, range_of(rows), smooth=one)(rows) - linear(rows)).abs().mean()
        for one in (True, False)
    )
    assert smooth < 0.7 * plain


@pytest.mark.parametrize("shape", [(7,), (1, 3), (4, 33), (0, 5), (2, 5, 4)])
def test_shapes(shape):
    torch.manual_seed(0)
    linear = nn.Linear(48, 20)
    rows, added = torch.randn(*shape, 48), torch.randn(*shape, 20)
    made = Int8Linear(linear, Range(torch.full((48,), -5.0), torch.full((48,), 5.0)))
    torch.testing.assert_close(made(rows), linear(rows).detach(), atol=0.1, rtol=0)
    torch.testing.assert_close(made(rows, added), made(rows) + added)


def test_no_row_knows_of_another():
    torch.manual_seed(0)
    rows = torch.randn(2, 5, 64)
    linear = Int8Linear(nn.Linear(64, 48), range_of(rows.flatten(0, 1)))
    alone = linear(rows[:, :1])
    rows[:, 3] *= 1000  # as a separator is
    torch.testing.assert_close(linear(rows)[:, :1], alone, atol=0, rtol=0)


def test_inputs_and_weights_that_are_all_the_same():
    linear = nn.Linear(4, 3)
    linear.weight.data[1] = 0.0
    for value in (0.0, 2.5):
        rows = torch.full((2, 4), value)
        found = Int8Linear(linear, range_of(rows))(rows)
        torch.testing.assert_close(found, linear(rows).detach(), atol=0.05, rtol=0)
        assert found[:, 1].tolist() == pytest.approx([linear.bias[1].item()] * 2)


@pytest.mark.parametrize("large", [0, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_feed_forward_block(large, bias):
    torch.manual_seed(0)
    up, down, norm = nn.Linear(32, 96, bias=bias), nn.Linear(96, 32), nn.LayerNorm(32)
    up.weight.data[:large] *= 100
    rows = torch.randn(40, 32)
    inner = nn.functional.gelu(up(rows)).detach()
    block = Int8FeedForward(up, down, norm, range_of(rows), range_of(inner))
    assert block.down.outliers.tolist() == list(range(large))
    with torch.no_grad():
        made, expected = block(rows, rows), norm(rows + down(inner))
    assert ((made - expected).norm(dim=1) / expected.norm(dim=1)).max() < 0.05


# --- encoders


def test_ranges_are_those_of_the_inputs(folders):
    bert = load_encoder(folders("albert"))  # whose layers are all the same
    layers = [module for module in bert.model.modules() if isinstance(module, nn.Linear)]
    seen = {}

    def note(layer, inputs):
        seen.setdefault(layer, []).append(inputs[0])

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    unused = nn.Linear(2, 3)
    ranges = measure_ranges(bert, [*layers, unused])
    for hook in hooks:
        hook.remove()
    assert unused not in ranges and ranges.keys() == seen.keys() == set(layers)
    for layer, (low, high) in ranges.items():
        rows = torch.cat([inputs.flatten(0, -2) for inputs in seen[layer]])
        assert torch.equal(low, rows.amin(0)) and torch.equal(high, rows.amax(0))
        assert not layer._forward_pre_hooks
    for layer, again in measure_ranges(bert, layers).items():
        assert all(map(torch.equal, again, ranges[layer]))


@pytest.mark.parametrize("family", FAMILIES)
def test_close_in_every_family(family, folders):
    bert = load_encoder(folders(family))
    fast = for_inference(bert, "int8")
    layers = (0, 1, 2)
    exact, made = run_encoder(bert, layers), run_encoder(fast, layers)
    assert torch.cosine_similarity(made, exact, dim=-1).min() > 0.99
    assert not torch.equal(made, exact)
    assert not any(isinstance(module, Int8Linear) for module in bert.modules())
    left = [name for name, one in fast.model.named_modules() if type(one) is nn.Linear]
    assert all("pooler" in name for name in left)  # which does not run


@pytest.mark.parametrize("kind", ["pfeiffer", "lora"])
def test_adapters_stay_as_they_are(kind, checkpoint):
    bert = load_encoder(checkpoint)
    bert.checkpoint.add_adapter(make_settings(kind, 4, 0))
    for module in bert.modules():
        if isinstance(module, LowRank | Bottleneck):
            module.up.weight.data.normal_(std=0.3)
    fast = for_inference(bert, "int8")
    for module in fast.modules():
        if isinstance(module, LowRank | Bottleneck):
            assert isinstance(module.linear, Int8Linear) and type(module.up) is nn.Linear
    assert torch.cosine_similarity(run_encoder(fast), run_encoder(bert), dim=-1).min() > 0.99


def test_a_real_checkpoint(minilm, make_nlp):
    exact, made = (states(make_nlp(name=minilm, precision=p)) for p in ("fp32", "int8"))
    cosines = torch.cosine_similarity(made, exact, dim=-1)
    assert cosines.min() > 0.98
    assert cosines.mean() > 0.995
    distances = (made - exact).norm(dim=1) / exact.norm(dim=1)
    assert distances.mean() < 0.09
    assert distances.max() < 0.25


@pytest.mark.parametrize("text", ["ha " * 20, "| 1 | 2 | 3 | 4 " * 6, "haha" * 9, "yes"])
def test_texts_that_repeat_themselves(minilm, make_nlp, text):
    """Where all positions are alike, attention returns larger values than for other texts."""
    exact, made = (states(make_nlp(name=minilm, precision=p), [text]) for p in ("fp32", "int8"))
    assert ((made - exact).norm(dim=1) / exact.norm(dim=1)).mean() < 0.15


def test_weights_that_are_not_finite(make_nlp):
    nlp = make_nlp(precision="int8")
    model = checkpoint_of(nlp.get_pipe("bert_encoder").model).model
    model.encoder.layer[0].output.dense.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="weights are damaged: its hidden states are not finite"):
        states(nlp)


def test_a_way_to_load(joint):
    setting = {"components.bert_encoder.model.precision": "int8"}
    exact, fast = spacy.load(joint), spacy.load(joint, config=setting)
    for a, b in zip(exact.pipe(TEXTS[:2]), fast.pipe(TEXTS[:2]), strict=True):
        assert [(e.start, e.end, e.label_) for e in a.ents] == [
            (e.start, e.end, e.label_) for e in b.ents
        ]
        assert b.cats == pytest.approx(a.cats, abs=0.1)
    assert not torch.equal(states(exact), states(fast))


def test_weights_are_saved_and_learn_in_fp32(make_nlp, tmp_path):
    trained = {}
    for precision in ("fp32", "int8"):
        nlp = make_nlp("ner", precision=precision)
        optimizer = Adam(1e-3, use_averages=False)
        for _ in range(2):
            nlp.update(make_examples(nlp), sgd=optimizer)
            states(nlp)
        nlp.to_disk(tmp_path / precision)
        weights = tmp_path / precision / "bert_encoder" / "model" / "model.safetensors"
        trained[precision] = weights.read_bytes()
    assert trained["fp32"] == trained["int8"]


def test_follows_the_weights(make_nlp):
    nlp = make_nlp("ner", precision="int8")
    shim, before = shim_of(nlp.get_pipe("bert_encoder").model), states(nlp)
    made = shim.derive(for_inference)
    assert shim.derive(for_inference) is made
    torch.testing.assert_close(states(nlp), before, atol=0, rtol=0)
    nlp.update(make_examples(nlp), sgd=Adam(1e-2, use_averages=False))
    assert (states(nlp) - before).abs().max() > 1e-3
    assert shim.derive(for_inference) is not made


def test_copies_make_their_own(make_nlp):
    nlp = make_nlp("ner", precision="int8")
    expected = states(nlp)
    again = make_nlp("ner", precision="int8", initialize=False).from_bytes(nlp.to_bytes())
    for copied in (pickle.loads(pickle.dumps(nlp)), again):
        torch.testing.assert_close(states(copied), expected, atol=1e-6, rtol=0)
