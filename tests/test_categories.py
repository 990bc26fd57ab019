"""What may be in `doc.cats`, and several text classifiers in one pipeline."""

import pickle
import warnings

import numpy as np
import pytest
import spacy
import torch
from arrays import floats
from head_cases import doc_of, make_head, random_logits
from hypothesis import example, given
from hypothesis import strategies as st
from losses import assert_same_loss, get_loss
from pair_examples import LANG
from spacy.language import Language
from spacy.scorer import Scorer
from spacy.training import Example
from thinc.api import Adam

from spacy_bert_heads.heads.categories import score_choices

KINDS = ["textcat", "textcat_multilabel"]
TEXT = "Anna left Hull"
TEXTS = [TEXT, "The boat burned", "Skagen on Tuesday", "Grete", "in Hull Hull Hull"]
VALUES = st.one_of(
    st.floats(), st.integers(), st.text(max_size=3), st.none(), st.lists(st.integers(), max_size=2)
)


def with_cats(cats: dict) -> Example:
    """An example whose annotation nobody has looked at, as of a file."""
    predicted = set_cats(doc_of(TEXT), {"A": 0.25, "B": 0.75})
    return Example(predicted, set_cats(doc_of(TEXT), cats))


def set_cats(doc, cats: dict):
    doc.cats = cats
    return doc


def build(checkpoint: str, data: list[dict], *heads: tuple, initialize: bool = True) -> Language:
    """A pipeline of text classifiers: (factory, name, labels)."""
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    for factory, name, labels in heads:
        nlp.add_pipe(factory, name=name)
        if labels:
            named = nlp.config["initialize"]["components"] | {name: {"labels": list(labels)}}
            nlp.config["initialize"]["components"] = named
    if initialize:
        torch.manual_seed(0)
        nlp.initialize(lambda: examples(nlp, data))
    return nlp


def examples(nlp: Language, data: list[dict]) -> list[Example]:
    made = []
    for text, cats in zip(TEXTS, data, strict=False):
        made.append(Example(nlp.make_doc(text), set_cats(nlp.make_doc(text), cats)))
    return made


# --- values


@pytest.mark.parametrize("kind", KINDS)
@given(value=VALUES)
@example(100)
@example(-1)
@example(float("nan"))
@example(None)
@example("1")
@example(1.0000001)
@example(0.4)
def test_a_value_is_from_0_to_1_or_an_error_that_names_the_doc(kind, value):
    head = make_head(kind, "AB")
    eg = with_cats({"A": value, "B": 0.0})
    if isinstance(value, (int, float)) and 0 <= value <= 1:
        loss, _ = get_loss(head, [eg], random_logits(1, 2))
        # Exclusive ones: it is not known which one holds, unless they sum to 1.
        assert (loss > 0) == (kind != "textcat" or value > 0.5)
        head.score([eg])
        return
    message = rf"(?s)bert_{kind} needs 1 .* but 'A' is .* in 'Anna left Hull …'. Fix doc.cats"
    with pytest.raises(ValueError, match=message):
        head.initialize(lambda: [with_cats({"A": 1.0, "B": 0.0}), eg])
    with pytest.raises(ValueError, match=message):
        get_loss(head, [eg], random_logits(1, 2))
    with pytest.raises(ValueError, match=message):
        head.score([eg])


@pytest.mark.parametrize("value", [True, False, np.float32(1), np.int64(0), np.bool_(True), -0.0])
def test_numbers_of_other_types_are_values(value):
    head = make_head("textcat", "AB")
    found = get_loss(head, [with_cats({"A": value, "B": 0.0})], floats([0.5, -1]))
    expected = get_loss(head, [with_cats({"A": float(value), "B": 0.0})], floats([0.5, -1]))
    assert_same_loss(found, expected)


