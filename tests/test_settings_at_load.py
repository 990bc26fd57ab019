"""Settings that a pipeline is loaded with are in force, however it is loaded."""

import json
import re

import pytest
import spacy
from head_cases import make_head
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pair_examples import LANG
from spacy.language import Language
from three_heads import DATA, TEXTS, make_examples

from spacy_bert_heads.encoder.listener import DEFAULT_LISTENER

WEIGHTS = ["model"]  # heads without any
GIVEN = {"window": 32, "stride": 16, "max_batch_tokens": 100}


def build(checkpoint: str, head: str = "bert_tagger", **encoder) -> Language:
    nlp = spacy.blank(LANG)
    settings = {"name": checkpoint, "window": 64, "stride": 48, **encoder}
    nlp.add_pipe("bert_encoder", config={"model": settings})
    listener = {"@architectures": "spacy_bert_heads.Tok2VecListener.v1", "upstream": "*"}
    tagger = {"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}}
    nlp.add_pipe(head, name="tagger", config=tagger if head == "tagger" else {})
    nlp.initialize(lambda: make_examples(nlp, DATA))
    return nlp


def in_force(nlp: Language, component: str) -> dict:
    nodes = nlp.get_pipe(component).model.walk()
    (node,) = (node for node in nodes if node.name == "bert_encoder")
    return {name: node.attrs[name] for name in GIVEN}


def by_disk(nlp: Language, path: str, folder) -> Language:
    nlp.to_disk(folder)
    return spacy.load(folder, config={f"{path}.{name}": value for name, value in GIVEN.items()})


def by_bytes(nlp: Language, path: str, folder) -> Language:
    config = nlp.config.copy()
    spacy.util.dot_to_object(config, path).update(GIVEN)
    return spacy.util.load_model_from_config(config).from_bytes(nlp.to_bytes())


@pytest.mark.parametrize("load", [by_disk, by_bytes])
def test_settings_of_the_encoder(checkpoint, tmp_path, load):
    nlp = build(checkpoint)
    loaded = load(nlp, "components.bert_encoder.model", tmp_path / "nlp")
    assert in_force(loaded, "bert_encoder") == GIVEN
    expected = build(checkpoint, **GIVEN)
    expected.get_pipe("tagger").from_bytes(nlp.get_pipe("tagger").to_bytes(), exclude=["cfg"])
    doc = nlp.make_doc(TEXTS[3])
    pipelines = (loaded, expected)
    counts = [one.get_pipe("bert_encoder").predict([doc]).batch.num_windows for one in pipelines]
    assert counts[0].tolist() == counts[1].tolist() != [1]


@pytest.mark.parametrize("load", [by_disk, by_bytes])
@pytest.mark.parametrize("head", ["bert_tagger", "tagger"])
def test_settings_of_an_encoder_of_a_head_s_own(checkpoint, tmp_path, load, head):
    nlp = build(checkpoint, head)
    nlp.replace_listeners("bert_encoder", "tagger", ["model.tok2vec"])
    path = "components.tagger.model.tok2vec" + (".encoder" if head == "tagger" else "")
    loaded = load(nlp, path, tmp_path / "nlp")
    assert in_force(loaded, "tagger") == GIVEN
    assert in_force(loaded, "bert_encoder")["window"] == 64
    again = load(loaded, path, tmp_path / "again")
    assert in_force(again, "tagger") == GIVEN
    tags = [[token.tag_ for token in nlp(text)] for text in TEXTS[:2]]
    assert [[token.tag_ for token in again(text)] for text in TEXTS[:2]] == tags


def test_layers_that_are_read_are_the_saved_ones(checkpoint, tmp_path):
    """They are no setting of the encoder, but of those who read it."""
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    listener = {"@architectures": "spacy_bert_heads.BertListener.v1", "layers": [-2, -1]}
    nlp.add_pipe("bert_tagger", config={"model": {"tok2vec": listener}})
    nlp.initialize(lambda: make_examples(nlp, DATA))
    nlp.replace_listeners("bert_encoder", "bert_tagger", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "nlp")
    for loaded in (spacy.load(tmp_path / "nlp"), nlp.from_bytes(nlp.to_bytes())):
        nodes = loaded.get_pipe("bert_tagger").model.walk()
        (node,) = (node for node in nodes if node.name == "bert_encoder")
        assert list(node.attrs["layers"]) == [-2, -1]
        assert [t.tag_ for t in loaded(TEXTS[0])] == [t.tag_ for t in nlp(TEXTS[0])]


def test_a_setting_that_does_not_fit_is_an_error_at_load(checkpoint, tmp_path):
    nlp = build(checkpoint)
    nlp.replace_listeners("bert_encoder", "tagger", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "nlp")
    with pytest.raises(ValueError, match="window is 4096, but .* has positions for"):
        spacy.load(tmp_path / "nlp", config={"components.tagger.model.tok2vec.window": 4096})


@pytest.mark.parametrize("load", [by_disk, by_bytes])
@pytest.mark.parametrize(
    "head, key, old, new",
    [
        ("bert_textcat", "pooling", "pooler", "mean"),
        ("bert_tagger", "lstm_width", 0, 8),
        ("bert_tagger", "tok2vec.layers", [-1], [-2]),
    ],
)
def test_settings_that_the_weights_depend_on(
    checkpoint, tmp_path, monkeypatch, load, head, key, old, new
):
    nlp = build(checkpoint, head)
    setting, _, last = f"components.tagger.model.{key}".rpartition(".")
    monkeypatch.setattr(__name__ + ".GIVEN", {last: old})
    same = load(nlp, setting, tmp_path / "same")
    doc, again = nlp(TEXTS[3]), same(TEXTS[3])
    assert (again.cats, [t.tag_ for t in again]) == (doc.cats, [t.tag_ for t in doc])
    monkeypatch.setattr(__name__ + ".GIVEN", {last: new})
    message = re.escape(f"trained with {last} = {json.dumps(old, separators=(',', ':'))}, so")
    with pytest.raises(ValueError, match=message):
        load(nlp, setting, tmp_path / "other")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("sum", "weighted", 'trained with combine = "sum", so'),
        ("weighted", "sum", 'trained with combine = "weighted", so'),
        ("sum", "concat", r"'own' .* other layers .* \[components.own.model\]"),
        ("concat", "sum", r"'own' .* other layers .* \[components.own.model\]"),
    ],
)
def test_settings_that_the_layers_depend_on(checkpoint, tmp_path, old, new, message):
    nlp = build(checkpoint, "bert_textcat")
    listener = {**DEFAULT_LISTENER, "layers": [0, 1], "combine": old}
    nlp.add_pipe("bert_tagger", name="own", config={"model": {"tok2vec": listener}})
    nlp.get_pipe("own").initialize(lambda: make_examples(nlp, DATA), nlp=nlp)
    nlp.to_disk(tmp_path)
    with pytest.raises(ValueError, match=message):
        spacy.load(tmp_path, config={"components.own.model.tok2vec.combine": new})
    spacy.load(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.floats(0.1, 10))
