"""Raw text of every kind as files, prepared in one process, and read back as words."""

import json
from pathlib import Path

import pytest
import spacy
from checkpoints import make_tokenizer
from spacy.tokens import DocBin
from tokenizers import Tokenizer

from spacy_bert_heads.pretraining.prepare import prepare
from spacy_bert_heads.pretraining.store import Corpus
from spacy_bert_heads.text.wordpieces import WordpieceTokenizer


def make_wordpieces(kind: str = "wordpiece") -> WordpieceTokenizer:
    return WordpieceTokenizer(Tokenizer.from_str(make_tokenizer(kind).backend_tokenizer.to_str()))


WORDPIECES = make_wordpieces()
BY_KIND = {"wordpiece": WORDPIECES, "bytes": make_wordpieces("bytes")}
BY_KIND["unigram"] = make_wordpieces("unigram")
TWO = ["Anna left Berlin. The crew swim!", "A fire in New York."]
TWO_SENTENCES = [["anna left berlin .", "the crew swim !"], ["a fire in new york ."]]


def read(corpus: Corpus, wordpieces: WordpieceTokenizer = WORDPIECES) -> list[list[str]]:
    """The sentences of each document, words apart, pieces of one word joined."""
    tokens = [wordpieces.tokenizer.id_to_token(int(i)) for i in corpus.pieces]
    text = [
        (" " if begins else "") + token.removeprefix("##")
        for token, begins in zip(tokens, corpus.words, strict=True)
    ]
    sentences = [
        "".join(text[start:end]).strip()
        for start, end in zip(corpus.sentences, corpus.sentences[1:], strict=False)
    ]
    return [
        sentences[start:end]
        for start, end in zip(corpus.documents, corpus.documents[1:], strict=False)
    ]


def run(tmp_path: Path, *sources: str | Path, **options) -> Corpus:
    settings = {"wordpieces": WORDPIECES, "workers": 1, **options}
    return prepare(sources, tmp_path / "cache", **settings)


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts).encode()


def docbin(*texts: str) -> bytes:
    return DocBin(docs=map(spacy.blank("en").make_doc, texts)).to_bytes()


def text(*texts: str) -> bytes:
    return "\n\n".join(texts).encode()


def zstd(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
