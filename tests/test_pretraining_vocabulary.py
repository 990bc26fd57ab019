"""Vocabularies trained on raw text, and words added to the vocabulary of a checkpoint."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, load_encoder, make_checkpoint
from hypothesis import HealthCheck, given
from hypothesis import settings as configure
from hypothesis import strategies as st
from new_encoders import (
    SENTENCES,
    SPECIAL,
    WORDS,
    ask,
    make_whole,
    quiet,
    write_texts,
    write_words,
)
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from spacy_bert_heads.encoder.loading import load_checkpoint, load_wordpiece_tokenizer
from spacy_bert_heads.pretraining.objectives import load_pretrainer
from spacy_bert_heads.pretraining.records import read_texts
from spacy_bert_heads.pretraining.start import make_start


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> str:
    return write_texts(tmp_path_factory.mktemp("raw") / "raw.jsonl", SENTENCES)


@pytest.fixture(scope="module")
def wordy(tmp_path_factory) -> str:
    return write_words(tmp_path_factory.mktemp("wordy") / "raw.jsonl")


# --- trained vocabularies


def train_by_hand(texts: list[str], size: int) -> dict[str, int]:
    """Byte pair encoding of words in WordPiece's notation, step by step (Sennrich et al. 2016)."""
    counts = Counter(re.findall(r"\w+|[^\w\s]", " ".join(texts).lower()))
    words = {word: [word[0], *(f"##{c}" for c in word[1:])] for word in counts}
    first = {c for word in counts for c in word}
    inside = {piece for pieces in words.values() for piece in pieces[1:]}
    vocab = [*SPECIAL, *sorted(first), *sorted(inside)]
    while len(vocab) < size:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, pieces in words.items():
            ids = [vocab.index(piece) for piece in pieces]
            for pair in zip(ids, ids[1:], strict=False):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        left, right = vocab[best[0]], vocab[best[1]]
        joined = left + right.removeprefix("##")
        vocab += [] if joined in vocab else [joined]
        for pieces in words.values():
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == (left, right):
                    pieces[i : i + 2] = [joined]
                i += 1
    return {piece: i for i, piece in enumerate(vocab)}


@pytest.mark.parametrize("size", [100, 130, 400])
def test_a_vocabulary_as_by_hand(tmp_path, size):
    texts = [text for text in SENTENCES if text.isascii()]
    raw = write_texts(tmp_path / "raw.jsonl", texts)
    said: list[str] = []
    name = make_start(ask(raw, vocab_size=size), tmp_path / "start", say=said.append)
    expected = train_by_hand(texts, size)
    assert load_wordpiece_tokenizer(name).tokenizer.get_vocab() == expected
    fewer = f"The vocabulary has only {len(expected)} wordpieces, not 400"
    assert any(fewer in line for line in said) == (size == 400)
    assert (len(expected) < size) == (size == 400)


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocabulary_covers_its_text(raw, tmp_path, lowercase):
    settings = ask(raw, vocab_size=250, lowercase=lowercase)
    wordpieces = load_wordpiece_tokenizer(make_start(settings, tmp_path / "start", say=quiet))
    tokenizer = wordpieces.tokenizer
    assert (tokenizer.token_to_id("H") is None) == lowercase
    assert (tokenizer.token_to_id("##ö") is None) == lowercase
    unknown = tokenizer.token_to_id("[UNK]")
    assert unknown not in wordpieces(SENTENCES).ids
    assert unknown in wordpieces(["ж"]).ids
    words = re.findall(r"\w+", " ".join(SENTENCES[:3]))

    @configure(max_examples=50, deadline=None)
    @given(st.lists(st.sampled_from(words), min_size=1, max_size=8))
    def check(chosen):
        assert unknown not in wordpieces([" ".join(chosen)]).ids

    check()


FAMILIES = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "albert": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
}


