"""What is wrong with a saved pipeline or its wiring is said with its remedy."""

import shutil
from pathlib import Path

import pytest
import spacy
from conftest import make_examples
from damage import cut_in_half
from small_pipelines import LANG, TEXT, annotations, assert_same, build


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory) -> Path:
    """An initialized pipeline on disk."""
    nlp = build(checkpoint, "ner", "textcat")
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    nlp.to_disk(folder)
    return folder


# --- saved pipelines


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_saved_encoder_lacks_a_file(saved, tmp_path, name):
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / "bert_encoder" / "model" / name).unlink()
    match = f"{name}' of component 'bert_encoder' is missing. Copy or download the pipeline again"
    with pytest.raises(ValueError, match=match):
        spacy.load(tmp_path / "copy")
    (tmp_path / "copy" / "bert_encoder" / "digests.json").unlink()  # as version 0.1 saved it
    match = f"'bert_encoder' can't(.|\n)*saved encoder has no {name}. Copy or download"
    with pytest.raises(ValueError, match=match):
        spacy.load(tmp_path / "copy")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_saved_encoder_is_damaged(saved, tmp_path, name):
    shutil.copytree(saved, tmp_path / "copy")
    cut_in_half(tmp_path / "copy" / "bert_encoder" / "model" / name)
    match = rf"{name}' of component 'bert_encoder' is damaged(.|\n)*Copy or download"
    with pytest.raises(ValueError, match=match):
        spacy.load(tmp_path / "copy")
    (tmp_path / "copy" / "bert_encoder" / "digests.json").unlink()  # as version 0.1 saved it
    match = r"'bert_encoder' can't(.|\n)*saved encoder is damaged(.|\n)*Copy or download"
    with pytest.raises(ValueError, match=match):
        spacy.load(tmp_path / "copy")


def test_saved_encoder_is_missing(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "bert_encoder")
    match = f"no '{tmp_path}.*bert_encoder.*'. Copy or download the pipeline again"
    with pytest.raises(ValueError, match=match):
        spacy.load(tmp_path / "copy")


def test_saved_encoder_with_a_folder_beside_its_files(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / "bert_encoder" / "model" / ".ipynb_checkpoints").mkdir()
    assert spacy.load(tmp_path / "copy")(TEXT).cats


# --- wiring


NO_ENCODER = r"bert_ner reads the hidden states of an encoder.*nlp\.add_pipe\('bert_encoder'"
USES = {
    "call": lambda nlp: nlp(TEXT),
    "pipe": lambda nlp: list(nlp.pipe([TEXT, "Hull"])),
    "update": lambda nlp: nlp.update(make_examples(nlp), sgd=False),
    "initialize": lambda nlp: nlp.initialize(lambda: make_examples(nlp)),
}


@pytest.mark.parametrize("use", USES)
def test_head_without_encoder(use):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_ner")
    with pytest.raises(ValueError, match=NO_ENCODER):
        USES[use](nlp)


def test_encoder_behind_the_head(checkpoint):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_ner")
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    with pytest.raises(ValueError, match=NO_ENCODER):
        nlp.initialize(lambda: make_examples(nlp))


def test_encoder_of_another_name(make_nlp):
    nlp = make_nlp("ner", initialize=False)
    listener = {"@architectures": "spacy_bert_heads.BertListener.v1", "upstream": "second"}
    nlp.add_pipe("bert_textcat", config={"model": {"tok2vec": listener}})
    with pytest.raises(ValueError, match=r"no 'second' comes before it.*name='second'"):
        nlp.initialize(lambda: make_examples(nlp))


@pytest.mark.parametrize("use", USES)
def test_encoder_excluded_on_load(saved, use):
    nlp = spacy.load(saved, exclude=["bert_encoder"])
    with pytest.raises(ValueError, match=NO_ENCODER):
        USES[use](nlp)


def test_encoder_disabled(saved):
    """Heads pull, so it answers all the same."""
    nlp = spacy.load(saved)
    expected = annotations(nlp(TEXT))
    assert expected["ents"]
    with nlp.select_pipes(disable=["bert_encoder"]):
        assert nlp.pipe_names == ["bert_ner", "bert_textcat"]
        assert_same(annotations(nlp(TEXT)), expected)
        assert_same(annotations(next(nlp.pipe([TEXT]))), expected)
    nlp = spacy.load(saved, disable=["bert_encoder"])
    assert nlp.pipe_names == ["bert_ner", "bert_textcat"]
    assert_same(annotations(nlp(TEXT)), expected)


@pytest.mark.parametrize("use", ["call", "pipe", "update"])
def test_not_initialized(make_nlp, use):
    nlp = make_nlp("ner", initialize=False)
    with pytest.raises(ValueError, match=r"no weights yet. Call nlp.initialize\(\)"):
        USES[use](nlp)


def test_not_initialized_can_be_saved(make_nlp, tmp_path):
    make_nlp("ner", initialize=False).to_disk(tmp_path)
    nlp = spacy.load(tmp_path)
    with pytest.raises(ValueError, match=r"no weights yet. Call nlp.initialize\(\)"):
        nlp(TEXT)
    nlp.initialize(lambda: make_examples(nlp))
    assert nlp(TEXT).has_annotation("ENT_IOB")
