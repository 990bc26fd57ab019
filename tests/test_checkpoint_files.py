"""Weights, hub names and shared checkpoints are what they say they are."""

import json
import shutil
from pathlib import Path

import pytest
import spacy
import torch
from checkpoints import make_checkpoint, make_tokenizer
from conftest import reads_pickles
from damage import edit
from joint import build, train
from safetensors.torch import load_file, save_file

from spacy_bert_heads.encoder.loading import load_checkpoint, load_wordpiece_tokenizer
from spacy_bert_heads.encoder.model import checkpoint_of
from spacy_bert_heads.encoder.source import TOKENIZER, open_source

# --- weights


def test_shards_are_read_and_stay_in_their_folder(copied, tmp_path):
    expected = load_checkpoint(str(copied)).model.state_dict()
    weights = load_file(copied / "model.safetensors")
    names = sorted(weights)
    parts = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, members in parts.items():
        save_file({name: weights[name] for name in members}, copied / file)
    (copied / "model.safetensors").rename(tmp_path / "whole.safetensors")
    index = {name: file for file, members in parts.items() for name in members}
    edit(copied / "model.safetensors.index.json", weight_map=index)
    found = load_checkpoint(str(copied)).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for outside in ("../whole.safetensors", str(tmp_path / "whole.safetensors"), "..", 7):
        edit(copied / "model.safetensors.index.json", weight_map=dict.fromkeys(names, outside))
        with pytest.raises(ValueError, match="index.json names no files of weights"):
            load_checkpoint(str(copied))


@reads_pickles
def test_pickles_need_a_torch_without_known_holes(copied, monkeypatch):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    assert load_checkpoint(str(copied))
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("unpickled"))
    with pytest.raises(ValueError, match="torch 2.9.1.*Install torch 2.10 or newer, or take a"):
        load_checkpoint(str(copied))


@pytest.mark.parametrize(
    ("file", "cure"),
    [
        ("tf_model.h5", r"TensorFlow only .*BertModel.from_pretrained\(.*, from_tf=True\)"),
        ("flax_model.msgpack", r"Flax only .*BertModel.from_pretrained\(.*, from_flax=True\)"),
        ("model.onnx", "a compiled graph only .*the checkpoint that it was exported from"),
        ("readme.txt", "It needs model.safetensors"),
    ],
)
def test_a_folder_without_weights_says_what_it_is(copied, file, cure):
    (copied / "model.safetensors").rename(copied / file)
    with pytest.raises(ValueError, match=cure):
        load_checkpoint(str(copied))


def test_weights_do_not_change_with_their_file(copied):
    checkpoint = load_checkpoint(str(copied))
    before = [p.clone() for p in checkpoint.model.parameters()]
    file = copied / "model.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert all(
        torch.equal(p, b) for p, b in zip(checkpoint.model.parameters(), before, strict=True)
    )


def test_a_vocabulary_without_tokenizer_json(tmp_path):
    """As old checkpoints of the hub have it: transformers makes the tokenizer."""
    make_checkpoint(tmp_path)
    expected = load_wordpiece_tokenizer(str(tmp_path))(["Anna left Skägen, 3 times."])
    vocab = make_tokenizer("wordpiece").get_vocab()
    for file in TOKENIZER:
        (tmp_path / file).unlink(missing_ok=True)
    pieces = sorted(vocab, key=vocab.__getitem__)
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    found = load_wordpiece_tokenizer(str(tmp_path))(["Anna left Skägen, 3 times."])
    assert found.ids.tolist() == expected.ids.tolist()


# --- the hub


def test_a_hub_name_and_its_revision(hub):
    old, new = (load_file(hub / "snapshots" / (c * 40) / "model.safetensors") for c in "ab")
    for revision, weights, commit in [
        (None, new, "b"),
        ("main", new, "b"),
        ("v1", old, "a"),
        ("a" * 40, old, "a"),
    ]:
        checkpoint = load_checkpoint("owner/bert", revision)
        name = "embeddings.word_embeddings.weight"
        assert torch.equal(checkpoint.model.state_dict()[name], weights[name])
        assert checkpoint.origin == {"name": "owner/bert", "revision": commit * 40}
    with pytest.raises(ValueError, match="hub name, and no folder of that name, 'owner/other'"):
        load_checkpoint("owner/other")
    with pytest.raises(ValueError, match="is a folder. Remove revision"):
        open_source(str(hub), "v1")