def test_token_types_are_read_with_any_tokenizer(raw, tmp_path):
    """DistilBERT's tells its users not to pass them."""
    made = make_start(ask(raw, family="bert", vocab_size=300), tmp_path / "first", say=quiet)
    tokenizer = AutoTokenizer.from_pretrained(made)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = ask(raw, family="bert", tokenizer=str(tmp_path / "tokenizer"))
    found = load_checkpoint(str(make_start(settings, tmp_path / "second", say=quiet)))
    assert found.uses_token_types


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_its_own_kind(raw, tmp_path, family):
    settings = ask(raw, family=family, vocab_size=300)
    found = [make_start(settings, tmp_path / str(i), say=quiet) for i in range(2)]
    one, again = map(load_wordpiece_tokenizer, found)
    assert one.tokenizer.get_vocab() == again.tokenizer.get_vocab()
    tokenizer = AutoTokenizer.from_pretrained(found[0])
    assert tokenizer.convert_ids_to_tokens(range(5)) == FAMILIES[family]
    cls, sep = (2, 3) if family != "roberta" else (0, 2)
    ids = tokenizer("the crew", "the crew")["input_ids"]
    assert (ids[0], ids[-1], ids.count(sep)) == (cls, sep, 2 if family != "roberta" else 3)
    # Case counts for RoBERTa alone, which also reads what its text didn't have.
    same = one(["The Crew"]).ids.tolist() == one(["the crew"]).ids.tolist()
    assert same == (family != "roberta")
    unknown = one.tokenizer.token_to_id(FAMILIES[family][3 if family == "roberta" else 1])
    assert (unknown in one(["ж"]).ids) == (family != "roberta")
    assert unknown not in one(SENTENCES).ids
    if family == "roberta":
        assert one.tokenizer.decode(one(SENTENCES[:3]).ids) == "".join(SENTENCES[:3])
    assert load_pretrainer(found[0], sentence_objective=None).vocabulary().mask_id == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vocabulary_too_small_for_its_characters(raw, tmp_path, family):
    with pytest.raises(ValueError, match="encoder.vocab_size is 9"):
        make_start(ask(raw, family=family, vocab_size=9), tmp_path / "start", say=quiet)


def test_byte_pairs_by_hand(tmp_path):
    # Words: abc, " abc" and " ab" twice each. So a b occur 5 times, " " ab 4, " ab" c 2, ab c once.
    raw = write_texts(tmp_path / "raw.jsonl", ["abc abc abc ab ab"])
    name = make_start(ask(raw, family="roberta", vocab_size=400), tmp_path / "start", say=quiet)
    vocab = load_wordpiece_tokenizer(name).tokenizer.get_vocab()
    learned = sorted((i, piece) for piece, i in vocab.items() if i >= 5 + 256)
    assert [piece for _, piece in learned] == ["ab", "Ġab", "Ġabc"]


# --- added words


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> str:
    return make_whole(tmp_path_factory.mktemp("before") / "bert", "bert", tied=True)


