"""`accumulate_gradient`: sub-batches have the gradient of the batch that they were cut from."""

import numpy as np
import pytest
import spacy
import torch
from conftest import make_examples
from groups import GROUPS
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_stream import make_examples as make_pairs
from spacy.tokens import Doc
from spacy.training import Example
from spacy.training.loop import subdivide_batch
from thinc.api import Adam
from torch import nn

from spacy_bert_heads.encoder.accumulation import Accumulation

WORDS = ["Anna", "Grete", "left", "Skagen", "on", "Tuesday", "the", "boat", "burned", "in", "Hull"]
LENGTHS = (2, 3, 3, 5, 8, 11, 20, 33)
LISTENER = {"@architectures": "spacy_bert_heads.Tok2VecListener.v1"}


def make_batch(nlp) -> list[Example]:
    """Docs of different lengths, some of which are not annotated or only in part."""
    examples = []
    for i, length in enumerate(LENGTHS):
        words = [WORDS[(i + 3 * k) % len(WORDS)] for k in range(length)]
        gold = {
            "words": words,
            "tags": [word[0] if k % 3 else "" for k, word in enumerate(words)],
            "entities": ["U-X" if word[0].isupper() else "O" for word in words],
            "cats": {"a": float(i % 3 == 0), "b": float(i % 3 > 0)},
        }
        if i % 4 == 3:
            gold["cats"] = {}
        examples.append(Example.from_dict(Doc(nlp.vocab, words=words), gold))
    return examples


def make_numbers(nlp) -> list[Example]:
    """The same, with a number for each Doc that has a category."""
    examples = make_batch(nlp)
    for i, example in enumerate(examples):
        if example.reference.cats:
            example.reference._.regression = {"length": i / 4}
    return examples


def build(name: str, *heads: str, make=make_batch, **configs):
    """Heads by the names of their factories, "bert_" left out for ours."""
    nlp = spacy.blank("xx")
    nlp.add_pipe("bert_encoder", config={"model": {"name": name, "window": 64, "stride": 48}})
    for head in heads:
        factory = head if head.startswith("spacy_") else f"bert_{head}"
        config = GROUPS.get(head, {}) | configs.get(head, {})
        nlp.add_pipe(factory.removeprefix("spacy_"), name=factory, config=config)
    torch.manual_seed(0)
    nlp.initialize(lambda: make(nlp))
    return nlp


def accumulate(nlp, examples, num_parts: int) -> None:
    """As spaCy's training loop does."""
    for part in subdivide_batch(examples, num_parts):
        nlp.update(part, sgd=False)


def gradients(nlp) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([p.grad.flatten() for p in module_of(nlp, name).parameters() if has(p)])
        for name in nlp.pipe_names
        if any(map(has, module_of(nlp, name).parameters()))
    }


def has(parameter) -> bool:
    return parameter.grad is not None


def module_of(nlp, name: str) -> nn.Module:
    shims = [s for node in nlp.get_pipe(name).model.walk() for s in node.shims]
    return nn.ModuleList([s._model for s in shims if isinstance(s._model, nn.Module)])


def assert_same(found: dict, expected: dict, names=None) -> None:
    assert found.keys() == expected.keys()
    for name in names or expected:
        difference = (found[name] - expected[name]).norm()
        assert difference < 1e-5 * expected[name].norm(), name
        assert expected[name].norm() > 0


