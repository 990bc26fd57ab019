"""Does what an encoder of two languages learns in one of them work in the other?

    python benchmarks/fake_english.py DATA OUT
    python benchmarks/fake_english.py DATA OUT --table

No multilingual checkpoint is needed: a small BERT is pretrained on English and on 'fake English',
the same text in other letters, digits and marks, so that every wordpiece has a counterpart and the
two share none (K et al. 2020; Dufter & Schütze 2020, section 2.2). Then:

zero-shot-TASK-SEED
    Entities (WNUT17) or sentiment (SST-2) learned from English alone, scored on English and on fake
    English; and on fake English with the difference of the languages' mean states added.
retrieval
    For each layer, how well a fake wordpiece in its sentence finds its counterpart among others:
    the mean reciprocal rank by cosine, plain and with each language's mean taken off. And what the
    head for masked words makes of fake English when the difference of the means is added at the
    last layer (Libovický et al. 2020, section 3.1; Gonen et al. 2020, section 5).
"""

import json
import shutil
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import torch
import typer
from adaptation import run_pretraining, settings_of
from jobs import (
    SEEDS,
    Bench,
    Job,
    finetune,
    print_head,
    print_row,
    read_log,
    read_results,
    run_jobs,
    runs_of,
    spread,
)
from plain_loops import FILES, read_conll, read_labelled, read_sick
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from tokenizers import Tokenizer
from torch.nn.functional import normalize
from transformers import BertConfig, BertForPreTraining

from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.encoder.encoder import Encoder
from spacy_bert_heads.encoder.loading import load_model
from spacy_bert_heads.encoder.model import encoder_of
from spacy_bert_heads.inspection.source import encode_layers
from spacy_bert_heads.pretraining.settings import Encoder as EncoderSettings
from spacy_bert_heads.pretraining.vocabulary import make_tokenizer
from spacy_bert_heads.text.packing import pack_docs

# Letters lose their case, as an uncased tokenizer loses it. The counterparts of punctuation are
# punctuation to Unicode, so that words are cut at the same places.
MARKS = dict(zip("$+<=>^`|~", "§¶†‡•‣‰‱※", strict=True))
FAKE = str.maketrans(
    {
        **{c: chr(0xFEE0 + ord(c)) for c in string.punctuation if c not in MARKS},
        **MARKS,
        **{c: chr(0x1D7CE + i) for i, c in enumerate(string.digits)},
        **{c: chr(0x1D41A + i) for i, c in enumerate(string.ascii_lowercase)},
        **{c: chr(0x1D41A + i) for i, c in enumerate(string.ascii_uppercase)},
    }
)
VOCABULARY = 2000  # of one language, as many as Dufter & Schütze took
# Narrow, so that the languages must share what it knows (Dufter & Schütze 2020, section 4).
SHAPE = {
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
    # It will not see so much text that it could learn it by heart.
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.05,  # 0.02 suits encoders ten times as wide
}
TRAINING = {"max_steps": 30_000, "batch_tokens": 2048, "learn_rate": 2e-3}
MAX_LENGTH = 64
WINDOWS = {"window": MAX_LENGTH, "stride": 48}  # no position that it has not learned
TASKS = {"wnut17": 3394, "sst2": 6920}
EPOCHS, RATE = 5, 1e-3  # an encoder so narrow learns next to nothing at 1e-4
N_TOGETHER = 20  # sentences of a document
N_SENTENCES = 500  # to find means, and counterparts in
N_PIECES = 2000  # among which a counterpart is looked for


