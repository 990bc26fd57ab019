"""Sourcing, merging, renaming, removing, loading parts of a pipeline."""

import copy
import gc

import numpy as np
import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from joint import HEADS, LANG, SAILED, annotate, assert_same, build, make_docs, make_examples, train
from spacy.training import Example
from spacy.util import load_model_from_config
from thinc.api import Adam, Config

from spacy_bert_heads.encoder.encoder import Encoder
from spacy_bert_heads.encoder.model import shim_of

NO_ENCODER = "bert_ner reads the hidden states of an encoder, but no 'bert_encoder' comes before it"


@pytest.fixture(scope="module")
def expected(joint):
    return annotate(spacy.load(joint))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The folder of another pipeline, with another encoder."""
    folder = tmp_path_factory.mktemp("other")
    name = make_checkpoint(folder / "bert", family="distilbert", seed=1)
    train(build(name, ["textcat", "qa"])).to_disk(folder / "pipeline")
    return folder / "pipeline"


def weights_of(nlp, name: str) -> dict[str, torch.Tensor]:
    module = shim_of(nlp.get_pipe(name).model).module
    return {key: value.detach().clone() for key, value in module.named_parameters()}


def changed(before: dict, after: dict) -> bool:
    return any(not torch.equal(before[key], after[key]) for key in before)


def n_encoders() -> int:
    gc.collect()
    return sum(type(item) is Encoder for item in gc.get_objects())


# --- taking the encoder out


def test_without_its_encoder_a_head_says_what_to_add(nlp, joint, expected):
    nlp.remove_pipe("bert_encoder")
    for use in (
        lambda: nlp(SAILED),
        lambda: nlp.update(make_examples(nlp), sgd=False),
        lambda: nlp.initialize(lambda: make_examples(nlp)),
    ):
        with pytest.raises(ValueError, match=NO_ENCODER):
            use()
    nlp = spacy.load(joint)
    nlp.remove_pipe("bert_encoder")
    nlp.add_pipe("bert_encoder", source=spacy.load(joint), first=True)
    assert_same(annotate(nlp), expected)


def test_without_its_encoder_every_head_stops(nlp):
    nlp.remove_pipe("bert_encoder")
    for doc in make_docs(nlp)[:1]:
        for head in HEADS:
            with (
                nlp.select_pipes(enable=[f"bert_{head}"]),
                pytest.raises(ValueError, match=f"bert_{head} reads"),
            ):
                nlp(doc)


def test_replacing_the_encoder(nlp, checkpoint, expected):
    """Its heads, which were trained on the other, say so, until it has the other's weights."""
    settings = {"name": checkpoint, "window": 64, "stride": 48}
    weights = nlp.get_pipe("bert_encoder").to_bytes()
    encoder = nlp.replace_pipe("bert_encoder", "bert_encoder", config={"model": settings})
    assert nlp.pipe_names[0] == "bert_encoder"
    encoder.initialize(lambda: [])
    with pytest.raises(ValueError, match="bert_ner was trained on another encoder than 'bert_enc"):
        annotate(nlp)
    encoder.from_bytes(weights)
    assert_same(annotate(nlp), expected)


def test_a_pipeline_of_copies_keeps_to_its_own_encoder(nlp, expected):
    """Also a head that was disabled when spaCy linked the pipeline."""
    nlp.disable_pipe("bert_textcat")
    nlp._link_components()
    twin = copy.deepcopy(nlp)
    encoder = twin.get_pipe("bert_encoder")
    for name in twin.component_names[1:]:
        assert twin.get_pipe(name).model.get_ref("tok2vec").upstream is encoder
    twin.enable_pipe("bert_textcat")
    assert_same(annotate(twin), expected)
    del encoder
    twin.remove_pipe("bert_encoder")
    with pytest.raises(ValueError, match=NO_ENCODER):
        twin(SAILED)


# --- sourcing, merging, renaming


def test_a_head_sourced_alone(joint, expected, tmp_path):
    """It reads its own pipeline's encoder while there is one."""
    source = spacy.load(joint)
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_ner", source=source)
    found = annotate(nlp)
    assert_same([one["ents"] for one in found], [one["ents"] for one in expected])
    nlp.to_disk(tmp_path)
    with pytest.raises(ValueError, match=NO_ENCODER):
        spacy.load(tmp_path)(SAILED)
    del source
    with pytest.raises(ValueError, match=NO_ENCODER):
        nlp(SAILED)


