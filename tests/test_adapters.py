"""Adapters: what they compute, what learns, and where it is kept."""

import math

import pytest
import spacy
import torch
import transformers
from checkpoints import FAMILIES, load_encoder, make_checkpoint
from conftest import TRAIN_DATA, make_examples
from safetensors.torch import load_file
from thinc.api import Adam

import spacy_bert_heads
from spacy_bert_heads.encoder.adapters import (
    LORA_SCALE,
    Bottleneck,
    LowRank,
    make_settings,
    merge_adapter,
    remove_adapter,
)
from spacy_bert_heads.encoder.model import encoder_of, shim_of
from spacy_bert_heads.init_config import init_config

pytestmark = pytest.mark.filterwarnings("ignore:A learning rate")
KINDS = ["pfeiffer", "houlsby", "lora"]


def inputs(bert):
    ids = torch.tensor([bert.checkpoint.tokenizer.tokenizer.encode("Anna left Skagen").ids])
    return ids, torch.zeros_like(ids), torch.ones_like(ids)


def randomize(bert) -> None:
    """An adapter that has learned something."""
    torch.manual_seed(1)
    for module in bert.modules():
        if isinstance(module, LowRank | Bottleneck):
            for parameter in (*module.down.parameters(), *module.up.parameters()):
                parameter.data.normal_(std=0.3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_place_for_it(family, kind, tmp_path):
    bert = load_encoder(make_checkpoint(tmp_path, family=family))
    expected = bert(*inputs(bert))
    bert.checkpoint.add_adapter(make_settings(kind, 4, 0))
    adapted = [m for m in bert.modules() if isinstance(m, LowRank | Bottleneck)]
    # ALBERT's layers are one, ModernBERT's query and value are.
    layers = 1 if family == "albert" else 2
    per_layer = {"pfeiffer": 1, "houlsby": 2, "lora": 1 if family == "modernbert" else 2}[kind]
    assert len(adapted) == layers * per_layer
    torch.testing.assert_close(bert(*inputs(bert)), expected, atol=0, rtol=0)  # the identity
    randomize(bert)
    changed = bert(*inputs(bert))
    assert (changed - expected).abs().max() > 1e-2
    remove_adapter(bert.model)
    again = bert(*inputs(bert))
    if kind == "lora":
        torch.testing.assert_close(again, changed, atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(again, expected, atol=0, rtol=0)


def test_a_bottleneck_is_the_papers():
    """Figure 2: down-projection, nonlinearity, up-projection, and a skip connection around."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 4)
    module = Bottleneck(linear, 3)
    module.up.weight.data.normal_()
    x = torch.randn(5, 6)
    h = x @ linear.weight.T + linear.bias
    z = h @ module.down.weight.T + module.down.bias
    z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    expected = h + z @ module.up.weight.T + module.up.bias
    torch.testing.assert_close(module(x), expected)


def test_lora_is_the_papers_and_merges():
    """Equation 3: h = W x + s B A x."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 4)
    before = linear.weight.detach().clone()
    module = LowRank(linear, 2)
    module.up.weight.data.normal_()
    x = torch.randn(5, 6)
    weight = before + LORA_SCALE * module.up.weight @ module.down.weight
    expected = x @ weight.T + linear.bias
    torch.testing.assert_close(module(x), expected)
    module.merge(True)
    module.merge(True)  # once
    torch.testing.assert_close(linear.weight, weight)
    torch.testing.assert_close(module(x), expected)
    module.merge(False)
    torch.testing.assert_close(linear.weight, before)


def build(checkpoint, *heads: str, **encoder) -> spacy.Language:
    nlp = spacy.blank("en")
    settings = {"name": checkpoint, "window": 64, "stride": 48, **encoder}
    nlp.add_pipe("bert_encoder", config={"model": settings})
    for head in heads:
        nlp.add_pipe(f"bert_{head}")
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def learn(nlp, *, steps: int = 60, eps: float = 1e-8) -> None:
    optimizer = Adam(3e-3, eps=eps, use_averages=False)
    for _ in range(steps):
        nlp.update(make_examples(nlp), sgd=optimizer)


def weights_of(nlp) -> dict[str, torch.Tensor]:
    bert = encoder_of(nlp.get_pipe("bert_encoder").model)
    return {name: p.detach().clone() for name, p in bert.model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_learns(kind, checkpoint):
    nlp = build(checkpoint, "ner", adapter=kind, adapter_size=4)
    before = weights_of(nlp)
    learn(nlp, steps=3)
    after = weights_of(nlp)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {name for name in before if ".down." in name or ".up." in name}
    if kind != "lora":
        expected |= {n for n in before if "LayerNorm" in n and "embeddings" not in n}
    assert changed == expected
    n_trained = sum(before[name].numel() for name in changed)
    width, layers = 32, 2
    bottleneck = 4 * (2 * width + 1) + width
    norms = 2 * 2 * width
    each = {"pfeiffer": bottleneck + norms, "houlsby": 2 * bottleneck + norms}
    assert n_trained == layers * each.get(kind, 2 * 2 * 4 * width)


def test_frozen_layers_get_none(checkpoint):
    nlp = build(checkpoint, "ner", adapter="houlsby", frozen_layers=1)
    names = [n for n, p in weights_of(nlp).items()]
    adapted = {n.split(".layer.")[1][0] for n in names if ".down." in n}
    assert adapted == {"1"}
    bert = encoder_of(nlp.get_pipe("bert_encoder").model)
    learning = {n for n, p in bert.model.named_parameters() if p.requires_grad}
    assert learning
    assert all(".layer.1." in name for name in learning)


@pytest.mark.parametrize(
    "kind, share",
    [
        *((kind, False) for kind in KINDS),
        ("lora", True),
        *(pytest.param(kind, True, marks=pytest.mark.long) for kind in KINDS if kind != "lora"),
    ],
)
def test_overfit_and_reload(kind, share, checkpoint, tmp_path):
    size = 32 if kind == "lora" else 16
    options = {"adapter": kind, "adapter_size": size, "share_checkpoint": share}
    nlp = build(checkpoint, "ner", "textcat", **options)
    learn(nlp, steps=120)
    text, gold = TRAIN_DATA[0]

    def results(nlp) -> tuple:
        doc = nlp(text)
        found = [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents]
        return found, round(doc.cats["voyage"], 4)

    expected = results(nlp)
    assert expected[0] == gold["entities"]
    assert expected[1] > 0.9
    nlp.to_disk(tmp_path / "pipeline")
    assert results(nlp) == expected  # saving changes nothing
    folder = tmp_path / "pipeline" / "bert_encoder" / "model"
    names = {file.name for file in folder.iterdir()}
    trained = {"trained.json", "trained.safetensors", "origin.json"}
    assert names == trained if share else names > {*trained, "model.safetensors"}
    again = spacy.load(tmp_path / "pipeline")
    assert results(again) == expected
    bert = encoder_of(again.get_pipe("bert_encoder").model)
    assert all(m.is_merged for m in bert.modules() if isinstance(m, LowRank))
    # What is saved again is the same.
    again.to_disk(tmp_path / "again")
    first, second = (
        load_file(tmp_path / name / "bert_encoder" / "model" / "trained.safetensors")
        for name in ("pipeline", "again")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    blank = spacy.blank("en").from_config(nlp.config)
    assert results(blank.from_bytes(nlp.to_bytes())) == expected
    # It learns on as if it had never been saved.
    # Without eps Adam's first step is the sign of a gradient, even where that is next to nothing.
    learn(nlp, steps=1, eps=1e-3)
    learn(again, steps=1, eps=1e-3)
    for name, weight in weights_of(nlp).items():
        torch.testing.assert_close(weights_of(again)[name], weight, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared"])
def test_saving_over_another_kind_leaves_nothing_of_it(share, checkpoint, tmp_path):
    kinds: list[dict] = [{}, {"adapter": "lora", "share_checkpoint": share}, {"adapter": "houlsby"}]
    for settings in (*kinds, *reversed(kinds)):
        nlp = build(checkpoint, "ner", **settings)
        learn(nlp, steps=3)
        nlp.to_disk(tmp_path / "pipeline")
        again = spacy.load(tmp_path / "pipeline")
        states = [
            one.get_pipe("bert_encoder").predict([one("Hull")]).states for one in (nlp, again)
        ]
        torch.testing.assert_close(*states, atol=1e-5, rtol=1e-4)


def test_a_saved_encoder_is_a_hugging_face_checkpoint(checkpoint, tmp_path):
    nlp = build(checkpoint, "ner", adapter="lora")
    bert = encoder_of(nlp.get_pipe("bert_encoder").model)
    randomize(bert)
    expected = bert(*inputs(bert))
    nlp.to_disk(tmp_path / "pipeline")
    spacy_bert_heads.to_hf(nlp, "bert_encoder", tmp_path / "exported")
    spacy_bert_heads.to_hf(nlp, "bert_ner", tmp_path / "head")
    folders = (tmp_path / "pipeline" / "bert_encoder" / "model", tmp_path / "exported")
    for folder in (*folders, tmp_path / "head"):
        model = transformers.AutoModel.from_pretrained(folder).eval()
        ids, types, mask = inputs(bert)
        states = model(ids, mask, types).last_hidden_state
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-4)
    merge_adapter(bert.model, True)  # a pipeline that predicts
    spacy_bert_heads.to_hf(nlp, "bert_encoder", tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    for name, weight in exported.items():
        torch.testing.assert_close(merged[name], weight)


def test_hugging_face_has_no_place_for_bottlenecks(checkpoint, tmp_path):
    nlp = build(checkpoint, "ner", adapter="pfeiffer")
    with pytest.raises(ValueError, match='adapter = "lora"'):
        spacy_bert_heads.to_hf(nlp, "bert_ner", tmp_path)


def test_the_top_layers_alone_are_saved_over_a_shared_checkpoint(checkpoint, tmp_path):
    nlp = build(checkpoint, "ner", frozen_layers=1, share_checkpoint=True)
    learn(nlp)
    expected = nlp(TRAIN_DATA[0][0]).to_json()
    nlp.to_disk(tmp_path)
    saved = load_file(tmp_path / "bert_encoder" / "model" / "trained.safetensors")
    assert all(name.startswith(("encoder.layer.1.", "pooler.")) for name in saved)
    assert spacy.load(tmp_path)(TRAIN_DATA[0][0]).to_json() == expected


@pytest.mark.parametrize("further", [{"frozen_layers": 2}, {"adapter": "lora"}])
def test_what_was_learned_before_is_saved_over_a_shared_checkpoint(checkpoint, tmp_path, further):
    nlp = build(checkpoint, "textcat", frozen_layers=1, share_checkpoint=True)
    learn(nlp)
    nlp.to_disk(tmp_path / "first")
    config = {"components": {"bert_encoder": {"model": further}}}
    again = spacy.load(tmp_path / "first", config=config)
    if "adapter" in further:
        learn(again, steps=3)
    expected = again(TRAIN_DATA[0][0]).cats
    again.to_disk(tmp_path / "second")
    found = spacy.load(tmp_path / "second")(TRAIN_DATA[0][0]).cats
    assert found == pytest.approx(expected, abs=1e-5)
    assert again(TRAIN_DATA[0][0]).cats == pytest.approx(expected, abs=1e-5)
    assert expected["voyage"] > 0.9


def test_what_a_shared_checkpoint_does_not_give_back_is_not_saved(checkpoint, tmp_path):
    whole = build(checkpoint, "textcat")
    whole.to_disk(tmp_path / "whole")
    config = {"components": {"bert_encoder": {"model": {"share_checkpoint": True}}}}
    config["components"]["bert_encoder"]["model"]["frozen_layers"] = 1
    shared = spacy.load(tmp_path / "whole", config=config)
    fewer = build(checkpoint, "textcat", frozen_layers=1, share_checkpoint=True)
    fewer.get_pipe("bert_encoder").keep_layers([1])
    for nlp in (shared, fewer):
        with pytest.raises(ValueError, match="can't share its checkpoint"):
            nlp.to_disk(tmp_path / "shared")


def test_the_encoder_of_a_bottleneck_is_no_checkpoint(checkpoint, tmp_path):
    for kind in KINDS:
        build(checkpoint, "textcat", adapter=kind).to_disk(tmp_path / kind)
        folder = str(tmp_path / kind / "bert_encoder" / "model")
        if kind == "lora":
            build(folder, "textcat")
            continue
        with pytest.raises(ValueError, match=f"{kind} adapter.*--source"):
            build(folder, "textcat")


@pytest.mark.parametrize("changed", [{"adapter": None}, {"adapter_size": 4}, {"frozen_layers": 1}])
def test_a_trained_adapter_is_not_changed_by_the_config(checkpoint, tmp_path, changed):
    build(checkpoint, "textcat", adapter="lora").to_disk(tmp_path)
    config = {"components": {"bert_encoder": {"model": changed}}}
    with pytest.raises(ValueError, match='adapter = "lora", adapter_size = 32 and frozen_layers'):
        spacy.load(tmp_path, config=config)


def test_another_checkpoint_is_refused(checkpoint, tmp_path):
    other = make_checkpoint(tmp_path / "other", seed=1)
    nlp = build(checkpoint, "ner", adapter="lora", share_checkpoint=True)
    nlp.to_disk(tmp_path / "pipeline")
    config = {"components": {"bert_encoder": {"model": {"name": other}}}}
    with pytest.raises(ValueError, match="another checkpoint than"):
        spacy.load(tmp_path / "pipeline", config=config)
    (tmp_path / "pipeline" / "bert_encoder" / "digests.json").unlink()
    about = tmp_path / "pipeline" / "bert_encoder" / "model" / "trained.json"
    about.write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        spacy.load(tmp_path / "pipeline")
    about.with_name("trained.safetensors").unlink()
    with pytest.raises(ValueError, match="trained.safetensors"):
        spacy.load(tmp_path / "pipeline")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter": "prefix"}, "Unknown adapter 'prefix'.*pfeiffer, houlsby, lora"),
        ({"adapter": "lora", "adapter_size": 0}, "adapter_size is 0"),
        ({"share_checkpoint": True}, "set adapter or frozen_layers"),
    ],
)
def test_what_makes_no_sense_is_said(settings, message, checkpoint):
    with pytest.raises(ValueError, match=message):
        build(checkpoint, "ner", **settings)


def test_a_trained_pipeline_gets_an_adapter_when_it_learns_further(checkpoint, tmp_path):
    nlp = build(checkpoint, "ner")
    learn(nlp, steps=5)
    nlp.to_disk(tmp_path)
    config = {"components": {"bert_encoder": {"model": {"adapter": "lora"}}}}
    again = spacy.load(tmp_path, config=config)
    before = {k: v for k, v in weights_of(again).items() if "query" not in k and "value" not in k}
    learn(again, steps=2)
    after = weights_of(again)
    assert any(".down." in name for name in after)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert shim_of(again.get_pipe("bert_encoder").model).has_module


def test_init_config_gives_it_the_rate_of_a_new_head(checkpoint):
    config = init_config(["ner"], name=checkpoint, adapter="lora")
    encoder = config["components"]["bert_encoder"]["model"]
    assert (encoder["adapter"], encoder["learning_rate_multiplier"]) == ("lora", 10.0)
    plain = init_config(["ner"], name=checkpoint)["components"]["bert_encoder"]["model"]
    assert (plain["adapter"], plain["learning_rate_multiplier"]) == (None, 1.0)
    with pytest.raises(
        ValueError, match="A source has its own heads, checkpoint, language and adapter"
    ):
        init_config(source="pipeline", adapter="lora")
