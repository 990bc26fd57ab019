"""Questions, hypotheses, categories, weights and labels stay as they were written, wherever a
config goes."""

import json
import pickle

import pytest
import spacy
from conftest import make_examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pair_examples import LANG, NLP, make_head
from spacy.language import Language
from spacy.training import Example

from spacy_bert_heads.heads.free_text import as_setting

MARKS = "$${}\"' \\=:#;[]@%*.,\n\t&éß船😀"
LETTERS = st.characters(codec="utf8", exclude_categories=["Cc", "Cs"])
TEXTS = st.text(st.one_of(st.sampled_from(MARKS), LETTERS), min_size=1)
SAID = TEXTS.filter(str.strip)
KEYS = TEXTS.filter(lambda text: not text.startswith("@"))
NASTY = ["Did it cost $?", "$", "$$", "Was ${sum} paid?", "${", "__SECTION__:a", "1", "null"]
fast = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def build(factory: str, checkpoint: str = "", **config) -> Language:
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    nlp.add_pipe(factory, config=config)
    return nlp


def by_disk(nlp: Language, folder) -> Language:
    nlp.to_disk(folder)
    return spacy.load(folder)


def by_bytes(nlp: Language, folder) -> Language:
    return spacy.blank(LANG).from_config(nlp.config).from_bytes(nlp.to_bytes())


def by_text(nlp: Language, folder) -> Language:
    config = spacy.util.load_config_from_str(nlp.config.to_str(), interpolate=False)
    return spacy.util.load_model_from_config(config, auto_fill=True)


def by_pickle(nlp: Language, folder) -> Language:
    return pickle.loads(pickle.dumps(nlp))


def by_source(nlp: Language, folder) -> Language:
    target = spacy.blank(LANG)
    for name in nlp.pipe_names:
        target.add_pipe(name, source=nlp)
    return target