def test_of_exclusive_categories_one_holds():
    head = make_head("textcat", "AB")
    message = r"one category, but several hold in 'Anna left Hull …': A, B. .* bert_textcat_multi"
    with pytest.raises(ValueError, match=message):
        head.initialize(lambda: [with_cats({"A": 1, "B": 1})])
    with pytest.raises(ValueError, match=message):
        head.score([with_cats({"A": 1, "B": 1})])
    head.score([with_cats({"A": 1, "B": 0, "other": 1})])


def test_values_of_categories_of_others_are_not_looked_at(checkpoint):
    data = [{"A": 1.0, "B": 0.0, "price": 350.0}]
    nlp = build(checkpoint, data, ("bert_textcat", "topic", "AB"))
    with pytest.warns(UserWarning, match="has no label 'price'"):
        nlp.update(examples(nlp, data), sgd=False)
    with pytest.raises(ValueError, match="'price' is 350.0"):
        build(checkpoint, data, ("bert_textcat", "topic", ""))


# --- several text classifiers

KIND = ({"sea": 1.0, "fire": 0.0}, {"sea": 0.0, "fire": 1.0})
MOOD = ({"glad": 1.0, "sad": 0.0}, {"glad": 0.0, "sad": 1.0})
HURT = ({"hurt": 1.0, "lost": 0.0}, {"hurt": 1.0, "lost": 1.0})
TWO = (("bert_textcat", "kind", ["sea", "fire"]), ("bert_textcat", "mood", ["glad", "sad"]))


def trained(checkpoint: str, data: list[dict], *heads: tuple) -> Language:
    nlp = build(checkpoint, data, *heads)
    optimizer = Adam(3e-3, use_averages=False)
    for _ in range(40):
        nlp.update(examples(nlp, data), sgd=optimizer)
    return nlp


@pytest.mark.parametrize("own_encoders", [False, True])
def test_two_text_classifiers_leave_each_other_alone(checkpoint, own_encoders):
    data = [*KIND, *MOOD, {**KIND[0], **MOOD[1]}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="A learning rate")
        nlp = trained(checkpoint, data, *TWO)
        if own_encoders:
            for _, name, _ in TWO:
                nlp.replace_listeners("bert_encoder", name, ["model.tok2vec"])
            nlp.remove_pipe("bert_encoder")
        scores = nlp.evaluate(examples(nlp, data))
    assert scores["cats_score"] == scores["kind_cats_score"] == scores["mood_cats_score"] == 1.0
    assert scores["kind_cats_score_desc"] == "macro F"
    assert scores["cats_score_desc"] == "mean of macro F of kind, macro F of mood"
    assert scores["cats_f_per_type"].keys() == {"sea", "fire", "glad", "sad"}


def test_scores_are_those_of_each_and_their_mean(checkpoint):
    heads = (TWO[0], ("bert_textcat_multilabel", "harm", ["hurt", "lost"]))
    nlp = build(checkpoint, [*KIND, *HURT], *heads)
    data = [{**KIND[0], **HURT[1]}, KIND[1], {"hurt": 0.0}, {"lost": 1.0}, {}]
    scores = nlp.evaluate(examples(nlp, data))
    alone = {}
    for _, name, labels in heads:
        with nlp.select_pipes(enable=["bert_encoder", name]):
            own = [{k: v for k, v in cats.items() if k in labels} for cats in data]
            alone[name] = nlp.evaluate(examples(nlp, own))
    for key in ("cats_score", "cats_micro_f", "cats_macro_p", "cats_macro_auc"):
        for name, expected in alone.items():
            assert scores[f"{name}_{key}"] == pytest.approx(expected[key])
        assert scores[key] == pytest.approx((alone["kind"][key] + alone["harm"][key]) / 2)
    for key in ("cats_f_per_type", "cats_auc_per_type"):
        assert scores[key] == {**alone["kind"][key], **alone["harm"][key]}
    only_kind = nlp.evaluate(examples(nlp, [KIND[0], {}]))
    assert only_kind["cats_score"] == only_kind["kind_cats_score"]
    assert "harm_cats_score" not in only_kind


