"""Numbers for texts: learned, scored, stored, converted."""

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
import torch.nn.functional as F
from checkpoints import TEXTS
from conversion import jsonl, samples
from losses import assert_same_loss, get_loss, in_torch
from regression_cases import DATA, LANG, NLP, build, make_example, make_examples, values
from scipy import stats
from sklearn.metrics import mean_squared_error
from spacy.cli.train import train as spacy_train
from spacy.tokens import Doc, DocBin
from thinc.api import Adam
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.heads.regression import BertRegression
from spacy_bert_heads.init_config import init_config


def module_of(nlp):
    return shim_of(nlp.get_pipe("bert_regression").model).module


def make_head(*labels: str) -> BertRegression:
    head = NLP.create_pipe("bert_regression")
    for label in labels:
        head.add_label(label)
    return head


# --- learning


@pytest.fixture(scope="module")
def trained(checkpoint):
    nlp = build(checkpoint)
    optimizer = Adam(3e-3, use_averages=False)
    examples = make_examples(nlp)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")  # a random BERT needs it
        for _ in range(80):
            nlp.update(examples, sgd=optimizer)
        nlp.get_pipe("bert_encoder").predict([])  # takes the last step
    return nlp


def test_a_few_texts_are_learned_saved_and_loaded(trained, tmp_path):
    """Several values, of which some Docs have only one: the other is predicted all the same."""
    found = values(trained, [text for text, _ in DATA])
    for (_, gold), predicted in zip(DATA, found, strict=True):
        assert set(predicted) == {"rating", "length"}
        assert {label: predicted[label] for label in gold} == pytest.approx(gold, abs=0.1)
    trained.to_disk(tmp_path / "nlp")
    again = spacy.load(tmp_path / "nlp")
    assert values(again, [text for text, _ in DATA]) == found
    assert again.get_pipe("bert_regression").labels == ("length", "rating")
    packed = spacy.blank(LANG).from_config(trained.config).from_bytes(trained.to_bytes())
    assert values(packed, [text for text, _ in DATA]) == found


def test_predictions_stand_beside_those_of_others(trained):
    doc = trained.make_doc(DATA[0][0])
    doc._.regression["other"] = 7.0
    assert set(trained(doc)._.regression) == {"other", "rating", "length"}
    assert doc._.regression["other"] == 7.0
    assert all(type(value) is float for value in doc._.regression.values())


def test_workers(trained):
    texts = [text for text, _ in DATA] * 3
    found = [dict(doc._.regression) for doc in trained.pipe(texts, n_process=2, batch_size=4)]
    for one, other in zip(found, values(trained, texts), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_the_classifier_starts_at_the_mean_of_what_is_annotated(checkpoint):
    nlp = build(checkpoint)
    bias = {"length": 0.5, "rating": 8.5 / 3}
    assert module_of(nlp).classifier.bias.tolist() == pytest.approx(list(bias.values()))
    for found in values(nlp, TEXTS):
        assert found == pytest.approx(bias, abs=1.5)


def test_labels_are_given_or_found(checkpoint):
    assert build(checkpoint).get_pipe("bert_regression").label_data == ["length", "rating"]
    with pytest.warns(UserWarning, match="bert_regression has no label 'length'"):
        nlp = build(checkpoint, labels=["new", "rating"])
    assert nlp.get_pipe("bert_regression").labels == ("new", "rating")
    assert module_of(nlp).classifier.bias.tolist() == pytest.approx([0.0, 8.5 / 3])
    with pytest.raises(ValueError, match="bert_regression has no labels"):
        build(checkpoint, data=DATA[-1:])


@pytest.mark.parametrize("labels", [("A",), ("A", "B", "C")])
def test_loss(labels):
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(6, len(labels))).astype("f")
    gold[rng.random(gold.shape) < 0.4] = np.nan
    gold[0] = 1.5  # each label is annotated at least once
    logits = rng.normal(size=gold.shape).astype("f")
    rows = [dict(zip(labels, row, strict=True)) for row in gold.tolist()]
    rows = [{label: v for label, v in row.items() if not np.isnan(v)} for row in rows]
    examples = [make_example(NLP, "a", row) for row in rows]
    known = torch.from_numpy(~np.isnan(gold))
    target = torch.from_numpy(gold).double()
    expected = in_torch(lambda x: F.mse_loss(x[known], target[known]), logits)
    assert_same_loss(get_loss(make_head(*labels), examples, logits), expected)


