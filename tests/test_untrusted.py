"""Checkpoints and pipelines from somebody else run no code, and read and write no file of their
choice."""

import shutil
import sys
from pathlib import Path

import pytest
import spacy
import transformers
from checkpoints import make_checkpoint
from damage import edit

import spacy_bert_heads
from spacy_bert_heads.encoder import untrusted
from spacy_bert_heads.encoder.loading import load_checkpoint, load_wordpiece_tokenizer
from spacy_bert_heads.encoder.model import checkpoint_of
from spacy_bert_heads.encoder.source import TOKENIZER, open_folder
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
        "wordpieces": lambda: load_wordpiece_tokenizer(name),
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
    for checkpoint in (load_checkpoint(str(copied)), checkpoint_of(encoder.model)):
        assert "written" not in str(checkpoint.tokenizer_files)
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
    expected = load_wordpiece_tokenizer(str(copied))("Anna left Skagen")
    for name in ("pipeline", "PretrainedConfig", "os", "NoSuchTokenizer", 3, None):
        edit(copied / "tokenizer_config.json", tokenizer_class=name)
        found = load_wordpiece_tokenizer(str(copied))("Anna left Skagen")
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


def test_the_module_says_which_types_it_knows():
    assert list(untrusted.FAMILIES) == sorted(untrusted.FAMILIES)
