"""What a run starts from: new encoders with the published sizes, complete folders, errors."""

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import TEXTS, make_checkpoint, make_tokenizer
from new_encoders import SENTENCES, ask, quiet, write_texts, write_words
from spacy.util import registry
from transformers import AutoModelForMaskedLM, AutoTokenizer

from spacy_bert_heads.encoder.loading import load_checkpoint
from spacy_bert_heads.pretraining.objectives import load_pretrainer
from spacy_bert_heads.pretraining.settings import Corpora, Encoder, Objective, Paths, Settings
from spacy_bert_heads.pretraining.start import make_config, make_start, prepare_alone


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> str:
    return write_texts(tmp_path_factory.mktemp("raw") / "raw.jsonl", SENTENCES)


@pytest.fixture(scope="module")
def wordy(tmp_path_factory) -> str:
    return write_words(tmp_path_factory.mktemp("wordy") / "raw.jsonl")


def count(family: str, size: str, **ids) -> int:
    config = make_config(Encoder(family, size), **ids)
    with torch.device("meta"):
        model = transformers.AutoModelForPreTraining.from_config(config)
    assert config.hidden_size // config.num_attention_heads == 64
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "size, millions",
    # Turc et al. 2019; base and large as the hub counts bert-base-uncased and bert-large-uncased.
    [
        ("tiny", 4.4),
        ("mini", 11.3),
        ("small", 29.1),
        ("medium", 41.7),
        ("base", 110.106428),
        ("large", 336.226108),
    ],
)
def test_bert_has_the_published_sizes(size, millions):
    found = count("bert", size, vocab_size=30_522, pad_token_id=0) / 1e6
    assert round(found, 6 if size in ("base", "large") else 1) == millions


def test_albert_and_roberta_have_the_published_sizes():
    # albert-base-v1 and albert-large-v1 without heads; the masked-LM head: a layer from the
    # states to the width of embeddings, its norm, the biases; the head for the order of segments.
    for size, encoder, width in (("base", 11_683_584, 768), ("large", 17_683_968, 1024)):
        heads = (width + 1) * 128 + 2 * 128 + 30_000 + 2 * (width + 1)
        assert count("albert", size, vocab_size=30_000, pad_token_id=0) == encoder + heads
    # roberta-base, with its masked-LM head
    assert count("roberta", "base", vocab_size=50_265, pad_token_id=1) == 124_697_433
    assert (
        make_config(Encoder("roberta"), vocab_size=9, pad_token_id=1).max_position_embeddings == 514
    )


def test_layers_of_albert_are_one():
    def layers(size: str) -> set[str]:
        config = make_config(Encoder("albert", size), vocab_size=99, pad_token_id=0)
        with torch.device("meta"):
            model = transformers.AlbertModel(config)
        return {name for name, _ in model.encoder.named_parameters()}

    assert layers("tiny") == layers("large")
    assert (
        make_config(Encoder("albert", "tiny"), vocab_size=9, pad_token_id=0).embedding_size == 128
    )


@pytest.mark.parametrize("family", ["bert", "albert", "roberta"])
def test_a_new_encoder_is_a_whole_folder(raw, tmp_path, family):
    random = torch.get_rng_state()
    size = 300 if family == "roberta" else 120
    name = make_start(ask(raw, family=family, vocab_size=size), tmp_path / "start", say=quiet)
    assert torch.equal(torch.get_rng_state(), random)
    assert [path.name for path in tmp_path.iterdir()] == ["start"]

    pretrainer = load_pretrainer(name, sentence_objective="full-sentences")
    assert not pretrainer.new_parameters
    assert pretrainer.vocabulary().mask_id == 4
    assert pretrainer.vocabulary().size == pretrainer.model.config.vocab_size <= size
    if family == "bert":  # the text has fewer for the other kinds
        assert pretrainer.vocabulary().size == size
    assert pretrainer.encoder.checkpoint.max_window == 512
    assert (load_checkpoint(name).model.pooler is None) == (family == "roberta")
    config = pretrainer.model.config
    pad, cls, sep = (1, 0, 2) if family == "roberta" else (0, 2, 3)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (pad, cls, sep)
    assert list(pretrainer.encoder.checkpoint.tokenizer.pair.middle) == [sep] * (
        2 if family == "roberta" else 1
    )

    # Hugging Face's own way: padding, pairs and the longest text come out right.
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForMaskedLM.from_pretrained(name).eval()
    assert tokenizer("boat", "fire").get("token_type_ids", [0])[-1] == (family != "roberta")
    with torch.no_grad():
        alone = model(**tokenizer("The boat", return_tensors="pt")).logits[0]
        texts = ["The boat", SENTENCES[0]]
        beside = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[0]
        torch.testing.assert_close(beside[: len(alone)], alone, atol=1e-5, rtol=1e-4)
        long = tokenizer("boat " * 600, "fire", truncation="only_first", return_tensors="pt")
        assert model(**long).logits.shape == (1, 512, pretrainer.vocabulary().size)
        # The same states in our hands.
        bert = pretrainer.encoder
        ids = torch.tensor([tokenizer("The boat")["input_ids"]])
        states = bert(ids, torch.zeros_like(ids), torch.ones_like(ids))[0]
        torch.testing.assert_close(pretrainer.mlm_logits(states), alone, atol=1e-5, rtol=1e-4)


