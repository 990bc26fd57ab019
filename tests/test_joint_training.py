"""`spacy train` for several heads, with the config of `init-config`: every batch has one task."""

import warnings

import pytest
import spacy
from conftest import make_examples as make_text_examples
from joint import HEADS, LANG, make_examples
from spacy.cli.train import train as spacy_train
from spacy.tokens import DocBin
from thinc.api import Config

from spacy_bert_heads.data.reader import make_corpus
from spacy_bert_heads.heads.find import annotations_of
from spacy_bert_heads.heads.head import BertHead
from spacy_bert_heads.init_config import init_config

SCORES = ("ents_f", "cats_score", "nli_acc", "qa_f1")
FAST = {
    "components.bert_encoder.model.window": 64,
    "components.bert_encoder.model.stride": 48,
    "training.optimizer.learn_rate.initial_rate": 3e-3,  # a random BERT needs it
    "training.batcher.size": 64,
    "training.max_steps": 120,
    "training.eval_frequency": 60,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of Docs with everything, and one of Docs with entities and categories alone."""
    folder = tmp_path_factory.mktemp("joint")
    nlp = spacy.blank(LANG)
    for name, make in (("pairs", make_examples), ("texts", make_text_examples)):
        docs = [eg.reference for eg in make(nlp)]
        DocBin(docs=docs, store_user_data=True).to_disk(folder / f"{name}.spacy")
    return folder


def test_heads_learn_from_batches_of_their_own(checkpoint, data, tmp_path, monkeypatch):
    config = init_config(HEADS, name=checkpoint, lang=LANG, train=data, dev=data)
    assert config["training"]["max_steps"] == 200
    text = config.to_str()
    Config().from_str(text, interpolate=False, overrides=FAST).to_disk(tmp_path / "config.cfg")
    seen = []
    update = BertHead.update

    def note(self, examples, **settings):
        examples = list(examples)
        seen.append({annotations_of(eg.reference) for eg in examples})
        return update(self, examples, **settings)

    monkeypatch.setattr(BertHead, "update", note)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")
        spacy_train(tmp_path / "config.cfg", tmp_path / "out")
    assert all(len(tasks) == 1 for tasks in seen)
    of_texts = {"ner", "tagger", "textcat", "textcat_multilabel"}
    assert set().union(*seen) == set(map(frozenset, (of_texts, {"nli"}, {"qa"})))

    nlp = spacy.load(tmp_path / "out" / "model-last")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no head says that the encoder has left it behind
        scores = nlp.evaluate(list(make_corpus(data)(nlp)))
    assert {name: scores[name] for name in SCORES} == dict.fromkeys(SCORES, 1.0)
