"""What is wrong with a checkpoint is said with its remedy."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import reads_pickles
from damage import edit_config

from spacy_bert_heads.encoder.loading import load_checkpoint

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture
def offline(monkeypatch):
    """No hub, whether or not there is a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True, raising=False)


@pytest.mark.parametrize("name", ["./no-such-bert", "../no-such-bert", "~/no-such-bert"])
def test_no_such_folder(name):
    with pytest.raises(ValueError, match=f"no checkpoint folder '{name}'. Check the path"):
        load_checkpoint(name)


def test_no_such_absolute_folder(make_nlp, tmp_path):
    name = str(tmp_path / "no-such-bert")
    with pytest.raises(ValueError, match=f"no checkpoint folder '{name}'. Check the path"):
        make_nlp("ner", name=name)


def test_a_file_is_no_folder(checkpoint):
    name = str(Path(checkpoint) / "config.json")
    with pytest.raises(ValueError, match=f"no checkpoint folder '{name}'. Check the path"):
        load_checkpoint(name)


@pytest.mark.parametrize("name", ["no-such-bert", "no-such-owner/bert", "models/no/such/bert"])
def test_no_such_hub_name_while_offline(offline, name):
    match = rf"hub name, and no folder of that name, '{name}'(.|\n)*access to the hub or its cache"
    with pytest.raises(ValueError, match=match):
        load_checkpoint(name)


@pytest.mark.parametrize(
    "content",
    [
        b'{"model_type": "bert", "hidden',
        b"[]",
        b"\xff\xfe\x00\x01",
        None,
    ],
)
def test_config_is_damaged(copied, content):
    if content is None:
        (copied / "config.json").unlink()
    else:
        (copied / "config.json").write_bytes(content)
    match = rf"Can't read a checkpoint from the folder '{copied}'(.|\n)*save_pretrained"
    with pytest.raises(ValueError, match=match):
        load_checkpoint(str(copied))