def test_the_same_again(raw, tmp_path):
    def make(folder: str, **asked) -> dict[str, bytes]:
        made = make_start(ask(raw, vocab_size=120, **asked), tmp_path / folder, say=quiet)
        return {path.name: path.read_bytes() for path in Path(made).iterdir()}

    one, other, third = make("one"), make("other"), make("third", seed=1)
    assert one == other
    weights = "model.safetensors"
    assert one[weights] != third[weights]
    others = one.keys() - {weights, "digests.json"}
    assert {name: one[name] for name in others} == {name: third[name] for name in others}


def test_what_is_there_is_used_as_it_is(raw, tmp_path):
    def stop(line: str) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):  # with the tokenizer made, and no weights yet
        make_start(ask(raw, vocab_size=120), tmp_path / "start", say=stop)
    assert not (tmp_path / "start").exists()
    name = make_start(ask(raw, vocab_size=120), tmp_path / "start", say=quiet)
    before = (Path(name) / "tokenizer.json").read_bytes()
    assert make_start(ask(raw, vocab_size=99), tmp_path / "start", say=stop) == name
    assert (Path(name) / "tokenizer.json").read_bytes() == before
    # Nothing to make: the checkpoint itself.
    assert make_start(ask(raw, "some/checkpoint"), tmp_path / "none", say=stop) == "some/checkpoint"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("family, kind", [("bert", "bytes"), ("roberta", "wordpiece")])
def test_a_tokenizer_of_another_family(raw, tmp_path, family, kind):
    tokenizer = make_tokenizer(kind)
    tokenizer.save_pretrained(tmp_path / "tokenizer")  # no config.json, no weights
    settings = ask(raw, family=family, tokenizer=str(tmp_path / "tokenizer"))
    name = make_start(settings, tmp_path / "start", say=quiet)
    pretrainer = load_pretrainer(name, sentence_objective="full-sentences")
    assert not pretrainer.new_parameters
    assert pretrainer.encoder.checkpoint.max_window == 512
    assert pretrainer.model.config.pad_token_id == tokenizer.pad_token_id
    assert pretrainer.vocabulary().mask_id == tokenizer.mask_token_id
    pair = pretrainer.encoder.checkpoint.tokenizer.pair
    assert (pair.first_type, pair.second_type) == (0, 1 if family == "bert" else 0)
    theirs = AutoTokenizer.from_pretrained(name)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_what_does_not_go_together(raw, wordy, tmp_path):
    def refuse(message: str, settings: Settings, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=message):
            make_start(settings, tmp_path / "start", say=quiet)
        assert not (tmp_path / "start").exists()

    refuse("characters of the raw text alone need 63 entries", ask(raw, vocab_size=50))
    refuse("'-', which can be read only once", ask("-"))
    refuse("does not exist", ask(str(tmp_path / "none.txt")), FileNotFoundError)
    (tmp_path / "empty.txt").write_text("\n\n")
    refuse("is empty", ask(str(tmp_path / "empty.txt")))
    pairs = dataclasses.replace(ask(raw, family="roberta"), objective=Objective("nsp"))
    refuse("full-sentences", pairs)
    refuse("Can't read encoder.tokenizer 'nowhere'", ask(raw, tokenizer="nowhere"))
    plain = make_tokenizer("wordpiece")
    plain.mask_token = None
    plain.save_pretrained(tmp_path / "plain")
    refuse("has no mask_token", ask(raw, tokenizer=str(tmp_path / "plain")))
    for family, kind in (("roberta", "BPE"), ("albert", "Unigram")):
        name = make_checkpoint(tmp_path / family, family=family)
        refuse(f"this one is {kind}. Set add_words = 0", ask(wordy, name, add_words=2))


# --- readers of the user


def test_texts_of_a_reader(tmp_path):
    texts: list = [*SENTENCES, {"text": SENTENCES[0], "date": 1}]
    calls = []

    @registry.readers("test.texts.v1")
    def make_reader(n: int):
        def read():
            calls.append(n)
            yield from texts[:n]

        return read

    block = {"@readers": "test.texts.v1", "n": len(texts)}
    settings = ask("", vocab_size=120)
    settings.paths = Paths([], None, str(tmp_path / "cache"))
    settings.corpora = Corpora(block)
    corpus = prepare_alone(settings, say=quiet)  # which needs a vocabulary of the same texts
    assert corpus.report.documents == len(texts) and len(calls) > 1
    settings.corpora = Corpora({**block, "n": 3})
    assert prepare_alone(settings, say=quiet).report.documents == 3
    texts[1] = 5
    with pytest.raises(ValueError, match="reader of raw text yields 5 as item 1. It must yie"):
        prepare_alone(settings, say=quiet)
    settings.corpora = Corpora({"@readers": "spacy_bert_heads.Corpus.v1", "path": "a"})
    with pytest.raises(ValueError, match="raw. returns .* must return a callable without argum"):
        prepare_alone(settings, say=quiet)


def test_a_damaged_start_is_made_again(raw, tmp_path):
    def make() -> dict[str, bytes]:
        made = make_start(ask(raw, vocab_size=120), tmp_path / "start", say=quiet)
        return {path.name: path.read_bytes() for path in Path(made).iterdir()}

    expected = make()
    for name in expected:
        (tmp_path / "start" / name).write_bytes(expected[name][:-3] + b"abc")
        assert make() == expected, name