def test_an_unknown_category_is_wrong_for_the_classifier_of_its_doc(checkpoint):
    nlp = build(checkpoint, [*KIND, *MOOD], *TWO)
    made = examples(nlp, [*KIND, *MOOD, {"sea": 0.0, "fire": 0.0, "new": 1.0}])
    for one in made:
        set_cats(one.predicted, {"sea": 0.9, "fire": 0.1, "glad": 0.9, "sad": 0.1})
    with pytest.warns(UserWarning, match=r"categories that kind does not have, .* new \(1\)"):
        scores = nlp.get_pipe("kind").score(made)
    assert scores["kind_cats_acc"] == pytest.approx(1 / 3)
    assert nlp.get_pipe("mood").score(made)["mood_cats_acc"] == 0.5


def test_one_text_classifier_is_scored_as_ever(checkpoint):
    nlp = build(checkpoint, list(KIND), TWO[0])
    made = examples(nlp, list(KIND))
    scores = nlp.evaluate(made)
    assert not any("kind" in key for key in scores)
    made = [Example(nlp(eg.x), eg.y) for eg in made]
    expected = Scorer.score_cats(made, "cats", labels=["sea", "fire"], multi_label=False)
    assert {key: scores[key] for key in expected} == expected


def test_weights_of_the_config_fit_what_is_reported(checkpoint):
    nlp = build(checkpoint, [*KIND, *MOOD], *TWO)
    weights = nlp.config["training"]["score_weights"]
    scores = nlp.evaluate(examples(nlp, [*KIND, *MOOD]))
    assert weights["cats_score"] == 1.0
    assert all(key in scores for key, weight in weights.items() if weight)


@pytest.mark.parametrize("other", ["bert_textcat_multilabel", "textcat", "textcat_multilabel"])
@pytest.mark.parametrize("is_first", [True, False])
def test_clashing_labels_are_rejected(checkpoint, other, is_first):
    heads = [("bert_textcat", "kind", ["sea", "fire"]), (other, "other", ["fire", "sad"])]
    data = [{**KIND[0], "sad": 0.0}, {**KIND[1], "sad": 0.0}]
    message = r"both have the category 'fire'.*\[initialize.components.kind.labels\]"
    with pytest.raises(ValueError, match=message):
        nlp = build(checkpoint, data, *heads[:: 1 if is_first else -1])
        nlp(TEXT)  # where spaCy's comes last, it has labels only after ours was initialised


def test_sourced_classifiers_that_clash_are_rejected_when_they_are_used(checkpoint, tmp_path):
    nlp = build(checkpoint, list(KIND), TWO[0])
    own = build(checkpoint, list(KIND), ("bert_textcat_multilabel", "other", ["fire"]))
    own.replace_listeners("bert_encoder", "other", ["model.tok2vec"])
    nlp.add_pipe("other", source=own)
    with pytest.raises(ValueError, match="kind and other both have the category 'fire'"):
        nlp(TEXT)
    nlp.to_disk(tmp_path / "nlp")
    with pytest.raises(ValueError, match="kind and other both have the category 'fire'"):
        spacy.load(tmp_path / "nlp")(TEXT)
    one = spacy.load(tmp_path / "nlp", disable=["other"])
    assert one(TEXT).cats.keys() == {"sea", "fire"}
    with pytest.raises(ValueError, match="kind and other both have the category 'fire'"):
        one.enable_pipe("other")
        one(TEXT)


def test_a_frozen_classifier_s_labels_are_known(checkpoint):
    nlp = build(checkpoint, [*KIND, *MOOD], *TWO)
    with nlp.select_pipes(disable="mood"), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="A learning rate")
        nlp.update(examples(nlp, [*KIND, *MOOD]), sgd=Adam(1e-5, use_averages=False))
        with pytest.raises(UserWarning, match="kind has no label 'X'"):
            nlp.update(examples(nlp, [{"X": 1.0}]), sgd=False)


