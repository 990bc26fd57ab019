"""Training steps and kept hidden states: found by what was read, each in its own thread."""

import copy
import gc
import pickle
import threading
import warnings
import weakref

import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from conftest import make_examples
from joint import build
from thinc.api import Adam

from spacy_bert_heads.encoder import component, model
from spacy_bert_heads.encoder.model import checkpoint_of, shim_of


def with_two_heads(make_nlp, **settings):
    return make_nlp("tagger", "ner", **settings)


def gradient_of(nlp) -> torch.Tensor:
    parameters = checkpoint_of(nlp.get_pipe("bert_encoder").model).model.parameters()
    return torch.cat(
        [p.grad.flatten() if p.grad is not None else p.flatten() * 0 for p in parameters]
    )


# --- what was read


def merge_and_split(doc):
    """As many tokens as before, but others."""
    with doc.retokenize() as retokenizer:
        retokenizer.merge(doc[0:2])
        retokenizer.split(doc[3], ["Ska", "gen"], heads=[(doc[3], 1), doc[2]])
    return doc


def test_tokens_that_changed_are_read_again(make_nlp):
    nlp = with_two_heads(make_nlp)
    encoder, tagger = nlp.get_pipe("bert_encoder"), nlp.get_pipe("bert_tagger")
    doc, fresh = (nlp.make_doc("Anna Grete left Skagen by boat") for _ in range(2))
    n = len(doc)
    encoder.predict([doc])
    assert len(merge_and_split(doc)) == n
    expected = tagger.predict([merge_and_split(fresh)]).logits
    torch.testing.assert_close(tagger.predict([doc]).logits, expected)


def test_tokens_that_changed_are_learned_from_again(make_nlp):
    """In training, by what an annotating component does between two heads."""
    gradients = []
    for change_first in (True, False):
        nlp = with_two_heads(make_nlp)
        (example, _) = make_examples(nlp)
        if change_first:
            merge_and_split(example.predicted)
        encoder = nlp.get_pipe("bert_encoder")
        encoder.update([example])
        if not change_first:
            encoder._step.read([example.predicted], encoder.model)
            merge_and_split(example.predicted)
        nlp.get_pipe("bert_ner").update([example])
        nlp.get_pipe("bert_tagger").update([example])
        gradients.append(gradient_of(nlp))
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


def test_equal_docs_share_what_was_read(make_nlp, monkeypatch):
    nlp = with_two_heads(make_nlp)
    encoder = nlp.get_pipe("bert_encoder")
    docs = [nlp.make_doc("Anna left"), nlp.make_doc("Hull")]
    expected = encoder.predict(docs).states
    monkeypatch.setattr(component, "encode", lambda *args: pytest.fail("it was read already"))
    again = [nlp.make_doc("Hull"), nlp.make_doc("Anna left")]
    found = encoder.predict(again)
    n = int(found.batch.seqlens[0])  # of the Doc that was the last one
    torch.testing.assert_close(found.states, torch.cat([expected[-n:], expected[:-n]]))


# --- other Docs and other threads


def test_a_prediction_on_other_docs_does_not_end_a_step(make_nlp):
    """As of an annotating component that reads another Doc between two heads."""
    found = []
    for beside in (False, True):
        nlp = with_two_heads(make_nlp)
        examples = make_examples(nlp)
        nlp.get_pipe("bert_encoder").update(examples)
        nlp.get_pipe("bert_ner").update(examples)
        if beside:
            nlp("Another text that somebody reads meanwhile.")
        nlp.get_pipe("bert_tagger").update(examples)
        found.append(gradient_of(nlp))
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(*found)


def in_thread(run):
    results, errors = [], []

    def call():
        try:
            results.append(run())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert not errors, errors
    return results[0]


def test_a_thread_that_predicts_leaves_a_step_alone_and_sees_no_dropout(make_nlp, tmp_path):
    name = make_checkpoint(tmp_path, dropout=0.5)
    nlp = make_nlp("textcat", name=name)
    text = "Anna Grete left Skagen"
    expected = nlp(text).cats
    examples = make_examples(nlp)
    torch.manual_seed(0)
    nlp.get_pipe("bert_encoder").update(examples)
    shim = shim_of(nlp.get_pipe("bert_encoder").model)
    head = shim_of(nlp.get_pipe("bert_textcat").model)
    with shim.training(), head.training():  # as long as another thread is in its forward pass
        assert in_thread(lambda: nlp(text).cats) == pytest.approx(expected)
    nlp.get_pipe("bert_textcat").update(examples)
    assert gradient_of(nlp).abs().sum() > 0


def test_first_calls_from_several_threads_make_one_copy(make_nlp, monkeypatch):
    nlp = make_nlp("textcat")
    made = []
    plain, barrier = model.for_inference, threading.Barrier(8)

    def make(*args):
        made.append(args)
        return plain(*args)

    monkeypatch.setattr(model, "for_inference", make)
    shim_of(nlp.get_pipe("bert_encoder").model).version += 1

    def call():
        barrier.wait()
        nlp("Anna left")

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


