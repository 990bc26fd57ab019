"""One encoder, pulled by its heads: one pass a batch, one batch alive, exact gradients."""

import gc
import threading
import weakref

import pytest
import spacy
import torch
import transformers
from checkpoints import FAMILIES, TEXTS, make_checkpoint
from conftest import TRAIN_DATA, make_examples
from letters import lists
from spacy.training import Example
from thinc.api import Adam

from spacy_bert_heads.encoder import encoder as encoder_module
from spacy_bert_heads.encoder import model as encoder_model
from spacy_bert_heads.encoder.hidden_states import HiddenStates
from spacy_bert_heads.encoder.model import encoder_of, shim_of

TEXT_LIST = [TEXTS[i % len(TEXTS)] + f" number {i}" for i in range(20)]


@pytest.fixture
def passes(monkeypatch):
    """The number of Docs in every pass of an encoder."""
    seen = []
    run = encoder_model.pack_docs

    def count(docs, *args, **kwargs):
        seen.append(len(docs))
        return run(docs, *args, **kwargs)

    monkeypatch.setattr(encoder_model, "pack_docs", count)
    return seen


def alive() -> int:
    gc.collect()
    return sum(isinstance(item, HiddenStates) for item in gc.get_objects())


# --- pulled states


def test_heads_share_one_pass_per_batch(make_nlp, passes):
    nlp = make_nlp("ner", "textcat", "tagger")
    passes.clear()
    list(nlp.pipe(TEXT_LIST, batch_size=8))
    assert passes == [8, 8, 4]
    passes.clear()
    nlp(TEXT_LIST[0])
    assert passes == [1]


def test_a_pipeline_without_asking_heads_runs_nothing(make_nlp, passes):
    nlp = make_nlp("ner", "textcat")
    passes.clear()
    with nlp.select_pipes(disable=["bert_ner", "bert_textcat"]):
        list(nlp.pipe(TEXT_LIST))
    assert passes == []


def test_unequal_batch_sizes_only_recompute(make_nlp):
    nlp = make_nlp("ner", "textcat")
    expected = [(doc.cats, doc.ents) for doc in nlp.pipe(TEXT_LIST)]
    sizes = {"bert_ner": {"batch_size": 7}, "bert_textcat": {"batch_size": 3}}
    for doc, (cats, ents) in zip(nlp.pipe(TEXT_LIST, component_cfg=sizes), expected, strict=True):
        assert doc.cats == pytest.approx(cats, abs=1e-6)
        assert [ent.text for ent in doc.ents] == [ent.text for ent in ents]


def test_a_hit_is_a_slice_in_any_order(make_nlp, passes):
    nlp = make_nlp("ner")
    encoder = nlp.get_pipe("bert_encoder")
    docs = [nlp.make_doc(text) for text in TEXT_LIST]
    encoder.predict(docs)
    passes.clear()
    some = [docs[i] for i in (3, 0, 17, 3)]
    hit = encoder.predict(some)
    assert passes == []
    fresh = encoder.model.predict(some)
    torch.testing.assert_close(hit.states, fresh.states, atol=1e-5, rtol=1e-5)
    assert lists(hit.batch) == lists(fresh.batch)


def test_merged_tokens_are_read_anew(make_nlp, passes):
    nlp = make_nlp("ner")
    encoder = nlp.get_pipe("bert_encoder")
    doc = nlp.make_doc("Anna Grete left Skagen")
    assert encoder.predict([doc]).batch.tokens.num_tokens.tolist() == [4]
    with doc.retokenize() as retokenizer:
        retokenizer.merge(doc[0:2])
    passes.clear()
    assert encoder.predict([doc]).batch.tokens.num_tokens.tolist() == [3]
    assert passes == [1]


def test_an_update_makes_kept_states_stale(make_nlp):
    nlp = make_nlp("ner")
    encoder = nlp.get_pipe("bert_encoder")
    doc = nlp.make_doc("Anna Grete left Skagen")
    before = encoder.predict([doc]).states
    nlp.update(make_examples(nlp), sgd=Adam(1e-4, use_averages=False))
    assert not torch.equal(encoder.predict([doc]).states, before)


