"""spaCy's own commands on a pipeline of ours: train, evaluate, package, debug and so on."""

import importlib
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import spacy
import srsly
from conftest import TRAIN_DATA, make_examples
from joint import BURNED, LANG, SAILED, annotate, annotations, assert_same, make_docs
from joint import make_examples as make_pair_examples
from spacy.cli import app
from spacy.cli.find_threshold import find_threshold
from spacy.cli.train import train as train_command
from spacy.tokens import DocBin
from spacy.util import registry
from thinc.api import Config
from typer.testing import CliRunner

from spacy_bert_heads.encoder import model as encoder_model
from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.init_config import init_config

HEADS = ["ner", "textcat_multilabel"]
SMALL = {
    "components.bert_encoder.model.window": 64,
    "components.bert_encoder.model.stride": 48,
}
FAST = {  # a random BERT needs it
    "training.optimizer.learn_rate.initial_rate": 3e-3,
    "training.max_steps": 30,
    "training.eval_frequency": 15,
}


def command(*words: object, code: int = 0) -> str:
    """Run `python -m spacy …` in this process."""
    registry.cli.get_all()
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, Exception):  # and not an exit
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def run_training(config: Config, folder: Path, overrides: dict | None = None):
    """`spacy train`, and the pipeline that it saves last."""
    folder.mkdir(exist_ok=True)
    config.to_disk(folder / "config.cfg")
    with pytest.warns(UserWarning, match="A learning rate"):
        train_command(folder / "config.cfg", folder / "out", overrides=overrides or {})
    return spacy.load(folder / "out" / "model-last")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "train.spacy"
    DocBin(docs=[eg.reference for eg in make_examples(spacy.blank(LANG))]).to_disk(file)
    return file


@pytest.fixture(scope="module")
def config(checkpoint, data) -> Config:
    """What `init-config` makes, as a dict of which every test gets its own."""
    return init_config(HEADS, name=checkpoint, lang=LANG, train=data, dev=data)


