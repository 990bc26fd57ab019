"""The encoder as it predicts: packed weights, bf16 weights."""

import logging
import warnings

import pytest
import torch
from checkpoints import FAMILIES, load_encoder, make_checkpoint, run_encoder
from conftest import needs_onednn
from torch import nn
from transformers.activations import GELUActivation

from spacy_bert_heads.encoder import inference
from spacy_bert_heads.encoder.adapters import Bottleneck, make_settings
from spacy_bert_heads.encoder.devices import is_ampere
from spacy_bert_heads.encoder.encoder import Encoder
from spacy_bert_heads.encoder.inference import (
    FusedOutput,
    PackedLinear,
    check_device,
    for_inference,
    packing_pays,
)
from spacy_bert_heads.encoder.int8 import Int8Linear
from spacy_bert_heads.encoder.model import encoder_of, shim_of
from spacy_bert_heads.encoder.shim import resolve_precision

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:precision is .bf16.")


@pytest.fixture(autouse=True)
def without_amx(monkeypatch) -> None:
    """int8 as it is on most CPUs."""
    monkeypatch.setattr(inference, "_has_amx", lambda: False)


def cosines(a, b):
    return torch.cosine_similarity(a, b, dim=-1)


# --- what int8 becomes


def test_where_torch_has_none(monkeypatch, make_nlp):
    monkeypatch.setattr(inference, "has_int8", lambda: False)
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
    torch.testing.assert_close(run_encoder(fast), run_encoder(bert), atol=1e-5, rtol=1e-5)


@needs_onednn
@pytest.mark.usefixtures("packing")
def test_layers_do_what_comes_after_them(checkpoint):
    bert = load_encoder(checkpoint)
    fast = for_inference(bert, "fp32")
    assert not any(isinstance(module, GELUActivation) for module in fast.modules())
    assert any(isinstance(module, GELUActivation) for module in bert.modules())
    ends = [module for module in fast.modules() if isinstance(module, FusedOutput)]
    assert len(ends) == 2 * bert.checkpoint.num_layers  # of attention, of the feed-forward block
    torch.testing.assert_close(run_encoder(fast), run_encoder(bert), atol=1e-5, rtol=1e-5)


@needs_onednn
@pytest.mark.usefixtures("packing")
def test_what_an_adapter_adds_comes_before_the_sum(checkpoint):
    bert = load_encoder(checkpoint)
    bert.checkpoint.add_adapter(make_settings("pfeiffer", 4, 0))
    for module in bert.modules():
        if isinstance(module, Bottleneck):
            module.up.weight.data.normal_(std=0.3)
    fast = for_inference(bert, "fp32")
    torch.testing.assert_close(run_encoder(fast), run_encoder(bert), atol=1e-5, rtol=1e-5)


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
    made, exact = run_encoder(for_inference(bert, "bf16")), run_encoder(bert)
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