def test_what_is_not_annotated_is_not_learned():
    examples = [make_example(NLP, "a", {"B": 1.0}), make_example(NLP, "b", {"X": 2.0})]
    head = make_head("A", "B")
    with pytest.warns(UserWarning, match="bert_regression has no label 'X'"):
        loss, gradient = get_loss(head, examples, np.asarray([[5, 3], [1, 1]], dtype="f"))
    assert loss == pytest.approx(4.0)
    assert gradient.tolist() == [[0.0, 4.0], [0.0, 0.0]]
    loss, gradient = get_loss(head, examples[1:], np.asarray([[5, 3]], dtype="f"))
    assert loss == 0.0 and not gradient.any()
    assert [head.has_gold(one) for one in (*examples, make_example(NLP, "c", None))] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -np.inf, None, "4.5", True, 10**400, 1e39, [1.0]]
)
def test_bad_values(checkpoint, value):
    data = [*DATA, ("The ship sank off Hull", {"rating": 2.0, "length": value})]
    with pytest.raises(ValueError, match=r"number: 'length' is .* of 'The ship sank off Hull …'"):
        build(checkpoint, data=data)
    with pytest.raises(ValueError, match="number: 'length' is"):
        build(checkpoint, data=data, labels=["rating"])


def test_a_value_without_a_label(checkpoint):
    nlp = build(checkpoint)
    example = make_example(nlp, "Hull", None)
    example.reference._.regression = 4.5
    with pytest.raises(ValueError, match="doc._.regression must be a dict, not 4.5"):
        nlp.initialize(lambda: [example])


@pytest.mark.parametrize("number", [np.float32(2.5), np.int64(2), 2, 2.5])
def test_numbers_of_any_kind(number):
    head = make_head("A")
    loss, _ = get_loss(head, [make_example(NLP, "a", {"A": number})], np.zeros((1, 1), dtype="f"))
    assert loss == pytest.approx(float(number) ** 2)


# --- scores


def score(rows: list[tuple[dict, dict]]) -> dict:
    examples = [make_example(NLP, "a", gold, predicted) for gold, predicted in rows]
    return make_head("A", "B").score(examples)


def test_scores_are_those_of_scipy_and_sklearn():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 5, size=(20, 2)).astype(float)  # with ties
    guess = gold + rng.normal(size=gold.shape)
    guess[:4] = guess[4:8]
    dicts = [[dict(zip("AB", row, strict=True)) for row in part.tolist()] for part in (gold, guess)]
    del dicts[0][3]["B"]
    scores = score(list(zip(*dicts, strict=True)))
    figures = {}
    for i, label in enumerate("AB"):
        x, y = gold[:, i], guess[:, i]
        if label == "B":
            x, y = np.delete(x, 3), np.delete(y, 3)
        figures[label] = {
            "mse": mean_squared_error(x, y),
            "pearson": stats.pearsonr(x, y).statistic,
            "spearman": stats.spearmanr(x, y).statistic,
        }
        assert scores["regression_per_type"][label] == pytest.approx(figures[label])
    for name in ("mse", "pearson", "spearman"):
        expected = (figures["A"][name] + figures["B"][name]) / 2
        assert scores[f"regression_{name}"] == pytest.approx(expected)