@pytest.fixture(scope="module")
def config_file(config, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("config") / "config.cfg"
    with_overrides(config, SMALL).to_disk(file)
    return file


def with_overrides(config: Config, overrides: dict) -> Config:
    return Config().from_str(config.to_str(), interpolate=False, overrides=overrides)


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> Path:
    """Trained with accumulated gradients and a callback, and saved by `spacy train`."""

    @registry.callbacks("describe_it.v1")
    def make_callback():
        def describe(nlp):
            nlp.meta["description"] = "made by a callback"
            return nlp

        return describe

    folder = tmp_path_factory.mktemp("train")
    config = with_overrides(config, SMALL | FAST | {"training.accumulate_gradient": 2})
    config["training"]["before_to_disk"] = {"@callbacks": "describe_it.v1"}
    run_training(config, folder)
    return folder / "out" / "model-last"


def entities(nlp, text: str = SAILED) -> list:
    return [(ent.start_char, ent.end_char, ent.label_) for ent in nlp(text).ents]


def categories(nlp) -> list[str]:
    docs = nlp.pipe([SAILED, BURNED])
    return [max(doc.cats, key=doc.cats.get) if doc.cats else "" for doc in docs]


# --- train


def test_train(trained):
    nlp = spacy.load(trained)
    assert nlp.meta["description"] == "made by a callback"
    performance = nlp.meta["performance"]
    assert (performance["ents_f"], performance["cats_score"]) == (1.0, 1.0)
    assert entities(nlp) == TRAIN_DATA[0][1]["entities"]
    assert categories(nlp) == ["voyage", "fire"]


def test_train_with_labels_of_files(config_file, tmp_path):
    command("init", "labels", config_file, tmp_path / "labels")
    file = tmp_path / "labels" / "bert_ner.json"
    assert srsly.read_json(file) == ["DATE", "PLACE", "VESSEL"]
    labels = ["VESSEL", "UNSEEN", "DATE", "PLACE"]
    srsly.write_json(file, labels)
    config = with_overrides(Config().from_disk(config_file, interpolate=False), FAST)
    reader = {"@readers": "spacy.read_labels.v1", "path": str(file), "require": True}
    config["initialize"]["components"] = {"bert_ner": {"labels": reader}}
    nlp = run_training(config, tmp_path)
    assert nlp.get_pipe("bert_ner").labels == tuple(labels)
    assert entities(nlp) == TRAIN_DATA[0][1]["entities"]


def test_early_stopping(config, tmp_path, capsys):
    """Nothing gets better at a rate of zero."""
    settings = {
        "training.patience": 3,
        "training.eval_frequency": 1,
        "training.max_steps": 50,
        "training.optimizer.learn_rate.initial_rate": 0.0,
    }
    with_overrides(config, SMALL | settings).to_disk(tmp_path / "config.cfg")
    train_command(tmp_path / "config.cfg", tmp_path / "out")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    steps = [int(row[1]) for row in rows if len(row) > 3 and row[0].isdigit()]
    assert steps == [0, 1, 2, 3]


def weights_of(nlp, name: str) -> bytes:
    return shim_of(nlp.get_pipe(name).model).to_bytes()


def sourced(config: Config, trained: Path, *names: str, **settings) -> Config:
    """The config with some components of the trained pipeline."""
    config = with_overrides(config, FAST)
    for name in names:
        config["components"][name] = {"source": str(trained), **settings}
    return config


def test_a_new_head_on_what_is_frozen(config, trained, tmp_path):
    old = spacy.load(trained)
    config = sourced(config, trained, "bert_encoder", "bert_ner")
    config["training"]["frozen_components"] = ["bert_encoder", "bert_ner"]
    config["training"]["annotating_components"] = ["bert_ner"]
    config["components"]["bert_textcat_multilabel"]["model"]["learning_rate_multiplier"] = 20.0
    config.to_disk(tmp_path / "config.cfg")
    train_command(tmp_path / "config.cfg", tmp_path / "out")
    nlp = spacy.load(tmp_path / "out" / "model-last")
    for name in ("bert_encoder", "bert_ner"):
        assert weights_of(nlp, name) == weights_of(old, name)
    assert weights_of(nlp, "bert_textcat_multilabel") != weights_of(old, "bert_textcat_multilabel")
    assert entities(nlp) == TRAIN_DATA[0][1]["entities"]
    assert categories(nlp) == ["voyage", "fire"]
    assert list(nlp(SAILED).cats) == ["fire", "voyage"]


def test_a_frozen_head_with_its_own_encoder(config, trained, tmp_path):
    """The shared encoder moves on; what the frozen head finds stays."""
    old = spacy.load(trained)
    config = sourced(config, trained, "bert_encoder", "bert_textcat_multilabel")
    own = {"source": str(trained), "replace_listeners": ["model.tok2vec"]}
    config["components"]["bert_ner"] = own
    config["training"]["frozen_components"] = ["bert_ner"]
    nlp = run_training(config, tmp_path)
    assert nlp.get_pipe("bert_encoder").listening_components == ["bert_textcat_multilabel"]
    assert weights_of(nlp, "bert_encoder") != weights_of(old, "bert_encoder")
    assert weights_of(nlp, "bert_ner") == weights_of(old, "bert_ner")
    own = nlp.get_pipe("bert_ner").model.get_ref("tok2vec")
    assert shim_of(own).to_bytes() == weights_of(old, "bert_encoder")
    for text in (SAILED, BURNED, "Grete burned Hull on Tuesday"):
        assert entities(nlp, text) == entities(old, text)
        one, other = ([e["score"] for e in doc._.ent_scores] for doc in (nlp(text), old(text)))
        assert one == pytest.approx(other, abs=1e-5)


def test_training_goes_on_from_a_source(config, trained, tmp_path):
    names = [f"bert_{head}" for head in HEADS]
    config = sourced(config, trained, "bert_encoder", *names)
    nlp = run_training(config, tmp_path, {"training.max_steps": 4, "training.eval_frequency": 2})
    old = spacy.load(trained)
    for name in ("bert_encoder", *names):
        assert weights_of(nlp, name) != weights_of(old, name)
    assert nlp.get_pipe("bert_ner").labels == old.get_pipe("bert_ner").labels
    assert nlp.meta["performance"]["ents_f"] == 1.0


# --- evaluate, apply, benchmark


@pytest.mark.parametrize("words", [["evaluate"], ["benchmark", "accuracy"]])
def test_evaluate(trained, data, tmp_path, words):
    out = tmp_path / "scores.json"
    output = command(*words, trained, data, "--output", out, "--displacy-path", tmp_path)
    assert "VESSEL" in output and "voyage" in output
    scores = srsly.read_json(out)
    assert scores["ents_f"] == scores["cats_score"] == 1.0
    assert scores["ents_per_type"]["VESSEL"] == {"p": 1.0, "r": 1.0, "f": 1.0}

    command(*words, trained, data, "--output", out, "--per-component")
    scores = srsly.read_json(out)
    assert scores["bert_ner"]["ents_f"] == 1.0
    assert scores["bert_textcat_multilabel"]["cats_score"] == 1.0
    assert "bert_encoder" not in scores or not scores["bert_encoder"]


def test_benchmark_speed(trained, data):
    output = command("benchmark", "speed", trained, data, "--batches", 30, "--warmup", 1)
    assert "Mean" in output and "words/s" in output


def test_apply_to_docs_that_ask(joint, tmp_path):
    """Questions and hypotheses are in the file, and the answers come to it."""
    nlp = spacy.load(joint)
    DocBin(docs=make_docs(nlp), store_user_data=True).to_disk(tmp_path / "in.spacy")
    command("apply", joint, tmp_path / "in.spacy", tmp_path / "out.spacy", "--batch-size", 2)
    found = DocBin().from_disk(tmp_path / "out.spacy").get_docs(nlp.vocab)
    assert_same([annotations(doc) for doc in found], annotate(nlp))


@pytest.mark.parametrize("head, key", [("ner", "ents_f"), ("textcat_multilabel", "cats_macro_f")])
def test_find_threshold(trained, tmp_path, head, key):
    """The scores are those at each threshold, not at the one of the config."""
    nlp = spacy.load(trained)
    examples = make_examples(nlp)
    if head == "ner":  # an entity that is found, and is wrong
        doc = nlp(SAILED)
        worst = min(ent._.ent_score for ent in doc.ents)
        examples[0].reference.set_ents(
            [ent for ent in doc.ents if ent._.ent_score > worst],
            default="outside",
        )
    DocBin(docs=[eg.reference for eg in examples]).to_disk(tmp_path / "dev.spacy")
    args = (str(trained), tmp_path / "dev.spacy", f"bert_{head}", "threshold", key)
    best, best_score, scores = find_threshold(*args, n_trials=3)
    assert list(scores) == [0.0, 0.5, 1.0]
    for threshold, found in scores.items():
        nlp.get_pipe(f"bert_{head}").cfg["threshold"] = threshold
        assert nlp.evaluate(examples)[key] == pytest.approx(found)
    assert best_score == max(scores.values()) > scores[1.0]
    words = command("find-threshold", *args, "--n_trials", 2)
    assert "Best threshold" in words


# --- assemble, package


def test_assemble(trained, tmp_path):
    names = ["bert_encoder", *(f"bert_{head}" for head in HEADS)]
    parts = {name: {"source": str(trained)} for name in names}
    config = {"nlp": {"lang": LANG, "pipeline": names}, "components": parts}
    Config(config).to_disk(tmp_path / "config.cfg")
    command("init", "fill-config", tmp_path / "config.cfg", tmp_path / "filled.cfg")
    command("assemble", tmp_path / "filled.cfg", tmp_path / "out")
    nlp, old = spacy.load(tmp_path / "out"), spacy.load(trained)
    for text in (SAILED, BURNED):
        assert entities(nlp, text) == entities(old, text) != []
        assert nlp(text).cats == pytest.approx(old(text).cats, abs=1e-5)


def test_package(trained, tmp_path, monkeypatch):
    """It names this package, and needs nothing but itself."""
    (tmp_path / "packages").mkdir()
    command("package", trained, tmp_path / "packages", "--name", "ships", "--version", "1.2.3",
            "--build", "none")  # fmt: skip
    folder = tmp_path / "packages" / f"{LANG}_ships-1.2.3"
    requirements = srsly.read_json(folder / "meta.json")["requirements"]
    assert any(one.startswith("spacy_bert_heads>=") for one in requirements)

    def fail(*args, **kwargs):
        raise AssertionError("the checkpoint is looked for")

    # What pip reads of it.
    egg_info = [sys.executable, "setup.py", "-q", "egg_info"]
    subprocess.run(egg_info, cwd=folder, check=True, capture_output=True)
    (metadata,) = folder.glob("*.egg-info/requires.txt")
    assert "spacy_bert_heads" in metadata.read_text().replace("-", "_")

    monkeypatch.setattr(encoder_model, "load_checkpoint", fail)
    monkeypatch.syspath_prepend(folder)
    nlp = importlib.import_module(f"{LANG}_ships").load()
    assert nlp.meta["version"] == "1.2.3"
    assert entities(nlp) == TRAIN_DATA[0][1]["entities"]


# --- init, debug, project


def test_fill_a_config_by_hand(tmp_path, checkpoint):
    by_hand = f"""
    [nlp]
    lang = {LANG}
    pipeline = ["bert_encoder","bert_ner"]
    [components]
    [components.bert_encoder]
    factory = bert_encoder
    [components.bert_encoder.model]
    name = {checkpoint}
    [components.bert_ner]
    factory = bert_ner
    """
    (tmp_path / "hand.cfg").write_text(dedent(by_hand))
    command("init", "fill-config", tmp_path / "hand.cfg", tmp_path / "filled.cfg")
    filled = Config().from_disk(tmp_path / "filled.cfg")
    nlp = spacy.util.load_model_from_config(filled, validate=True)  # nothing is missing
    assert nlp.get_pipe("bert_encoder").model.attrs["name"] == checkpoint
    again = command("init", "fill-config", tmp_path / "filled.cfg", tmp_path / "again.cfg")
    assert "already complete" in again


def test_debug_config_and_data(config_file):
    assert "Config is valid" in command("debug", "config", config_file, "--show-variables")
    output = command("debug", "data", config_file, "--no-format", code=1)  # of two examples
    assert "Pipeline can be initialized with data" in output
    assert "2 training docs" in output


SHOW = ("-DIM", "-PAR", "-GRAD", "-ATTR", "-P0", "-P1", "-P2", "-P3")


@pytest.mark.parametrize("component", ["bert_encoder", *(f"bert_{head}" for head in HEADS)])
def test_debug_model(config_file, component):
    output = command("debug", "model", config_file, component, *SHOW)
    assert "model looks good" in output


def test_debug_model_of_pairs(checkpoint, tmp_path):
    """spaCy shows the model and takes steps with it, then predicts Docs without what is asked."""
    docs = [eg.reference for eg in make_pair_examples(spacy.blank(LANG))]
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "train.spacy")
    data = tmp_path / "train.spacy"
    config = init_config(["nli", "qa"], name=checkpoint, lang=LANG, train=data, dev=data)
    with_overrides(config, SMALL).to_disk(tmp_path / "config.cfg")
    output = command("debug", "model", tmp_path / "config.cfg", "bert_nli", *SHOW)
    assert "model looks good" in output
    with pytest.raises(ValueError, match="with questions, but was called with Docs only"):
        command("debug", "model", tmp_path / "config.cfg", "bert_qa", *SHOW)


def test_debug_profile(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where it writes a file
    srsly.write_jsonl(tmp_path / "texts.jsonl", [{"text": SAILED}] * 20)
    output = command("debug", "profile", trained, tmp_path / "texts.jsonl", "--n-texts", 10)
    assert "Profile stats" in output and "set_annotations" in output


def test_project_document(tmp_path):
    project = Path(__file__).parent.parent
    command("project", "document", project, "--output", tmp_path / "project.md")
    text = (tmp_path / "project.md").read_text()
    commands = srsly.read_yaml(project / "project.yml")["commands"]
    assert all(f"`{one['name']}`" in text for one in commands)
