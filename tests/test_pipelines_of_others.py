"""Pipelines of components that were made for other pipelines: sourced, copied, unpickled."""

import copy
import pickle

import pytest
import spacy
from checkpoints import make_checkpoint
from small_pipelines import LANG, TEXT, build, make_examples
from spacy.util import load_model_from_config
from thinc.api import Adam


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory) -> list[str]:
    """Two pipelines with different encoders: one with categories, one with entities."""
    folder = tmp_path_factory.mktemp("saved")
    other = make_checkpoint(folder / "checkpoint", seed=1)
    for name, head, source in (("a", "textcat", checkpoint), ("b", "ner", other)):
        build(source, head).to_disk(folder / name)
    return [str(folder / "a"), str(folder / "b")]


def upstreams(nlp, head: str) -> list[str]:
    (listener,) = nlp.get_pipe(head)._listeners()
    return [encoder.name for encoder in listener.upstreams]


def source(*folders: str):
    """A new pipeline, with the encoder and the head of each folder."""
    nlp = spacy.blank(LANG)
    loaded = [spacy.load(folder) for folder in folders]
    for other, name in zip(loaded, ("bert_encoder", "second"), strict=False):
        nlp.add_pipe("bert_encoder", name=name, source=other)
        nlp.add_pipe(other.pipe_names[1], source=other)
    return nlp, loaded


def update(nlp, rate: float = 2e-3) -> None:
    nlp.update(make_examples(nlp), sgd=Adam(rate, use_averages=False))


@pytest.mark.filterwarnings("ignore:A learning rate")
def test_heads_of_two_pipelines_learn_on_their_own_encoders(saved):
    nlp, _loaded = source(*saved)
    assert upstreams(nlp, "bert_textcat") == ["bert_encoder"]
    assert upstreams(nlp, "bert_ner") == ["second"]
    for _ in range(30):
        update(nlp)
    assert [nlp.get_pipe(name).num_updates for name in ("bert_encoder", "second")] == [30, 30]
    scores = nlp.evaluate(make_examples(nlp))
    assert scores["ents_f"] == scores["cats_acc"] == 1.0


def test_a_new_head_behind_two_sourced_encoders_reads_the_nearest(saved, tmp_path):
    components = {
        "bert_encoder": {"source": saved[0]},
        "second": {"source": saved[1], "component": "bert_encoder"},
        "new": {"factory": "bert_ner"},
    }
    config = {"nlp": {"lang": LANG, "pipeline": list(components)}, "components": components}
    nlp = load_model_from_config(config, auto_fill=True)
    with nlp.select_pipes(enable="new"):  # as spaCy does with frozen components
        nlp.initialize(lambda: make_examples(nlp))
    assert upstreams(nlp, "new") == ["second"]
    nlp.to_disk(tmp_path)
    assert upstreams(spacy.load(tmp_path), "new") == ["second"]
    spacy.load(tmp_path)(TEXT)


def test_a_new_head_in_a_copy_reads_the_nearest_encoder(saved):
    nlp, _loaded = source(*saved)
    twin = copy.deepcopy(nlp)
    twin.add_pipe("bert_ner", name="new")
    assert upstreams(twin, "new") == ["second"]


def test_a_sourced_encoder_is_frozen_by_its_new_pipeline(saved):
    nlp, (loaded,) = source(saved[0])
    encoder, head = nlp.get_pipe("bert_encoder"), nlp.get_pipe("bert_textcat")
    nlp.config["training"]["frozen_components"] = ["bert_encoder"]
    optimizer = nlp.resume_training()
    head.remember()
    with nlp.select_pipes(disable=["bert_encoder"]):
        nlp.update(make_examples(nlp), sgd=optimizer)
    head.rehearse(make_examples(nlp), sgd=optimizer)
    nlp.rehearse(make_examples(nlp))
    assert encoder.num_updates == 0
    # The pipeline that it was made for still trains it.
    loaded.update(make_examples(loaded), sgd=optimizer)
    assert encoder.num_updates == 1


@pytest.mark.parametrize("change", [copy.deepcopy, lambda nlp: pickle.loads(pickle.dumps(nlp))])
def test_a_copied_encoder_does_not_wait_for_disabled_heads(checkpoint, change):
    nlp = change(build(checkpoint, "ner", "textcat"))
    with nlp.select_pipes(disable=["bert_ner"]):
        update(nlp, rate=1e-4)
        assert nlp.get_pipe("bert_encoder").num_updates == 1
