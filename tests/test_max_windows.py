"""Long Docs: an update reads a sample of windows, a prediction all of them in bounded memory."""

import itertools

import numpy as np
import pytest
import spacy
import torch
from checkpoints import note_sequences
from hypothesis import example, given
from hypothesis import strategies as st
from pair_examples import LANG, module_of
from pair_examples import make_example as pair_example
from spacy.tokens import Doc
from spacy.training import Example

from spacy_bert_heads.encoder.model import encoder_of, pack
from spacy_bert_heads.heads.stream import group_docs
from spacy_bert_heads.text.arrays import sums
from spacy_bert_heads.text.batch import OffsetMapping, PackedBatch, TokenMap, cumulate

TITLE, LONG = "Anna left Hull", "Anna left Skagen on Tuesday. " * 35  # in 11 windows
CATS = {"sea": 1.0, "fire": 0.0}
ONE_LABEL = {"bert_textcat": {"labels": ["sea", "fire"]}, "bert_ner": {"labels": ["SHIP"]}}


def build(checkpoint: str, *heads: str, max_windows: int | None = 3):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    for head in heads:
        limit = {} if head == "ner" else {"model": {"max_windows": max_windows}}
        nlp.add_pipe(f"bert_{head}", config=limit)
    torch.manual_seed(0)
    nlp.config["initialize"]["components"] = {
        name: labels for name, labels in ONE_LABEL.items() if name in nlp.pipe_names
    }
    nlp.initialize(lambda: examples(nlp, TITLE))
    return nlp


def examples(nlp, *texts: str) -> list[Example]:
    gold = {"cats": CATS, "entities": [(0, 4, "SHIP")]}
    return [Example.from_dict(nlp.make_doc(text), dict(gold)) for text in texts]


def runs_of(nlp) -> list[int]:
    return note_sequences(encoder_of(nlp.get_pipe("bert_encoder").model))


# --- the sample

WINDOWS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5), max_size=4)


def batch_of(lengths: list[list[int]]) -> PackedBatch:
    """Texts of windows of these lengths, every second position of which begins a token; ids count
    the positions."""
    seqlens = np.asarray([n for windows in lengths for n in windows], dtype=np.int64)
    num_windows = np.asarray([len(windows) for windows in lengths], dtype=np.int64)
    ids = np.arange(seqlens.sum())
    sizes = sums(seqlens, num_windows)
    begins = np.cumsum(sizes) - sizes
    places = [np.arange(b, b + n, 2) for b, n in zip(begins, sizes, strict=True)]
    positions = np.concatenate([*places, np.empty(0, dtype=np.int64)])
    num_tokens = np.asarray([len(one) for one in places], dtype=np.int64)
    tokens = TokenMap(num_tokens, np.ones_like(positions), positions)
    offsets = OffsetMapping(ids, ids + 1, ids >= 0)
    return PackedBatch(ids, ids * 0, cumulate(seqlens), num_windows, offsets, tokens)


@given(WINDOWS, st.integers(1, 6))
@example([[2, 3, 1], [4]], 2)
def test_a_sample_has_windows_of_each_text_and_their_tokens(lengths, max_windows):
    batch = batch_of(lengths)
    taken = batch.sample(max_windows)
    assert taken.num_windows.tolist() == [min(len(one), max_windows) for one in lengths]
    bounds = batch.cu_seqlens
    windows = {tuple(batch.input_ids[a:b]) for a, b in itertools.pairwise(bounds.tolist())}
    chosen = [tuple(taken.input_ids[a:b]) for a, b in itertools.pairwise(taken.cu_seqlens.tolist())]
    assert chosen == sorted(chosen) and set(chosen) <= windows and len(chosen) == len(set(chosen))
    # A token is where it was, or has no wordpiece; ids are those of the whole batch.
    kept = set(taken.input_ids.tolist())
    first = taken.tokens.first_positions()
    found = [taken.input_ids[i] if i >= 0 else -1 for i in first]
    assert found == [i if i in kept else -1 for i in batch.tokens.positions]
    assert taken.tokens.num_tokens.tolist() == batch.tokens.num_tokens.tolist()
    assert taken.offsets.starts.tolist() == taken.input_ids.tolist()


