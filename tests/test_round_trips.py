"""What a pipeline has learned is the same after every way to save, load or copy it."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import spacy
import srsly
import torch
import transformers
from conftest import make_examples
from safetensors.torch import load as load_safetensors
from spacy.util import load_model_from_config
from thinc.api import Config
from three_heads import (
    CATS,
    DATA,
    ENTS,
    HEADS,
    LANG,
    TEXTS,
    annotate,
    build,
    close,
    gold_of,
    through_disk,
    train,
)

from spacy_bert_heads.encoder.model import encoder_of, shim_of


@pytest.fixture(scope="module")
def trained(three_heads):
    return three_heads


@pytest.fixture(scope="module")
def expected(three_heads_results):
    return three_heads_results


# --- learning


@pytest.mark.parametrize(
    "head, settings, key, main_score, scores",
    [
        ("ner", {"scheme": "BIO"}, "entities", "ents_f", ENTS),
        ("ner", {"scheme": "BILOU"}, "entities", "ents_f", ENTS),
        ("tagger", {"attr": "tag"}, "tags", "tag_acc", {"tag_acc"}),
        ("tagger", {"attr": "pos"}, "pos", "pos_acc", {"pos_acc"}),
        ("textcat", {}, "cats", "cats_score", {*CATS, "cats_acc"}),
        ("textcat_multilabel", {}, "cats", "cats_score", CATS),
    ],
)
def test_overfit_and_reload(checkpoint, tmp_path, head, settings, key, main_score, scores):
    nlp = build(checkpoint, head, settings=settings)
    gold = [annotation[key] for _, annotation in DATA]
    texts = [text for text, _ in DATA]
    assert [gold_of(key, doc) for doc in nlp.pipe(texts)] != gold
    train(nlp)
    assert [gold_of(key, doc) for doc in nlp.pipe(texts)] == gold
    expected = close(annotate(nlp))

    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    assert [gold_of(key, doc) for doc in loaded.pipe(texts)] == gold
    assert annotate(loaded) == expected
    assert loaded.get_pipe(f"bert_{head}").labels == nlp.get_pipe(f"bert_{head}").labels
    assert loaded.get_pipe(f"bert_{head}").cfg.items() >= settings.items()

    found = loaded.evaluate(make_examples(loaded, DATA))
    spacys_own = {"token_acc", "token_p", "token_r", "token_f", "speed"}
    assert found.keys() - spacys_own == scores
    assert found[main_score] == 1.0


# --- save and load


def through_bytes(nlp, folder):
    other = spacy.blank(LANG).from_config(nlp.config)  # not initialized
    return other.from_bytes(nlp.to_bytes())


def through_pickle(nlp, folder):
    return pickle.loads(pickle.dumps(nlp))


def through_copy(nlp, folder):
    return copy.deepcopy(nlp)


def through_source(nlp, folder):
    other = spacy.blank(LANG)
    for name in nlp.pipe_names:
        other.add_pipe(name, source=nlp)
    return other


def through_config_source(nlp, folder):
    nlp.to_disk(folder)
    config = {
        "nlp": {"lang": LANG, "pipeline": nlp.pipe_names},
        "components": {name: {"source": str(folder)} for name in nlp.pipe_names},
    }
    config = Config().from_str(Config(config).to_str())  # as from a file
    return load_model_from_config(config, auto_fill=True)


def through_source_and_disk(nlp, folder):
    return through_disk(through_source(nlp, folder), folder)


WAYS = (
    through_disk,
    through_bytes,
    through_pickle,
    through_copy,
    through_source,
    through_config_source,
    through_source_and_disk,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_round_trips(trained, expected, tmp_path, way):
    other = way(trained, tmp_path)
    assert other.pipe_names == trained.pipe_names
    for name in other.pipe_names[1:]:
        assert other.get_pipe(name).labels == trained.get_pipe(name).labels
        assert other.get_pipe(name).cfg == trained.get_pipe(name).cfg
    assert annotate(other) == expected
    assert annotate(trained) == expected  # and the first is as it was
    encoder = other.get_pipe("bert_encoder")
    assert encoder.listening_components == [f"bert_{head}" for head in HEADS]
    for head in HEADS:
        listener = other.get_pipe(f"bert_{head}").model.get_ref("tok2vec")
        assert listener.upstream is encoder


@pytest.mark.parametrize("way", [through_disk, through_bytes, through_pickle, through_copy])
def test_copies_share_no_weights(trained, expected, tmp_path, way):
    other = way(trained, tmp_path)
    train(other, [("Hull", {"cats": {"fire": 1.0, "voyage": 0.0}})], steps=5)
    assert annotate(other) != expected
    assert annotate(trained) == expected


def test_files_are_the_same_after_another_round(trained, tmp_path):
    trained.to_disk(tmp_path / "one")
    spacy.load(tmp_path / "one").to_disk(tmp_path / "two")
    one, two = (
        {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file() and file.parent.name != "vocab"
        }
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


@pytest.mark.parametrize("left_out", [f"bert_{head}" for head in HEADS])
def test_load_without_one_head(trained, expected, tmp_path, left_out):
    trained.to_disk(tmp_path)
    nlp = spacy.load(tmp_path, exclude=[left_out])
    assert nlp.pipe_names == [name for name in trained.pipe_names if name != left_out]
    key = {"bert_ner": "ents", "bert_tagger": "tags", "bert_textcat": "cats"}[left_out]
    for found, whole in zip(annotate(nlp), expected, strict=True):
        for other in {"ents", "tags", "cats"} - {key}:
            assert found[other] == whole[other]
        assert not any(found[key] if key != "cats" else nlp(found["text"]).cats)


def test_the_encoders_folder_is_hugging_faces(trained, tmp_path):
    trained.to_disk(tmp_path)
    folder = tmp_path / "bert_encoder" / "model"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    docs = [trained.make_doc(text) for text in TEXTS[:2]]
    encoded = trained.get_pipe("bert_encoder").predict(docs)
    start = 0
    for doc, length in zip(docs, encoded.batch.seqlens.tolist(), strict=True):
        inputs = tokenizer(doc.text, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == encoded.batch.input_ids[start:][:length].tolist()
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        torch.testing.assert_close(encoded.states[start:][:length], states, atol=1e-5, rtol=1e-5)
        start += length
    assert start == len(encoded.states)


def test_saved_bytes_are_safetensors(trained, tmp_path):
    trained.to_disk(tmp_path)
    folder = tmp_path / "bert_encoder" / "model"
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "vocab.txt", "origin.json"}  # fmt: skip
    for name in trained.pipe_names:
        msg = srsly.msgpack_loads(trained.get_pipe(name).model.to_bytes())
        (data,) = [data for shims in msg["shims"] for data in shims]
        files = srsly.msgpack_loads(data)
        assert {"config.json", "model.safetensors"} <= files.keys()
        module = shim_of(trained.get_pipe(name).model).module
        state = getattr(module, "model", module).state_dict()
        weights = load_safetensors(files["model.safetensors"])
        assert weights.keys() == state.keys()
        assert all(torch.equal(weights[key], state[key]) for key in state)


# Loads and predicts with no network and no unpickling; both would be heard of.
ALONE = """
import json, os, sys
import spacy

