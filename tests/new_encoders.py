"""Raw text and settings for new encoders and added words."""

import json
from pathlib import Path

import torch
from checkpoints import make_checkpoint, make_tokenizer
from transformers import (
    AlbertForPreTraining,
    AutoModelForMaskedLM,
    BertForPreTraining,
    BertTokenizerFast,
)

from spacy_bert_heads.pretraining.settings import Encoder, Objective, Paths, Settings

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = [
    "The boat left harbour at night, and a fire broke out near Hull on Tuesday.",
    "Boats leave harbours; harbourmasters left boathouses nightly!",
    "Nobody knew why: the fireboat's lights lit the nearest boathouse.",
    "Größe, naïve Œuvre — 船在港口 😀 x²",
] * 2
# Words that the tokenizer of the small checkpoints splits, with their counts in the text.
WORDS = {
    "harbourmaster": 9,
    "boatyard": 7,
    "lightvessel": 7,
    "boat": 6,
    "boatmen": 4,  # too rare
    "жук": 20,  # [UNK]
    "crew": 30,  # one wordpiece already
}


def write_texts(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf8")
    return str(path)


def write_words(path: Path) -> str:
    """Write one text with each of `WORDS` as often as its count."""
    text = " ".join(f"{word}." for word, count in WORDS.items() for _ in range(count))
    return write_texts(path, [text])


def ask(raw: str, encoder: str | None = None, *, seed: int = 0, **asked) -> Settings:
    settings = Settings(Paths([raw], encoder), Encoder(**{"size": "tiny"} | asked))
    settings.objective = Objective("full-sentences")
    settings.training.seed = seed
    return settings


def quiet(line: str) -> None:
    pass


def make_whole(folder: Path, family: str, *, tied: bool) -> str:
    """A checkpoint with the heads of pretraining and no bias of zero, with a vocab.txt."""
    shape = {"pad_token_id": 0, "tie_word_embeddings": tied}
    make_checkpoint(folder, family=family, **shape, vocab_size=len(make_tokenizer("wordpiece")))
    classes = {"bert": BertForPreTraining, "albert": AlbertForPreTraining}
    model = classes.get(family, AutoModelForMaskedLM).from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    backend = make_tokenizer("wordpiece").backend_tokenizer
    BertTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return str(folder)