# --- one batch alive


def test_one_batch_of_states_is_alive_and_none_on_docs(make_nlp):
    nlp = make_nlp("ner", "textcat")
    gc.collect()
    before = alive()
    kept = []
    for doc in nlp.pipe(TEXT_LIST * 5, batch_size=10):
        kept.append(doc)
        if len(kept) % 25 == 0:
            assert alive() <= max(before, 1)
    assert all(doc.tensor.size == 0 for doc in kept)


def test_states_go_with_the_last_of_their_docs(make_nlp):
    nlp = make_nlp("ner")
    gc.collect()
    before = alive()
    docs = list(nlp.pipe(["Anna left Skagen", "The boat burned"] * 2))
    gone = weakref.ref(docs[0])
    assert alive() == before + 1
    del docs[1:]
    assert alive() == before + 1
    del docs
    assert gone() is None and alive() == before


def test_training_leaves_no_graph_behind(make_nlp):
    def graphs() -> int:
        gc.collect()
        tensors = (item for item in gc.get_objects() if isinstance(item, torch.Tensor))
        return sum(tensor.grad_fn is not None for tensor in tensors)

    nlp = make_nlp("ner", "textcat")
    before = graphs()
    nlp.update(make_examples(nlp), sgd=Adam(1e-4, use_averages=False))
    assert nlp.get_pipe("bert_encoder")._step is None
    assert graphs() == before