def test_correlations_that_are_not_defined():
    assert set(score([]).values()) == {None}
    assert set(score([({}, {"A": 1.0})]).values()) == {None}
    scores = score([({"A": 0.1}, {"A": 1.0}), ({"A": 0.1, "B": 1.0}, {"A": 2.0, "B": 1.0})])
    assert scores["regression_pearson"] is None and scores["regression_spearman"] is None
    assert scores["regression_mse"] == pytest.approx((0.9**2 + 1.9**2) / 4)
    assert scores["regression_per_type"]["B"] == {"mse": 0.0, "pearson": None, "spearman": None}
    # A label whose values are all equal is left out of the mean.
    rows = [({"A": 1.0, "B": x}, {"A": y, "B": 2 * x}) for x, y in [(1.0, 2.0), (2.0, 3.0)]]
    scores = score(rows)
    assert scores["regression_pearson"] == pytest.approx(1.0)
    assert scores["regression_spearman"] == pytest.approx(1.0)
    # As are predictions that are all equal.
    assert score([({"A": x}, {"A": 1.0}) for x in (1.0, 2.0)])["regression_pearson"] is None


def test_only_annotated_docs_are_scored(trained):
    scores = trained.evaluate(make_examples(trained))
    assert scores["regression_mse"] < 0.01
    assert scores["regression_pearson"] > 0.99 and scores["regression_spearman"] > 0.99
    assert list(scores["regression_per_type"]) == ["length", "rating"]


def test_heads_with_labels_of_their_own_share_one_score(checkpoint):
    """Each Doc is annotated for one of two heads, and either gives the scores of both."""
    nlp = build(checkpoint, labels=["rating"])
    nlp.add_pipe("bert_regression", name="other").add_label("length")
    rows = [({"rating": 1.0}, 2.0), ({"rating": 3.0}, 2.0), ({"length": 5.0}, 2.0)]
    made = [
        make_example(nlp, "a", gold, {"rating": guess, "length": guess}) for gold, guess in rows
    ]
    expected = {
        "regression_pearson": None,
        "regression_spearman": None,
        "regression_mse": (1.0 + 9.0) / 2,
        "regression_per_type": {
            "length": {"mse": 9.0, "pearson": None, "spearman": None},
            "rating": {"mse": 1.0, "pearson": None, "spearman": None},
        },
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("bert_regression", "other"):
            assert nlp.get_pipe(name).score(made) == expected


# --- on Docs


def through_docbin(doc: Doc) -> Doc:
    content = DocBin(store_user_data=True, docs=[doc]).to_bytes()
    return next(DocBin().from_bytes(content).get_docs(spacy.blank(LANG).vocab))


def through_bytes(doc: Doc) -> Doc:
    return Doc(spacy.blank(LANG).vocab).from_bytes(doc.to_bytes())


def through_pickle(doc: Doc) -> Doc:
    return pickle.loads(pickle.dumps(doc))


@pytest.mark.parametrize("way", [through_docbin, through_bytes, through_pickle, Doc.copy])
def test_gold_values_on_other_docs(way):
    doc = NLP.make_doc("Anna left")
    doc._.regression = {"rating": 4.5, "größe": -0.25}
    again = way(doc)
    assert again._.regression == {"rating": 4.5, "größe": -0.25}
    again._.regression["rating"] = 1.0
    assert type(again._.regression) is dict


def test_a_doc_without_values_stays_as_it_is():
    example = make_example(NLP, "Anna left", None)
    head = make_head("A")
    assert not head.has_gold(example) and not head.score([example])["regression_per_type"]
    assert example.reference.user_data == example.predicted.user_data == {}
    assert example.reference._.regression == {}


def test_the_reader_makes_gold_values_usable(tmp_path):
    docs = [example.reference for example in make_examples(NLP)]
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "a.spacy")
    Doc.remove_extension("regression")
    examples = list(BertCorpus(tmp_path / "a.spacy")(spacy.blank(LANG)))
    assert [dict(eg.reference._.regression) for eg in examples] == [gold for _, gold in DATA]
    assert not any(eg.predicted._.regression for eg in examples)


