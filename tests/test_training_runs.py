"""`bert train`: one process and two, breaks, and too little memory."""

import copy
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from joint import HEADS, LANG, make_examples
from spacy.tokens import DocBin
from spacy.training.initialize import init_nlp
from spacy.training.loop import train as spacy_train
from thinc.api import Adam, Config

from spacy_bert_heads.encoder.component import BertEncoder
from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.runs.processes import Processes
from spacy_bert_heads.training import loop
from spacy_bert_heads.training.loop import train
from spacy_bert_heads.training.update import Updater

STEPS = 12
SGD = {"@optimizers": "SGD.v1", "learn_rate": 0.05, "grad_clip": 1.0, "use_averages": False}


pytestmark = pytest.mark.filterwarnings("ignore:.*last learned at update", "ignore:A learning rate")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Texts of many lengths, a third of them annotated for some heads alone."""
    nlp, docs = spacy.blank(LANG), []
    for i in range(6):
        for doc in (eg.reference for eg in make_examples(nlp)):
            doc = doc.copy()
            doc.cats = doc.cats if i % 3 else {}
            if i % 3 == 1:
                doc._.hypotheses = doc._.nli = []
            docs.append(doc)
            docs.append(nlp.make_doc(doc.text[: 5 * i + 5]))
            docs[-1].cats = doc.cats
    path = tmp_path_factory.mktemp("data") / "train.spacy"
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


@pytest.fixture(scope="module")
def make_config(data, tmp_path_factory) -> Callable[..., Config]:
    """A config for some heads."""
    folder = tmp_path_factory.mktemp("bert")
    with_dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    encoders = {
        False: make_checkpoint(folder / "plain"),
        True: make_checkpoint(folder / "dropout", **with_dropout),
    }

    def make(heads=HEADS, *, dropout: bool = False, **training) -> Config:
        config = init_config(
            list(heads), lang=LANG, name=str(encoders[dropout]), train=str(data), dev=str(data)
        )
        config["training"].update(
            {"max_steps": STEPS, "eval_frequency": 4, "patience": 0, **training}
        )
        config["training"]["optimizer"]["learn_rate"].update(
            initial_rate=2e-4, warmup_steps=2, total_steps=2 * STEPS
        )
        config["training"]["batcher"]["size"] = 200
        config["components"]["bert_encoder"]["model"].update(window=64, stride=48)
        return config

    return make


def run(config: Config, output: Path, **settings) -> dict[str, torch.Tensor]:
    """Train without a word. Gives the weights."""
    return weights(train(config, output, stdout=StringIO(), stderr=StringIO(), **settings))


def weights(nlp) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, pipe in nlp.pipeline
        for i, node in enumerate(pipe.model.walk())
        for shim in node.shims
        for key, value in shim.module.state_dict().items()
    }


def assert_same(ours, theirs, *, atol: float = 0) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


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


def train_until_killed(config: Config, output: Path, at: int, number: int) -> None:
    plain = loop.Updater.__call__
    count = 0

    def update(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), number)
        return plain(self, *args, **kwargs)

    loop.Updater.__call__ = update
    torch.set_num_threads(1)
    run(config, output, resume=True)


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


def test_other_settings_or_texts_are_not_resumed(make_config, data, tmp_path):
    config = make_config(["ner"])
    run(config, tmp_path / "run")
    config["training"]["batcher"]["size"] = 100
    with pytest.raises(
        ValueError, match=r"began with training\.batcher\.size = 200; now it is 100"
    ):
        run(config, tmp_path / "run", resume=True)
    config["training"]["batcher"]["size"] = 200
    docs = list(DocBin().from_disk(data).get_docs(spacy.blank(LANG).vocab))
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


# --- several processes


def run_two(config: Config, output: Path) -> None:
    """Run two processes as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = get_context("fork")
    two = [context.Process(target=run_rank, args=(config, output, r, port)) for r in (0, 1)]
    for process in two:
        process.start()
    for process in two:
        process.join(100)
    assert [process.exitcode for process in two] == [0, 0]


def run_rank(config: Config, output: Path, rank: int, port: int) -> None:
    join_two(rank, port)
    run(config, output)


