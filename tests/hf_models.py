"""Hugging Face's models with named classes, and their logits."""

from pathlib import Path

import numpy as np
import torch
import transformers
from checkpoints import make_checkpoint
from spacy.tokens import Doc

TOKENS = transformers.AutoModelForTokenClassification
SEQUENCES = transformers.AutoModelForSequenceClassification
ANSWERS = transformers.AutoModelForQuestionAnswering
PLACES = ["B-PLACE", "O", "I-DATE", "B-DATE", "I-PLACE"]
MOODS = ["good", "bad", "meh"]
VERDICTS = ["Neutral", "entailment", "CONTRADICTION"]
ENDS = ["LABEL_0", "LABEL_1"]


def save(folder: Path, auto_class: type, labels: list[str], **settings) -> str:
    settings["id2label"] = dict(enumerate(labels))
    settings["label2id"] = {label: i for i, label in enumerate(labels)}
    return make_checkpoint(folder, auto_class=auto_class, **settings)


def load(folder: str, auto_class: type):
    model = auto_class.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def run(model, tokenizer, *texts: str):
    """Hugging Face's output for a text or a pair."""
    inputs = tokenizer(*([text] for text in texts), return_tensors="pt")
    if not getattr(model.config, "type_vocab_size", 0):
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**inputs)


def token_logits(model, tokenizer, doc: Doc) -> np.ndarray:
    logits = run(model, tokenizer, doc.text).logits[0]
    return logits[first_pieces(tokenizer, doc)].numpy()


def first_pieces(tokenizer, doc: Doc) -> list[int]:
    """Each token's first piece, or the one that covers its start, by Hugging Face's offsets."""
    encoding = tokenizer(doc.text, return_offsets_mapping=True, return_special_tokens_mask=True)
    places = {}
    for i, (start, end) in enumerate(encoding["offset_mapping"]):
        piece = doc.text[start:end]
        indent = len(piece) - len(piece.lstrip()) if piece.strip() else 0
        if not encoding["special_tokens_mask"][i]:
            places[i] = (start + indent, end)
    first = []
    for token in doc:
        begin, stop = token.idx, token.idx + len(token)
        starting = [i for i, (start, _) in places.items() if begin <= start < stop]
        covering = [i for i, (start, end) in places.items() if start <= begin < end]
        first.append((starting or covering)[0])
    return first