@pytest.fixture(scope="module")
def after(before, wordy, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("after") / "start"
    return make_start(ask(wordy, before, add_words=4), folder, say=quiet)


def listed(name: str) -> list[str]:
    """What vocab.txt says."""
    return (Path(name) / "vocab.txt").read_text(encoding="utf8").splitlines()


def test_the_frequent_broken_words_are_added(before, wordy, tmp_path):
    said: list[str] = []
    old = load_wordpiece_tokenizer(before).tokenizer.get_vocab()
    for n, expected in (
        (2, ["harbourmaster", "boatyard"]),  # of the two with 7, the first in the alphabet
        (99, ["harbourmaster", "boatyard", "lightvessel", "boat"]),
    ):
        settings = ask(wordy, before, add_words=n)
        name = make_start(settings, tmp_path / str(n), say=said.append)
        vocab = load_wordpiece_tokenizer(name).tokenizer.get_vocab()
        assert vocab == old | {word: len(old) + i for i, word in enumerate(expected)}
        assert AutoTokenizer.from_pretrained(name).get_vocab() == vocab
        assert listed(name) == sorted(vocab, key=vocab.__getitem__)
        assert json.loads((Path(name) / "config.json").read_text())["vocab_size"] == len(vocab)
    assert "2 words added to the vocabulary (harbourmaster, boatyard …)." in said
    assert any("4 words added to the vocabulary" in line and "not 99" in line for line in said)


@pytest.mark.parametrize(
    "family, tied",
    [
        ("bert", True),
        ("bert", False),
        ("albert", True),
        ("roberta", True),
        ("distilbert", True),
        ("electra", False),
    ],
)
def test_new_rows_are_means(wordy, tmp_path, family, tied):
    """Hugging Face's model of the folder beside that of the checkpoint."""
    name = make_whole(tmp_path / "before", family, tied=tied)
    start = make_start(ask(wordy, name, add_words=4), tmp_path / "start", say=quiet)
    old_tokenizer, new_tokenizer = map(AutoTokenizer.from_pretrained, (name, start))
    old, new = (AutoModelForMaskedLM.from_pretrained(folder).eval() for folder in (name, start))
    n_old, n_new = len(old_tokenizer), len(new_tokenizer)
    words = new_tokenizer.convert_ids_to_tokens(range(n_old, n_new))
    assert len(words) == 4
    pieces = [old_tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]

    tables = [(model.get_input_embeddings(), model.get_output_embeddings()) for model in (old, new)]
    assert (tables[1][0].weight is tables[1][1].weight) == tied
    (old_in, old_out), (new_in, new_out) = tables
    for was, now in (
        (old_in.weight, new_in.weight),
        (old_out.weight, new_out.weight),
        (old_out.bias, new_out.bias),
    ):
        assert now.shape == (n_new, *was.shape[1:])
        assert torch.equal(now[:n_old], was)
        for row, ids in zip(now[n_old:], pieces, strict=True):
            torch.testing.assert_close(row, sum(was[i] for i in ids) / len(ids))

    # The layer is linear, so the mean of the rows gives the mean of the logits; all else is as
    # before.
    inputs = old_tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected, found = old(**inputs).logits, new(**inputs).logits
    torch.testing.assert_close(found[..., :n_old], expected)
    for i, ids in enumerate(pieces):
        torch.testing.assert_close(found[..., n_old + i], expected[..., ids].mean(-1))

    pretrainer = load_pretrainer(start, sentence_objective=None)
    assert not pretrainer.new_parameters
    ids = inputs["input_ids"]
    with torch.no_grad():
        states = pretrainer.encoder(ids, torch.zeros_like(ids), torch.ones_like(ids))
        torch.testing.assert_close(pretrainer.mlm_logits(states[0]), found[0])


def test_other_weights_are_the_old_ones(before, after):
    old, new = (load_file(Path(name) / "model.safetensors") for name in (before, after))
    assert old.keys() == new.keys()
    grown = {key for key in old if old[key].shape != new[key].shape}
    assert grown == {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}
    assert all(torch.equal(old[key], new[key]) for key in old.keys() - grown)


def test_old_texts_are_encoded_as_before(before, after):
    old, new = load_encoder(before), load_encoder(after)
    for text in TEXTS:
        found, expected = (one.checkpoint.tokenizer([text]) for one in (new, old))
        assert all(map(np.array_equal, vars(found).values(), vars(expected).values()))
        ids = torch.from_numpy(found.ids)[None]
        inputs = ids, torch.zeros_like(ids), torch.ones_like(ids)
        with torch.no_grad():
            assert torch.equal(new(*inputs), old(*inputs))


def test_new_words_are_ordinary_pieces(after):
    wordpieces = load_wordpiece_tokenizer(after)
    text = "HARBOURMASTER's boatyard, boats"
    found = wordpieces([text])
    spans = [text[a:b] for a, b in zip(found.starts, found.ends, strict=True)]
    assert spans == ["HARBOURMASTER", "'", "s", "boatyard", ",", "boat", "s"]
    vocab = wordpieces.tokenizer.get_vocab()
    assert found.ids[[0, 3, 5, 6]].tolist() == [
        vocab[piece] for piece in ("harbourmaster", "boatyard", "boat", "##s")
    ]
    added = wordpieces.tokenizer.get_added_tokens_decoder().values()
    assert {token.content for token in added} == set(SPECIAL)
    assert (
        AutoTokenizer.from_pretrained(after).decode(found.ids)
        == "harbourmaster ' s boatyard, boats"
    )


@configure(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=6),
            st.sampled_from([*WORDS, *" ".join(TEXTS).split(), "[MASK]", "s", " ", "##yard"]),
        ),
        max_size=12,
    ).map("".join)
)
def test_any_text(before, after, cached, text):
    """Word by word: a new one is one piece, one that begins with none is read as before."""
    old, new = cached
    new_words = {w: i for w, i in new.get_vocab().items() if w not in old.get_vocab()}
    words = old.pre_tokenizer.pre_tokenize_str(old.normalizer.normalize_str(text))
    for word, _ in words:
        was, now = ([t.id for t in one.model.tokenize(word)] for one in (old, new))
        if word in new_words:
            assert now == [new_words[word]]
        elif not word.startswith(tuple(new_words)):
            assert now == was
        assert (now == [1]) == (was == [1])  # [UNK]
    was, now = (one.encode(text) for one in (old, new))
    if not any(word.startswith(tuple(new_words)) for word, _ in words):
        assert (now.ids, now.offsets) == (was.ids, was.offsets)
    # The same characters are read, in parts that are as long or longer.
    assert set(sum(now.offsets, ())) <= set(sum(was.offsets, ()))