def from_sources(*components: tuple[str, dict]):
    config = {
        "nlp": {"lang": LANG, "pipeline": [name for name, _ in components]},
        "components": dict(components),
    }
    return load_model_from_config(Config(config), auto_fill=True)


def test_a_head_sourced_alone_by_the_config(joint, expected):
    nlp = from_sources(("bert_ner", {"source": str(joint)}))
    with pytest.raises(ValueError, match=NO_ENCODER):
        nlp(SAILED)
    own = {"source": str(joint), "replace_listeners": ["model.tok2vec"]}
    nlp = from_sources(("bert_ner", own))
    assert_same([one["ents"] for one in annotate(nlp)], [one["ents"] for one in expected])


def test_merging_two_pipelines(joint, other, expected, tmp_path):
    """Each head stands behind its own encoder, and answers as it did."""
    nlp = from_sources(
        ("bert_encoder", {"source": str(joint)}),
        ("bert_ner", {"source": str(joint)}),
        ("bert_nli", {"source": str(joint)}),
        ("second", {"source": str(other), "component": "bert_encoder"}),
        ("bert_textcat", {"source": str(other)}),
        ("answers", {"source": str(other), "component": "bert_qa"}),
    )
    nlp.to_disk(tmp_path)
    others = annotate(spacy.load(other))
    for pipeline in (nlp, spacy.load(tmp_path)):
        first, second = (pipeline.get_pipe(name) for name in ("bert_encoder", "second"))
        assert first.listening_components == ["bert_ner", "bert_nli"]
        assert second.listening_components == ["bert_textcat", "answers"]
        for found, one, two in zip(annotate(pipeline), expected, others, strict=True):
            assert_same([found[key] for key in ("ents", "nli")], [one["ents"], one["nli"]])
            assert_same([found[key] for key in ("cats", "answers")], [two["cats"], two["answers"]])
    # And each encoder learns from its own.
    before = {name: weights_of(nlp, name) for name in ("bert_encoder", "second")}
    optimizer = Adam(1e-4, use_averages=False)
    example = Example.from_dict(nlp.make_doc("Hull"), {"entities": [(0, 4, "PLACE")]})
    nlp.update([example], sgd=optimizer)
    nlp("Hull")
    assert changed(before["bert_encoder"], weights_of(nlp, "bert_encoder"))
    assert not changed(before["second"], weights_of(nlp, "second"))


def test_renaming(nlp, expected, tmp_path):
    nlp.rename_pipe("bert_encoder", "bert")
    for head in HEADS:
        nlp.rename_pipe(f"bert_{head}", head)
    nlp.to_disk(tmp_path)
    for pipeline in (nlp, spacy.load(tmp_path)):
        assert pipeline.pipe_names == ["bert", *HEADS]
        assert pipeline.get_pipe("bert").listening_components == list(HEADS)
        assert_same(annotate(pipeline), expected)
        losses = pipeline.update(make_examples(pipeline), sgd=False, losses={})
        assert list(losses) == ["bert", *HEADS] and all(losses.values())


def test_renaming_an_encoder_that_a_head_names(checkpoint):
    nlp = build(checkpoint, [])
    tok2vec = {"@architectures": "spacy_bert_heads.BertListener.v1", "upstream": "bert_encoder"}
    nlp.add_pipe("bert_ner", config={"model": {"tok2vec": tok2vec}})
    nlp.initialize(lambda: make_examples(nlp))
    ents = nlp(SAILED).ents
    nlp.rename_pipe("bert_encoder", "bert")
    with pytest.raises(ValueError, match=rf'{NO_ENCODER}(.|\n)*upstream to "\*"'):
        nlp(SAILED)
    nlp.rename_pipe("bert", "bert_encoder")
    assert [(e.start, e.end) for e in nlp(SAILED).ents] == [(e.start, e.end) for e in ents]


