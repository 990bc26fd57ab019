"""Training through spaCy gives the parameters of a plain torch loop."""

import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from conftest import make_examples
from spacy.training.loop import train_while_improving
from thinc.api import Adam
from torch_loop import BATCHES, DATA, STEPS, TorchLoop, make_optimizer, parameters
from transformers import AutoModel

from spacy_bert_heads.encoder.model import encoder_of, shim_of
from spacy_bert_heads.encoder.parameters import layer_depths


def batches(nlp):
    examples = make_examples(nlp, DATA)
    return [[examples[i] for i in BATCHES[step % len(BATCHES)]] for step in range(STEPS)]


def assert_equal(nlp, loop: TorchLoop, start: dict[str, torch.Tensor]) -> None:
    mine, theirs = parameters(nlp), loop.parameters()
    assert mine.keys() == theirs.keys()
    moved = 0
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], atol=2e-5, rtol=1e-4, msg=name)
        moved += not torch.equal(value, start[name])
    assert moved > len(mine) // 2


@pytest.fixture
def trained(make_nlp, checkpoint):
    def make(*, frozen=()):
        nlp = make_nlp("ner", "textcat", initialize=False)
        torch.manual_seed(0)
        nlp.initialize(lambda: make_examples(nlp, DATA))
        return nlp, TorchLoop(nlp, checkpoint, frozen), parameters(nlp)

    return make


@pytest.mark.parametrize("frozen", [(), ("bert_textcat",), ("bert_ner",)])
def test_update_by_hand_equals_torch(trained, frozen):
    nlp, loop, start = trained(frozen=frozen)
    optimizer = make_optimizer()
    for examples in batches(nlp):
        nlp.update(examples, sgd=optimizer, exclude=frozen)
        optimizer.step_schedules()
        loop.backward(examples)
        loop.step()
    # A component that is excluded doesn't answer, and the encoder can't know it.
    nlp.get_pipe("bert_encoder").close_step()
    assert_equal(nlp, loop, start)


def test_a_rate_and_a_weight_for_each_component(make_nlp, checkpoint):
    nlp = make_nlp(initialize=False, learning_rate_multiplier=0.5)
    tok2vec = {"@architectures": "spacy_bert_heads.BertListener.v1", "grad_factor": 0.25}
    nlp.add_pipe(
        "bert_ner", config={"model": {"learning_rate_multiplier": 10.0, "tok2vec": tok2vec}}
    )
    nlp.add_pipe("bert_textcat")
    nlp.initialize(lambda: make_examples(nlp, DATA))
    loop, start = TorchLoop(nlp, checkpoint), parameters(nlp)
    loop.factors, loop.grad_factors = {"bert_encoder": 0.5, "bert_ner": 10.0}, {"bert_ner": 0.25}
    optimizer = make_optimizer()
    for examples in batches(nlp):
        nlp.update(examples, sgd=optimizer)
        optimizer.step_schedules()
        loop.backward(examples)
        loop.step()
    assert_equal(nlp, loop, start)


@pytest.mark.parametrize("annotating", [[], ["bert_ner"]])
@pytest.mark.parametrize(
    "frozen, accumulate",
    [
        ((), 1),
        (("bert_textcat",), 1),
        (("bert_ner",), 1),
        # Tokens beside texts are not exact for the encoder: tests/test_accumulate.py.
        (("bert_textcat",), 2),
        (("bert_ner",), 2),
    ],
)
def test_spacy_train_equals_torch(trained, frozen, accumulate, annotating):
    nlp, loop, start = trained(frozen=frozen)
    for _ in train_while_improving(
        nlp,
        make_optimizer(),
        ((0, examples) for examples in batches(nlp)),
        lambda: (0.0, {}),
        dropout=0.1,  # ours comes from the checkpoint, where it is 0
        eval_frequency=1000,
        accumulate_gradient=accumulate,
        patience=0,
        max_steps=0,
        exclude=list(frozen),
        annotating_components=annotating,
        before_update=None,
    ):
        pass
    for examples in batches(nlp):
        loop.backward(examples)
        loop.step()
    assert_equal(nlp, loop, start)


