"""Several heads of one kind, several encoders in one pipeline."""

import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from conftest import make_examples
from three_heads import (
    DATA,
    LANG,
    TEXTS,
    annotate,
    annotations,
    build,
    close,
    gold_of,
    listener,
    through_disk,
    train,
    weights_of,
)


@pytest.fixture(scope="module")
def trained(three_heads):
    return three_heads


@pytest.fixture(scope="module")
def expected(three_heads_results):
    return three_heads_results


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