@pytest.mark.parametrize("content", [b"{}", b'{"model_type": "no-such-type"}'])
def test_config_is_of_no_known_type(copied, content):
    (copied / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{copied}.*model_type.*must be one of: albert, bert"):
        load_checkpoint(str(copied))


@pytest.mark.parametrize("damage", ["half", "header", "empty", "garbage", "git-lfs", "missing"])
def test_weights_are_damaged(copied, damage):
    file = copied / "model.safetensors"
    whole = file.read_bytes()
    contents = {
        "half": whole[: len(whole) // 2],
        "header": whole[:20],
        "empty": b"",
        "garbage": b"garbage" * 1000,
        "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 123\n",
    }
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(contents[damage])
    match = rf"Can't load the weights of '{copied}'(.|\n)*download it again"
    with pytest.raises(ValueError, match=match):
        load_checkpoint(str(copied))


@pytest.mark.parametrize(
    "key, value",
    [
        ("hidden_size", 64),
        ("vocab_size", 500),
        ("intermediate_size", 128),
        ("max_position_embeddings", 64),
        ("hidden_size", "32"),
    ],
)
def test_weights_of_another_shape(copied, key, value):
    edit_config(copied, **{key: value})
    # transformers 5 checks the types of config.json itself.
    match = f"Can't (load the weights of|read a checkpoint from the folder) '{copied}'"
    with pytest.raises(ValueError, match=match):
        load_checkpoint(str(copied))


def test_weights_of_fewer_layers(copied):
    edit_config(copied, num_hidden_layers=3)
    match = rf"weights of '{copied}' lack 16 of .*encoder\.layer\.2.*Does config.json belong"
    with pytest.raises(ValueError, match=match):
        load_checkpoint(str(copied))


def test_weights_of_more_layers(copied):
    edit_config(copied, num_hidden_layers=1)
    match = rf"weights of '{copied}' have 16 .* more layers .*layer\.1.*Does config.json belong"
    with pytest.raises(ValueError, match=match):
        load_checkpoint(str(copied))


@reads_pickles
@pytest.mark.parametrize("zipped", [True, False])
def test_bin_weights_are_loaded(copied, zipped):
    expected = load_checkpoint(str(copied)).model.state_dict()
    (copied / "model.safetensors").unlink()
    torch.save(expected, copied / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(str(copied)).model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


class Bait:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@reads_pickles
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bin_with_code_is_refused(copied, tmp_path, kind):
    weights = load_checkpoint(str(copied)).model.state_dict()
    (copied / "model.safetensors").unlink()
    file, bait = copied / "pytorch_model.bin", tmp_path / "taken"
    if kind == "pickle":
        file.write_bytes(pickle.dumps({**weights, "bait": Bait(bait)}))
    else:
        torch.save(
            {**weights, "bait": Bait(bait)}, file, _use_new_zipfile_serialization=kind == "zip"
        )
    with pytest.raises(
        ValueError, match=rf"weights of '{copied}': pytorch_model.bin: Weights only"
    ):
        load_checkpoint(str(copied))
    assert not bait.exists()

    if kind == "pickle":
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert bait.exists()  # it would have been taken


CUSTOM_CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
Path({taken!r}).touch()
class CustomConfig(BertConfig):
    model_type = "custom_bert"
class CustomModel(BertModel):
    config_class = CustomConfig
class CustomTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("where", ["model", "tokenizer"])
def test_code_in_a_checkpoint_is_never_run(copied, tmp_path, monkeypatch, where):
    taken = tmp_path / "taken"
    (copied / "custom.py").write_text(CUSTOM_CODE.format(taken=str(taken)))
    if where == "model":
        code = {"AutoConfig": "custom.CustomConfig", "AutoModel": "custom.CustomModel"}
        edit_config(copied, model_type="custom_bert", auto_map=code)
    else:
        file = copied / "tokenizer_config.json"
        code = {"AutoTokenizer": [None, "custom.CustomTokenizer"]}
        changes = {"tokenizer_class": "CustomTokenizer", "auto_map": code}
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        load_checkpoint(str(copied))
    except ValueError as error:
        assert f"'{copied}'" in str(error)
    else:
        assert where == "tokenizer"  # transformers 5 reads tokenizer.json without its class
    assert not taken.exists()


@pytest.mark.parametrize(
    "file, content",
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{"),
    ],
)
def test_tokenizer_is_missing_or_damaged(copied, file, content):
    if content is None:
        for name in TOKENIZER_FILES:
            (copied / name).unlink(missing_ok=True)
    else:
        (copied / file).write_text(content)
    match = rf"checkpoint from the folder '{copied}'(.|\n)*tokenizer files"
    with pytest.raises(ValueError, match=match):
        load_checkpoint(str(copied))


def test_tokenizer_has_no_fast_version(copied):
    for name in TOKENIZER_FILES:
        (copied / name).unlink(missing_ok=True)
    transformers.CanineTokenizer().save_pretrained(copied)
    with pytest.raises(ValueError, match=f"tokenizer of '{copied}' has no fast version"):
        load_checkpoint(str(copied))


def test_tokenizer_of_another_checkpoint(copied):
    tokenizer = transformers.AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens(["zzz"])
    tokenizer.save_pretrained(copied)
    n = len(tokenizer)
    match = f"tokenizer of '{copied}' has {n} wordpieces, but its encoder embeds {n - 1}"
    with pytest.raises(ValueError, match=match):
        load_checkpoint(str(copied))


@pytest.mark.parametrize(
    "config",
    [
        transformers.T5Config(d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2),
        transformers.BartConfig(d_model=32, encoder_layers=1, decoder_layers=1),
        transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2),
    ],
    ids=lambda config: config.model_type,
)
def test_other_kinds_of_models_are_refused(copied, config):
    config.save_pretrained(copied)
    match = f"'{copied}' is a '{config.model_type}' model, not an encoder of BERT's shape"
    with pytest.raises(ValueError, match=match):
        load_checkpoint(str(copied))