def test_only_what_a_head_learns_from_is_run(trained, monkeypatch):
    nlp, _, _ = trained()
    model, run = nlp.get_pipe("bert_encoder").model, []
    forward = model._func

    def recorded(model, docs, is_train):
        run.append([doc.text for doc in docs])
        return forward(model, docs, is_train)

    monkeypatch.setattr(model, "_func", recorded)
    entities, both, categories = (DATA[i] for i in (6, 0, 5))
    none = ("It burned in Hull", {})
    nlp.update(make_examples(nlp, [none, entities, both, categories, DATA[1]]))
    texts = [text for text, _ in (entities, both, DATA[1])]
    # The NER head reads first; what it has read is not run again for the categories.
    assert run == [texts, [categories[0]]]


def test_frozen_encoder_keeps_no_graph_and_heads_learn(trained):
    nlp, _, start = trained()
    optimizer = make_optimizer()
    encoder = nlp.get_pipe("bert_encoder")
    seen = []
    read = encoder.read
    encoder.read = lambda docs, listener: seen.append(read(docs, listener)) or seen[-1]
    for examples in batches(nlp)[:4]:
        nlp.update(examples, sgd=optimizer, exclude=["bert_encoder"])
        optimizer.step_schedules()
    assert len(seen) == 7  # of 2 heads and 4 batches; the last batch has no categories
    assert not any(encoded.states.requires_grad for encoded, _ in seen)
    assert all(p.grad is None for p in encoder_of(encoder.model).parameters())
    for name, value in parameters(nlp).items():
        assert torch.equal(value, start[name]) == name.startswith("bert_encoder"), name


@pytest.mark.parametrize("n_frozen", [0, 1, 2])
def test_lowest_layers_frozen(make_nlp, n_frozen):
    nlp = make_nlp("ner", frozen_layers=n_frozen)
    module = encoder_of(nlp.get_pipe("bert_encoder").model)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = Adam(1e-3, use_averages=False)
    with pytest.warns(UserWarning, match="learning rate"):
        nlp.update(make_examples(nlp), sgd=optimizer)
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, start[name])}
    for layer in range(2):
        learns = any(f"layer.{layer}." in name for name in moved)
        assert learns == (layer >= n_frozen)
    assert any("embeddings" in name for name in moved) == (n_frozen == 0)


def test_layer_decay(make_nlp):
    nlp = make_nlp("ner", layer_decay=0.5)
    nlp.update(make_examples(nlp), sgd=Adam(1e-4, L2=0.01, use_averages=False))
    shim = shim_of(nlp.get_pipe("bert_encoder").model)
    scale = {id(p): g["rate"] for g in shim.optimization._adam.param_groups for p in g["params"]}
    decays = {
        id(p): g["weight_decay"] for g in shim.optimization._adam.param_groups for p in g["params"]
    }
    for name, p in shim.module.named_parameters():
        expected = 1.0 if "layer.1." in name or "pooler" in name else 0.5
        assert scale[id(p)] == (0.25 if "embeddings" in name else expected), name
        assert decays[id(p)] == (0.0 if "bias" in name or "LayerNorm" in name else 0.01), name


@pytest.mark.parametrize("family", ["deberta-v2", "mpnet"])
def test_relative_positions_are_as_deep_as_embeddings(family, tmp_path):
    model = AutoModel.from_pretrained(make_checkpoint(tmp_path, family=family))
    depths = layer_depths(model)
    positions = [name for name in depths if "rel" in name and "layer." not in name]
    assert positions and {depths[name] for name in positions} == {0}


