"""Contrastive training against torch with Hugging Face's model, and what it leads to."""

import random
from collections import Counter

import pytest
import spacy
import torch
from hypothesis import given
from hypothesis import strategies as st
from joint import build
from spacy.tokens import DocBin
from spacy.training.initialize import init_nlp
from thinc.api import Config
from transformers import AutoModel, AutoTokenizer

from spacy_bert_heads.encoder.model import checkpoint_of
from spacy_bert_heads.training import contrastive
from spacy_bert_heads.training.contrastive import Pair, learn_pairs, make_contrastive, make_pairs

TEXTS = {
    "fire": ["Hull burned", "it burned in Hull", "the pump burned", "a boat burned"],
    "voyage": ["Anna left Skagen", "Grete left on Tuesday", "the boat left", "she left Hull"],
}


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4), st.integers(0, 9))
def test_pairs(labels, num_pairs, seed):
    if len(set(labels)) < 2:
        with pytest.raises(ValueError, match="needs texts of two categories"):
            make_pairs(labels, num_pairs, random.Random(seed))
        return
    pairs = make_pairs(labels, num_pairs, random.Random(seed))
    for pair in pairs:
        assert pair.left != pair.right
        assert pair.is_same == float(labels[pair.left] == labels[pair.right])
    counts = Counter((pair.left, pair.is_same) for pair in pairs)
    several = {label for label, number in Counter(labels).items() if number > 1}
    for number, label in enumerate(labels):
        assert counts[number, 0.0] == num_pairs
        assert counts[number, 1.0] == num_pairs * (label in several)


def test_gradient_beside_torch(checkpoint):
    nlp = build(checkpoint, ["textcat"])
    for label in TEXTS:
        nlp.get_pipe("bert_textcat").add_label(label)
    nlp.initialize()
    texts = ["Hull burned", "Anna left Skagen", "the boat left on Tuesday"]
    pairs = [Pair(0, 1, 0.0), Pair(1, 2, 1.0), Pair(2, 0, 0.0)]
    encoder = nlp.get_pipe("bert_encoder")
    loss = learn_pairs(encoder, [nlp.make_doc(text) for text in texts], pairs)
    model = AutoModel.from_pretrained(checkpoint).train()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    vectors = []
    for text in texts:
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        vectors.append(states[0].mean(0))
    cosines = [torch.cosine_similarity(vectors[i], vectors[j], dim=0) for i, j, _ in pairs]
    wanted = sum((c - p.is_same) ** 2 for c, p in zip(cosines, pairs, strict=True)) / 3
    wanted.backward()
    assert loss == pytest.approx(float(wanted.detach()), abs=1e-5)
    found = dict(checkpoint_of(encoder.model).model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and "pooler" not in name:
            torch.testing.assert_close(found[name].grad, parameter.grad, atol=1e-5, rtol=1e-3)


def make_config(checkpoint, folder, **settings) -> Config:
    nlp = build(checkpoint, ["textcat"])
    docs = []
    for label, texts in TEXTS.items():
        for text in texts:
            docs.append(nlp.make_doc(text))
            docs[-1].cats = {one: float(one == label) for one in TEXTS}
    DocBin(docs=docs, store_user_data=True).to_disk(folder / "train.spacy")
    config = nlp.config.copy()
    config["paths"] |= {"train": str(folder / "train.spacy"), "dev": str(folder / "train.spacy")}
    config["initialize"]["after_init"] = {
        "@callbacks": "spacy_bert_heads.contrastive.v1",
        **settings,
    }
    return config


def test_categories_are_told_apart(checkpoint, tmp_path):
    config = make_config(checkpoint, tmp_path, learn_rate=1e-3)
    cosines = []
    for after_init in (None, config["initialize"]["after_init"]):
        config["initialize"]["after_init"] = after_init
        nlp = init_nlp(config)
        means = {}
        for label, texts in TEXTS.items():
            hidden = [nlp.get_pipe("bert_encoder").predict([nlp.make_doc(text)]) for text in texts]
            means[label] = torch.stack([one.states.mean(0) for one in hidden])
        across = torch.cosine_similarity(means["fire"][:, None], means["voyage"][None], dim=-1)
        cosines.append(across.mean().item())
    assert cosines[0] > 0.8
    assert cosines[1] < 0.3
    nlp.to_disk(tmp_path / "pipeline")
    again = spacy.load(tmp_path / "pipeline")
    text = "Hull burned on Tuesday"
    assert again(text).cats == pytest.approx(nlp(text).cats, abs=1e-5)


def test_what_it_needs(checkpoint, tmp_path):
    config = make_config(checkpoint, tmp_path, component="textcat")
    with pytest.raises(ValueError, match="finds no component 'textcat' that reads a bert_encoder"):
        init_nlp(config)
    assert callable(make_contrastive())


def test_only_the_components_own_categories_count(checkpoint, tmp_path, monkeypatch):
    """Of another classifier's texts it learns nothing; probabilities above one half hold."""
    seen = []
    monkeypatch.setattr(contrastive, "make_pairs", lambda labels, *_: seen.extend(labels) or [])
    config = make_config(checkpoint, tmp_path, component="topic")
    nlp = build(checkpoint, ["textcat"])
    cats = [
        {"fire": 0.9, "voyage": 0.1},
        {"fire": 0.0, "voyage": 1.0, "good": 1.0, "bad": 0.0},
        {"good": 0.0, "bad": 1.0},
        {"fire": 0.5, "voyage": 0.5},
    ]
    docs = [nlp.make_doc("Hull burned") for _ in cats]
    for doc, own in zip(docs, cats, strict=True):
        doc.cats = own
    DocBin(docs=docs).to_disk(tmp_path / "train.spacy")
    head = config["components"].pop("bert_textcat")
    config["components"] |= {"topic": head, "tone": head}
    config["nlp"]["pipeline"] = ["bert_encoder", "topic", "tone"]
    labels = {"topic": {"labels": ["fire", "voyage"]}, "tone": {"labels": ["good", "bad"]}}
    config["initialize"]["components"] = labels
    with pytest.warns(UserWarning, match="leaves out 1 of 3 texts, .* of topic holds"):
        init_nlp(config)
    assert seen == ["fire", "voyage"]


@pytest.mark.parametrize("settings", [{"num_pairs": 0}, {"batch_size": 0}])
def test_numbers_below_one(settings):
    with pytest.raises(ValueError, match="both must be 1 or more"):
        make_contrastive(**settings)


def test_a_single_step_learns(checkpoint, tmp_path):
    config = make_config(checkpoint, tmp_path, batch_size=1000, learn_rate=1e-3)
    states = []
    for one in (None, config["initialize"]["after_init"]):
        config["initialize"]["after_init"] = one
        nlp = init_nlp(config)
        states.append(nlp.get_pipe("bert_encoder").predict([nlp.make_doc("Hull burned")]).states)
    assert not torch.allclose(*states, atol=1e-3)


def test_many_steps_are_announced(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(contrastive, "MANY_STEPS", 1)
    config = make_config(checkpoint, tmp_path, num_pairs=2, batch_size=8)
    steps = -(-4 * sum(map(len, TEXTS.values())) // 8)
    with pytest.warns(UserWarning, match=f"takes {steps} steps of 8 pairs.* reduce num_pairs"):
        init_nlp(config)
