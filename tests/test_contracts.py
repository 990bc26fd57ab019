"""What spaCy's users may rely on: save and load, sourcing, streaming, plain data, commands."""

import copy
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import spacy
import srsly
import torch
import transformers
from checkpoints import make_checkpoint
from conftest import TRAIN_DATA, make_examples
from safetensors.torch import load as load_safetensors
from spacy.cli import app
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from spacy.util import load_model_from_config, registry
from thinc.api import Adam, Config
from typer.testing import CliRunner

from spacy_bert_heads.encoder.model import bert_of, shim_of
from spacy_bert_heads.encoder.shim import TorchShim
from spacy_bert_heads.init_config import init_config

LANG = "xx"  # English has 1,500 exceptions for its tokenizer to learn, each time
HEADS = ("ner", "tagger", "textcat")
POS = {"NNP": "PROPN", "NN": "NOUN", "VBD": "VERB", "IN": "ADP", "DT": "DET"}
DATA = [(text, {**gold, "pos": [POS[tag] for tag in gold["tags"]]}) for text, gold in TRAIN_DATA]
TEXTS = [
    *(text for text, _ in DATA),
    "",
    "Hull burned on Tuesday; the boat left Skagen. " * 20,  # several windows
    "Anna can't swim, but cannot sink either 😀",
    "  \n",
    "Grete",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pipeline that knows DATA by heart. Its checkpoint's folder is gone."""
    name = make_checkpoint(tmp_path_factory.mktemp("gone") / "bert")
    nlp = train(build(name, *HEADS))
    shutil.rmtree(name)
    return nlp


@pytest.fixture(scope="module")
def expected(trained):
    return close(annotate(trained))


def build(name: str, *heads: str, initialize: bool = True, settings=None, **encoder):
    nlp = spacy.blank(LANG)
    encoder = {"name": name, "window": 64, "stride": 48, **encoder}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    for head in heads:
        nlp.add_pipe(f"bert_{head}", config=settings or {})
    if initialize:
        torch.manual_seed(0)
        nlp.initialize(lambda: make_examples(nlp, DATA))
    return nlp


def train(nlp, data=DATA, *, steps: int = 40):
    optimizer = Adam(3e-3, use_averages=False)
    examples = make_examples(nlp, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")  # a random BERT needs it
        for _ in range(steps):
            nlp.update(examples, sgd=optimizer)
    return nlp


def annotations(doc: Doc) -> dict:
    return {
        "text": doc.text,
        "ents": [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents],
        "spans": {key: [(s.start, s.end, s.label_) for s in doc.spans[key]] for key in doc.spans},
        "tags": [token.tag_ for token in doc],
        "pos": [token.pos_ for token in doc],
        "cats": dict(doc.cats),
        "scores": {key: list(doc.spans[key].attrs["scores"]) for key in doc.spans},
    }


def annotate(nlp, texts=TEXTS, **options) -> list[dict]:
    return [annotations(doc) for doc in nlp.pipe(texts, **options)]


def close(found: list[dict]) -> list[dict]:
    """The same, with probabilities that need not agree to the last bit."""
    return [
        {
            **one,
            "cats": pytest.approx(one["cats"], abs=1e-5),
            "scores": {
                key: pytest.approx(scores, abs=1e-5) for key, scores in one["scores"].items()
            },
        }
        for one in found
    ]


def gold_of(key: str, doc: Doc) -> object:
    """What was written, in the form of DATA."""
    return {
        "entities": [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents],
        "tags": [token.tag_ for token in doc],
        "pos": [token.pos_ for token in doc],
        "cats": {label: p if 0.1 < p < 0.9 else round(p) for label, p in doc.cats.items()},
    }[key]


# --- learning


ENTS = {"ents_p", "ents_r", "ents_f", "ents_per_type"}
CATS = {
    "cats_score",
    "cats_score_desc",
    *(f"cats_{average}_{score}" for average in ("micro", "macro") for score in "prf"),
    "cats_macro_auc",
    "cats_f_per_type",
    "cats_auc_per_type",
}


@pytest.mark.parametrize(
    "head, settings, key, main_score, scores",
    [
        ("ner", {"scheme": "BIO"}, "entities", "ents_f", ENTS),
        ("ner", {"scheme": "BILOU"}, "entities", "ents_f", ENTS),
        ("tagger", {"attr": "tag"}, "tags", "tag_acc", {"tag_acc"}),
        ("tagger", {"attr": "pos"}, "pos", "pos_acc", {"pos_acc"}),
        ("textcat", {}, "cats", "cats_score", CATS),
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


def through_disk(nlp, folder):
    nlp.to_disk(folder)
    return spacy.load(folder)


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
    for doc, length in zip(docs, encoded.sequences.lengths.tolist(), strict=True):
        inputs = tokenizer(doc.text, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == encoded.sequences.ids[start:][:length].tolist()
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
        state = getattr(module, "encoder", module).state_dict()
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
    return sum(not parameter.requires_grad for parameter in bert_of(model).parameters())


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


# --- several heads, several encoders


def test_two_heads_of_one_kind(checkpoint, tmp_path):
    nlp = build(checkpoint, initialize=False)
    nlp.add_pipe("bert_tagger", name="fine", config={"attr": "tag"})
    nlp.add_pipe("bert_tagger", name="coarse", config={"attr": "pos"})
    nlp.initialize(lambda: make_examples(nlp, DATA))
    assert nlp.get_pipe("fine").labels == ("DT", "IN", "NN", "NNP", "VBD")
    assert nlp.get_pipe("coarse").labels == ("ADP", "DET", "NOUN", "PROPN", "VERB")
    train(nlp)
    for pipeline in (nlp, through_disk(nlp, tmp_path)):
        for text, gold in DATA:
            doc = pipeline(text)
            assert gold_of("tags", doc) == gold["tags"]
            assert gold_of("pos", doc) == gold["pos"]
        scores = pipeline.evaluate(make_examples(pipeline, DATA))
        assert scores["tag_acc"] == scores["pos_acc"] == 1.0


def test_reading_a_doc_again_changes_nothing(trained):
    doc = trained(TEXTS[0])
    before = annotations(doc)
    assert before["spans"]["ents"]
    assert [annotations(trained(doc))] == close([before])


def test_spans_appended_by_hand_stay(trained):
    doc = trained(TEXTS[0])
    before = len(doc.spans["ents"])
    doc.spans["ents"].append(doc[0:1])
    trained(doc)
    assert len(doc.spans["ents"]) == len(doc.spans["ents"].attrs["scores"]) == before + 1
    assert doc.spans["ents"].attrs["scores"].count(1.0) == 1


def test_a_second_recognizer_adds_to_the_first(trained, tmp_path):
    """Also where it finds nothing."""
    nlp = through_disk(trained, tmp_path)
    nlp.add_pipe("bert_ner", name="second", config={"threshold": 1.0})
    second, first = nlp.get_pipe("second"), nlp.get_pipe("bert_ner")
    second.from_bytes(first.to_bytes(exclude=["cfg"]), exclude=["cfg"])
    second.cfg["labels"] = list(first.labels)
    with nlp.select_pipes(disable=["bert_ner"]):
        assert nlp(TEXTS[0]).ents == ()
    found = annotations(nlp(TEXTS[0]))["ents"]
    assert found == annotations(trained(TEXTS[0]))["ents"] != []


def listener(upstream: str) -> dict:
    return {
        "model": {
            "tok2vec": {
                "@architectures": "spacy_bert_heads.BertListener.v1",
                "upstream": upstream,
            }
        }
    }


@pytest.fixture
def two_encoders(checkpoint, tmp_path):
    other = make_checkpoint(tmp_path / "other", family="distilbert", seed=1)
    nlp = spacy.blank(LANG)
    for name, folder in [("first", checkpoint), ("second", other)]:
        settings = {"name": folder, "window": 64, "stride": 48}
        nlp.add_pipe("bert_encoder", name=name, config={"model": settings})
    nlp.add_pipe("bert_ner", config=listener("first"))
    nlp.add_pipe("bert_tagger", config=listener("second"))
    nlp.add_pipe("bert_textcat", config=listener("*"))
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def test_two_encoders(two_encoders, checkpoint, tmp_path):
    nlp = two_encoders
    assert nlp.get_pipe("first").listening_components == ["bert_ner"]
    assert nlp.get_pipe("second").listening_components == ["bert_tagger", "bert_textcat"]
    found = close(annotate(nlp))
    assert annotate(through_disk(nlp, tmp_path / "saved")) == found

    # Each head answers as it does beside its encoder alone.
    for upstream, heads, keys in [
        ("first", ["bert_ner"], ["ents", "scores"]),
        ("second", ["bert_tagger", "bert_textcat"], ["tags", "cats"]),
    ]:
        alone = spacy.blank(LANG)
        for name in (upstream, *heads):
            config = dict(nlp.get_pipe_config(name))
            alone.add_pipe(config.pop("factory"), name=name, config=config)
            alone.get_pipe(name).from_bytes(nlp.get_pipe(name).to_bytes())
        for one, whole in zip(annotate(alone), found, strict=True):
            assert {key: one[key] for key in keys} == {key: whole[key] for key in keys}


def test_a_disabled_encoder_keeps_its_heads(two_encoders):
    """As one that is frozen while spaCy trains the rest."""
    nlp = two_encoders
    found = close(annotate(nlp))
    with nlp.select_pipes(disable=["second"]):
        nlp.add_pipe("sentencizer")  # spaCy links the pipeline anew
        assert nlp.get_pipe("first").listening_components == ["bert_ner"]
        assert annotate(nlp) == found
    nlp.remove_pipe("sentencizer")
    assert nlp.get_pipe("second").listening_components == ["bert_tagger", "bert_textcat"]


@pytest.mark.parametrize(
    "gold, learner", [({"entities": [(0, 4, "PLACE")]}, "first"), ({"tags": ["NNP"]}, "second")]
)
def test_each_encoder_learns_from_its_own_heads(two_encoders, gold, learner):
    nlp = two_encoders
    before = {name: weights_of(nlp, name) for name in ("first", "second")}
    train(nlp, [("Hull", gold)], steps=1)
    nlp("Hull")
    for name, old in before.items():
        changed = [key for key, value in weights_of(nlp, name).items() if (value != old[key]).any()]
        assert bool(changed) == (name == learner)


def weights_of(nlp, name: str) -> dict[str, torch.Tensor]:
    module = shim_of(nlp.get_pipe(name).model).module
    return {key: value.detach().clone() for key, value in module.named_parameters()}


@pytest.mark.parametrize(
    "head, keys",
    [
        ("bert_ner", ("ents", "spans", "scores")),
        ("bert_tagger", ("tags",)),
        ("bert_textcat", ("cats",)),
    ],
)
@pytest.mark.parametrize("with_encoder", [True, False])
def test_one_head_by_itself(trained, expected, head, keys, with_encoder):
    blank = annotations(spacy.blank(LANG)(TEXTS[0]))
    enabled = ["bert_encoder", head] if with_encoder else [head]
    with trained.select_pipes(enable=enabled):
        found = annotate(trained)
    for one, whole in zip(found, expected, strict=True):
        assert {key: one[key] for key in keys} == {key: whole[key] for key in keys}
    for key in {"ents", "spans", "cats"} - set(keys):
        assert found[0][key] == blank[key]
    if "tags" not in keys:
        assert found[0]["tags"] == blank["tags"]
    assert annotate(trained) == expected


# --- streams


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
@pytest.mark.parametrize(
    "sizes",
    [{}, {"bert_ner": {"batch_size": 3}, "bert_tagger": {"batch_size": 5}}],
    ids=["equal", "unequal"],
)
def test_batch_sizes_change_nothing(trained, expected, batch_size, sizes):
    found = annotate(trained, TEXTS * 3, batch_size=batch_size, component_cfg=sizes)
    assert found == expected * 3


def test_a_document_alone(trained, expected):
    assert [annotations(trained(text)) for text in TEXTS] == expected
    assert annotate(trained, map(trained.make_doc, TEXTS)) == expected


def test_contexts(trained, expected):
    stream = ((text, {"line": i}) for i, text in enumerate(TEXTS))
    found = list(trained.pipe(stream, as_tuples=True, batch_size=2))
    assert [context for _, context in found] == [{"line": i} for i in range(len(TEXTS))]
    assert [annotations(doc) for doc, _ in found] == expected


# The parent has used torch's threads, which a forked worker doesn't have.
FORKED = """
import json, sys
import spacy, torch

torch.set_num_threads(2)
nlp = spacy.load(sys.argv[1])
texts = ["Anna Grete left Skagen on Tuesday. " * 10] * 16 + json.loads(sys.argv[2])
alone = [doc.cats for doc in nlp.pipe(texts)]
forked = [doc.cats for doc in nlp.pipe(texts, n_process=2, batch_size=4)]
print(json.dumps([alone, forked]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are not forked here")
@pytest.mark.parametrize(
    "parallel",
    [
        None,
        "true",  # often set to be rid of the tokenizers library's warning about forks
    ],
)
def test_workers_forked_after_a_prediction(trained, tmp_path, parallel):
    env = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    if parallel is not None:
        env["TOKENIZERS_PARALLELISM"] = parallel
    trained.to_disk(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path), json.dumps(TEXTS)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("the workers hang")
    assert process.returncode == 0, errors
    alone, forked = json.loads(output)
    assert len(alone) == len(forked) == 16 + len(TEXTS)
    for one, other in zip(alone, forked, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_forked_worker_does_not_touch_a_gpu(monkeypatch):
    class OnGPU(torch.nn.Linear):
        def parameters(self, recurse=True):
            yield SimpleNamespace(device=torch.device("cuda"))

    shim = TorchShim(to_files=lambda module: {}, from_files=lambda files: OnGPU(1, 1))
    shim.module = OnGPU(1, 1)
    assert isinstance(shim.module, OnGPU)
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(ValueError, match="Leave n_process at 1"):
        _ = shim.module
    shim.module = OnGPU(1, 1)  # a worker that loads a pipeline itself may use it
    assert isinstance(shim.module, OnGPU)


# --- settings


def test_settings_of_the_config_that_it_is_loaded_with(trained, tmp_path):
    trained.to_disk(tmp_path / "saved")
    changed = {"bert_ner": {"threshold": 1.0, "spans_key": "found"}}
    nlp = spacy.load(tmp_path / "saved", config={"components": changed})
    doc = nlp(TEXTS[0])
    assert trained(TEXTS[0]).ents and not doc.ents
    assert "found" in doc.spans and "ents" not in doc.spans
    assert nlp.get_pipe("bert_ner").labels == trained.get_pipe("bert_ner").labels

    with pytest.raises(ValueError, match='trained with scheme = "BIO"'):
        spacy.load(tmp_path / "saved", config={"components.bert_ner.scheme": "BILOU"})

    # One that is set by hand is saved, until the config says another.
    nlp.get_pipe("bert_ner").cfg["threshold"] = 0.25
    nlp.to_disk(tmp_path / "again")
    for config, threshold in (({}, 0.25), ({"components.bert_ner.threshold": 0.5}, 0.5)):
        loaded = spacy.load(tmp_path / "again", config=config).get_pipe("bert_ner")
        assert (loaded.cfg["threshold"], loaded.cfg["spans_key"]) == (threshold, "found")


# --- plain data


def test_nothing_stays_on_a_doc(trained):
    """A Doc is byte for byte the one that is annotated by hand."""
    for doc in trained.pipe(TEXTS):
        plain = trained.make_doc(doc.text)
        ents = [Span(plain, ent.start, ent.end, label=ent.label_) for ent in doc.ents]
        plain.set_ents(ents, default="outside")
        # A span's id says who found it.
        found = ((ent.start, ent.end, ent.label_) for ent in ents)
        plain.spans["ents"] = [
            Span(plain, start, end, label=label, span_id="bert_ner") for start, end, label in found
        ]
        plain.spans["ents"].attrs["scores"] = [float(p) for p in doc.spans["ents"].attrs["scores"]]
        plain.cats = {label: float(p) for label, p in doc.cats.items()}
        for token, tagged in zip(plain, doc, strict=True):
            token.tag_ = tagged.tag_
        assert doc.to_bytes() == plain.to_bytes()
        assert len(pickle.dumps(doc)) == len(pickle.dumps(plain))
        assert doc.tensor.size == 0
        assert not doc.user_data and not doc.user_hooks and not doc.user_token_hooks
        assert b"torch" not in pickle.dumps(doc)


def through_docbin(docs: list[Doc], vocab) -> list[Doc]:
    content = DocBin(store_user_data=True, docs=docs).to_bytes()
    return list(DocBin().from_bytes(content).get_docs(vocab))


def through_doc_bytes(docs: list[Doc], vocab) -> list[Doc]:
    return [Doc(vocab).from_bytes(doc.to_bytes()) for doc in docs]


def through_doc_pickle(docs: list[Doc], vocab) -> list[Doc]:
    return pickle.loads(pickle.dumps(docs))


@pytest.mark.parametrize(
    "way", [through_docbin, through_doc_bytes, through_doc_pickle], ids=lambda way: way.__name__
)
def test_docs_keep_their_annotations(trained, way):
    docs = list(trained.pipe(TEXTS))
    assert any(doc.ents for doc in docs)
    for doc, other in zip(docs, way(docs, spacy.blank(LANG).vocab), strict=True):
        assert annotations(other) == annotations(doc)
        assert other.cats == doc.cats  # to the last bit
        assert other.spans["ents"].attrs == doc.spans["ents"].attrs
        values = [*doc.cats.values(), *doc.spans["ents"].attrs["scores"]]
        assert all(type(value) is float for value in values)
        assert other.user_data == doc.user_data == {}


# --- labels


@pytest.mark.parametrize("head", ["ner", "tagger", "textcat", "textcat_multilabel"])
def test_add_label(checkpoint, head):
    nlp = build(checkpoint, head, initialize=False)
    pipe = nlp.get_pipe(f"bert_{head}")
    assert pipe.labels == ()
    assert [pipe.add_label("ZULU"), pipe.add_label("ZULU"), pipe.add_label("ALFA")] == [1, 0, 1]
    assert pipe.labels == ("ZULU", "ALFA")
    for wrong in ("", 3, None):
        with pytest.raises(ValueError, match="A label must be a string"):
            pipe.add_label(wrong)

    nlp.initialize(lambda: make_examples(nlp))
    labels = pipe.labels
    assert labels[:2] == ("ZULU", "ALFA")
    assert list(labels[2:]) == sorted(labels[2:]) and len(labels) > 2
    assert pipe.add_label("ALFA") == 0
    with pytest.raises(ValueError, match=r"'NEW' can't be added. Add labels before nlp.initialize"):
        pipe.add_label("NEW")
    assert pipe.labels == labels


@pytest.mark.parametrize("from_file", [True, False])
def test_labels_from_the_config(checkpoint, tmp_path, from_file):
    labels = ["ZULU", "PLACE", "DATE", "VESSEL"]
    srsly.write_json(tmp_path / "ner.json", labels)
    nlp = build(checkpoint, "ner", initialize=False)
    reader = {"@readers": "spacy.read_labels.v1", "path": str(tmp_path / "ner.json")}
    given = reader if from_file else labels
    nlp.config["initialize"]["components"] = {"bert_ner": {"labels": given}}
    nlp.initialize()
    assert nlp.get_pipe("bert_ner").label_data == labels
    assert nlp.get_pipe("bert_ner").tags[:3] == ["O", "B-ZULU", "I-ZULU"]
    assert nlp(TEXTS[0]).has_annotation("ENT_IOB")


# --- scores


@pytest.mark.parametrize(
    "head, settings",
    [
        ("ner", {}),
        ("tagger", {"attr": "tag"}),
        ("tagger", {"attr": "pos"}),
        ("textcat", {}),
        ("textcat_multilabel", {}),
    ],
)
def test_training_weighs_scores_that_there_are(checkpoint, head, settings):
    """Or else no pipeline would be better than another."""
    nlp = build(checkpoint, head, settings=settings)
    scores = nlp.evaluate(make_examples(nlp, DATA))
    weights = nlp.config["training"]["score_weights"]
    assert sum(weight for key, weight in weights.items() if weight and key in scores) >= 0.5


JOINT = [
    (TEXTS[0], {"entities": [(0, 10, "VESSEL"), (16, 22, "DATE")]}),  # not what it learned
    ("The boat left Hull", {"cats": {"fire": 0.0, "voyage": 1.0}}),
    ("It burned", {"cats": {"fire": 1.0, "voyage": 0.0}}),
]


def test_a_doc_scores_only_the_heads_it_is_annotated_for(trained):
    def scores(data):
        return trained.evaluate(make_examples(trained, data))

    both, ents, cats = scores(JOINT), scores(JOINT[:1]), scores(JOINT[1:])
    assert (ents["ents_p"], ents["ents_r"]) == (1 / 3, 1 / 2)
    assert {key: both[key] for key in ENTS} == {key: ents[key] for key in ENTS}
    assert {key: both[key] for key in CATS} == {key: cats[key] for key in CATS}
    assert {cats[key] for key in ENTS} == {None}
    assert both["tag_acc"] is None


@pytest.mark.parametrize(
    "data, learners",
    [
        (JOINT[:1], {"bert_ner"}),
        (JOINT[1:], {"bert_textcat"}),
        (JOINT, {"bert_ner", "bert_textcat"}),
        ([("It burned", {})], set()),
    ],
)
def test_a_doc_teaches_only_the_heads_it_is_annotated_for(checkpoint, data, learners):
    nlp = build(checkpoint, *HEADS)
    before = {name: weights_of(nlp, name) for name in nlp.pipe_names}
    losses = {}
    optimizer = Adam(1e-4, L2=0.1, use_averages=False)  # not even decay reaches the others
    nlp.update(make_examples(nlp, data), sgd=optimizer, losses=losses)
    nlp("It burned")  # closes the step
    changed = {
        name
        for name, old in before.items()
        for key, value in weights_of(nlp, name).items()
        if (value != old[key]).any()
    }
    assert changed == (learners | {"bert_encoder"} if learners else set())
    assert {name for name, loss in losses.items() if loss} == changed


# --- commands


@pytest.fixture(scope="module")
def files(tmp_path_factory, checkpoint) -> Path:
    """A folder with data and the config that `init-config` makes for it."""
    folder = tmp_path_factory.mktemp("commands")
    nlp = spacy.blank(LANG)
    DocBin(docs=[eg.reference for eg in make_examples(nlp, DATA)]).to_disk(folder / "train.spacy")
    command("bert", "init-config", folder / "config.cfg", "--heads", "ner,tagger,textcat",
            "--lang", LANG, "--name", checkpoint, "--train", folder / "train.spacy",
            "--dev", folder / "train.spacy")  # fmt: skip
    return folder


def command(*words: object) -> str:
    """Run `python -m spacy …` in this process."""
    registry.cli.get_all()
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


SMALL = (
    "--components.bert_encoder.model.window", 64, "--components.bert_encoder.model.stride", 48
)  # fmt: skip


def test_config_is_complete(files):
    assert "config is already complete" in command(
        "init", "fill-config", files / "config.cfg", files / "filled.cfg"
    )
    assert (files / "filled.cfg").read_text() == (files / "config.cfg").read_text()
    assert "Config is valid" in command("debug", "config", files / "config.cfg")


@pytest.mark.parametrize("heads", [["ner"], ["textcat_multilabel"], ["tagger", "ner"]])
@pytest.mark.parametrize("gpu", [True, False])
def test_every_config_is_complete(tmp_path, heads, gpu):
    config = init_config(heads, gpu=gpu, lang=LANG)
    filled = load_model_from_config(config, auto_fill=True, validate=True).config
    assert filled.to_str() == config.to_str()
    assert config["nlp"]["pipeline"] == ["bert_encoder", *(f"bert_{head}" for head in heads)]


def test_optimizer_of_the_config(files):
    """What `debug data`, `assemble` and `nlp.resume_training` do with it."""
    config = Config().from_disk(files / "config.cfg", interpolate=False)
    nlp = load_model_from_config(config, auto_fill=True)
    optimizer, rates = nlp.resume_training(), []
    for _ in range(config["training"]["max_steps"] + 1):
        rates.append(optimizer.learn_rate)
        optimizer.step_schedules()
    assert max(rates) == config["training"]["optimizer"]["learn_rate"]["initial_rate"] < 5e-4
    assert rates[-1] == 0


def test_init_labels(files):
    command("init", "labels", files / "config.cfg", files / "labels", *SMALL)
    assert {file.name: srsly.read_json(file) for file in (files / "labels").iterdir()} == {
        "bert_ner.json": ["DATE", "PLACE", "VESSEL"],
        "bert_tagger.json": ["DT", "IN", "NN", "NNP", "VBD"],
        "bert_textcat.json": ["fire", "voyage"],
    }


def test_train_evaluate_apply(files):
    data = files / "train.spacy"
    rate, steps = "--training.optimizer.learn_rate", ("--training.max_steps", 40)
    rate = (f"{rate}.initial_rate", 3e-3, f"{rate}.total_steps", 80)
    with pytest.warns(UserWarning, match="A learning rate"):
        command("train", files / "config.cfg", "-o", files / "out", *SMALL, *rate, *steps)
    nlp = spacy.load(files / "out" / "model-last")
    assert nlp.meta["performance"]["ents_f"] == 1.0

    command("evaluate", files / "out" / "model-last", data, "--output", files / "scores.json")
    scores = srsly.read_json(files / "scores.json")
    for key in ("ents_f", "tag_acc", "cats_score"):
        assert scores[key] == 1.0, key

    srsly.write_jsonl(files / "texts.jsonl", [{"text": text} for text in TEXTS])
    model, texts = files / "out" / "model-last", files / "texts.jsonl"
    command("apply", model, texts, files / "applied.spacy", "--batch-size", 3)
    found = DocBin().from_disk(files / "applied.spacy").get_docs(nlp.vocab)
    assert [annotations(doc) for doc in found] == close(annotate(nlp))


LIGHT = """
import sys
import spacy

nlp = spacy.blank("en")
nlp.add_pipe("bert_encoder")
for head in ("ner", "tagger", "textcat", "textcat_multilabel"):
    nlp.add_pipe(f"bert_{head}")
sys.argv = ["spacy", "--help"]
from spacy.cli._util import setup_cli
try:
    setup_cli()
except SystemExit as left:
    assert not left.code, left.code
heavy = {"transformers", "tokenizers", "safetensors", "huggingface_hub", "datasets"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""


def test_spacy_stays_light(light):
    """Neither a pipeline before its initialization nor a command waits for transformers."""
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", LIGHT],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert " bert " in ran.stdout
    assert ran.stdout.rstrip().endswith("heavy: []")


def test_example_made_from_a_prediction(trained):
    """Entities that a pipeline wrote don't keep it from learning others."""
    doc = trained(TEXTS[0])
    example = Example.from_dict(doc, {"entities": [(16, 22, "DATE")]})
    losses = trained.update([example], sgd=False, losses={})
    shim_of(trained.get_pipe("bert_encoder").model).module.zero_grad()
    assert losses["bert_ner"] > 1
