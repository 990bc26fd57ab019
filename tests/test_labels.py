"""Where labels come from, and what a Doc without some of the annotation is scored and teaches."""

import pytest
import srsly
from conftest import make_examples
from thinc.api import Adam
from three_heads import CATS, DATA, ENTS, HEADS, TEXTS, build, weights_of


@pytest.fixture(scope="module")
def trained(three_heads):
    return three_heads


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
