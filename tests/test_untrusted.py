"""Checkpoints and pipelines from somebody else run no code, and read and write no file of their
choice."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import spacy
import torch
import transformers
from checkpoints import make_checkpoint, make_tokenizer
from conftest import reads_pickles
from joint import build, train
from safetensors.torch import load_file, save_file

import spacy_bert_heads
from spacy_bert_heads.encoder import untrusted
from spacy_bert_heads.encoder.loading import load_checkpoint, load_wordpieces
from spacy_bert_heads.encoder.model import bert_of
from spacy_bert_heads.encoder.source import TOKENIZER, open_folder, open_source
from spacy_bert_heads.encoder.untrusted import FAMILIES, read_config
from spacy_bert_heads.pretraining.vocabulary import load_tokenizer

CANARY = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import PretrainedConfig
class Canary(PretrainedConfig):
    model_type = "canary"
"""
listening: list[list[tuple]] = []


def hear(event: str, args: tuple) -> None:
    if listening and event in ("open", "os.listdir", "os.scandir", "import", "exec"):
        listening[-1].append((event, *args))


sys.addaudithook(hear)  # there is no way to remove one


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


def edit(file: Path, **changes) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **changes}))


def saved_with(folder: Path, joint: Path, source: Path) -> Path:
    """A saved pipeline of version 0.1 with the configuration and tokenizer settings of a folder."""
    pipeline = Path(shutil.copytree(joint, folder))
    (pipeline / "bert_encoder" / "digests.json").unlink()
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(source / name, pipeline / "bert_encoder" / "model" / name)
    return pipeline


def load_everywhere(folder: Path, joint: Path, tmp_path: Path) -> list[str]:
    """Load a checkpoint in every way there is; what was raised."""
    pipeline = saved_with(tmp_path / "pipeline", joint, folder)
    name = str(folder)
    ways = {
        "checkpoint": lambda: load_checkpoint(name),
        "wordpieces": lambda: load_wordpieces(name),
        "tokenizer": lambda: load_tokenizer(name),
        "from_hf": lambda: spacy_bert_heads.from_hf(name, task="textcat"),
        "pipeline": lambda: spacy.load(pipeline),
    }
    raised = []
    for way, load in ways.items():
        try:
            load()
        except ValueError:
            raised.append(way)
    return raised


def test_a_nested_configuration_runs_no_code(copied, joint, tmp_path):
    """CVE-2026-5241: another model type whose nested configuration names a module."""
    mark, inner = tmp_path / "mark", tmp_path / "inner"
    inner.mkdir()
    (inner / "configuration_canary.py").write_text(CANARY.format(mark=str(mark)))
    edit(
        inner / "config.json",
        model_type="canary",
        auto_map={"AutoConfig": "configuration_canary.Canary"},
    )
    nested = {"model_type": "canary", "_name_or_path": str(inner), "trust_remote_code": True}
    edit(
        copied / "config.json",
        model_type="lightglue",
        trust_remote_code=True,
        keypoint_detector_config=nested,
    )
    raised = load_everywhere(copied, joint, tmp_path)
    assert raised == ["checkpoint", "wordpieces", "from_hf", "pipeline"]  # a tokenizer needs none
    assert not mark.exists()
    # The same beside a type that is known.
    edit(copied / "config.json", model_type="bert", backbone_config=nested, text_config=nested)
    shutil.rmtree(tmp_path / "pipeline")
    assert load_everywhere(copied, joint, tmp_path) == ["from_hf"]  # it has no head
    assert not mark.exists()


@pytest.mark.parametrize(
    "key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"]
)
def test_no_kernel_is_fetched(copied, joint, tmp_path, monkeypatch, key):
    """CVE-2026-4372: an attention that names a repository of kernels."""

    def fetch(*args, **kwargs):
        raise AssertionError(f"a kernel is fetched: {args}")

    hub = pytest.importorskip("transformers.integrations.hub_kernels")
    for name in ("get_kernel", "load_and_register_kernel", "load_and_register_attn_kernel"):
        monkeypatch.setattr(hub, name, fetch, raising=False)
    edit(copied / "config.json", **{key: "somebody/kernel@main:attend"})
    assert load_everywhere(copied, joint, tmp_path) == ["from_hf"]
    config = load_checkpoint(str(copied)).config
    assert config._attn_implementation == "sdpa"