CASES = {
    "ner": [("ner",), {}, make_batch],
    "tagger, some tokens not annotated": [("tagger",), {}, make_batch],
    "textcat": [("textcat",), {"textcat": {"class_weights": {"a": 0.3, "b": 2.0}}}, make_batch],
    "textcat_multilabel": [("textcat_multilabel",), {}, make_batch],
    "nli": [("nli",), {}, make_pairs],
    "qa": [("qa",), {}, make_pairs],
    "two heads for the same texts": [("textcat", "regression"), {}, make_numbers],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_parts", [2, 4])
def test_parts_have_the_gradient_of_the_batch(case, num_parts, checkpoint):
    heads, configs, make = CASES[case]
    found = []
    for parts in (1, num_parts):
        nlp = build(checkpoint, *heads, make=make, **configs)
        accumulate(nlp, make(nlp) * (2 if make is make_pairs else 1), parts)
        found.append(gradients(nlp))
    assert found[0].keys() == set(nlp.pipe_names)
    assert_same(found[1], found[0])


def all_tagged(nlp) -> list[Example]:
    examples = make_batch(nlp)
    for example in examples:
        for token in example.reference:
            token.tag_ = token.text[0]
    return examples


def test_several_heads_whose_items_are_in_proportion(checkpoint):
    found = []
    for parts in (1, 4):
        nlp = build(checkpoint, "ner", "tagger", make=all_tagged)
        accumulate(nlp, all_tagged(nlp), parts)
        found.append(gradients(nlp))
    assert_same(found[1], found[0])


def test_heads_with_other_items_have_the_same_weight_together(checkpoint):
    """Tokens beside texts: each head learns as from the batch; of the encoder's gradient, short
    texts have a little more or less than they should."""
    found = []
    for parts in (1, 4):
        nlp = build(checkpoint, "ner", "textcat")
        accumulate(nlp, make_batch(nlp), parts)
        found.append(gradients(nlp))
    assert_same(found[1], found[0], ["bert_ner", "bert_textcat"])
    whole, parts = found[0]["bert_encoder"], found[1]["bert_encoder"]
    assert torch.cosine_similarity(whole, parts, 0) > 0.8  # of parts of two texts
    assert 0.8 < parts.norm() / whole.norm() < 1.25


def test_heads_that_learn_from_different_texts(checkpoint):
    """Of two data sets, one after the other."""
    found = []
    for parts in (1, 2):
        nlp = build(checkpoint, "ner", "textcat", make=all_tagged)
        batch = make_batch(nlp)
        for i, example in enumerate(batch):
            if i < 4:
                example.reference.cats = {}
            else:
                unknown = [example.reference[:]] if len(example.reference) else []
                example.reference.set_ents([], missing=unknown)
        accumulate(nlp, batch, parts)
        found.append(gradients(nlp))
    assert_same(found[1], found[0])


def test_clipping_sees_the_norm_of_the_batch(checkpoint, monkeypatch):
    """In several steps after each other: a step ends the mean."""
    clip, norms = nn.utils.clip_grad_norm_, {1: [], 4: []}
    for parts, noted in norms.items():
        nlp = build(checkpoint, "ner", "tagger", make=all_tagged)
        optimizer = Adam(1e-4, use_averages=False, grad_clip=0.5)

        def note(parameters, most, noted=noted):
            noted.append(float(clip(parameters, most)))

        monkeypatch.setattr(nn.utils, "clip_grad_norm_", note)
        for _ in range(3):
            accumulate(nlp, all_tagged(nlp), parts)
            for _, proc in nlp.pipeline:
                proc.finish_update(optimizer)
    assert len(norms[1]) == 9
    assert max(norms[1]) > 0.5  # something is clipped
    assert norms[4] == pytest.approx(norms[1], rel=1e-3)


def test_an_encoder_of_a_heads_own(checkpoint):
    found = []
    for parts in (1, 4):
        nlp = build(checkpoint, "ner")
        nlp.replace_listeners("bert_encoder", "bert_ner", ["model.tok2vec"])
        nlp.remove_pipe("bert_encoder")
        accumulate(nlp, make_batch(nlp), parts)
        found.append(gradients(nlp))
    assert found[0]["bert_ner"].numel() > 10_000  # with the encoder
    assert_same(found[1], found[0])


def test_losses_of_spacy_are_sums(checkpoint):
    """Those of its tagger, so its gradients add up, as they always did."""
    found = []
    for parts in (1, 4):
        model = {"@architectures": "spacy.Tagger.v2", "tok2vec": LISTENER}
        nlp = build(checkpoint, "spacy_tagger", make=all_tagged, spacy_tagger={"model": model})
        weights = nlp.get_pipe("spacy_tagger").model.get_ref("softmax")
        weights.set_param(
            "W", 0.1 * np.random.default_rng(0).standard_normal(weights.get_param("W").shape, "f")
        )
        accumulate(nlp, all_tagged(nlp), parts)
        found.append(gradients(nlp))
    assert_same(found[1], found[0])


def test_one_update_is_what_it_was(checkpoint):
    """To the last bit: with an optimizer, or one part that is finished afterwards."""
    found = []
    for at_once in (True, False):
        nlp = build(checkpoint, "ner", "textcat")
        optimizer = Adam(1e-3, use_averages=False)
        for _ in range(3):
            nlp.update(make_batch(nlp), sgd=optimizer if at_once else False)
            if not at_once:
                for _, proc in nlp.pipeline:
                    proc.finish_update(optimizer)
        found.append([p.detach() for n in nlp.pipe_names for p in module_of(nlp, n).parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_nothing_annotated_in_a_part(checkpoint):
    """Nor in the first one."""
    found = []
    for parts in ([slice(1, 2)], [slice(0, 1), slice(1, 2), slice(0, 1)]):
        nlp = build(checkpoint, "tagger", make=make_examples)
        batch = make_examples(nlp)
        # Annotated, but not a token that has a wordpiece.
        batch[0] = Example.from_dict(nlp.make_doc("\u200b"), {"tags": ["NN"]})
        for part in parts:
            nlp.update(batch[part], sgd=False)
        found.append(gradients(nlp))
    assert_same(found[1], found[0])


# --- weights


counts = st.lists(st.integers(0, 50), min_size=1, max_size=6)


def total_weights(steps) -> list[dict[int, float]]:
    """The weight of each step in the end."""
    accumulation, weights = Accumulation(), []
    for items in steps:
        factor, new = accumulation.add(items, is_first=False)
        weights = [{key: w * factor for key, w in one.items()} for one in weights] + [new]
    return weights


@given(counts, st.lists(st.sampled_from([0.5, 1, 3, 7]), min_size=1, max_size=3))
@settings(deadline=None)
def test_weights_are_shares_of_the_items(items, proportions):
    steps = [{i: n * p for i, p in enumerate(proportions)} for n in items]
    for step, weights in zip(steps, total_weights(steps), strict=True):
        for key, n in step.items():
            if n:
                assert weights[key] == pytest.approx(n / sum(one[key] for one in steps))


@given(st.integers(1, 6))
def test_sums_are_added_up(num_steps):
    assert total_weights([{0: None, 1: None}] * num_steps) == [{0: 1.0, 1: 1.0}] * num_steps


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=6))
@settings(deadline=None)
def test_all_weights_together_are_right(pairs):
    """Whatever the items are, also beside a loss that is a sum."""
    weights = total_weights([{0: a, 1: b, 2: None} for a, b in pairs])
    assert all(w >= 0 for one in weights for w in one.values())
    for key, total in ((0, 1), (1, 1), (2, len(pairs))):
        assert sum(one[key] for one in weights) == pytest.approx(total)
