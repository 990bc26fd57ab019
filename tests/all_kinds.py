"""A pipeline with the heads that the joint one of conftest.py lacks, untrained, and what is asked
of it."""

import spacy
import torch
from small_pipelines import LANG
from spacy.language import Language
from spacy.training import Example

from spacy_bert_heads.pairs import make_choice

TEXT = "Anna left Skagen on Tuesday"
OTHERS = ["She left Skagen.", "It rained."]
CHOICES = [
    {"question": "Who?", "options": ["Anna", "The boat"]},
    {"question": "", "options": ["She left", "It burned", "Hull"]},
]
HEADS = ("tagger", "regression", "similarity", "choice")


def build(checkpoint: str) -> Language:
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    for head in HEADS:
        nlp.add_pipe(f"bert_{head}")
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def make_examples(nlp: Language) -> list[Example]:
    """One text with gold annotation of all kinds."""
    example = Example(nlp.make_doc(TEXT), nlp.make_doc(TEXT))
    for doc in (example.predicted, example.reference):
        doc._.others, doc._.choices = list(OTHERS), [dict(choice) for choice in CHOICES]
    gold = example.reference
    gold._.similarities = [{"score": 4.5}, {"score": 1.0}]
    gold._.chosen = [make_choice(0), make_choice(2)]
    gold._.regression = {"rating": 3.5}
    for token, tag in zip(gold, ("NNP", "VBD", "NNP", "IN", "NNP"), strict=True):
        token.tag_ = tag
    return [example]