# --- files and commands


def test_convert(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text(
        jsonl(
            {"text": "one", "regression": {"rating": 4.5, "length": 2}},
            {"text": "two", "regression": -1},
            {"text": "three", "regression": {"rating": None}, "label": "a"},
            {"text": "four", "regression": None},
            {"text": "five", "regression": {"rating": True}},
            {"text": "six", "regression": float("nan")},
            {"text": "seven", "regression": {"rating": "4.5"}},
            {"text": "eight", "regression": [1.0]},
            {"text": "nine", "regression": {"rating": float("-inf")}},
            {"text": "ten", "regression": {"": 1.0}},
        )
    )
    if Doc.has_extension("regression"):
        Doc.remove_extension("regression")
    report = convert(source, tmp_path / "a.spacy", lang=LANG)
    docs = list(DocBin().from_disk(tmp_path / "a.spacy").get_docs(NLP.vocab))
    assert [doc._.regression for doc in docs] == [
        {"rating": 4.5, "length": 2.0},
        {"score": -1.0},
        {},
        {},
    ]
    assert (report.kept, report.rejected) == (4, 6)
    assert report.labels == {"rating": 1, "length": 1, "score": 1, "a": 1}
    assert report.reasons == {"not a finite number": 5, "no label": 1}
    assert samples(report) == [
        "a.jsonl:5: not a finite number: 'rating' is True",
        "a.jsonl:6: not a finite number: 'score' is nan",
        "a.jsonl:7: not a finite number: 'rating' is '4.5'",
        "a.jsonl:8: not a finite number: 'score' is [1.0]",
        "a.jsonl:9: not a finite number: 'rating' is -inf",
    ]


def test_from_records_to_a_trained_pipeline_and_its_scores(checkpoint, tmp_path):
    """As the commands take it."""

    def bert(*words: object) -> str:
        result = CliRunner().invoke(bert_app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.output

    records = [{"text": text, "regression": gold} for text, gold in DATA if gold] * 4
    (tmp_path / "a.jsonl").write_text(jsonl(*records))
    data, config = tmp_path / "a.spacy", tmp_path / "config.cfg"
    assert "Labels: rating 12, length 12" in bert("convert", tmp_path / "a.jsonl", data)
    options = ("--heads", "regression", "--name", checkpoint, "--train", data, "--dev", data)
    bert("init-config", config, *options)
    overrides = {
        "components.bert_encoder.model.window": 64,
        "components.bert_encoder.model.stride": 48,
        "training.max_steps": 40,
        "training.eval_frequency": 20,
        "training.optimizer.learn_rate.initial_rate": 0.002,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")
        spacy_train(Path(config), tmp_path / "out", overrides=overrides)
    best = tmp_path / "out" / "model-best"
    assert spacy.load(best).meta["performance"]["regression_pearson"] > 0.9
    lines = bert("evaluate", best, data, "--per-type", "--output", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    rows = {line.rsplit(maxsplit=1)[0]: line.split()[-1] for line in lines.splitlines() if line}
    assert rows["regression, Pearson"] == f"{scores['regression_pearson']:.4f}"
    assert rows["regression, mean squared error"] == f"{scores['regression_mse']:.4f}"
    header = next(line.split() for line in lines.splitlines() if "mse" in line)
    assert header == ["regression", "mse", "pearson", "spearman"]


def test_init_config(checkpoint):
    config = init_config(["regression", "ner"], name=checkpoint)
    assert config["nlp"]["pipeline"] == ["bert_encoder", "bert_regression", "bert_ner"]
    assert config["components"]["bert_regression"]["model"]["learning_rate_multiplier"] == 10.0
    weights = config["training"]["score_weights"]
    assert (weights["regression_pearson"], weights["regression_spearman"]) == (0.25, 0.25)
    assert weights["regression_mse"] is None
