"""What is wrong is said with its remedy, what is only odd has a defined result, and no other
document pays for either."""

import json
import pickle
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
import transformers
from checkpoints import make_checkpoint
from conftest import TRAIN_DATA, make_examples, reads_pickles
from spacy.tokens import DocBin
from spacy.training import Example
from spacy.util import ignore_error
from thinc.api import Adam

from spacy_bert_heads.data.reader import make_corpus
from spacy_bert_heads.encoder.loading import load_checkpoint

LANG = "xx"  # English has 1,500 exceptions for its tokenizer to learn, each time
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    folder = tmp_path / "damaged"  # transformers takes a hint from "bert"
    shutil.copytree(checkpoint, folder)
    return folder


@pytest.fixture
def offline(monkeypatch):
    """No hub, whether or not there is a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True, raising=False)


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory) -> Path:
    """An initialized pipeline on disk."""
    nlp = build(checkpoint, "ner", "textcat")
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    nlp.to_disk(folder)
    return folder


def build(checkpoint: str, *heads: str, data=TRAIN_DATA, settings=None, **encoder):
    nlp = spacy.blank(LANG)
    encoder = {"name": checkpoint, "window": 64, "stride": 48, **encoder}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    for head in heads:
        nlp.add_pipe(f"bert_{head}", config=settings or {})
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def cut_in_half(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


# --- checkpoints


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
    match = rf"weights of '{copied}' have 16 .* doesn't count .*layer\.1.*Does config.json belong"
    with pytest.raises(ValueError, match=match):
        load_checkpoint(str(copied))


@reads_pickles
@pytest.mark.parametrize("zipped", [True, False])
def test_bin_weights_are_loaded(copied, zipped):
    expected = load_checkpoint(str(copied)).encoder.state_dict()
    (copied / "model.safetensors").unlink()
    torch.save(expected, copied / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(str(copied)).encoder.state_dict()
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
    weights = load_checkpoint(str(copied)).encoder.state_dict()
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
    match = f"tokenizer of '{copied}' has {n} pieces, its encoder embeds {n - 1}. Do the tokenizer"
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


# --- settings


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"window": 129}, "positions for 128. Set window = 128 or less"),
        ({"window": 1000, "stride": 500}, "positions for 128. Set window = 128 or less"),
        ({"window": 128, "stride": 127}, "room for 126 wordpieces .* Set stride to 126 or less"),
        ({"stride": 63}, "room for 62 wordpieces .* Set stride to 62 or less"),
        ({"stride": 65}, "stride is 65; it must be between 1 and the window, 64"),
        ({"stride": 0}, "stride is 0; it must be between 1 and the window, 64"),
        ({"precision": "int4"}, "Unknown precision 'int4'. Choose one of: auto, fp32, bf16, fp16"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0; it must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5; .* 1 at the most"),
        ({"rate_factor": 0.0}, "rate_factor is 0.0; it must be above 0. .* frozen_components"),
        ({"frozen_layers": 3}, "frozen_layers is 3, .* 'bert' .* 2 layers .* frozen_components"),
        ({"frozen_layers": -1}, "frozen_layers is -1"),
        ({"window": 2, "stride": 1}, "window is 2, .* special tokens. Set window to 16 or more"),
    ],
)
def test_encoder_settings(make_nlp, settings, match):
    with pytest.raises(ValueError, match=match):
        make_nlp("ner", **settings)


def test_encoder_settings_at_their_limits(make_nlp):
    nlp = make_nlp("ner", window=128, stride=126, frozen_layers=2)
    doc = nlp("word " * 500)
    assert len(doc) == 500 and not any(not token.ent_iob_ for token in doc)


def test_albert_has_no_layers_to_freeze(make_nlp, tmp_path):
    name = make_checkpoint(tmp_path / "albert", family="albert")
    assert make_nlp("ner", name=name).get_pipe("bert_ner").labels == ("DATE", "PLACE", "VESSEL")
    with pytest.raises(ValueError, match="'albert' checkpoint has 0 layers .* frozen_components"):
        make_nlp("ner", name=name, frozen_layers=1)


@pytest.mark.parametrize(
    "head, settings, match",
    [
        (
            "ner",
            {"scheme": "BIOX"},
            "Unknown scheme 'BIOX'. Choose one of: BIO, BILOU, IOB, IOBES, IO",
        ),
        ("ner", {"threshold": -0.1}, "threshold is -0.1; it must be a probability"),
        ("ner", {"threshold": 1.1}, "threshold is 1.1; it must be a probability"),
        ("tagger", {"attr": "lemma"}, "attr is 'lemma'. Choose one of: tag, pos"),
        ("textcat", {"model": {"pooling": "max"}}, "'max'. Choose one of: cls, pooler, mean"),
        ("textcat", {"class_weights": {"fire": -1.0}}, "must not be negative: .*fire"),
        ("textcat_multilabel", {"threshold": -0.1}, "threshold is -0.1; it must be a probability"),
        ("textcat_multilabel", {"threshold": 1.1}, "threshold is 1.1; it must be a probability"),
    ],
)
def test_head_settings(head, settings, match):
    nlp = spacy.blank(LANG)
    with pytest.raises(ValueError, match=match):
        nlp.add_pipe(f"bert_{head}", config=settings)


# --- labels and gold data


@pytest.mark.parametrize("head", ["ner", "tagger", "textcat", "textcat_multilabel"])
def test_no_labels(checkpoint, head):
    with pytest.raises(ValueError, match=rf"bert_{head} has no labels.*\.labels\].*add_label"):
        build(checkpoint, head, data=[("It burned", {"entities": []})])


def test_one_category_to_choose_from(checkpoint):
    data = [("It burned", {"cats": {"fire": 1.0}})]
    match = "bert_textcat chooses .* only 'fire'. Name two at least, or use bert_textcat_multilabel"
    with pytest.raises(ValueError, match=match):
        build(checkpoint, "textcat", data=data)
    assert set(build(checkpoint, "textcat_multilabel", data=data)("It").cats) == {"fire"}


@pytest.mark.parametrize("head", ["textcat", "textcat_multilabel"])
def test_class_weights_of_an_unknown_label(checkpoint, head):
    match = f"class_weights of bert_{head} names 'flood'.*labels: fire, voyage"
    with pytest.raises(ValueError, match=match):
        build(checkpoint, head, settings={"class_weights": {"fire": 2.0, "flood": 2.0}})


def test_two_categories_at_once_need_multilabel(make_nlp):
    nlp = make_nlp("textcat")
    both = make_examples(nlp, [("It burned", {"cats": {"fire": 1.0, "voyage": 1.0}})])
    with pytest.raises(ValueError, match="bert_textcat_multilabel"):
        nlp.update(both, sgd=False)


TEXT = "Anna Grete left Skagen on Tuesday"


@pytest.mark.parametrize(
    "head, unknown, masked",
    [
        (
            "ner",
            {"entities": [(0, 10, "CAR"), (16, 22, "PLACE")]},
            {"entities": ["-", "-", "O", "U-PLACE", "O", "O"]},
        ),
        (
            "tagger",
            {"tags": ["CAR", "NNP", "VBD", "CAR", "IN", "NNP"]},
            {"tags": ["", "NNP", "VBD", "", "IN", "NNP"]},
        ),
        ("textcat", {"cats": {"CAR": 1.0}}, {"cats": {"fire": 0.0, "voyage": 0.0}}),
        ("textcat_multilabel", {"cats": {"CAR": 1.0, "fire": 1.0}}, {"cats": {"fire": 1.0}}),
    ],
)
def test_unknown_label(make_nlp, head, unknown, masked):
    """It is no error, no class and no negative: that token or category is passed over."""
    nlp = make_nlp(head)
    name = f"bert_{head}"
    labels = nlp.get_pipe(name).labels
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = [
            nlp.update(make_examples(nlp, [(TEXT, unknown)]), sgd=False, losses={})
            for _ in range(2)
        ]
    messages = [str(warning.message) for warning in caught if "no label" in str(warning.message)]
    assert len(messages) == 1
    assert f"{name} has no label 'CAR'" in messages[0]
    assert f"[initialize.components.{name}.labels]" in messages[0]
    assert nlp.get_pipe(name).labels == labels

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = nlp.update(make_examples(nlp, [(TEXT, masked)]), sgd=False, losses={})
    nlp.get_pipe("bert_encoder").to_bytes()  # closes the step
    assert losses[0][name] == losses[1][name] == expected[name]
    assert losses[0]["bert_encoder"] == expected["bert_encoder"]
    assert (expected[name] == 0) == (head == "textcat")


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
    with pytest.raises(ValueError, match=r"no 'second' stands before it.*name='second'"):
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


# --- odd documents

ODD = {
    "plain": TEXT,
    "empty": "",
    "space": "   ",
    "line breaks": "\n\t \r\n",
    "words": "word " * 40_000,
    "one word": "x" * 200_000,
    "control": "\x00\x01\x02 a\x07b \x7f",
    "emoji": "👩‍👩‍👧 🇩🇰 👍🏽 e\u0301 \u200b\u200d \ufe0f",
    "bidi": "\ufeffhello \u202eabc a\u00a0b",
    "unspaced": "船在港口外搁浅了。",
    "plain again": "The boat burned in Hull",
}


def annotations(doc) -> dict:
    spans = doc.spans.get("ents")
    return {
        "text": doc.text,
        "ents": [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents],
        "tags": [token.tag_ for token in doc],
        "cats": doc.cats,
        "scores": list(spans.attrs["scores"]) if spans is not None else [],
    }


def assert_same(one: dict, other: dict) -> None:
    for key in ("text", "ents", "tags"):
        assert one[key] == other[key]
    assert one["cats"] == pytest.approx(other["cats"], abs=1e-5)
    assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


@pytest.fixture(scope="module")
def odd_nlp(checkpoint):
    return build(checkpoint, "ner", "tagger", "textcat")


@pytest.fixture(scope="module")
def odd_alone(odd_nlp):
    return {name: annotations(odd_nlp(text)) for name, text in ODD.items()}


@pytest.mark.parametrize("batch_size", [3, 1000])
def test_odd_documents_change_no_other(odd_nlp, odd_alone, batch_size):
    docs = list(odd_nlp.pipe(ODD.values(), batch_size=batch_size))
    assert len(docs) == len(ODD)
    for doc, (name, text) in zip(docs, ODD.items(), strict=True):
        assert doc.text == text
        assert_same(annotations(doc), odd_alone[name])


def test_odd_documents_alone(odd_nlp, odd_alone):
    assert odd_alone["empty"]["ents"] == odd_alone["empty"]["tags"] == []
    for name in ("space", "line breaks"):  # no wordpiece, so nothing is known of a token
        assert odd_alone[name]["ents"] == []
        assert set(odd_alone[name]["tags"]) == {""}
    assert len(odd_alone["words"]["tags"]) == 40_000
    assert len(odd_alone["one word"]["tags"]) == 1
    for name, found in odd_alone.items():
        assert set(found["cats"]) == {"fire", "voyage"}, name
        assert sum(found["cats"].values()) == pytest.approx(1, abs=1e-6), name
        assert all(0 <= score <= 1 for score in found["scores"]), name
        assert len(found["scores"]) == len(found["ents"]), name


def test_only_empty_documents(odd_nlp, odd_alone):
    docs = list(odd_nlp.pipe(["", "", ""]))
    assert [annotations(doc)["cats"] for doc in docs] == [
        pytest.approx(odd_alone["empty"]["cats"], abs=1e-5)
    ] * 3
    assert list(odd_nlp.pipe([])) == []


def test_learning_from_documents_without_tokens(make_nlp):
    nlp = make_nlp("ner", "tagger", "textcat")
    odd = [Example(nlp.make_doc(text), nlp.make_doc(text)) for text in ("", "  ", "\u200b")]
    plain = nlp.update(make_examples(nlp), sgd=False, losses={})
    mixed = nlp.update([*odd, *make_examples(nlp)], sgd=False, losses={})
    nlp.get_pipe("bert_encoder").to_bytes()  # closes the step
    # The odd ones are not annotated, and count for nothing.
    assert mixed == pytest.approx(plain, rel=1e-4)
    assert all(np.isfinite(loss) and loss > 0 for loss in plain.values())

    odd[0].reference.cats = {"fire": 1.0, "voyage": 0.0}
    losses = nlp.update(odd[:1], sgd=False, losses={})
    p = nlp("").cats["fire"]
    assert losses["bert_textcat"] == pytest.approx(-np.log(p), rel=1e-4)
    assert losses["bert_ner"] == losses["bert_tagger"] == 0


# --- documents that fail

STREAM = ["Anna left Hull", "the BOOM fell", "It burned", "BOOM", "a pump", "the crew left BOOM"]
SURVIVORS = [text for text in STREAM if "BOOM" not in text]


@pytest.fixture
def failing(make_nlp, monkeypatch):
    """A pipeline whose encoder raises at every batch with a BOOM in it."""
    nlp = make_nlp("ner", "textcat")
    model = nlp.get_pipe("bert_encoder").model
    forward = model._func

    def fail(model, docs, is_train):
        if any(token.text == "BOOM" for doc in docs for token in doc):
            raise RuntimeError("the encoder went BOOM")
        return forward(model, docs, is_train)

    monkeypatch.setattr(model, "_func", fail)
    return nlp


@pytest.mark.parametrize("batch_size", [1, 2, 4, 1000])
def test_only_the_document_that_fails_is_lost(failing, batch_size):
    expected = [annotations(failing(text)) for text in SURVIVORS]
    lost = []
    failing.set_error_handler(
        lambda name, pipe, docs, error: lost.append((name, [d.text for d in docs], str(error)))
    )
    docs = list(failing.pipe(STREAM, batch_size=batch_size))
    assert [doc.text for doc in docs] == SURVIVORS
    for doc, alone in zip(docs, expected, strict=True):
        assert_same(annotations(doc), alone)
    assert lost == [
        ("bert_ner", [text], "the encoder went BOOM") for text in STREAM if "BOOM" in text
    ]


def test_contexts_stay_with_their_documents(failing):
    failing.set_error_handler(ignore_error)
    stream = [(text, {"line": i}) for i, text in enumerate(STREAM)]
    found = [(doc.text, context) for doc, context in failing.pipe(stream, as_tuples=True)]
    assert found == [("Anna left Hull", {"line": 0}), ("It burned", {"line": 2}),
                     ("a pump", {"line": 4})]  # fmt: skip


def test_by_default_the_original_error_is_raised(failing):
    with pytest.raises(RuntimeError, match="the encoder went BOOM"):
        list(failing.pipe(STREAM))
    with pytest.raises(RuntimeError, match="the encoder went BOOM"):
        failing("BOOM")
    assert failing("Anna left Hull").cats  # and the pipeline goes on working


# --- data files


@pytest.fixture
def data_file(tmp_path) -> Path:
    nlp = spacy.blank(LANG)
    file = tmp_path / "train.spacy"
    DocBin(docs=[eg.reference for eg in make_examples(nlp) * 20]).to_disk(file)
    return file


@pytest.mark.parametrize("content", ["half", "without its end", "one byte", "empty", "text"])
def test_data_file_is_damaged(data_file, content):
    nlp = spacy.blank(LANG)
    assert len(list(make_corpus(data_file)(nlp))) == 40
    whole = data_file.read_bytes()
    damaged = {
        "half": whole[: len(whole) // 2],
        "without its end": whole[:-1],
        "one byte": whole[:1],
        "empty": b"",
        "text": b"Anna left Skagen\n",
    }
    data_file.write_bytes(damaged[content])
    with pytest.raises(ValueError, match=rf"{data_file} is damaged.*spacy bert convert"):
        list(make_corpus(data_file)(nlp))


def test_one_of_several_data_files_is_damaged(data_file):
    shutil.copy(data_file, data_file.with_name("more.spacy"))
    cut_in_half(data_file.with_name("more.spacy"))
    with pytest.raises(ValueError, match=r"more\.spacy is damaged"):
        list(make_corpus(data_file.parent)(spacy.blank(LANG)))


def test_no_such_data_file(tmp_path):
    nlp = spacy.blank(LANG)
    with pytest.raises(ValueError, match=r"no '.*none\.spacy'. Make it: python -m spacy bert"):
        list(make_corpus(tmp_path / "none.spacy")(nlp))
    with pytest.raises(ValueError, match="There is no '.*nothing-here'. Make it: .* bert convert"):
        list(make_corpus(tmp_path / "nothing-here")(nlp))
    with pytest.raises(ValueError, match=r"No data is named. Add: --paths.train"):
        make_corpus(None)


# --- optimizers


def test_averaged_parameters(make_nlp):
    nlp = make_nlp("ner")
    optimizer = Adam(1e-5, use_averages=True)
    with pytest.raises(ValueError, match="Set use_averages = false in .training.optimizer"):
        nlp.update(make_examples(nlp), sgd=optimizer)


@pytest.mark.parametrize(
    "rate, exclude, n_warnings",
    [(1e-3, [], 1), (5.1e-4, [], 1), (5e-4, [], 0), (1e-3, ["bert_encoder"], 0)],
)
def test_high_learning_rate(make_nlp, rate, exclude, n_warnings):
    """spaCy's own default is too high for BERT; heads alone may learn at it."""
    nlp = make_nlp("ner")
    optimizer = Adam(rate, use_averages=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            nlp.update(make_examples(nlp), sgd=optimizer, exclude=exclude)
    messages = [str(w.message) for w in caught if "learning rate" in str(w.message)]
    assert len(messages) == n_warnings
    assert all("1e-5 to 1e-4 in [training.optimizer.learn_rate]" in m for m in messages)