def test_threads_do_not_mix_up_their_batches(make_nlp):
    nlp = make_nlp("textcat")
    expected = {text: doc.cats for text, doc in zip(TEXT_LIST, nlp.pipe(TEXT_LIST), strict=True)}
    wrong, done = [], []

    def work(texts):
        for _ in range(3):
            for doc in nlp.pipe(texts, batch_size=3):
                if doc.cats != pytest.approx(expected[doc.text], abs=1e-5):
                    wrong.append(doc.text)
        done.append(True)

    threads = [threading.Thread(target=work, args=(TEXT_LIST[i::3],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(done) == 3


# --- states


@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_hugging_face(family, tmp_path):
    name = make_checkpoint(tmp_path / family, family=family)
    nlp = spacy.blank("en")
    settings = {"name": name, "max_batch_tokens": 100}
    encoder = nlp.add_pipe(
        "bert_encoder", config={"model": {**settings, "window": 128, "stride": 64}}
    )
    nlp.initialize()
    theirs = transformers.AutoModel.from_pretrained(name).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    encoded = encoder.predict([nlp.make_doc(text) for text in TEXTS])
    assert encoded.batch.num_windows.tolist() == [1] * len(TEXTS)
    parts = encoded.states.split(encoded.batch.seqlens.tolist())
    for text, states in zip(TEXTS, parts, strict=True):
        batch = tokenizer(text, return_tensors="pt")
        if not getattr(theirs.config, "type_vocab_size", 0):
            batch.pop("token_type_ids", None)
        with torch.no_grad():
            expected = theirs(**batch).last_hidden_state[0]
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_real_checkpoint_equals_hugging_face(minilm, data):
    nlp = spacy.blank("en")
    encoder = nlp.add_pipe("bert_encoder", config={"model": {"name": minilm}})
    nlp.initialize()
    lines = (data / "textcat_sst2" / "dev.txt").read_text(encoding="utf8").splitlines()[:40]
    texts = [line.split(" ", 1)[1] for line in lines]
    encoded = encoder.predict([nlp.make_doc(text) for text in texts])
    theirs = transformers.AutoModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    parts = encoded.states.split(encoded.batch.seqlens.tolist())
    for text, states in zip(texts, parts, strict=True):
        with torch.no_grad():
            expected = theirs(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)


# --- gradients


def window_gradients(nlp, doc, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """By torch alone: each token's state taken from its window by hand, gradient by autograd."""
    encoder = nlp.get_pipe("bert_encoder")
    bert = encoder_of(encoder.model)
    window, stride = encoder.model.attrs["window"], encoder.model.attrs["stride"]
    pieces = bert.checkpoint.tokenizer([doc.text])
    n, room = len(pieces.ids), window - 2
    starts = [0]
    while starts[-1] + room < n:
        starts.append(starts[-1] + stride)
    assert len(starts) > 2
    states = []
    for start in starts:
        ids = [
            *bert.checkpoint.tokenizer.prefix,
            *pieces.ids[start : start + room],
            *bert.checkpoint.tokenizer.suffix,
        ]
        states.append(bert.model(torch.tensor([ids])).last_hidden_state[0, 1:-1])
    total = torch.zeros(())
    for k, token in enumerate(doc):
        piece = next(i for i in range(n) if pieces.starts[i] >= token.idx)
        contexts = [
            min(piece - start, start + len(part) - 1 - piece)
            if start <= piece < start + len(part)
            else -1
            for start, part in zip(starts, states, strict=True)
        ]
        best = max(range(len(starts)), key=lambda w: contexts[w])
        total = total + (states[best][piece - starts[best]] * weight[k]).sum()
    bert.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in bert.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("max_batch_tokens", [4096, 20])
def test_gradients_through_overlapping_windows(make_nlp, max_batch_tokens):
    """Also when the batch is over the budget, and its buckets are checkpointed."""
    nlp = make_nlp("ner", window=12, stride=4, max_batch_tokens=max_batch_tokens)
    encoder = nlp.get_pipe("bert_encoder")
    doc = nlp.make_doc(
        "Anna Grete left Skagen on Tuesday and the crew saw a fire in the engine room"
    )
    torch.manual_seed(1)
    weight = torch.randn(len(doc), 32)
    expected = window_gradients(nlp, doc, weight)
    encoder_of(encoder.model).zero_grad()

    encoder.update([Example(doc, doc)])
    listener = encoder.listeners[0]
    encoded, backprop = encoder.read([doc], listener)
    gradient = torch.zeros_like(encoded.states)
    gradient.index_add_(0, torch.from_numpy(encoded.batch.tokens.first_positions()), weight)
    backprop(gradient)
    for name, p in encoder_of(encoder.model).named_parameters():
        if name in expected:
            torch.testing.assert_close(p.grad, expected[name], atol=1e-4, rtol=1e-4, msg=name)


def test_parts_that_are_recomputed_repeat_their_dropout(tmp_path, make_nlp, monkeypatch):
    name = make_checkpoint(tmp_path / "dropout", dropout=0.3)
    gradients, calls = [], []
    real = encoder_module.recompute

    def direct(function, *args, use_reentrant):
        calls.append(sum(n for n, _ in args[0].shapes))
        return function(*args)

    for recompute in (real, direct):
        monkeypatch.setattr(encoder_module, "recompute", recompute)
        nlp = make_nlp("textcat", name=name, max_batch_tokens=10)
        torch.manual_seed(5)
        nlp.update(make_examples(nlp), sgd=False)
        module = encoder_of(nlp.get_pipe("bert_encoder").model)
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert calls == [1, 1]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients[0].values())


def test_modules_rest_in_eval_mode(make_nlp):
    nlp = make_nlp("ner", "textcat")
    nlp.update(make_examples(nlp), sgd=Adam(1e-4, use_averages=False))
    for name in nlp.pipe_names:
        assert not any(m.training for m in shim_of(nlp.get_pipe(name).model).module.modules())


def test_a_save_takes_the_open_step_first(make_nlp, tmp_path):
    """The last head is frozen, so the step of a hand-made update is still open."""
    nlp = make_nlp("ner", "textcat")
    optimizer = Adam(1e-4, use_averages=False)
    nlp.update(make_examples(nlp), sgd=optimizer, exclude=["bert_textcat"])
    assert nlp.get_pipe("bert_encoder")._step is not None
    nlp.to_disk(tmp_path)
    assert nlp.get_pipe("bert_encoder")._step is None
    loaded = spacy.load(tmp_path)
    text = TRAIN_DATA[0][0]
    assert loaded(text).cats == pytest.approx(nlp(text).cats, abs=1e-6)
