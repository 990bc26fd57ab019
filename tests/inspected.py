"""Texts and documents for the views into an encoder."""

import spacy
from spacy.tokens import DocBin

SENTENCES = [
    "The coaster lost control off Skagen.",
    "Nobody swam to the coaster, but the Coaster sank.",
]


def write_docs(file, rows):
    nlp = spacy.blank("en")
    docs = []
    for text, cats in rows:
        doc = nlp.make_doc(text)
        doc.cats = cats
        docs.append(doc)
    DocBin(docs=docs).to_disk(file)
    return file