@dataclass(frozen=True)
class Language:
    """The states of the same pieces of the same sentences, and their mean at each layer."""

    ids: torch.Tensor  # (n_slots,)
    states: torch.Tensor  # (n_slots, n_layers, width)

    @property
    def mean(self) -> torch.Tensor:
        return self.states.mean(0)


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets")],
    out: Annotated[Path, typer.Argument(help="The folder of the results")],
    precision: str = "fp32",
    scale: Annotated[float, typer.Option(help="0.02: a test of this script")] = 1.0,
    table: Annotated[bool, typer.Option("--table", help="Print, run nothing")] = False,
) -> None:
    """Pretrain, and measure. What is done is not done again."""
    work = out.absolute() / "work" / "pretrain"
    bench = Bench(data, str(work / "model-last"), out.absolute(), precision, scale)
    if table:
        print_tables(bench)
        return
    jobs = [Job("pretrain", 60, pretrain), Job("retrieval", 1, retrieve, "pretrain")]
    for seed in SEEDS:
        for task in TASKS:
            run = partial(transfer, task, seed)
            jobs.append(Job(f"zero-shot-{task}-{seed}", 3, run, "pretrain"))
    run_jobs(bench, jobs)


# --- the encoder


def pretrain(bench: Bench) -> dict[str, Any]:
    """The encoder of both languages, without a sentence objective."""
    folder = bench.work("pretrain")
    both, start = bench.work("both.jsonl"), bench.work("start")
    if not start.exists():
        texts = read_documents(bench.data)
        both.parent.mkdir(parents=True, exist_ok=True)
        both_of = ((text, text.translate(FAKE)) for text in texts)
        lines = [json.dumps({"text": text}) + "\n" for pair in both_of for text in pair]
        both.write_text("".join(lines), encoding="utf8")
        making = bench.work("making")
        shutil.rmtree(making, ignore_errors=True)
        make_start(texts, making)
        making.rename(start)
    config = settings_of(bench, both, "full-sentences", **TRAINING)
    config["paths"]["encoder"] = str(start)
    config["training"]["phases"] = [{"max_length": MAX_LENGTH, "share": 1.0}]
    config["masking"] = {"units": "wordpieces"}  # they have many pieces in a vocabulary so small
    run_pretraining(folder, config)
    return {"curve": read_log(folder / "log.jsonl"), "training": TRAINING, "shape": SHAPE}


def read_documents(data: Path) -> list[str]:
    """Captions of pictures, sentences of film reviews and tweets, those of a kind a few together:
    short, and of few words, so that a small encoder learns something in an hour."""
    files = {task: [data / FILES[task][0] / name for name in FILES[task][1:]] for task in FILES}
    captions = [s for i in (0, 2) for pair, _ in read_sick(files["sick"][i]) for s in pair]
    reviews = [text for (text,), _ in read_labelled(files["sst2"][0])]
    tweets = [" ".join(words) for words, _ in read_conll(files["wnut17"][0])]
    texts = []
    for kind in (list(dict.fromkeys(captions)), reviews, tweets):
        texts += ["\n".join(kind[i : i + N_TOGETHER]) for i in range(0, len(kind), N_TOGETHER)]
    return texts


def make_start(texts: list[str], folder: Path) -> None:
    """A random encoder, whose vocabulary has every English wordpiece twice."""
    tokenizer = make_tokenizer(EncoderSettings(vocab_size=VOCABULARY), lambda: texts, say=print)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf8"))
    vocab = described["model"]["vocab"]
    special = set(tokenizer.all_special_tokens)
    for piece in sorted(set(vocab) - special, key=vocab.__getitem__):
        vocab.setdefault(fake_piece(piece), len(vocab))
    path.write_text(json.dumps(described), encoding="utf8")
    (folder / "vocab.txt").unlink(missing_ok=True)  # tokenizer.json is what counts
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocab), pad_token_id=tokenizer.pad_token_id, **SHAPE)
    BertForPreTraining(config).save_pretrained(folder)


def fake_piece(piece: str) -> str:
    """A piece that goes on a word keeps its mark."""
    mark = "##" if piece.startswith("##") else ""
    return mark + piece.removeprefix(mark).translate(FAKE)


# --- states of both languages