def test_what_has_few_windows_is_left_as_it_is():
    batch = batch_of([[2, 3, 1], [4]])
    before = np.random.get_state()[2]
    assert batch.sample(3) is batch and batch.sample(None) is batch
    assert np.random.get_state()[2] == before  # no random number is drawn


def test_samples_are_even_and_follow_the_seed():
    batch = batch_of([[1] * 5, [1] * 2])
    np.random.seed(0)
    drawn = [batch.sample(2).input_ids.tolist() for _ in range(500)]
    np.random.seed(0)
    assert drawn[:20] == [batch.sample(2).input_ids.tolist() for _ in range(20)]
    counts = np.bincount(np.concatenate(drawn), minlength=7)
    assert counts[5:].tolist() == [500, 500]
    assert (abs(counts[:5] - 200) < 50).all()


# --- updates


@pytest.mark.parametrize("max_windows, read", [(1, 1), (3, 3), (11, 11), (16, 11), (None, 11)])
def test_an_update_reads_a_sample_and_a_prediction_everything(checkpoint, max_windows, read):
    nlp = build(checkpoint, "textcat", max_windows=max_windows)
    runs = runs_of(nlp)
    nlp.update(examples(nlp, TITLE, LONG, TITLE), sgd=False)
    assert sum(runs) == read + 2
    hidden = nlp.get_pipe("bert_encoder").predict([nlp.make_doc(LONG)])
    assert hidden.batch.num_windows.tolist() == [11]


def test_the_loss_is_that_of_the_sampled_windows(checkpoint):
    """Each window as a Doc of its own has the same logits; the Doc's are their mean."""
    nlp = build(checkpoint, "textcat")
    textcat, encoder = nlp.get_pipe("bert_textcat"), nlp.get_pipe("bert_encoder")
    made = examples(nlp, LONG, TITLE)
    np.random.seed(1)
    sample = pack(encoder.model, [eg.x for eg in made]).sample(3)
    np.random.seed(1)
    encoder.update(made)
    output, _ = textcat.begin_update(made)
    states = encoder_of(encoder.model).encode(sample, max_batch_tokens=4096).states
    module = module_of(nlp, "textcat").eval()
    with torch.no_grad():
        each = module(states, PackedBatch(
            sample.input_ids, sample.token_type_ids, sample.cu_seqlens, np.ones(4, dtype=np.int64)
        ))  # fmt: skip
    expected = torch.stack([each[:3].mean(0), each[3]])
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "heads, expected",
    [
        (("ner", "textcat"), 11 + 2),  # all windows are there when textcat comes
        (("textcat", "ner"), 3 + 2 + 11),  # of the long Doc alone all are read as well
        (("ner",), 11 + 2),
    ],
)
def test_heads_share_what_they_read(checkpoint, heads, expected):
    nlp = build(checkpoint, *heads)
    runs = runs_of(nlp)
    nlp.update(examples(nlp, TITLE, LONG, TITLE), sgd=False)
    assert sum(runs) == expected
    step = nlp.get_pipe("bert_encoder")._step
    assert step is None  # every answer came: its gradients are with the encoder
    parameters = encoder_of(nlp.get_pipe("bert_encoder").model).model.encoder.parameters()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters if p.ndim > 1)


def test_a_sample_is_shared_by_heads_that_want_as_many(checkpoint):
    nlp = build(checkpoint, "textcat")
    settings = {"model": {"max_windows": 3}}
    nlp.add_pipe("bert_textcat_multilabel", name="other", config=settings).add_label("lost")
    nlp.get_pipe("other").initialize(lambda: examples(nlp, TITLE), nlp=nlp, labels=["lost"])
    gold = [Example.from_dict(nlp.make_doc(LONG), {"cats": {**CATS, "lost": 1.0}})]
    runs = runs_of(nlp)
    nlp.update(gold, sgd=False)
    assert sum(runs) == 3