def test_layers_that_share_weights_have_no_decay(tmp_path):
    folder = make_checkpoint(tmp_path, family="albert")
    nlp = spacy.blank("xx")
    settings = {"name": folder, "window": 64, "stride": 48, "layer_decay": 0.9}
    nlp.add_pipe("bert_encoder", config={"model": settings})
    with pytest.raises(ValueError, match="layer_decay is 0.9, but the layers of a 'albert'"):
        nlp.initialize()


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_other_optimizers_take_thincs_path(make_nlp, factor):
    from thinc.api import SGD

    nlp = make_nlp(initialize=False)
    nlp.add_pipe("bert_textcat", config={"model": {"learning_rate_multiplier": factor}})
    nlp.initialize(lambda: make_examples(nlp))
    head = shim_of(nlp.get_pipe("bert_textcat").model).module
    before = head.classifier.weight.detach().clone()
    states = nlp.get_pipe("bert_encoder").predict([eg.predicted for eg in make_examples(nlp)])
    logits = head(states.states, states.batch)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0]))  # labels: fire, voyage
    (gradient,) = torch.autograd.grad(loss, head.classifier.weight)
    nlp.update(make_examples(nlp), sgd=SGD(1e-4, grad_clip=0.0, use_averages=False))
    torch.testing.assert_close(head.classifier.weight.detach(), before - factor * 1e-4 * gradient)


def test_fp16_scaling_under_accumulation(make_nlp):
    """Gradients of several parts add up under one scale, and are unscaled once."""
    gradients, moved = {}, {}
    for precision in ("fp32", "fp16"):
        nlp = make_nlp("ner", initialize=False, precision=precision)
        torch.manual_seed(0)
        nlp.initialize(lambda nlp=nlp: make_examples(nlp, DATA))
        encoder = nlp.get_pipe("bert_encoder")
        if precision == "fp16":  # a scale at which nothing overflows, so that a step is taken
            shim_of(encoder.model).optimization._scaler = torch.amp.GradScaler(
                "cpu", init_scale=1024.0
            )
        for part in range(4):
            nlp.update(make_examples(nlp, DATA[2 * part : 2 * part + 2]), sgd=False)
        module = encoder_of(encoder.model)
        start = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
        gradients[precision] = torch.cat(
            [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        )
        # Adam's first step is the sign of the gradient, so an epsilon that lets its size through.
        encoder.finish_update(Adam(1e-4, eps=1.0, grad_clip=0.0, use_averages=False))
        moved[precision] = torch.cat([p.detach().flatten() for p in module.parameters()]) - start
    scale = shim_of(encoder.model).optimization._scaler.get_scale()
    assert scale == 1024
    for exact, half in (
        (gradients["fp32"], gradients["fp16"] / scale),
        (moved["fp32"], moved["fp16"]),
    ):
        torch.testing.assert_close(half, exact, atol=0.01 * float(exact.abs().max()), rtol=0.0)


def test_fp16_overflow_skips_the_step(make_nlp):
    nlp = make_nlp("ner", precision="fp16")
    optimizer = Adam(1e-4, use_averages=False)
    shim = shim_of(nlp.get_pipe("bert_encoder").model)
    nlp.update(make_examples(nlp), sgd=False)
    next(shim.module.parameters()).grad.fill_(float("inf"))
    start = [p.detach().clone() for p in shim.module.parameters()]
    nlp.get_pipe("bert_encoder").finish_update(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(start, shim.module.parameters(), strict=True))
    assert shim.optimization._scaler.get_scale() == 32768


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close(make_nlp, precision):
    exact, half = make_nlp("textcat"), make_nlp("textcat", precision=precision)
    half.get_pipe("bert_textcat").model.from_bytes(exact.get_pipe("bert_textcat").model.to_bytes())
    text = "Anna Grete left Skagen"
    for label, p in exact(text).cats.items():
        assert half(text).cats[label] == pytest.approx(p, abs=0.05)
    states = half.get_pipe("bert_encoder").predict([half.make_doc(text)]).states
    truth = exact.get_pipe("bert_encoder").predict([exact.make_doc(text)]).states
    assert states.dtype == torch.float32
    assert 0 < float((states - truth).abs().max()) < 0.2  # it did run in another precision


def test_loss_is_the_mean_per_update(make_nlp):
    nlp = make_nlp("ner", "textcat")
    examples = make_examples(nlp)
    losses, single = {}, []
    for _ in range(3):
        single.append(nlp.update(examples, sgd=False, losses={})["bert_ner"])
        nlp.update(examples, sgd=False, losses=losses)
    assert losses["bert_ner"] == pytest.approx(sum(single) / 3)
    assert losses["bert_encoder"] > 0