def read_both(encoder: Encoder, texts: list[str]) -> tuple[Language, Language]:
    """English, and fake English, piece by piece. A sentence whose pieces are not each other's
    counterparts in number (letters with accents have none) is left out."""
    tokenizer = encoder.checkpoint.tokenizer.tokenizer
    pairs = [(text, text.translate(FAKE)) for text in texts]
    pairs = [(a, b) for a, b in pairs if len(tokenizer.encode(a)) == len(tokenizer.encode(b))]
    english, fake = ([pair[i] for pair in pairs] for i in (0, 1))
    return encode(encoder, english), encode(encoder, fake)


def encode(encoder: Encoder, texts: list[str]) -> Language:
    blank = spacy.blank("xx")
    docs = [blank.make_doc(text) for text in texts]
    batch = pack_docs(docs, encoder.checkpoint.tokenizer, **WINDOWS)
    states = encode_layers(encoder, batch, range(encoder.checkpoint.num_layers + 1))
    return Language(torch.from_numpy(batch.input_ids), states)


def read_texts(data: Path) -> list[str]:
    return [text for (text,), _ in read_labelled(data / FILES["sst2"][0] / FILES["sst2"][3])]


def retrieve(bench: Bench) -> dict[str, Any]:
    """Of the encoder, and of the random one that it began as: counterparts have the same places in
    the same sentences, by which they can be found before anything is learned."""
    encoders = {"pretrained": bench.encoder, "random": str(bench.work("start"))}
    return {name: retrieve_with(encoder, bench) for name, encoder in encoders.items()}


def retrieve_with(encoder: str, bench: Bench) -> dict[str, Any]:
    from transformers import AutoModelForPreTraining

    model, bert, _ = load_model(encoder, lambda config, weights: AutoModelForPreTraining)
    model.eval()
    texts = read_texts(bench.data)[: bench.scaled(N_SENTENCES, least=20)]
    english, fake = read_both(bert, texts)
    to_fake = counterparts(bert.wordpieces.tokenizer)
    known = (to_fake[english.ids] == fake.ids) & (english.ids != fake.ids)
    # One of each piece, so that a frequent one counts once.
    _, first = np.unique(english.ids[known].numpy(), return_index=True)
    rows = torch.nonzero(known)[:, 0][torch.from_numpy(first[:N_PIECES])]
    shift = english.mean[-1] - fake.mean[-1]
    result: dict[str, Any] = {
        "pieces": len(rows),
        "mrr": reciprocal_ranks(fake.states[rows], english.states[rows]),
        "mrr_centred": reciprocal_ranks(
            fake.states[rows] - fake.mean, english.states[rows] - english.mean
        ),
    }
    for name, vector in (("plain", torch.zeros_like(shift)), ("shifted", shift)):
        with torch.no_grad():
            logits = model.cls.predictions(fake.states[rows, -1] + vector)
        best = logits.argmax(1)
        result[f"guess_{name}"] = {
            "english": float(torch.isin(best, english_ids(to_fake)).float().mean()),
            "counterpart": float((best == english.ids[rows]).float().mean()),
            "itself": float((best == fake.ids[rows]).float().mean()),
        }
    return result


def counterparts(tokenizer: Tokenizer) -> torch.Tensor:
    """The id of each piece's counterpart; its own where it has none."""
    vocab = tokenizer.get_vocab()
    table = torch.arange(max(vocab.values()) + 1)
    for piece, number in vocab.items():
        table[number] = vocab.get(fake_piece(piece), number)
    return table


def english_ids(to_fake: torch.Tensor) -> torch.Tensor:
    return torch.nonzero(to_fake != torch.arange(len(to_fake)))[:, 0]