def test_pairs_are_sampled_too(checkpoint):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    nlp.add_pipe("bert_nli", config={"model": {"max_windows": 2}})
    gold = {"hypotheses": {"She left": "entailment", "It burned": "neutral"}}
    made = [pair_example(nlp, text, gold) for text in (LONG, TITLE)]
    nlp.initialize(lambda: made[1:])
    runs = runs_of(nlp)
    nlp.update(made, sgd=False)
    assert sum(runs) == 2 * 2 + 2


def test_a_frozen_encoder_reads_a_sample(checkpoint):
    nlp = build(checkpoint, "textcat")
    nlp.config["training"]["frozen_components"] = ["bert_encoder"]
    encoder, sizes = nlp.get_pipe("bert_encoder"), []
    predict = encoder.predict

    def note(docs):
        hidden = predict(docs)
        sizes.append(hidden.batch.num_windows.tolist())
        return hidden

    encoder.predict = note
    nlp.update(examples(nlp, TITLE, LONG), sgd=False, exclude=["bert_encoder"])
    del encoder.predict
    assert sizes == [[1, 3]]
    doc = nlp.make_doc(LONG)
    assert encoder.predict([doc]).batch.num_windows.tolist() == [11]


def test_an_encoder_of_its_own_reads_a_sample(checkpoint, tmp_path):
    nlp = build(checkpoint, "textcat")
    nlp.replace_listeners("bert_encoder", "bert_textcat", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "nlp")
    config = {"components": {"bert_textcat": {"model": {"max_windows": 5}}}}
    for limit, pipeline in ((3, nlp), (5, spacy.load(tmp_path / "nlp", config=config))):
        own = pipeline.get_pipe("bert_textcat").model.get_ref("tok2vec")
        runs = note_sequences(encoder_of(own))
        pipeline.update(examples(pipeline, TITLE, LONG), sgd=False)
        assert sum(runs) == limit + 1


def test_max_windows_is_a_number_of_windows(checkpoint):
    for factory in ("bert_textcat", "bert_nli"):
        with pytest.raises(ValueError, match="max_windows is 0; it must be 1 or more, or None"):
            spacy.blank(LANG).add_pipe(factory, config={"model": {"max_windows": 0}})


# --- predictions

NLP = spacy.blank(LANG)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 5), st.integers(1, 20))
@example([9, 9, 0, 1], 3, 10)
def test_groups_are_bounded_and_need_no_look_at_the_next_doc(lengths, batch_size, max_chars):
    docs = [Doc(NLP.vocab, words=["a"] * n, spaces=[False] * n) for n in lengths]
    taken = 0

    def stream():
        nonlocal taken
        for doc in docs:
            taken += 1
            yield doc

    groups, given_out = [], 0
    for group in group_docs(stream(), batch_size=batch_size, max_chars=max_chars):
        given_out += len(group)
        assert taken == given_out
        groups.append(group)
    assert list(itertools.chain(*groups)) == docs
    for i, group in enumerate(groups):
        assert 1 <= len(group) <= batch_size
        assert sum(map(len, group[:-1])) < max_chars
        is_full = len(group) == batch_size or sum(map(len, group)) >= max_chars
        assert is_full or i == len(groups) - 1


def test_heads_share_groups_of_long_docs(checkpoint, monkeypatch):
    monkeypatch.setattr(group_docs, "__kwdefaults__", {"max_chars": 2 * len(LONG) - 20})
    nlp = build(checkpoint, "textcat", "ner")
    encoder, sizes = nlp.get_pipe("bert_encoder"), []
    keep = encoder._latest.keep

    def note(docs, version, hidden):
        sizes.append(len(docs))
        keep(docs, version, hidden)

    encoder._latest.keep = note
    texts = [f"{text}{i}" for i, text in enumerate([LONG] * 5 + [TITLE] * 2)]
    docs = list(nlp.pipe(texts, batch_size=4))
    assert sizes == [2, 2, 3]  # one run for both heads
    for doc in docs:
        assert doc.cats == pytest.approx(nlp(doc.text).cats, abs=1e-5)
