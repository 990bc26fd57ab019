"""A pipeline that writes texts, and what it learns from."""

import warnings

import spacy
from spacy.training import Example
from thinc.api import Adam

DATA = [
    ("Anna left Skagen on Tuesday", ["the boat left skagen"]),
    ("The boat burned in Hull", ["the crew used a pump"]),
    ("Nobody can't swim, but cannot sink either", ["nobody can sink", "nobody can sink"]),
]


def make_examples(nlp, data=DATA):
    found = []
    for text, targets in data:
        gold = nlp.make_doc(text)
        gold._.targets = targets
        found.append(Example(nlp.make_doc(text), gold))
    return found


def build(checkpoint, data=DATA, *, window=64, stride=48, model=None, encoder=None, **settings):
    nlp = spacy.blank("en")
    config = {"name": checkpoint, "window": window, "stride": stride, **(encoder or {})}
    nlp.add_pipe("bert_encoder", config={"model": config})
    settings = {"max_length": 20, "num_beams": 2, "model": model or {}, **settings}
    nlp.add_pipe("bert_seq2seq", config=settings)
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


def learn(nlp, steps=60, data=DATA):
    optimizer = Adam(3e-3, use_averages=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")  # a random BERT needs it
        for _ in range(steps):
            nlp.update(make_examples(nlp, data), sgd=optimizer)
        nlp.get_pipe("bert_encoder").predict([])  # takes the last step
    return nlp


def write(nlp, texts):
    return [doc._.generated for doc in nlp.pipe(texts)]