def reciprocal_ranks(queries: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """The mean reciprocal rank of each query's own target among all, at each layer."""
    found = []
    for layer in range(queries.shape[1]):
        a, b = (normalize(one[:, layer], dim=-1) for one in (queries, targets))
        cosines = a @ b.T
        ranks = 1 + (cosines > cosines.diagonal().unsqueeze(1)).sum(1)
        found.append(float((1 / ranks).mean()))
    return found


# --- zero-shot


def transfer(task: str, seed: int, bench: Bench) -> dict[str, Any]:
    folder = bench.work(f"zero-shot-{task}-{seed}")

    def look(nlp: spacy.Language) -> dict[str, Any]:
        key = {"wnut17": "ents_f", "sst2": "cats_micro_f"}[task]
        references = [eg.reference for eg in BertCorpus(folder / "test")(nlp)]
        train = DocBin().from_disk(folder / "train" / f"{task}.spacy").get_docs(nlp.vocab)
        texts = [doc.text for doc in list(train)[:N_SENTENCES]]
        encoder = encoder_of(nlp.get_pipe("bert_encoder").model)
        english, fake = read_both(encoder, texts)
        shift = english.mean[-1] - fake.mean[-1]
        scores = {"english": nlp.evaluate(make_examples(nlp, references))[key]}
        translated = [translate(doc) for doc in references]
        scores["fake"] = nlp.evaluate(make_examples(nlp, translated))[key]
        with shifted(shift):
            scores["fake_shifted"] = nlp.evaluate(make_examples(nlp, translated))[key]
        return {"scores": scores}

    found = finetune(
        bench,
        folder,
        task,
        bench.encoder,
        n_train=TASKS[task],
        n_dev=50,
        seed=seed,
        epochs=EPOCHS,
        rate=RATE,
        change=lambda config: config["components"]["bert_encoder"]["model"].update(WINDOWS),
        look=look,
    )
    return {"task": task, "seed": seed, **found}


def make_examples(nlp: spacy.Language, references: list[Doc]) -> list[Example]:
    """With the tokens of the references, which the tokenizer would not find in fake English."""
    return [
        Example(Doc(nlp.vocab, [t.text for t in doc], [bool(t.whitespace_) for t in doc]), doc)
        for doc in references
    ]


def translate(doc: Doc) -> Doc:
    """The same Doc in fake English, with its annotation."""
    words = [token.text.translate(FAKE) for token in doc]
    fake = Doc(doc.vocab, words, [bool(token.whitespace_) for token in doc])
    if doc.has_annotation("ENT_IOB"):
        fake.set_ents([Span(fake, ent.start, ent.end, ent.label) for ent in doc.ents])
    fake.cats = dict(doc.cats)
    return fake


@contextmanager
def shifted(vector: torch.Tensor) -> Iterator[None]:
    """Add a vector to every hidden state of the last layer."""
    run = Encoder.run
    Encoder.run = lambda *args: run(*args) + vector
    try:
        yield
    finally:
        Encoder.run = run


# --- tables


def print_tables(bench: Bench) -> None:
    done = read_results(bench)
    if "pretrain" in done:
        last = done["pretrain"]["curve"][-1]
        print(f"MLM loss, held out: {last['held_out_mlm_loss']:.3f} after {last['step']} steps\n")
    if "retrieval" in done:
        one, random = (done["retrieval"][name] for name in ("pretrained", "random"))
        columns = [found[key] for found in (one, random) for key in ("mrr", "mrr_centred")]
        centred = "with the means taken off"
        print_head("layer", "mean reciprocal rank", centred, "before pretraining", centred)
        for layer, values in enumerate(zip(*columns, strict=True)):
            print_row(layer, *(f"{value:.3f}" for value in values))
        chance = sum(1 / rank for rank in range(1, one["pieces"] + 1)) / one["pieces"]
        print_row("chance", *[f"{chance:.3f}"] * len(columns))
        print()
        print_head("the guess for a fake piece is", "English", "its counterpart", "itself")
        for name in ("plain", "shifted"):
            print_row(name, *(f"{value:.1%}" for value in one[f"guess_{name}"].values()))
        print()
    print_head("task", "English", "fake English", "… with the difference of the means")
    for task in TASKS:
        runs = runs_of(done, f"zero-shot-{task}")
        if runs:
            kinds = ("english", "fake", "fake_shifted")
            print_row(task, *(spread([run["scores"][kind] for run in runs]) for kind in kinds))


if __name__ == "__main__":
    typer.run(main)
