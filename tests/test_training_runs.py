"""`bert train`: the steps of spaCy, breaks, and too little memory."""

import shutil
import signal
from collections.abc import Callable
from io import StringIO
from multiprocessing import get_context

import pytest
import spacy
import torch
from joint import LANG
from spacy.tokens import DocBin
from spacy.training.initialize import init_nlp
from spacy.training.loop import train as spacy_train
from training_runs import SGD, assert_same, run, train_until_killed, weights

from spacy_bert_heads.encoder.component import BertEncoder
from spacy_bert_heads.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:.*last learned at update", "ignore:A learning rate")


@pytest.fixture
def by_spacy(make_config) -> dict[str, torch.Tensor]:
    nlp = init_nlp(make_config())
    spacy_train(nlp, stdout=StringIO(), stderr=StringIO())
    return weights(nlp)


def test_the_steps_are_spacys(make_config, by_spacy, tmp_path):
    assert_same(run(make_config(), tmp_path / "run"), by_spacy)
    assert (tmp_path / "run/model-best").is_dir() and (tmp_path / "run/model-last").is_dir()


# --- breaks


def fork(function: Callable, *args) -> int:
    """Run a function in another process. Gives the exit code."""
    process = get_context("fork").Process(target=function, args=args)
    process.start()
    process.join(100)
    return process.exitcode


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_goes_on_after_a_break(make_config, tmp_path, number):
    """With dropout, and with spaCy's optimizer state of a component of its own."""
    config = make_config(dropout=True)
    whole = run(config, tmp_path / "whole")
    code = fork(train_until_killed, config, tmp_path / "broken", 8, number)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    out = StringIO()
    resumed = train(config, tmp_path / "broken", resume=True, stdout=out, stderr=StringIO())
    assert_same(weights(resumed), whole)
    step = 4 if number == signal.SIGKILL else 7
    assert f"Continuing after step {step}." in out.getvalue()
    for name in ("model-best", "model-last"):
        loaded = [spacy.load(tmp_path / run_ / name) for run_ in ("whole", "broken")]
        assert_same(*map(weights, loaded))
        assert loaded[0].meta["performance"] == loaded[1].meta["performance"]
    assert [path.name for path in (tmp_path / "broken").glob(".new*")] == []


def test_a_run_that_has_ended_is_left_as_it_is(make_config, tmp_path):
    config = make_config(["ner"])
    ended = run(config, tmp_path)
    assert_same(run(config, tmp_path, resume=True), ended)
    with pytest.raises(ValueError, match="has a run already.*--resume.*--force"):
        run(config, tmp_path)
    assert_same(run(config, tmp_path, force=True), ended)


def test_models_are_replaced_only_by_new_ones(make_config, tmp_path):
    config = make_config(["ner"])
    ended = run(config, tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.glob("model-*/**/*") if path.is_file()}
    config["paths"]["train"] = str(tmp_path / "missing.spacy")
    with pytest.raises(ValueError, match="There is no"):  # nothing of the old run is gone
        run(config, tmp_path, force=True)
    config["paths"]["train"] = config["paths"]["dev"]
    assert_same(run(config, tmp_path, resume=True), ended)
    shutil.rmtree(tmp_path / "states")
    with pytest.raises(ValueError, match="has a run already"):
        run(config, tmp_path)
    with pytest.raises(ValueError, match="states of the run in .* are gone"):
        run(config, tmp_path, resume=True)
    assert all(path.read_bytes() == content for path, content in files.items())


def test_a_resumed_run_may_be_longer_and_its_schedule_too(make_config, tmp_path):
    config = make_config(["ner"])
    rate = config["training"]["optimizer"]["learn_rate"]
    rate["total_steps"] = "${training.max_steps}"  # as in the config of init-config
    run(config, tmp_path)
    config["training"]["max_steps"] += 4
    run(config, tmp_path, resume=True)
    rate["warmup_steps"] += 1
    with pytest.raises(ValueError, match="warmup_steps = 2; now it is 3"):
        run(config, tmp_path, resume=True)


def test_other_settings_or_texts_are_not_resumed(make_config, tmp_path):
    config = make_config(["ner"])
    run(config, tmp_path / "run")
    config["training"]["batcher"]["size"] = 100
    with pytest.raises(
        ValueError, match=r"began with training\.batcher\.size = 200; now it is 100"
    ):
        run(config, tmp_path / "run", resume=True)
    config["training"]["batcher"]["size"] = 200
    docs = list(
        DocBin().from_disk(make_config()["paths"]["train"]).get_docs(spacy.blank(LANG).vocab)
    )
    DocBin(docs=docs[:-1], store_user_data=True).to_disk(tmp_path / "fewer.spacy")
    config["paths"]["train"] = str(tmp_path / "fewer.spacy")
    with pytest.raises(ValueError, match="texts have changed"):
        run(config, tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_ends_the_run(make_config, tmp_path):
    config = make_config(["ner"])
    config["training"]["optimizer"]["learn_rate"]["initial_rate"] = 1e30
    config["training"]["optimizer"]["grad_clip"] = 0.0
    with pytest.raises(FloatingPointError, match="The loss of bert_encoder is nan at step 4"):
        run(config, tmp_path)
    assert all(
        torch.isfinite(value).all()
        for value in weights(spacy.load(tmp_path / "model-last")).values()
    )


# --- memory


class OutOfMemoryError(RuntimeError):
    """As torch's and cupy's is called."""


def test_a_batch_that_does_not_fit_is_read_in_parts(make_config, tmp_path, monkeypatch):
    config = make_config(["ner"])
    config["training"]["optimizer"] = SGD
    whole = run(config, tmp_path / "whole")
    plain = BertEncoder.read

    def read(self, inputs, listener):
        if listener is not None and len(inputs) > 3:
            raise OutOfMemoryError("CUDA out of memory.")
        return plain(self, inputs, listener)

    monkeypatch.setattr(BertEncoder, "read", read)
    with pytest.warns(UserWarning, match="didn't fit into the GPU's memory") as caught:
        parts = run(config, tmp_path / "parts")
    said = [str(one.message) for one in caught if "didn't fit" in str(one.message)]
    assert len(said) == len(set(said)) <= 3
    assert_same(parts, whole, atol=1e-5)


def test_an_example_that_does_not_fit_is_named(make_config, tmp_path, monkeypatch):
    def read(self, inputs, listener):
        raise OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(BertEncoder, "read", read)
    with (
        pytest.warns(UserWarning, match="didn't fit"),
        pytest.raises(ValueError, match="not enough GPU memory to learn from a single example"),
    ):
        run(make_config(["ner"]), tmp_path)