WAYS = [by_disk, by_bytes, by_text, by_pickle, by_source, by_bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("free-text") / "nlp"


def assert_stays(nlp: Language, folder, get, value) -> None:
    """Whatever way is taken, one after another, and some twice."""
    assert get(nlp) == value
    for way in (by_disk, *WAYS):
        nlp = way(nlp, folder)
        assert get(nlp) == value


@fast
@given(st.lists(SAID))
@example(NASTY)
def test_questions_stay_as_they_are(folder, questions):
    nlp = build("bert_qa", questions=questions)
    assert_stays(nlp, folder, lambda nlp: nlp.get_pipe("bert_qa").texts, questions)


@fast
@given(st.lists(SAID), st.dictionaries(KEYS, SAID), st.dictionaries(KEYS, st.floats(0, 9)))
@example(NASTY, dict(zip(NASTY, NASTY, strict=True)), dict.fromkeys(NASTY, 2.0))
@example(
    [],
    {"type: fire": "a"},
    {"a=b": 1.0, "#tag": 2.0, "[z]": 0.5, ";x": 1.0, " a ": 1.0, "A\r": 1.0},
)
def test_hypotheses_categories_and_weights_stay_as_they_are(folder, texts, categories, weights):
    nlp = build("bert_nli", hypotheses=texts, categories=categories, class_weights=weights)

    def get(nlp: Language) -> tuple:
        nli = nlp.get_pipe("bert_nli")
        return nli.texts, nli.categories, nli.cfg["class_weights"]

    assert_stays(nlp, folder, get, (texts, categories, weights))


@pytest.mark.parametrize(
    "factory", ["bert_ner", "bert_tagger", "bert_textcat", "bert_textcat_multilabel"]
)
def test_weights_of_every_head_stay_as_they_are(folder, factory):
    weights = dict.fromkeys([*NASTY, "type: fire", "a=b", "#tag", "[z]"], 2.0)
    nlp = build(factory, class_weights=weights)
    assert_stays(nlp, folder, lambda nlp: nlp.get_pipe(factory).cfg["class_weights"], weights)


@fast
@given(st.lists(SAID), st.dictionaries(TEXTS, SAID))
@example(NASTY, {"@a": "b", "a.b": "c"})
def test_overrides_at_load_are_exact_as_json(folder, texts, categories):
    build("bert_nli", hypotheses=["$"], categories={"a.b": "c"}).to_disk(folder)
    changed = {"hypotheses": as_setting(texts), "categories": as_setting(categories)}
    nlp = spacy.load(folder, config={"components": {"bert_nli": changed}})

    def get(nlp: Language) -> tuple:
        nli = nlp.get_pipe("bert_nli")
        return nli.texts, nli.categories

    assert_stays(nlp, folder, get, (texts, categories))


@fast
@given(st.lists(SAID.filter(lambda text: "${" not in text and "__SECTION__" not in text)))
@example(["What did it cost in $?", "$$"])
def test_overrides_at_load_are_exact_as_they_are_without_variables(folder, texts):
    build("bert_qa", questions=["$"]).to_disk(folder)
    nlp = spacy.load(folder, config={"components": {"bert_qa": {"questions": texts}}})
    assert_stays(nlp, folder, lambda nlp: nlp.get_pipe("bert_qa").texts, texts)


@settings(fast, max_examples=5)
@given(st.lists(TEXTS, min_size=2, max_size=4, unique=True))
@example(NASTY)
def test_labels_and_their_weights_stay_as_they_are(folder, checkpoint, labels):
    weights = {label: 2.0 for label in labels if not label.startswith("@")}
    nlp = build("bert_textcat", checkpoint, class_weights=weights)
    gold = {"cats": {label: float(i == 0) for i, label in enumerate(labels)}}
    nlp.initialize(lambda: [Example.from_dict(nlp.make_doc("Anna left Hull"), gold)])
    again = by_disk(by_disk(nlp, folder), folder)
    textcat = again.get_pipe("bert_textcat")
    assert textcat.labels == tuple(sorted(labels))
    assert textcat.cfg["class_weights"] == weights
    assert again("Anna left Hull").cats == pytest.approx(nlp("Anna left Hull").cats)
    assert again("Anna left Hull").cats.keys() == set(labels)


@settings(fast, max_examples=5)
@given(st.lists(TEXTS, min_size=2, max_size=4, unique=True), st.booleans())
@example(["cost $", "a=b"], False)
@example(["${sum}", "__SECTION__:a"], True)
def test_labels_named_in_the_config_stay_as_they_are(folder, checkpoint, labels, as_json):
    as_json = as_json or any("${" in label or "__SECTION__" in label for label in labels)
    nlp = build("bert_tagger", checkpoint)
    named = as_setting(labels) if as_json else labels
    nlp.config["initialize"]["components"] = {"bert_tagger": {"labels": named}}
    for _ in range(2):  # a loaded pipeline is trained anew
        nlp.initialize(lambda nlp=nlp: make_examples(nlp))
        assert nlp.get_pipe("bert_tagger").labels == tuple(labels)
        fresh = spacy.util.load_model_from_config(by_disk(nlp, folder).config)
        nlp = fresh


def test_what_the_config_keeps_stands_there_as_it_is():
    plain = {"hypotheses": ["It burned.", "1"], "categories": {"No. of crew": "x", "船": "y: #"}}
    nlp = build("bert_nli", class_weights={"neutral": 2.0}, **plain)
    config = nlp.config["components"]["bert_nli"]
    assert {key: config[key] for key in plain} == plain
    assert config["class_weights"] == {"neutral": 2.0}
    nlp = build("bert_qa", questions=["In $?"])
    assert nlp.config["components"]["bert_qa"]["questions"] == '["In \\u0024?"]'
    assert json.loads('["In \\u0024?"]') == ["In $?"]


def test_categories_can_be_given_one_by_one_at_load(folder):
    build("bert_nli").to_disk(folder)
    nlp = spacy.load(folder, config={"components.bert_nli.categories": {"fire": "It burned."}})
    assert nlp.get_pipe("bert_nli").categories == {"fire": "It burned."}
    with pytest.raises(ValueError, match=r"components.bert_nli.categories has the key 'a: b'"):
        spacy.load(folder, config={"components.bert_nli.categories": {"a: b": "It burned."}})


def test_variables_of_a_config_work(folder):
    text = build("bert_qa").config.to_str()
    asked = 'questions = ["Where is ${vars.what}?", "In $?"]\n'
    text = text.replace("questions = []\n", asked) + '\n[vars]\nwhat = "Hull"'
    config = spacy.util.load_config_from_str(text, interpolate=False)
    nlp = spacy.util.load_model_from_config(config, auto_fill=True)
    asked = ["Where is Hull?", "In $?"]
    assert_stays(nlp, folder, lambda nlp: nlp.get_pipe("bert_qa").texts, asked)
    text = text.replace('["Where is ${vars.what}?", "In $?"]', "${vars.what}")
    text = text.replace('what = "Hull"', 'what = ["Who?"]')
    config = spacy.util.load_config_from_str(text, interpolate=False)
    nlp = spacy.util.load_model_from_config(config, auto_fill=True)
    assert nlp.get_pipe("bert_qa").texts == ["Who?"]
    assert nlp.config["components"]["bert_qa"]["questions"] == "${vars.what}"


def test_a_string_that_is_no_json_says_what_to_give():
    with pytest.raises(ValueError, match=r"components.bert_qa.questions is the string 'Who\?'"):
        make_head("qa", questions="Who?")
    with pytest.raises(ValueError, match="must be a list of strings"):
        make_head("qa", questions='"Who?"')
    assert NLP.create_pipe("bert_qa", config={"questions": '["Who?"]'}).texts == ["Who?"]
