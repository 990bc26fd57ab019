"""The encoder as it predicts: packed weights, bf16 weights, int8."""

import logging
import pickle
import warnings

import numpy as np
import pytest
import spacy
import torch
from checkpoints import FAMILIES, load_encoder, make_checkpoint
from conftest import TRAIN_DATA, make_examples, needs_int8, needs_onednn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from thinc.api import Adam
from torch import nn
from transformers.activations import GELUActivation

from spacy_bert_heads.encoder import inference
from spacy_bert_heads.encoder.adapters import Bottleneck, LowRank, make_settings
from spacy_bert_heads.encoder.buckets import BucketedBatch
from spacy_bert_heads.encoder.devices import is_ampere
from spacy_bert_heads.encoder.encoder import Encoder
from spacy_bert_heads.encoder.inference import (
    Int8Linear,
    PackedLinear,
    PackedOutput,
    check_device,
    for_inference,
    int8_bits,
    packing_pays,
)
from spacy_bert_heads.encoder.model import encoder_of, shim_of
from spacy_bert_heads.encoder.shim import resolve_precision

TEXTS = [text for text, _ in TRAIN_DATA] + ["Nobody lost 300 pumps off Hull in the engine room ."]
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:precision is .bf16.")


@pytest.fixture(autouse=True)
def without_amx(monkeypatch) -> None:
    """int8 as it is on most CPUs."""
    monkeypatch.setattr(inference, "_has_amx", lambda: False)


def states(nlp):
    docs = [nlp.make_doc(text) for text in TEXTS]
    return nlp.get_pipe("bert_encoder").predict(docs).states


def run_bert(bert, layers=None):
    ids = torch.tensor(bert.checkpoint.tokenizer.tokenizer.encode("Anna left Skagen").ids)
    at = torch.arange(len(ids))
    layout = BucketedBatch(
        ids, torch.zeros_like(ids), at >= 0, at, shapes=[(1, len(ids))], is_padded=[False]
    )
    with torch.no_grad():
        return bert.run(layout, layers)


def cosines(a, b):
    return torch.cosine_similarity(a, b, dim=-1)


def in_numpy(linear: nn.Linear, states: np.ndarray) -> np.ndarray:
    """The same rounding with exact sums of integers."""
    weight = linear.weight.detach().numpy()  # rounded in fp32: some are right between two levels
    scale = np.abs(weight).max(1, keepdims=True) / np.float32(2 ** (int8_bits() - 1) - 1)
    low, high = states.min(1, keepdims=True), states.max(1, keepdims=True)
    step = (high - low) / 255
    levels, rounded = np.round((states - low) / step), np.round(weight / scale)
    scale = scale.astype(np.float64)
    sums = levels.astype(np.int64) @ rounded.T.astype(np.int64)
    product = sums * step * scale.T + low * (rounded * scale).sum(1)
    return product if linear.bias is None else product + linear.bias.detach().numpy()


# --- int8


@needs_int8
def test_int8_is_exact_where_nothing_is_rounded():
    largest = 2 ** (int8_bits() - 1) - 1
    linear = nn.Linear(3, 2)
    weight, bias = [[largest, 1, -2], [3, -largest, 0]], [0.5, -1.0]
    linear.weight.data, linear.bias.data = torch.tensor(weight).float(), torch.tensor(bias)
    rows = torch.tensor([[0.0, 255.0, 7.0], [-55.0, 200.0, 0.0]])  # 255 steps of 1
    expected = rows @ linear.weight.data.T + linear.bias.data
    torch.testing.assert_close(Int8Linear(linear)(rows), expected, atol=1e-3, rtol=1e-6)