@example(0.3, 0.7)  # whose last digits spaCy's JSON changes
@example(0.7, 2.5)
def test_what_code_has_set_stays(written, tuned):
    """Also where the config's number is not exactly what was saved."""
    given = {"threshold": written, "thresholds": {"A": written}}
    one, other = (make_head("textcat_multilabel", "AB", **given) for _ in range(2))
    one.set_temperature(tuned)
    one.cfg["thresholds"] = {"A": 0.99}
    other.from_bytes(one.to_bytes(exclude=WEIGHTS), exclude=WEIGHTS)
    assert other.cfg["threshold"] == pytest.approx(one.cfg["threshold"], abs=1e-9)
    assert (other.temperature, other.cfg["thresholds"]) == (pytest.approx(tuned), {"A": 0.99})


@pytest.mark.parametrize("head, key", [("textcat_multilabel", "threshold"), ("qa", None)])
def test_another_temperature_changes_no_decision(head, key):
    """Thresholds go with it, in the config and without."""
    at_load = {"no_answer_threshold": 0.9} if head == "qa" else {"threshold": 0.9}
    labels = () if head == "qa" else "AB"
    one = make_head(head, labels, **at_load)
    one.set_temperature(4.0)
    other = make_head(head, labels, temperature=1.0, **at_load)
    other.from_bytes(one.to_bytes(exclude=WEIGHTS), exclude=WEIGHTS)
    found = other.no_answer_threshold if head == "qa" else other.cfg[key]
    assert (other.temperature, found) == (1.0, pytest.approx(0.9))