# --- gradients are never lost without a word


def test_a_gradient_after_the_end_of_its_step_is_an_error(make_nlp):
    nlp = with_two_heads(make_nlp)
    examples = make_examples(nlp)
    encoder, ner = nlp.get_pipe("bert_encoder"), nlp.get_pipe("bert_ner")
    encoder.update(examples)
    output, backprop = ner.begin_update(examples)
    _, gradient = ner.get_loss(examples, output)
    encoder.update(examples)
    with pytest.raises(ValueError, match="bert_ner read 2 Docs in a training step .* has ended"):
        backprop(gradient)


@pytest.mark.parametrize(
    "way", ["update", "finish_update", "to_bytes", "use_params", "last answer"]
)
def test_what_ends_a_step(make_nlp, way):
    nlp = with_two_heads(make_nlp)
    examples = make_examples(nlp)
    encoder = nlp.get_pipe("bert_encoder")
    encoder.update(examples)
    nlp.get_pipe("bert_ner").update(examples)
    assert gradient_of(nlp).abs().sum() == 0
    before = shim_of(encoder.model).version
    match way:
        case "update":
            encoder.update(examples)
        case "finish_update":
            encoder.finish_update(Adam(1e-4, use_averages=False))
            assert shim_of(encoder.model).version > before
            return
        case "to_bytes":
            nlp.to_bytes()
        case "use_params":
            with nlp.use_params({(0, "W"): None}):
                pass
        case "last answer":
            nlp.get_pipe("bert_tagger").update(examples)
    assert gradient_of(nlp).abs().sum() > 0


def test_heads_without_gold_annotation_are_not_waited_for(make_nlp):
    nlp = make_nlp("ner", "textcat")
    (example, _) = make_examples(nlp)
    example.reference.cats = {}
    nlp.get_pipe("bert_encoder").update([example])
    nlp.get_pipe("bert_ner").update([example])
    assert gradient_of(nlp).abs().sum() == 0
    nlp.get_pipe("bert_textcat").update([example])
    assert gradient_of(nlp).abs().sum() > 0


def test_disabled_and_frozen_heads_are_not_waited_for(make_nlp):
    nlp = make_nlp("ner", "tagger", "textcat")
    nlp.config["training"]["frozen_components"] = ["bert_textcat"]
    examples = make_examples(nlp)
    with nlp.select_pipes(disable=["bert_tagger"]):
        nlp.get_pipe("bert_encoder").update(examples)
        nlp.get_pipe("bert_ner").update(examples)
        assert gradient_of(nlp).abs().sum() > 0


