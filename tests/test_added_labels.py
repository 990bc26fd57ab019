"""Labels that are added to trained heads: what was learned stays, what is new is learned."""

import copy
import pickle
import warnings
from math import log

import pytest
import spacy
import torch
import torch.nn.functional as F
from pair_examples import LANG, make_example
from spacy.training import Example
from thinc.api import Adam

from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.heads.imitation import binary_divergence, distance, divergence
from spacy_bert_heads.heads.outputs import TokenLogits, tensors_of
from spacy_bert_heads.heads.regression import BertRegression
from spacy_bert_heads.heads.similarity import BertSimilarity

BertRegression.set_extensions()
BertSimilarity.set_extensions()
DATA = [
    (
        "Anna left Skagen on Tuesday",
        {
            "entities": [(0, 4, "VESSEL"), (10, 16, "PLACE")],
            "cats": {"voyage": 1.0, "fire": 0.0},
            "hypotheses": {"She left": "entailment", "It burned": "neutral"},
            "tags": ["NNP", "VBD", "NNP", "IN", "NNP"],
            "numbers": {"rating": 4.5, "length": -1.0},
        },
    ),
    (
        "The boat burned in Hull",
        {
            "entities": [(19, 23, "PLACE")],
            "cats": {"voyage": 0.0, "fire": 1.0},
            "hypotheses": {"It burned": "entailment", "Why": "neutral"},
            "tags": ["DT", "NN", "VBD", "IN", "NNP"],
            "numbers": {"rating": 1.0, "length": 2.0},
        },
    ),
]
NEW = (
    "Nobody can swim",
    {
        "entities": [(0, 6, "NEW")],
        "cats": {"voyage": 0.0, "fire": 0.0, "NEW": 1.0},
        "hypotheses": {"Why": "NEW"},
        "tags": ["NEW", "NEW", "NEW"],
        "numbers": {"rating": 2.0, "NEW": 3.0},
    },
)
HEADS = {
    "ner": {},
    "ner-bilou": {"scheme": "BILOU", "spans_key": "bilou"},
    "ner-crf": {"loss": "crf", "spans_key": "crf"},
    "tagger": {},
    "textcat": {},
    "textcat_multilabel": {},
    "regression": {},
    "nli": {},
    "similarity": {},
}
# Two text classifiers of one pipeline can't have the same labels.
TOGETHER = [kind for kind in HEADS if kind != "textcat_multilabel"]


def make_examples(nlp, data=DATA) -> list[Example]:
    """Texts with annotations for every head."""
    examples = []
    for text, gold in data:
        example = make_example(nlp, text, copy.deepcopy(gold))
        for token, tag in zip(example.reference, gold["tags"], strict=True):
            token.tag_ = tag
        example.reference._.regression = dict(gold["numbers"])
        for doc in (example.reference, example.predicted):
            doc._.others = ["She left"]
        example.reference._.similarities = [dict(gold["numbers"])]
        examples.append(example)
    return examples