# --- loading a part, and switching


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_was_disabled_on_load(joint, expected, head):
    """It works when it is enabled, and the encoder learns from it."""
    name = f"bert_{head}"
    key = {"ner": "ents", "textcat": "cats", "nli": "nli", "qa": "answers"}[head]
    nlp = spacy.load(joint, disable=[name])
    for found, whole in zip(annotate(nlp), expected, strict=True):
        assert not found[key]
        assert_same(
            [found[k] for k in ("ents", "cats", "nli", "answers") if k != key],
            [whole[k] for k in ("ents", "cats", "nli", "answers") if k != key],
        )
    nlp.enable_pipe(name)
    assert_same(annotate(nlp), expected)

    with_all, steps = spacy.load(joint), []
    for pipeline in (nlp, with_all):
        pipeline.update(make_examples(pipeline), sgd=False)
        module = shim_of(pipeline.get_pipe("bert_encoder").model).module
        pipeline(SAILED)  # closes the step, if a head that never asks keeps it open
        steps.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert steps[0].keys() == steps[1].keys()
    for one, two in zip(steps[0].values(), steps[1].values(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"disable": ["bert_encoder"]},
        {"enable": ["bert_ner"]},  # and so not the encoder
        {"enable": ["bert_encoder", "bert_ner"]},
        {"exclude": ["bert_textcat", "bert_nli", "bert_qa"]},
    ],
)
def test_loading_a_part(joint, expected, options):
    nlp = spacy.load(joint, **options)
    found = annotate(nlp)
    keys = ["ents"] if "disable" not in options else ["ents", "cats", "nli", "answers", "spans"]
    for one, whole in zip(found, expected, strict=True):
        assert_same([one[key] for key in keys], [whole[key] for key in keys])
        assert len(keys) > 1 or not any(one[key] for key in ("cats", "nli", "answers"))


def test_loading_without_the_encoder(joint):
    nlp = spacy.load(joint, exclude=["bert_encoder"])
    with pytest.raises(ValueError, match=f"{NO_ENCODER}(.|\n)*without excluding it"):
        nlp(SAILED)


def test_heads_may_be_disabled_while_others_are_initialized(joint, expected, checkpoint):
    """As `spacy train` does with sourced components."""
    nlp = spacy.load(joint)
    nlp.add_pipe("bert_tagger")
    with nlp.select_pipes(enable=["bert_tagger"]):
        nlp.initialize(lambda: make_examples(nlp))
    assert_same(annotate(nlp), expected)
    before = weights_of(nlp, "bert_encoder")
    nlp.update(make_examples(nlp), sgd=Adam(1e-4, use_averages=False))
    assert nlp.get_pipe("bert_encoder")._step is None  # all five have answered
    assert changed(before, weights_of(nlp, "bert_encoder"))


# --- rehearsal and copies


def test_rehearsal(checkpoint):
    """spaCy's tagger rehearses on our encoder; our heads have nothing to rehearse. Nothing of it
    copies an encoder."""
    nlp = build(checkpoint, ["ner", "textcat"])
    tok2vec = {"@architectures": "spacy_bert_heads.Tok2VecListener.v1"}
    nlp.add_pipe(
        "tagger", config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": tok2vec}}
    )
    nlp.initialize(lambda: make_examples(nlp))
    before = n_encoders()
    optimizer = nlp.resume_training(sgd=Adam(1e-3, use_averages=False))
    assert n_encoders() == before
    tagger = nlp.get_pipe("tagger")
    assert tagger._rehearsal_model.get_ref("tok2vec").layers[0].upstream is nlp.get_pipe(
        "bert_encoder"
    )

    with pytest.warns(UserWarning, match="ner has nothing to rehearse"):
        losses = nlp.rehearse(make_examples(nlp), sgd=optimizer)
    assert losses == {"tagger": pytest.approx(0.0, abs=1e-6)}  # nothing is forgotten yet
    with nlp.select_pipes(enable=["bert_encoder", "tagger"]):
        nlp.update(make_examples(nlp), sgd=optimizer)
    frozen = {name: weights_of(nlp, name) for name in ("bert_encoder", "bert_ner", "bert_textcat")}
    assert nlp.rehearse(make_examples(nlp), sgd=optimizer)["tagger"] > 0
    assert n_encoders() == before
    for name, weights in frozen.items():
        assert not changed(weights, weights_of(nlp, name))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: model.copy()])
def test_a_copy_of_a_heads_model_reads_the_same_encoder(nlp, make):
    before = n_encoders()
    model = nlp.get_pipe("bert_ner").model
    copied = make(model)
    assert n_encoders() == before
    docs = make_docs(nlp)
    np.testing.assert_array_equal(copied.predict(docs).logits, model.predict(docs).logits)
    nlp.remove_pipe("bert_encoder")
    with pytest.raises(ValueError, match=NO_ENCODER):
        copied.predict(docs)