def test_a_pickled_pipeline_goes_on(checkpoint):
    nlp = build(checkpoint, [*KIND, *MOOD], *TWO)
    assert pickle.loads(pickle.dumps(nlp))(TEXT).cats == nlp(TEXT).cats


# --- settings


def test_a_positive_label_s_f_is_the_score(checkpoint, tmp_path):
    nlp = build(checkpoint, list(KIND), TWO[0], initialize=False)
    settings = {"labels": ["sea", "fire"], "positive_label": "fire"}
    nlp.config["initialize"]["components"] = {"kind": settings}
    nlp.initialize(lambda: examples(nlp, list(KIND)))
    nlp.to_disk(tmp_path / "nlp")
    for pipeline in (nlp, spacy.load(tmp_path / "nlp")):
        scores = pipeline.evaluate(examples(pipeline, [*KIND, KIND[0]]))
        assert scores["cats_score_desc"] == "F (fire)"
        assert scores["cats_score"] == scores["cats_f_per_type"]["fire"]["f"]
        assert scores["cats_score"] != scores["cats_macro_f"]


@pytest.mark.parametrize(
    "factory, labels, positive",
    [
        ("bert_textcat", ["sea", "fire"], "X"),
        ("bert_textcat", ["sea", "fire", "hurt"], "fire"),
        ("bert_textcat_multilabel", ["sea", "fire"], "fire"),
    ],
)
def test_a_positive_label_is_one_of_two(checkpoint, factory, labels, positive):
    nlp = build(checkpoint, list(KIND), (factory, "kind", labels), initialize=False)
    settings = {"labels": labels, "positive_label": positive}
    nlp.config["initialize"]["components"] = {"kind": settings}
    with pytest.raises(ValueError, match=f"positive_label of kind is '{positive}'"):
        nlp.initialize(lambda: examples(nlp, list(KIND)))


CATS = st.sampled_from([{}, {"A": 1.0, "B": 0.0, "C": 0.0}, {"B": 1.0}, {"A": 0.0, "C": 1.0}])


