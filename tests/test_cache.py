"""States of a frozen encoder that are kept on disk."""

import os
import shutil
import warnings
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
from checkpoints import note_sequences
from conftest import TRAIN_DATA, make_examples
from spacy.tokens import DocBin
from spacy.training.initialize import init_nlp
from spacy.util import registry
from thinc.api import Adam

from spacy_bert_heads.encoder.cache import ENTRY, StatesCache
from spacy_bert_heads.encoder.model import PackedPairs, encoder_of, pack
from spacy_bert_heads.heads.qa_windows import choose_windows
from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.text.pairs import Pairs
from spacy_bert_heads.training.loop import train

TEXTS = ["Anna left Skagen", "", "Hull burned " * 60, "Skagen"]


@pytest.fixture
def runs(make_nlp):
    """An encoder with a cache; and the sizes of the batches that the encoder really runs."""
    nlp = make_nlp("ner")
    encoder = nlp.get_pipe("bert_encoder")
    return nlp, encoder, note_sequences(encoder_of(encoder.model))


def test_what_is_kept_is_what_was_computed(runs, tmp_path):
    nlp, encoder, sizes = runs
    docs = [nlp.make_doc(text) for text in TEXTS]
    expected = encoder.model.predict(docs).states
    encoder.cache = StatesCache(tmp_path)
    first = encoder.predict(docs).states
    torch.testing.assert_close(first, expected)
    sizes.clear()
    again = encoder.predict([nlp.make_doc(text) for text in reversed(TEXTS)])
    assert not sizes  # nothing was run
    n = again.batch.seqlens[0]
    torch.testing.assert_close(again.states[:n], first[-n:], atol=0, rtol=0)
    # A new process, and a text that is new.
    encoder.cache = StatesCache(tmp_path)
    mixed = [nlp.make_doc(text) for text in ("Grete", TEXTS[0], TEXTS[0])]
    encoded = encoder.predict(mixed)
    assert sizes == [1]
    n = encoded.batch.seqlens[-1]
    torch.testing.assert_close(encoded.states[-n:], first[:n], atol=0, rtol=0)
    torch.testing.assert_close(encoded.states, encoder.model.predict(mixed).states)


def pack_pairs(encoder, pairs: Pairs) -> PackedPairs:
    return PackedPairs(pairs.docs, pack(encoder.model, pairs))


def test_pairs_and_other_layers_are_told_apart(runs, tmp_path):
    nlp, encoder, sizes = runs
    encoder.cache = StatesCache(tmp_path)
    doc = nlp.make_doc(TEXTS[0])
    for doc_first in (True, False):
        pairs = pack_pairs(encoder, Pairs([doc], [["Skagen", "Who left?"]], doc_first))
        expected = encoder.model.predict(pairs).states
        for _ in range(2):
            torch.testing.assert_close(encoder.read(pairs, None)[0].states, expected)
    encoder.predict([doc])
    encoder.model.attrs["layers"] = [0, 2]
    wide = encoder.predict([doc])
    torch.testing.assert_close(wide.states, encoder.model.predict([doc]).states)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_undone_entry_is_not_found(runs, tmp_path):
    nlp, encoder, sizes = runs
    docs = [nlp.make_doc(text) for text in TEXTS]
    encoder.cache = StatesCache(tmp_path)
    expected = encoder.predict(docs).states
    (states,) = tmp_path.glob("*/*.states")
    with states.open("r+b") as file:
        file.truncate(states.stat().st_size - 4)
    (entries,) = tmp_path.glob("*/*.entries")
    entries.write_bytes(entries.read_bytes()[:-1])
    encoder.cache = StatesCache(tmp_path)
    encoder._latest.drop()
    sizes.clear()
    torch.testing.assert_close(encoder.predict([nlp.make_doc(t) for t in TEXTS]).states, expected)
    assert sizes == [1]  # the last window alone


