"""Layers of the heads: logits, poolings, weights and dropout beside Hugging Face's."""

import numpy as np
import pytest
import spacy
import torch
import transformers
from checkpoints import FAMILIES
from conftest import TRAIN_DATA, make_examples
from hf_models import first_pieces
from losses import token_logits
from spacy.tokens import Doc

from spacy_bert_heads.encoder.model import shim_of


def pipeline(name: str, kind: str, *, window: int = 100, data=TRAIN_DATA, **config):
    nlp = spacy.blank("en")
    encoder = {"name": name, "window": window, "stride": window // 2}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    nlp.add_pipe(f"bert_{kind}", name="head", config=config)
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


def module_of(nlp) -> torch.nn.Module:
    return shim_of(nlp.get_pipe("head").model).module


TEXTS = ["Anna Grete left Skagen on Tuesday.", "", "They cannot swim", "Das Schiff läuft auf Grund"]


@pytest.mark.parametrize("family", [one for one in FAMILIES if one != "modernbert"])
def test_token_logits_are_hugging_faces(folders, family):
    nlp = pipeline(folders(family), "ner")
    head = nlp.get_pipe("head")
    labels = len(head.tags)
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(
        folders(family), num_labels=labels
    ).eval()
    module_of(nlp).classifier.load_state_dict(theirs.classifier.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders(family))
    docs = [nlp.make_doc(text) for text in TEXTS]
    scores = head.predict(docs)
    assert scores.has_wordpiece.all()
    expected = []
    for doc in docs:
        with torch.no_grad():
            logits = theirs(torch.tensor([tokenizer(doc.text)["input_ids"]])).logits[0]
        expected.append(logits[first_pieces(tokenizer, doc)] if len(doc) else logits[:0])
    assert scores.lengths.tolist() == [len(doc) for doc in docs]
    np.testing.assert_allclose(scores.logits, torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "albert", "roberta", "xlm-roberta"])
