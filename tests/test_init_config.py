"""Configs of `init-config`: steps that follow from one number, data that has something for each
head, heads with names."""

import pytest
import spacy
from commands import run
from conftest import make_examples
from spacy.schemas import ConfigSchemaTraining
from spacy.tokens import DocBin
from spacy.util import load_model_from_config, registry
from thinc.api import Config

from spacy_bert_heads.encoder.optimization import make_warmup_linear
from spacy_bert_heads.init_config import init_config

LANG = "xx"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Entities, tags and categories; no parts of speech, questions or hypotheses."""
    file = tmp_path_factory.mktemp("data") / "train.spacy"
    references = [eg.reference for eg in make_examples(spacy.blank(LANG))]
    DocBin(docs=references, store_user_data=True).to_disk(file)
    return file


# --- steps


def take(steps, rates) -> list[float]:
    return [next(rates) for _ in range(steps)]


def test_a_learning_rate_rises_and_falls():
    assert take(7, make_warmup_linear(1.0, 2, 6)) == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert take(3, make_warmup_linear(1.0, 0, 2)) == [1.0, 0.5, 0.0]
    # A training that ends within the warm-up.
    assert take(4, make_warmup_linear(1.0, 4, 2)) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("total", [0, "${training.max_steps}"])
def test_a_learning_rate_without_an_end_stays(total):
    assert take(5, make_warmup_linear(1.0, 2, total)) == [0.0, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("heads", [["ner"], ["ner", "textcat"]])
def test_one_number_of_steps(heads, checkpoint):
    config = init_config(heads, name=checkpoint, lang=LANG)
    text = config.to_str()
    assert text.count("max_steps = 2000\n") == 1
    assert "total_steps = ${training.max_steps}\n" in text
    loaded = Config().from_str(text, overrides={"training.max_steps": 500})
    training = registry.resolve(loaded["training"], schema=ConfigSchemaTraining)
    rates = []
    for _ in range(501):
        rates.append(training["optimizer"].learn_rate)
        training["optimizer"].step_schedules()
    assert (max(rates), rates.index(max(rates)), rates[500]) == (1e-4, 200, 0.0)
    assert rates[350] == pytest.approx(0.5e-4)
    # What `nlp.resume_training` and `spacy debug data` make of it.
    assert load_model_from_config(config).create_optimizer().b1 == 0.9


# --- data


@pytest.mark.parametrize(
    "args, what",
    [
        (("qa",), "answers for bert_qa"),
        (("textcat,nli",), "verdicts for bert_nli"),
        (("ner=places,regression",), "numbers for bert_regression"),
        (("tagger=upos", "--attr", "pos"), "tags in token.pos for upos"),
    ],
)
@pytest.mark.parametrize("option", ["--train", "--dev"])
def test_data_with_nothing_for_a_head_is_rejected(args, what, option, data, tmp_path):
    output = tmp_path / "new" / "config.cfg"
    heads, *more = args
    result = run("init-config", output, "--heads", heads, *more, option, data, "--lang", LANG)
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith(f"Error: {data} has no {what}; it has ")
    for found in ("entities (2 Docs)", "tags (2 Docs)", "categories (2 Docs)"):
        assert found in line
    assert not output.parent.exists()


def test_a_source_needs_data_for_one_of_its_heads(joint, data, tmp_path):
    assert init_config(source=joint, train=data)["training"]["max_steps"] == 200
    doc = spacy.blank(LANG)("Anna left")
    DocBin(docs=[doc], store_user_data=True).to_disk(tmp_path / "plain.spacy")
    with pytest.raises(ValueError, match="has no entities for bert_ner; it has no annotation."):
        init_config(source=joint, train=tmp_path / "plain.spacy")


def test_a_source_may_have_heads_without_data(joint, tmp_path):
    doc = spacy.blank(LANG)("Anna left")
    doc.ents = [doc[:1].char_span(0, 4, label="PERSON")]
    DocBin(docs=[doc], store_user_data=True).to_disk(tmp_path / "ner.spacy")
    lacking = "no annotation for bert_textcat, bert_nli, bert_qa, which the encoder may unlearn"
    with pytest.warns(UserWarning, match=lacking):
        init_config(source=joint, train=tmp_path / "ner.spacy")


def test_folders_that_are_no_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="is a folder, but not a checkpoint: it has no config.js"):
        init_config(["ner"], name=str(tmp_path))
    with pytest.warns(UserWarning, match="There is no folder '.*later' here, from which the enc"):
        init_config(["ner"], name=str(tmp_path / "later"))


def test_a_source_whose_heads_have_encoders_of_their_own(joint, data, tmp_path):
    nlp = spacy.load(joint)
    for head in ("bert_ner", "bert_textcat"):
        nlp.replace_listeners("bert_encoder", head, ["model.tok2vec"])
    for name in set(nlp.component_names) - {"bert_ner", "bert_textcat"}:
        nlp.remove_pipe(name)
    nlp.to_disk(tmp_path / "own")
    config = init_config(source=tmp_path / "own", train=data, dev=data)
    training = config.interpolate()["training"]
    assert registry.resolve(training, schema=ConfigSchemaTraining)["batcher"] is not None
    assert training["batcher"]["@batchers"] == "spacy.batch_by_sequence.v1"


# --- names


@pytest.mark.parametrize("option", ["--name", "--source", "--train", "--dev", "--raw", "--adapt"])
def test_a_name_that_a_config_cannot_hold(option, tmp_path):
    more = {"--raw": ["--pretrain"], "--adapt": ["--name", "my $m"]}.get(option, [])
    result = run("init-config", tmp_path / "a.cfg", option, "my $m", *more)
    assert result.exit_code == 1 and not (tmp_path / "a.cfg").exists()
    assert result.output.startswith("Error: 'my $m' has a '$', which spaCy changes in configs.")


@pytest.mark.parametrize("more, first", [([], "train"), (["--pretrain"], "bert pretrain")])
def test_the_next_command_quotes_the_path(more, first, checkpoint, tmp_path):
    path = tmp_path / "no dir" / "a.cfg"
    result = run("init-config", path, "--name", checkpoint, *more)
    assert result.exit_code == 0, result.output
    assert f"\npython -m spacy {first} '{path}' " in result.output


# --- heads


def test_heads_with_names(checkpoint):
    config = init_config(["ner=diseases", "ner = drugs"], name=checkpoint, lang=LANG)
    assert config["nlp"]["pipeline"] == ["bert_encoder", "diseases", "drugs"]
    for name in ("diseases", "drugs"):
        assert config["components"][name]["factory"] == "bert_ner"
        assert config["components"][name]["model"]["learning_rate_multiplier"] == 10.0
    assert load_model_from_config(config).pipe_names == ["bert_encoder", "diseases", "drugs"]


def test_a_tagger_of_parts_of_speech(checkpoint):
    config = init_config(["ner", "tagger"], name=checkpoint, lang=LANG, attr="pos")
    assert config["components"]["bert_tagger"]["attr"] == "pos"
    assert "attr" not in config["components"]["bert_ner"]


@pytest.mark.parametrize(
    "heads, attr, message",
    [
        (["ner", "ner"], None, "Give them names: ner=my_ner,ner=other_ner"),
        (["ner=a", "textcat=a"], None, "'a' would be the name of two components"),
        (["ner=bert_encoder"], None, "'bert_encoder' would be the name of two"),
        (["ner=a.b"], None, "'a.b' can't be the name of a component"),
        (["ner="], None, "'' can't be the name"),
        (["=a"], None, "Unknown head ''. Choose from: "),
        ([], None, "No heads are given. Choose from: "),
        (["ner"], "pos", "attr is 'pos', but it is for the head tagger"),
        (["tagger"], "lemma", "attr is 'lemma'. Choose one of: tag, pos"),
    ],
)
def test_heads_that_make_no_pipeline(heads, attr, message):
    with pytest.raises(ValueError, match=message):
        init_config(heads, lang=LANG, attr=attr)