@needs_int8
@settings(max_examples=30, deadline=None)
@example(n_rows=1, n_in=30, n_out=48, bias=False, seed=99)
@example(n_rows=1, n_in=30, n_out=46, bias=False, seed=80)
@given(
    n_rows=st.integers(1, 40),
    n_in=st.integers(2, 80),
    n_out=st.integers(1, 80),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_int8_rounds_as_it_says(n_rows, n_in, n_out, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(n_in, n_out, bias=bias)
    linear.weight.data.normal_(generator=generator)
    rows = torch.randn(n_rows, n_in, generator=generator)
    expected = torch.from_numpy(in_numpy(linear, rows.double().numpy()))
    made = Int8Linear(linear)(rows).double()
    # A state that is right between two levels may go either way in fp32: a step of one weight.
    steps = (rows.amax(1) - rows.amin(1))[:, None] / 255 * linear.weight.detach().abs().amax(1)
    assert ((made - expected).abs() <= 1.01 * steps + 1e-4).all()
    # Of rows without one, half a level from any other, all is right.
    low, high = rows.double().aminmax(dim=1, keepdim=True)
    places = (rows - low) / (high - low) * 255
    clear = ((places % 1 - 0.5).abs() > 1e-3).all(dim=1)
    assert not clear.any() or (made - expected)[clear].abs().median() < 1e-4


@needs_int8
def test_no_row_knows_of_another():
    torch.manual_seed(0)
    linear = Int8Linear(nn.Linear(64, 48))
    rows = torch.randn(2, 5, 64)
    alone = linear(rows[:, :1])
    rows[:, 3] *= 1000  # as a separator is
    torch.testing.assert_close(linear(rows)[:, :1], alone, atol=1e-5, rtol=1e-5)


@needs_int8
def test_rows_and_weights_that_are_all_the_same():
    linear = nn.Linear(4, 3)
    linear.weight.data[1] = 0.0
    rows = torch.stack((torch.zeros(4), torch.full((4,), 2.5)))
    largest = 2 ** (int8_bits() - 1) - 1
    made = Int8Linear(linear)(rows)
    assert made[:, 1].tolist() == pytest.approx([linear.bias[1].item()] * 2)
    torch.testing.assert_close(made[0], linear.bias.data)
    error = 2.5 * linear.weight.detach().abs().amax(1) / largest * 4 / 2
    assert ((made[1] - linear(rows)[1]).abs() <= error + 1e-5).all()


@needs_int8
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_close_in_every_family(family, tmp_path):
    bert = load_encoder(make_checkpoint(tmp_path, family=family))
    fast = for_inference(bert, "int8")
    layers = (0, 1, 2)
    exact, made = run_bert(bert, layers), run_bert(fast, layers)
    assert cosines(made, exact).min() > 0.99
    assert not torch.equal(made, exact)
    assert not any(isinstance(module, Int8Linear) for module in bert.modules())
    assert not any(type(module) is nn.Linear for module in fast.model.modules())


@needs_int8
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
    assert cosines(run_bert(fast), run_bert(bert)).min() > 0.99


@needs_int8
def test_int8_of_a_real_checkpoint(minilm, make_nlp):
    exact, made = (states(make_nlp(name=minilm, precision=p)) for p in ("fp32", "int8"))
    assert cosines(made, exact).min() > 0.98
    assert cosines(made, exact).mean() > 0.995


@needs_int8
def test_int8_is_a_way_to_load(joint):
    setting = {"components.bert_encoder.model.precision": "int8"}
    exact, fast = spacy.load(joint), spacy.load(joint, config=setting)
    for a, b in zip(exact.pipe(TEXTS[:2]), fast.pipe(TEXTS[:2]), strict=True):
        assert [(e.start, e.end, e.label_) for e in a.ents] == [
            (e.start, e.end, e.label_) for e in b.ents
        ]
        assert b.cats == pytest.approx(a.cats, abs=0.1)
    assert not torch.equal(states(exact), states(fast))


@needs_int8
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


@needs_int8
def test_int8_follows_the_weights(make_nlp):
    nlp = make_nlp("ner", precision="int8")
    shim, before = shim_of(nlp.get_pipe("bert_encoder").model), states(nlp)
    made = shim.derive(for_inference)
    assert shim.derive(for_inference) is made
    torch.testing.assert_close(states(nlp), before, atol=0, rtol=0)
    nlp.update(make_examples(nlp), sgd=Adam(1e-2, use_averages=False))
    assert (states(nlp) - before).abs().max() > 1e-3
    assert shim.derive(for_inference) is not made


@needs_int8
def test_copies_make_their_own(make_nlp):
    nlp = make_nlp("ner", precision="int8")
    expected = states(nlp)
    again = make_nlp("ner", precision="int8", initialize=False).from_bytes(nlp.to_bytes())
    for copied in (pickle.loads(pickle.dumps(nlp)), again):
        torch.testing.assert_close(states(copied), expected, atol=1e-6, rtol=0)


def test_int8_where_torch_has_none(monkeypatch, make_nlp):
    monkeypatch.setattr(inference, "_INT8_PRODUCT", None)
    with pytest.raises(ValueError, match='torch does not support .* Set precision = "fp32"'):
        make_nlp("ner", precision="int8")


def test_a_cpu_with_amx_takes_bf16_for_int8(checkpoint, monkeypatch):
    bert = load_encoder(checkpoint)
    monkeypatch.setattr(inference, "_has_amx", lambda: True)
    fast = for_inference(bert, "int8")
    assert {p.dtype for p in fast.model.parameters()} == {torch.bfloat16}
    assert not any(isinstance(module, Int8Linear) for module in fast.modules())


@pytest.mark.parametrize(
    "capability, expected", [((8, 0), "bf16"), ((9, 0), "bf16"), ((7, 5), "fp32")]
)
def test_a_gpu_takes_bf16_for_int8_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    is_ampere.cache_clear()
    gpu = torch.device("cuda", 0)
    assert resolve_precision("int8", gpu) == resolve_precision("auto", gpu) == expected
    assert resolve_precision("fp16", gpu) == "fp16"
    assert resolve_precision("bf16", gpu) == "bf16"
    is_ampere.cache_clear()
    assert resolve_precision("int8", CPU) == "int8"


# --- packed weights


@needs_onednn
@pytest.mark.parametrize("shape", [(7,), (1, 3), (4, 33), (0, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_is_the_same_product(shape, bias):
    torch.manual_seed(0)
    linear = nn.Linear(48, 20, bias=bias)
    rows = torch.randn(*shape, 48)
    packed, expected, added = PackedLinear(linear), linear(rows).detach(), torch.randn(*shape, 20)
    torch.testing.assert_close(packed(rows), expected)
    torch.testing.assert_close(packed(rows, added), expected + added)
    packed.activation = "gelu"
    torch.testing.assert_close(packed(rows), nn.functional.gelu(expected))


@needs_onednn
@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_states_in_every_family(family, tmp_path):
    bert = load_encoder(make_checkpoint(tmp_path, family=family))
    fast = for_inference(bert, "fp32")
    assert any(isinstance(module, PackedLinear) for module in fast.modules())
    torch.testing.assert_close(run_bert(fast), run_bert(bert), atol=1e-5, rtol=1e-5)


@needs_onednn
@pytest.mark.usefixtures("packing")
def test_layers_do_what_comes_after_them(checkpoint):
    bert = load_encoder(checkpoint)
    fast = for_inference(bert, "fp32")
    assert not any(isinstance(module, GELUActivation) for module in fast.modules())
    assert any(isinstance(module, GELUActivation) for module in bert.modules())
    ends = [module for module in fast.modules() if isinstance(module, PackedOutput)]
    assert len(ends) == 2 * bert.checkpoint.num_layers  # of attention, of the feed-forward block
    torch.testing.assert_close(run_bert(fast), run_bert(bert), atol=1e-5, rtol=1e-5)


@needs_onednn
@pytest.mark.usefixtures("packing")
def test_what_an_adapter_adds_comes_before_the_sum(checkpoint):
    bert = load_encoder(checkpoint)
    bert.checkpoint.add_adapter(make_settings("pfeiffer", 4, 0))
    for module in bert.modules():
        if isinstance(module, Bottleneck):
            module.up.weight.data.normal_(std=0.3)
    fast = for_inference(bert, "fp32")
    torch.testing.assert_close(run_bert(fast), run_bert(bert), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_without_packing_a_copy_shares_the_weights(monkeypatch, checkpoint, precision):
    bert = load_encoder(checkpoint).train()
    monkeypatch.setattr(inference, "packing_pays", lambda: False)
    copied = for_inference(bert, precision)
    assert isinstance(copied, Encoder)
    pairs = zip(bert.parameters(), copied.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)
    assert bert.model.training
    assert not any(module.training for module in copied.modules())


@needs_onednn
@pytest.mark.parametrize(
    "capability, pays", [("AVX2", False), ("AVX512", True), ("DEFAULT", False)]
)
def test_where_packing_pays(monkeypatch, capability, pays):
    monkeypatch.setattr(inference, "_capability", lambda: capability)
    assert packing_pays() is pays


# --- bf16


def test_bf16_has_weights_of_its_own(make_nlp):
    nlp = make_nlp("ner", precision="bf16")
    shim = shim_of(nlp.get_pipe("bert_encoder").model)
    fast = shim.derive(for_inference)
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in encoder_of(nlp.get_pipe("bert_encoder").model).parameters()} == {
        torch.float32
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_close_in_every_family(family, tmp_path):
    bert = load_encoder(make_checkpoint(tmp_path, family=family))
    made, exact = run_bert(for_inference(bert, "bf16")), run_bert(bert)
    assert cosines(made.float(), exact).min() > 0.999
    assert made.dtype == torch.bfloat16


@pytest.mark.parametrize("has_it", [True, False])
def test_a_cpu_that_imitates_bf16_is_named(monkeypatch, has_it):
    monkeypatch.setattr(inference, "_has_bf16", lambda: has_it)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for precision, device in (("bf16", CPU), ("fp32", CPU), ("bf16", torch.device("cuda"))):
            check_device(precision, device)
    said = [str(warning.message) for warning in caught]
    assert len(said) == (0 if has_it else 1)
    assert all('Set precision to "fp32", or "int8" to predict' in one for one in said)


@pytest.mark.parametrize("has_amx", [True, False])
def test_a_cpu_with_amx_says_so(monkeypatch, caplog, has_amx):
    monkeypatch.setattr(inference, "_has_amx", lambda: has_amx)
    monkeypatch.setattr(logging.getLogger("spacy"), "propagate", True)
    with caplog.at_level("INFO", logger="spacy"):
        for precision, device in (("fp32", CPU), ("fp16", CPU), ("fp32", torch.device("cuda"))):
            check_device(precision, device)
    assert [record.message for record in caplog.records] == has_amx * [
        'This CPU has AMX: precision = "bf16" in the encoder\'s model predicts about three '
        "times as fast."
    ]


# --- memory


def test_memory_is_given_back_once_in_a_while(monkeypatch, make_nlp):
    trimmer, calls = inference.Trimmer(), []
    trimmer._trim = calls.append
    monkeypatch.setattr("spacy_bert_heads.encoder.model._trimmer", trimmer)
    monkeypatch.setattr(inference, "TRIM_AFTER", 4096)
    nlp = make_nlp("ner")
    text = " ".join(["engine"] * 1000)  # in windows that overlap
    for expected in (0, 0, 0, 1, 1):
        nlp(text)
        assert len(calls) == expected


def test_a_system_without_glibc(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(inference.ctypes, "CDLL", missing)
    trimmer = inference.Trimmer()
    trimmer.count(10**6)
    assert trimmer._trim is None