def join_two(rank: int, port: int) -> None:
    """Make this process one of two, as torchrun does."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)  # otherwise torch hangs after a fork


@pytest.mark.parametrize(("heads", "parts"), [(["ner"], 1), (HEADS, 1), (HEADS[:2], 3)])
def test_two_processes_take_the_steps_of_one(make_config, tmp_path, heads, parts):
    """By plain gradient descent: Adam would divide out what a gradient is multiplied by, and make
    whole steps of what rounding leaves where it should be zero."""
    config = make_config(heads, accumulate_gradient=parts, max_steps=20)
    config["training"]["optimizer"] = SGD
    if len(heads) > 1:  # a part of a batch may have nothing for a head
        config["training"]["batcher"]["by_task"] = False
    one = run(config, tmp_path / "one")
    run_two(config, tmp_path / "two")
    for name in ("model-best", "model-last"):
        two = weights(spacy.load(tmp_path / "two" / name))
        assert_same(two, weights(spacy.load(tmp_path / "one" / name)), atol=1e-5)
    start = weights(init_nlp(config))
    assert all((one[name] != start[name]).any() for name in one if name.endswith("query.weight"))


def test_a_process_that_dies_ends_the_run(make_config, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    errors: Any = get_context("fork").SimpleQueue()
    two = [
        get_context("fork").Process(
            target=train_beside_one_that_dies, args=(make_config(), tmp_path, rank, port, errors)
        )
        for rank in (0, 1)
    ]
    for process in two:
        process.start()
    for process in two:
        process.join(100)
    assert [process.exitcode for process in two] == [0, -signal.SIGKILL]
    assert "Process 0 of 2 lost another one" in errors.get()


def train_beside_one_that_dies(config, output, rank, port, errors) -> None:
    join_two(rank, port)
    if rank:
        train_until_killed(config, output, 8, signal.SIGKILL)
    try:
        run(config, output)
    except ConnectionError as error:
        errors.put(str(error))


class Others:
    """Processes that have read another batch, or none."""

    rank, size, is_first, gpu_id = 0, 2, True, -1

    def sum(self, values):
        return [value + 1 for value in values]

    def begin_alike(self, module):
        pass


def test_several_processes_must_read_the_same(make_config):
    nlp = init_nlp(make_config(["ner"]))
    update = Updater(nlp, Adam(), Others(), exclude=[], annotates=[], accumulate_gradient=1)
    with pytest.raises(ValueError, match="have read different batches"):
        update(make_examples(nlp), dropout=0.0, losses={})


def test_several_processes_train_no_component_of_spacy(make_config):
    nlp = init_nlp(make_config(["ner"]))
    nlp.add_pipe("tagger")
    settings = {"annotates": [], "accumulate_gradient": 1}
    with pytest.raises(ValueError, match="'tagger' can't be trained by several processes"):
        Updater(nlp, Adam(), Others(), exclude=[], **settings)
    Updater(nlp, Adam(), Others(), exclude=["tagger"], **settings)


def test_several_processes_train_no_layers_of_thinc(make_config):
    config = make_config(["textcat"])
    config["components"]["bert_textcat"]["model"] |= {
        "pooling": "mean",
        "tok2vec": {
            "@architectures": "spacy.HashEmbedCNN.v2",
            "pretrained_vectors": None,
            **{"width": 16, "depth": 1, "embed_size": 50, "window_size": 1},
            **{"maxout_pieces": 2, "subword_features": True},
        },
    }
    nlp = init_nlp(config)
    with pytest.raises(ValueError, match="'bert_textcat' can't be .* several processes: its model"):
        Updater(nlp, Adam(), Others(), exclude=[], annotates=[], accumulate_gradient=1)


def test_steps_of_encoders_end_in_the_order_of_their_last_heads(make_config):
    """Otherwise processes with examples and without would wait for each other."""
    config = make_config(["ner", "textcat", "tagger"])
    components = config["components"]
    components["second"] = copy.deepcopy(components["bert_encoder"])
    components["bert_ner"]["model"]["tok2vec"]["upstream"] = "second"
    for name in ("bert_textcat", "bert_tagger"):
        components[name]["model"]["tok2vec"]["upstream"] = "bert_encoder"
    heads = ["bert_ner", "bert_textcat", "bert_tagger"]
    config["nlp"]["pipeline"] = ["bert_encoder", "second", *heads]
    nlp = init_nlp(config)
    settings = {"exclude": [], "annotates": [], "accumulate_gradient": 1}
    updater = Updater(nlp, Adam(), Processes(-1), **settings)
    assert [encoder.name for encoder in updater.encoders] == ["second", "bert_encoder"]
    settings["exclude"] = ["bert_textcat", "bert_tagger"]
    updater = Updater(nlp, Adam(), Processes(-1), **settings)
    assert [encoder.name for encoder in updater.encoders] == ["second", "bert_encoder"]


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


@pytest.mark.long
def test_torchrun(make_config, tmp_path):
    """By the command, as a user starts it; resumed by one process."""
    make_config(["ner"]).to_disk(tmp_path / "config.cfg")
    command = ["-m", "spacy", "bert", "train", "config.cfg", "-o", "out"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings: Any = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True}
    done = subprocess.run([*two, *command, "--training.max_steps", "4"], **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Saved pipeline to output directory: out/model-last") == 1
    done = subprocess.run([sys.executable, *command, "--resume"], **settings)
    assert "Continuing after step 4." in done.stdout, done.stderr
    one = run(make_config(["ner"]), tmp_path / "one")
    assert_same(weights(spacy.load(tmp_path / "out/model-last")), one, atol=2e-3)