def build(checkpoint: str, *kinds: str):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    for kind in kinds:
        nlp.add_pipe(f"bert_{kind.partition('-')[0]}", kind, config=HEADS[kind])
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def learn(nlp, data=DATA, *, steps: int, rate: float = 3e-3) -> None:
    optimizer = Adam(rate, use_averages=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")
        for _ in range(steps):
            nlp.update(make_examples(nlp, data), sgd=optimizer)
    nlp.get_pipe("bert_encoder").close_step()


def inputs_of(nlp, head):
    return head.unlabelled_inputs([example.predicted for example in make_examples(nlp)])


def logits_of(nlp, name: str) -> torch.Tensor:
    head = nlp.get_pipe(name)
    return tensors_of(head.model.predict(inputs_of(nlp, head)))[0].clone()


@pytest.mark.parametrize("kinds", [TOGETHER, ["textcat_multilabel"]], ids=["all", "multilabel"])
def test_old_logits_stay_and_new_labels_are_learned(checkpoint, tmp_path, kinds):
    nlp = build(checkpoint, *kinds)
    learn(nlp, steps=10)
    before, weights, labels = {}, {}, {}
    for kind in kinds:
        head = nlp.get_pipe(kind)
        before[kind], labels[kind] = logits_of(nlp, kind), head.labels
        state = shim_of(head.model).module.state_dict()
        weights[kind] = {key: value.clone() for key, value in state.items()}
    for kind in kinds:
        head = nlp.get_pipe(kind)
        assert head.add_label("NEW") == 1
        assert head.add_label("NEW") == 0
        assert head.label_data == [*labels[kind], "NEW"]
    nlp.to_disk(tmp_path)
    ways = [nlp, spacy.load(tmp_path), pickle.loads(pickle.dumps(nlp)), copy.deepcopy(nlp)]
    ways.append(spacy.blank(LANG).from_config(nlp.config).from_bytes(nlp.to_bytes()))
    for kind in kinds:
        first = logits_of(nlp, kind)
        assert first.shape[1] == nlp.get_pipe(kind).n_classes > before[kind].shape[1]
        for other in ways:
            found = logits_of(other, kind)
            torch.testing.assert_close(found, first, atol=1e-6, rtol=1e-6)
            old = found[:, : before[kind].shape[1]]
            torch.testing.assert_close(old, before[kind], atol=1e-6, rtol=1e-6)
            assert other.get_pipe(kind).labels == (*labels[kind], "NEW")
            for key, value in shim_of(other.get_pipe(kind).model).module.state_dict().items():
                corner = value[tuple(map(slice, weights[kind][key].shape))]
                assert torch.equal(corner, weights[kind][key]), (kind, key)

    data = [*DATA, NEW]
    learn(nlp, data, steps=50)
    scores = nlp.evaluate(make_examples(nlp, data))
    expected = {"cats_micro_f"}
    if len(kinds) > 1:
        expected |= {"tag_acc", "nli_acc", "regression_pearson", "similarity_pearson"}
    found = {key: scores[key] for key in expected}
    assert found == dict.fromkeys(expected, pytest.approx(1, abs=0.02))
    for kind in kinds:
        if kind.startswith("ner"):
            with nlp.select_pipes(enable=["bert_encoder", kind]):
                assert nlp.evaluate(make_examples(nlp, data))["ents_f"] == 1.0


def test_what_can_not_be_added(checkpoint):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    nlp.add_pipe("bert_nli").add_label("entailment")
    nlp.add_pipe("bert_ner", config={"loss": "crf"})
    labels = [f"L{i}" for i in range(99)]
    nlp.config["initialize"]["components"] = {
        "bert_nli": {"labels": ["entailment"]},
        "bert_ner": {"labels": labels},
    }
    nlp.initialize()
    with pytest.raises(ValueError, match="has a single logit, which says whether 'entailment'"):
        nlp.get_pipe("bert_nli").add_label("neutral")
    with pytest.raises(ValueError, match="takes at most 200"):
        nlp.get_pipe("bert_ner").add_label("NEW")
    assert nlp.get_pipe("bert_ner").labels == tuple(labels)
    assert nlp.get_pipe("bert_ner").add_label("L3") == 0


def test_one_of_two_categories_is_no_more_the_positive_one(checkpoint):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    head = nlp.add_pipe("bert_textcat")
    nlp.config["initialize"]["components"] = {"bert_textcat": {"positive_label": "fire"}}
    nlp.initialize(lambda: make_examples(nlp))
    assert head.scorer_settings()["positive_label"] == "fire"
    head.add_label("NEW")
    assert head.scorer_settings()["positive_label"] is None


# --- rehearsal


def test_the_distance_by_hand():
    old = TokenLogits(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), None, None)
    new = TokenLogits(torch.tensor([[2.0, 2.0, 9.0], [0.0, 3.0, 9.0]]), None, None)
    loss = distance(new, old)
    assert (float(loss), loss.num_items) == ((1 + 9) / 2 / 2, 2)
    table = torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    with_crf = new._replace(transitions=torch.zeros(3, 3)), old._replace(transitions=table)
    assert float(distance(*with_crf)) == 2.5 + 16 / 2 / 2


def test_the_divergence_by_hand():
    half, p = torch.log(torch.tensor([0.5, 0.5])), torch.tensor([0.9, 0.1])
    wanted = TokenLogits(torch.stack((p.log() + 3, half)), None, None)  # up to a constant
    made = TokenLogits(torch.stack((half, half)), None, None)
    loss = divergence(made, wanted)
    by_hand = 0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5)
    assert (float(loss), loss.num_items) == (pytest.approx(by_hand / 2), 2)
    assert float(divergence(wanted, wanted)) == pytest.approx(0, abs=1e-6)