@given(
    st.lists(
        st.tuples(CATS.filter(bool), st.dictionaries(st.sampled_from("ABC"), st.floats(0, 1))),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
def test_f_scores_of_choices_are_those_of_spacy(rows, binary):
    """As far as spaCy's scorer can compute them: not with a prediction that was left out."""
    labels, positive = ("AB", "B") if binary else ("ABC", None)
    examples, choices = [], []
    for gold, guess in rows:
        gold, guess = ({k: v for k, v in cats.items() if k in labels} for cats in (gold, guess))
        if any(gold.values()) and guess:
            example = Example(set_cats(doc_of("a"), guess), set_cats(doc_of("a"), gold))
            examples.append(example)
            choices += make_head("textcat", labels).decisions(example)
    expected = Scorer.score_cats(
        examples, "cats", labels=labels, multi_label=False, positive_label=positive
    )
    found = score_choices(choices, labels, positive)
    assert found.keys() == {key for key in expected if "auc" not in key}
    by_label = expected["cats_f_per_type"]
    assert found.pop("cats_f_per_type") == {k: pytest.approx(v) for k, v in by_label.items()}
    assert found.pop("cats_score_desc") == expected["cats_score_desc"]
    assert found == pytest.approx({key: expected[key] for key in found})


def test_a_choice_that_was_left_out_is_a_miss():
    head = make_head("textcat", ("good", "bad", "so"), thresholds={"good": 0.9, "bad": 0.0})
    examples = [with_cats({label: 1.0}) for label in ("good", "good", "bad", "so")]
    examples.append(with_cats({"good": 0.0, "bad": 0.0, "so": 0.0}))  # not annotated
    docs = [set_cats(example.predicted, {}) for example in examples]
    p = [[0.95, 0.05, 0], [0.8, 0.2, 0], [0.6, 0.4, 0], [0, 1, 0], [0, 1, 0]]
    head.set_annotations(docs, torch.tensor(p).clamp(min=1e-9).log())
    assert [bool(doc.cats) for doc in docs] == [True, False, False, True, True]
    scores = head.score(examples)
    # good: one right, one missed; bad: one missed, one wrong; so: one missed.
    assert scores["cats_f_per_type"]["good"] == {"p": 1.0, "r": 0.5, "f": pytest.approx(2 / 3)}
    assert scores["cats_f_per_type"]["bad"] == {"p": 0.0, "r": 0.0, "f": 0.0}
    assert scores["cats_score"] == pytest.approx(2 / 9)
    assert scores["cats_micro_r"] == scores["cats_acc"] == 0.25
    assert scores["cats_micro_p"] == 0.5


def test_exclusive_categories_of_which_none_holds_are_not_annotated():
    head = make_head("textcat")
    example = with_cats({"A": 0.0, "B": 0.0})
    set_cats(example.predicted, {"A": 0.9, "B": 0.1})
    assert not head.has_gold(example) and head.decisions(example) == []
    assert head.score([example])["cats_acc"] is None
    assert make_head("textcat_multilabel").has_gold(example)


def test_a_category_that_the_head_does_not_have_is_wrong():
    head = make_head("textcat")
    examples = [with_cats({"B": 1.0}), with_cats({"weather": 1.0}), with_cats({})]
    with pytest.warns(
        UserWarning, match=r"1 Docs have categories .* wrong: weather \(1\). Its lab"
    ):
        scores = head.score(examples)
    assert scores["cats_acc"] == 0.5
    assert scores["cats_f_per_type"]["B"] == {"p": 0.5, "r": 1.0, "f": pytest.approx(2 / 3)}
    assert scores["cats_score"] == pytest.approx(1 / 3)
    assert head.tally(examples[1]) == {
        "B": {"tp": 0, "fp": 1, "fn": 0},
        "": {"tp": 0, "fp": 0, "fn": 0, "unknown": 1},
    }


@pytest.mark.parametrize(
    "cats, is_known",
    [
        ({"A": 0.2}, False),
        ({"A": 0.3, "B": 0.3}, False),
        ({"A": 0.9}, True),
        ({"A": 0.5, "B": 0.5}, True),
    ],
)
def test_values_that_leave_open_which_one_holds(cats, is_known):
    head = make_head("textcat", "AB")
    assert head.has_gold(with_cats(cats)) == is_known
    assert bool(head.decisions(with_cats(cats))) == is_known


def test_areas_under_curves_are_those_of_all_probabilities():
    """Gold values count from 0.5 on, as everywhere; what was left out is no prediction."""
    rows = [(1.0, 0.8), (0.9, 0.85), (0.2, 0.3), (0.0, 0.1)]
    head = make_head("textcat_multilabel", "AB")
    examples = [with_cats({"A": gold, "B": gold}) for gold, _ in rows]
    logits = torch.logit(torch.tensor([[p, p] for _, p in rows]))
    found = {}
    for thresholds in (None, {"A": 0.9}):
        head.cfg["thresholds"] = thresholds
        head.set_annotations([eg.predicted for eg in examples], logits)
        found[thresholds is None] = head.score(examples)
    assert found[True]["cats_score"] == found[False]["cats_score"] == 1.0
    assert [found[key]["cats_f_per_type"]["A"]["f"] for key in (True, False)] == [1.0, 0.0]
    assert found[True]["cats_micro_p"] == 1.0 and found[True]["cats_micro_r"] == 1.0


def test_a_threshold_of_1_is_never_reached():
    head = make_head("textcat", "AB", thresholds={"A": 1.0})
    doc = doc_of(TEXT)
    head.set_annotations([doc], torch.tensor([[40.0, 0.0]]))  # whose probability rounds to 1
    assert doc.cats == {} and [one["label"] for one in doc._.abstained] == ["A"]
