"""Pairs with a single logit: cross-encoders from and to Hugging Face, labels that hold or don't,
and numbers for how similar two texts are."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
import torch.nn.functional as F
from checkpoints import TEXTS
from hf_models import SEQUENCES, VERDICTS, load, run, save
from pair_examples import LANG, ask, build, make_examples, train
from spacy.training import Example
from thinc.api import Adam

from spacy_bert_heads import from_hf, to_hf
from spacy_bert_heads.heads.families import IDENTITY, SIGMOID
from spacy_bert_heads.heads.nli import NONE, score_nli
from spacy_bert_heads.heads.regression import compare
from spacy_bert_heads.heads.similarity import BertSimilarity, score_similarity
from spacy_bert_heads.pairs import make_verdict

OTHER = "The boat sank."
BertSimilarity.set_extensions()


def save_cross_encoder(folder: Path, settings: dict, labels=("LABEL_0",), **more) -> str:
    name = save(folder, SEQUENCES, list(labels), **more)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return name


def settings_of(activation: str | None) -> dict:
    named = {} if activation is None else {"activation_fn": activation}
    return {"sentence_transformers": {**named, "version": "5.1.0"}}


@pytest.mark.parametrize(
    "settings, head",
    [
        (settings_of(SIGMOID), "bert_nli"),
        (settings_of(None), "bert_nli"),
        (settings_of(IDENTITY), "bert_similarity"),
        ({"sbert_ce_default_activation_function": SIGMOID}, "bert_nli"),
        ({"sbert_ce_default_activation_function": IDENTITY}, "bert_similarity"),
        ({**settings_of(IDENTITY), "problem_type": "regression"}, "bert_similarity"),
    ],
)
def test_a_cross_encoder_is_known_by_its_settings(settings, head, tmp_path):
    nlp = from_hf(save_cross_encoder(tmp_path / "hf", settings))
    assert nlp.pipe_names == ["bert_encoder", head]
    model, tokenizer = load(str(tmp_path / "hf"), SEQUENCES)
    logit = run(model, tokenizer, TEXTS[0], OTHER).logits[0, 0]
    if head == "bert_nli":
        (verdict,) = ask(nlp, TEXTS[0], hypotheses=[OTHER])._.nli
        assert verdict["scores"] == {"LABEL_0": pytest.approx(float(logit.sigmoid()), abs=1e-5)}
        assert verdict["label"] == ("LABEL_0" if logit >= 0 else NONE)
    else:
        found = ask(nlp, TEXTS[0], others=[OTHER])._.similarities
        assert found == [{"LABEL_0": pytest.approx(float(logit), abs=1e-5)}]


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("activation", [SIGMOID, IDENTITY])
def test_in_and_out_and_in_is_lossless(family, activation, tmp_path):
    settings = settings_of(activation)
    nlp = from_hf(save_cross_encoder(tmp_path / "hf", settings, family=family))
    to_hf(nlp, nlp.pipe_names[1], tmp_path / "out")
    one, _ = load(str(tmp_path / "hf"), SEQUENCES)
    other, _ = load(str(tmp_path / "out"), SEQUENCES)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["sentence_transformers"] == {"activation_fn": activation}
    is_number = activation == IDENTITY
    assert config["problem_type"] == ("regression" if is_number else "multi_label_classification")
    assert from_hf(str(tmp_path / "out")).pipe_names == nlp.pipe_names


def test_several_labels_are_a_classifier(tmp_path):
    labels = ["different", "paraphrase"]
    name = save_cross_encoder(tmp_path / "hf", settings_of(IDENTITY), labels)
    nlp = from_hf(name)
    (verdict,) = ask(nlp, TEXTS[0], hypotheses=[OTHER])._.nli
    assert sum(verdict["scores"].values()) == pytest.approx(1)
    assert list(verdict["scores"]) == labels
    to_hf(nlp, "bert_nli", tmp_path / "out")
    assert from_hf(str(tmp_path / "out")).get_pipe("bert_nli").labels == tuple(labels)
    # An encoder that was one's is none's any more.
    config = nlp.config["components"]["bert_encoder"]
    other = spacy.blank(LANG)
    other.add_pipe("bert_encoder", config={"model": {**config["model"], "name": name}})
    other.add_pipe("bert_textcat")
    other.initialize(lambda: [Example.from_dict(other.make_doc("a"), {"cats": {"a": 1, "b": 0}})])
    to_hf(other, "bert_textcat", tmp_path / "moods")
    config = json.loads((tmp_path / "moods" / "config.json").read_text())
    assert "sentence_transformers" not in config


def test_a_single_class_without_settings_is_what_the_task_says(tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, ["relevant"])
    assert from_hf(folder).pipe_names == ["bert_encoder", "bert_regression"]
    for task in ("nli", "similarity"):
        assert from_hf(folder, task=task).pipe_names == ["bert_encoder", f"bert_{task}"]
    with pytest.raises(ValueError, match="would overwrite what bert_nli writes"):
        other = save_cross_encoder(tmp_path / "other", settings_of(SIGMOID), seed=1)
        from_hf(save(tmp_path / "nli", SEQUENCES, VERDICTS), other)


# --- one label

PAIRS = {"It burned": "yes", "Nobody burned": "no", "A boat": "yes"}
ONE = [("The boat burned in Hull", {"hypotheses": PAIRS})]


@pytest.fixture(scope="module")
def one_label(checkpoint):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    nlp.add_pipe("bert_nli")
    nlp.config["initialize"]["components"] = {"bert_nli": {"labels": ["yes"]}}
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp, ONE))
    return nlp


def test_the_loss_of_one_label_is_the_binary_cross_entropy(one_label):
    head = one_label.get_pipe("bert_nli")
    assert head.labels == ("yes",)
    logits = torch.tensor([[0.3], [-2.0], [1.0]])
    loss, gradient = head.get_loss(make_examples(one_label, ONE), logits)
    gold = torch.tensor([[1.0], [0.0], [1.0]])
    assert loss == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, gold)))
    torch.testing.assert_close(gradient, (logits.sigmoid() - gold) / 3)


def test_one_label_is_learned_and_kept(one_label, tmp_path):
    nlp = train(one_label, ONE, steps=30)
    nlp.to_disk(tmp_path)
    for pipeline in (nlp, spacy.load(tmp_path)):
        doc = ask(pipeline, ONE[0][0], hypotheses=list(PAIRS))
        assert [verdict["label"] for verdict in doc._.nli] == ["yes", NONE, "yes"]
        assert all(list(verdict["scores"]) == ["yes"] for verdict in doc._.nli)
        scores = pipeline.evaluate(make_examples(pipeline, ONE))
        assert scores["nli_acc"] == 1.0
        assert scores["nli_f_per_type"] == {"yes": {"p": 1.0, "r": 1.0, "f": 1.0}}


def test_one_label_needs_pairs_that_are_not_of_it(checkpoint):
    with pytest.raises(ValueError, match="only 'yes'. Also annotate pairs for which it does not"):
        build(checkpoint, "nli", data=[("A", {"hypotheses": {"B": "yes", "C": None}})])
    with pytest.raises(ValueError, match="only the label 'yes'. Remove class_weights"):
        data = [("A", {"hypotheses": {"B": "yes"}})]
        build(checkpoint, "nli", data=data, class_weights={"yes": 2.0})


def test_scores_of_one_label_by_hand():
    nlp = spacy.blank(LANG)
    gold, predicted = nlp.make_doc("a"), nlp.make_doc("a")
    for doc in (gold, predicted):
        doc._.hypotheses = ["A", "B", "C", "D"]
    gold._.nli = [make_verdict(label) for label in ("yes", "no", "no", "yes")]
    guesses = [make_verdict(label) for label in ("yes", NONE, "yes")]
    predicted._.nli = [*guesses, None]  # the last one was too long
    scores = score_nli([Example(predicted, gold)], labels=["yes"])
    assert scores["nli_acc"] == 0.5
    assert scores["nli_f_per_type"] == {"yes": {"p": 0.5, "r": 0.5, "f": 0.5}}


def test_categories_by_one_label(checkpoint):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    head = nlp.add_pipe("bert_nli", config={"categories": {"fire": "It burned"}})
    head.add_label("entailment")
    nlp.initialize()
    doc = ask(nlp, "The boat burned", hypotheses=["It burned"])
    assert doc.cats == {"fire": pytest.approx(doc._.nli[0]["scores"]["entailment"])}


# --- numbers

SIMILAR = [
    ("Anna left Skagen", [("Anna left", {"score": 4.5}), ("A fire", {"score": 0.5, "b": -1.0})]),
    ("The boat burned", [("A fire", {"score": 3.0}), ("Hull", None)]),
    ("Hull", []),
]


def similar_examples(nlp, data=SIMILAR) -> list[Example]:
    examples = []
    for text, rows in data:
        example = Example(nlp.make_doc(text), nlp.make_doc(text))
        for doc in (example.predicted, example.reference):
            doc._.others = [other for other, _ in rows]
        example.reference._.similarities = [entry and dict(entry) for _, entry in rows]
        examples.append(example)
    return examples


@pytest.fixture(scope="module")
def similar(checkpoint):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    nlp.add_pipe("bert_similarity")
    torch.manual_seed(0)
    nlp.initialize(lambda: similar_examples(nlp))
    return nlp


def test_numbers_start_at_their_means_and_learn_by_squared_errors(similar):
    head = similar.get_pipe("bert_similarity")
    assert head.labels == ("b", "score")
    bias = head.model.shims[0].module.classifier.bias
    assert bias.tolist() == pytest.approx([-1.0, 8 / 3])
    logits = torch.tensor([[9.0, 4.0], [0.0, 0.0], [9.0, 2.0]])
    loss, gradient = head.get_loss(similar_examples(similar), logits)
    assert loss == pytest.approx((0.5**2 + 1.0 + 0.5**2 + 1.0) / 4)
    expected = torch.tensor([[0.0, -0.5], [1.0, -0.5], [0.0, -1.0]]) * 2 / 4
    torch.testing.assert_close(gradient, expected)


def test_numbers_are_learned_and_kept(similar, tmp_path):
    optimizer = torch.manual_seed(0) and similar.create_optimizer()
    optimizer.learn_rate = 3e-3
    with pytest.warns(UserWarning, match="A learning rate"):
        for _ in range(60):
            similar.update(similar_examples(similar), sgd=optimizer)
    similar.to_disk(tmp_path)
    for nlp in (similar, spacy.load(tmp_path)):
        doc = ask(nlp, SIMILAR[0][0], others=[other for other, _ in SIMILAR[0][1]])
        found = [entry["score"] for entry in doc._.similarities]
        assert found == pytest.approx([4.5, 0.5], abs=0.3)
        scores = nlp.evaluate(similar_examples(nlp))
        assert scores["similarity_mse"] < 0.1
        assert scores["similarity_per_type"]["score"]["pearson"] > 0.9


def test_scores_are_those_of_regression():
    nlp = spacy.blank(LANG)
    (example, _, _) = similar_examples(nlp)
    example.predicted._.similarities = [{"score": 1.0}, {"score": 2.0, "b": 1.0}]
    scores = score_similarity([example])
    assert scores["similarity_per_type"]["score"] == compare(
        np.array([4.5, 0.5]), np.array([1.0, 2.0])
    )
    assert scores["similarity_mse"] == pytest.approx(((3.5**2 + 1.5**2) / 2 + 4.0) / 2)
    assert scores["similarity_spearman"] == pytest.approx(-1)


def test_wrong_numbers(similar):
    for entry, message in (("4.5", "no a dict"), ({"score": float("nan")}, "not a finite number")):
        example = similar_examples(similar)[0]
        example.reference._.similarities = [entry, None]
        with pytest.raises(ValueError, match=message):
            similar.get_pipe("bert_similarity").update([example])


def test_several_heads_add_their_numbers(checkpoint):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    for label in ("b", "score"):
        nlp.add_pipe("bert_similarity", name=f"of_{label}")
        given = {f"of_{label}": {"labels": [label]}}
        nlp.config["initialize"]["components"] = nlp.config["initialize"]["components"] | given
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # each has labels of its own
        nlp.initialize(lambda: similar_examples(nlp))
        nlp.update(similar_examples(nlp), sgd=Adam(1e-4, use_averages=False))
    doc = nlp.make_doc(SIMILAR[0][0])
    for others in (["She left."], ["It burned.", "It rained."], []):
        doc._.others = others
        for _ in range(2):
            found = nlp(doc)._.similarities
            assert [sorted(entry) for entry in found] == [["b", "score"]] * len(others)