def test_training_with_a_cache_is_training_without(checkpoint, tmp_path, monkeypatch):
    """By what `spacy train` does: the config's callback, and a frozen encoder."""
    monkeypatch.chdir(tmp_path)
    data = str(tmp_path / "data.spacy")
    blank = spacy.blank("en")
    DocBin(docs=[eg.reference for eg in make_examples(blank)]).to_disk(data)
    found = []
    for folder in (None, "states"):
        nlp = spacy.blank("en")
        settings = {"name": checkpoint, "window": 64, "stride": 48}
        nlp.add_pipe("bert_encoder", config={"model": settings})
        nlp.add_pipe("bert_ner", config={"model": {"tok2vec": {"layers": "all"}}})
        callback = {"@callbacks": "spacy_bert_heads.cache_states.v1", "folder": folder}
        config = nlp.config.merge(
            {
                "paths": {"train": data, "dev": data},
                "training": {"frozen_components": ["bert_encoder"], "seed": 0},
                "initialize": {"after_init": callback if folder else None},
            }
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # spaCy's own, of a frozen layer that others read
            nlp = init_nlp(config)
        optimizer = Adam(3e-3, use_averages=False)
        for _ in range(5):
            nlp.update(make_examples(nlp), sgd=optimizer, exclude=["bert_encoder"])
        found.append(nlp)
    plain, cached = found
    assert list((tmp_path / "states").glob("*/*.entries"))
    doc, other = (nlp(TRAIN_DATA[0][0]) for nlp in found)
    assert doc.to_json() == other.to_json()
    # The cache is no part of the pipeline.
    cached.to_disk(tmp_path / "pipeline")
    shutil.rmtree(tmp_path / "states")
    assert spacy.load(tmp_path / "pipeline")(TRAIN_DATA[0][0]).to_json() == doc.to_json()
    assert not (tmp_path / "states").exists()


@pytest.mark.filterwarnings("ignore:.*W086")
def test_a_resumed_run_has_its_cache_again(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    docs = [example.reference for example in make_examples(spacy.blank("en"))]
    DocBin(docs=docs * 8).to_disk(tmp_path / "data.spacy")
    data = tmp_path / "data.spacy"
    config = init_config(["textcat"], name=checkpoint, train=data, dev=data)
    config["components"]["bert_encoder"]["model"] |= {"window": 64, "stride": 48}
    config["training"] |= {"frozen_components": ["bert_encoder"], "max_steps": 2}
    callback = {"@callbacks": "spacy_bert_heads.cache_states.v1", "folder": "states"}
    config["initialize"]["after_init"] = callback
    for steps in (2, 4):
        config["training"]["max_steps"] = steps
        nlp = train(config, tmp_path / "out", resume=steps > 2, stdout=StringIO())
        assert nlp.get_pipe("bert_encoder").cache is not None


@pytest.mark.filterwarnings("ignore:A learning rate")
def test_an_encoder_that_learns_is_not_cached(make_nlp, tmp_path):
    nlp = make_nlp("ner")
    encoder = nlp.get_pipe("bert_encoder")
    encoder.cache = StatesCache(tmp_path)
    nlp(TEXTS[0])
    nlp.update(make_examples(nlp), sgd=Adam(3e-3, use_averages=False))
    with pytest.warns(UserWarning, match="frozen_components"):
        states = encoder.predict([nlp.make_doc(TEXTS[0])]).states
    expected = encoder.model.predict([nlp.make_doc(TEXTS[0])]).states
    torch.testing.assert_close(states, expected)


def test_a_folder_that_cannot_be_written(make_nlp, tmp_path):
    nlp = make_nlp("ner")
    encoder = nlp.get_pipe("bert_encoder")
    (tmp_path / "file").write_text("in the way")
    encoder.cache = StatesCache(tmp_path / "file")
    with pytest.warns(UserWarning, match="can't be kept"):
        states = encoder.predict([nlp.make_doc(TEXTS[0])]).states
    expected = encoder.model.predict([nlp.make_doc(TEXTS[0])]).states
    torch.testing.assert_close(states, expected)


def test_a_forked_worker_has_files_of_its_own(runs, tmp_path, monkeypatch):
    """Where a file of its parent is read is shared with it."""
    nlp, encoder, sizes = runs
    encoder.cache = StatesCache(tmp_path)
    first = encoder.predict([nlp.make_doc(TEXTS[0])]).states
    (whole,) = tmp_path.glob("*/*.states")
    before = whole.read_bytes()
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    sizes.clear()
    docs = [nlp.make_doc(text) for text in (TEXTS[0], "Grete")]
    encoded = encoder.predict(docs)
    assert sizes == [1]  # what the parent computed is found
    torch.testing.assert_close(encoded.states[: len(first)], first, atol=0, rtol=0)
    assert whole.read_bytes() == before and len(list(tmp_path.glob("*/*.states"))) == 2


@pytest.mark.parametrize("folder", ["..", "../states", "/tmp", "runs/../../states"])
def test_a_config_can_not_choose_any_folder(tmp_path, monkeypatch, folder):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    make = registry.callbacks.get("spacy_bert_heads.cache_states.v1")
    with pytest.raises(ValueError, match=f"'{folder}', which is not below '{tmp_path}/run'"):
        make(folder=Path(folder))
    make(folder=Path("states"))
    make(folder=tmp_path / "run" / "states")
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="not below"):
        make(folder=Path("link"))


def test_windows_are_kept_once(runs, tmp_path):
    """QA learns from other windows of a long text in every epoch: the cache ends with all of them,
    and grows no more."""
    nlp, encoder, sizes = runs
    encoder.cache = StatesCache(tmp_path)
    doc = nlp.make_doc("Anna left " + " ".join(f"{i} and {i * i}" for i in range(60)))
    answers = np.asarray([[0, 4]])
    pairs = pack_pairs(encoder, Pairs([doc], [["Who left?"]], False))
    for _ in range(100):
        encoder.read(PackedPairs([doc], choose_windows(pairs.batch, answers)[0]), None)
    whole = encoder.read(pairs, None)[0]
    n_windows = int(whole.batch.num_windows.sum())
    assert n_windows > 4
    assert sum(sizes) == n_windows
    (entries,) = (np.fromfile(path, dtype=ENTRY) for path in tmp_path.glob("*/*.entries"))
    assert len(entries) == n_windows