def test_a_tokenizer_chooses_no_file(copied, joint, tmp_path):
    """CVE-2026-9856: a chat template whose name is a path."""
    mark = tmp_path / "mark"
    path = "../" * 30 + str(mark).lstrip("/")
    templates = [{"name": "default", "template": "x"}, {"name": path, "template": "written"}]
    edit(copied / "tokenizer_config.json", chat_template=templates)
    (copied / "chat_template.jinja").write_text("x")
    (copied / "additional_chat_templates").mkdir()
    assert load_everywhere(copied, joint, tmp_path) == ["from_hf"]
    encoder = spacy.load(tmp_path / "pipeline").get_pipe("bert_encoder")
    for bert in (load_checkpoint(str(copied)), bert_of(encoder.model)):
        assert "written" not in str(bert.tokenizer_files)
    assert not list(tmp_path.glob("mark*"))


def test_settings_of_a_configuration_are_chosen_one_by_one(copied):
    plain = read_config(open_folder(copied)).to_dict()
    danger = {
        "trust_remote_code": True,
        "auto_map": {"AutoModel": "x.Y"},
        "_name_or_path": "somebody/repository",
        "name_or_path": "somebody/repository",
        "_commit_hash": "0" * 40,
        "quantization_config": {"quant_method": "bitsandbytes"},
        "custom_pipelines": {"x": {"impl": "x.Y"}},
        "torchscript": True,
        "output_attentions": True,
        "hidden_act": {"model_type": "canary"},
        "tokenizer_class": "X",
        "text_config": {"model_type": "canary"},
        "some_text": "hello",
        "id2label": {"0": {"a": {"b": {"c": 1}}}},
    }
    edit(copied / "config.json", **danger)
    assert read_config(open_folder(copied)).to_dict() == plain


def test_only_the_classes_of_transformers_make_tokenizers(copied):
    expected = load_wordpieces(str(copied))("Anna left Skagen")
    for name in ("pipeline", "PretrainedConfig", "os", "NoSuchTokenizer", 3, None):
        edit(copied / "tokenizer_config.json", tokenizer_class=name)
        found = load_wordpieces(str(copied))("Anna left Skagen")
        assert found.ids.tolist() == expected.ids.tolist()


@pytest.mark.parametrize("family", sorted(set(FAMILIES) & set(transformers.CONFIG_MAPPING)))
def test_no_other_file_is_read_or_written(family, tmp_path, monkeypatch):
    """Of the checkpoint's folder only files by the names in this package are opened, of others only
    those of installed packages are, and files are written to a temporary folder alone."""
    folder, temporary = tmp_path / "checkpoint", tmp_path / "temporary"
    temporary.mkdir()
    make_checkpoint(folder, family=family)
    for name in ("generation_config.json", "adapter_config.json", "chat_template.jinja",
                 "modeling.py", "__init__.py", "processor_config.json"):  # fmt: skip
        (folder / name).write_text("{}")
    load_checkpoint(str(folder))  # imports what it needs
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    heard: list[tuple] = []
    listening.append(heard)
    try:
        load_checkpoint(str(folder))
    finally:
        listening.pop()
    opened = [
        (Path(str(path)), mode) for event, path, mode, *_ in (h for h in heard if h[0] == "open")
    ]
    of_checkpoint = {path.name for path, _ in opened if path.is_relative_to(folder)}
    assert "config.json" in of_checkpoint
    assert of_checkpoint <= {"config.json", "model.safetensors", *TOKENIZER}
    installed = [folder, Path(sys.prefix), Path(sys.base_prefix)]
    for path, mode in opened:
        if str(path).isdecimal() or any(map(path.is_relative_to, installed)):
            assert mode in ("r", "rb", None), (path, mode)
        else:
            assert path.is_relative_to(temporary) or str(path).startswith(("/proc", "/sys", "/dev"))
    assert not [
        h for h in heard if h[0] in ("os.listdir", "os.scandir") and str(folder) in str(h[1])
    ]


