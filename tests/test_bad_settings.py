"""Settings, labels and rates that make no sense are named."""

import warnings

import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from conftest import make_examples
from head_cases import make_head
from small_pipelines import LANG, TEXT, build
from thinc.api import Adam

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
        (
            {"learning_rate_multiplier": 0.0},
            "learning_rate_multiplier is 0.0; it must be above 0. .* frozen_components",
        ),
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
            "scheme is 'BIOX'. Choose one of: BIO, BILOU, IOB, IOBES, IO",
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


@pytest.mark.parametrize(
    "kind, config, message",
    [
        ("ner", {"scheme": "BIOX"}, "scheme is 'BIOX'"),
        ("ner", {"threshold": 1.5}, "threshold is 1.5"),
        ("ner", {"threshold": -0.1}, "threshold is -0.1"),
        ("textcat_multilabel", {"threshold": 2.0}, "threshold is 2.0"),
        ("textcat", {"class_weights": {"A": -1.0}}, "must not be negative"),
        ("textcat", {"model": {"pooling": "max"}}, "Unknown pooling 'max'"),
        ("tagger", {"attr": "lemma"}, "attr is 'lemma'"),
    ],
)
def test_settings_are_checked(kind, config, message):
    with pytest.raises(ValueError, match=message):
        make_head(kind, **config)


# --- labels and gold data


@pytest.mark.parametrize("head", ["ner", "tagger", "textcat", "textcat_multilabel"])
def test_no_labels(checkpoint, head):
    with pytest.raises(ValueError, match=rf"bert_{head} has no labels.*\.labels\].*add_label"):
        build(checkpoint, head, data=[("It burned", {"entities": []})])


def test_one_category_to_choose_from(checkpoint):
    data = [("It burned", {"cats": {"fire": 1.0}})]
    match = "bert_textcat chooses .* only 'fire'. Annotate at least two, or use bert_textcat_mu"
    with pytest.raises(ValueError, match=match):
        build(checkpoint, "textcat", data=data)
    assert set(build(checkpoint, "textcat_multilabel", data=data)("It").cats) == {"fire"}


@pytest.mark.parametrize("head", ["textcat", "textcat_multilabel"])
def test_class_weights_of_an_unknown_label(checkpoint, head):
    match = f"class_weights of bert_{head} names 'flood'.*labels: fire, voyage"
    with pytest.raises(ValueError, match=match):
        build(checkpoint, head, settings={"class_weights": {"fire": 2.0, "flood": 2.0}})


def test_thresholds_of_an_unknown_label(checkpoint, tmp_path):
    settings = {"thresholds": {"fires": 0.5}}
    match = "thresholds of bert_textcat names 'fires', which is .*labels: fire, voyage"
    with pytest.raises(ValueError, match=match):
        build(checkpoint, "textcat", settings=settings)
    build(checkpoint, "textcat").to_disk(tmp_path)
    config = (tmp_path / "config.cfg").read_text()
    assert config.count("thresholds = null") == 1
    changed = config.replace("thresholds = null", 'thresholds = {"fires": 0.5}')
    (tmp_path / "config.cfg").write_text(changed)
    with pytest.raises(ValueError, match=match):
        spacy.load(tmp_path)
    with pytest.raises(ValueError, match="names 'answers', .*labels: answer, no answer"):
        build(checkpoint, "qa", settings={"thresholds": {"answers": 0.5}})


def test_two_categories_at_once_need_multilabel(make_nlp):
    nlp = make_nlp("textcat")
    both = make_examples(nlp, [("It burned", {"cats": {"fire": 1.0, "voyage": 1.0}})])
    with pytest.raises(ValueError, match="bert_textcat_multilabel"):
        nlp.update(both, sgd=False)


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
    assert f"add it with nlp.get_pipe('{name}').add_label('CAR')" in messages[0]
    assert nlp.get_pipe(name).labels == labels

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = nlp.update(make_examples(nlp, [(TEXT, masked)]), sgd=False, losses={})
    nlp.get_pipe("bert_encoder").to_bytes()  # closes the step
    assert losses[0][name] == losses[1][name]
    assert losses[0][name] == pytest.approx(expected[name], rel=1e-6)
    assert losses[0]["bert_encoder"] == pytest.approx(expected["bert_encoder"], rel=1e-5)
    assert (expected[name] == 0) == (head == "textcat")


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


def test_a_device_that_is_not_supported(make_nlp, monkeypatch):
    monkeypatch.setattr(
        "spacy_bert_heads.encoder.shim.get_torch_default_device", lambda: torch.device("mps")
    )
    with pytest.raises(ValueError, match="'mps' is not supported"):
        make_nlp("textcat")
