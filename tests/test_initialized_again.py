"""Initialized twice, resumed, loaded: ids, counters and optimizers are those of the weights."""

import gc
import weakref

import pytest
import spacy
import torch
from conftest import make_examples
from spacy.training import Example
from thinc.api import Adam

from spacy_bert_heads.encoder.model import checkpoint_of, shim_of


def state_of(nlp) -> tuple:
    """The encoder's id and updates, and what each head knows of them."""
    encoder = nlp.get_pipe("bert_encoder")
    heads = [nlp.get_pipe(name) for name in nlp.pipe_names[1:]]
    noted = {(head.cfg["encoder"], head.cfg["encoder_updates"]) for head in heads}
    noted |= {(one.trained_on, one.trained_at) for head in heads for one in head._listeners()}
    assert noted == {(encoder.id, encoder.num_updates)}
    return noted.pop()


def weights_of(nlp) -> list[torch.Tensor]:
    return [
        parameter.detach().clone()
        for name in nlp.pipe_names
        for parameter in shim_of(nlp.get_pipe(name).model).module.parameters()
    ]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def learn(nlp, optimizer, *, steps: int = 3) -> list[torch.Tensor]:
    for _ in range(steps):
        nlp.update(make_examples(nlp), sgd=optimizer)
    return weights_of(nlp)


@pytest.mark.filterwarnings("ignore:A learning rate")
def test_a_pipeline_initialized_twice_is_a_new_one(make_nlp):
    """Also in the middle of a training: no moment, no step and no gradient of the first is left."""
    nlp = make_nlp("ner", "textcat")
    start, first = weights_of(nlp), state_of(nlp)
    expected = learn(nlp, nlp.create_optimizer())
    assert state_of(nlp) == (first[0], 3)
    nlp.update(make_examples(nlp), sgd=False)  # gradients that no update has taken
    torch.manual_seed(0)
    optimizer = nlp.initialize(lambda: make_examples(nlp))
    assert same(weights_of(nlp), start)
    second = state_of(nlp)
    assert second[0] != first[0] and second[1] == 0
    assert same(learn(nlp, optimizer), expected)
    assert state_of(nlp) == (second[0], 3)


@pytest.mark.filterwarnings("ignore:A learning rate")
def test_one_optimizer_for_both(make_nlp):
    """torch's moments belong to the weights."""
    nlp = make_nlp("ner")
    optimizer = Adam(1e-3, use_averages=False)
    expected = learn(nlp, optimizer)
    torch.manual_seed(0)
    assert nlp.initialize(lambda: make_examples(nlp), sgd=optimizer) is optimizer
    assert same(learn(nlp, optimizer), expected)


def test_an_open_step_ends_with_its_weights(make_nlp):
    nlp = make_nlp("ner", "textcat")
    encoder = nlp.get_pipe("bert_encoder")
    examples = make_examples(nlp)
    encoder.update(examples)
    nlp.get_pipe("bert_ner").update(examples)
    weight = weakref.ref(next(checkpoint_of(encoder.model).model.parameters()))
    encoder.initialize(lambda: examples)
    assert encoder._step is None
    gc.collect()
    assert weight() is None
    assert all(p.grad is None for p in checkpoint_of(encoder.model).model.parameters())


def test_the_model_initialized_twice_keeps_its_weights(make_nlp):
    nlp = make_nlp("ner", adapter="lora", adapter_size=2)
    optimizer = Adam(1e-3, use_averages=False)
    learned = learn(nlp, optimizer)
    before = state_of(nlp)
    nlp.get_pipe("bert_encoder").model.initialize()
    assert same(weights_of(nlp), learned)
    assert state_of(nlp) == before
    learn(nlp, optimizer, steps=1)
    assert state_of(nlp) == (before[0], 4)


def test_a_model_initialized_without_its_component_has_an_id(make_nlp):
    nlp = make_nlp("ner", initialize=False)
    encoder = nlp.get_pipe("bert_encoder")
    encoder.model.initialize()
    assert encoder.id is not None
    nlp.get_pipe("bert_ner").initialize(lambda: make_examples(nlp), nlp=nlp)
    assert state_of(nlp) == (encoder.id, 0)
    encoder.model.initialize()
    assert state_of(nlp) == (encoder.id, 0)


@pytest.mark.filterwarnings("ignore:A learning rate")
def test_a_pipeline_is_trained_further(make_nlp, tmp_path):
    """In memory and from disk, with the optimizer of its config: the same weights."""
    nlp = make_nlp("ner", "textcat")
    first = nlp.resume_training()
    learn(nlp, first)
    encoder_id = state_of(nlp)[0]
    assert nlp.resume_training() is first  # spaCy's rule
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    assert state_of(loaded) == (encoder_id, 3)
    fresh = nlp.create_optimizer()
    assert nlp.resume_training(sgd=fresh) is fresh
    assert same(learn(loaded, loaded.resume_training()), learn(nlp, fresh))
    assert state_of(loaded) == state_of(nlp) == (encoder_id, 6)
    assert isinstance(loaded("Anna left Skagen"), spacy.tokens.Doc)


def test_a_head_initialized_again_learns_on_the_encoder_as_it_is(make_nlp):
    nlp = make_nlp("ner", "textcat")
    optimizer = Adam(1e-4, use_averages=False)
    learn(nlp, optimizer)
    encoder_id = state_of(nlp)[0]
    ner = nlp.get_pipe("bert_ner")
    ner.initialize(lambda: make_examples(nlp), nlp=nlp)
    assert state_of(nlp) == (encoder_id, 3)
    examples: list[Example] = make_examples(nlp)
    nlp.update(examples, sgd=optimizer)
    assert state_of(nlp) == (encoder_id, 4)