@pytest.fixture(scope="module")
def cached(before, after):
    return load_wordpiece_tokenizer(before).tokenizer, load_wordpiece_tokenizer(after).tokenizer


def test_heads_that_the_checkpoint_lacks_are_still_lacking(checkpoint, wordy, tmp_path):
    expected = load_pretrainer(checkpoint, sentence_objective=None).new_heads
    assert expected == ["sentence head", "masked-LM head"]
    name = make_start(ask(wordy, checkpoint, add_words=2), tmp_path / "start", say=quiet)
    pretrainer = load_pretrainer(name, sentence_objective=None)
    assert pretrainer.new_heads == expected
    assert pretrainer.model.get_output_embeddings().weight.shape[0] == pretrainer.vocabulary().size
    assert load_checkpoint(name).model.pooler is not None


def test_rows_beyond_the_tokenizer_are_taken_first(wordy, tmp_path):
    name = make_checkpoint(tmp_path / "wide", vocab_size=512)
    n_old = load_wordpiece_tokenizer(name).tokenizer.get_vocab_size()
    start = make_start(ask(wordy, name, add_words=2), tmp_path / "start", say=quiet)
    bert = load_checkpoint(start)
    assert bert.config.vocab_size == 512
    assert bert.tokenizer.tokenizer.token_to_id("harbourmaster") == n_old
    old, new = (load_checkpoint(x).model.get_input_embeddings().weight for x in (name, start))
    changed = (old != new).any(1).nonzero().flatten().tolist()
    assert changed == [n_old, n_old + 1]


def test_words_for_a_new_encoder(wordy, before, tmp_path):
    settings = ask(wordy, family="roberta", tokenizer=before, add_words=3)
    name = make_start(settings, tmp_path / "start", say=quiet)
    pretrainer = load_pretrainer(name, sentence_objective="full-sentences")
    assert not pretrainer.new_parameters
    size = pretrainer.model.config.vocab_size
    assert size == load_wordpiece_tokenizer(before).tokenizer.get_vocab_size() + 3
    ids = pretrainer.encoder.checkpoint.tokenizer(["Harbourmaster boatyard lightvessel"]).ids
    assert ids.tolist() == [size - 3, size - 2, size - 1]


def test_words_of_real_text(minilm, data, tmp_path):
    """A domain that the checkpoint doesn't know."""
    raw = str(data / "raw_covid_papers")
    name = make_start(ask(raw, minilm, add_words=300), tmp_path / "start", say=quiet)
    old, new = load_wordpiece_tokenizer(minilm).tokenizer, load_wordpiece_tokenizer(name).tokenizer
    assert old.encode("coronavirus").tokens[1:-1] == ["corona", "##virus"]
    assert new.encode("coronavirus").tokens[1:-1] == ["coronavirus"]
    texts = list(read_texts([raw]))[:10]
    was, now = (sum(len(e) for e in one.encode_batch(texts)) for one in (old, new))
    assert now < 0.96 * was
    lines = listed(name)
    assert [new.token_to_id(line) for line in lines] == list(range(30_822))
    weights = load_file(Path(name) / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    rows = load_checkpoint(minilm).model.get_input_embeddings().weight
    ids = [old.token_to_id(piece) for piece in ("corona", "##virus")]
    torch.testing.assert_close(weights[new.token_to_id("coronavirus")], rows[ids].mean(0))