# --- weights


def test_shards_are_read_and_stay_in_their_folder(copied, tmp_path):
    expected = load_checkpoint(str(copied)).encoder.state_dict()
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
    found = load_checkpoint(str(copied)).encoder.state_dict()
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
        ("adapter_config.json", "merge the two with peft"),
        ("tf_model.h5", "from_tf=True"),
        ("flax_model.msgpack", "TensorFlow or Flax alone"),
        ("readme.txt", "It needs model.safetensors"),
    ],
)
def test_a_folder_without_weights_says_what_it_is(copied, file, cure):
    (copied / "model.safetensors").rename(copied / file)
    with pytest.raises(ValueError, match=cure):
        load_checkpoint(str(copied))


def test_weights_do_not_change_with_their_file(copied):
    bert = load_checkpoint(str(copied))
    before = [p.clone() for p in bert.parameters()]
    file = copied / "model.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert all(torch.equal(p, b) for p, b in zip(bert.parameters(), before, strict=True))


def test_a_vocabulary_without_tokenizer_json(tmp_path):
    """As old checkpoints of the hub have it: transformers makes the tokenizer."""
    make_checkpoint(tmp_path)
    expected = load_wordpieces(str(tmp_path))(["Anna left Skägen, 3 times."])
    vocab = make_tokenizer("wordpiece").get_vocab()
    for file in TOKENIZER:
        (tmp_path / file).unlink(missing_ok=True)
    pieces = sorted(vocab, key=vocab.__getitem__)
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    found = load_wordpieces(str(tmp_path))(["Anna left Skägen, 3 times."])
    assert found.ids.tolist() == expected.ids.tolist()


# --- the hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A local cache as huggingface_hub keeps it, with two commits of one checkpoint."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--owner--bert"
    for seed, commit in enumerate(("a" * 40, "b" * 40)):
        make_checkpoint(repository / "snapshots" / commit, seed=seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    (repository / "refs" / "v1").write_text("a" * 40)
    return repository


def test_a_hub_name_and_its_revision(hub):
    old, new = (load_file(hub / "snapshots" / (c * 40) / "model.safetensors") for c in "ab")
    for revision, weights, commit in [
        (None, new, "b"),
        ("main", new, "b"),
        ("v1", old, "a"),
        ("a" * 40, old, "a"),
    ]:
        bert = load_checkpoint("owner/bert", revision)
        name = "embeddings.word_embeddings.weight"
        assert torch.equal(bert.encoder.state_dict()[name], weights[name])
        assert bert.origin == {"name": "owner/bert", "revision": commit * 40}
    with pytest.raises(ValueError, match="hub name, and no folder of that name, 'owner/other'"):
        load_checkpoint("owner/other")
    with pytest.raises(ValueError, match="is a folder. Leave revision out"):
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
    assert bert_of(again.get_pipe("bert_encoder").model).origin == origin
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

    bert = load_checkpoint(make_checkpoint(tmp_path))
    with torch.no_grad():
        for i, parameter in enumerate(bert.encoder.parameters()):
            parameter.fill_(i / 7)
    found = identify(bert.encoder, bert.tokenizer_files["tokenizer.json"].decode("utf8"))
    assert {part: digest[:12] for part, digest in found.items()} == EXPECTED_IDENTITY


EXPECTED_IDENTITY = {
    "weights": "9d15db17a2d3",
    "tokenizer": "b23a38ba4c1a",
    "config": "d820aa475999",
}


def test_the_module_says_which_types_it_knows():
    assert list(untrusted.FAMILIES) == sorted(untrusted.FAMILIES)