def test_a_pipeline_records_the_commit_and_reads_it_again(hub, tmp_path):
    nlp = spacy.blank("xx")
    model = {"name": "owner/bert", "revision": "v1", "window": 64, "stride": 48}
    model |= {"adapter": "lora", "share_checkpoint": True}
    nlp.add_pipe("bert_encoder", config={"model": model})
    nlp.add_pipe("bert_ner")
    train(nlp, steps=3).to_disk(tmp_path / "pipeline")
    origin = json.loads((tmp_path / "pipeline/bert_encoder/model/origin.json").read_text())
    assert (origin["name"], origin["revision"]) == ("owner/bert", "a" * 40)
    # Without a pin in the config, the commit of the training is read, not the newest one.
    pins = {"components": {"bert_encoder": {"model": {"revision": None}}}}
    again = spacy.load(tmp_path / "pipeline", config=pins)
    assert checkpoint_of(again.get_pipe("bert_encoder").model).origin == origin
    pins = {"components": {"bert_encoder": {"model": {"revision": "main"}}}}
    with pytest.raises(
        ValueError, match="another checkpoint than 'owner/bert' is now: its weights"
    ):
        spacy.load(tmp_path / "pipeline", config=pins)


# --- shared checkpoints


@pytest.fixture(scope="module")
def shared(checkpoint, tmp_path_factory) -> Path:
    """A folder with a checkpoint and a pipeline that reads it."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(checkpoint, folder / "checkpoint")
    nlp = build(str(folder / "checkpoint"), ["ner"])
    settings = {"adapter": "lora", "share_checkpoint": True, "name": str(folder / "checkpoint")}
    nlp = spacy.blank("xx")
    nlp.add_pipe("bert_encoder", config={"model": {"window": 64, "stride": 48, **settings}})
    nlp.add_pipe("bert_ner")
    train(nlp, steps=3).to_disk(folder / "pipeline")
    return folder


def load_shared(folder: Path) -> None:
    name = {"components": {"bert_encoder": {"model": {"name": str(folder / "checkpoint")}}}}
    spacy.load(folder / "pipeline", config=name)


def test_every_tensor_of_a_shared_checkpoint_counts(shared, tmp_path):
    folder = Path(shutil.copytree(shared, tmp_path / "copy"))
    load_shared(folder)
    file = folder / "checkpoint" / "model.safetensors"
    weights = load_file(file)
    for name in weights:
        if "pooler" not in name:
            save_file({**weights, name: weights[name] + 1e-4}, file)
            with pytest.raises(ValueError, match="its weights differ"):
                load_shared(folder)
    save_file({name: weights[name] for name in reversed(weights)}, file)  # in another order
    load_shared(folder)


def test_the_tokenizer_and_settings_of_a_shared_checkpoint_count(shared, tmp_path):
    folder = Path(shutil.copytree(shared, tmp_path / "copy"))
    tokenizer = folder / "checkpoint" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    vocab = content["model"]["vocab"]
    vocab["##e"], vocab["##a"] = vocab["##a"], vocab["##e"]
    tokenizer.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its tokenizer differ"):
        load_shared(folder)
    edit(folder / "checkpoint" / "config.json", layer_norm_eps=1e-2)
    with pytest.raises(ValueError, match="its tokenizer and config differ"):
        load_shared(folder)
    vocab["##e"], vocab["##a"] = vocab["##a"], vocab["##e"]
    # How others have cut texts, and white space in the file, are nothing of the tokenizer's.
    cut = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    content["truncation"] = cut
    tokenizer.write_text(json.dumps(content, indent=4))
    edit(folder / "checkpoint" / "config.json", layer_norm_eps=1e-12, transformers_version="9.9")
    load_shared(folder)


def test_identities_are_the_same_in_every_version(tmp_path):
    """Digests as transformers 4.57 and 5.24, tokenizers 0.22 and 0.23 gave them: a pipeline that
    shares its checkpoint must load after an upgrade."""
    from spacy_bert_heads.encoder.identity import identify

    checkpoint = load_checkpoint(make_checkpoint(tmp_path))
    with torch.no_grad():
        for i, parameter in enumerate(checkpoint.model.parameters()):
            parameter.fill_(i / 7)
    found = identify(checkpoint.model, checkpoint.tokenizer_files["tokenizer.json"].decode("utf8"))
    assert {part: digest[:12] for part, digest in found.items()} == EXPECTED_IDENTITY


EXPECTED_IDENTITY = {
    "weights": "9d15db17a2d3",
    "tokenizer": "b23a38ba4c1a",
    "config": "d820aa475999",
}
