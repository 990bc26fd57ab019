"""Saved pipelines: those of version 0.1, damaged ones, and what is beside them on the disk."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import spacy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joint import annotate, assert_same, make_docs

from spacy_bert_heads.encoder.model import checkpoint_of
from spacy_bert_heads.files import DIGESTS, replace_file

OLD = Path(__file__).parent / "pipelines" / "v0.1"
EXPECTED = json.loads((OLD / "expected.json").read_text())
SEVERAL_WINDOWS = 2  # of joint.STREAM


@pytest.mark.parametrize("kind", ["joint", "lora"])
def test_pipelines_of_version_0_1(kind, tmp_path):
    """Loaded, saved again and loaded again they give what 0.1 gave. The one with LoRA shares its
    checkpoint, of which it knows the embeddings alone."""
    checkpoint = {"bert_encoder": {"model": {"name": str(OLD / "checkpoint")}}}
    config = {"components": checkpoint} if kind == "lora" else {}
    nlp = spacy.load(OLD / kind, config=config)
    expected = as_in_0_1(EXPECTED[kind])
    assert_same(as_in_0_1(annotate(nlp)), expected)
    nlp.to_disk(tmp_path)
    assert (tmp_path / "bert_encoder" / DIGESTS).exists()
    assert_same(as_in_0_1(annotate(spacy.load(tmp_path))), expected)


def test_another_checkpoint_under_a_pipeline_of_version_0_1(tmp_path):
    from checkpoints import make_checkpoint

    other = make_checkpoint(tmp_path, seed=1)
    config = {"components": {"bert_encoder": {"model": {"name": other}}}}
    with pytest.raises(ValueError, match="another checkpoint .*its embeddings differ"):
        spacy.load(OLD / "lora", config=config)


def as_in_0_1(annotations: list[dict]) -> list[dict]:
    """Without what 0.1 did not write; in span groups, as its config says, it wrote the same. And
    without what is right now: 0.1 lost answers at the borders of windows, so probabilities were
    others in a Doc with several; and half a word could be an answer."""
    kept = [{k: v for k, v in one.items() if k != "ent_scores"} for one in annotations]
    kept[SEVERAL_WINDOWS]["answers"] = [
        {key: answer[key] for key in ("start", "end", "no_answer_score")}
        for answer in kept[SEVERAL_WINDOWS]["answers"]
    ]
    scores = kept[SEVERAL_WINDOWS]["scores"]
    kept[SEVERAL_WINDOWS]["scores"] = {k: v for k, v in scores.items() if k != "answers"}
    return kept


# --- damage


def our_files(pipeline: Path) -> list[str]:
    names = ("bert_encoder", "bert_ner", "bert_textcat", "bert_nli", "bert_qa")
    files = (file for name in names for file in (pipeline / name).rglob("*") if file.is_file())
    return sorted(str(file.relative_to(pipeline)) for file in files)


@pytest.fixture(scope="module")
def whole(joint) -> tuple[Path, list[dict]]:
    return joint, annotate(spacy.load(joint))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_is_named_or_changes_nothing(data, whole, tmp_path_factory):
    """Whatever byte is changed, cut or missing in a file of a component: the error names the file
    and the component, or the predictions are the same."""
    joint, expected = whole
    folder = tmp_path_factory.mktemp("damaged") / "pipeline"
    shutil.copytree(joint, folder)
    name = data.draw(st.sampled_from(our_files(joint)))
    file = folder / name
    content = bytearray(file.read_bytes())
    damage = data.draw(st.sampled_from(["flip", "cut", "append", "delete"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if damage == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif damage == "cut":
        del content[place:]
    elif damage == "append":
        content += b"\0"
    file.write_bytes(content)
    if damage == "delete":
        file.unlink()
    try:
        found = annotate(spacy.load(folder))
    except ValueError as error:
        assert f"component '{name.split('/')[0]}'" in str(error)
        assert str(file.name) in str(error) or file.name == DIGESTS
    else:
        assert file.name == DIGESTS  # without digests it loads, as a pipeline of version 0.1
        assert_same(found, expected)
    shutil.rmtree(folder)


@pytest.mark.parametrize("file", ["cfg", "model"])
def test_damage_of_a_head_is_named_without_digests_too(file, joint, tmp_path):
    folder = Path(shutil.copytree(joint, tmp_path / "pipeline"))
    (folder / "bert_ner" / DIGESTS).unlink()
    content = (folder / "bert_ner" / file).read_bytes()
    (folder / "bert_ner" / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"Component 'bert_ner' can't be loaded from '{folder}"):
        spacy.load(folder)
    (folder / "bert_ner" / file).unlink()
    with pytest.raises(ValueError, match=f"There is no '.*{file}' of 'bert_ner'. Copy or download"):
        spacy.load(folder)


def test_bytes_that_are_damaged_name_the_component(joint):
    nlp = spacy.load(joint)
    data = nlp.get_pipe("bert_ner").to_bytes()
    with pytest.raises(ValueError, match="Component 'bert_ner' can't be loaded: "):
        nlp.get_pipe("bert_ner").from_bytes(data[: len(data) // 2])
    data = nlp.get_pipe("bert_encoder").to_bytes()
    with pytest.raises(ValueError, match="Component 'bert_encoder' can't be loaded: "):
        nlp.get_pipe("bert_encoder").from_bytes(data[: len(data) // 2])


def test_a_change_on_purpose(joint, tmp_path):
    folder = Path(shutil.copytree(joint, tmp_path / "pipeline"))
    cfg = folder / "bert_qa" / "cfg"
    cfg.write_text(json.dumps({**json.loads(cfg.read_text()), "no_answer_threshold": 0.125}))
    with pytest.raises(ValueError, match="If you changed it on purpose, delete digests.json"):
        spacy.load(folder)
    (folder / "bert_qa" / DIGESTS).unlink()
    assert spacy.load(folder).get_pipe("bert_qa").cfg["no_answer_threshold"] == 0.125


# --- what is beside it


def test_what_is_not_ours_stays(joint, tmp_path):
    nlp = spacy.load(joint)
    nlp.to_disk(tmp_path)
    notes = [tmp_path / "bert_encoder" / "model" / "thesis.txt", tmp_path / "bert_ner" / "notes"]
    for note in notes:
        note.write_text("mine")
    nlp.to_disk(tmp_path)
    assert [note.read_text() for note in notes] == ["mine", "mine"]
    assert_same(annotate(spacy.load(tmp_path)), annotate(nlp))


def test_symbolic_links_are_replaced_not_followed(joint, tmp_path):
    nlp = spacy.load(joint)
    cache, folder = tmp_path / "cache", tmp_path / "pipeline"
    nlp.to_disk(cache)
    before = {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()}
    (folder / "bert_encoder").mkdir(parents=True)
    (folder / "bert_encoder" / "model").symlink_to(cache / "bert_encoder" / "model")
    changed = checkpoint_of(nlp.get_pipe("bert_encoder").model)
    next(changed.model.parameters()).data.add_(1.0)
    nlp.to_disk(folder)
    assert {file: file.read_bytes() for file in before} == before
    assert not (folder / "bert_encoder" / "model").is_symlink()
    # The same for links in the place of files.
    shutil.rmtree(folder / "bert_encoder" / "model")
    (folder / "bert_encoder" / "model").mkdir()
    for file in (cache / "bert_encoder" / "model").iterdir():
        (folder / "bert_encoder" / "model" / file.name).symlink_to(file)
    nlp.to_disk(folder)
    assert {file: file.read_bytes() for file in before} == before
    assert_same(annotate(spacy.load(folder)), annotate(nlp))


# --- disks that are full


def test_a_full_disk_says_where_and_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "file"
    replace_file(file, b"old")

    def fill(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match=f"No space left on device: '{file}'") as error:
        replace_file(file, b"new")
    assert error.value.errno == errno.ENOSPC
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("when", ["load", "save"])
def test_a_full_disk_says_where(joint, checkpoint, tmp_path, monkeypatch, when):
    from spacy_bert_heads.encoder.loading import load_checkpoint

    nlp = spacy.load(joint)
    (tmp_path / "small").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "small"))
    plain = Path.write_bytes

    def fill(self, content):
        if self.is_relative_to(tmp_path / "small"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(self, content)

    monkeypatch.setattr(Path, "write_bytes", fill)
    if when == "load":
        with pytest.raises(ValueError, match=f"No space left on device: '{tmp_path}/small"):
            load_checkpoint(checkpoint)
        return
    import safetensors.torch

    def fail(*args, **kwargs):
        raise safetensors.SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail, raising=False)
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match=f"Can't write the weights to '{tmp_path}/out/.*No space"):
        nlp.to_disk(tmp_path / "out")


def test_streams_of_a_loaded_pipeline_need_no_files(joint, tmp_path):
    folder = Path(shutil.copytree(joint, tmp_path / "pipeline"))
    nlp = spacy.load(folder)
    shutil.rmtree(folder)
    assert len(list(nlp.pipe(make_docs(nlp)))) == len(make_docs(nlp))
