"""`bert train` by several processes."""

import copy
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import spacy
import torch
from joint import HEADS, make_examples
from spacy.training.initialize import init_nlp
from thinc.api import Adam, Config
from training_runs import SGD, assert_same, run, train_until_killed, weights

from spacy_bert_heads.runs.processes import Processes
from spacy_bert_heads.training.update import Updater

pytestmark = pytest.mark.filterwarnings("ignore:.*last learned at update", "ignore:A learning rate")


def run_two(target: Callable, *args: Any) -> list[int | None]:
    """Run a function in two processes that torchrun could have started, with these arguments, the
    rank and a port. Gives the exit codes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = get_context("fork")
    two = [context.Process(target=target, args=(*args, rank, port)) for rank in (0, 1)]
    for process in two:
        process.start()
    for process in two:
        process.join(100)
    return [process.exitcode for process in two]


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
    assert run_two(run_rank, config, tmp_path / "two") == [0, 0]
    for name in ("model-best", "model-last"):
        two = weights(spacy.load(tmp_path / "two" / name))
        assert_same(two, weights(spacy.load(tmp_path / "one" / name)), atol=1e-5)
    start = weights(init_nlp(config))
    assert all((one[name] != start[name]).any() for name in one if name.endswith("query.weight"))


def test_a_process_that_dies_ends_the_run(make_config, tmp_path):
    errors: Any = get_context("fork").SimpleQueue()
    codes = run_two(train_beside_one_that_dies, errors, make_config(), tmp_path)
    assert codes == [0, -signal.SIGKILL]
    assert "Process 0 of 2 lost another one" in errors.get()


def train_beside_one_that_dies(errors, config, output, rank, port) -> None:
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