def test_the_divergence_of_single_values_is_torchs():
    made, wanted = torch.tensor([[0.3, -2.0], [4.0, 0.0]]), torch.tensor([[1.0, 2.0], [-3.0, 0.0]])
    p = wanted.sigmoid()
    cross = F.binary_cross_entropy_with_logits(made, p)
    expected = cross - F.binary_cross_entropy_with_logits(wanted, p)
    loss = binary_divergence(made, wanted)
    assert (float(loss), loss.num_items) == (pytest.approx(float(expected)), 4)


def distance_to_old(nlp, head) -> float:
    inputs = inputs_of(nlp, head)
    return float(distance(*(m.predict(inputs) for m in (head.model, head._old))))


@pytest.mark.filterwarnings("ignore:A learning rate")
def test_rehearsal_leads_back_to_the_old_predictions(checkpoint):
    """Each head by itself, then all by turns through spaCy, with the pipeline's optimizer."""
    kinds = ["ner-crf", "textcat", "nli", "similarity"]
    nlp = build(checkpoint, *kinds)
    encoder, heads = nlp.get_pipe("bert_encoder"), [nlp.get_pipe(kind) for kind in kinds]
    before = {head.name: logits_of(nlp, head.name) for head in heads}
    for head in heads:
        with pytest.warns(UserWarning, match="nothing to rehearse. Call nlp.get_pipe"):
            assert head.rehearse(make_examples(nlp)) == {}
        head.remember()
    optimizer = nlp.resume_training()
    optimizer.learn_rate = 1e-3
    copies = {id(head._old.get_ref("tok2vec").shims[0]) for head in heads}
    assert len(copies) == 1  # one copy of the encoder serves all
    for head in heads:
        losses = head.rehearse(make_examples(nlp))
        assert losses[head.name] == pytest.approx(0, abs=1e-9)
        head.add_label("NEW")
    learn(nlp, [*DATA, NEW], steps=5)
    forgotten = {head.name: distance_to_old(nlp, head) for head in heads}
    for head in heads:
        old = head._old.predict(inputs_of(nlp, head))
        torch.testing.assert_close(tensors_of(old)[0], before[head.name])
        assert forgotten[head.name] > 1e-3
        updates = encoder.num_updates
        losses = head.rehearse(make_examples(nlp), sgd=optimizer)
        assert losses[head.name] > 1e-3
        assert encoder.num_updates == updates + 1
    for _ in range(30):
        losses = nlp.rehearse(make_examples(nlp))
    assert set(losses) == {*nlp.pipe_names}
    for head in heads:
        assert distance_to_old(nlp, head) < forgotten[head.name] / 4, head.name

    updates = encoder.num_updates
    nlp.config["training"]["frozen_components"] = ["bert_encoder"]
    nlp.rehearse(make_examples(nlp))
    assert encoder.num_updates == updates


def test_a_head_with_an_encoder_of_its_own(checkpoint):
    nlp = build(checkpoint, "textcat")
    nlp.replace_listeners("bert_encoder", "textcat", ["model.tok2vec"])
    head, optimizer = nlp.get_pipe("textcat"), nlp.resume_training()
    head.remember()
    head.rehearse(make_examples(nlp), sgd=optimizer)
    with pytest.raises(ValueError, match="needs an optimizer to rehearse. Call nlp.resume"):
        nlp.rehearse(make_examples(nlp))


def test_texts_that_are_too_long_are_left_out(checkpoint):
    nlp = build(checkpoint, "nli")
    (example, _) = make_examples(nlp)
    head = nlp.get_pipe("nli")
    head.remember()
    example.predicted._.hypotheses = ["x " * 40, "She left"]
    with pytest.warns(UserWarning, match="does not learn from a pair"):
        assert len(head.unlabelled_inputs([example.predicted]).batch.num_windows) == 1
    example.predicted._.hypotheses = ["x " * 40]
    assert head.rehearse([example]) == {}


def test_nothing_is_remembered_without_weights():
    with pytest.raises(ValueError, match="has no weights yet"):
        spacy.blank(LANG).create_pipe("bert_textcat").remember()