def test_an_encoder_that_does_not_learn_is_told_once(make_nlp):
    nlp = with_two_heads(make_nlp)
    optimizer = Adam(1e-4, use_averages=False)
    with (
        nlp.select_pipes(enable=["bert_ner"]),
        pytest.warns(UserWarning, match="bert_ner learns, but 'bert_encoder' does not") as caught,
    ):
        for _ in range(3):
            nlp.update(make_examples(nlp), sgd=optimizer)
    assert len(caught) == 1
    nlp = with_two_heads(make_nlp)
    nlp.config["training"]["frozen_components"] = ["bert_encoder"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nlp.update(make_examples(nlp), sgd=optimizer, exclude=["bert_encoder"])


# --- which encoder


def two_encoders(checkpoint):
    nlp = spacy.blank("xx")
    for name in ("first", "second"):
        model = {"name": checkpoint, "window": 64, "stride": 48}
        nlp.add_pipe("bert_encoder", name=name, config={"model": model})
    nlp.add_pipe("bert_tagger")
    for label in "AB":
        nlp.get_pipe("bert_tagger").add_label(label)
    nlp.initialize()
    return nlp


WAYS = {
    "built": lambda nlp: nlp,
    "pickled": lambda nlp: pickle.loads(pickle.dumps(nlp)),
    "copied": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
def test_heads_keep_to_the_nearest_encoder(checkpoint, way):
    nlp = WAYS[way](two_encoders(checkpoint))
    listener = nlp.get_pipe("bert_tagger").model.get_ref("tok2vec")
    second = nlp.get_pipe("second")
    assert listener.encoder_for([nlp.make_doc("a")]) is second
    with nlp.select_pipes(disable=["second"]):
        nlp.add_pipe("sentencizer")
        assert listener.encoder_for([nlp.make_doc("a")]) is second
    nlp("Anna left")


def test_sourcing_a_head_leaves_its_pipeline_as_it_was(checkpoint, tmp_path):
    one = build(checkpoint, ["textcat"])
    for label in "AB":
        one.get_pipe("bert_textcat").add_label(label)
    one.initialize()
    expected = one("Anna left Skagen").cats
    two = build(make_checkpoint(tmp_path, seed=7), [])
    two.initialize()
    two.add_pipe("bert_textcat", source=one)
    assert one("Anna left Skagen").cats == expected
    assert two("Anna left Skagen").cats == pytest.approx(expected)  # it reads its own encoder
    with pytest.warns(UserWarning, match="'bert_encoder', with which it is saved. It can't predi"):
        two.to_disk(tmp_path / "two")
    one.to_disk(tmp_path / "one")
    del one
    with pytest.raises(ValueError, match="bert_textcat was trained on another encoder than"):
        two("Anna left Skagen")
    two.get_pipe("bert_textcat").to_disk(tmp_path / "head")
    again = build(checkpoint, ["textcat"])
    again.get_pipe("bert_encoder").initialize(lambda: [])
    again.get_pipe("bert_textcat").from_disk(tmp_path / "head")
    with pytest.raises(ValueError, match="bert_textcat was trained on another encoder than"):
        again("Anna left Skagen")


def test_training_on_another_encoder_is_a_warning(make_nlp, checkpoint, tmp_path):
    nlp = make_nlp("ner")
    nlp.get_pipe("bert_ner").to_disk(tmp_path / "head")
    other = make_nlp("ner")
    other.get_pipe("bert_ner").from_disk(tmp_path / "head")
    optimizer = Adam(1e-4, use_averages=False)
    with pytest.warns(UserWarning, match="bert_ner was trained on another encoder") as caught:
        for _ in range(2):
            other.update(make_examples(other), sgd=optimizer)
    assert len(caught) == 1
    other("Anna left Skagen")
    other.to_disk(tmp_path / "pipeline")
    spacy.load(tmp_path / "pipeline")("Anna left Skagen")


def test_updates_of_an_encoder_are_counted(make_nlp, tmp_path):
    nlp = make_nlp("ner")
    encoder = nlp.get_pipe("bert_encoder")
    first = encoder.id
    for _ in range(3):
        nlp.update(make_examples(nlp), sgd=Adam(1e-4, use_averages=False))
    nlp.to_disk(tmp_path)
    origin = checkpoint_of(spacy.load(tmp_path).get_pipe("bert_encoder").model).origin
    assert (origin["id"], origin["updates"]) == (first, 3)
    encoder.initialize(lambda: [])
    assert encoder.id != first


@pytest.mark.parametrize(
    "every, missed, is_told",
    [(1, 1, False), (1, 2, False), (1, 5, True), (3, 1, False), (3, 6, False), (3, 7, True)],
)
def test_a_head_that_its_encoder_has_left_behind(make_nlp, tmp_path, every, missed, is_told):
    """In a joint training every third batch may be for a head: twice that is no cause for alarm."""
    nlp = make_nlp("ner", "textcat")
    optimizer = Adam(1e-5, use_averages=False)
    for i in range(19 + missed):
        is_for_it = i < 19 and i % every == 0
        with nlp.select_pipes(disable=[] if is_for_it else ["bert_ner"]):
            nlp.update(make_examples(nlp), sgd=optimizer)
    nlp.to_disk(tmp_path)
    for one in (nlp, copy.deepcopy(nlp), spacy.load(tmp_path)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            one("Anna left Skagen")
            one("Anna left Skagen")
        told = [str(w.message) for w in caught if "has been updated" in str(w.message)]
        assert len(told) == is_told
        assert all(text.startswith("bert_ner last learned at update 19 of") for text in told)


def test_to_hf_exports_the_last_update(make_nlp, tmp_path):
    """Also where the step is open still, since a head has been excluded."""
    from spacy_bert_heads import to_hf

    nlp = make_nlp("ner", "textcat")
    nlp.update(make_examples(nlp), sgd=Adam(1e-3, use_averages=False), exclude=["bert_textcat"])
    to_hf(nlp, "bert_encoder", tmp_path / "one")
    assert nlp.get_pipe("bert_encoder")._step is None
    assert component.BertEncoder is type(nlp.get_pipe("bert_encoder"))


def test_one_batch_of_hidden_states_is_alive_while_docs_are_kept(make_nlp, monkeypatch):
    """Without the garbage collector: nothing holds itself."""
    nlp = make_nlp("ner", "textcat")
    read, most = [], []
    encode = component.encode

    def note(*args):
        most.append(sum(ref() is not None for ref in read))
        encoded = encode(*args)
        read.append(weakref.ref(encoded.states))
        return encoded

    monkeypatch.setattr(component, "encode", note)
    gc.collect()
    gc.disable()
    try:
        kept = list(nlp.pipe([f"Anna left Skagen {i} times" for i in range(160)], batch_size=4))
        assert len(read) == 40
        assert max(most) == 0  # the one before is gone before the next is made
        assert sum(ref() is not None for ref in read) == 1
        del kept
        assert sum(ref() is not None for ref in read) == 0
    finally:
        gc.enable()