def listen(event, args):
    if listening and (event == "pickle.find_class" or event.startswith("socket.")):
        print("heard", event, args[:2])
        os._exit(3)

listening = False
sys.addaudithook(listen)
listening = True
nlp = spacy.load(sys.argv[1])
docs = list(nlp.pipe(json.loads(sys.argv[2])))
listening = False
print(json.dumps([[doc.cats, [token.tag_ for token in doc], len(doc.ents)] for doc in docs]))
"""
# Not told to stay offline: it has to by itself.
ALONE_ENV = {"HF_HUB_OFFLINE": "", "OMP_NUM_THREADS": "1"}


def test_a_saved_pipeline_needs_nothing_else(trained, tmp_path):
    """Another process, offline, and the checkpoint's folder is gone."""
    assert not Path(bert_name(trained)).exists()
    trained.to_disk(tmp_path / "pipeline")
    texts = [text for text in TEXTS if len(text) < 100]
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "pipeline"), json.dumps(texts)],
        env={**os.environ, **ALONE_ENV, "HF_HOME": str(tmp_path / "no-cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout)
    for doc, (cats, tags, n_ents) in zip(trained.pipe(texts), found, strict=True):
        assert cats == pytest.approx(doc.cats, abs=1e-5)
        assert tags == [token.tag_ for token in doc]
        assert n_ents == len(doc.ents)


def bert_name(nlp) -> str:
    return nlp.config["components"]["bert_encoder"]["model"]["name"]


def test_a_head_with_its_own_copy_of_the_encoder(trained, expected, tmp_path):
    """spaCy's `replace_listeners`."""
    nlp = through_disk(trained, tmp_path / "one")
    nlp.replace_listeners("bert_encoder", "bert_ner", ["model.tok2vec"])
    assert nlp.get_pipe("bert_encoder").listening_components == ["bert_tagger", "bert_textcat"]
    assert annotate(nlp) == expected
    assert annotate(through_disk(nlp, tmp_path / "two")) == expected
    alone = spacy.load(tmp_path / "two", exclude=["bert_encoder", "bert_tagger", "bert_textcat"])
    assert [found["ents"] for found in annotate(alone)] == [found["ents"] for found in expected]


def n_frozen(model) -> int:
    return sum(not parameter.requires_grad for parameter in encoder_of(model).parameters())


@pytest.fixture
def frozen(checkpoint):
    """A pipeline whose lowest layer doesn't learn."""
    nlp = build(checkpoint, *HEADS, frozen_layers=1)
    assert n_frozen(nlp.get_pipe("bert_encoder").model) > 0
    return nlp


@pytest.mark.parametrize("way", [through_disk, through_bytes, through_pickle, through_copy])
def test_frozen_layers_stay_frozen(frozen, tmp_path, way):
    other = way(frozen, tmp_path)
    before, after = (nlp.get_pipe("bert_encoder").model for nlp in (frozen, other))
    assert n_frozen(after) == n_frozen(before)


def test_frozen_layers_of_a_heads_own_encoder_stay_frozen(frozen, tmp_path):
    frozen.replace_listeners("bert_encoder", "bert_ner", ["model.tok2vec"])
    before, after = (
        nlp.get_pipe("bert_ner").model.get_ref("tok2vec")
        for nlp in (frozen, through_disk(frozen, tmp_path))
    )
    assert 0 < n_frozen(before) == n_frozen(after)