def test_sequence_logits_are_hugging_faces(folders, family):
    nlp = pipeline(folders(family), "textcat")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        folders(family), num_labels=2
    ).eval()
    ours = module_of(nlp)
    if "roberta" in family:  # a dense layer of the head's own in place of the pooler
        ours.dense.linear.load_state_dict(theirs.classifier.dense.state_dict())
        ours.classifier.load_state_dict(theirs.classifier.out_proj.state_dict())
    else:  # the pooler is the checkpoint's already
        ours.classifier.load_state_dict(theirs.classifier.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders(family))
    with torch.no_grad():
        expected = [theirs(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS]
    found = nlp.get_pipe("head").predict([nlp.make_doc(text) for text in TEXTS])
    np.testing.assert_allclose(found, torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean"])
def test_pooling_and_the_mean_of_windows_by_hand(folders, pooling):
    window = 9
    nlp = pipeline(folders("bert"), "textcat", window=window, model={"pooling": pooling})
    module = module_of(nlp)
    torch.nn.init.normal_(module.classifier.bias)
    weight, bias = module.classifier.weight, module.classifier.bias
    model = transformers.AutoModel.from_pretrained(folders("bert")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders("bert"))
    texts = ["A fire", " ".join(TEXTS), "", "Anna met Barack in Berlin, then flew to New York."]
    expected, n_windows = [], []
    for text in texts:
        windows = tokenizer(
            text,
            truncation=True,
            max_length=window,
            stride=window - 2 - window // 2,  # Hugging Face's stride is the overlap
            return_overflowing_tokens=True,
        )["input_ids"]
        logits = []
        for ids in windows:
            with torch.no_grad():
                output = model(torch.tensor([ids]))
                states = output.last_hidden_state[0]
                vectors = {
                    "cls": states[0],
                    "pooler": output.pooler_output[0],
                    "mean": states.mean(0),
                }
                logits.append(weight @ vectors[pooling] + bias)
        expected.append(torch.stack(logits).mean(0))
        n_windows.append(len(windows))
    assert n_windows[0] == n_windows[2] == 1
    assert min(n_windows[1], n_windows[3]) > 1
    found = nlp.get_pipe("head").predict([nlp.make_doc(text) for text in texts])
    np.testing.assert_allclose(found, torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "albert", "roberta"])
def test_the_pooler_starts_as_the_checkpoints(folders, family):
    model = transformers.AutoModel.from_pretrained(folders(family))
    theirs = model.pooler if family == "albert" else model.pooler.dense
    ours = module_of(pipeline(folders(family), "textcat")).dense.linear
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    assert theirs.bias.abs().max() > 0.01


def test_without_a_pooler_in_the_checkpoint_it_starts_new(folders, tmp_path):
    model = transformers.BertModel.from_pretrained(folders("bert"), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folders("bert")).save_pretrained(tmp_path)
    for name in (str(tmp_path), folders("electra")):
        dense = module_of(pipeline(name, "textcat")).dense.linear
        assert dense.bias.abs().max() == 0
        assert float(dense.weight.detach().std()) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("initializer_range", [0.02, 0.2])
@pytest.mark.parametrize("kind", ["tagger", "textcat"])
def test_weights_start_as_wide_as_the_checkpoints(folders, kind, initializer_range):
    name = folders("bert", initializer_range=initializer_range)
    labels = [f"L{i}" for i in range(60)]
    cats = dict.fromkeys(labels, 0.0)
    data = [(" ".join(labels), {"tags": labels, "cats": cats})]
    classifier = module_of(pipeline(name, kind, data=data)).classifier
    assert classifier.weight.shape == (60, 32)
    assert float(classifier.weight.detach().std()) == pytest.approx(initializer_range, rel=0.08)
    assert float(classifier.weight.detach().mean()) == pytest.approx(0, abs=0.1 * initializer_range)
    assert classifier.bias.tolist() == [0.0] * 60


@pytest.mark.parametrize(
    "family, rates",
    [
        ("bert", {"dropout": 0.3}),
        ("bert", {"dropout": 0.3, "classifier_dropout": 0.25}),
        ("bert", {"dropout": 0.3, "classifier_dropout": 0.0}),
        ("roberta", {"dropout": 0.3}),
        ("electra", {"dropout": 0.3, "classifier_dropout": 0.25}),
        ("albert", {"dropout": 0.3, "classifier_dropout_prob": 0.15}),
        ("distilbert", {"dropout": 0.3, "seq_classif_dropout": 0.4}),
    ],
)
@pytest.mark.parametrize("kind", ["ner", "textcat"])
def test_dropout_is_that_of_hugging_faces_head(folders, family, rates, kind):
    name = folders(family, **rates)
    if kind == "ner":
        theirs = transformers.AutoModelForTokenClassification.from_pretrained(name).dropout
    else:
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(name)
        theirs = getattr(theirs, "dropout", None) or theirs.classifier.dropout
    assert theirs.p in rates.values()
    assert module_of(pipeline(name, kind)).dropout.p == theirs.p


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_of_the_head_is_at_work_in_training_alone(folders, rate):
    nlp = pipeline(folders("bert", dropout=0.3), "textcat", model={"dropout": rate})
    assert module_of(nlp).dropout.p == rate
    head = nlp.get_pipe("head")
    docs = [nlp.make_doc(text) for text in TEXTS]
    predicted = head.predict(docs)
    # Outside of an encoder's step the states are those of a prediction.
    first, second = (head.model.begin_update(docs)[0] for _ in range(2))
    assert np.array_equal(first, second) == (rate == 0)
    assert np.array_equal(first, predicted) == (rate == 0)
    assert np.array_equal(head.predict(docs), predicted)


def test_a_token_without_pieces_has_the_logits_of_zeros(folders):
    nlp = pipeline(folders("bert"), "ner")
    bias = module_of(nlp).classifier.bias
    torch.nn.init.normal_(bias)
    doc = Doc(nlp.vocab, words=["Anna", "\u200b", "left"])
    scores = nlp.get_pipe("head").predict([doc])
    assert scores.has_wordpiece.tolist() == [True, False, True]
    assert scores.logits[1].tolist() == bias.tolist()
    assert (scores.logits[0] != scores.logits[2]).any()


def test_blocked_tokens_stay_out_of_entities(make_nlp):
    nlp = make_nlp("ner")
    doc = nlp.make_doc("Anna Grete left Skagen")
    doc.set_ents([], blocked=[doc[0:1], doc[3:4]])
    ner = nlp.get_pipe("bert_ner")
    logits = np.full((4, len(ner.tags)), -9.0, dtype="f")
    logits[[0, 1, 2, 3], [ner.tags.index(t) for t in ("B-PLACE", "O", "B-PLACE", "B-PLACE")]] = 9.0
    ner.set_annotations([doc], token_logits(logits, np.ones(4, dtype=bool), np.asarray([4])))
    assert [(ent.start, ent.end, ent.label_) for ent in doc.ents] == [(2, 3, "PLACE")]
    assert [token.ent_iob_ for token in doc] == ["B", "O", "B", "B"]  # "B" without a type: blocked
    assert [token.ent_type_ for token in doc] == ["", "", "PLACE", ""]
